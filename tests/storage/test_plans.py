# SPDX-License-Identifier: Apache-2.0
"""How SQLite goes about the looks that a long log would make slow.  It does not count what there is (nobody runs
ANALYZE), so its choice on an empty database is its choice with a million messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from hepmaild.own_routes import ALL
from hepmaild.search_words import parse
from hepmaild.storage import gauges, message_page, prune, queue_page, search, stats
from hepmaild.storage import queue as queue_rows
from hepmaild.storage.queue_page import UNDER_WAY, Wish
from hepmaild.storage.search import Place
from tests.storage.conftest import make_opener

NOW_US = 1_780_000_000_000_000
ACCOUNT = "a" * 36


def plans_of(conn: Connection, fn: Callable[[Connection], Any]) -> list[str]:
    """The steps of every statement of `fn`."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", note)
    fn(conn)
    event.remove(conn, "before_cursor_execute", note)
    return [
        row[-1]
        for statement, parameters in asked
        for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
    ]


LOOKS: dict[str, Callable[[Connection], Any]] = {
    "figures of the queue": lambda conn: stats.stats(conn, NOW_US),
    "gauges": lambda conn: gauges.recipients(conn, NOW_US),
    "what waits": lambda conn: queue_rows.list_waiting(conn, 100),
    "the log": lambda conn: search.find(conn, ACCOUNT, parse("", NOW_US)),
    "a word": lambda conn: search.find(conn, ACCOUNT, parse("order after:20d before:2d", NOW_US)),
    "a state": lambda conn: search.find(conn, ACCOUNT, parse("status:failed", NOW_US)),
    "a part of an address": lambda conn: search.find(conn, ACCOUNT, parse("to:anna", NOW_US)),
    "an address": lambda conn: search.find(conn, ACCOUNT, parse("to:anna@example.com", NOW_US)),
    "an older page": lambda conn: search.find(
        conn, ACCOUNT, parse("order before:2d", NOW_US), before=Place(NOW_US, "a" * 16)
    ),
}


PRUNES: dict[str, Callable[[Connection], Any]] = {
    "old messages": lambda conn: prune.finished_messages(conn, "free", NOW_US),
    "old messages of plans that are no more": lambda conn: prune.finished_messages(
        conn, "standard", NOW_US, ["free", "standard"]
    ),
    "orphans": lambda conn: prune.orphans(conn, 7, NOW_US),
    "content": lambda conn: prune.bodies(conn, NOW_US),
}


@pytest.mark.parametrize("what", PRUNES)
async def test_what_is_old_is_found_without_what_is_kept(what: str, tmp_path: Path) -> None:
    """Every minute: neither what other plans keep longer is gone through for it, nor all content there is."""
    async with make_opener("sqlite:///plans.db", tmp_path)() as store:
        await store.upgrade()
        plans = await store.write(plans_of, PRUNES[what])
    assert plans
    wading = [
        plan for plan in plans if plan.startswith(("SCAN message", "SCAN body")) or "_message_accepted_at" in plan
    ]
    assert not wading, wading


@pytest.mark.parametrize("state", ["", "deferred", "held", UNDER_WAY])
@pytest.mark.parametrize("route", ["", "up", ALL])
async def test_a_page_of_what_waits_does_not_go_through_the_queue(route: str, state: str, tmp_path: Path) -> None:
    """Neither for the servers of accounts, which are many routes."""
    wish = Wish(("up", ALL), route, state=state)
    async with make_opener("sqlite:///plans.db", tmp_path)() as store:
        await store.upgrade()
        plans = await store.read(plans_of, lambda conn: queue_page.page(conn, wish))
        plans += await store.read(plans_of, queue_page.waiting_routes)
    assert [plan for plan in plans if plan.startswith("SEARCH queue")]
    wading = [plan for plan in plans if plan.startswith("SCAN")]
    assert not wading, wading


@pytest.mark.parametrize("what", LOOKS)
async def test_nothing_goes_through_everything(what: str, tmp_path: Path) -> None:
    async with make_opener("sqlite:///plans.db", tmp_path)() as store:
        await store.upgrade()
        plans = await store.read(plans_of, LOOKS[what])
    assert plans
    wading = [plan for plan in plans if plan.startswith(("SCAN recipient", "SCAN message", "SCAN event"))]
    assert not wading, wading


async def test_what_is_known_by_its_id_is_looked_up_by_it(tmp_path: Path) -> None:
    async with make_opener("sqlite:///plans.db", tmp_path)() as store:
        await store.upgrade()
        plans = await store.read(plans_of, lambda conn: message_page.still_there(conn, ACCOUNT, ["b" * 16, "c" * 16]))
        assert await store.read(message_page.still_there, ACCOUNT, []) == set()
    assert [plan.partition(" (")[2] for plan in plans] == ["id=?)"], plans


def test_a_side_of_a_span_has_one_bound() -> None:
    """SQLite takes either of two, and goes through all that is between them."""
    place = Place(NOW_US, "a" * 16)
    wanted = parse("after:20d before:2d", NOW_US)
    for low, high in ((None, None), (place, None), (None, place), (place, place)):
        text = " and ".join(str(each) for each in search._span(wanted, low, high, None))
        assert text.count("accepted_at_us >=") == text.count("accepted_at_us <=") == 1, text
