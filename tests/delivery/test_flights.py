# SPDX-License-Identifier: Apache-2.0
"""What is kept of values that are made once for all who ask: how long, how many, how large."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from hepmaild.delivery.flights import Flights


class Kitchen:
    """Makes values of so many octets that hold for `holds_s`; `made`: each time that it did."""

    def __init__(self, flights: Flights[str, int], holds_s: float = 60) -> None:
        self.flights = flights
        self.holds_s = holds_s
        self.made: list[str] = []

    async def ask(self, key: str, octets: int = 1) -> int:
        async def make() -> tuple[int, float]:
            self.made.append(key)
            await trio.lowlevel.checkpoint()
            return octets, trio.current_time() + self.holds_s

        return await self.flights.get(key, make)

    async def is_kept(self, key: str) -> bool:
        """Whether the answer was there already."""
        before = len(self.made)
        await self.ask(key)
        return len(self.made) == before


async def test_a_value_is_made_again_once_its_time_is_over(autojump_clock: MockClock) -> None:
    kitchen = Kitchen(Flights(10, 100, int))
    await kitchen.ask("a", 40)
    await trio.sleep(59)
    assert await kitchen.is_kept("a")
    await trio.sleep(1)
    assert not await kitchen.is_kept("a")


async def test_those_made_first_go_first_and_one_made_again_is_new(autojump_clock: MockClock) -> None:
    kitchen = Kitchen(Flights(3, 100, int))
    for key in ("a", "b", "c"):
        await kitchen.ask(key)
    await trio.sleep(60)
    for key in ("a", "b", "d"):  # the time of all is over: "a" is the oldest no more
        await kitchen.ask(key)
    await kitchen.ask("e")
    assert len(kitchen.flights) == 3
    kept = {key for key in ("b", "d", "e") if await kitchen.is_kept(key)}
    assert kept == {"b", "d", "e"}


async def test_together_they_have_no_more_octets_than_may_be(autojump_clock: MockClock) -> None:
    kitchen = Kitchen(Flights(10, 100, int))
    for _ in range(3):  # what is over, and what was forgotten, takes no room from what comes later
        await kitchen.ask("a", 60)
        await kitchen.ask("b", 40)
        assert await kitchen.is_kept("a")
        assert await kitchen.is_kept("b")
        await trio.sleep(60)
    await kitchen.ask("a", 60)
    kitchen.flights.forget()
    assert not await kitchen.is_kept("a")
    await kitchen.ask("b", 99)
    assert await kitchen.is_kept("a")
    await kitchen.ask("large", 101)
    assert len(kitchen.flights) == 1
    assert await kitchen.is_kept("large")


async def test_a_value_that_is_made_again_counts_once(autojump_clock: MockClock) -> None:
    kitchen = Kitchen(Flights(10, 100, int))
    await kitchen.ask("a", 30)
    await trio.sleep(30)
    await kitchen.ask("b", 30)
    await trio.sleep(30)
    for key, octets in (("a", 30), ("c", 40)):
        await kitchen.ask(key, octets)
    assert [await kitchen.is_kept(key) for key in ("a", "b", "c")] == [True] * 3
