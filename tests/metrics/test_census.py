# SPDX-License-Identifier: Apache-2.0
"""Figures from the store: on demand, not too often, and never in the way of whoever asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hepmaild.census import LONGEST_PAUSE_S, Census, Figure
from hepmaild.config import DatabaseSettings
from hepmaild.errors import StoreUnavailable
from hepmaild.storage.store import open_store
from hepmaild.storage.unit import UnitRunner


@asynccontextmanager
async def running(task: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        yield
        nursery.cancel_scope.cancel()


class Reader:
    """Takes `cost_s` and counts; fails while `is_down`."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.reads = 0
        self.is_down = False

    async def read(self) -> int:
        await trio.sleep(self.cost_s)
        if self.is_down:
            raise StoreUnavailable("down")
        self.reads += 1
        return self.reads


async def ask(figure: Figure[int], patience_s: float = 60) -> int | None:
    await figure.ask(trio.current_time() + patience_s)
    return figure.value


async def test_nobody_asks_nothing_is_read(autojump_clock: MockClock) -> None:
    reader = Reader(0.01)
    figure = Figure(reader.read, every_s=1, share=0.1)
    async with running(figure.run):
        await trio.sleep(80_000)
    assert reader.reads == 0


async def test_a_cheap_figure_is_read_at_most_once_in_its_time(autojump_clock: MockClock) -> None:
    reader = Reader(0.01)
    figure = Figure(reader.read, every_s=4, share=0.1)
    async with running(figure.run):
        assert [await ask(figure) for _ in range(5)] == [1] * 5
        await trio.sleep(4)
        assert await ask(figure) == 2


async def test_a_dear_figure_takes_its_share_and_no_more(autojump_clock: MockClock) -> None:
    """Asked all the time, a read of 2 s at 0.5 % comes every 400 s."""
    reader = Reader(2)
    figure = Figure(reader.read, every_s=4, share=0.005)
    async with running(figure.run):
        begun = trio.current_time()
        while trio.current_time() < begun + 4000:
            await ask(figure)
            await trio.sleep(5)
        assert reader.reads == 10
        reader.cost_s = 100
        await trio.sleep(400)
        await ask(figure, 200)
        reads = reader.reads
        await trio.sleep(LONGEST_PAUSE_S + 1)
        await ask(figure, 200)
        assert reader.reads == reads + 1


async def test_who_asks_does_not_wait_for_long(autojump_clock: MockClock) -> None:
    reader = Reader(30)
    figure = Figure(reader.read, every_s=1, share=1)
    async with running(figure.run):
        begun = trio.current_time()
        assert await ask(figure, 2) is None
        assert trio.current_time() == begun + 2
        await trio.sleep(28)
        assert await ask(figure, 2) == 1  # the read went on by itself
        await trio.sleep(40)
        assert await ask(figure, 2) == 1  # what was read before, while the next read runs
        assert figure.age_s == pytest.approx(42, abs=0.1)


async def test_a_failed_read_leaves_no_value(autojump_clock: MockClock) -> None:
    reader = Reader(0.01)
    figure = Figure(reader.read, every_s=1, share=1)
    async with running(figure.run):
        assert await ask(figure) == 1
        reader.is_down = True
        await trio.sleep(2)
        assert await ask(figure) is None
        reader.is_down = False
        figure.forget()
        assert await ask(figure) == 2


async def test_an_empty_queue(tmp_path: Path) -> None:
    def now_us() -> int:
        return 1_000_000

    settings = DatabaseSettings(url="sqlite:///test.db")
    async with open_store(settings, tmp_path, UnitRunner(now_us), exclusive=True) as store:
        await store.upgrade()
        census = Census(store, now_us)
        async with running(census.run):
            count = await census.take()
    assert count.is_up
    assert count.entries == {}
    assert count.recipients == {}
