# SPDX-License-Identifier: Apache-2.0
"""The form of a template: what was typed, and what the preview makes of it.  Pure but for the framework's types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from werkzeug.datastructures import MultiDict

from hepmaild.errors import RefusedError
from hepmaild.mail import template
from hepmaild.mail.sizes import MAX_BODY_OCTETS
from hepmaild.mail.template import Wording
from hepmaild.storage.templates import Sheet
from hepmaild.template_rules import MAX_PART_OCTETS, TemplateWish, check, key_from, read_samples, show_samples

MAX_TYPED = 2 << 20
FIRST = Wording(
    "Welcome, {{name}}",
    "<p>Hello {{name}},</p>\n<p>your order {{order}} is on its way.</p>\n",
    "Hello {{name}},\n\nyour order {{order}} is on its way.\n",
)
FIRST_SAMPLES = {"name": "Anna Müller", "order": "4711"}


@dataclass(frozen=True, slots=True)
class Typed:
    """The form as it stands."""

    name: str
    key: str
    subject: str
    html: str
    text: str
    samples: str

    @property
    def wording(self) -> Wording:
        """An empty part is none."""
        return Wording(self.subject, self.html or None, self.text or None)


def typed_of(sheet: Sheet | None) -> Typed:
    """Before anybody types: of a template, or (None) of a new one."""
    if sheet is None:
        return Typed("", "", FIRST.subject, FIRST.html or "", FIRST.text or "", show_samples(FIRST_SAMPLES))
    found = sheet.template
    words = found.wording
    return Typed(found.name, found.key, words.subject, words.html or "", words.text or "", show_samples(sheet.samples))


def read_typed(form: MultiDict[str, str]) -> Typed:
    """What came.  Forms end lines in CRLF; we keep LF, so that a revision differs only where its words do."""
    lines = {
        field: form.get(field, "")[:MAX_TYPED].replace("\r\n", "\n").replace("\r", "\n")
        for field in ("html", "text", "samples")
    }
    name = form.get("name", "")[:MAX_TYPED].strip()
    key = form.get("key", "")[:MAX_TYPED].strip() or key_from(name)
    return Typed(name, key, form.get("subject", "")[:MAX_TYPED].strip(), **lines)


def wish_of(typed: Typed) -> tuple[TemplateWish, dict[str, str]]:
    """What was wished, and what is wrong with it by field."""
    samples, problem = read_samples(typed.samples)
    wish = TemplateWish(typed.name, typed.key, typed.wording, samples)
    errors = check(wish)
    if problem:
        errors["samples"] = problem
    return wish, errors


@dataclass(frozen=True, slots=True)
class Preview:
    """What a message would say.  problem: why it cannot be shown, or what is missing."""

    subject: str
    html: str | None
    text: str | None
    problem: str = ""


def preview_of(wording: Wording, samples: dict[str, str]) -> Preview:
    """The very function that fills messages, on sample values.  What is too large to be saved is not shown either."""
    if any(len(part or "") > MAX_PART_OCTETS for part in (wording.html, wording.text)):
        return Preview("", None, None, f"More than {MAX_PART_OCTETS >> 10} kB, as much as a template may have.")
    missing = [name for name in template.names_in(wording) if name not in samples]
    problem = f"No sample value for {', '.join(missing[:10])}: empty here, as in a message." if missing else ""
    try:
        filled = template.fill(wording, samples, MAX_BODY_OCTETS)
    except RefusedError as error:
        return Preview("", None, None, error.refusal.message)
    return Preview(filled.subject, filled.html, filled.text, problem)


def names_of(typed: Typed) -> list[dict[str, Any]]:
    """The placeholders, and which of them have a sample value."""
    samples, _ = read_samples(typed.samples)
    return [{"name": name, "has_sample": name in samples} for name in template.names_in(typed.wording)[:100]]
