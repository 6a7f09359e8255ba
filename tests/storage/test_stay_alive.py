# SPDX-License-Identifier: Apache-2.0
"""A process says that it is alive, from several of its tasks at once, on both engines."""

from __future__ import annotations

import trio
from sqlalchemy import Connection, select

from hepmaild.storage import leases
from hepmaild.storage.schema import process
from tests.storage.books import START_US
from tests.storage.conftest import Opener


def alive(conn: Connection) -> list[tuple[str, int]]:
    return [(r.id, r.alive_until_us) for r in conn.execute(select(process).order_by(process.c.id))]


async def test_heartbeat_and_claim_meet(opener: Opener) -> None:
    """The first of them makes the row, and none of them fails."""
    async with opener() as store:
        await store.upgrade()
        for n in range(20):  # the first ones wait for connections, and hardly meet
            async with trio.open_nursery() as nursery:
                for lease_us in range(100, 108):
                    nursery.start_soon(store.write, leases.stay_alive, f"me{n:02d}", lease_us, START_US)
        found = await store.read(alive)
        assert [owner for owner, _ in found] == [f"me{n:02d}" for n in range(20)]
        if store.is_sqlite:
            assert all(100 <= until_us - START_US < 108 for _, until_us in found)
