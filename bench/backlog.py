# SPDX-License-Identifier: Apache-2.0
"""What a million waiting messages cost the others: rate of accepting, memory, claims, `queue stats`.

Two daemons side by side, each with its own database, measured in turn: one has nothing that waits, one has a million.
The million is put there by the very unit that accepts messages (debit, ledger, event, content, queue), called a
thousand messages at a time instead of once for each SMTP transaction, which would take an hour.  A half is due and
waits for a next hop that is down, a quarter is due at ten thousand destinations of a paused route, a quarter was
deferred and is due later.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from bench.drain import database_url
from bench.generator import Load, built_generator
from bench.memory import settled
from bench.relay import Run, measure, median
from bench.report import Table, save
from bench.servers import Server, bench_settings
from hepmaild.cli.backend import LOOK_S, with_store
from hepmaild.config import Settings
from hepmaild.config_load import load
from hepmaild.mail.ids import header_message_id, message_id
from hepmaild.mail.submission import KeyIdentity, Recipient
from hepmaild.storage import claim, stats
from hepmaild.storage.accept import Accept
from hepmaild.storage.schema import account, api_key, pause, queue, recipient
from hepmaild.storage.store import Store
from hepmaild.storage.unit import UnitRunner
from tests.peers.certificates import make_certificate
from tests.peers.daemon import ACCOUNT, Daemon, open_daemon
from tests.peers.processes import free_port
from tests.peers.sink import smtp_sink

MOST_SLOWER = 0.10
MOST_MEMORY_MIB = 50.0
AT_ONCE = 1000
DESTINATIONS = 10_000
PER_SECOND = 100  # at which the million would have come in
DAY_US = 86_400_000_000
CLAIM = 256  # as the engine does
STEP_TIMES = 5


# The million


@dataclass(frozen=True, slots=True)
class Kind:
    """A part of it.  share: in fours."""

    route: str
    share: int
    by_destination: bool
    is_later: bool = False


KINDS = (Kind("dead", 2, by_destination=False), Kind("paused", 1, by_destination=True), Kind("later", 1, True, True))


def _key(conn: Connection) -> KeyIdentity:
    row = conn.execute(select(api_key)).first()
    assert row is not None
    plan = conn.execute(select(account.c.plan)).scalar_one()
    return KeyIdentity(row.id, row.name, row.last_five, row.account_id, ACCOUNT, plan, 0, row.secret_hash)


def _member(key: KeyIdentity, kind: Kind, n: int, at_us: int, content: bytes) -> Accept:
    domain = f"d{n % DESTINATIONS:05d}.example.net"
    header_id = header_message_id(os.urandom(16), "noreply@example.com")
    return Accept(
        message_id=message_id(os.urandom(8), at_us),
        account_id=key.account_id,
        key=key,
        door="smtp",
        sender="noreply@example.com",
        route=kind.route,
        reverse_path="noreply@example.com",
        subject=f"benchmark message {n}",
        header_message_id=header_id,
        size=len(content),
        smtputf8=False,
        recipients=(Recipient(f"someone{n}@{domain}"),),
        content=content,
        expires_at_us=at_us + 4 * DAY_US,
        at_us=at_us,
        messages_per_day=0,
        event=EVENT.replace("AT", str(at_us)),
        answer='{"status":"queued"}',
        destinations=(domain,) if kind.by_destination else (),
    )


# As long as the record of a message that came by SMTP.
EVENT = (
    '{"door":"smtp","peer":"127.0.0.1","session":"0123456789abcdef","tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],'
    '"helo":"client.example","size":1200,"steps":[' + ",".join(['[AT,"peer","MAIL FROM:<noreply@example.com>"]'] * 14)
) + "]}"


def _fill_step(conn: Connection, numbers: range, count: int, now_us: int, content: bytes) -> None:
    """One unit: accept a thousand."""
    runner = UnitRunner(lambda: now_us)
    key = _key(conn)
    kinds = [kind for kind in KINDS for _ in range(kind.share)]
    members, later = [], []
    for n in numbers:
        kind = kinds[n % len(kinds)]
        member = _member(key, kind, n // len(kinds), now_us - (count - n) * 1_000_000 // PER_SECOND, content)
        members.append(member)
        if kind.is_later:
            later.append(member.message_id)
    runner(conn, members)
    due_us = now_us + DAY_US // 4 + numbers.start * 1000
    conn.execute(
        update(recipient)
        .where(recipient.c.message_id.in_(later))
        .values(state="deferred", attempts=3, due_at_us=due_us, last_reply="451 4.2.0 try again later")
    )
    conn.execute(update(queue).where(queue.c.message_id.in_(later)).values(due_at_us=due_us))


def fill(settings: Settings, count: int, size_octets: int) -> float:
    """Put so many messages there; how many seconds it took.  The daemon does not run."""
    line = b"the quick brown fox jumps over the lazy dog, and over again\r\n"
    content = b"From: <noreply@example.com>\r\nSubject: benchmark\r\n\r\n" + line * (size_octets // len(line))

    async def run(store: Store) -> None:
        now_us = time.time_ns() // 1000
        await store.write(_pause, now_us)
        for start in range(0, count, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, count))
            await store.write(_fill_step, numbers, count, now_us, content)

    began = time.monotonic()
    with_store(settings, run)
    return time.monotonic() - began


def _pause(conn: Connection, now_us: int) -> None:
    conn.execute(insert(pause).values(route="paused", destination="", since_us=now_us, note="benchmark"))


# What claims cost there


class _RollBack(Exception):
    """Nothing of a measurement stays."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Median milliseconds, and what came of it."""

    ms: float
    found: int


