# SPDX-License-Identifier: Apache-2.0
"""What is in a stored message: its header fields, its texts, its attachments.  Pure, bounded; mail is hostile."""

from __future__ import annotations

import base64
import email
import email.header
import email.policy
import re
import unicodedata
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import quote

MAX_BOUNDARIES = 60  # parts within parts cost the parser time without end
MAX_PARTS = 200
MAX_SHOWN = 200_000  # characters of a text on a page
MAX_HTML = 2_000_000
MAX_PICTURES = 2_000_000  # octets that are put into the HTML
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
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
    if data.count(b"boundary") > MAX_BOUNDARIES:
        parts.problem = "This message is nested too deeply to be taken apart here; download it to look at it."
        return parts
    try:
        _walk(email.message_from_bytes(data, policy=email.policy.compat32), parts)
    except BROKEN:
        parts.problem = "This message is not well-formed: not all of it can be shown. Download it to look at it."
    return parts


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
            parts.html = _decoded(part, octets)[:MAX_HTML]
        else:
            parts.attachments.append(Attachment(n, safe_name(name, n, kind), kind, len(octets), octets))
            cid = str(part.get("Content-ID", "")).strip().strip("<>")
            if cid and kind in _PICTURES:
                pictures[cid] = (kind, octets)
    if parts.html and pictures:
        parts.html = _with_pictures(parts.html, pictures)


def _decoded(part: Message[Any, Any], octets: bytes) -> str:
    charset = part.get_content_charset() or "utf-8"
    try:
        return octets.decode(charset, "replace")
    except LookupError:
        return octets.decode("utf-8", "replace")


def _file_name(part: Message[Any, Any]) -> str:
    try:
        name = part.get_filename() or ""
        return str(email.header.make_header(email.header.decode_header(name)))
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


def _with_pictures(html: str, pictures: dict[str, tuple[str, bytes]]) -> str:
    """Pictures that came with the message, in place of where it names them: nothing is fetched from anywhere."""
    room = MAX_PICTURES
    for cid, (kind, octets) in pictures.items():
        if len(octets) > room:
            continue
        room -= len(octets)
        html = html.replace(f"cid:{cid}", f"data:{kind};base64,{base64.b64encode(octets).decode('ascii')}")
    return html
