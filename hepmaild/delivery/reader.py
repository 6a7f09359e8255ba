# SPDX-License-Identifier: Apache-2.0
"""Reads replies of a next hop from whatever it sends (RFC 5321 §4.2); pure.

A next hop is a stranger: what it says is bounded in line length and in lines, must be digits where digits belong, and
keep its code through all lines of a reply.  Everything else is a `ProtocolError`, after which nothing it says means
anything any more.
"""

from __future__ import annotations

from hepmaild.mail.reply import Reply, from_lines

MAX_LINE_OCTETS = 2048  # RFC 5321 §4.5.3.1.5 says 512; some add long links to their refusals
MAX_LINES = 128

_FIRST = frozenset(b"2345")
_DIGITS = frozenset(b"0123456789")


class ProtocolError(Exception):
    """The next hop broke the protocol; the text says how and is safe to show."""


class ReplyReader:
    """Octets in, replies out.  Holds at most one unfinished reply and the octets of the last feed."""

    __slots__ = ("_buffer", "_lines")

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []

    @property
    def has_leftover(self) -> bool:
        """Whether octets are held that no reply has used up."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes | bytearray) -> None:
        """Take octets; `next` then gives the replies in them."""
        self._buffer += data

    def next(self) -> Reply | None:
        """The next whole reply, or None while there is none.  Raises `ProtocolError`."""
        while True:
            buffer = self._buffer
            end = buffer.find(b"\n")
            if end < 0:
                if len(buffer) > MAX_LINE_OCTETS:
                    raise ProtocolError(f"a reply line is longer than {MAX_LINE_OCTETS} octets")
                return None
            if end > MAX_LINE_OCTETS:
                raise ProtocolError(f"a reply line is longer than {MAX_LINE_OCTETS} octets")
            line = buffer[:end]
            self._buffer = buffer[end + 1 :]
            reply = self._line(line[:-1] if line.endswith(b"\r") else line)
            if reply is not None:
                return reply

    def _line(self, line: bytes) -> Reply | None:
        """Take one line; the reply if it was its last."""
        if len(line) < 3 or line[0] not in _FIRST or line[1] not in _DIGITS or line[2] not in _DIGITS:
            raise ProtocolError("a reply does not begin with a code")
        separator = line[3:4]
        if separator not in {b" ", b"-", b""}:
            raise ProtocolError("a reply code is followed by neither a space nor a hyphen")
        text = line.decode("utf-8", "replace")
        lines = self._lines
        if lines and lines[0][:3] != text[:3]:
            raise ProtocolError("the code changes within a reply")
        if separator == b"-":
            if len(lines) >= MAX_LINES:
                raise ProtocolError(f"a reply has more than {MAX_LINES} lines")
            lines.append(text)
            return None
        if not lines:
            return from_lines([text])
        lines.append(text)
        reply = from_lines(lines)
        self._lines = []
        return reply
