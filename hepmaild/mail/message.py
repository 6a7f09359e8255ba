# SPDX-License-Identifier: Apache-2.0
"""The header section of a submitted message: read it once, change only what must change (smtp-relay.md).

`inspect` finds the few fields that matter; `rewrite` removes `Bcc:` and `X-Idempotency-Key:`, adds what is missing and
a trace field, and leaves every other octet as it was: order, folding, case, spacing.  Client signatures stay valid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hepmaild.mail.address import MAX_NAME_LENGTH, key_of
from hepmaild.mail.content import HEAD_LIMIT_OCTETS
from hepmaild.mail.headers import AddressLister, decode_words, format_mailboxes, parse_from, unfold
from hepmaild.mail.submission import Kind, Mailbox, Origin
from hepmaild.masking import KEY_PREFIX

MAX_SUBJECT = 500  # as shown in Logs
MAX_FROM_OCTETS = 64 << 10
MAX_IDEMPOTENCY_WORD = 256
MAX_MESSAGE_ID = 998
_MAX_SUBJECT_OCTETS = 4000

# One field: name, optional white space (RFC 5322 §4.5), colon, the rest of the line, and its continuation lines.
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\n]*(?:\n|\Z)(?:[ \t][^\n]*(?:\n|\Z))*)")
# "From : x" is a field with obsolete syntax (RFC 5322 §4.5), not an mbox line.
_MBOX_LINE = re.compile(rb">*From (?![ \t]*:)[^\n]*(?:\n|\Z)")
_INTERESTING = frozenset({b"from", b"to", b"cc", b"bcc", b"subject", b"date", b"message-id", b"x-idempotency-key"})
_HOST_UNSAFE = re.compile(r"[^A-Za-z0-9.:_\[\]-]")
_TLS_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_ADDRESS_LITERAL = re.compile(r"\[.*|[0-9.]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True, slots=True)
class _Edit:
    """Octets [start, end) of the head are replaced."""

    start: int
    end: int
    by: bytes = b""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the header section of a message says.

    header_end: offset of the first octet of the body.  fields_end: offset behind the last field.  from_addresses:
    normalised where they are addresses; empty when the field is missing.  from_count: number of From fields.
    message_id: with its angle brackets, None when missing or empty.  subject: decoded, cut, for people to read.
    to, cc, bcc: normalised addresses in the order given; has_more: the fields name more than were looked at.
    idempotency_word: from X-Idempotency-Key.  problem: why the message cannot be taken (550 5.6.0), or None.
    """

    header_end: int
    fields_end: int
    from_addresses: tuple[str, ...] = ()
    from_count: int = 0
    message_id: str | None = None
    has_date: bool = False
    subject: str = ""
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    has_more: bool = False
    idempotency_word: str | None = None
    problem: str | None = None
    edits: tuple[_Edit, ...] = field(default=(), repr=False)

    def kind_of(self, address: str) -> Kind:
        """How an envelope recipient shows in Logs."""
        key = key_of(address)
        if any(key_of(listed) == key for listed in self.to):
            return Kind.TO
        if any(key_of(listed) == key for listed in self.cc):
            return Kind.CC
        return Kind.BCC


def inspect(head: bytes) -> Inspected:
    """Read the header section at the start of `head` (`Content.head()`).  Never raises; costs about 20 µs.

    A line that is no header field ends the section even without a blank line, as other servers have it.  An mbox
    "From " line before the first field is dropped; without a field behind it, it is the text of who sends no header.
    """
    found: dict[bytes, list[re.Match[bytes]]] = {}
    edits: list[_Edit] = []
    at = 0
    mbox = _MBOX_LINE.match(head)
    if mbox is not None and _FIELD.match(head, mbox.end()) is not None:
        at = mbox.end()
        edits.append(_Edit(0, at))
    while (match := _FIELD.match(head, at)) is not None:
        at = match.end()
        name = match[1].lower()
        if name in _INTERESTING:
            found.setdefault(name, []).append(match)
    body_at = at + 2 if head.startswith(b"\r\n", at) else at + 1 if head.startswith(b"\n", at) else at
    if len(head) >= HEAD_LIMIT_OCTETS and head.find(b"\n", at) < 0:
        # Cut off here, perhaps in the middle of a name: what follows would be sent as body, a Bcc included.
        return Inspected(at, at, problem=f"The header section is larger than {HEAD_LIMIT_OCTETS >> 10} KB.")
    return _read(found, edits, body_at, at)


def _read(found: dict[bytes, list[re.Match[bytes]]], edits: list[_Edit], body_at: int, fields_end: int) -> Inspected:
    problem = None
    authors: tuple[str, ...] = ()
    word = None
    from_fields = found.get(b"from", [])
    try:
        authors = _read_from(from_fields, edits)
        word = _read_word(found.get(b"x-idempotency-key", []))
    except ValueError as error:
        problem = str(error)
    message_id = _read_message_id(found.get(b"message-id", []), edits)
    for name in (b"bcc", b"x-idempotency-key"):
        edits.extend(_Edit(*match.span()) for match in found.get(name, ()))
    edits.sort(key=lambda edit: edit.start)
    subjects = found.get(b"subject")
    lister = AddressLister()
    return Inspected(
        header_end=body_at,
        fields_end=fields_end,
        from_addresses=authors,
        from_count=len(from_fields),
        message_id=message_id,
        has_date=b"date" in found,
        subject=decode_words(unfold(subjects[0][2][:_MAX_SUBJECT_OCTETS]))[:MAX_SUBJECT] if subjects else "",
        to=_read_list(lister, found.get(b"to")),
        cc=_read_list(lister, found.get(b"cc")),
        bcc=_read_list(lister, found.get(b"bcc")),
        has_more=lister.has_more,
        idempotency_word=word,
        problem=problem,
        edits=tuple(edits),
    )


