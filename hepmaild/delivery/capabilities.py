# SPDX-License-Identifier: Apache-2.0
"""What a next hop offers, and what therefore must not be sent to it; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hepmaild.mail.reply import Reply

# A path that can be put between angle brackets without ending them early, quoted local parts included.
_SAFE_PATH = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"|[^\s<>"\x00-\x1f\x7f])*')

_UNSAFE_ADDRESS = Reply(553, "5.1.3", "the address holds characters that cannot be sent")
_NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "the address or header is not ASCII and the next hop does not offer SMTPUTF8")
_TOO_LARGE = Reply(552, "5.3.4", "the message is larger than the next hop accepts")
_NOT_YET = Reply(452, "4.5.3", "the next hop takes fewer recipients in one transaction; this one goes next")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What EHLO offered.  size: octets.  rcpt_max, mail_max: recipients of a transaction, transactions of a connection
    (RFC 9422).  Each 0 for no limit."""

    pipelining: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    starttls: bool = False
    offers_size: bool = False
    size: int = 0
    rcpt_max: int = 0
    mail_max: int = 0
    auth: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a transaction is about.  headers_utf8: the header section is not ASCII (RFC 6532)."""

    reverse_path: str
    recipients: tuple[str, ...]
    size: int
    eight_bit: bool = False
    headers_utf8: bool = False

    @property
    def needs_smtputf8(self) -> bool:
        """Whether it can only be sent with SMTPUTF8 (RFC 6531)."""
        return (
            self.headers_utf8
            or not self.reverse_path.isascii()
            or not all(address.isascii() for address in self.recipients)
        )


def parse_capabilities(reply: Reply) -> Capabilities:
    """What an EHLO reply offers; keywords in any case (RFC 5321 §4.1.1.1), wrong parameters ignored."""
    words: dict[str, list[str]] = {}
    for line in reply.text.split("\n")[1:]:
        parts = line.upper().replace("AUTH=", "AUTH ", 1).split()
        if parts:
            words.setdefault(parts[0], []).extend(parts[1:])
    limits = dict(part.split("=", 1) for part in words.get("LIMITS", []) if "=" in part)
    return Capabilities(
        pipelining="PIPELINING" in words,
        eight_bit="8BITMIME" in words,
        smtputf8="SMTPUTF8" in words,
        starttls="STARTTLS" in words,
        offers_size="SIZE" in words,
        size=_number(words.get("SIZE", ["0"])[0] if words.get("SIZE") else "0"),
        rcpt_max=_number(limits.get("RCPTMAX", "0")),
        mail_max=_number(limits.get("MAILMAX", "0")),
        auth=frozenset(words.get("AUTH", [])),
    )


def _number(text: str) -> int:
    """A decimal number, or 0."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else 0


def refuse_locally(envelope: Envelope, offered: Capabilities) -> list[Reply | None]:
    """For each recipient our own refusal, or None: what the next hop would refuse, or must not see."""
    count = len(envelope.recipients)
    if not _SAFE_PATH.fullmatch(envelope.reverse_path):
        return [_UNSAFE_ADDRESS] * count
    if offered.size and envelope.size > offered.size:
        return [_TOO_LARGE] * count
    if not offered.smtputf8 and (envelope.headers_utf8 or not envelope.reverse_path.isascii()):
        return [_NEEDS_SMTPUTF8] * count
    replies: list[Reply | None] = []
    left = offered.rcpt_max or count
    for address in envelope.recipients:
        if not _SAFE_PATH.fullmatch(address) or not address:
            replies.append(_UNSAFE_ADDRESS)
        elif not offered.smtputf8 and not address.isascii():
            replies.append(_NEEDS_SMTPUTF8)
        elif left <= 0:
            replies.append(_NOT_YET)
        else:
            left -= 1
            replies.append(None)
    return replies
