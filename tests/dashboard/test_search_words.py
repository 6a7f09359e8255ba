# SPDX-License-Identifier: Apache-2.0
"""The language of the search box: what is typed is understood, or refused with a sentence, and can be taken apart."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hepmaild.search_words import FIELDS, MAX_TEXT, STATES, TEXT, Search, SearchProblem, Term, parse

NOW_US = 1_780_000_000_000_000
HOUR_US = 3_600_000_000


@given(st.text(max_size=120))
@example('to:"a b" "c\\"d" key:x:y ": ::')
def test_whatever_is_typed_is_understood_or_refused_kindly(text: str) -> None:
    said, search = "", Search()
    try:
        search = parse(text, NOW_US)
    except SearchProblem as problem:
        said = str(problem)
    if said:
        assert said[0].isupper() or said[0] == "“"
        assert said.endswith(".")
        return
    assert parse(str(search), NOW_US) == search, "the text of a search means the same search"
    for n in range(len(search.terms)):
        rest = parse(search.without(n), NOW_US)
        assert rest.terms == search.terms[:n] + search.terms[n + 1 :]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("to", "from", "key", "id", TEXT)), st.text(st.characters(codec="utf-8"), min_size=1)
        ),
        max_size=5,
    )
)
def test_quoted_values_come_out_as_they_went_in(pairs: list[tuple[str, str]]) -> None:
    terms = tuple(Term(field, " ".join(value.split()), quoted=True) for field, value in pairs)
    terms = tuple(term for term in terms if term.value and term.value.isprintable())
    text = str(Search(terms))
    if len(text) <= MAX_TEXT:
        assert parse(text, NOW_US).terms == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("anna@example.com", [(TEXT, "anna@example.com")]),
        ("to:anna@example.com status:FAILED", [("to", "anna@example.com"), ("status", "failed")]),
        ('key:"the shop" order', [("key", "the shop"), (TEXT, "order")]),
        ("Re: hello", [(TEXT, "Re:"), (TEXT, "hello")]),
        ("status:in-doubt", [("status", "in_doubt")]),
        ('"unclosed words', [(TEXT, "unclosed words")]),
        ("TO:x", [("to", "x")]),
        ("   ", []),
        ("subject:x", [(TEXT, "subject:x")]),
    ],
)
def test_examples(text: str, terms: list[tuple[str, str]]) -> None:
    assert [(term.field, term.value) for term in parse(text, NOW_US).terms] == terms


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("status:open", "no state"),
        ("door:window", "smtp or http"),
        ("to:", "to:anna@example.com"),
        ("after:soon", "after:2h"),
        ("before:2026-13-01", "is no time"),
        ("x" * (MAX_TEXT + 1), "too long"),
        (" ".join("abcdefghijklm"), "At most"),
    ],
)
def test_what_cannot_be_understood_is_said(text: str, says: str) -> None:
    with pytest.raises(SearchProblem, match=says):
        parse(text, NOW_US)


def test_times() -> None:
    assert parse("after:2h", NOW_US).after_us == NOW_US - 2 * HOUR_US
    assert parse("before:1970-01-02", NOW_US).before_us == 24 * HOUR_US
    assert parse("before:1970-01-01T01:00", NOW_US).before_us == HOUR_US
    assert parse("before:1970-01-01T02:00+01:00", NOW_US).before_us == HOUR_US
    today = parse("after:today", NOW_US).after_us
    assert today is not None
    assert today % (24 * HOUR_US) == 0
    assert parse("after:yesterday", NOW_US).after_us == today - 24 * HOUR_US
    assert parse("after:1d after:1h before:2h before:3h", NOW_US).after_us == NOW_US - HOUR_US
    assert parse("after:1d after:1h before:2h before:3h", NOW_US).before_us == NOW_US - 3 * HOUR_US


def test_every_state_and_field_is_known() -> None:
    for state in STATES:
        assert parse(f"status:{state}", NOW_US).values("status") == [state]
    assert set(FIELDS) >= {"to", "from", "key", "status", "door", "before", "after", "id"}
