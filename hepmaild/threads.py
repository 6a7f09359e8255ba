# SPDX-License-Identifier: Apache-2.0
"""Threads: named limiters, one dedicated worker, and how often they may take the interpreter from the main thread.

Nothing here uses Trio's default limiter: it is shared by everything, and forty password hashes in it delay a DNS answer
by a second.
"""

from __future__ import annotations

import gc
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import outcome
import trio

P = ParamSpec("P")
T = TypeVar("T")

# Measured: with the default of 5 ms a busy main thread keeps the interpreter from the storage thread
# for seconds, because every short system call of the main thread starts the waiting anew; with 0.1 ms a unit of ten
# members takes 3 ms beside a main thread that is never idle.
SWITCH_INTERVAL_S = 0.0001


@dataclass(frozen=True, slots=True)
class Limiters:
    """How many threads of each kind may run at once.  Made once, by the daemon; each component gets its own.

    passwords: hashing and checking of passwords (CPU).  files: spooled content, sandbox, certificates (disk).
    names: the system's resolver.
    """

    passwords: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 2))
    files: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 8))
    names: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 16))


def share_interpreter(interval_s: float = SWITCH_INTERVAL_S) -> None:
    """Let worker threads have the interpreter after `interval_s` seconds of waiting, in the whole process."""
    sys.setswitchinterval(min(interval_s, sys.getswitchinterval()))


def spare_the_collector() -> None:
    """What was made to start stays for good, and messages leave no cycles: look for those less often.

    Measured: the collector took 4 % of the main thread's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """A call on its way through the worker; `done` runs on the Trio side."""

    fn: Callable[[], T]
    task: trio.lowlevel.Task | None
    result: outcome.Outcome[T] | None = None

    def done(self) -> None:
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)


class Worker:
    """One thread of our own that runs plain functions, one after the other.

    What belongs to one thread, such as SQLite's writing connection, stays in it, in order.  (Speed is no reason: under
    load it was 2 % ahead of `trio.to_thread` on average, with runs that differed by more than that.)
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; call inside `trio.run`."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread.start()

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` in the thread and return its result, or raise its error.

        Cancellation stops the waiting at once; `fn` still runs to its end, and its result is dropped.
        """
        job = _Job(partial(fn, *args, **kwargs), trio.lowlevel.current_task())

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._jobs.put(job)
        await trio.lowlevel.wait_task_rescheduled(abort)
        assert job.result is not None
        return job.result.unwrap()

    def stop(self) -> None:
        """Ask the thread to end after what it was given; returns at once."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait (blocking) for the thread's end after `stop`; False: it hangs in a system call and is left behind."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        assert self._token is not None
        while (job := self._jobs.get()) is not None:
            job.result = outcome.capture(job.fn)
            try:
                self._token.run_sync_soon(job.done)
            except trio.RunFinishedError:
                return
            del job  # the result may be large; do not keep it until the next job comes
