# SPDX-License-Identifier: Apache-2.0
"""Searching the log on both engines: what is found is what a plain look at every message finds, page after page."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select

from hepmaild.search_words import Search, parse
from hepmaild.storage import search
from hepmaild.storage.schema import message, recipient
from hepmaild.storage.search import Found, Place
from hepmaild.storage.store import Store
from tests.storage.conftest import Opener

NOW_US = 1_780_000_000_000_000
ACCOUNT, OTHER = "a" * 36, "b" * 36
SUBJECTS = ("Your order", "Grüße aus Köln", "Müller & Söhne", "100% off_now", "مرحبا", "Invoice <b>1</b>")
STATES = ("sent", "sent", "sent", "sent", "queued", "failed", "deferred", "in_doubt")


@dataclass(frozen=True)
class Row:
    """A message as the model sees it."""

    id: str
    account: str
    at: int
    state: str
    door: str
    sender: str
    key: str
    subject: str
    recipients: tuple[str, ...]


def make(n: int, rnd: random.Random) -> Row:
    people = tuple(
        f"{rnd.choice(('Anna', 'bob', 'carl'))}{rnd.randrange(30)}@example{rnd.randrange(3)}.com"
        for _ in range(rnd.choice((1, 1, 5)))
    )
    return Row(
        f"{rnd.getrandbits(64):016x}",
        OTHER if n % 4 == 0 else ACCOUNT,
        NOW_US - rnd.randrange(200) * 1_000_000,  # many at the same instant
        rnd.choice(STATES),
        rnd.choice(("smtp", "http")),
        rnd.choice(("shop@example.com", "news@example.com")),
        rnd.choice(("shop", "the news")),
        rnd.choice(SUBJECTS),
        people,
    )


def put(conn: Connection, rows: list[Row]) -> None:
    same: dict[str, Any] = {"key_id": "k", "key_last_five": "abcde", "route": "r", "reverse_path": "", "size": 9}
    same |= {"smtputf8": False, "waiting": 0, "failed": 0, "expires_at_us": 0}
    conn.execute(
        insert(message),
        [
            {**same, "id": r.id, "account_id": r.account, "accepted_at_us": r.at, "state": r.state, "door": r.door}
            | {"sender": r.sender, "key_name": r.key, "subject": r.subject, "recipients": len(r.recipients)}
            | {"header_message_id": f"<{r.id}x@example.com>"}
            for r in rows
        ],
    )
    told: dict[str, Any] = {"kind": "to", "destination": "", "state": "sent", "attempts": 1, "doubts": 0}
    conn.execute(
        insert(recipient),
        [
            {**told, "message_id": r.id, "n": n, "address": address, "changed_at_us": r.at}
            for r in rows
            for n, address in enumerate(r.recipients)
        ],
    )


@pytest.fixture
def rows() -> list[Row]:
    rnd = random.Random(7)
    return [make(n, rnd) for n in range(400)]


@pytest.fixture
async def log(opener: Opener, rows: list[Row]) -> AsyncIterator[Store]:
    async with opener() as store:
        await store.upgrade()
        await store.write(put, rows)
        yield store


def fits(row: Row, wanted: Search) -> bool:
    """The plain look."""
    lower = [a.lower() for a in row.recipients]
    for term in wanted.terms:
        value = term.value.lower()
        whole = value in lower if term.is_address else any(value in a for a in lower)
        if term.field == "text" and not (whole or value in row.subject.lower() or value in row.id):
            return False
        if term.field == "to" and not whole:
            return False
        if term.field == "from" and value not in row.sender:
            return False
    for field, found in (("status", row.state), ("door", row.door), ("key", row.key)):
        values = wanted.values(field)
        if values and not any(v == found or (field == "key" and v.lower() in found) for v in values):
            return False
    at_most = wanted.before_us is None or row.at < wanted.before_us
    return at_most and (wanted.after_us is None or row.at >= wanted.after_us)


SEARCHES = (
    "",
    "anna3@example1.com",
    "to:ANNA3@example1.com",
    "to:bob",
    "order",
    "GRÜSSE",
    "köln",
    "KÖLN",
    "MÜLLER",
    "100% off_",
    "%",
    "_",
    "مرحبا",
    "status:failed",
    "status:failed status:deferred",
    "status:sent door:http",
    "status:queued",
    'key:"the news" from:shop',
    "from:news@example.com to:carl",
    "after:100s before:50s",
    "status:in_doubt after:100s order",
    "<b>",
    "nothing like this",
)


@pytest.mark.parametrize("stretch", [search.STRETCH, 37])
async def test_pages_together_are_all_that_fits(
    log: Store, rows: list[Row], stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "STRETCH", stretch)
    for text in SEARCHES:
        wanted = parse(text, NOW_US)
        newest_first = sorted(rows, key=lambda r: (r.at, r.id), reverse=True)
        expected = [r.id for r in newest_first if r.account == ACCOUNT and fits(r, wanted)]
        assert await all_pages(log, wanted) == expected, text
        everything = await log.read(search.matching, ACCOUNT, wanted, [r.id for r in rows])
        assert [line["message_id"] for line in everything] == expected, "the stream shows the same"


async def all_pages(log: Store, wanted: Search) -> list[str]:
    found: list[str] = []
    before: Place | None = None
    while True:
        page: Found = await log.read(search.find, ACCOUNT, wanted, before=before, limit=30)
        found += [line["message_id"] for line in page.lines]
        if page.older is None:
            return found
        assert page.lines or page.until_us is not None
        before = page.older


async def test_back_up_again(log: Store) -> None:
    for text in ("", "order", "status:failed"):
        wanted = parse(text, NOW_US)
        first = await log.read(search.find, ACCOUNT, wanted, limit=5)
        second = await log.read(search.find, ACCOUNT, wanted, before=first.older, limit=5)
        again = await log.read(search.find, ACCOUNT, wanted, after=second.newer, limit=5)
        assert again.lines == first.lines
        assert again.newer is None
        assert first.newer is None, "nothing is newer than the newest"


async def test_a_page_stays_while_mail_arrives(log: Store, rows: list[Row]) -> None:
    wanted = parse("", NOW_US)
    first = await log.read(search.find, ACCOUNT, wanted, limit=20)
    second = await log.read(search.find, ACCOUNT, wanted, before=first.older, limit=20)
    fresh = Row("f" * 16, ACCOUNT, NOW_US + 1, "queued", "smtp", "s@example.com", "shop", "New", ("x@example.com",))
    await log.write(put, [fresh])
    assert (await log.read(search.find, ACCOUNT, wanted, before=first.older, limit=20)) == second
    newest = await log.read(search.find, ACCOUNT, wanted, limit=20)
    assert newest.lines[0]["message_id"] == fresh.id


async def test_ids_of_another_account_are_not_found(log: Store, rows: list[Row]) -> None:
    theirs = next(r for r in rows if r.account == OTHER)
    for text in (f"id:{theirs.id}", theirs.id, f"id:{theirs.id}x@example.com"):
        found = await log.read(search.find, ACCOUNT, parse(text, NOW_US))
        assert found.lines == []
        assert len((await log.read(search.find, OTHER, parse(text, NOW_US))).lines) == 1
    assert await log.read(search.matching, ACCOUNT, Search(), [theirs.id]) == []
    assert len(await log.read(search.matching, None, Search(), [theirs.id])) == 1


ODD = (
    ("Welcome", "jörg@example.org"),
    ("Welcome", "Örjan@example.org"),
    ("Welcome", "anna@xn--bcher-kva.example"),  # as both doors keep it
    ("Signed up: nina@example.org", "boss@example.org"),
    ("Order 1234567890123456", "boss@example.org"),
)


@pytest.mark.parametrize("many", [search.MANY, 0])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("JÖRG@example.org", [0]),
        ("to:JÖRG@EXAMPLE.ORG", [0]),
        ("to:örjan@example.org", [1]),
        ("to:ÖRJAN@example.org status:sent", [1]),
        ("anna@bücher.example", [2]),
        ("to:Anna@BÜCHER.example", [2]),
        ("boss@example.org", [3, 4]),
        ("nina@example.org", []),  # nobody was written to there
        ('"nina@example.org"', [3]),
        ("1234567890123456", [4]),
        ("to:boss@example.org 1234567890123456", [4]),
        ("id:1234567890123456", []),
    ],
)
async def test_whole_addresses_and_ids(
    opener: Opener, text: str, found: list[int], many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are written, and whether or not an index is used."""
    monkeypatch.setattr(search, "MANY", many)
    rows = [
        Row(f"{n:016x}", ACCOUNT, NOW_US - n, "sent", "http", "shop@example.com", "shop", subject, (address,))
        for n, (subject, address) in enumerate(ODD)
    ]
    async with opener() as store:
        await store.upgrade()
        await store.write(put, rows)
        wanted = parse(text, NOW_US)
        page = await store.read(search.find, ACCOUNT, wanted)
        assert [line["message_id"] for line in page.lines] == [f"{n:016x}" for n in found]
        assert await store.read(search.matching, ACCOUNT, wanted, [r.id for r in rows]) == page.lines


