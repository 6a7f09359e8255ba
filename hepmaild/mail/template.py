# SPDX-License-Identifier: Apache-2.0
"""Placeholders: `{{name}}` in a subject, an HTML part and a text part, filled with a caller's values (own-smtp-api.md).

There is no logic: a name is word characters, spaces may stand around it, and what no value is given for becomes the
empty string.  The text is gone through once, so a value that looks like a placeholder is only text.  Values come from
outside and are hostile: nothing in one can open or close a tag, an attribute or a comment of the HTML part, or begin
a second line of the subject.  Every function takes time in proportion to what it reads and writes, and writes no more
than it is allowed.

In the HTML part a value is escaped by where it stands.  In text and in a quoted attribute `& < > " '` are enough.
Elsewhere they are not: `<a href={{link}}>` gives a space the power to begin an attribute.  So from the first place on
that is not plain markup, every ASCII character of a value is written as a reference: it reads the same wherever HTML
shows text, and is a letter of nothing.  Script and style are no HTML; a placeholder has no business in them.
"""

from __future__ import annotations

import html as html_library
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any

from hepmaild.errors import ErrorKind, Refusal, RefusedError

MAX_SUBJECT = 988
MAX_ECHO = 80

# Possessive throughout: no input makes the engine try a second time.
_PLACEHOLDER = re.compile(r"\{\{[ \t]*+(\w++)[ \t]*+\}\}")
# What may end a line for anybody, and what no header field may hold (as `mail.address.has_control_characters`).
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

_SPACE = r"[ \t\n\f\r]"  # HTML's, which is not Unicode's
# Elements whose content is text to the reader of HTML; and those inside which it reads by other rules.
_RAW = ("script", "style", "title", "textarea")
_ODD = ("noscript", "plaintext", "svg", "math", "select", "frameset", "xmp", "iframe", "noembed", "noframes")
_NAME = r"[^ \t\n\f\r\"'<>/={}]++"
_VALUE = r"(?:\"[^\"]*+\"|'[^']*+'|[^ \t\n\f\r\"'<>={}`][^ \t\n\f\r>{}]*+)"
_ATTRIBUTE = rf"(?:{_SPACE}++(?:{_NAME}(?>(?:{_SPACE}*+={_SPACE}*+{_VALUE})?))?|/)"
_ATTRIBUTES = rf"(?>{_ATTRIBUTE}{{0,100}})"
_TOKENS = (
    r"[^<]++",
    r"<(?![A-Za-z/!?{]|\Z)",  # a lone one; a value behind it could hold the letter that makes it a tag
    r"<!--(?!-?>)(?>.*?(?=--!?>|[!-]\{))--!?>",  # an empty value must not join two halves of its end
    r"<[!?](?!--)[^>{]*+>",
    *(rf"<{name}(?=[ \t\n\f\r/>]){_ATTRIBUTES}>[^<]*+</{name}{_SPACE}*+>" for name in _RAW),
    rf"</?(?!(?:{'|'.join((*_RAW, *_ODD))})(?![A-Za-z0-9]))[A-Za-z][A-Za-z0-9:-]*+{_ATTRIBUTES}>",
)
# HTML that is read the same whatever escaped values stand at its placeholders: they are in text, in comments and in
# quotes only.  Where it stops to match, nothing is known about what follows.  Groups are not repeated possessively
# (where such a repetition fails in its middle, Python 3.11.2 goes on from there), but only so often that what the
# engine keeps of them stays small.
_PLAIN_MARKUP = re.compile(rf"(?>(?:{'|'.join(_TOKENS)}){{1,100}})", re.DOTALL | re.IGNORECASE | re.ASCII)
_CONDITION = "<!--["
_TOO_LARGE = 10**400  # a float ends at 10**309; the interpreter writes no more than 4300 digits
LONGEST_REFERENCE = 6  # of what a character may become: `&#127;`
_REFERENCES = {code: f"&#{code};" for code in range(128)}


