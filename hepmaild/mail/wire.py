# SPDX-License-Identifier: Apache-2.0
"""Message content on the wire: dot-stuffing both ways, and the octets that must never pass (RFC 5321 §4.5.2, §2.3.8).

Content ends at CRLF "." CRLF and nowhere else.  Servers that also end it at LF "." LF, or that let a bare CR or LF
through to one that does, can be made to see two messages where the sender made one (SMTP smuggling).  So inbound
content is read to its true end and then refused when it holds such octets, and outbound content is checked again.

Everything here works on any split of the octets with the same result, in memory bounded by the piece given, and uses
only searches that run in C: a Python loop over octets would cost more than the rest of the daemon.
"""

from __future__ import annotations

from enum import Flag

HEADER_LINE_OCTETS = 998  # RFC 5322 §2.1.1, without CRLF
_END = b"\r\n.\r\n"


class Flaw(Flag):
    """What is wrong with the octets of a message.  Flags, so that the answer never depends on how they were split."""

    NONE = 0
    BARE_CR = 1
    BARE_LF = 2
    NUL = 4
    LONG_HEADER_LINE = 8

    @property
    def sentence(self) -> str:
        """The worst of them in words, for the reply; empty when there is none."""
        for flaw, words in _SENTENCES:
            if flaw in self:
                return words
        return ""


_SENTENCES = (
    (Flaw.BARE_LF, "bare LF in the message; lines must end in CRLF"),
    (Flaw.BARE_CR, "bare CR in the message; lines must end in CRLF"),
    (Flaw.NUL, "NUL octet in the message"),
    (Flaw.LONG_HEADER_LINE, f"a header line is longer than {HEADER_LINE_OCTETS} octets"),
)


class ContentCheck:
    """Looks at message octets (no dot-stuffing) for `Flaw`s.

    `look` takes pieces that do not end between CR and LF; its callers hold a last CR back.
    """

    __slots__ = ("_in_header", "_line_octets", "flaws")

    def __init__(self) -> None:
        self.flaws = Flaw.NONE
        self._in_header = True
        self._line_octets = 0  # of the header line that the last piece ended in

    def look(self, piece: bytes) -> None:
        """Check one piece."""
        pairs = piece.count(b"\r\n")
        if piece.count(b"\n") != pairs:
            self.flaws |= Flaw.BARE_LF
        if piece.count(b"\r") != pairs:
            self.flaws |= Flaw.BARE_CR
        if b"\0" in piece:
            self.flaws |= Flaw.NUL
        if self._in_header:
            self._look_at_header(piece)

    def _look_at_header(self, piece: bytes) -> None:
        """Measure header lines up to the first empty line."""
        if self._line_octets == 0 and piece.startswith(b"\r\n"):
            self._in_header = False
            return
        end = piece.find(b"\r\n\r\n")
        head = piece if end < 0 else piece[:end]
        if self._line_octets + len(head) > HEADER_LINE_OCTETS:
            lines = head.split(b"\r\n")
            first = self._line_octets + len(lines[0])
            if first > HEADER_LINE_OCTETS or max(map(len, lines)) > HEADER_LINE_OCTETS:
                self.flaws |= Flaw.LONG_HEADER_LINE
        if end >= 0:
            self._in_header = False
            return
        start = head.rfind(b"\r\n")
        if start >= 0:
            self._line_octets = len(head) - start - 2
        else:
            # Only its being over the limit matters, so it need not grow without end.
            self._line_octets = min(self._line_octets + len(head), HEADER_LINE_OCTETS + 1)


