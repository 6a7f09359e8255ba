# SPDX-License-Identifier: Apache-2.0
"""NUL, which PostgreSQL does not take in a text: wherever somebody may write it, it is none of our defects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, update

from hepmaild.storage.schema_people import user
from tests.dashboard.inside import Inside, open_inside
from tests.dashboard.rules import every_rule
from tests.dashboard.visitor import words
from tests.people.conftest import database_url, opener
from tests.storage.conftest import Opener

__all__ = ["database_url", "opener"]

NAMES = ("q", "before", "after", "behind", "kind", "reason", "route", "destination", "status", "state", "show", "tab")
VALUES = ("%00", "a%00b@example.com", "1:%00", "1.0123456789abcde%00.x", "1.0123456789abcdef.%00")


def make_operators(conn: Connection) -> None:
    conn.execute(update(user).values(is_operator=True))


@pytest.fixture
async def inside(opener: Opener, tmp_path: Path) -> AsyncIterator[Inside]:
    """Ann, signed in, who may see everything."""
    async with open_inside(opener, tmp_path) as opened:
        await opened.world.store.write(make_operators)
        await opened.sign_in()
        yield opened


async def test_in_addresses(inside: Inside, tmp_path: Path) -> None:
    rules = await trio.to_thread.run_sync(every_rule, tmp_path)
    rules = [rule for rule in rules if rule.method == "GET" and rule.names]
    assert len(rules) > 10
    for rule in rules:
        path = rule.filled(dict.fromkeys(rule.names, "%00"))
        assert (await inside.browser.get(path)).status_code < 500, path
    lists = ("/logs", "/logs/export.csv", "/credits", "/suppressions", "/security/audit", "/operator/accounts")
    for path in (*lists, "/operator/queue/waiting"):
        query = "&".join(f"{name}={value}" for name in NAMES for value in VALUES[:1])
        for asked in (query, *(f"{name}={value}" for name in NAMES[:6] for value in VALUES)):
            answer = await inside.browser.get(f"{path}?{asked}")
            assert answer.status_code in (200, 400), f"{path}?{asked}"


async def test_in_forms(inside: Inside) -> None:
    for path, name in (("/suppressions/lift", "address"), ("/keys", "name"), ("/templates", "name")):
        answer = await inside.post(path, {name: "a\0b"})
        assert answer.status_code == 400, f"{path}: {answer.status_code}"
        assert "type it again" in words(answer.text)
