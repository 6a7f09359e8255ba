# SPDX-License-Identifier: Apache-2.0
"""The language of the search box on Logs: words, and words with a name before them.

    anna@example.com invoice status:failed after:2026-03-01 key:"the shop"

Plain words look at recipients, subject and ids.  Named ones narrow: `to: from: key: status: door: id: before: after:`.
What has a space stands in quotes.  A name that is none is a plain word, so that `Re: hello` finds what it says.
A whole address finds what was sent there, and a whole id its message; in quotes both are words as others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hepmaild.config import DAY_US

MAX_TEXT = 500
MAX_TERMS = 12
TEXT = "text"
FIELDS = ("to", "from", "key", "status", "door", "id", "before", "after")
DOORS = ("smtp", "http")
STATES = ("queued", "sent", "deferred", "capped", "held", "in_doubt", "failed", "expired", "cancelled")

_NAMED = re.compile(r"([A-Za-z]{2,6}):")
_AGO = re.compile(r"(\d{1,6})\s*(s|min|m|h|d|w)")
_UNIT_S = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_ESCAPED = re.compile(r'(["\\])')
_ADDRESS = re.compile(r"[^@\s<>]+@[^@\s<>]+\.[^@\s<>.]+|[^@\s<>]+@\[[^\s<>]+\]")


class SearchProblem(ValueError):
    """The search cannot be understood; the text says why, for whoever typed it."""


@dataclass(frozen=True, slots=True)
class Term:
    """One condition.  field: one of `FIELDS`, or `TEXT`.  quoted: it is to be found as it stands."""

    field: str
    value: str
    quoted: bool = False

    @property
    def is_address(self) -> bool:
        """It is a whole address, which has an index; a part of one has not."""
        return not (self.quoted and self.field == TEXT) and _ADDRESS.fullmatch(self.value) is not None

    def __str__(self) -> str:
        name = "" if self.field == TEXT else f"{self.field}:"
        if not self.quoted:
            return name + self.value
        escaped = _ESCAPED.sub(r"\\\1", self.value)
        return f'{name}"{escaped}"'


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for.  before_us, after_us: accepted before, and at or after, that instant."""

    terms: tuple[Term, ...] = ()
    before_us: int | None = None
    after_us: int | None = None

    def values(self, field: str) -> list[str]:
        """The values of all terms of this field."""
        return [term.value for term in self.terms if term.field == field]

    def __str__(self) -> str:
        return " ".join(map(str, self.terms))

    def without(self, number: int) -> str:
        """The text of the search without one of its terms, for the chip that removes it."""
        return " ".join(str(term) for n, term in enumerate(self.terms) if n != number)


def parse(text: str, now_us: int) -> Search:
    """Understand what was typed; `now_us` is for `after:2h`.  Raises `SearchProblem` with a sentence."""
    if len(text) > MAX_TEXT:
        raise SearchProblem(f"That is too long for a search: at most {MAX_TEXT} characters.")
    if not text.isprintable():
        text = "".join(ch if ch.isprintable() else " " for ch in text)
    terms = tuple(_checked(term) for term in _split(text))
    if len(terms) > MAX_TERMS:
        raise SearchProblem(f"At most {MAX_TERMS} words at once: take some away.")
    before = [_instant(term, now_us) for term in terms if term.field == "before"]
    after = [_instant(term, now_us) for term in terms if term.field == "after"]
    return Search(terms, min(before, default=None), max(after, default=None))


def _split(text: str) -> Iterator[Term]:
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        name = _named(text[at:])
        if name:
            at += len(name) + 1
        quoted = at < len(text) and text[at] == '"'
        value, at = _quoted(text, at + 1) if quoted else _word(text, at)
        if name or value.strip():
            yield Term(name or TEXT, value.strip(), quoted)


def _named(text: str) -> str:
    """The field's name with which `text` begins, or ""."""
    found = _NAMED.match(text)
    return found[1].lower() if found and found[1].lower() in FIELDS else ""


def _word(text: str, at: int) -> tuple[str, int]:
    end = at
    while end < len(text) and not text[end].isspace():
        end += 1
    return text[at:end], end


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Up to the closing quote; one that is missing stands at the end."""
    value = []
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
        value.append(text[at])
        at += 1
    return "".join(value), at + 1


def _checked(term: Term) -> Term:
    if term.field != TEXT and not term.value:
        raise SearchProblem(f"Say what is to stand behind {term.field}: – {_EXAMPLES[term.field]}, for example.")
    if term.field == "status":
        return Term("status", _one_of(term, STATES, "state"))
    if term.field == "door":
        return Term("door", _one_of(term, DOORS, "door"))
    return term


def _one_of(term: Term, known: tuple[str, ...], what: str) -> str:
    value = term.value.lower().replace(" ", "_").replace("-", "_")
    if value not in known:
        raise SearchProblem(f"There is no {what} “{term.value[:40]}”: use {', '.join(known[:-1])} or {known[-1]}.")
    return value


_EXAMPLES = {
    "to": "to:anna@example.com",
    "from": "from:shop@example.com",
    "key": "key:shop",
    "status": "status:failed",
    "door": "door:smtp",
    "id": "id:a1b2c3d4e5f6a7b8",
    "before": "before:2026-03-01",
    "after": "after:2h",
}


def _instant(term: Term, now_us: int) -> int:
    """A date, a date with a time (UTC), `today`, `yesterday`, or so long ago: `30min`, `2h`, `3d`."""
    value = term.value.lower()
    today = now_us // DAY_US * DAY_US
    if value in ("today", "yesterday"):
        return today - DAY_US * (value == "yesterday")
    ago = _AGO.fullmatch(value)
    if ago:
        return now_us - int(ago[1]) * _UNIT_S[ago[2]] * 1_000_000
    try:
        at = datetime.fromisoformat(term.value.upper().replace(" ", "T"))
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise SearchProblem(
            f"“{term.value[:40]}” is no time: use {term.field}:2026-03-01, {term.field}:2026-03-01T14:30 (UTC), "
            f"{term.field}:today or {term.field}:2h (two hours ago)."
        ) from None