@dataclass(frozen=True, slots=True)
class Wording:
    """The three texts of a message, or of a template.  None: there is no such part."""

    subject: str = ""
    html: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants filled in.

    template_id, template_key: which template (both: they name the same one); None twice: its own words.
    values: None: there was no `variables` object, and its own words stay as they are.
    """

    template_id: str | None = None
    template_key: str | None = None
    values: Mapping[str, str] | None = None

    @property
    def names_template(self) -> bool:
        """Whether the words are a template's."""
        return self.template_id is not None or self.template_key is not None


def read_ask(template_id: str | None, template_key: str | None, variables: Any, own: Wording) -> Ask:
    """What `templateId`, `templateKey` and `variables` of a request ask for; own: its `subject`, `html` and `text`.

    `text` may stand beside a template, and takes the place of the template's.
    Raises RefusedError: CONFLICTING_CONTENT (`subject` or `html` beside a template), INVALID_FIELD.
    """
    ask = Ask(template_id, template_key, read_variables(variables))
    if ask.names_template:
        for field, value in (("subject", own.subject), ("html", own.html)):
            if value:
                name = "templateKey" if template_id is None else "templateId"
                text = f"{field} and {name} exclude each other: the template has its own; leave one of them out."
                raise RefusedError(Refusal(ErrorKind.CONFLICTING_CONTENT, text, field=field))
    return ask


def read_variables(value: Any, field: str = "variables") -> dict[str, str] | None:
    """The values of a request's `variables`, each as it will be written; None when there is no such object.

    A string stays as it is, a number is written in decimal digits without an exponent and without a needless fraction
    (`9.90` is `9.9`, `3.0` is `3`), a boolean is `true` or `false`, null is as if it were not there.
    Raises RefusedError (INVALID_FIELD) with the path of what has another type.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _invalid(f"{field} must be an object", field)
    return {name: _written(each, f"{field}.{_echo(name)}") for name, each in value.items() if each is not None}


def _written(value: Any, path: str) -> str:
    if isinstance(value, str):
        if not value.isascii() and _has_surrogate(value):
            raise _invalid(f"{path} holds half of a surrogate pair, which is no character", path)
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) < _TOO_LARGE:
        return str(value)
    if isinstance(value, float) and isfinite(value):
        return "0" if value == 0 else f"{Decimal(repr(value)):f}".removesuffix(".0")
    raise _invalid(f"{path} must be a string, a number or a boolean", path)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _echo(name: str) -> str:
    """A caller's own word, fit to be given back."""
    shown = "".join(character if character.isprintable() else "?" for character in name[:MAX_ECHO])
    return shown + "..." if len(name) > MAX_ECHO else shown


def _invalid(what: str, field: str) -> RefusedError:
    return RefusedError(Refusal(ErrorKind.INVALID_FIELD, f"{what}.", field=field))


def names_in(wording: Wording) -> list[str]:
    """The names of its placeholders, each once, in the order in which they come."""
    parts = (wording.subject, wording.html or "", wording.text or "")
    return list(dict.fromkeys(name for part in parts for name in _PLACEHOLDER.findall(part)))


def length_bound(wording: Wording, values: Mapping[str, str]) -> int:
    """No less than the characters that `fill` writes, without writing them."""
    octets = len(wording.subject) + len(wording.html or "") + len(wording.text or "")
    for part, most in ((wording.html, LONGEST_REFERENCE), (wording.text, 1)):
        for found in _PLACEHOLDER.finditer(part or ""):  # one at a time: there may be millions
            octets += most * len(values.get(found[1], ""))
    return octets


def fill(wording: Wording, values: Mapping[str, str], max_length: int) -> Wording:
    """`wording` with its placeholders filled; the subject is one line of at most `MAX_SUBJECT` characters.

    max_length: what the HTML part, and the text part, may come to, in characters.  Raises RefusedError
    (BODY_TOO_LARGE) as soon as one is longer: a few kilobytes of placeholders can ask for gigabytes.
    """
    return Wording(
        subject=fill_subject(wording.subject, values),
        html=None if wording.html is None else fill_html(wording.html, values, max_length),
        text=None if wording.text is None else fill_text(wording.text, values, max_length),
    )


