# SPDX-License-Identifier: Apache-2.0
"""Deadlines that move all the time, for many cancel scopes.

A session sets a deadline before each thing it waits for, some fifteen times a message, and hardly any comes.  Trio
keeps every one of them in its heap, at two microseconds each; here moving a deadline is an assignment.  One task
sleeps until the earliest deadline it knows of and looks again then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, Self

import trio


def current_clock() -> Callable[[], float]:
    """What tells the time of this `trio.run`, in seconds.

    `trio.current_time` is three functions, and a message asks for the time forty times.
    """
    return trio.lowlevel.current_clock().current_time


class Bounds(Protocol):
    """What may be moved of a cancel scope: by itself, or by the timer that has its deadline."""

    deadline: float
    shield: bool


class Timer:
    """The deadline of one cancel scope, on Trio's clock; math.inf: none.  These are its `Bounds`.

    is_over: it came, or was not waited for: the scope was cancelled.

    As a context manager it is closed at the end.
    """

    __slots__ = ("_deadline", "_timers", "is_over", "scope")

    def __init__(self, timers: Timers, scope: trio.CancelScope) -> None:
        self._timers = timers
        self.scope = scope
        self._deadline = math.inf
        self.is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timers.close(self)

    @property
    def deadline(self) -> float:
        """When the scope is cancelled, and not before."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline < self._timers.looks_at:
            self._timers.wake()

    def expire(self) -> None:
        """Cancel the scope now."""
        self._deadline = math.inf
        self.is_over = True
        self.scope.cancel()

    @property
    def shield(self) -> bool:
        """The scope's."""
        return self.scope.shield

    @shield.setter
    def shield(self, shield: bool) -> None:
        self.scope.shield = shield


class Timers:
    """`open` a timer, `close` it in the end; `run` obeys them.  looks_at: when that task looks next."""

    def __init__(self) -> None:
        self.looks_at = math.inf
        self._timers: set[Timer] = set()
        self._wanted = trio.Event()

    def open(self, scope: trio.CancelScope) -> Timer:
        """A timer that cancels `scope`."""
        timer = Timer(self, scope)
        self._timers.add(timer)
        return timer

    def close(self, timer: Timer) -> None:
        """It is not needed any more."""
        self._timers.discard(timer)

    def wake(self) -> None:
        """A deadline is earlier than the next look."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled; then nothing has a deadline any more.  Who is shielded needs it until his end."""
        while True:
            self._wanted = trio.Event()
            self.looks_at = min((timer.deadline for timer in self._timers), default=math.inf)
            with trio.move_on_at(self.looks_at):
                await self._wanted.wait()
            now = trio.current_time()
            for timer in self._timers:
                if timer.deadline <= now:
                    timer.expire()