def test_places_are_what_they_were() -> None:
    place = Place(NOW_US, "0123456789abcdef")
    assert Place.parse(str(place)) == place
    for text in ("", "1", "-", "x-0123456789abcdef", "1-xyz", "²-0123456789abcdef", "9" * 30 + "-0123456789abcdef"):
        assert Place.parse(text) is None


# PostgreSQL counts what there is, and chooses by that.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_known_ids_are_looked_up_one_by_one(log: Store) -> None:
    """SQLite would rather go through all messages of the account, of which there may be a million."""
    plans = await log.read(_plans_of_known_ids)
    assert len(plans) >= 4
    assert [plan for plan in plans if "account_id" in plan] == []


def _plans_of_known_ids(conn: Connection) -> list[str]:
    """How SQLite goes about every statement on `message` behind an index, and behind the live stream."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM message" in statement:
            asked.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", note)
    address = conn.execute(select(recipient.c.address).limit(1)).scalar_one()
    for text in (f"to:{address}", f"{address} order", f"to:{address} status:failed after:2020-01-01"):
        search.find(conn, ACCOUNT, parse(text, NOW_US))
    ids = conn.execute(select(message.c.id).limit(20)).scalars().all()
    asked.pop()
    search.matching(conn, ACCOUNT, Search(), ids)
    search.matching(conn, ACCOUNT, parse("order after:2020-01-01", NOW_US), ids)
    event.remove(conn, "before_cursor_execute", note)
    found = []
    for statement, parameters in asked:
        for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
            if " message " in row[-1]:
                found.append(row[-1])
    return found
