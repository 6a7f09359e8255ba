# SPDX-License-Identifier: Apache-2.0
"""Group commit by itself, on a clock that we move: a unit here is a function that waits until the test lets it go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing
from sqlalchemy import Connection

from hepmaild.errors import NothingCommitted, StoreUnavailable
from hepmaild.storage.writer import GATHER_S, IDLE_S, LINGER_S, MAX_UNIT, PATIENCE_S, GroupWriter, Haste

NO_CONNECTION = cast("Connection", None)


class Gate:
    """Runs units in memory: each waits for `release` first, and is on record when it began."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.committed: list[Any] = []
        self.failure: Exception | None = None
        self.released = trio.Semaphore(0)

    async def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        work = args[1] if len(args) == 2 else args
        self.begun.append(work)
        await self.released.acquire()
        if self.failure is not None:
            raise self.failure
        result = fn(NO_CONNECTION, *args)
        self.committed.append(work)
        return result


def echo(_conn: Connection, members: list[Any]) -> list[Any]:
    if any(member == "poison" for member in members):
        raise ValueError("poison")
    return [f"did {member}" for member in members]


@asynccontextmanager
async def serving(gate: Gate, **options: Any) -> AsyncIterator[tuple[GroupWriter, trio.Nursery]]:
    writer = GroupWriter(gate, echo, timeout_s=10, **options)
    async with trio.open_nursery() as nursery:
        server = trio.CancelScope()

        async def serve() -> None:
            with server:
                await writer.run()

        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        yield writer, nursery
        server.cancel()


