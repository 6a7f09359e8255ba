# SPDX-License-Identifier: Apache-2.0
"""`hepmaild queue …` on a queue with something in it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from hepmaild.config import DatabaseSettings
from hepmaild.storage.store import open_store
from hepmaild.storage.unit import UnitRunner
from tests.storage.books import HOUR_US, add_account
from tests.storage.mx_books import fill

FIRST, SECOND, THIRD = (f"{n:016x}" for n in (1, 2, 3))


@pytest.fixture
def filled(cli: Any, tmp_path: Path) -> Any:
    """Two messages on a route of kind mx, deferred for an hour, and one on the sandbox."""
    cli.config.write_text(cli.config.read_text() + '[[route]]\nname = "direct"\nkind = "mx"\n')
    now_us = time.time_ns() // 1000  # not when the file was read: on a slow machine the whole run lasts over an hour

    async def main() -> None:
        runner = UnitRunner(lambda: now_us)
        async with open_store(DatabaseSettings(), tmp_path / "state", runner, exclusive=False) as store:
            await store.upgrade()
            await store.write(add_account, 1, 10, now_us)
            await store.write(fill, "direct", {"a.example": 1, "b.example": 1}, now_us, now_us + HOUR_US)
            await store.write(fill, "box", {"": 1}, now_us)

    trio.run(main)
    return cli


def test_figures_and_lists(filled: Any) -> None:
    stats = filled.json("queue", "stats")
    assert stats["by_state"] == {"queued": 3, "deferred": 0, "capped": 0, "held": 0}
    assert stats["by_route"] == {"box": 1, "direct": 2}
    assert stats["by_destination"] == {"a.example": 1, "b.example": 1, "one.example": 1}
    assert stats["oldest_at"].endswith("Z")
    filled.ok("queue", "pause", "--route", "direct")
    heading, *lines = filled.ok("queue", "stats").splitlines()
    filled.ok("queue", "resume", "--route", "direct")
    assert heading.split() == (
        "ROUTE DESTINATION WAITING QUEUED DEFERRED CAPPED HELD IN DOUBT OLDEST P50 P95 TRIED/MIN SENT/MIN WHY".split()  # noqa: SIM905
    )
    assert [re.sub(r"\d+ (min|h)\b", "AGE", line).split() for line in lines[:6]] == [
        ["box", "(all)", *"1 1 0 0 0 0 AGE AGE AGE 0 0 -".split()],  # noqa: SIM905
        ["box", "one.example", *"1 1 0 0 0 0 AGE AGE AGE 0 0 -".split()],  # noqa: SIM905
        ["direct", "(all)", *"2 2 0 0 0 0 AGE AGE AGE 0 0 paused".split()],  # noqa: SIM905
        ["direct", "a.example", *"1 1 0 0 0 0 AGE AGE AGE 0 0 paused".split()],  # noqa: SIM905
        ["direct", "b.example", *"1 1 0 0 0 0 AGE AGE AGE 0 0 paused".split()],  # noqa: SIM905
        ["(all)", "(all)", *"3 3 0 0 0 0 AGE - - - - -".split()],  # noqa: SIM905
    ]
    for column in ("WAITING", "HELD", "IN DOUBT", "TRIED/MIN"):  # figures stand at their right
        end = heading.index(column) + len(column)
        assert {line[end - 2 : end + 1] for line in lines[:5]} <= {f" {n} " for n in "012"}, column
    assert lines[7] == "under way: 0"
    assert [row["message_id"] for row in filled.json("queue", "list")] == [THIRD, FIRST, SECOND]
    assert [row["message_id"] for row in filled.json("queue", "list", "--route", "direct", "--limit", "1")] == [FIRST]
    (row,) = filled.json("queue", "list", "--destination", "B.example", "--state", "queued")
    assert row["recipient"] == "u0@b.example"
    assert filled.json("queue", "list", "--state", "held") == []
    assert "no route 'x'" in filled.refused("queue", "list", "--route", "x")
    assert "is not a domain" in filled.refused("queue", "list", "--destination", "a b", status=2)


def test_hold_and_release(filled: Any) -> None:
    assert filled.json("queue", "hold", FIRST)["held"] == 1
    assert "is held already" in filled.refused("queue", "hold", FIRST)
    assert f"`hepmaild queue release {FIRST}`" in filled.refused("queue", "retry", FIRST)
    assert filled.json("queue", "show", FIRST)["state"] == "held"
    assert filled.json("queue", "release", FIRST)["released"] == 1
    assert "is not held" in filled.refused("queue", "release", FIRST)
    filled.ok("queue", "hold", FIRST)
    filled.ok("queue", "hold", SECOND)
    assert filled.json("queue", "release", "--destination", "b.example") == {"messages": 1, "recipients": 1}
    assert "released: 1 recipient of 1 message" in filled.ok("queue", "release", "--route", "direct")
    assert "not both" in filled.refused("queue", "release", FIRST, "--route", "direct", status=2)
    assert "--route or --destination" in filled.refused("queue", "release", status=2)


def test_retry_of_one_and_of_many(filled: Any) -> None:
    assert "is due now" in filled.ok("queue", "retry", FIRST)
    assert filled.json("queue", "retry", "--route", "direct") == {"messages": 1, "recipients": 1}
    assert filled.json("queue", "retry", "--route", "direct") == {"messages": 0, "recipients": 0}


def test_pause_and_resume(filled: Any) -> None:
    paused = filled.json("queue", "pause", "--route", "direct", "--destination", "A.example", "--note", "asked to")
    assert (paused["destination"], paused["note"]) == ("a.example", "asked to")
    assert "route direct is paused" in filled.ok("queue", "pause", "--route", "direct")
    assert "pause the whole route" in filled.refused("queue", "pause", "--route", "box", "--destination", "a.example")
    assert "no route 'x'" in filled.refused("queue", "pause", "--route", "x")
    stats = filled.json("queue", "stats")
    assert {(p["route"], p["destination"]) for p in stats["paused"]} == {("direct", ""), ("direct", "a.example")}
    assert {r["route"]: r["paused"] for r in stats["routes"]} == {"box": False, "direct": True}
    said = filled.ok("queue", "resume", "--route", "direct")
    assert "destination a.example of route direct is still paused" in said
    assert filled.json("queue", "resume", "--route", "direct", "--destination", "a.example")["still_paused"] == []
    assert "is not paused" in filled.refused("queue", "resume", "--route", "direct")


def test_cancel_refunds(filled: Any) -> None:
    assert filled.json("queue", "cancel", FIRST)["refunded"] == 1
    assert "is final" in filled.refused("queue", "hold", FIRST)
    assert filled.json("credits", "show", "owner1@example.com")["balance"] == 11


def test_what_the_command_line_does_to_the_queue_is_written_down(filled: Any) -> None:
    """As on the operator's page: of a message in its account's log, of a route in the service's."""
    for deed in ("hold", "release", "retry", "cancel"):
        filled.ok("queue", deed, FIRST)
    filled.refused("queue", "cancel", FIRST)
    filled.ok("queue", "pause", "--route", "direct", "--destination", "b.example", "--note", "moving")
    filled.ok("queue", "resume", "--route", "direct", "--destination", "b.example")
    filled.ok("queue", "retry", "--route", "direct")
    mine = filled.json("audit", "list", "owner1@example.com")[::-1]
    assert [(row["action"], row["subject"]) for row in mine] == [
        (f"message.{deed}", FIRST) for deed in ("hold", "release", "retry", "cancel")
    ]
    service = filled.json("audit", "list")[::-1]
    assert [(row["action"], row["subject"], row["data"]) for row in service] == [
        ("queue.pause", "direct", {"destination": "b.example", "note": "moving"}),
        ("queue.resume", "direct", {"destination": "b.example"}),
        ("queue.retry", "direct", {"destination": "", "messages": 1, "recipients": 1}),
    ]
    assert {row["via"] for row in [*mine, *service]} == {"cli"}
    assert filled.json("audit", "verify")["ok"]
