# SPDX-License-Identifier: Apache-2.0
"""DKIM signatures (RFC 6376, RFC 8463): canonicalisation, choice of fields, the field that is put on top.

Always relaxed/relaxed.  `l=` is never written: what somebody appends must break the signature.  The private key is
behind `Signer.sign`, so that this module does arithmetic on octets and nothing else.  Everything takes linear time on
hostile input.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

RSA, ED25519 = "rsa-sha256", "ed25519-sha256"

# Signed as often as they are there and once more, so that none can be added behind the signature (RFC 6376 §8.15).
# Readers act on these, and no relay has a reason to add one.
_CLOSED = (b"from", b"to", b"cc", b"subject", b"date", b"reply-to", b"message-id")
# The same where there is one.  Where there is none, a relay or a list may add its own.
_CLOSED_IF_PRESENT = (
    b"sender",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
    b"content-disposition",
    b"list-id",
    b"list-unsubscribe",  # RFC 8058 §4 wants these two signed
    b"list-unsubscribe-post",
)
# Signed as often as they are there.
_OPEN = (
    b"in-reply-to",
    b"references",
    b"feedback-id",
    b"content-id",
    b"content-description",
    b"content-language",
    b"list-help",
    b"list-subscribe",
    b"list-post",
    b"list-owner",
    b"list-archive",
    b"auto-submitted",
    b"resent-date",
    b"resent-from",
    b"resent-sender",
    b"resent-to",
    b"resent-cc",
    b"resent-message-id",
)
_SIGNED = frozenset((*_CLOSED, *_CLOSED_IF_PRESENT, *_OPEN))
_NAMES = {name: b"-".join(word.capitalize() for word in name.split(b"-")) for name in _SIGNED}
_NAMES |= {b"mime-version": b"MIME-Version", b"message-id": b"Message-ID"}

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\n]*(?:\n|\Z)(?:[ \t][^\n]*(?:\n|\Z))*)")
_FOLD_AT = 76
_CR = 13
MAX_OF_ONE_NAME = 100  # fields of one name that are signed: the last ones (RFC 6376 §5.4.2)
_BLOCK = b"\r\n" * 4096


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that signs for a domain.

    domain: `d=`, in A-labels.  selector: `s=`.  algorithm: `RSA` or `ED25519`.  sign: from the octets that RFC 6376
    §3.7 puts together to the signature (RFC 8463 §3: over their SHA-256); may be called from any thread.
    """

    domain: str
    selector: str
    algorithm: str
    sign: Callable[[bytes], bytes] = field(repr=False)