class Caller:
    """Submits one member and remembers how it ended."""

    def __init__(
        self,
        writer: GroupWriter,
        nursery: trio.Nursery,
        member: str,
        *,
        call: Gate | None = None,
        haste: Haste = Haste.NOW,
    ) -> None:
        self.scope = trio.CancelScope()
        self.end: object = None
        if call is not None:
            nursery.start_soon(
                self._run, partial(writer.call, haste=haste), call, lambda _conn, m: f"called {m}", member
            )
        else:
            nursery.start_soon(self._run, partial(writer.submit, haste=haste), member)

    async def _run(self, ask: Callable[..., Awaitable[Any]], *args: Any) -> None:
        with self.scope:
            try:
                self.end = await ask(*args)
            except (ValueError, StoreUnavailable) as error:
                self.end = error
        if self.scope.cancelled_caught:
            self.end = "cancelled"


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_what_arrives_while_a_unit_runs_goes_into_the_next(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        callers = [Caller(writer, nursery, "a")]
        await settle()
        callers += [Caller(writer, nursery, word) for word in "bcd"]
        await settle()
        assert gate.begun == [["a"]]
        gate.released.release()
        gate.released.release()
        await settle()
        assert len(gate.committed) == 2
        assert sorted(gate.committed[1]) == ["b", "c", "d"]
        assert [caller.end for caller in callers] == ["did a", "did b", "did c", "did d"]
        assert (writer.units, writer.members, writer.waiting) == (2, 4, 0)


async def test_what_lingers_goes_with_somebody_else(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        first = [Caller(writer, nursery, "a", haste=Haste.SOON), Caller(writer, nursery, "b", haste=Haste.SOON)]
        first[1].scope.cancel()
        await settle()
        assert (gate.begun, writer.waiting) == ([], 1)
        hasty = Caller(writer, nursery, "c")
        await settle()
        assert gate.begun == [["c", "a"]]
        gate.released.release()
        await settle()
        assert [caller.end for caller in (*first, hasty)] == ["did a", "cancelled", "did c"]


async def test_what_lingers_goes_by_itself_when_nobody_came(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    gate.released.release()
    gate.released.release()
    async with serving(gate) as (writer, nursery):
        begun = trio.current_time()
        first = Caller(writer, nursery, "a", haste=Haste.SOON)
        await trio.sleep(LINGER_S / 2)
        second = Caller(writer, nursery, "b", haste=Haste.SOON)
        await settle()
        assert (first.end, second.end) == (None, None)
        await trio.sleep_until(begun + 2.5 * LINGER_S)
        assert (first.end, second.end) == ("did a", "did b")


async def test_what_lingers_waits_for_nobody_who_withdrew(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    gate.released.release()
    async with serving(gate) as (writer, nursery):
        first, last = (Caller(writer, nursery, word, haste=Haste.SOON) for word in "ab")
        await settle()
        last.scope.cancel()
        await trio.sleep(1.5 * LINGER_S)
        assert (first.end, last.end, writer.waiting) == ("did a", "cancelled", 0)


async def test_what_is_patient_goes_when_nobody_else_is_there(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        Caller(writer, nursery, "a", haste=Haste.IDLE)
        await trio.sleep(GATHER_S / 2)
        Caller(writer, nursery, "b", haste=Haste.IDLE)
        await trio.sleep(GATHER_S / 2 + IDLE_S / 2)
        assert gate.begun == []
        await trio.sleep(2 * IDLE_S)
        assert [sorted(unit) for unit in gate.begun] == [["a", "b"]]  # together
        gate.released.release()


async def test_what_is_patient_keeps_nobody_waiting(autojump_clock: trio.testing.MockClock) -> None:
    """It goes neither with the unit that waits for the one that runs, nor before it."""
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        patient = Caller(writer, nursery, "patient", haste=Haste.IDLE)
        await trio.sleep(GATHER_S - IDLE_S / 2)
        Caller(writer, nursery, "a")
        await settle()
        Caller(writer, nursery, "b")
        await trio.sleep(2 * IDLE_S)
        gate.released.release()
        await settle()
        assert gate.begun == [["a"], ["b"]]
        gate.released.release()
        await trio.sleep(IDLE_S / 2)
        Caller(writer, nursery, "c")
        await settle()
        assert gate.begun == [["a"], ["b"], ["c"]]
        gate.released.release()
        await trio.sleep(2 * IDLE_S)
        assert gate.begun == [["a"], ["b"], ["c"], ["patient"]]
        gate.released.release()
        await settle()
        assert patient.end == "did patient"


async def test_a_patient_call_goes_when_nobody_else_is_there(autojump_clock: trio.testing.MockClock) -> None:
    """It does not wait for others like it; who comes meanwhile goes first."""
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        patient = Caller(writer, nursery, "patient", call=gate, haste=Haste.IDLE)
        await trio.sleep(IDLE_S / 2)
        Caller(writer, nursery, "a")
        await settle()
        assert gate.begun == [["a"]]
        gate.released.release()
        await trio.sleep(IDLE_S / 2)
        assert gate.begun == [["a"]]
        await trio.sleep(IDLE_S)
        assert gate.begun == [["a"], ("patient",)]
        gate.released.release()
        await settle()
        assert patient.end == "called patient"


async def test_a_patient_call_waits_so_long_at_most(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        begun_at = trio.current_time()
        patient = Caller(writer, nursery, "patient", call=gate, haste=Haste.IDLE)
        withdrawn = Caller(writer, nursery, "withdrawn", call=gate, haste=Haste.IDLE)
        await trio.sleep(IDLE_S / 2)
        withdrawn.scope.cancel()
        while patient.end is None:
            Caller(writer, nursery, "a")
            gate.released.release()
            await trio.sleep(IDLE_S / 2)
        assert PATIENCE_S <= trio.current_time() - begun_at < PATIENCE_S + 2 * IDLE_S
        assert (withdrawn.end, writer.waiting) == ("cancelled", 0)


async def test_patience_ends(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        Caller(writer, nursery, "a")
        await settle()
        withdrawn = Caller(writer, nursery, "withdrawn", haste=Haste.IDLE)
        patient = Caller(writer, nursery, "patient", haste=Haste.IDLE)
        await settle()
        withdrawn.scope.cancel()
        await trio.sleep(GATHER_S + 1.5 * PATIENCE_S)
        Caller(writer, nursery, "b")
        gate.released.release()
        gate.released.release()
        await settle()
        assert [sorted(unit) for unit in gate.committed] == [["a"], ["b", "patient"]]
        assert (patient.end, withdrawn.end, writer.waiting) == ("did patient", "cancelled", 0)


async def test_a_unit_has_a_size(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        for n in range(MAX_UNIT + 51):
            Caller(writer, nursery, str(n))
        for _ in range(3):
            gate.released.release()
        await settle()
        assert sorted(map(len, gate.committed)) in ([51, MAX_UNIT], [1, 50, MAX_UNIT])


async def test_withdrawn_while_it_waits_never_runs(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        first = Caller(writer, nursery, "a")
        await settle()
        second, third = Caller(writer, nursery, "b"), Caller(writer, nursery, "c")
        await settle()
        second.scope.cancel()
        await settle()
        assert second.end == "cancelled"
        assert writer.waiting == 1
        gate.released.release()
        gate.released.release()
        await settle()
        assert gate.committed == [["a"], ["c"]]
        assert (first.end, third.end) == ("did a", "did c")


async def test_cancelled_once_begun_it_learns_the_result(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        caller = Caller(writer, nursery, "a")
        await settle()
        caller.scope.cancel()
        await settle()
        assert caller.end is None
        gate.released.release()
        await settle()
        assert caller.end == "did a"


async def test_the_deadline_ends_the_waiting(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        running, waiting = Caller(writer, nursery, "a"), None
        await settle()
        running.scope.cancel()  # shielded, but not for ever
        waiting = Caller(writer, nursery, "b")
        await trio.sleep(11)
        assert isinstance(running.end, StoreUnavailable)
        assert not isinstance(running.end, NothingCommitted)
        assert isinstance(waiting.end, NothingCommitted)
        assert writer.waiting == 0
        gate.released.release()
        await settle()
        assert gate.committed == [["a"]]  # which is why the caller may only say: unknown
        fresh = Caller(writer, nursery, "c")
        gate.released.release()
        await settle()
        assert fresh.end == "did c"


async def test_a_deadline_is_kept_when_the_one_before_it_was_answered(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        first = Caller(writer, nursery, "a")
        gate.released.release()
        await settle()
        assert first.end == "did a"
        await trio.sleep(5)
        second = Caller(writer, nursery, "b")
        await trio.sleep(5.5)  # the deadline of the first one is over
        third = Caller(writer, nursery, "c")
        assert second.end is None
        await trio.sleep(5)
        assert isinstance(second.end, StoreUnavailable)
        assert third.end is None
        await trio.sleep(5.5)
        assert isinstance(third.end, StoreUnavailable)
        gate.released.release()
        await settle()


async def test_nothing_is_kept_of_what_went(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        for haste in Haste:
            callers = [Caller(writer, nursery, f"{haste}{n}", haste=haste) for n in range(3)]
            for _ in callers:
                gate.released.release()
            await trio.sleep(5)
            assert [caller.end for caller in callers] == [f"did {haste}{n}" for n in range(3)]
        lines = (writer._members, writer._calls, writer._lingering, writer._gathering, writer._patient)
        assert [len(line) for line in lines] == [0, 0, 0, 0, 0]
        assert sum(map(len, gate.committed)) == 9


async def test_poison_fails_alone(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        first = Caller(writer, nursery, "first")
        await settle()
        callers = {word: Caller(writer, nursery, word) for word in ("a", "poison", "b")}
        await settle()
        for _ in range(5):
            gate.released.release()
        await settle()
        assert first.end == "did first"
        assert isinstance(callers["poison"].end, ValueError)
        assert callers["a"].end == "did a"
        assert callers["b"].end == "did b"
        assert sorted(gate.committed[1:]) == [["a"], ["b"]]


async def test_a_sick_store_fails_all_at_once_and_nobody_is_tried_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate = Gate()
    gate.failure = StoreUnavailable("disk full")
    async with serving(gate) as (writer, nursery):
        first = Caller(writer, nursery, "first")
        await settle()
        callers = [Caller(writer, nursery, word) for word in "abc"]
        await settle()
        for _ in range(2):
            gate.released.release()
        await settle()
        ends = [caller.end for caller in (first, *callers)]
        assert all(isinstance(end, StoreUnavailable) and str(end) == "disk full" for end in ends)
        assert len(set(map(id, ends))) == 4
        assert len(gate.begun) == 2
        gate.failure = None
        back = Caller(writer, nursery, "back")
        gate.released.release()
        await settle()
        assert back.end == "did back"


async def test_calls_and_members_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate) as (writer, nursery):
        Caller(writer, nursery, "first")
        await settle()
        callers = [Caller(writer, nursery, "x", call=gate), Caller(writer, nursery, "y", call=gate)]
        callers.append(Caller(writer, nursery, "m"))
        await settle()
        for _ in range(4):
            gate.released.release()
        await settle()
        kinds = ["unit" if isinstance(work, list) else "call" for work in gate.committed]
        assert kinds in (["unit", "call", "unit", "call"], ["unit", "unit", "call", "call"])
        assert [caller.end for caller in callers] == ["called x", "called y", "did m"]


async def test_too_many_waiting_are_refused_at_once(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    async with serving(gate, max_waiting=2) as (writer, nursery):
        Caller(writer, nursery, "a")
        await settle()
        for word in "bc":
            Caller(writer, nursery, word)
        await settle()
        with pytest.raises(StoreUnavailable, match="wait for the store"):
            await writer.submit("d")
        for _ in range(2):
            gate.released.release()


async def test_closing_answers_what_waits(autojump_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    writer = GroupWriter(gate, echo, timeout_s=10)
    server = trio.CancelScope()

    async def serve() -> None:
        with server:
            await writer.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await settle()
        running = Caller(writer, nursery, "a")
        await settle()
        waiting = Caller(writer, nursery, "b")
        await settle()
        server.cancel()
        await settle()
        assert running.end is None  # its unit is finished first
        gate.released.release()
        await settle()
        assert running.end == "did a"
        assert isinstance(waiting.end, StoreUnavailable)
        with pytest.raises(StoreUnavailable, match="closed"):
            await writer.submit("c")
