# SPDX-License-Identifier: Apache-2.0
"""One life of a daemon's process in a run: built as `hepmaild.daemon` does it, without doors, and ended as planned."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from hepmaild.config import DAY_US, LimitSettings, SmtpSettings
from hepmaild.config import Plan as AccountPlan
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.route import from_settings
from hepmaild.directory import Directory
from hepmaild.errors import StoreUnavailable
from hepmaild.intake import Intake, IntakeSettings
from hepmaild.lifecycle import Lifecycle
from hepmaild.outbox import Outbox
from hepmaild.prepare import Preparer
from hepmaild.reaper import Reaper
from hepmaild.storage.suppress import Rule
from tests.simulation.database import Backend, ProcessDied, SimStore
from tests.simulation.plan import Death, dice
from tests.simulation.trace import now_us
from tests.simulation.wire import End

if TYPE_CHECKING:
    from tests.simulation.world import World

DRAIN_S = 30.0
HARD_STOP_S = 5.0


class Variants:
    """The classes a run is made of; a mutation puts a broken one in their place."""

    outbox: type[Outbox] = Outbox
    pool: type[DeliveryPool] = DeliveryPool
    intake: type[Intake] = Intake
    run_unit: Callable[[], Any] | None = None
    found_as = ""  # a mutation: what the violation says
    found_from = 0  # and from which seed on to look for it


class Process:
    """One life of a daemon: what `hepmaild.daemon` builds, without doors."""

    def __init__(self, world: World, slot: int, life: int) -> None:
        plan = world.plan
        self.world = world
        self.name = f"p{slot}.{life}"
        self.death = plan.deaths[slot][life] if life < len(plan.deaths[slot]) else None
        self.commits = 0
        self.sends = 0
        self.scope = trio.CancelScope()
        self.calls: list[trio.CancelScope] = []
        self.ends: list[End] = []
        self.serving = False
        self.backend = Backend(
            world.database,
            world.weather,
            world.trace,
            self.name,
            slot=slot,
            alone=plan.alone,
            later=world.nursery.start_soon,
            on_commit=self._on_commit,
        )
        run_unit = world.variants.run_unit
        self.store = SimStore(self.backend, run_unit=run_unit() if run_unit else None)
        self.lifecycle = Lifecycle()
        self.outbox = world.variants.outbox(
            self.store,
            owner=self.name,
            now_us=now_us,
            lease_s=plan.delivery.lease_s,
            body_days=plan.delivery.body_days,
            spool_dir=None,
            in_doubt=plan.delivery.in_doubt,
            rule=Rule(plan.delivery.suppress_after, int(plan.delivery.suppress_days * DAY_US)),
        )
        self.directory = Directory(self.store, plan.senders)
        self.pool = world.variants.pool(
            plan.delivery,
            [from_settings(route) for route in plan.routes],
            self.outbox,
            self.lifecycle,
            "ours.example",
            state_dir=Path("/nonexistent"),
            now_us=now_us,
            random=dice(plan.seed, "retry", self.name).random,
            drain_timeout_s=DRAIN_S,
            connect=self._connect,
            resolve=world.resolve,
        )
        self.intake = world.variants.intake(
            IntakeSettings(
                smtp=SmtpSettings(),
                limits=LimitSettings(),
                delivery=plan.delivery,
                plans={"standard": AccountPlan()},
                routes={route.name: route for route in plan.routes},
            ),
            store=self.store,
            directory=self.directory,
            outbox=self.outbox,
            dispatcher=self.pool,
            preparer=Preparer(hostname="ours.example", spool_dir=None, limiter=trio.CapacityLimiter(1), now_us=now_us),
            lifecycle=self.lifecycle,
            now_us=now_us,
        )

        self.reaper = Reaper(
            self.store,
            self.outbox,
            {"standard": AccountPlan()},
            now_us,
            senders=plan.senders,
            wake=self.pool.wake,
        )

    async def run(self) -> None:
        """Serve until the death that the plan has for this life, or for ever."""
        self.say("starts")
        try:
            with self.scope:
                await self._serve()
        except* (ProcessDied, StoreUnavailable) as group:
            # A daemon whose store is down at its start ends, and is started again.
            unexpected = group.subgroup(StoreUnavailable) if self.serving and self.backend.alive else None
            if unexpected is not None:
                raise unexpected from None
        self.backend.alive = False
        self.serving = False
        self._cut_everything()

    async def _serve(self) -> None:
        async with trio.open_nursery() as base:
            base.start_soon(self.store.writer.run)
            taken = await self.outbox.take_back()
            await self.outbox.recount()
            self.say(f"took back {taken}")
            if self.death is not None and self.death.how in {"time", "drain"}:
                base.start_soon(self._end_at, self.death)
            async with trio.open_nursery() as root:
                root.start_soon(self.directory.run)
                root.start_soon(self.outbox.run_late_writer)
                root.start_soon(self.outbox.run_heartbeat, self.pool.wake)
                if self.world.plan.reaps:
                    root.start_soon(self.reaper.run)
                async with trio.open_nursery() as delivery:
                    await delivery.start(self.pool.run)
                    self.serving = True
                    await self.lifecycle.draining.wait()
                    self.serving = False
                    root.start_soon(self._stop_hard, root)
                    await self._close_doors()
                deadline = trio.current_time() + HARD_STOP_S
                with trio.CancelScope(shield=True, deadline=deadline):
                    try:
                        await self.outbox.say_goodbye()
                    except StoreUnavailable:
                        self.say("could not say goodbye")
                root.cancel_scope.cancel()
            base.cancel_scope.cancel()
        self.say("ended in order")

    async def _close_doors(self) -> None:
        """The doors end when the calls in them have ended."""
        with trio.move_on_after(DRAIN_S):
            while self.calls:  # noqa: ASYNC110 time costs nothing here
                await trio.sleep(0.5)

    async def _stop_hard(self, root: trio.Nursery) -> None:
        await trio.sleep(DRAIN_S + HARD_STOP_S)
        self.say("stops hard")
        root.cancel_scope.cancel()

    async def _end_at(self, death: Death) -> None:
        await trio.sleep_until(max(death.at_s, trio.current_time() + 0.01))
        if death.how == "drain":
            self.say("drains")
            self.lifecycle.draining.set()
        else:
            self.die("its time had come")

    # Death

    def die(self, why: str) -> None:
        """At this instant: nothing of it has an effect any more."""
        if not self.backend.alive:
            return
        self.say(f"DIES: {why}")
        self.backend.alive = False
        self.serving = False
        self._cut_everything()
        self.scope.cancel()
        for call in self.calls:
            call.cancel()

    def _cut_everything(self) -> None:
        for end in self.ends:
            if not end.is_closed:
                end.cut()
        self.ends.clear()

    def _on_commit(self, when: str) -> None:
        death = self.death
        if death is None or trio.current_time() > self.world.plan.calm_s:
            return
        if when == "before":
            self.commits += 1
        if death.how == when and self.commits == death.n:
            self.die(f"{when} commit {death.n}")
            raise ProcessDied

    def _on_send(self, end: End, octets: bytes) -> None:
        if not self.backend.alive:
            raise ProcessDied
        death = self.death
        if death is None or death.how != "send" or trio.current_time() > self.world.plan.calm_s:
            return
        self.sends += 1
        if self.sends == death.n * 2:
            part = dice(self.world.plan.seed, "part", self.name).randrange(len(octets) + 1)
            self.say(f"has sent {part} of {len(octets)} octets")
            end.put(octets[:part])
            self.die(f"at send {self.sends}")
            raise ProcessDied

    async def _connect(self, host: str, port: int) -> End:
        def opened(end: End) -> None:
            end.on_send = partial(self._on_send, end)
            self.ends = [e for e in self.ends if not e.is_closed]
            self.ends.append(end)

        self.backend.check()
        end = await self.world.hop_at(host).connect(opened)
        self.backend.check()
        return end

    async def hear(self) -> None:
        """What an announcement of the queue means to it."""
        self.pool.wake()
        with suppress(StoreUnavailable, ProcessDied):
            await self.outbox.recount()

    def say(self, text: str) -> None:
        self.world.trace.add(self.name, text)
