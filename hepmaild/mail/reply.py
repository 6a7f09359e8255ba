# SPDX-License-Identifier: Apache-2.0
"""SMTP replies: three digits, an enhanced status code, text (RFC 5321 §4.2, RFC 3463)."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Also what is not seen and turns the words around it about, or hides among them (UTS 55, UAX 9).
_UNPRINTABLE = re.compile(
    r"(?:[^\x20-\x7e\u00a0-\ud7ff\ue000-\U0010ffff]"
    r"|[\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    r"\U000e0000-\U000e0fff])+"
)
_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?:[ \t]+|$)")
MAX_TEXT = 2000
_LINE_OCTETS = 400  # RFC 5321 §4.5.3.1.5 allows 512 octets with code and CRLF; some room for the codes


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply.  `text` may hold several lines; `enhanced` is empty for the banner, EHLO and 3yz replies."""

    code: int
    enhanced: str
    text: str

    @property
    def is_positive(self) -> bool:
        """2yz or 3yz."""
        return 200 <= self.code < 400

    @property
    def is_permanent(self) -> bool:
        """5yz: repeating the same command is pointless."""
        return 500 <= self.code < 600

    def shortened(self) -> Reply:
        """With MAX_TEXT characters of its text at most."""
        if len(self.text) <= MAX_TEXT:
            return self
        return Reply(self.code, self.enhanced, f"{self.text[: MAX_TEXT - 3]}...")

    def encode(self) -> bytes:
        """The octets on the wire, every line ended by CRLF, each with code and enhanced code."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        if "\n" not in self.text:
            return f"{self.code} {prefix}{_clean(self.text)}\r\n".encode()
        lines = [_clean(line) for line in self.text.split("\n")]
        last = len(lines) - 1
        return "".join(
            f"{self.code}{' ' if i == last else '-'}{prefix}{line}\r\n" for i, line in enumerate(lines)
        ).encode("utf-8")

    def __str__(self) -> str:
        text = self.text.replace("\n", " ")
        said = f"{self.enhanced} {text}" if self.enhanced and text else self.enhanced or text
        return f"{self.code} {said}" if said else str(self.code)


def printable(text: str) -> str:
    """`text` with a `?` instead of what a reader cannot see, and of halves of surrogates: not every store takes those.

    For others' words, which are shown among ours in pages, logs and terminals.
    """
    return _UNPRINTABLE.sub("?", text)


def _clean(line: str) -> str:
    """One line without control characters and cut to the reply line limit."""
    if len(line) <= _LINE_OCTETS and line.isascii() and line.isprintable():
        return line
    line = printable(line)
    encoded = line.encode("utf-8")
    if len(encoded) > _LINE_OCTETS:
        line = encoded[: _LINE_OCTETS - 3].decode("utf-8", "ignore") + "..."
    return line


def from_lines(lines: list[str]) -> Reply:
    """A remote's reply from its lines, each without CRLF and already checked to start with the same three digits.

    The enhanced code is taken from the first line when its class agrees with the reply code (RFC 2034 §4), and cut
    off each line that repeats it.
    """
    code = int(lines[0][:3])
    texts = [line[4:] for line in lines]
    enhanced = ""
    match = _ENHANCED.match(texts[0])
    if match and match.group(1) == str(code)[0]:
        enhanced = f"{match.group(1)}.{int(match.group(2))}.{int(match.group(3))}"
        texts = [_ENHANCED.sub("", text, count=1) if text.startswith(enhanced) else text for text in texts]
    return Reply(code, enhanced, "\n".join([_clean(text) for text in texts]))