def _read_from(fields: list[re.Match[bytes]], edits: list[_Edit]) -> tuple[str, ...]:
    """The authors' addresses; a display name that is too long becomes an edit.  Raises ValueError with a sentence."""
    if not fields:
        return ()
    if len(fields) > 1:
        raise ValueError("The message has two From: header fields; leave one.")
    match = fields[0]
    if len(match[2]) > MAX_FROM_OCTETS:
        raise ValueError(f"The From: header field is larger than {MAX_FROM_OCTETS >> 10} KB.")
    try:
        mailboxes = parse_from(unfold(match[2]))
    except ValueError as error:
        raise ValueError(f"The From: header field cannot be read: it has {error}.") from None
    if not mailboxes:
        raise ValueError("The From: header field names no address.")
    if any(len(mailbox.name) > MAX_NAME_LENGTH for mailbox in mailboxes):
        cut = (Mailbox(mailbox.address, mailbox.name[:MAX_NAME_LENGTH].strip()) for mailbox in mailboxes)
        value = format_mailboxes("From", cut).encode("utf-8")
        edits.append(_Edit(match.start(), match.end(), match[1] + b": " + value + b"\r\n"))
    return tuple(mailbox.address for mailbox in mailboxes)


def _read_word(fields: list[re.Match[bytes]]) -> str | None:
    words = {unfold(match[2]) for match in fields}
    if len(words) > 1:
        raise ValueError("The message has two different X-Idempotency-Key: header fields; leave one.")
    for word in words:
        if not 1 <= len(word) <= MAX_IDEMPOTENCY_WORD or not word.isprintable():
            raise ValueError(f"X-Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_WORD} printable characters.")
        return word
    return None


def _read_message_id(fields: list[re.Match[bytes]], edits: list[_Edit]) -> str | None:
    for match in fields:
        value = unfold(match[2])[:MAX_MESSAGE_ID]
        if value:
            return value
        edits.append(_Edit(*match.span()))  # an empty one would stand beside the one that is added
    return None


def _read_list(lister: AddressLister, fields: list[re.Match[bytes]] | None) -> tuple[str, ...]:
    if not fields:
        return ()
    return tuple(address for match in fields for address in lister.find(unfold(match[2])))


def rewrite(
    head: bytes,
    inspected: Inspected,
    *,
    received: bytes,
    sender: Mailbox | None = None,
    date: str | None = None,
    message_id: str | None = None,
) -> bytes:
    """The new header section, blank line included; the body goes behind it from `inspected.header_end` on.

    received: the trace field, from `received_field`.  sender, date, message_id: fields to add, or None where the
    message has its own; they go behind the last field.
    """
    pieces = [received]
    at = 0
    for edit in inspected.edits:
        pieces += (head[at : edit.start], edit.by)
        at = edit.end
    rest = head[at : inspected.fields_end]
    pieces.append(rest)
    if rest and not rest.endswith(b"\n"):  # where it was edited instead, what stands before ends a line
        pieces.append(b"\r\n")
    if sender is not None:
        pieces.append(f"From: {format_mailboxes('From', [sender])}\r\n".encode())
    if date is not None:
        pieces.append(f"Date: {date}\r\n".encode())
    if message_id is not None:
        pieces.append(f"Message-ID: {message_id}\r\n".encode())
    pieces.append(b"\r\n")
    return b"".join(pieces)


def received_field(origin: Origin, hostname: str, message_id: str, date: str, *, with_address: bool = False) -> bytes:
    """The trace field (RFC 5321 §4.4) with CRLF.  with_address: whether the client's IP address is shown.

    The name the client gave in EHLO is hostile, and often its address: then it is only shown with `with_address`.  With
    an API key in it, put there by mistake, it is never shown: every recipient could send in its name.
    """
    helo = _HOST_UNSAFE.sub("?", origin.helo)[:100]
    if not helo or KEY_PREFIX in helo or (not with_address and _ADDRESS_LITERAL.fullmatch(helo)):
        helo = "unknown"
    peer = ""
    if with_address:
        tag = "IPv6:" if ":" in origin.peer_ip else ""
        peer = f" ([{tag}{_HOST_UNSAFE.sub('?', origin.peer_ip)}])"
    tls = f"{_TLS_UNSAFE.sub('', origin.tls_version)} {_TLS_UNSAFE.sub('', origin.tls_cipher)}".strip()
    lines = [f"Received: from {helo}{peer}", f"by {hostname} with ESMTPSA id {message_id}"]
    if tls:
        lines.append(f"({tls})")
    return ("\r\n\t".join(lines) + f";\r\n\t{date}\r\n").encode("ascii", "replace")
