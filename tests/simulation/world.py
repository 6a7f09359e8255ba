# SPDX-License-Identifier: Apache-2.0
"""One run: processes that live and die on one database, customers, an operator, and the end in which all settles."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from hepmaild import prepare
from hepmaild.config import RouteKind
from hepmaild.delivery.hops import Hop as NextHop
from hepmaild.delivery.hops import Hops, NoHops, TlsLevel, TlsPolicy
from hepmaild.delivery.route import from_settings
from hepmaild.errors import ErrorKind, Refusal, StoreUnavailable
from hepmaild.mail.content import Content
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import Door, KeyIdentity, Origin, Receipt, Recipient, Submission
from hepmaild.storage import cap_line, caps, queue
from tests.simulation.database import SCARCE, Backend, Database, ProcessDied, SimStore, Weather
from tests.simulation.hop import Hop, Ledger
from tests.simulation.plan import Act, Dns, Message, Plan, dice
from tests.simulation.process import Process, Variants
from tests.simulation.trace import Trace, Violation, now_us

SETTLE_LOOK_S = 20.0
SETTLE_MARGIN_S = 4000.0  # an attempt, a lease, a pause, a retry
PATIENCE_S = 60.0


class World:
    """Everything of one run."""

    def __init__(self, plan: Plan, database: Database, trace: Trace, variants: type[Variants]) -> None:
        self.plan = plan
        self.database = database
        self.trace = trace
        self.variants = variants
        self.nursery: trio.Nursery
        self.hops: dict[str, Hop] = {}
        self.ledger = Ledger()
        self.weather = Weather(plan.seed, plan.store, plan.calm_s)
        self._lives: dict[int, Process] = {}  # the newest life of each slot
        self.units = 0
        self.reads = 0
        self.told: dict[int, Receipt | Refusal | None] = {}  # by message number
        self.paused: dict[tuple[str, str], float] = {}  # (route, destination): since when
        self.pauses: list[tuple[str, str, float, float]] = []  # those that are over
        self.settled_s = math.inf
        self._customers_left = len(plan.messages)
        self._stopping = False
        self._operator: SimStore

    async def run(self) -> None:
        """The whole run; afterwards the database and `ledger` are there to be looked at."""
        async with trio.open_nursery() as self.nursery:
            for name, plan in self.plan.hops.items():
                self.hops[name] = Hop(self.plan.seed, plan, self.ledger, self.trace, self.nursery)
            calm = Weather(self.plan.seed, type(self.plan.store)(latency_s=0.001), 0)
            backend = Backend(
                self.database,
                calm,
                self.trace,
                "operator",
                slot=-1,
                alone=self.plan.alone,
                later=self.nursery.start_soon,
                on_commit=lambda _when: None,
            )
            self._operator = SimStore(backend)
            self.nursery.start_soon(self._operator.writer.run)
            async with trio.open_nursery() as lives:
                for slot in range(self.plan.processes):
                    lives.start_soon(self._live, slot)
                for message in self.plan.messages:
                    self.nursery.start_soon(self._customer, message)
                self.nursery.start_soon(self._operate)
                await self._settle()
            await self._check_nothing_left()
            self.nursery.cancel_scope.cancel()

    async def _live(self, slot: int) -> None:
        life = 0
        while True:
            process = Process(self, slot, life)
            self._lives[slot] = process
            await process.run()
            self.units += process.backend.units
            self.reads += process.backend.reads
            if not self._is_stopping():
                await trio.sleep(process.death.restart_s if process.death else 1.0)
            if self._is_stopping():
                return
            life += 1

    def _is_stopping(self) -> bool:
        return self._stopping

    @property
    def processes(self) -> list[Process]:
        """Those that live now, in order."""
        return [self._lives[slot] for slot in sorted(self._lives)]

    # Customers

    async def _customer(self, message: Message) -> None:
        """Send one message; with a word, again until there is an answer."""
        r = dice(self.plan.seed, "customer", message.n)
        await trio.sleep_until(message.at_s)
        submission = self._submission(message)
        for _ in range(12 if message.word else 1):
            answer = await self._call(submission, r)
            self.trace.add(f"customer{message.n}", f"hears {_short(answer)}")
            if answer is not None and not _is_passing(answer):
                break
            if message.word:
                await trio.sleep(r.choice((1, 5, 30)))
        else:
            answer = None
        self.told[message.n] = answer
        self._customers_left -= 1

    async def _call(self, submission: Submission, r: random.Random) -> Receipt | Refusal | None:
        with trio.move_on_after(PATIENCE_S):
            while not (serving := [p for p in self.processes if p.serving]):  # noqa: ASYNC110 time costs nothing here
                await trio.sleep(0.5)
            process = r.choice(serving)
            with trio.CancelScope() as scope:
                process.calls.append(scope)
                try:
                    return await process.intake.accept(submission)
                except (StoreUnavailable, ProcessDied):
                    return None
                finally:
                    process.calls.remove(scope)
        return None

    def _submission(self, message: Message) -> Submission:
        account = message.account
        sender = self.plan.senders[message.sender].address
        word = f"X-Idempotency-Key: w{message.n}\r\n" if message.word else ""
        body = "all is well\r\n" * (message.body_octets // 13 + 1)
        content = (
            f"From: <{sender}>\r\nTo: <{message.recipients[0]}>\r\nMessage-ID: <m{message.n}@customer.example>\r\n"
            f"Subject: number {message.n}\r\n{word}\r\n{body}"
        )
        return Submission(
            key=KeyIdentity(
                f"key-{account}", "app", "00000", f"account-{account}", "", "standard", 120, chaos=message.chaos
            ),
            origin=Origin(Door.SMTP, "192.0.2.1", f"session-{message.n}"),
            recipients=tuple(Recipient(address) for address in message.recipients),
            source=Content(content.encode()),
            reverse_path=sender,
        )

    # Names

    async def resolve(self, destination: str) -> Hops | NoHops:
        """The simulated name servers."""
        found = next(d for d in self.plan.destinations if d.name == destination)
        if trio.current_time() < found.until_s or found.dns is Dns.NULL_MX:
            if found.dns is Dns.NULL_MX:
                return NoHops(Reply(556, "5.1.10", f"{destination} takes no mail (null MX)"))
            if found.dns is Dns.FAILING:
                await trio.sleep(0.2)
                return NoHops(Reply(451, "4.4.3", f"{destination}: the name servers failed"))
            if found.dns is Dns.SLOW:
                await trio.sleep(11)
        hops = tuple(
            NextHop(f"mx.{name}.example", (self.address_of(name),), TlsPolicy(TlsLevel.NONE)) for name in found.hops
        )
        return Hops(hops, "+".join(sorted(found.hops)))

    def address_of(self, hop: str) -> str:
        """The IP address of a hop."""
        return f"192.0.2.{sorted(self.hops).index(hop) + 1}"

    def hop_at(self, host: str) -> Hop:
        """Who answers at this name or address."""
        if host in self.hops:
            return self.hops[host]
        return self.hops[sorted(self.hops)[int(host.rpartition(".")[2]) - 1]]

    # The operator

    async def _operate(self) -> None:
        for act in self.plan.acts:
            await trio.sleep_until(act.at_s)
            await self._act(act)
        await trio.sleep_until(self.plan.calm_s)
        await self._undo()

    async def _act(self, act: Act) -> None:
        what = act.what
        if what == "reload":
            for process in self.processes:
                if process.serving:
                    process.pool.replace_routes([from_settings(route) for route in self.plan.routes])
        elif what in {"pause", "resume"}:
            await self._pause(act)
        else:
            waiting = [r[0] for r in self.database.raw.execute("SELECT DISTINCT message_id FROM queue ORDER BY 1")]
            if waiting:
                await self._command(_COMMANDS[what], waiting[int(act.pick * len(waiting))], now_us())

    async def _pause(self, act: Act) -> None:
        route = self.plan.routes[int(act.pick * len(self.plan.routes))]
        destination = ""
        if route.kind is RouteKind.MX and act.pick * 100 % 1 < 0.5:
            destination = self.plan.destinations[int(act.pick * 1000) % len(self.plan.destinations)].name
        here = (route.name, destination)
        if act.what == "pause":
            await self._command(queue.pause_route, *here, "because", now_us())
            self.paused.setdefault(here, trio.current_time())
        elif here in self.paused:
            await self._resume(here)

    async def _resume(self, here: tuple[str, str]) -> None:
        self.pauses.append((*here, self.paused.pop(here), trio.current_time()))
        await self._command(queue.resume, *here)

    async def _undo(self) -> None:
        """What is paused goes on when the storm is over; of what is held, half is released and half left to expire."""
        for here in sorted(self.paused):
            await self._resume(here)
        r = dice(self.plan.seed, "operator")
        sql = "SELECT DISTINCT message_id FROM recipient WHERE state = 'held' ORDER BY 1"
        if r.random() < 0.7:
            for (message_id,) in self.database.raw.execute(sql).fetchall():
                await self._command(queue.release, message_id, now_us())

    async def _command(self, fn: Callable[..., Any], *args: Any) -> None:
        """One command of `hepmaild queue`, and its announcement to every process."""
        try:
            await self._operator.write(fn, *args)
        except ValueError as refusal:
            self.trace.add("operator", f"is refused: {refusal}")
        for process in self.processes:
            if process.serving:
                self.nursery.start_soon(process.hear)

    # The end

    async def _settle(self) -> None:
        await trio.sleep_until(self.plan.calm_s)
        delivery = self.plan.delivery
        limit_s = self.plan.calm_s + delivery.expire_after_s + SETTLE_MARGIN_S
        while self._customers_left or self._something_waits():
            await trio.sleep(SETTLE_LOOK_S)
            if trio.current_time() > limit_s:
                break
        self.settled_s = trio.current_time()
        await trio.sleep(45)  # kept connections are closed, late answers written
        self._stopping = True
        self.trace.add("world", "all processes are told to stop")
        for process in self.processes:
            process.death = None
            process.lifecycle.draining.set()

    def _something_waits(self) -> bool:
        return bool(self.database.raw.execute("SELECT count(*) FROM queue").fetchone()[0])

    async def _check_nothing_left(self) -> None:
        self.trace.add("world", "all processes have ended")
        with trio.move_on_after(LONGEST_TALK_S):
            while any(hop.open for hop in self.hops.values()):  # noqa: ASYNC110 time costs nothing here
                await trio.sleep(1)
        for name, hop in self.hops.items():
            if hop.open:
                raise Violation(f"{hop.open} connections to {name} were never closed")


_COMMANDS: dict[str, Callable[..., Any]] = {
    "retry": queue.retry,
    "cancel": queue.cancel,
    "hold": queue.hold,
    "release": queue.release,
}
LONGEST_TALK_S = 1300.0  # a hop may still be counting to its late reply


def _is_passing(answer: Receipt | Refusal) -> bool:
    return isinstance(answer, Refusal) and answer.kind in {
        ErrorKind.IDEMPOTENCY_IN_PROGRESS,
        ErrorKind.DRAINING,
        ErrorKind.BACKLOG_FULL,
    }


def _short(answer: Receipt | Refusal | None) -> str:
    if answer is None:
        return "nothing"
    if isinstance(answer, Refusal):
        return f"refusal {answer.kind.name}: {answer.message}"
    return f"{answer.status} {answer.message_id}{' again' if answer.replayed else ''}"


class _Entropy:
    """`random_octets` for `prepare`: from the seed."""

    def __init__(self, seed: int) -> None:
        self._dice = dice(seed, "entropy")

    def random_octets(self, octets: int) -> bytes:
        return self._dice.randbytes(octets)


@contextmanager
def _determined(seed: int, day_s: float, trace: Trace) -> Iterator[None]:
    """Trio's order of tasks, message ids and the log come from the seed or go into the trace, for this run only; and
    the day of the caps is shorter, so that it can pass."""
    before = structlog.get_config()
    names: Any = prepare
    entropy, names.random_octets = names.random_octets, _Entropy(seed).random_octets
    modules: tuple[Any, ...] = (caps, cap_line)
    day_us = caps.DAY_US
    for module in modules if day_s else ():
        module.DAY_US = int(day_s * 1_000_000)
    ordered = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(f"{seed}/trio")
    structlog.configure(
        processors=[trace.capture],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
        names.random_octets = entropy
        for module in modules:
            module.DAY_US = day_us
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = ordered  # type: ignore[misc]


def run_world(plan: Plan, database: Database, trace: Trace, variants: type[Variants] = Variants) -> World:
    """Run the plan to its end.  Raises what crashed."""
    database.reset()
    if plan.scarce:
        database.limit_credits(1, SCARCE)
    world = World(plan, database, trace, variants)
    with _determined(plan.seed, plan.day_s, trace):
        trio.run(world.run, clock=MockClock(autojump_threshold=0), strict_exception_groups=True)
    return world
