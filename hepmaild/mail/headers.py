# SPDX-License-Identifier: Apache-2.0
"""Header field values: decoding what others wrote, encoding what we write (RFC 5322, RFC 2047, RFC 6532).

Everything read here is hostile: no function raises on any input unless it says so, and each runs in linear time.
"""

from __future__ import annotations

import binascii
import re
import string
from collections.abc import Iterable
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache

from hepmaild.mail.address import MAX_ADDRESS_OCTETS, check_address
from hepmaild.mail.charsets import decode
from hepmaild.mail.submission import Mailbox

MAX_LINE = 998  # RFC 5322 §2.1.1, without CRLF
FOLD_AT = 76
MAX_LISTED_ADDRESSES = 1000
_NOT_ASCII_COUNTS = 5  # as so many of them: a name to be made ASCII takes the library as much longer
MAX_AUTHORS = 100

_ENCODED_WORD = re.compile(r"=\?([A-Za-z0-9_.:+-]{1,40})(?:\*[A-Za-z0-9-]{0,20})?\?([bBqQ])\?([^?\s]*)\?=")
_BETWEEN_WORDS = re.compile(r"(?<=\?=)[ \t]+(?==\?)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_TOKEN = re.compile(
    r'(?P<space>\s+)|(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<angle><(?:[^<>"]|"(?:[^"\\]|\\.)*")*>)'
    r'|(?P<atom>[^\s"<>(),:;]+)|(?P<mark>[(),:;])',
    re.DOTALL,
)
_IN_COMMENT = re.compile(r"[^()\\]+|\\.|[()]", re.DOTALL)
_ONE_MAILBOX = re.compile(r'(?:([^"<>(),:;@\\]*)|\s*"([^"\\]*)"\s*)<([^\s<>"(),:;\\]+)>\s*')
_BARE_ADDRESS = re.compile(r'\s*([^\s<>"(),:;\\]+)\s*')
_AROUND_MARK = re.compile(r" ?([@.]) ?")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
# Both alternatives also match what is never closed: else each quote or parenthesis would be searched to the end.
_NOT_AN_ADDRESS = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|\((?:[^()\\]|\\.)*\)?', re.DOTALL)
_ADDRESS_LIKE = re.compile(r'[^\s<>,;:"()]+')
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+(?: [A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+)*")
_WORD = re.compile(r"[ \t]*[^ \t]+")
# What somebody might take for an encoded word; not each `=?`, which stands in addresses of pages, too.
_LIKE_A_WORD = re.compile(r"=\?[^?]*\?[bBqQ]\?")
_AROUND_WORD = len("=?utf-8?q??=")
_MAX_WORD = 75  # RFC 2047 §2
# What an octet is in an encoded word in Q; these few stay as they are wherever the word stands (RFC 2047 §5 (3)).
_PLAIN_OCTETS = frozenset(string.ascii_letters + string.digits + "!*+-/")
_QUOTED_OCTETS = {octet: chr(octet) if chr(octet) in _PLAIN_OCTETS else f"={octet:02X}" for octet in range(256)}
_QUOTED_OCTETS[ord(" ")] = "_"


def unfold(raw: bytes) -> str:
    """A field body as text on one line; what is not UTF-8 is read as Latin-1."""
    raw = raw.replace(b"\r\n", b"").replace(b"\n", b"")
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        return raw.decode("latin-1").strip()


def decode_words(text: str) -> str:
    """Encoded words (RFC 2047) made readable; one that cannot be decoded stays as it is.  No control characters."""
    if "=?" in text:
        text = _ENCODED_WORD.sub(_decoded, _BETWEEN_WORDS.sub("", text))
    return _UNPRINTABLE.sub(" ", text)


def _decoded(match: re.Match[str]) -> str:
    charset, how, body = match.groups()
    try:
        if how in "bB":
            octets = binascii.a2b_base64(body + "=" * (-len(body) % 4))
        else:
            octets = binascii.a2b_qp(body, header=True)
        return decode(octets, charset)
    except (ValueError, LookupError):  # bad base64, not ASCII, no such charset
        return match[0]


def parse_from(text: str) -> tuple[Mailbox, ...]:
    """Every mailbox of an unfolded From field body, groups included, comments left out (RFC 5322 §3.4, RFC 6854).

    An address that is none is given as it stands, cut: nobody owns it.  Raises ValueError where readers could disagree
    about who the author is.
    """
    simple = _ONE_MAILBOX.fullmatch(text)
    if simple is not None:
        return (Mailbox(normalised(simple[3]), decode_words((simple[2] or simple[1] or "").strip())),)
    bare = _BARE_ADDRESS.fullmatch(text)
    if bare is not None:
        return (Mailbox(normalised(bare[1])),)
    return tuple(_FromParser().parse(text))


def normalised(address: str) -> str:
    """Of an address that is none what can be shown of it: nobody owns it."""
    try:
        return check_address(address)
    except ValueError:
        return _UNPRINTABLE.sub(" ", address)[:MAX_ADDRESS_OCTETS]


class _FromParser:
    """The slow path of `parse_from`: a list of mailboxes and groups, token by token."""

    def __init__(self) -> None:
        self.found: list[Mailbox] = []
        self.phrase: list[str] = []
        self.angle: str | None = None
        self.in_group = False

    def parse(self, text: str) -> list[Mailbox]:
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError("an unclosed quote or angle bracket")
            at = match.end()
            token = match[0]
            if match.lastgroup == "space":
                self.phrase.append(" ")
            elif match.lastgroup == "angle":
                if self.angle is not None:
                    raise ValueError("two addresses without a comma between them")
                self.angle = token[1:-1].strip()
            elif match.lastgroup == "mark":
                at = self._mark(token, text, at)
            else:
                if self.angle is not None:
                    raise ValueError("text behind an address without a comma between them")
                self.phrase.append(token)
        if self.in_group:
            raise ValueError("an unclosed group")
        self._finish()
        return self.found

    def _mark(self, mark: str, text: str, at: int) -> int:
        if mark == "(":
            return _behind_comment(text, at)
        if mark == ",":
            self._finish()
        elif mark == ":" and not self.in_group and self.angle is None:
            self.in_group = True
            self.phrase.clear()
        elif mark == ";" and self.in_group:
            self._finish()
            self.in_group = False
        else:
            raise ValueError(f"a misplaced '{mark}'")
        return at

    def _finish(self) -> None:
        if len(self.found) == MAX_AUTHORS:  # each is looked at, and that takes its time
            raise ValueError(f"more than {MAX_AUTHORS} addresses")
        phrase = "".join(self.phrase).strip()
        if self.angle is not None:
            name = decode_words(" ".join(_unquoted(word) for word in self.phrase if word != " "))
            self.found.append(Mailbox(normalised(self.angle), name))
        elif phrase:
            self.found.append(Mailbox(normalised(_AROUND_MARK.sub(r"\1", phrase))))
        self.phrase.clear()
        self.angle = None


def _unquoted(word: str) -> str:
    return _QUOTED_PAIR.sub(r"\1", word[1:-1]) if word.startswith('"') else word


def _behind_comment(text: str, at: int) -> int:
    """Where the comment ends whose opening parenthesis was just read; comments nest."""
    depth = 1
    while depth:
        match = _IN_COMMENT.match(text, at)
        if match is None:
            raise ValueError("an unclosed comment")
        at = match.end()
        depth += {"(": 1, ")": -1}.get(match[0], 0)
    return at


class AddressLister:
    """Finds the normalised addresses in the To, Cc and Bcc fields of one message.

    Looks at `MAX_LISTED_ADDRESSES` words with an @ at most, in all fields together and whether they are addresses or
    not: those that are none cost most.  has_more: the rest was left out.
    """

    __slots__ = ("_left", "has_more")

    def __init__(self) -> None:
        self.has_more = False
        self._left = MAX_LISTED_ADDRESSES

    def find(self, text: str) -> list[str]:
        """Those of one unfolded field body, in the order given."""
        if '"' in text or "(" in text:
            text = _NOT_AN_ADDRESS.sub(" ", text)
        found: list[str] = []
        for match in _ADDRESS_LIKE.finditer(text):
            word = match[0]
            if "@" not in word:
                continue
            self._left -= 1 if word.isascii() else _NOT_ASCII_COUNTS
            if self._left < 0:
                self.has_more = True
                break
            try:
                found.append(check_address(word))
            except ValueError:
                continue
        return found


def encode_text(name: str, value: str) -> str:
    """An unstructured field body for the field `name`: folded, RFC 2047 where it must be, ASCII only.

    `value` must be free of control characters.
    """
    value = value.strip()
    used = len(name) + 2
    is_plain = value.isascii() and ("=?" not in value or _LIKE_A_WORD.search(value) is None)
    if is_plain and (len(value) < MAX_LINE - used or _longest_word(value) < MAX_LINE - used):
        return fold(name, value)
    return encode_words(value, used)


def _longest_word(value: str) -> int:
    """With the white space before it, within which no line ends."""
    return max(map(len, _WORD.findall(value)))


def encode_words(text: str, used: int, longest: int = FOLD_AT) -> str:
    """Encoded words (RFC 2047) for `text`, folded, in the encoding that is shorter; none ends within a character.

    used: characters that stand before them in the first line.  longest: of a line.  The standard library encodes a line
    anew for each character that it adds to it, and takes up to eighty times as long.
    """
    octets = text.encode("utf-8")
    quoted = octets.decode("latin-1").translate(_QUOTED_OCTETS)
    is_quoted = len(quoted) <= (len(octets) + 2) // 3 * 4
    lines: list[str] = []
    at, room = 0, max(0, min(longest - used, _MAX_WORD) - _AROUND_WORD)
    while at < len(quoted if is_quoted else octets):
        if is_quoted:
            end = _end_in_quoted(quoted, at + room)
            word = f"=?utf-8?q?{quoted[at:end]}?="
        else:
            end = _end_in(octets, at + room // 4 * 3)
            word = f"=?utf-8?b?{binascii.b2a_base64(octets[at:end], newline=False).decode('ascii')}?="
        lines.append(word if end > at else "")  # not one character beside a long name
        at, room = max(at, end), longest - 1 - _AROUND_WORD
    return "\r\n ".join(lines)


def _end_in(octets: bytes, end: int) -> int:
    """Where the character that `end` is in begins."""
    if end >= len(octets):
        return len(octets)
    while octets[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _end_in_quoted(quoted: str, end: int) -> int:
    """The same in Q, where some octets are three characters."""
    if end >= len(quoted):
        return len(quoted)
    end = max(end - 2, 0) + (quoted[max(end - 2, 0) : end] + "=").index("=")
    while quoted.startswith(("=8", "=9", "=A", "=B"), end):
        end -= 3
    return end


def fold(name: str, value: str) -> str:
    """`value` with line breaks before white space, so that lines are at most `FOLD_AT` long where that is possible."""
    length = len(name) + 2
    if length + len(value) <= FOLD_AT:
        return value
    lines = [""]
    for word in _WORD.findall(value):
        if length + len(word) > FOLD_AT and word[0] in " \t" and lines[-1]:
            lines.append("")
            length = 0
        lines[-1] += word
        length += len(word)
    return "\r\n".join(lines)


def format_mailbox(mailbox: Mailbox) -> str:
    """A mailbox as a header field shows it.  A non-ASCII local part stays UTF-8: such a message needs SMTPUTF8."""
    name = mailbox.name
    if not name:
        return mailbox.address
    if not name.isascii() or "=?" in name:
        shown = encode_words(name, 0, FOLD_AT - 12)  # some room for the field name, which is not known here
    elif _ATOMS.fullmatch(name):
        shown = name
    else:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        shown = f'"{escaped}"'
    return f"{shown} <{mailbox.address}>"


def format_mailboxes(name: str, mailboxes: Iterable[Mailbox]) -> str:
    """An address list for the field `name`, folded between mailboxes."""
    written = ""
    length = len(name) + 2
    for mailbox in mailboxes:
        shown = format_mailbox(mailbox)
        first, last = shown.find("\r\n"), shown.rfind("\r\n")
        if written:
            fits = length + (first if first >= 0 else len(shown)) + 2 <= FOLD_AT
            written += ", " if fits else ",\r\n "
            length = length + 2 if fits else 1
        written += shown
        length = len(shown) - last - 2 if last >= 0 else length + len(shown)
    return written


@lru_cache(maxsize=4)
def format_date(at: datetime) -> str:
    """An RFC 5322 date of an aware instant; many messages share a second."""
    return format_datetime(at)
