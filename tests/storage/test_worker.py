# SPDX-License-Identifier: Apache-2.0
"""`Worker`: one thread, one call after the other, and what a caller who does not wait leaves behind."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from hepmaild.threads import BELLS, Worker

DEADLINE_S = 120


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("test-worker")
    worker.start()
    yield worker
    worker.stop()
    assert worker.join(DEADLINE_S)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_calls_run_in_one_thread_in_order(worker: Worker) -> None:
    ran: list[tuple[int, str]] = []

    def note(n: int) -> int:
        ran.append((n, threading.current_thread().name))
        return 2 * n

    results: dict[int, int] = {}

    async def call(n: int) -> None:
        results[n] = await worker.run(note, n)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for n in range(5 * BELLS):
                nursery.start_soon(call, n)
    assert results == {n: 2 * n for n in range(5 * BELLS)}
    assert sorted(ran) == [(n, "test-worker") for n in range(5 * BELLS)]


async def test_an_error_is_the_callers(worker: Worker) -> None:
    def fail() -> None:
        raise ValueError("no")

    with trio.fail_after(DEADLINE_S):
        with pytest.raises(ValueError, match="no"):
            await worker.run(fail)
        assert await worker.run(int, "7") == 7


async def test_who_does_not_wait_leaves_no_descriptor(worker: Worker) -> None:
    """The call runs to its end, nobody gets its result, and the next caller none but his own."""
    gate, ran = threading.Event(), threading.Event()

    def wait_for_gate() -> str:
        assert gate.wait(DEADLINE_S)
        ran.set()
        return "late"

    with trio.fail_after(DEADLINE_S):
        before = open_descriptors()
        for _ in range(3 * BELLS):
            gate.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run, wait_for_gate)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            gate.set()
            assert await worker.run(str.upper, "mine") == "MINE"
            assert ran.is_set()
        assert open_descriptors() <= before
