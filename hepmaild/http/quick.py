# SPDX-License-Identifier: Apache-2.0
"""The quick way of a plain send request: what nearly every caller sends, read and answered without the framework.

`read_quickly` takes a complete HTTP/1.1 request of the send endpoint, and only one that leaves nothing to think about:
every field once, plain ASCII, a Content-Length, no Transfer-Encoding, Expect or Upgrade, nothing behind the body.
Whatever is not like that is the library's (h11, which reads these the same way: `tests/http/test_quick.py` compares
them).  Why there are two ways: docs/decisions/0077-quick-way-of-send-requests.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from werkzeug.http import parse_options_header

SEND_PATH = "/api/v1/email/send"
REQUEST_LINE = f"POST {SEND_PATH} HTTP/1.1\r\n".encode()
MAX_HEAD_OCTETS = 8 << 10
MAX_BODY_OCTETS = 64 << 10

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DIGITS = re.compile(r"[0-9]{1,6}")
# What changes how a request is read or answered; the library knows how.
_NOT_OURS = frozenset({"transfer-encoding", "expect", "upgrade", "te", "trailer", "http2-settings", "proxy-connection"})


class Unready(Enum):
    """Why there is no request.  MORE: the rest of its body has not come.  NOT_OURS: the library reads it."""

    MORE = 1
    NOT_OURS = 2


class Fields:
    """The header fields of a request, as the door asks for them."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, or `default`."""
        return self._fields.get(name.lower(), default)

    def getlist(self, name: str) -> list[str]:
        """Its values: one or none."""
        value = self._fields.get(name.lower())
        return [] if value is None else [value]


class _Complete:
    is_complete = True


_COMPLETE = _Complete()


@dataclass(slots=True)
class QuickRequest:
    """A send request, complete.  Has of the framework's requests what the door looks at.  state: the connection's."""

    headers: Fields
    octets: bytes
    state: dict[str, Any]
    method: str = "POST"
    path: str = SEND_PATH
    scheme: str = "https"
    http_version: str = "1.1"
    query_string: bytes = b""

    @property
    def scope(self) -> dict[str, Any]:
        """What the framework would call so."""
        return {"state": self.state}

    @property
    def body(self) -> _Complete:
        """It is all there."""
        return _COMPLETE

    @property
    def content_length(self) -> int:
        """Octets of the body."""
        return len(self.octets)

    @property
    def mimetype(self) -> str:
        """The media type without its parameters, in small letters."""
        value: str = self.headers.get("content-type", "")
        return "application/json" if value == "application/json" else parse_options_header(value)[0].lower()


def read_quickly(octets: bytes | bytearray, state: dict[str, Any]) -> QuickRequest | Unready:
    """The one request that `octets` are, without a rest.  Pure."""
    if not octets.startswith(REQUEST_LINE):
        return Unready.NOT_OURS
    end = octets.find(b"\r\n\r\n", 0, MAX_HEAD_OCTETS)
    if end < 0:
        return Unready.NOT_OURS
    fields = _read_fields(bytes(octets[len(REQUEST_LINE) : end]))
    if fields is None or "host" not in fields or not _NOT_OURS.isdisjoint(fields):
        return Unready.NOT_OURS
    length = fields.get("content-length", "")
    if not _DIGITS.fullmatch(length) or fields.get("connection", "keep-alive").lower() != "keep-alive":
        return Unready.NOT_OURS
    wanted, there = int(length), len(octets) - end - 4
    if there > wanted or wanted > MAX_BODY_OCTETS:
        return Unready.NOT_OURS
    if there < wanted:
        return Unready.MORE
    return QuickRequest(Fields(fields), bytes(octets[end + 4 :]), state)


def _read_fields(head: bytes) -> dict[str, str] | None:
    """The header fields by their names in small letters; None: one stands there twice, or is not plain."""
    try:
        lines = head.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        return None
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not line.isprintable() or not _TOKEN.fullmatch(name):
            return None
        fields[name.lower()] = value.strip(" ")
    return fields if len(fields) == len(lines) else None


def write_answer(
    status: int, headers: Iterable[tuple[str, str]], body: bytes, more: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """An HTTP/1.1 answer with a body, whole.  headers: with the Content-Length.  more: the library's."""
    lines = [f"HTTP/1.1 {status} "]
    for name, value in headers:
        line = f"{name.lower()}: {value}"
        if not line.isprintable():
            raise ValueError(f"{name} would break the answer")
        lines.append(line)
    head = "\r\n".join(lines).encode("latin-1")
    return b"".join((head, *(b"\r\n%b: %b" % field for field in more), b"\r\n\r\n", body))
