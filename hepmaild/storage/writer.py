# SPDX-License-Identifier: Apache-2.0
"""Group commit: what arrives while a unit runs goes into the next one, together.

One task takes what waits, has it run as one database transaction, and hands every member its result after the commit.
It knows no database: it is given a function that runs a plain function as one durable unit.

    submit ──► waiting members ─┐   at most MAX_UNIT of them, once no more arrive; those that are in no hurry come
                                │   along, or go by themselves soon, or wait until nobody else does
                                ├─► unit ─► commit ─► results to the members
    call ────► waiting calls ───┘   each alone, in turn with the units
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Protocol

import outcome
import structlog
import trio
from sqlalchemy import Connection

from hepmaild.errors import NothingCommitted, StoreUnavailable
from hepmaild.storage.trouble import Trouble
from hepmaild.timers import current_clock

log = structlog.get_logger()

MAX_UNIT = 200
MAX_WAITING = 10_000
LINGER_S = 0.005  # at most, for somebody else's unit
GATHER_S = 0.04  # for others who are patient: they go together
PATIENCE_S = 0.05  # behind that, at most, for an idle moment
IDLE_S = 0.002  # in which nobody came: what was just answered often comes back with the next step of its message
QUIET_PASSES = 3  # passes of the loop that bring nobody, before a unit begins
MAX_PASSES = 16

RunUnit = Callable[[Connection, list[Any]], list[Any]]


class Sync(IntEnum):
    """What a unit's members count on.

    WITH_NEXT: that they outlive this process; a power cut may take them, unless somebody else's sync comes first.
    SOON: the same, but a sync comes within a moment.  NOW: that they outlive a power cut when they are answered.
    """

    WITH_NEXT = 1
    SOON = 2
    NOW = 3


class Haste(IntEnum):
    """When a member is to be decided.

    IDLE: with others like it, once the writer has nothing else to do, within `GATHER_S` and `PATIENCE_S`: it costs more
    than others, who would wait for it.
    SOON: with the next unit that another member causes, within `LINGER_S`: it saves its own.  NOW: it causes a unit.
    """

    IDLE = 1
    SOON = 2
    NOW = 3


@dataclass(frozen=True, slots=True)
class Manner:
    """How a unit of group commit may be run.  is_light: it takes a few milliseconds, whatever is in the database."""

    is_light: bool = True
    sync: Sync = Sync.NOW


JudgeManner = Callable[[list[Any]], Manner]


class RunAlone(Protocol):
    """Runs `fn(conn, *args)` as one transaction; durable when it returns.

    Raises `StoreUnavailable` when the store failed, and whatever `fn` raised (rolled back) otherwise.
    """

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Awaitable[Any]: ...


class _State(Enum):
    WAITING = 1
    BEGUN = 2  # its unit runs: cancellation has to wait
    GONE = 3  # withdrawn, answered, or its caller gave up


class _Waiter:
    """A caller that waits for its member (or its call)."""

    __slots__ = ("deadline", "payload", "state", "task")

    def __init__(self, payload: Any, task: trio.lowlevel.Task, deadline: float) -> None:
        self.payload = payload
        self.task = task
        self.deadline = deadline  # Trio's clock
        self.state = _State.WAITING

    def answer(self, result: outcome.Outcome[Any]) -> None:
        if self.state is not _State.GONE:
            self.state = _State.GONE
            trio.lowlevel.reschedule(self.task, result)


class _Later(deque[_Waiter]):
    """Waiters in no hurry.  within_s: they go to the line `then` after that at the latest.  wanted: somebody came."""

    def __init__(self, within_s: float, then: deque[_Waiter]) -> None:
        super().__init__()
        self.within_s = within_s
        self.then = then
        self.wanted = trio.Event()


class GroupWriter:
    """The queue in front of the store's units.

    run_group: runs a unit of members as one transaction, called with (fn, run_unit, members).  run_unit: decides all
    members of a unit, one result each, and never lets one member's refusal fail the others.  timeout_s: after that many
    seconds a caller gets `StoreUnavailable`.
    """

    def __init__(
        self,
        run_group: RunAlone,
        run_unit: RunUnit,
        *,
        timeout_s: float,
        max_waiting: int = MAX_WAITING,
        trouble: Trouble | None = None,
    ):
        self._run_group = run_group
        self._run_unit = run_unit
        self._timeout_s = timeout_s
        self._time = current_clock()
        self._max_waiting = max_waiting
        self.trouble = trouble or Trouble(is_told=False)
        self._members: deque[_Waiter] = deque()
        self._calls: deque[_Waiter] = deque()
        self._lingering = _Later(LINGER_S, self._members)
        self._patient = _Later(PATIENCE_S, self._members)
        self._gathering = _Later(GATHER_S, self._patient)
        self._patient_calls = _Later(PATIENCE_S, self._calls)
        self._waiting = 0
        self._unanswered: deque[_Waiter] = deque()  # in the order of their deadlines
        self._watched = trio.Event()
        self._sleeper: trio.lowlevel.Task | None = None
        self._closed = False
        self.calls = 0  # that may have been committed, or are about to be
        self.units = 0  # committed, for metrics
        self.members = 0  # committed in them
        self.last_commit_at = -math.inf  # Trio's clock
        self.on_unit: Callable[[int, float], None] | None = None  # told of each: members, seconds; must not raise
        self.on_commit: Callable[[], None] | None = None  # told of each unit and call that succeeded; must not raise

    @property
    def waiting(self) -> int:
        """How many members and calls wait for their turn."""
        return self._waiting

    async def submit(self, member: Any, *, haste: Haste = Haste.NOW) -> Any:
        """Have `member` decided in the next unit, or when its `haste` says; its result once that is committed.

        Cancelled while it waits, it is taken out and never runs.  Once its unit has begun the waiting is shielded, for
        `timeout_s` from the start at most.  Raises `StoreUnavailable` when the store failed, the time is over (the
        member may or may not be committed) or too many wait; or what `run_unit` raised for this member alone.
        """
        if haste is Haste.NOW:
            return await self._wait_in(self._members, member)
        return await self._wait_in(self._lingering if haste is Haste.SOON else self._gathering, member)

    async def call(self, run: RunAlone, fn: Callable[..., Any], *args: Any, haste: Haste = Haste.NOW) -> Any:
        """Have `run` run `fn(conn, *args)` as a unit of its own, in turn with the members.  Otherwise as `submit`.

        haste: IDLE: it waits for an idle moment, though not for others.  SOON is no different from NOW.
        """
        return await self._wait_in(self._patient_calls if haste is Haste.IDLE else self._calls, (run, fn, args))

    async def _wait_in(self, line: deque[_Waiter], payload: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise NothingCommitted("the store is closed")
        if self._waiting >= self._max_waiting:
            raise NothingCommitted(f"{self._waiting} units of work wait for the store already")
        waiter = _Waiter(payload, trio.lowlevel.current_task(), self._time() + self._timeout_s)

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            if waiter.state is _State.BEGUN:
                # The commit may happen whatever the caller does: only the answer or the deadline ends the waiting.
                return trio.lowlevel.Abort.FAILED
            self._waiting -= 1
            waiter.state = _State.GONE
            return trio.lowlevel.Abort.SUCCEEDED

        line.append(waiter)
        self._waiting += 1
        self._watch(waiter)
        self._notice(line)
        return await trio.lowlevel.wait_task_rescheduled(abort)

    def _watch(self, waiter: _Waiter) -> None:
        """Have `waiter` answered by its deadline."""
        unanswered = self._unanswered
        while unanswered and unanswered[0].state is _State.GONE:
            unanswered.popleft()
        unanswered.append(waiter)
        if not self._watched.is_set():
            self._watched.set()

    async def _run_deadlines(self) -> None:
        """Answer those whose time is over; a unit that hangs goes on without them."""
        while True:
            await self._watched.wait()
            while self._unanswered:
                oldest = self._unanswered[0]
                if oldest.state is not _State.GONE:
                    await trio.sleep_until(oldest.deadline)
                if oldest.state is not _State.GONE:
                    has_begun = oldest.state is _State.BEGUN
                    self._waiting -= not has_begun
                    failed = StoreUnavailable if has_begun else NothingCommitted
                    failure = failed(f"the store did not answer within {self._timeout_s:g} s")
                    _fail([oldest], self.trouble.tell(failure))
                if self._unanswered and self._unanswered[0] is oldest:
                    self._unanswered.popleft()
            self._watched = trio.Event()

    async def _run_later(self, line: _Later) -> None:
        """Send those on their way who have waited long enough for others, or for an idle moment."""
        while True:
            await line.wanted.wait()
            line.wanted = trio.Event()
            await trio.sleep(line.within_s)
            self._let_go(line)

    def _let_go(self, line: _Later) -> None:
        if line:
            line.then += line
            line.clear()
            self._notice(line.then)

    def _notice(self, line: deque[_Waiter]) -> None:
        """Somebody came into this line.  To those who are patient the writer looks by itself, when it rests."""
        if isinstance(line, _Later):
            line.wanted.set()
        if line is not self._lingering and line is not self._gathering:
            self._wake()

    def _wake(self) -> None:
        if self._sleeper is not None:
            task, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(task)

    async def run(self) -> None:
        """Serve until cancelled.  A unit that runs then is finished first; what waits gets `StoreUnavailable`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_deadlines)
                nursery.start_soon(self._run_later, self._lingering)
                nursery.start_soon(self._run_later, self._patient)
                nursery.start_soon(self._run_later, self._gathering)
                nursery.start_soon(self._run_later, self._patient_calls)
                await self._run_units()
        finally:
            self._closed = True
            _fail(self._unanswered, StoreUnavailable("the store is closed"))

    async def _run_units(self) -> None:
        while True:
            if not self._members and not self._calls:
                await self._rest()
            if calls := self._take(self._calls, 1):
                await self._serve_call(calls[0])
            if self._members:
                await self._gather()
            if members := self._take(self._members, MAX_UNIT):
                members += self._take(self._lingering, MAX_UNIT - len(members))
                await self._serve_members(members)
            await trio.lowlevel.checkpoint_if_cancelled()

    async def _gather(self) -> None:
        """Let those join who are about to: what arrived with the last members is still on its way through the loop.

        A unit costs nearly the same for one and for twenty.  Measured: a fifth less CPU a message under full load, a
        sixth at half of it, and the answers no later (docs/decisions/0078).
        """
        quiet = passes = 0
        while quiet < QUIET_PASSES and passes < MAX_PASSES and len(self._members) < MAX_UNIT:
            before = len(self._members)
            await trio.lowlevel.checkpoint()
            quiet = quiet + 1 if len(self._members) == before else 0
            passes += 1

    async def _rest(self) -> None:
        """Until there is something to do; for whoever is patient there is, once it has been quiet for a moment."""
        if not self._patient and not self._patient_calls:
            await self._sleep()
            return
        with trio.move_on_after(IDLE_S) as scope:
            await self._sleep()
        if scope.cancelled_caught:
            self._let_go(self._patient)
            self._let_go(self._patient_calls)

    async def _sleep(self) -> None:
        self._sleeper = trio.lowlevel.current_task()

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _take(self, line: deque[_Waiter], most: int) -> list[_Waiter]:
        taken: list[_Waiter] = []
        while line and len(taken) < most:
            waiter = line.popleft()
            if waiter.state is _State.WAITING:
                waiter.state = _State.BEGUN
                taken.append(waiter)
        self._waiting -= len(taken)
        return taken

    async def _serve_call(self, waiter: _Waiter) -> None:
        run, fn, args = waiter.payload
        self.calls += 1
        result = await self._attempt(run, fn, *args)
        self.calls += 1
        waiter.answer(result)

    async def _serve_members(self, waiters: Sequence[_Waiter]) -> None:
        begun = self._time()
        result = await self._attempt(self._run_group, _checked, self._run_unit, [waiter.payload for waiter in waiters])
        if not isinstance(result, outcome.Error):
            self.units += 1
            self.members += len(waiters)
            if self.on_unit is not None:
                self.on_unit(len(waiters), self.last_commit_at - begun)
            for waiter, value in zip(waiters, result.unwrap(), strict=True):
                waiter.answer(outcome.Value(value))
        elif isinstance(result.error, StoreUnavailable):
            _fail(waiters, result.error)
        elif len(waiters) == 1:
            waiters[0].answer(result)
        else:
            log.warning("unit_split", members=len(waiters), error=repr(result.error))
            for waiter in waiters:
                # Whose caller was told "unavailable" meanwhile is better off not committed behind its back.
                if waiter.state is _State.BEGUN:
                    await self._serve_members([waiter])

    async def _attempt(self, run: RunAlone, fn: Callable[..., Any], *args: Any) -> outcome.Value[Any] | outcome.Error:
        """Run one unit; an error is carried to whoever waits for it.  Shielded: `run` bounds its own time."""
        captured: outcome.Value[Any] | outcome.Error | None = None
        with trio.CancelScope(shield=True, deadline=self._time() + 2 * self._timeout_s):
            captured = await outcome.acapture(run, fn, *args)
        if isinstance(captured, outcome.Value):
            self.last_commit_at = self._time()
            if self.on_commit is not None:
                self.on_commit()
            return captured
        if captured is None or isinstance(captured.error, trio.Cancelled):
            self.last_commit_at = -math.inf
            return outcome.Error(self.trouble.tell(StoreUnavailable("the store hangs")))
        if not isinstance(captured.error, Exception):
            raise captured.error
        if isinstance(captured.error, StoreUnavailable):
            self.last_commit_at = -math.inf
            self.trouble.tell(captured.error)
        return captured


def _fail(waiters: Iterable[_Waiter], error: StoreUnavailable) -> None:
    """Tell each, with an error of its own: a traceback grows in every task that raises it."""
    for waiter in waiters:
        own = type(error)(*error.args)
        own.__cause__ = error.__cause__
        waiter.answer(outcome.Error(own))


def _checked(conn: Connection, run_unit: RunUnit, members: list[Any]) -> list[Any]:
    """Inside the transaction: a wrong number of results must not be committed."""
    results = run_unit(conn, members)
    if len(results) != len(members):
        raise RuntimeError(f"run_unit gave {len(results)} results for {len(members)} members")
    return results
