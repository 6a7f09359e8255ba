# SPDX-License-Identifier: Apache-2.0
"""MTA-STS policies in the store, on both engines."""

from __future__ import annotations

import trio

from hepmaild.delivery.mta_sts import Kept
from hepmaild.storage import sts
from hepmaild.storage.sts import StsTable
from tests.storage.conftest import Opener

TEXT = "version: STSv1\r\nmode: none\r\nmax_age: 1\r\nx: é\r\n"


async def test_policies_are_kept_replaced_and_pruned(opener: Opener) -> None:
    async with opener() as store:
        await store.upgrade()
        table = StsTable(store)
        assert await table.load("a.test") is None
        first = Kept("a.test", "id1", TEXT, 100, 200)
        await table.save(first)
        assert await table.load("a.test") == first
        later = Kept("a.test", "id2", TEXT * 100, 150, 900)
        await table.save(later)
        await table.save(first)  # of a process that was slow
        assert await table.load("a.test") == later
        await table.save(Kept("b.test", "id1", TEXT, 100, 200))
        assert await store.write(sts.prune, 200) == 1
        assert await table.load("b.test") is None
        assert await table.load("a.test") == later


async def test_two_who_fetched_the_same_at_once(opener: Opener) -> None:
    async with opener() as store:
        await store.upgrade()
        table = StsTable(store)
        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(table.save, Kept("a.test", f"id{n}", TEXT, 100 + n, 200))
        kept = await table.load("a.test")
        assert kept is not None
        assert kept.policy_id == "id7"
