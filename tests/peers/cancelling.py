# SPDX-License-Identifier: Apache-2.0
"""An operation cancelled at its 1st, 2nd, … n-th step, until one run of it is over before its turn comes.

A step is what a task of the operation, or of a nursery below it, does between two checkpoints.  Each is cut twice:
before it, so that the next checkpoint is told, and behind it, while the task waits, so that what it waits for is asked
to let it go (or, being past its point of no return, refuses).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

MOST_CUTS = 1000
DEADLINE_S = 60


@dataclass(slots=True)
class Cut:
    """What came of one run.  number: from 0.  is_reached: False: the run was over before.  is_whole: it returned, with
    `result`; otherwise it was cancelled."""

    number: int
    is_reached: bool = False
    is_whole: bool = False
    result: Any = None


class _Scissors(trio.abc.Instrument):
    """Cancels `scope` at one point among the steps of `root` and its descendants."""

    def __init__(self, scope: trio.CancelScope, root: trio.lowlevel.Task, cut: Cut, everybody: bool) -> None:
        self._scope = scope
        self._root = root
        self._cut = cut
        self._left = cut.number
        self._everybody = everybody

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_ours(task):
            self.snip()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_ours(task):
            self.snip()

    def snip(self) -> None:
        """Cancel, if this is the point."""
        if self._cut.is_reached:
            return
        if self._left:
            self._left -= 1
            return
        self._cut.is_reached = True
        self._scope.cancel()

    def _is_ours(self, task: trio.lowlevel.Task | None) -> bool:
        if self._everybody:
            return True
        while task is not None and task is not self._root:
            task = None if task.parent_nursery is None else task.parent_nursery.parent_task
        return task is self._root


async def cut_at(number: int, operation: Callable[[], Awaitable[Any]], *, everybody: bool = False) -> Cut:
    """Run the operation in a task of its own and cancel it there; what it raises is raised.

    everybody: the steps of all tasks count, also of those that it waits for, such as the store's writer.
    """
    cut, scope = Cut(number), trio.CancelScope()

    async def run() -> None:
        scissors = _Scissors(scope, trio.lowlevel.current_task(), cut, everybody)
        trio.lowlevel.add_instrument(scissors)
        try:
            with scope:
                scissors.snip()
                cut.result = await operation()
                cut.is_whole = True
        finally:
            trio.lowlevel.remove_instrument(scissors)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
    return cut


async def at_each_cut(
    operation: Callable[[], Awaitable[Any]], check: Callable[[Cut], Awaitable[None]], *, everybody: bool = False
) -> None:
    """Cut run after run of the operation, each a step later, and `check` what came of it.  The last, which was over
    before its cut, must have returned."""
    for number in range(MOST_CUTS):
        cut = await cut_at(number, operation, everybody=everybody)
        await check(cut)
        if not cut.is_reached:
            assert cut.is_whole
            return
    raise AssertionError(f"the operation takes more than {MOST_CUTS} steps")
