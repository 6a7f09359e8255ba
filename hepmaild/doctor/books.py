# SPDX-License-Identifier: Apache-2.0
"""Checks of the database, its schema, and the queue in it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from hepmaild.config import Migrate, Settings
from hepmaild.counted import are, counted
from hepmaild.doctor.checks import Check, fail, ok, warn
from hepmaild.doctor.machine import show_octets
from hepmaild.errors import StoreUnavailable
from hepmaild.own_routes import ALL, is_own
from hepmaild.storage import gauges, health, migrate
from hepmaild.storage import queue as rows
from hepmaild.storage import uploads as upload_rows
from hepmaild.storage.store import Store

SLOW_S = 1.0
OVERDUE_S = 600.0
STUCK_MARGIN_S = 120.0
BACKLOG_WARN_SHARE = 0.8


def no_database(settings: Settings, problem: str) -> list[Check]:
    """It could not be opened."""
    return [fail("database", problem, _look_at(settings))]


def _look_at(settings: Settings) -> str:
    if settings.database.url.startswith("sqlite"):
        return f"look at the disk and the rights of the files in {settings.server.state_dir}"
    return "look whether PostgreSQL runs, and whether database.url names it rightly"


async def database(settings: Settings, store: Store) -> list[Check]:
    """Reachable, of this version's schema, writable."""
    engine = "SQLite" if store.is_sqlite else "PostgreSQL"
    due = await _schema(settings, store)
    if due is not None:
        return [ok("database", f"{engine} answers"), due]
    began = trio.current_time()
    try:
        await store.check()
    except StoreUnavailable as error:
        return [fail("database", f"{engine} answers, but nothing can be written: {error}", _look_at(settings))]
    took_s = trio.current_time() - began
    said = f"{engine} answers and can be written ({took_s * 1000:.0f} ms)"
    head = ok("schema", f"{migrate.head()}, as this version needs it")
    if took_s > SLOW_S:
        return [warn("database", said, "find out what keeps the disk busy: every message waits that long"), head]
    return [ok("database", said), head]


async def _schema(settings: Settings, store: Store) -> Check | None:
    try:
        if not await store.schema_is_due():
            return None
    except migrate.SchemaTooNew as error:
        return fail("schema", str(error), "run the version of hepmaild that made it, or a newer one")
    except migrate.SchemaUnfit as error:
        return fail("schema", str(error), "let database.url name a database of its own")
    if settings.database.migrate is Migrate.AUTO:
        return warn("schema", "it is not there yet, or an older one", "the daemon makes it at its next start")
    return fail("schema", "it is not there yet, or an older one", "run `hepmaild db upgrade`")


async def queue(settings: Settings, store: Store, now_us: Callable[[], int]) -> list[Check]:
    """Nothing due for long, nothing held by the dead, room for more."""
    entries = await store.read(gauges.entries, now_us())
    leases = await store.read(health.leases, now_us(), several=not store.is_sqlite)
    # What accounts do with their own servers is theirs, and may be thousands.
    paused = [p for p in await store.read(rows.pauses) if not is_own(p["route"])]
    stopped = {p["route"] for p in paused if not p["destination"]} | {ALL}
    found = [_overdue(entries, stopped), _leases(settings, leases, now_us()), _backlog(settings, entries)]
    if paused:
        named = ", ".join(
            f"{p['destination']} of route {p['route']}" if p["destination"] else f"route {p['route']}"
            for p in paused[:10]
        )
        resume = "resume what should go on, on the page Queue or by `hepmaild queue resume`"
        found.append(warn("pauses", f"paused: {named}{' and more' if len(paused) > 10 else ''}", resume))
    return found


def _overdue(entries: dict[str, gauges.Entries], stopped: set[str]) -> Check:
    waiting = sum(e.leased + e.due + e.scheduled for e in entries.values())
    said = f"{waiting:,} wait" if waiting else "nothing waits"
    late = {name: e.overdue_s for name, e in entries.items() if e.overdue_s > OVERDUE_S and name not in stopped}
    if not late:
        return ok("queue", said)
    worst = max(late, key=lambda name: late[name])
    todo = f"look at route {worst} (`hepmaild route test {worst}`), and whether the daemon runs"
    return warn("queue", f"{said}; on route {worst} something has been due for {late[worst] / 60:,.0f} minutes", todo)


def _leases(settings: Settings, leases: health.Leases, now_us: int) -> Check:
    longest_s = settings.delivery.attempt_timeout_s + STUCK_MARGIN_S
    age_s = 0.0 if leases.oldest_us is None else max(0.0, (now_us - leases.oldest_us) / 1e6)
    if leases.orphans:
        todo = "wait a minute: another process takes them over; if none does, restart one"
        return warn("leases", f"{leases.orphans:,} {are(leases.orphans)} held by processes that are not alive", todo)
    if age_s > longest_s:
        todo = "restart the daemon: it takes them back at its start; tell the authors"
        return fail("leases", f"one is held for {age_s / 60:,.0f} minutes, longer than an attempt may take", todo)
    return ok(
        "leases",
        f"{counted(leases.held, 'message')} {are(leases.held)} being worked on"
        if leases.held
        else "nobody works on anything",
    )


def _backlog(settings: Settings, entries: dict[str, gauges.Entries]) -> Check:
    limit = settings.limits.backlog
    waiting = sum(e.leased + e.due + e.scheduled for e in entries.values())
    said = f"{waiting:,} of at most {limit:,} (limits.backlog)"
    if waiting >= limit:
        todo = "new mail is refused: find out which route is stuck on the page Queue, or raise limits.backlog"
        return fail("backlog", said, todo)
    if waiting >= limit * BACKLOG_WARN_SHARE:
        return warn("backlog", said, "soon new mail is refused: find out which route is stuck")
    return ok("backlog", said)


async def uploads(settings: Settings, store: Store) -> list[Check]:
    """What they take: they lie in the database, which is where the disk fills."""
    kept = await store.read(upload_rows.kept)
    most = f"at most {show_octets(settings.limits.upload_bytes_per_account)} each (limits.upload_bytes_per_account)"
    if not kept.files:
        return [ok("uploads", f"none is kept; accounts may have {most}")]
    said = f"{counted(kept.files, 'file')} of {counted(kept.accounts, 'account')} take {show_octets(kept.octets)}"
    fullest = f"the most that one account has is {show_octets(kept.most)}"
    return [ok("uploads", f"{said} in the database; {fullest}, of {most}")]
