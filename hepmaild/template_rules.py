# SPDX-License-Identifier: Apache-2.0
"""What a template may be (contract: own-smtp-api.md "Templates"), and how two of its revisions differ.  Pure."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hepmaild.mail.address import has_control_characters
from hepmaild.mail.template import MAX_SUBJECT, Wording

MAX_TEMPLATES = 200  # of an account
MAX_REVISIONS = 1000  # of a template
MAX_NAME = 100
MAX_PART_OCTETS = 256 << 10  # so that a form with two of them, written as forms are, stays below 2 MB
MAX_SAMPLES = 200
MAX_SAMPLE = 10_000
# Lines of each side that are compared one by one: for lines chosen to that end difflib takes time by their third power,
# a second for so many.
MAX_COMPARED_LINES = 1_000
AROUND = 3  # unchanged lines that are shown before and behind a change

_KEY = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
_NAME = re.compile(r"\w{1,100}")
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})
_NOT_IN_KEY = re.compile(r"[^a-z0-9]+")
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class TemplateWish:
    """What a template is to be.  samples: the values it is previewed with."""

    name: str
    key: str
    wording: Wording
    samples: Mapping[str, str]


def check(wish: TemplateWish) -> dict[str, str]:
    """What is wrong with it: a sentence for each field."""
    errors: dict[str, str] = {}
    if not 1 <= len(wish.name) <= MAX_NAME or not wish.name.isprintable() or wish.name != wish.name.strip():
        errors["name"] = f"Give the template a name of 1 to {MAX_NAME} printable characters."
    if not is_key(wish.key):
        errors["key"] = "Use 1 to 64 lower-case letters, digits, hyphens and underscores, such as order-shipped."
    if len(wish.wording.subject) > MAX_SUBJECT or has_control_characters(wish.wording.subject):
        errors["subject"] = f"A subject is one line of at most {MAX_SUBJECT} characters."
    for field, part in (("html", wish.wording.html), ("text", wish.wording.text)):
        if part is not None and _NOT_TEXT.search(part):
            errors[field] = "There is a control character in it that no message may hold."
        elif part is not None and len(part.encode("utf-8")) > MAX_PART_OCTETS:
            errors[field] = f"At most {MAX_PART_OCTETS >> 10} kB: link to pictures instead of writing them in."
    if not wish.wording.html and not wish.wording.text:
        errors.setdefault("html", "Write HTML, plain text, or both.")
    if len(wish.samples) > MAX_SAMPLES or any(len(value) > MAX_SAMPLE for value in wish.samples.values()):
        errors["samples"] = f"At most {MAX_SAMPLES} sample values of at most {MAX_SAMPLE} characters."
    return errors


def is_key(text: str) -> bool:
    """Whether this can be a template's key at all."""
    return _KEY.fullmatch(text) is not None


def key_from(name: str) -> str:
    """A key made of a name; "" when nothing of it can be in one.

    Of one that is longer than a name may be the beginning counts: a form has room for a megabyte, and one character may
    stand for eighteen.
    """
    plain = unicodedata.normalize("NFKD", name[:MAX_NAME].lower().translate(_UMLAUTS))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return _NOT_IN_KEY.sub("-", plain)[:64].strip("-")


def read_samples(text: str) -> tuple[dict[str, str], str]:
    """Sample values as people type them, `name = value` in a line; and what is wrong with them, "" when nothing is."""
    samples: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, mark, value = line.partition("=")
        name = name.strip()
        if not line.strip():
            continue
        if not mark or not _NAME.fullmatch(name):
            return samples, f"Line {number} is not of the form name = value."
        samples[name] = value.strip()
    return samples, ""


def show_samples(samples: Mapping[str, str]) -> str:
    """As `read_samples` takes them."""
    return "".join(f"{name} = {value}\n" for name, value in samples.items())


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a difference.  mark: "+" is new, "-" is gone, " " is in both, "…": unchanged lines were left out."""

    mark: str
    text: str


def difference(old: str, new: str) -> list[DiffLine]:
    """What is to be done to `old`, line by line, with `AROUND` lines around each change; equal ones: nothing."""
    if old == new:
        return []
    before, after = old.splitlines(), new.splitlines()
    changed, by = _without_ends(before, after)
    if max(len(changed), len(by)) > MAX_COMPARED_LINES:
        return [DiffLine("…", f"Too long to compare line by line: {len(before)} lines before, {len(after)} after.")]
    return list(_lines(changed, by))


def _without_ends(before: list[str], after: list[str]) -> tuple[list[str], list[str]]:
    """Both without what they have in common at their ends, but for the lines that are shown around a change."""
    shorter = min(len(before), len(after))
    head = next((n for n in range(shorter) if before[n] != after[n]), shorter)
    tail = next((n for n in range(shorter - head) if before[-1 - n] != after[-1 - n]), shorter - head)
    start, left = max(0, head - AROUND), max(0, tail - AROUND)
    return before[start : len(before) - left], after[start : len(after) - left]


def _lines(before: list[str], after: list[str]) -> Iterator[DiffLine]:
    for n, line in enumerate(difflib.unified_diff(before, after, lineterm="", n=AROUND)):
        if n < 2:  # the names of files that are none
            continue
        if line.startswith("@@"):
            if n > 2:
                yield DiffLine("…", "")
        else:
            yield DiffLine(line[0], line[1:])
