# SPDX-License-Identifier: Apache-2.0
"""The daemon: builds every component in the order of their lifetimes, supervises them, and ends them in order.

    store ─ (migrated, leases of the dead taken back)
    └─ root nursery: signals · hard stop · watchdog · directory · people · live hub · late writer · heartbeat · reaper
       │  certificate watch · DKIM watch · operations · announcements; metrics only where the settings ask for them
       └─ delivery nursery: the pool                  (opened before the doors, closed after them)
          └─ ingress nursery: SMTP door · HTTP door

This is the only module that knows the concrete classes.  A crash in the root or delivery nursery ends the process, and
systemd starts it again: what was acknowledged is in the store.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
import trio

from hepmaild import __version__, memory
from hepmaild.census import Census
from hepmaild.config import DAY_US, Settings
from hepmaild.config_reload import needs_restart, until_restart
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.resolver import Resolver
from hepmaild.delivery.route import from_settings
from hepmaild.delivery.sts_fetch import Fetcher
from hepmaild.delivery.sts_policies import StsPolicies
from hepmaild.directory import Directory
from hepmaild.dkim_watch import DkimWatch
from hepmaild.doctor.ports import bound_ports
from hepmaild.errors import StoreUnavailable
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.http.limits import Timeouts
from hepmaild.http.server import BoundHttp, HttpDoor
from hepmaild.intake import Intake, IntakeSettings
from hepmaild.lifecycle import HARD_STOP_MARGIN_S, Lifecycle, longest_stop_s
from hepmaild.live import LiveHub
from hepmaild.materials import Materials
from hepmaild.metrics import Meter, Metrics, watch_loop
from hepmaild.operations import Insides, Operations
from hepmaild.outbox import Outbox
from hepmaild.own_servers import OwnServers
from hepmaild.people import People
from hepmaild.prepare import Preparer
from hepmaild.reaper import Reaper
from hepmaild.sdnotify import Notifier
from hepmaild.signals import END, RELOAD, Signals
from hepmaild.signing import SigningKeys
from hepmaild.smtp.listener import SmtpDoor
from hepmaild.storage.messages import make_spool
from hepmaild.storage.store import Store, open_store
from hepmaild.storage.sts import StsTable
from hepmaild.storage.suppress import Rule
from hepmaild.storage.unit import UnitRunner, judge
from hepmaild.threads import Limiters, spare_the_collector
from hepmaild.tls import ServerTls
from hepmaild.vault import Vault

log = structlog.get_logger()

Reload = Callable[[], Settings]
DOOR_RESTARTS = 3
DOOR_WINDOW_S = 60.0


class SchemaDue(Exception):
    """The database needs `hepmaild db upgrade`, and `database.migrate` is "manual"."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The addresses that were bound, as `host:port`."""

    starttls: tuple[str, ...]
    implicit_tls: tuple[str, ...]
    https: tuple[str, ...]
    plain_http: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass
class Clock:
    """Unix microseconds that never go backwards and ignore steps of the system's clock while we run; what the machine
    slept counts."""

    _offset_ns: int = field(default_factory=lambda: time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def now_us(self) -> int:
        """Now."""
        return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._offset_ns) // 1000