class DataDecoder:
    """Reads what follows DATA: finds its end, takes the dot-stuffing out, checks it, counts it.

    feed() returns message octets ready to be kept.  Once `finished`, `rest` holds what came behind the end.
    size: octets so far without stuffing.  oversize: more than `limit_octets`; from then on nothing is returned, but
    the end is still looked for.  flaws: see `Flaw`.  At most 4 octets are held between calls.
    """

    __slots__ = ("_check", "_held", "_limit", "_started", "finished", "rest", "size")

    def __init__(self, limit_octets: int) -> None:
        self._limit = limit_octets
        self._check = ContentCheck()
        self._held = b"\r\n"  # as if a line had just ended: a dot may come first
        self._started = False
        self.finished = False
        self.rest = b""
        self.size = 0

    @property
    def oversize(self) -> bool:
        """Whether the content is larger than the limit."""
        return self.size > self._limit

    @property
    def flaws(self) -> Flaw:
        """What was wrong so far."""
        return self._check.flaws

    def feed(self, data: bytes) -> bytes:
        """Take the next octets from the wire; must not be called once `finished`."""
        data = self._held + data
        end = data.find(_END)
        if end >= 0:
            self.finished = True
            self.rest = data[end + 5 :]
            self._held = b""
            piece = data[: end + 2]
        else:
            hold = _held_octets(data)
            self._held = data[len(data) - hold :]
            piece = data[: len(data) - hold]
        if not piece:
            return b""
        if b"\r\n." in piece:
            piece = piece.replace(b"\r\n.", b"\r\n")
        if not self._started:
            self._started = True
            piece = piece[2:]
        self.size += len(piece)
        self._check.look(piece)
        return b"" if self.size > self._limit else piece


def _held_octets(data: bytes) -> int:
    """How many octets at the end of `data` may be the beginning of the end of content."""
    for count in (4, 3, 2, 1):
        if data.endswith(_END[:count]):
            return count
    return 0


class ChunkDecoder:
    """Checks and counts message octets that come by BDAT (RFC 3030): no stuffing, their number is known.

    feed() returns octets ready to be kept; a last CR is held until what follows it is known.  finish() returns what
    was held.  size, oversize, flaws as in `DataDecoder`.
    """

    __slots__ = ("_check", "_held", "_limit", "size")

    def __init__(self, limit_octets: int) -> None:
        self._limit = limit_octets
        self._check = ContentCheck()
        self._held = b""
        self.size = 0

    @property
    def oversize(self) -> bool:
        """Whether the content is larger than the limit."""
        return self.size > self._limit

    @property
    def flaws(self) -> Flaw:
        """What was wrong so far."""
        return self._check.flaws

    def feed(self, data: bytes) -> bytes:
        """Take the next octets of a chunk."""
        self.size += len(data)
        data = self._held + data
        if data.endswith(b"\r"):
            self._held = b"\r"
            data = data[:-1]
        else:
            self._held = b""
        if data:
            self._check.look(data)
        return b"" if self.size > self._limit else data

    def finish(self) -> bytes:
        """The content is complete: the octets still held."""
        held, self._held = self._held, b""
        if held:
            self._check.look(held)
        return b"" if self.size > self._limit else held


class DotStuffer:
    """Makes DATA content out of message octets, in any split (RFC 5321 §4.5.2).

    Raises ValueError at octets that could end the content early at a careless peer: bare CR, bare LF, NUL.  What was
    returned before must then not be completed: close the connection.
    """

    __slots__ = ("_held", "_last")

    def __init__(self) -> None:
        self._held = b""  # a CR whose LF has not come yet
        self._last = b"\r\n"  # as if a line had just ended

    def feed(self, piece: bytes) -> bytes:
        """The next octets for the wire."""
        if self._held:
            piece = self._held + piece
        if piece.endswith(b"\r"):
            self._held = b"\r"
            piece = piece[:-1]
        else:
            self._held = b""
        if not piece:
            return b""
        _refuse_flaws(piece)
        at_line_start = self._last == b"\r\n"
        self._last = b"\r\n" if piece.endswith(b"\r\n") else b""
        if b"\n." in piece:
            piece = piece.replace(b"\n.", b"\n..")
        return b"." + piece if at_line_start and piece.startswith(b".") else piece

    def finish(self) -> bytes:
        """The end of the content: completes a last line that had no CRLF, then the dot."""
        if self._held:
            raise ValueError(Flaw.BARE_CR.sentence)
        return b".\r\n" if self._last else _END


def _refuse_flaws(piece: bytes) -> None:
    """Raise ValueError at octets that may not leave."""
    pairs = piece.count(b"\r\n")
    if piece.count(b"\n") != pairs:
        raise ValueError(Flaw.BARE_LF.sentence)
    if piece.count(b"\r") != pairs:
        raise ValueError(Flaw.BARE_CR.sentence)
    if b"\0" in piece:
        raise ValueError(Flaw.NUL.sentence)
