# SPDX-License-Identifier: Apache-2.0
"""A draft becomes a message: headers, alternatives, inline images, attachments (RFC 5322, RFC 2045 to 2047, RFC 2231).

Built as a tree of the standard library's `Message`s and written by `_write`: the library's own generator splits a body
of 25 MB into lines and joins them again, and its modern header registry takes a millisecond for a small message.
The result is the same whenever the arguments are.  Bcc recipients are not in a draft, so they cannot be written.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from datetime import datetime
from email.message import Message
from typing import Any
from urllib.parse import quote

from hepmaild.mail.address import MAX_NAME_LENGTH
from hepmaild.mail.headers import encode_text, format_date, format_mailboxes
from hepmaild.mail.submission import Attachment, Draft, Mailbox, Recipient

BOUNDARY_ENTROPY_OCTETS = 16

_BASE64_BLOCK = 57 * 1024  # 57 octets make a line of 76 characters (RFC 2045 §6.8)
_BASE64_LINE = 76
# Some of them at a time, since the engine remembers every line to come back to; some room below the 998 of RFC 5322.
# (Possessively it would not, but Python 3.11.2 has a mistake there: see `template`.)
_SEVEN_BIT_LINES = re.compile(rb"(?>(?:[\t -~]{0,990}\r\n){1,100})")
_LINE_END = re.compile(r"\r\n?|\n")
_HIGH_OCTETS = bytes(range(0x80, 0x100))
_CONTENT_TYPE = re.compile(r"([A-Za-z0-9!#$&^_.+-]+)/[A-Za-z0-9!#$&^_.+-]+(?:[ \t]*;[ \t]*[\x20-\x7e]+)?")
_PLAIN_FILENAME = re.compile(r"[\x20-\x7e]*")
_PARAMETER_PIECE = 60


def needs_smtputf8(draft: Draft, sender: Mailbox, recipients: Iterable[Recipient] = ()) -> bool:
    """Whether the next hop must offer SMTPUTF8 (RFC 6531): some local part is not ASCII.  Domains always are."""
    shown = (sender, *draft.to, *draft.cc, *draft.reply_to)
    return not (all(box.address.isascii() for box in shown) and all(each.address.isascii() for each in recipients))


def compose(draft: Draft, sender: Mailbox, *, message_id: str, date: datetime, entropy: bytes) -> bytes:
    """The finished message, lines ended by CRLF, at most 998 octets each, 7bit but for non-ASCII local parts.

    sender: goes into From, with `draft.from_name` if there is one.  message_id: `<…@domain>`.  date: an aware instant.
    entropy: `BOUNDARY_ENTROPY_OCTETS` random octets, so that no body can contain a boundary.  Costs 0.1 ms for a small
    message; 0.1 s for 18 MB of attachments, so call it in a thread when `draft` is large.
    """
    if len(entropy) < BOUNDARY_ENTROPY_OCTETS:
        raise ValueError(f"boundaries take {BOUNDARY_ENTROPY_OCTETS} random octets")
    message = _Part()
    name = draft.from_name or sender.name or (draft.sender.name if draft.sender else "")
    message["From"] = format_mailboxes("From", [Mailbox(sender.address, name[:MAX_NAME_LENGTH])])
    for field, mailboxes in (("To", draft.to), ("Cc", draft.cc), ("Reply-To", draft.reply_to)):
        if mailboxes:
            message[field] = format_mailboxes(field, mailboxes)
    message["Subject"] = encode_text("Subject", draft.subject)
    message["Date"] = format_date(date)
    message["Message-ID"] = message_id
    for field, value in draft.headers:
        message[field] = encode_text(field, value)
    message["MIME-Version"] = "1.0"
    _Composer(entropy.hex()).fill(message, draft)
    pieces: list[bytes] = []
    _write(message, pieces)
    return b"".join(pieces)


class _Part(Message):
    """A part: `body` holds its encoded octets, or, with a `boundary`, it contains others."""

    boundary = b""
    body = b""


class _Composer:
    """Fills the parts; knows the next boundary."""

    def __init__(self, random: str) -> None:
        self._random = random
        self._containers = 0

    def fill(self, message: _Part, draft: Draft) -> None:
        """Give `message` its body: the smallest structure that shows everything."""
        inline = [each for each in draft.attachments if each.content_id is not None and draft.html]
        attached = [each for each in draft.attachments if each.content_id is None or not draft.html]
        if not attached:
            self._body(message, draft, inline)
            return
        self._contain(message, "mixed")
        self._body(self._child(message), draft, inline)
        for attachment in attached:
            _attach(self._child(message), attachment)

    def _body(self, part: _Part, draft: Draft, inline: list[Attachment]) -> None:
        if draft.text and draft.html:
            self._contain(part, "alternative")
            _set_text(self._child(part), draft.text, "plain")
            self._html(self._child(part), draft.html, inline)
        elif draft.html:
            self._html(part, draft.html, inline)
        else:
            _set_text(part, draft.text or "", "plain")

    def _html(self, part: _Part, html: str, inline: list[Attachment]) -> None:
        if not inline:
            _set_text(part, html, "html")
            return
        self._contain(part, "related", '; type="text/html"')
        _set_text(self._child(part), html, "html")
        for attachment in inline:
            _attach(self._child(part), attachment)

    def _contain(self, part: _Part, kind: str, parameters: str = "") -> None:
        self._containers += 1
        boundary = f"=_{self._random}_{self._containers}"  # "=_" cannot stand in quoted-printable or base64
        part["Content-Type"] = f'multipart/{kind}{parameters};\r\n boundary="{boundary}"'
        part.boundary = boundary.encode("ascii")

    def _child(self, part: _Part) -> _Part:
        child = _Part()
        part.attach(child)
        return child


def _set_text(part: _Part, text: str, kind: str) -> None:
    encoding, octets = encode_body(text)
    part["Content-Type"] = f'text/{kind}; charset="utf-8"'
    part["Content-Transfer-Encoding"] = encoding
    part.body = octets


def encode_body(text: str) -> tuple[str, bytes]:
    """The transfer encoding for a text, and the text in it, ending in CRLF: `7bit` when it can be, else the shorter."""
    octets = _LINE_END.sub("\r\n", text).encode("utf-8")
    if not octets.endswith(b"\r\n"):
        octets += b"\r\n"
    if _is_seven_bit(octets):
        return "7bit", octets
    high = len(octets) - len(octets.translate(None, _HIGH_OCTETS))
    if high * 6 > len(octets):
        return "base64", encode_base64(octets)
    return "quoted-printable", binascii.b2a_qp(octets)


def _is_seven_bit(octets: bytes) -> bool:
    at = 0
    while at < len(octets) and (lines := _SEVEN_BIT_LINES.match(octets, at)) is not None:
        at = lines.end()
    return at == len(octets)


def encode_base64(octets: bytes) -> bytes:
    """Base64 in lines of 76 characters, ended by CRLF."""
    out = bytearray()
    view = memoryview(octets)
    for at in range(0, len(view), _BASE64_BLOCK):
        block = binascii.b2a_base64(view[at : at + _BASE64_BLOCK], newline=False)
        for start in range(0, len(block), _BASE64_LINE):
            out += block[start : start + _BASE64_LINE]
            out += b"\r\n"
    return bytes(out)


def _attach(part: _Part, attachment: Attachment) -> None:
    kind = _CONTENT_TYPE.fullmatch(attachment.content_type)
    # A multipart or message type must not be in base64 (RFC 2046 §5.2.1, §5.1), and only its author knows its lines.
    usable = kind is not None and kind[1].lower() not in ("multipart", "message")
    part["Content-Type"] = attachment.content_type if usable else "application/octet-stream"
    part["Content-Transfer-Encoding"] = "base64"
    disposition = "attachment"
    if attachment.content_id is not None:
        part["Content-ID"] = f"<{attachment.content_id}>"
        disposition = "inline"
    part["Content-Disposition"] = disposition + _filename(attachment.filename)
    part.body = encode_base64(attachment.content)


def _filename(name: str) -> str:
    """The filename parameter: a quoted string, or RFC 2231 in pieces when it is not ASCII."""
    if not name:
        return ""
    if _PLAIN_FILENAME.fullmatch(name):
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f';\r\n filename="{escaped}"'
    encoded = [quote(character, safe="") for character in name]
    pieces = ["utf-8''"]
    for character in encoded:
        if len(pieces[-1]) + len(character) > _PARAMETER_PIECE:
            pieces.append("")
        pieces[-1] += character
    if len(pieces) == 1:
        return f";\r\n filename*={pieces[0]}"
    return "".join(f";\r\n filename*{number}*={piece}" for number, piece in enumerate(pieces))


def _write(part: _Part, pieces: list[bytes]) -> None:
    """The octets of a part and all below it, in order, into `pieces`."""
    for field, value in part.raw_items():
        pieces.append(f"{field}: {value}\r\n".encode())
    pieces.append(b"\r\n")
    if not part.boundary:
        pieces.append(part.body)
        return
    children: Any = part.get_payload()
    for child in children:
        pieces.append(b"--" + part.boundary + b"\r\n")
        _write(child, pieces)
        pieces.append(b"\r\n")
    pieces.append(b"--" + part.boundary + b"--\r\n")
