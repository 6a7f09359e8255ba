# SPDX-License-Identifier: Apache-2.0
"""Templates in the store: revisions, keys, limits, two accounts, two people at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, update

from hepmaild.mail.template import Wording
from hepmaild.storage import audit, templates
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema_templates import template, template_revision
from hepmaild.storage.templates import Refused
from hepmaild.template_rules import (
    MAX_REVISIONS,
    MAX_TEMPLATES,
    TemplateWish,
    check,
    difference,
    key_from,
    read_samples,
    show_samples,
)
from tests.storage.books import START_US, Books, add_account, open_books
from tests.storage.conftest import Opener

ACTOR = Actor("u1", "ann@example.com", "192.0.2.7", "dashboard")
WISH = TemplateWish("Welcome", "welcome", Wording("Hi {{name}}", "<p>{{name}}</p>", None), {"name": "Anna"})
OTHER = "account-2"


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        await opened.store.write(add_account, 2, 0, START_US)
        yield opened


async def make(books: Books, template_id: str = "t1", wish: TemplateWish = WISH, account_id: str = "") -> None:
    await books.store.write(templates.create, account_id or books.account_id, ACTOR, template_id, wish, books.clock.us)


async def save(books: Books, wish: TemplateWish, base: int, template_id: str = "t1") -> int | None:
    books.clock.us += 1_000_000
    return await books.store.write(templates.save, books.account_id, ACTOR, template_id, wish, base, books.clock.us)


def worded(subject: str, **changes: Any) -> TemplateWish:
    return replace(WISH, wording=Wording(subject, "<p>x</p>", None), **changes)


async def deeds(books: Books) -> list[tuple[str, dict[str, Any]]]:
    rows = await books.store.read(audit.history, books.account_id, action="template")
    return [(row["action"], row["data"]) for row in reversed(rows)]


async def test_found_by_id_by_key_and_by_both(books: Books) -> None:
    await make(books)
    found = await books.store.read(templates.find, books.account_id, "t1", None)
    assert found == templates.Template("t1", "welcome", "Welcome", 1, WISH.wording)
    assert await books.store.read(templates.find, books.account_id, None, "welcome") == found
    assert await books.store.read(templates.find, books.account_id, "t1", "welcome") == found
    for template_id, key in (("t1", "other"), ("t2", "welcome"), ("t2", None), (None, "Welcome"), (None, "")):
        assert await books.store.read(templates.find, books.account_id, template_id, key) is None
    assert await books.store.read(templates.find, OTHER, "t1", None) is None
    assert await books.store.read(templates.find, OTHER, None, "welcome") is None
    assert await books.store.read(templates.sheet, OTHER, "t1") is None
    assert await books.store.read(templates.list_of, OTHER) == []


async def test_each_changed_wording_is_a_revision_and_old_ones_stay(books: Books) -> None:
    await make(books)
    assert await save(books, worded("two"), 1) == 2
    assert await save(books, worded("two"), 2) == 2, "nothing changed, nothing is written"
    assert await save(books, worded("two", name="Hello", key="hello", samples={}), 2) == 2, "a name has no revision"
    assert await save(books, worded("three", name="Hello", key="hello", samples={}), 2) == 3
    rows = await books.store.read(templates.revisions, "t1")
    assert [(row["n"], row["saved_by"], row["restored_from"]) for row in rows] == [
        (3, "ann@example.com", None),
        (2, "ann@example.com", None),
        (1, "ann@example.com", None),
    ]
    assert [row["n"] for row in await books.store.read(templates.revisions, "t1", before=3, limit=1)] == [2]
    old = await books.store.read(templates.sheet, books.account_id, "t1", 1)
    assert old is not None
    assert (old.template.wording, old.current, old.template.name) == (WISH.wording, 3, "Hello")
    assert await books.store.read(templates.sheet, books.account_id, "t1", 4) is None
    (line,) = await books.store.read(templates.list_of, books.account_id)
    assert (line["name"], line["key"], line["revision"], line["subject"]) == ("Hello", "hello", 3, "three")
    assert [(action, data.get("changed")) for action, data in await deeds(books)] == [
        ("template.make", None),
        ("template.save", ["revision"]),
        ("template.save", ["key", "name", "samples"]),
        ("template.save", ["revision"]),
    ]
    assert await books.store.read(audit.verify, books.account_id) is None


async def test_restoring_appends_the_old_wording(books: Books) -> None:
    await make(books)
    await save(books, worded("two"), 1)
    restore = (templates.restore, books.account_id, ACTOR, "t1")
    with pytest.raises(Refused, match="Revision 2"):
        await books.store.write(*restore, 1, 1, books.clock.us)
    assert await books.store.write(*restore, 1, 2, books.clock.us) == 3
    assert await books.store.write(*restore, 1, 3, books.clock.us) == 3, "it has that wording already"
    assert await books.store.write(*restore, 9, 3, books.clock.us) is None
    assert await books.store.write(templates.restore, OTHER, ACTOR, "t1", 1, 3, books.clock.us) is None
    found = await books.store.read(templates.find, books.account_id, "t1", None)
    assert found is not None
    assert (found.revision, found.wording) == (3, WISH.wording)
    (newest, *_) = await books.store.read(templates.revisions, "t1")
    assert newest["restored_from"] == 1


async def test_nobody_overwrites_what_he_has_not_seen(books: Books) -> None:
    await make(books)
    await save(books, worded("hers"), 1)
    with pytest.raises(Refused, match="Revision 2 was saved while you wrote"):
        await save(books, worded("his"), 1)
    assert await save(books, worded("hers", name="Renamed"), 1) == 2, "the same words harm nobody"


async def test_a_key_is_unique_in_its_account_only(books: Books) -> None:
    await make(books)
    with pytest.raises(Refused) as caught:
        await make(books, "t2")
    assert caught.value.field == "key"
    await make(books, "t3", account_id=OTHER)
    await make(books, "t2", replace(WISH, key="second"))
    with pytest.raises(Refused) as caught:
        await save(books, WISH, 1, "t2")
    assert caught.value.field == "key"


async def test_two_at_once_do_not_both_find_a_key_free(opener: Opener, books: Books) -> None:
    done: list[str] = []

    async with opener(exclusive=False) as second:

        async def try_it(n: int) -> None:
            store = (books.store, second)[n % 2]
            try:
                await store.write(templates.create, books.account_id, ACTOR, f"t{n}", WISH, books.clock.us)
                done.append("made")
            except Refused:
                done.append("refused")

        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(try_it, n)
    assert sorted(done) == ["made"] + ["refused"] * 5


async def test_limits_of_numbers(books: Books) -> None:
    def fill(conn: Connection) -> None:
        row = {"account_id": books.account_id, "name": "", "samples": "{}", "created_at_us": 1, "modified_at_us": 1}
        rows = [row | {"id": f"m{n}", "key": f"m{n}", "revision": 1} for n in range(1, MAX_TEMPLATES)]
        conn.execute(insert(template), rows)
        conn.execute(update(template).where(template.c.id == "t1").values(revision=MAX_REVISIONS))
        conn.execute(update(template_revision).values(n=MAX_REVISIONS))

    await make(books)
    await books.store.write(fill)
    with pytest.raises(Refused, match="200 templates"):
        await make(books, "more", replace(WISH, key="more"))
    with pytest.raises(Refused, match="1000 revisions"):
        await save(books, worded("more"), MAX_REVISIONS)


async def test_deleted_is_gone_with_its_revisions(books: Books) -> None:
    await make(books)
    await save(books, worded("two"), 1)
    assert not await books.store.write(templates.remove, OTHER, ACTOR, "t1", books.clock.us)
    assert await books.store.write(templates.remove, books.account_id, ACTOR, "t1", books.clock.us)
    assert not await books.store.write(templates.remove, books.account_id, ACTOR, "t1", books.clock.us)
    assert await books.store.read(templates.revisions, "t1") == []
    assert await books.store.read(templates.find, books.account_id, "t1", None) is None
    assert (await deeds(books))[-1] == ("template.delete", {"template_id": "t1", "key": "welcome", "revisions": 2})
    await make(books, "t2")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": " x"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        *(({"key": key}, "key") for key in ("", "A", "a b", "-a", "a-", "ä", "a" * 65, "a/b", "a\n")),
        ({"wording": Wording("a\r\nBcc: b", "x")}, "subject"),
        ({"wording": Wording("x" * 989, "x")}, "subject"),
        ({"wording": Wording("x")}, "html"),
        ({"wording": Wording("x", "", "")}, "html"),
        ({"wording": Wording("x", "ä" * (128 << 10) + "a")}, "html"),
        ({"wording": Wording("x", None, "a\0b")}, "text"),
        ({"wording": Wording("x", "\ud800")}, "html"),
        ({"samples": {"a": "x" * 10_001}}, "samples"),
        ({"samples": {f"n{n}": "" for n in range(201)}}, "samples"),
    ],
)
def test_what_a_template_may_be(change: dict[str, Any], field: str) -> None:
    assert list(check(replace(WISH, **change))) == [field]


def test_a_good_template_has_nothing_wrong() -> None:
    assert check(WISH) == {}
    assert check(TemplateWish("ü" * 100, "a", Wording("", None, "\ttext\r\n"), {})) == {}


def test_keys_are_made_of_names() -> None:
    assert key_from("Order shipped (German)") == "order-shipped-german"
    assert key_from("  ÄÖ  ") == "aeoe"
    assert key_from("Versandbestätigung à la carte, Straße") == "versandbestaetigung-a-la-carte-strasse"
    assert key_from("注文") == ""
    assert key_from("注" * 100 + "x") == ""  # no name is that long
    assert check(replace(WISH, key=key_from("x" * 63 + " y"))) == {}


def test_samples_are_typed_line_by_line() -> None:
    assert read_samples("name = Anna = Berta\n\n  n_1=\n") == ({"name": "Anna = Berta", "n_1": ""}, "")
    assert read_samples("a = 1\nb") == ({"a": "1"}, "Line 2 is not of the form name = value.")
    assert read_samples("a b = 1")[1] == "Line 1 is not of the form name = value."
    assert read_samples(show_samples({"a": "1", "b": "x = y"})) == ({"a": "1", "b": "x = y"}, "")


def test_a_difference_is_readable() -> None:
    assert difference("a\nb\n", "a\nb\n") == []
    old = "\n".join(str(n) for n in range(20))
    new = old.replace("3\n", "three\n", 1).replace("\n16\n", "\n").replace("19", "19\n20")
    shown = [(line.mark, line.text) for line in difference(old, new)]
    assert [line for line in shown if line[0] != " "] == [
        ("-", "3"),
        ("+", "three"),
        ("…", ""),
        ("-", "16"),
        ("+", "20"),
    ]
    assert [line.mark for line in difference("---\n--\n+++", "+++")] == ["-", "-", " "]
    assert difference("", "a") == difference("", "a\n")
    (only,) = difference("x\n" * 3000, "y")
    assert "3000 lines before, 1 after" in only.text


def test_a_small_change_of_a_long_text_is_shown() -> None:
    old = [f"line {n}" for n in range(5000)]
    new = [*old[:4000], "another", *old[4001:]]
    shown = [(line.mark, line.text) for line in difference("\n".join(old), "\n".join(new))]
    assert shown == [
        *((" ", f"line {n}") for n in (3997, 3998, 3999)),
        ("-", "line 4000"),
        ("+", "another"),
        *((" ", f"line {n}") for n in (4001, 4002, 4003)),
    ]
    assert [(line.mark, line.text) for line in difference("\n".join(old), "\n".join(["first", *old]))] == [
        ("+", "first"),
        *((" ", f"line {n}") for n in (0, 1, 2)),
    ]
    assert [line.mark for line in difference("\n".join(old), "\n".join(old[:-1]))] == [" ", " ", " ", "-"]


def test_lines_that_are_chosen_to_take_long_are_not_compared() -> None:
    """Each that both have stands there twenty times, and no two of them follow one another: two seconds for 256 kB."""
    old = "".join(f"L{n % 48}\nonly here {n}\n" for n in range(1000))
    (only,) = difference(old, old.replace("only", "and"))
    assert "2000 lines before, 2000 after" in only.text


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), max_size=30))
def test_a_difference_leads_from_one_to_the_other(old: list[str], new: list[str]) -> None:
    lines = difference("\n".join(old), "\n".join(new))
    for mark, side in (("-", old), ("+", new)):
        shown = [line.text for line in lines if line.mark in (" ", mark)]
        at = iter(side)
        assert all(text in at for text in shown), "in their order"
    counts = [sum(line.mark == mark for line in lines) for mark in "+-"]
    assert counts[0] - counts[1] == len(new) - len(old)