async def serve(
    settings: Settings,
    *,
    reload: Reload | None = None,
    on_ready: Callable[[Bound, Store], Awaitable[None]] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, then drain; returns when everything ended in order.

    reload: reads the settings again (SIGHUP).  on_ready: awaited once the ports are bound.  Raises OSError (a port or a
    file), `StoreUnavailable`, `SecretsUnavailable`, `SchemaDue`; a crash of a component as an ExceptionGroup.
    """
    clock, notifier = Clock(), Notifier(os.environ)
    signals = Signals(*RELOAD)  # one may come before there is anything to reload
    settings.server.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    tls = ServerTls(settings.tls, state_dir=settings.server.state_dir, hostname=settings.server.hostname)
    runner = UnitRunner(clock.now_us)
    try:
        async with open_store(
            settings.database, settings.server.state_dir, runner, exclusive=True, judge=judge
        ) as store:
            await _bring_up_to_date(store, settings)
            daemon = _Daemon(settings, store, tls, notifier, clock, reload)
            await daemon.run(signals, on_ready)
    finally:
        signals.ignore_all()  # a late one must not change the exit status
        notifier.close()
    log.info("stopped")


async def _bring_up_to_date(store: Store, settings: Settings) -> None:
    if not await store.schema_is_due():
        return
    if settings.database.migrate == "manual":
        raise SchemaDue("the database is not at this version's schema: run `hepmaild db upgrade`")
    log.info("migrating")
    await store.upgrade()


class _Daemon:
    def __init__(
        self,
        settings: Settings,
        store: Store,
        tls: ServerTls,
        notifier: Notifier,
        clock: Clock,
        reload: Reload | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._tls = tls
        self._notifier = notifier
        self._reload = reload
        self._clock = clock
        self._shown = settings  # as they hold now; `_settings`: as we began
        self.lifecycle = Lifecycle()
        self.hub = LiveHub(store)
        store.watch_commits(self.hub.committed)
        self._metrics = Metrics() if settings.metrics.listen else None
        meter = self._metrics or Meter()
        limiters = Limiters()
        spool_dir = make_spool(settings.server.state_dir)
        self.outbox = self._make_outbox(spool_dir, meter)
        self.directory = Directory(store, settings.sender)
        self.signing = SigningKeys(store, Vault(settings.server.state_dir), lambda: self.directory.generation)
        self.lookups = Lookups(settings.dns)
        vault = Vault(settings.server.state_dir)
        self.own_servers = OwnServers(store, self.directory, vault, lambda: self._shown.own_smtp, limiters.files)
        self.dkim_watch = DkimWatch(store, self.lookups.lookup_txt, clock.now_us)
        self.resolver = _make_resolver(self.lookups, store, clock)
        self.pool = DeliveryPool(
            settings.delivery,
            [from_settings(route) for route in settings.route],
            self.outbox,
            self.lifecycle,
            settings.server.hostname,
            state_dir=settings.server.state_dir,
            now_us=clock.now_us,
            random=random.SystemRandom().random,
            drain_timeout_s=settings.server.drain_timeout_s,
            resolve_for=self.resolver.for_route,
            on_reported=meter.reported if self._metrics is not None else None,
            is_paused=self.outbox.is_paused,
            own=self.own_servers,
        )
        self.intake = self._make_intake(spool_dir, limiters, meter)
        self.reaper = Reaper(
            store, self.outbox, settings.plans, clock.now_us, senders=settings.sender, wake=self.pool.wake
        )
        self.smtp = SmtpDoor(
            settings.smtp,
            settings.limits,
            settings.server.hostname,
            self.intake,
            self.lifecycle,
            lambda: tls.smtp,
            spool_dir=spool_dir,
        )
        self.people = People(
            store,
            Vault(settings.server.state_dir),
            hashing=limiters.passwords,
            files=limiters.files,
            now_us=clock.now_us,
            wall_us=lambda: time.time_ns() // 1000,
        )
        self.operations = self._make_operations()
        self.http = HttpDoor(
            settings.http,
            settings.limits,
            self.intake,
            self.lifecycle,
            lambda: tls.http,
            readiness=self.problems,
            spool_dir=spool_dir,
            timeouts=Timeouts(grace_s=settings.server.drain_timeout_s),
            meter=meter,
            people=self.people,
            dashboard=self._make_dashboard(limiters),
            own_servers=self.own_servers,
            materials=Materials(
                store, clock.now_us, limiters.files, lambda: self._shown.limits.upload_bytes_per_account
            ),
        )

    def _make_operations(self) -> Operations:
        insides = Insides(
            pool=self.pool,
            sessions=lambda: self.smtp.sessions,
            connections=lambda: self.http.connections,
            backlog=lambda: self.outbox.backlog,
            readers=lambda: self.hub.readers,
            is_draining=lambda: self.lifecycle.is_draining,
            recount=self.outbox.recount,
            metrics=self._metrics,
        )
        return Operations(self._store, lambda: self._shown, self.lookups, self._clock.now_us, insides)

    def _make_outbox(self, spool_dir: Path, meter: Meter) -> Outbox:
        settings = self._settings
        return Outbox(
            self._store,
            owner=f"{os.getpid()}-{secrets.token_hex(8)}",
            now_us=self._clock.now_us,
            lease_s=settings.delivery.lease_s,
            body_days=settings.delivery.body_days,
            spool_dir=str(spool_dir),
            meter=meter,
            in_doubt=settings.delivery.in_doubt,
            rule=_rule(settings),
        )

    def _make_intake(self, spool_dir: Path, limiters: Limiters, meter: Meter) -> Intake:
        settings = self._settings
        return Intake(
            IntakeSettings.of(settings),
            store=self._store,
            directory=self.directory,
            outbox=self.outbox,
            dispatcher=self.pool,
            preparer=Preparer(
                hostname=settings.server.hostname,
                spool_dir=spool_dir,
                limiter=limiters.files,
                now_us=self._clock.now_us,
                signing=self.signing,
            ),
            lifecycle=self.lifecycle,
            now_us=self._clock.now_us,
            meter=meter,
        )

    def _make_dashboard(self, limiters: Limiters) -> Dashboard:
        """What pages need.  extras: what single groups of pages know beside the store."""
        return Dashboard(
            self._store,
            self.people,
            settings=lambda: self._shown,
            now_us=self._clock.now_us,
            public_url=lambda: self._shown.http.public_url.rstrip("/"),
            extras={
                "live": self.hub,
                "lifecycle": self.lifecycle,
                "pool": self.pool,
                "outbox": self.outbox,
                "lookups": self.lookups,
                "operations": self.operations,
                "directory": self.directory,
                "own_servers": self.own_servers,
                "reading": limiters.reading,
            },
        )

    async def problems(self) -> list[str]:
        """Why this process should get no new work; empty when all is well (`/readyz`)."""
        found = []
        if self.lifecycle.is_draining:
            found.append("draining")
        if self.outbox.backlog >= self._shown.limits.backlog:
            found.append("the backlog is full")
        try:
            await self._store.check()
        except StoreUnavailable:
            found.append("the store cannot be written")
        return found

    async def run(self, signals: Signals, on_ready: Callable[[Bound, Store], Awaitable[None]] | None) -> None:
        await self.signing.check()
        await self.people.start()
        if taken := await self.outbox.take_back():
            log.warning("leases_taken_back", messages=taken)
        await self.outbox.recount()
        await self.own_servers.learn()
        await self.reaper.take_caps()
        async with trio.open_nursery() as root:
            signals.hear(*END)
            root.start_soon(self._obey_ends, signals, root)
            for task in (
                self.directory.run,
                self.people.run,
                self.hub.run,
                self.outbox.run_late_writer,
                partial(self.outbox.run_heartbeat, self.pool.wake),
                self.reaper.run,
                self._tls.watch,
                self.dkim_watch.run,
                self.operations.run,
                self._hear_announcements,
                partial(self._obey_reloads, signals),
                self._feed_watchdog,
            ):
                root.start_soon(task)
            metrics = await self._serve_metrics(root)
            async with trio.open_nursery() as delivery:
                await delivery.start(self.pool.run)
                await self._serve_doors(metrics, on_ready)
                log.info("doors_closed")
            log.info("deliveries_ended")
            with trio.move_on_after(HARD_STOP_MARGIN_S, shield=True), suppress(StoreUnavailable):
                await self.outbox.say_goodbye()
            root.cancel_scope.cancel()

    async def _serve_metrics(self, root: trio.Nursery) -> tuple[str, ...]:
        """The listener for Prometheus, where the settings want one; its library is loaded only then."""
        if (counted := self._metrics) is None:
            return ()
        from hepmaild.metrics_listener import MetricsListener
        from hepmaild.metrics_page import LaneFigures, Page, Sources

        counted.know_routes(route.name for route in self._settings.route)
        self._store.watch_units(counted.unit)
        sources = Sources(
            connections=lambda: {"smtp": self.smtp.sessions, "http": self.http.connections},
            lanes=lambda: {route: LaneFigures(*lane) for route, lane in self.pool.figures().items()},
            store_waiting=lambda: self._store.waiting,
            backlog=lambda: self.outbox.backlog,
            is_draining=lambda: self.lifecycle.is_draining,
        )
        census = Census(self._store, self._clock.now_us)
        page = Page(counted, sources, census)
        root.start_soon(census.run)
        root.start_soon(watch_loop, counted)
        return tuple(await root.start(MetricsListener(self._settings.metrics.listen, page.text).run))

    async def _serve_doors(
        self, metrics: tuple[str, ...], on_ready: Callable[[Bound, Store], Awaitable[None]] | None
    ) -> None:
        async with trio.open_nursery() as ingress:
            smtp = await ingress.start(self.smtp.run)
            http = await ingress.start(self._supervise_http)
            bound = Bound(
                starttls=tuple(b.address for b in smtp if not b.implicit),
                implicit_tls=tuple(b.address for b in smtp if b.implicit),
                https=tuple(http.https),
                plain_http=tuple(http.plain),
                metrics=metrics,
            )
            self.operations.bound = bound_ports(
                bound.starttls, bound.implicit_tls, bound.https, bound.plain_http, bound.metrics
            )
            if self.lifecycle.is_draining:
                return  # the signal came first: whoever waits for us must not hear "ready" after "stopping"
            spare_the_collector()
            self.lifecycle.ready.set()
            self._notifier.ready("serving")
            log.info("ready", version=__version__, pid=os.getpid(), wipes_memory=memory.is_overwritten(os.environ))
            if on_ready is not None:
                await on_ready(bound, self._store)

    async def _supervise_http(self, *, task_status: trio.TaskStatus[BoundHttp]) -> None:
        """The HTTP server is a library's: should it crash, SMTP goes on, and it is started again a few times."""
        crashes: list[float] = []
        started = False
        while True:
            try:
                await self.http.run(task_status=trio.TASK_STATUS_IGNORED if started else task_status)
            except (OSError, trio.Cancelled):
                raise
            except Exception as error:
                now = trio.current_time()
                crashes = [at for at in crashes if at > now - DOOR_WINDOW_S] + [now]
                if len(crashes) > DOOR_RESTARTS or not self.lifecycle.ready.is_set():
                    raise
                started = True
                log.exception("http_door_crashed", error=repr(error))
            else:
                return

    async def _obey_ends(self, signals: Signals, root: trio.Nursery) -> None:
        log.info("draining", signal=(await signals.take(*END)).name)
        self._notifier.stopping("draining", within_s=longest_stop_s(self._settings))
        self.lifecycle.draining.set()
        root.start_soon(self._stop_hard, root)
        root.start_soon(self.outbox.no_more_claims)
        await signals.take(*END)
        log.warning("stopping_now", reason="a second signal")
        root.cancel_scope.cancel()

    async def _stop_hard(self, root: trio.Nursery) -> None:
        await trio.sleep(self._settings.server.drain_timeout_s + HARD_STOP_MARGIN_S)
        log.warning("stopping_now", reason="drain_timeout_s is over")
        root.cancel_scope.cancel()

    async def _obey_reloads(self, signals: Signals) -> None:
        """A task of its own: a reload that waits for the store keeps no SIGTERM waiting."""
        await self.lifecycle.ready.wait()  # each ends with telling systemd so
        while True:
            await signals.take(*RELOAD)
            if not self.lifecycle.is_draining:
                await self._reload_settings()

    async def _reload_settings(self) -> None:
        """SIGHUP: certificate and settings (`config_reload` has those that need a restart); DNS is asked anew."""
        self._notifier.reloading()
        self._tls.reload()
        self.resolver.forget()
        if self._reload is not None:
            try:
                settings = self._reload()
            except ValueError as error:
                log.warning("settings_not_reloaded", error=str(error), kept="the previous ones")
            else:
                self._take_settings(settings)
                with suppress(StoreUnavailable):  # the reaper tries again
                    await self.reaper.take_caps()
                log.info("settings_reloaded")
        if not self.lifecycle.is_draining:
            self._notifier.ready("serving")

    def _take_settings(self, settings: Settings) -> None:
        if left := needs_restart(self._settings, settings):
            log.warning("restart_needed", settings=",".join(left))
        settings = until_restart(self._settings, settings)
        self.intake.settings = IntakeSettings.of(settings)
        self.directory.replace_settings(settings.sender)
        self.pool.take_settings(settings.delivery)
        self.pool.replace_routes([from_settings(route) for route in settings.route])
        self.outbox.rule, self.outbox.in_doubt = _rule(settings), settings.delivery.in_doubt
        self.reaper.plans, self.reaper.senders = settings.plans, settings.sender
        self.smtp.take_settings(settings.smtp, settings.limits)
        self.http.take_limits(settings.limits)
        self._shown = settings

    async def _hear_announcements(self) -> None:
        """Other processes and the command line: something became due, or everything may have changed."""
        async with self._store.announcements() as topics:
            async for topic in topics:
                if topic in ("people", "*"):
                    with suppress(StoreUnavailable):
                        await self.people.learn()
                if topic in ("keys", "*"):
                    self.dkim_watch.wake()
                    with suppress(StoreUnavailable):
                        await self.own_servers.learn()
                if topic in ("queue", "*"):
                    self.pool.wake()
                    with suppress(StoreUnavailable):
                        await self.outbox.recount()

    async def _feed_watchdog(self) -> None:
        """Tell systemd that the loop turns.  A loop that hangs does not get here, and is restarted."""
        interval_s = self._notifier.watchdog_s
        while interval_s:
            self._notifier.watchdog()
            await trio.sleep(interval_s / 3)


def _make_resolver(lookups: Lookups, store: Store, clock: Clock) -> Resolver:
    policies = StsPolicies(lookups, Fetcher(lookups).fetch, StsTable(store), clock.now_us)
    return Resolver(lookups, policies, random.SystemRandom().random)


def _rule(settings: Settings) -> Rule:
    """When an address that is refused for good is suppressed, and for how long."""
    return Rule(settings.delivery.suppress_after, int(settings.delivery.suppress_days * DAY_US))
