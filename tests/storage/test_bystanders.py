# SPDX-License-Identifier: Apache-2.0
"""What happens to one message happens to no other.

Beside it stand others that differ in one thing each: the account, the key, the destination, who works on them, what
they wait for.  Whatever is done to the one, not a column of theirs changes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from hepmaild.config import InDoubt
from hepmaild.delivery.job import Result
from hepmaild.mail.submission import KeyIdentity
from hepmaild.storage import cap_line, claim, leases, queue, schema
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Taken
from hepmaild.storage.settle import say_states
from hepmaild.storage.unit import Accept, Answer, Answers, Mark
from tests.storage.books import HOUR_US, START_US, Books, add_account, mint_key, open_books
from tests.storage.conftest import Opener
from tests.storage.mx_books import job_of, mx_accept, report_on

CAP, OTHER_CAP = "|app@example.com", "|other@example.com"
WORD = {"word": "w:1", "word_life_us": HOUR_US, "fingerprint": b"f" * 32}
TABLES = ("message", "recipient", "queue", "body", "event", "cap_use", "idempotency", "account", "ledger", "cap")


@dataclass
class Street:
    """one: the message that something is done to; it goes to x.test and y.test."""

    books: Books
    one: Accept

    async def others(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row that is not of `one`, nor of its account or cap."""

        def read(conn: Connection) -> dict[str, list[tuple[Any, ...]]]:
            found = {}
            for name in TABLES:
                table = schema.metadata.tables[name]
                column, mine = {
                    "message": ("id", self.one.message_id),
                    "account": ("id", self.one.account_id),
                    "ledger": ("account_id", self.one.account_id),
                    "cap": ("cap_key", CAP),
                }.get(name, ("message_id", self.one.message_id))
                rows = conn.execute(select(table).where(table.c[column] != mine).order_by(*table.primary_key)).all()
                found[name] = [tuple(row) for row in rows]
            return found

        return await self.books.store.read(read)

    async def check(self) -> None:
        """What is said of messages and rows of the queue is what their recipients say."""

        def read(conn: Connection) -> None:
            waits: dict[str, dict[str, list[int]]] = {}
            failed: Counter[str] = Counter()
            for r in conn.execute(select(schema.recipient)):
                dues = waits.setdefault(r.message_id, {})
                if r.due_at_us is not None:
                    dues.setdefault(r.destination, []).append(r.due_at_us)
                failed[r.message_id] += r.state in ("failed", "expired")
            for m in conn.execute(select(schema.message)):
                assert (m.waiting, m.failed) == (sum(map(len, waits[m.id].values())), failed[m.id])
                assert (m.finished_at_us is None) == (m.waiting > 0)
            rows = {(r.message_id, r.destination): r for r in conn.execute(select(schema.queue))}
            assert set(rows) == {(m, where) for m, dues in waits.items() for where in dues}
            for (message_id, where), r in rows.items():
                if r.owner is None and r.line_us is None:
                    assert r.due_at_us == min(waits[message_id][where])

        await self.books.store.read(read)

    async def report(self, where: str, *results: Result) -> None:
        report = report_on(job_of(self.one, where), self.books.clock.us, *results)
        assert await self.books.store.submit(report)

    async def write(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self.books.store.write(fn, *args, **kwargs)


@pytest.fixture
async def street(opener: Opener) -> AsyncIterator[Street]:
    async with open_books(opener) as books:
        await books.store.write(mint_key, books, "key-2")
        await books.store.write(add_account, 2, 100, START_US)
        other_key = KeyIdentity("key-2", "app", "", "account-1", "", "standard", 120)
        to = ("a@x.test", "b@x.test", "c@y.test")
        late = {"expires_at_us": START_US + 90 * HOUR_US}
        one = mx_accept(books, *to, cap_key=CAP, daily_cap=4, expires_at_us=START_US + 2 * HOUR_US, **WORD)
        finished, ended, marked, mine = [mx_accept(books, *to, **late) for _ in range(4)]
        mine.word, mine.word_life_us = "w:2", HOUR_US
        members = [
            one,
            mx_accept(books, *to, key=other_key, cap_key=CAP, daily_cap=4, owner="other", **late, **WORD),
            mx_accept(books, *to, account_id="account-2", owner="other", **late),
            mx_accept(books, *to, owner=None, cap_key=OTHER_CAP, daily_cap=1, at_us=START_US + HOUR_US, **late),
            mx_accept(books, *to, cap_key=OTHER_CAP, daily_cap=1, **late),  # stands in the line
            *(finished, ended, marked, mine),
        ]
        for member in members:
            member.owner = "else" if member in (finished, ended, marked, mine) else member.owner
            assert isinstance(await books.store.submit(member), Taken)
        for where in ("x.test", "y.test"):
            assert await books.store.submit(report_on(job_of(finished, where), START_US, Result.DELIVERED))
            assert await books.store.submit(report_on(job_of(ended, where), START_US, Result.DEFERRED))
            assert await books.store.submit(Mark(marked.message_id, where, 1))
        await books.store.write(queue.hold, ended.message_id, START_US)
        yield Street(books, one)


Deed = Callable[[Street], Awaitable[Any]]


async def _expire(street: Street) -> None:
    await _deferred(street)
    assert await street.write(claim.expire, street.one.expires_at_us, 0) == 3


async def _deferred(street: Street) -> None:
    for where in ("x.test", "y.test"):
        await street.report(where, Result.DEFERRED)


async def _dead(street: Street, in_doubt: InDoubt) -> None:
    assert await street.books.store.submit(Mark(street.one.message_id, "x.test", 1))
    await street.write(leases.say_goodbye, "me", street.books.clock.us, in_doubt)


async def _ends(street: Street, *results: Result) -> None:
    await street.report("x.test", *results)
    await street.report("y.test", results[0])


async def _claimed(street: Street) -> None:
    await _deferred(street)
    late_us = START_US + HOUR_US
    for table in ("queue", "recipient"):  # what is due before its recipients is only put back
        earlier = f"UPDATE {table} SET due_at_us = {late_us - 1} WHERE message_id = '{street.one.message_id}'"
        await street.write(lambda conn, earlier=earlier: conn.execute(text(earlier)) and None)
    found = await street.write(claim.claim, "new", late_us - 1, 10, 0)
    assert {job.message_id for job in found.jobs} == {street.one.message_id}


async def _held_and_let_go(street: Street) -> None:
    await street.write(queue.hold, street.one.message_id, START_US)
    await street.write(queue.release, street.one.message_id, START_US)


async def _retried(street: Street) -> None:
    await _deferred(street)
    await street.write(queue.retry, street.one.message_id, START_US)


async def _answered(street: Street) -> None:
    answer = Answer(street.one.message_id, "account-1", START_US, '{"said":1}', free_word=True)
    await street.books.store.submit(Answers((answer,)))


async def _again(street: Street) -> None:
    """Its word has grown too old, and is used for a new message, which replaces nobody's but its own."""
    street.books.clock.us += HOUR_US
    again = mx_accept(street.books, "a@x.test", **WORD, message_id="f" * 16)
    assert isinstance(await street.books.store.submit(again), Taken)
    rows = "DELETE FROM {} WHERE {} = 'ffffffffffffffff'"
    for table in ("event", "body", "queue", "recipient", "idempotency", "message"):
        statement = text(rows.format(table, "id" if table == "message" else "message_id"))
        await street.write(lambda conn, statement=statement: conn.execute(statement) and None)


DEEDS: dict[str, Deed] = {
    "delivered": lambda s: _ends(s, Result.DELIVERED),
    "failed": lambda s: _ends(s, Result.FAILED),
    "failed in part": lambda s: s.report("x.test", Result.DELIVERED, Result.FAILED),
    "deferred": _deferred,
    "in doubt": lambda s: _ends(s, Result.IN_DOUBT),
    "expired": _expire,
    "cancelled": lambda s: s.write(queue.cancel, s.one.message_id, START_US),
    "cancelled, and its content kept": lambda s: s.write(queue.cancel, s.one.message_id, START_US, HOUR_US),
    "held and let go": _held_and_let_go,
    "retried": _retried,
    "its process is gone": lambda s: _dead(s, InDoubt.RETRY),
    "its process is gone, doubt is held": lambda s: _dead(s, InDoubt.HOLD),
    "claimed": _claimed,
    "answered": _answered,
    "sent again": _again,
    "its line is looked at": lambda s: s.write(cap_line.refresh, CAP, START_US),
}


@pytest.mark.parametrize("deed", DEEDS)
async def test_nobody_else_is_touched(street: Street, deed: str) -> None:
    before = await street.others()
    assert all(before[name] for name in TABLES)
    await street.check()
    await DEEDS[deed](street)
    await street.check()
    after = await street.others()
    for name in TABLES:
        assert after[name] == before[name], name
    for account_id in ("account-1", "account-2"):
        assert await street.books.store.read(money.verify, account_id) is None


async def test_its_own_end_is_all_there(street: Street) -> None:
    """The same street: what must change does."""
    await street.report("x.test", Result.DELIVERED, Result.FAILED)
    shown = await street.books.store.read(queue.show, street.one.message_id)
    assert [r["state"] for r in shown["recipients"]] == ["sent", "failed", "queued"]
    await street.write(queue.cancel, street.one.message_id, START_US)
    shown = await street.books.store.read(queue.show, street.one.message_id)
    assert [r["state"] for r in shown["recipients"]] == ["sent", "failed", "cancelled"]
    assert (shown["state"], shown["finished_at"]) == ("failed", START_US)
    event = schema.event.c
    ends = select(event.data).where(event.message_id == street.one.message_id, event.kind == "cancelled")
    said = await street.books.store.read(lambda conn: [json.loads(data) for data in conn.execute(ends).scalars()])
    assert said == [{"recipients": 1, "refunded": 1}]
    refunds = await street.books.store.read(
        lambda conn: [
            (r.amount, r.message_id)
            for r in conn.execute(select(schema.ledger).where(schema.ledger.c.reason == "refund"))
        ]
    )
    assert refunds == [(1, street.one.message_id)] * 2
    rows = {
        name: await street.books.store.read(
            lambda conn, table=schema.metadata.tables[name]: conn.execute(
                select(table).where(table.c.message_id == street.one.message_id)
            ).all()
        )
        for name in ("queue", "body", "cap_use")
    }
    assert (rows["queue"], rows["body"], len(rows["cap_use"])) == ([], [], 1)


async def test_what_ends_in_part_is_said_of_what_still_waits(street: Street) -> None:
    """What was held expires; the other destination is under way, and nothing of the message is held any more."""
    await street.report("y.test", Result.DEFERRED)
    here = f"message_id = '{street.one.message_id}' AND destination = 'y.test'"
    await street.write(lambda conn: conn.execute(text(f"UPDATE recipient SET state = 'held' WHERE {here}")) and None)
    await street.write(say_states, [street.one.message_id])
    shown = await street.books.store.read(queue.show, street.one.message_id)
    assert (shown["state"], [r["state"] for r in shown["recipients"]]) == ("held", ["queued", "queued", "held"])
    assert await street.write(claim.expire, street.one.expires_at_us, 0) == 1
    shown = await street.books.store.read(queue.show, street.one.message_id)
    assert (shown["state"], [r["state"] for r in shown["recipients"]]) == ("queued", ["queued", "queued", "expired"])
    assert shown["finished_at"] is None
    await street.report("x.test", Result.DELIVERED)
    shown = await street.books.store.read(queue.show, street.one.message_id)
    assert (shown["state"], shown["finished_at"]) == ("failed", START_US)  # one did not get it
