# SPDX-License-Identifier: Apache-2.0
"""A next hop that answers the final dot after 700 seconds, at the real value of `final_dot_timeout_s`."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from hepmaild.config import DeliverySettings, InDoubt
from hepmaild.delivery.job import Result
from tests.delivery.peer import after
from tests.delivery.test_pool import now_us, world

LATE_S = 700


async def test_each_try_is_counted_as_in_doubt(autojump_clock: MockClock) -> None:
    """No copy at the next hop without an attempt that says so."""
    settings = DeliverySettings()
    assert settings.final_dot_timeout_s == 600
    async with world(settings=settings) as w:
        w.peer.reactions["DOT"] = after(LATE_S, b"250 2.0.0 at last\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: len(w.reported) == 2)
        first, second = w.reported
        assert w.queue.results("m1") == [Result.IN_DOUBT] * 2
        assert (first.ended_at_us - first.started_at_us) / 1e6 == pytest.approx(600, abs=1)
        due_us = first.outcomes[0].retry_at_us
        assert due_us is not None
        assert 0 <= second.started_at_us - due_us < 1_000_000
        w.peer.reactions.clear()
        await w.queue.until(lambda: len(w.reported) == 3)
        assert w.queue.results("m1") == [Result.IN_DOUBT, Result.IN_DOUBT, Result.DELIVERED]
        assert len(w.peer.received) == 3
        assert len(set(w.peer.received)) == 1


async def test_held_it_leaves_once(autojump_clock: MockClock) -> None:
    async with world(settings=DeliverySettings(in_doubt=InDoubt.HOLD)) as w:
        w.peer.reactions["DOT"] = after(LATE_S, b"250 2.0.0 at last\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert w.reported[0].outcomes[0].retry_at_us is None
        w.peer.reactions.clear()
        await trio.sleep(3 * 86_400)
        assert len(w.peer.received) == 1
        assert w.queue.results("m1") == [Result.IN_DOUBT]
        assert now_us() < w.queue.messages["m1"].job.expires_at_us
