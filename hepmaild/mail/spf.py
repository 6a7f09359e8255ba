# SPDX-License-Identifier: Apache-2.0
"""SPF records (RFC 7208) as far as the doctor needs them: taken apart, pure.  Macros are seen, not expanded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_TERMS = 50
_TERM = re.compile(r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?:[:](.+?))?(/.+)?", re.IGNORECASE)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Term:
    """A directive.  qualifier: + - ~ ?.  value: what stands behind the colon, with a prefix length if there is one."""

    qualifier: str
    mechanism: str
    value: str


@dataclass(frozen=True, slots=True)
class Record:
    """redirect: a domain, or ""."""

    terms: tuple[Term, ...]
    redirect: str


class BadRecord(ValueError):
    """A receiver takes it for no record at all (permerror)."""


def choose(texts: Sequence[str]) -> Record | None:
    """The one SPF record among a name's TXT records; None: there is none.  Raises `BadRecord`."""
    found = [text for text in texts if text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")]
    if len(found) > 1:
        raise BadRecord("there are several SPF records: receivers ignore them all; keep one")
    return parse(found[0]) if found else None


def parse(text: str) -> Record:
    """Take a record apart (RFC 7208 §4.6.1).  Raises `BadRecord`."""
    terms: list[Term] = []
    redirect = ""
    for word in text.split(" ")[1:]:
        if not word:
            continue
        modifier = _MODIFIER.fullmatch(word)
        if modifier is not None:
            if modifier[1].lower() == "redirect":
                redirect = modifier[2]
            continue
        term = _TERM.fullmatch(word)
        if term is None:
            raise BadRecord("the SPF record has a word that is none of SPF's: receivers ignore all of it")
        terms.append(Term(term[1] or "+", term[2].lower(), (term[3] or "") + (term[4] or "")))
    if len(terms) > MAX_TERMS:
        raise BadRecord("the SPF record is too long")
    return Record(tuple(terms), redirect)


def with_addresses(text: str | None, addresses: Sequence[str]) -> str:
    """The record that a domain should have so that these addresses may send for it.  text: the one it has."""
    wanted = [f"ip6:{address}" if ":" in address else f"ip4:{address}" for address in addresses]
    if not text:
        return " ".join(["v=spf1", *(wanted or ["mx"]), "~all"])
    words = text.split()
    return " ".join([words[0], *(word for word in wanted if word not in words), *words[1:]])