class BodyHash:
    """SHA-256 of a body in relaxed canonical form (RFC 6376 §3.4.4), fed in pieces of any size.

    Lines end in CRLF; the doors let nothing else in.  White space and empty lines at the end are counted, not kept.
    """

    __slots__ = ("_carriage", "_hash", "_lines", "_something", "_space")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._lines = 0  # line ends that were not hashed yet
        self._space = False  # white space behind them
        self._carriage = False  # a CR behind that, whose LF is yet to come
        self._something = False

    def update(self, piece: bytes) -> None:
        """The next octets of the body."""
        if self._carriage:
            piece = b"\r" + piece
            self._carriage = False
        text = piece.rstrip(b" \t\r\n")
        if text:
            start = len(text) - len(text.lstrip(b" \t\r\n"))
            if start and text[start - 1] == _CR:  # not a line end: text like any other
                start -= 1
            self._hold(text[:start])
            self._release()
            self._hash.update(_squeeze(text[start:]))
            self._something = True
        self._hold(piece[len(text) :])

    def digest(self) -> bytes:
        """The hash; nothing may be added afterwards.  Of an empty body: that of no octets."""
        if self._something:
            self._hash.update(b"\r\n")
        return self._hash.digest()

    def _hold(self, blank: bytes) -> None:
        """Count white space and line ends, which may turn out to be the last ones."""
        if not blank:
            return
        if blank.endswith(b"\r"):
            self._carriage = True
            blank = blank[:-1]
        lines = blank.count(b"\r\n")
        self._lines += lines
        if blank.endswith((b" ", b"\t")):
            self._space = True
        elif lines:
            self._space = False

    def _release(self) -> None:
        """More text came: what was counted belongs to the body."""
        while self._lines > 0:
            count = min(self._lines, len(_BLOCK) // 2)
            self._hash.update(_BLOCK[: 2 * count])
            self._lines -= count
        if self._space:
            self._hash.update(b" ")
            self._space = False


def _squeeze(text: bytes) -> bytes:
    """Runs of white space become one space, and none before a line end.

    Most bodies have neither; looking first is several times faster than a regular expression.
    """
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text.replace(b" \r\n", b"\r\n")


def relaxed_value(raw: bytes) -> bytes:
    """A field body in relaxed canonical form (RFC 6376 §3.4.2), without its line end."""
    text = raw.replace(b"\r\n", b"").rstrip(b"\n")
    return _squeeze(text).strip(b" ")


def body_hash(pieces: Iterable[bytes]) -> bytes:
    """`BodyHash` of all these pieces."""
    hashed = BodyHash()
    for piece in pieces:
        hashed.update(piece)
    return hashed.digest()


def sign(head: bytes, hashed_body: bytes, signers: Sequence[Signer], *, at_s: int) -> bytes:
    """The DKIM-Signature fields, one for each signer, with CRLF, to be put before `head`.

    head: the finished header section; what follows its blank line is not looked at.  hashed_body: from `BodyHash`.
    at_s: Unix seconds, for `t=`.  Raises what a signer raises.
    """
    names, canonical = _select(head)
    return b"".join(_one(signer, names, canonical, hashed_body, at_s) for signer in signers)


def _select(head: bytes) -> tuple[list[bytes], bytes]:
    """The names for `h=`, and the canonical fields they stand for: those of one name from the last to the first."""
    found: dict[bytes, list[bytes]] = {}
    at = 0
    while (match := _FIELD.match(head, at)) is not None:
        at = match.end()
        name = match[1].lower()
        if name in _SIGNED:
            found.setdefault(name, []).append(match[2])
    names: list[bytes] = []
    canonical: list[bytes] = []
    for group, closed, absent in ((_CLOSED, 1, 1), (_CLOSED_IF_PRESENT, 1, 0), (_OPEN, 0, 0)):
        for name in group:
            values = found.get(name)
            if values is None:
                names += [_NAMES[name]] * absent
                continue
            # Of a flood only the last ones are signed; then another mention would mean the one above them.
            extra = closed if len(values) <= MAX_OF_ONE_NAME else 0
            del values[:-MAX_OF_ONE_NAME]
            names += [_NAMES[name]] * (len(values) + extra)
            canonical += [name + b":" + relaxed_value(value) + b"\r\n" for value in reversed(values)]
    return names, b"".join(canonical)


def _one(signer: Signer, names: list[bytes], canonical: bytes, hashed_body: bytes, at_s: int) -> bytes:
    written = (
        f"v=1; a={signer.algorithm}; c=relaxed/relaxed; d={signer.domain};\r\n"
        f"\ts={signer.selector}; t={at_s};\r\n"
        f"\th={_fold_names(names)};\r\n"
        f"\tbh={_base64(hashed_body)};\r\n"
        "\tb="
    ).encode("ascii")
    octets = signer.sign(canonical + b"dkim-signature:" + relaxed_value(written))
    return b"DKIM-Signature: " + written + _fold_base64(_base64(octets)).encode("ascii") + b"\r\n"


def _fold_names(names: list[bytes]) -> str:
    """Joined by colons, with line breaks behind some of them."""
    lines = [""]
    for number, name in enumerate(names):
        word = name.decode("ascii") + (":" if number < len(names) - 1 else "")
        if len(lines[-1]) + len(word) > _FOLD_AT - 8:
            lines.append("")
        lines[-1] += word
    return "\r\n\t ".join(lines)


def _fold_base64(text: str) -> str:
    return "\r\n\t ".join(text[at : at + _FOLD_AT - 4] for at in range(0, len(text), _FOLD_AT - 4))


def _base64(octets: bytes) -> str:
    return binascii.b2a_base64(octets, newline=False).decode("ascii")
