# SPDX-License-Identifier: Apache-2.0
"""Threads: named limiters, one dedicated worker, and how often they may take the interpreter from the main thread.

Nothing here uses Trio's default limiter: it is shared by everything, and forty password hashes in it delay a DNS answer
by a second.
"""

from __future__ import annotations

import errno
import gc
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
# Callers of a worker at once, as a rule.  Made at the start, so that a descriptor that comes later means something.
BELLS = 2


class NoThread(OSError):
    """The system gives this process no further thread now (a limit of processes, or no memory for its stack)."""


@contextmanager
def wanting_threads() -> Iterator[None]:
    """Raises `NoThread` where a thread could not be started; Python says that as a RuntimeError among others."""
    try:
        yield
    except RuntimeError as error:
        if error.args != ("can't start new thread",):
            raise
        raise NoThread(errno.EAGAIN, "no thread could be started") from error


async def in_thread(
    fn: Callable[..., T], *args: Any, limiter: trio.CapacityLimiter | None, abandon_on_cancel: bool = False
) -> T:
    """As `trio.to_thread.run_sync`, for everything that must outlive a want of threads.  Raises `NoThread`."""
    with wanting_threads():
        return await trio.to_thread.run_sync(fn, *args, limiter=limiter, abandon_on_cancel=abandon_on_cancel)


@dataclass(frozen=True, slots=True)
class Limiters:
    """How many threads of each kind may run at once.  Made once, by the daemon; each component gets its own.

    passwords: hashing and checking of passwords (CPU).  files: spooled content, sandbox, certificates (disk).
    names: the system's resolver.  reading: what is in stored messages, for their pages (CPU, and mail is hostile).
    """

    passwords: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 2))
    files: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 8))
    names: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 16))
    reading: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 2))


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


class _Bell:
    """An event descriptor, closed when neither caller nor thread knows it any more."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """A call on its way through the worker.  bell: rings once the result is there."""

    fn: Callable[[], T]
    bell: _Bell
    result: outcome.Outcome[T] | None = None


class Worker:
    """One thread of our own that runs plain functions, one after the other.

    What belongs to one thread, such as SQLite's writing connection, stays in it, in order.  A caller waits for an event
    descriptor of its own: Trio's way back from a thread wakes a task that wakes the caller, one pass of the loop later.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._bells = [_Bell() for _ in range(BELLS)]  # that nobody waits for
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread.  Raises `NoThread`."""
        with wanting_threads():
            self._thread.start()

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn` in the thread and return its result, or raise its error.

        Cancellation stops the waiting at once; `fn` still runs to its end, and its result is dropped.
        """
        bell = self._bells.pop() if self._bells else _Bell()
        job = _Job(partial(fn, *args, **kwargs), bell)
        self._jobs.put(job)
        await trio.lowlevel.wait_readable(bell.fd)
        os.eventfd_read(bell.fd)
        self._bells.append(bell)
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
        while (job := self._jobs.get()) is not None:
            job.result = outcome.capture(job.fn)
            os.eventfd_write(job.bell.fd, 1)
            del job  # the result may be large; do not keep it until the next job comes
