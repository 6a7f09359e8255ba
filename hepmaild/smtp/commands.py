# SPDX-License-Identifier: Apache-2.0
"""What a command line says (RFC 5321 §4.1, RFC 1870, RFC 6152, RFC 6531, RFC 3030, RFC 4954).

Pure functions from the text of a line to its meaning; `SyntaxRefusal` carries the reply when there is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hepmaild.smtp import replies
from hepmaild.smtp.replies import Line

LINE_OCTETS = 512  # with CRLF, RFC 5321 §4.5.3.1.4
AUTH_LINE_OCTETS = 12_288  # RFC 4954 §4
# SIZE adds 26 (RFC 1870), BODY 17 (RFC 6152), SMTPUTF8 10 (RFC 6531), AUTH= 500 (RFC 4954)
MAIL_LINE_OCTETS = LINE_OCTETS + 26 + 17 + 10 + 500
RCPT_LINE_OCTETS = LINE_OCTETS + 10
_LIMITS = {b"MAIL": MAIL_LINE_OCTETS, b"RCPT": RCPT_LINE_OCTETS, b"AUTH": AUTH_LINE_OCTETS}

_PATH = re.compile(
    r"""[ \t]*<
    (?:@[^:<>"\s]*:)?                                 # a source route is read and ignored (RFC 5321 Appendix C)
    ((?:"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"      # a quoted local part may hold anything printable
      |[^<>"\s\x00-\x1f\x7f])*)
    >(?:[ \t]+([^ \t].*))?[ \t]*$""",
    re.VERBOSE,
)
_HELO = re.compile(r"[\x21-\x7e\u00a0-\U0010ffff]{1,255}")
# `<>` is xtext too.  An alternative of its own would be a second way to read it, and many of them 2^n.
_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})+")
_BDAT = re.compile(rb"[ \t]*(\d{1,20})(?:[ \t]+(LAST))?[ \t]*", re.IGNORECASE)


class SyntaxRefusal(Exception):
    """A command that cannot be understood; `line` is the reply.  wrong: whether it counts as a wrong command."""

    def __init__(self, line: Line, *, wrong: bool = True) -> None:
        super().__init__(line.text)
        self.line = line
        self.wrong = wrong


@dataclass(slots=True)
class MailCommand:
    """MAIL: the reverse-path ("" for the null one) and the parameters we know.  size: as declared, 0 when not."""

    reverse_path: str
    size: int = 0
    body: str = ""
    smtputf8: bool = False


def line_limit(verb: bytes) -> int:
    """How long a line may be, CRLF included, by its first four octets (in upper case)."""
    return _LIMITS.get(verb, LINE_OCTETS)


def parse_helo(text: str) -> str:
    """The name after EHLO or HELO.  Any printable word will do: what it proves is nothing (quirks.md)."""
    name = text.strip()
    if _HELO.fullmatch(name) is None:
        raise SyntaxRefusal(replies.BAD_HELO)
    return name


def parse_mail(text: str) -> MailCommand:
    """What follows `MAIL`."""
    path, parameters = _path(text, "FROM:", replies.BAD_REVERSE_PATH)
    command = MailCommand(path)
    if parameters:
        _mail_parameters(command, parameters)
    if not command.smtputf8 and not path.isascii():
        raise SyntaxRefusal(replies.NEEDS_SMTPUTF8, wrong=False)
    return command


def _mail_parameters(command: MailCommand, parameters: str) -> None:
    seen = set()
    for parameter in parameters.split():
        name, equals, value = parameter.partition("=")
        name = name.upper()
        if name in seen:
            raise SyntaxRefusal(replies.BAD_PARAMETER)
        seen.add(name)
        if name == "SIZE":
            if not (value.isascii() and value.isdigit() and len(value) <= 20):
                raise SyntaxRefusal(replies.BAD_PARAMETER)
            command.size = int(value)
        elif name == "BODY":
            command.body = value.upper()
            if command.body not in ("7BIT", "8BITMIME"):
                raise SyntaxRefusal(replies.BAD_PARAMETER)
        elif name == "SMTPUTF8":
            if equals:
                raise SyntaxRefusal(replies.BAD_PARAMETER)
            command.smtputf8 = True
        elif name == "AUTH":  # RFC 4954 §5: read, and not believed
            if _XTEXT.fullmatch(value) is None:
                raise SyntaxRefusal(replies.BAD_PARAMETER)
        else:
            raise SyntaxRefusal(replies.UNKNOWN_PARAMETER)


def parse_rcpt(text: str) -> str:
    """What follows `RCPT`: the address, which is not judged here.  Extensions with parameters to RCPT: none."""
    path, parameters = _path(text, "TO:", replies.BAD_FORWARD_PATH)
    if parameters:
        raise SyntaxRefusal(replies.UNKNOWN_PARAMETER)
    return path


def _path(text: str, word: str, bad: Line) -> tuple[str, str | None]:
    """The address between `<` and `>`, and the text of the parameters behind it."""
    text = text.lstrip()
    at = len(word)
    if text[:at].upper() != word:
        raise SyntaxRefusal(replies.BAD_ARGUMENT)
    match = _PATH.match(text, at)
    if match is None:
        raise SyntaxRefusal(bad, wrong=bad is not replies.BAD_FORWARD_PATH)
    path, parameters = match.groups()
    return path, parameters


def parse_bdat(arguments: bytes) -> tuple[int, bool]:
    """What follows `BDAT`: octets, and whether it is the last chunk (RFC 3030 §2)."""
    match = _BDAT.fullmatch(arguments)
    if match is None:
        raise SyntaxRefusal(replies.BAD_CHUNK_SIZE)
    return int(match[1]), match[2] is not None


def parse_auth(arguments: bytes) -> tuple[bytes, bytes | None]:
    """What follows `AUTH`: the mechanism in upper case, and the initial response or None."""
    words = arguments.split()
    if not 1 <= len(words) <= 2:
        raise SyntaxRefusal(replies.BAD_ARGUMENT)
    return words[0].upper(), words[1] if len(words) == 2 else None