def fill_subject(subject: str, values: Mapping[str, str]) -> str:
    """The subject, filled, unescaped, cut to `MAX_SUBJECT`.  A run of control characters becomes a space."""
    lines: dict[str, str] = {}  # each value is cleaned once, however often it is asked for

    def line_of(name: str, _at: int) -> str:
        if name not in lines:
            lines[name] = one_line(values.get(name, ""))
        return lines[name]

    written: list[str] = []
    length = 0
    for piece in _pieces(subject, line_of):
        written.append(piece)
        length += len(piece)
        if length >= MAX_SUBJECT:
            break
    return one_line("".join(written))[:MAX_SUBJECT]


def one_line(text: str) -> str:
    """`text` without anything that could end a header line: each run of control characters is a space."""
    return _CONTROLS.sub(" ", text)


def fill_text(text: str, values: Mapping[str, str], max_length: int) -> str:
    """The text part, filled, unescaped.  Raises RefusedError (BODY_TOO_LARGE)."""
    return _joined(_pieces(text, lambda name, _at: values.get(name, "")), max_length, "text")


def fill_html(html: str, values: Mapping[str, str], max_length: int) -> str:
    """The HTML part, filled, every value escaped for where it stands.  Raises RefusedError (BODY_TOO_LARGE)."""
    if "{{" not in html:
        return _joined([html], max_length, "html")
    plain_to = _plain_to(html)
    escaped: dict[tuple[str, bool], str] = {}  # each value is escaped once, however often it is asked for

    def escaped_of(name: str, at: int) -> str:
        how = (name, at < plain_to)
        if how not in escaped:
            value = values.get(name, "")
            if len(value) > max_length:
                raise _too_large("html")
            escaped[how] = _escape(value) if at < plain_to else value.translate(_REFERENCES)
        return escaped[how]

    return _joined(_pieces(html, escaped_of), max_length, "html")


def _plain_to(html: str) -> int:
    """How far its markup is plain; behind the last placeholder nobody looks."""
    at, last = 0, html.rfind("{{")
    while at <= last and (plain := _PLAIN_MARKUP.match(html, at)) is not None:
        at = plain.end()
    return _before_odd_condition(html, at)


def _before_odd_condition(html: str, end: int) -> int:
    """Outlook reads markup in comments such as `<!--[if mso]>`: those must be plain by themselves, too.

    end: how far all of it is plain to everybody else.
    """
    at = 0
    while (begin := html.find(_CONDITION, at, end)) >= 0 and (close := html.find("-->", begin, end)) >= 0:
        inside = html[begin + len(_CONDITION) : close]
        if "{{" in inside and _plain_to(inside) <= inside.rfind("{{"):
            return begin
        at = close
    return end


def _escape(value: str) -> str:
    """For text, quoted attributes and comments.  Hyphens are what ends a comment."""
    value = html_library.escape(value)
    if "-" not in value:
        return value
    value = value.replace("--", "-&#45;")
    return f"{value[:-1]}&#45;" if value.endswith("-") else value


def _pieces(text: str, value_of: Callable[[str, int], str]) -> Iterator[str]:
    """What stands between the placeholders, and for each of them the value of its name at its place."""
    at = 0
    for found in _PLACEHOLDER.finditer(text):
        yield text[at : found.start()]
        yield value_of(found[1], found.start())
        at = found.end()
    yield text[at:]


def _joined(pieces: Iterable[str], max_length: int, field: str) -> str:
    written: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > max_length:
            raise _too_large(field)
        written.append(piece)
    return "".join(written)


def _too_large(field: str) -> RefusedError:
    text = f"{field} is larger than is allowed once its variables are filled in; shorten them."
    return RefusedError(Refusal(ErrorKind.BODY_TOO_LARGE, text, field=field))
