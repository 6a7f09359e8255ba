# SPDX-License-Identifier: Apache-2.0
"""What is in a stored message: its header fields, its texts, its attachments.  Pure, bounded; mail is hostile."""

from __future__ import annotations

import base64
import email
import email.policy
import re
import unicodedata
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import quote, unquote

from hepmaild.mail.charsets import decode
from hepmaild.mail.headers import decode_words

MAX_BOUNDARIES = 60  # parts within parts cost the parser time without end
MAX_PARTS = 200
MAX_FIELD_WORK = 3 * 10**7  # of squared lengths of fields with parameters: so long does the parser take for them
MAX_SHOWN = 200_000  # characters of a text on a page
MAX_HTML = 2_000_000
MAX_PICTURES = 2_700_000  # characters that are put into the HTML for pictures
_FIELD = re.compile(
    rb"(?:^|[\r\n])content-(?:type|disposition)[ \t]*:[^\r\n]*(?:[\r\n]{1,2}[ \t][^\r\n]*)*", re.IGNORECASE
)
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_PICTURE_PLACE = re.compile(r"(?<=[\"'=(])cid:([^\s\"'<>()]{1,250})", re.IGNORECASE)  # RFC 2392
_LINK = re.compile(r"<(?=link)", re.IGNORECASE | re.ASCII)
# What the standard library's parser and decoders let out for mail that is wrong in ways they do not know.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part to be downloaded.  n: its number in the message.  octets: its content."""

    n: int
    name: str
    kind: str
    size: int
    octets: bytes = field(repr=False)


@dataclass(slots=True)
class Parts:
    """What was found.  problem: why it cannot be taken apart, for the reader."""

    headers: str = ""
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = field(default_factory=list)
    problem: str = ""


def head_of(data: bytes) -> str:
    """The header section as text."""
    end = data.find(b"\r\n\r\n")
    head = data[: end if end >= 0 else len(data)][:MAX_SHOWN]
    return head.decode("utf-8", "replace").replace("\r\n", "\n")


def take_apart(data: bytes) -> Parts:
    """The parts of a message.  Never raises; takes time with large ones: call it in a thread."""
    parts = Parts(headers=head_of(data))
    if data.count(b"boundary") > MAX_BOUNDARIES or not _is_soon_read(data):
        parts.problem = "This message is too intricate to be taken apart here; download it to look at it."
        return parts
    try:
        _walk(email.message_from_bytes(data, policy=email.policy.compat32), parts)
    except BROKEN:
        parts.problem = "This message is not well-formed: not all of it can be shown. Download it to look at it."
    return parts


def _is_soon_read(data: bytes) -> bool:
    return sum((match.end() - match.start()) ** 2 for match in _FIELD.finditer(data)) <= MAX_FIELD_WORK


def _walk(root: Message[Any, Any], parts: Parts) -> None:
    pictures: dict[str, tuple[str, bytes]] = {}
    for n, part in enumerate(root.walk()):
        if n >= MAX_PARTS:
            parts.problem = f"Only the first {MAX_PARTS} parts are shown."
            break
        if part.is_multipart():
            continue
        kind = part.get_content_type()
        octets = part.get_payload(decode=True)
        if not isinstance(octets, bytes):
            continue
        name = _file_name(part)
        wants_saving = str(part.get("Content-Disposition", "")).strip().lower().startswith("attachment")
        if kind == "text/plain" and parts.text is None and not (name or wants_saving):
            parts.text = _decoded(part, octets)[:MAX_SHOWN]
        elif kind == "text/html" and parts.html is None and not (name or wants_saving):
            parts.html = without_links(_decoded(part, octets)[:MAX_HTML])
        else:
            parts.attachments.append(Attachment(n, safe_name(name, n, kind), kind, len(octets), octets))
            cid = str(part.get("Content-ID", "")).strip().removeprefix("<").removesuffix(">")
            if cid and kind in _PICTURES:
                pictures[cid] = (kind, octets)
    if parts.html and pictures:
        parts.html = _with_pictures(parts.html, pictures)


def _decoded(part: Message[Any, Any], octets: bytes) -> str:
    charset = part.get_param("charset", "utf-8")
    try:
        return decode(octets, str(charset[2] if isinstance(charset, tuple) else charset))
    except LookupError:
        return decode(octets, "utf-8")


def _file_name(part: Message[Any, Any]) -> str:
    """By RFC 2231, or by RFC 2047, which many use although it is not for parameters."""
    try:
        name = part.get_param("filename", header="content-disposition") or part.get_param("name") or ""
        if isinstance(name, tuple):
            charset, _, text = name
            return decode(text.encode("latin-1", "replace"), charset or "utf-8")
        return decode_words(str(name))
    except BROKEN:
        return "attachment"


def safe_name(name: str, n: int, kind: str) -> str:
    """A file name without folders, control characters and invisible ones that act; never empty, never hidden."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(ch for ch in name if unicodedata.category(ch)[0] != "C" and ch not in '<>:"|?*')
    name = name.strip().lstrip(".").strip()
    if len(name) > 120:
        stem, dot, ending = name.rpartition(".")
        name = f"{stem[:100]}{dot}{ending[:15]}" if dot else name[:120]
    return name or f"part-{n}.{re.sub('[^a-z0-9]', '', kind.partition('/')[2])[:10] or 'bin'}"


def disposition(name: str) -> str:
    """The Content-Disposition with which a browser saves a file by this name (RFC 6266)."""
    plain = "".join(ch if ch.isascii() and ch.isprintable() and ch not in '"\\%;' else "_" for ch in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def without_links(html: str) -> str:
    """A document whose `<link>` elements are none any more: no policy keeps browsers from looking up and calling the
    hosts that these name (preconnect, dns-prefetch), and whoever sent it would know that, and from where, it was read.

    What else a link could bring, such as a style sheet from elsewhere, the frame's policy refuses anyway.
    """
    return _LINK.sub("<x-", html)


def _with_pictures(html: str, pictures: dict[str, tuple[str, bytes]]) -> str:
    """Pictures that came with the message, in place of where it names them: nothing is fetched from anywhere.

    A picture may stand in many places, and takes room in each.
    """
    room = MAX_PICTURES

    def put(place: re.Match[str]) -> str:
        nonlocal room
        kind, octets = pictures.get(unquote(place[1]), ("", b""))
        if not octets or (size := len(octets) * 4 // 3 + 40) > room:
            return place[0]
        room -= size
        return f"data:{kind};base64,{base64.b64encode(octets).decode('ascii')}"

    return _PICTURE_PLACE.sub(put, html)