def _timed(
    settings: Settings, fn: Callable[[Connection], int], before: Callable[[Connection], Any], times: int = STEP_TIMES
) -> Timed:
    """`fn` several times over, each in a unit that is rolled back."""
    times_ms: list[float] = []
    found = 0

    def unit(conn: Connection) -> None:
        nonlocal found
        before(conn)
        began = time.perf_counter()
        found = fn(conn)
        times_ms.append((time.perf_counter() - began) * 1000)
        raise _RollBack

    async def run(store: Store) -> None:
        for _ in range(times):
            with contextlib.suppress(_RollBack):
                await store.write(unit)

    task: Callable[[Store], Awaitable[None]] = run
    with_store(settings, task, patience_s=LOOK_S)
    return Timed(statistics.median(times_ms), found)


def _resume_all(conn: Connection) -> None:
    conn.execute(delete(pause))


def _nothing(_conn: Connection) -> None:
    return


def look(settings: Settings) -> dict[str, Timed]:
    """Claims and looks of every sort; the daemon does not run."""

    def claiming(exclude: tuple[str, ...] = (), full: int = 0) -> Callable[[Connection], int]:
        pairs = [("paused", f"d{n:05d}.example.net") for n in range(full)]

        def fn(conn: Connection) -> int:
            return len(claim.claim(conn, "bench", time.time_ns() // 1000, CLAIM, 0, exclude, pairs).jobs)

        return fn

    def due(conn: Connection) -> int:
        now_us = time.time_ns() // 1000
        found = claim.next_due_at_us(conn, now_us, ("dead",))
        return 0 if found is None else (found - now_us) // 1_000_000

    def figures(conn: Connection) -> int:
        return sum(stats.stats(conn, time.time_ns() // 1000)["by_state"].values())

    return {
        f"claim of {CLAIM} (next hop up again)": _timed(settings, claiming(), _nothing),
        "claim, that route excluded": _timed(settings, claiming(("dead",)), _nothing),
        "claim, many destinations resumed": _timed(settings, claiming(("dead",)), _resume_all),
        "the same, 500 of them full": _timed(settings, claiming(("dead",), 500), _resume_all),
        "next due (found: in so many s)": _timed(settings, due, _nothing),
        "queue stats (found: waiting)": _timed(settings, figures, _nothing, times=1),
    }


# The two daemons


@dataclass(slots=True)
class Side:
    """One of them: mail by `live` is relayed, mail by `dead` waits."""

    name: str
    daemon: Daemon
    relaying: Server
    accepting: Server


def _settings(certificate: Any, live_port: int) -> dict[str, Any]:
    settings = bench_settings(certificate)
    # The hop that is down: nobody listens there.
    hop = {"kind": "smtp", "host": "127.0.0.1", "tls": "none"}
    settings["route"] = [
        {"name": "live", "port": live_port, **hop},
        {"name": "dead", "port": free_port(), **hop},
        {"name": "paused", "kind": "mx"},
        {"name": "later", "kind": "mx"},
    ]
    settings["sender"] = [
        {"address": "live@example.com", "route": "live", "default": True},
        {"address": "dead@example.com", "route": "dead"},
    ]
    settings["delivery"] = {"retry_after_s": [3600]}
    settings["dns"] = {"servers": [f"127.0.0.1:{free_port()}"], "timeout_s": 0.2, "lifetime_s": 0.5}
    return settings


@contextlib.contextmanager
def open_side(name: str, certificate: Any, database: str, count: int, size_octets: int) -> Iterator[Side]:
    """A daemon with so much that waits."""
    with (
        smtp_sink() as sink,
        database_url(database) as url,
        open_daemon(
            sink_port=sink.port, changes=_settings(certificate, sink.port), database_url=url, start=False, name=name
        ) as daemon,
    ):
        key = daemon.setup(email=ACCOUNT, grant=1_000_000_000, plan="bench")
        if count:
            took_s = fill(load(daemon.config_path, {}), count, size_octets)
            print(f"  {count:,} messages put there in {took_s:.0f} s", flush=True)
        daemon.start(timeout_s=300)
        relaying = Server(name, daemon.pid, daemon.ports["starttls"], "api", key, sink)
        accepting = Server(name, daemon.pid, daemon.ports["starttls"], "api", key, sink, delivers=False)
        yield Side(name, daemon, relaying, accepting)


Runs = dict[str, dict[str, list[Run]]]


def _interleaved(binary: Path, sides: list[Side], loads: dict[str, Load], rounds: int) -> Runs:
    """By what is done, by side."""
    runs: Runs = {what: {side.name: [] for side in sides} for what in loads}
    for number in range(-1, rounds):
        for what, load_ in loads.items():
            # Who is first changes, so that drift favours nobody.
            for side in sides if number % 2 == 0 else sides[::-1]:
                server = side.relaying if what == "accept and relay" else side.accepting
                found = measure(binary, server, load_)
                if number >= 0:
                    runs[what][side.name].append(found)
    return runs


FIELDS = ("accepted_rate", "sink_rate", "cpu_ms", "dot_p50_ms", "dot_p99_ms")


def _show_rates(what: str, runs: dict[str, list[Run]]) -> float:
    """The table of one kind of load; the ratio of the rates of accepting."""
    table = Table(what, ("waiting", "accepted/s", "to sink/s", "CPU-ms/msg", "dot p50 ms", "dot p99 ms"))
    for name, found in runs.items():
        table.add(name, *(median(found, field) for field in FIELDS))
    pairs = list(zip(runs["many"], runs["none"], strict=True))
    ratios = [
        statistics.median(getattr(a, f) / getattr(b, f) for a, b in pairs) if median(runs["none"], f) else 0.0
        for f in FIELDS
    ]
    table.add("many ÷ none", *ratios)
    table.show()
    return ratios[0]


def _show_looks(many: dict[str, Timed], none: dict[str, Timed]) -> None:
    table = Table("what a look at the queue takes, in ms (the daemon stopped)", ("", "none", "many", "(found, many)"))
    for what, timed in many.items():
        table.add(what, none[what].ms, timed.ms, f"{timed.found:,}")
    table.show()


def run(count: int, messages: int, connections: int, rounds: int, size_octets: int, database: str) -> int:
    """Measure and print; 1 if a target is missed."""
    loads = {
        "accept and relay": Load(connections=connections, messages=messages, sender="live@example.com"),
        "accept only (its next hop is down)": Load(
            connections=connections, messages=messages, sender="dead@example.com"
        ),
    }
    with contextlib.ExitStack() as stack:
        binary = stack.enter_context(built_generator())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hepmaild-bench-")))
        folder.chmod(0o755)
        certificate = make_certificate(folder)
        sides = [
            stack.enter_context(open_side(name, certificate, database, waiting, size_octets))
            for name, waiting in (("none", 0), ("many", count))
        ]
        memory = {side.name: [settled(side.daemon.pid)["rss"]] for side in sides}
        runs = _interleaved(binary, sides, loads, rounds)
        for side in sides:
            memory[side.name].append(settled(side.daemon.pid)["rss"])
            began = time.monotonic()
            side.daemon.json("queue", "stats")
            print(f"  `hepmaild queue stats`, {side.name} waiting: {time.monotonic() - began:.1f} s", flush=True)
            side.daemon.terminate()
        looks = {side.name: look(load(side.daemon.config_path, {})) for side in sides}
    ratios = {what: _show_rates(f"{what}, {count:,} waiting and none", found) for what, found in runs.items()}
    _show_looks(looks["many"], looks["none"])
    table = Table("memory of the daemon, rss in MiB", ("waiting", "started", "after the load"))
    for name, found in memory.items():
        table.add(name, *found)
    more = [many - none for many, none in zip(memory["many"], memory["none"], strict=True)]
    table.add("more", *more)
    table.show()
    slower = min(ratios.values())
    good = slower >= 1 - MOST_SLOWER and max(more) <= MOST_MEMORY_MIB
    print(
        f"\n  rate of accepting at least {1 - MOST_SLOWER:.2f} of empty: {slower:.2f}; "
        f"memory at most {MOST_MEMORY_MIB:.0f} MiB more: {max(more):.0f}: {'ok' if good else 'MISSED'}"
    )
    results = {
        "runs": {what: {name: [asdict(r) for r in rs] for name, rs in found.items()} for what, found in runs.items()},
        "looks": {name: {what: asdict(timed) for what, timed in found.items()} for name, found in looks.items()},
        "memory": memory,
    }
    save("backlog", results)
    return 0 if good else 1
