# SPDX-License-Identifier: Apache-2.0
"""What open log pages cost the mail: 500 events a second with 50 of them, and one more that never reads.

One daemon, the same offered load in turn without any page and with all of them (A B A B …); pages are websockets as
browsers open them, and take what the page's script takes.  At the end each shows what the database has.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

from bench.generator import BenchFailed, Load, built_generator
from bench.live_pages import SHOWN, LogPage, lines_of, open_socket
from bench.relay import Run, measure
from bench.report import Table, save
from bench.servers import Server, bench_settings
from tests.dashboard.visitor import Visitor, link_of, sign_in
from tests.peers.certificates import make_certificate
from tests.peers.daemon import ACCOUNT, Daemon, memory_of, open_daemon, reset_peak
from tests.peers.sink import smtp_sink

MEBI = 1024 * 1024
MOST_SLOWER = 0.10
MOST_MEMORY_MIB = 100.0  # more than before the first page was opened
EVENTS_OF_A_MESSAGE = 2  # accepted, attempt
SETTLE_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """pages: that read.  events: a second, offered.  seconds: of each run."""

    pages: int = 50
    events: float = 500
    seconds: float = 20
    rounds: int = 5
    connections: int = 20


def quick(plan: Plan) -> Plan:
    """The same, only shorter."""
    return replace(plan, seconds=min(5, plan.seconds), rounds=min(2, plan.rounds))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the pages came to.  wrong: those whose end differs from the database.  more_mib: of the daemon."""

    wrong: int
    frames: int
    resyncs: int
    megabytes: float
    more_mib: float


@asynccontextmanager
async def open_pages(daemon: Daemon, visitor: Visitor, count: int) -> AsyncIterator[list[LogPage]]:
    """So many pages that read, and one that does not."""
    cookies = "; ".join(f"{name}={value}" for name, value in visitor.client.cookies.items())
    port = daemon.ports["https"]
    base = f"https://127.0.0.1:{port}"
    async with (
        httpx.AsyncClient(base_url=base, verify=False, timeout=60, headers={"Cookie": cookies}) as client,
        contextlib.AsyncExitStack() as stack,
    ):

        async def load() -> str:
            response = await client.get("/logs")
            if response.status_code != 200:
                raise BenchFailed(f"/logs: {response.status_code}")
            return response.text

        await stack.enter_async_context(open_socket(port, cookies))  # never read
        nursery = await stack.enter_async_context(trio.open_nursery())
        pages = []
        for _ in range(count):
            socket = await stack.enter_async_context(open_socket(port, cookies))
            pages.append(LogPage(socket, load, lines_of(await load())))
            nursery.start_soon(pages[-1].run)
        stack.callback(nursery.cancel_scope.cancel)  # before their sockets are closed
        yield pages


async def _settled(pages: list[LogPage], visitor: Visitor) -> int:
    """How many pages do not show what the server shows, once all have had time to; the store has all by now."""
    wrong = len(pages)
    deadline = trio.current_time() + SETTLE_S
    while wrong and trio.current_time() < deadline:
        await trio.sleep(0.5)
        text = (await trio.to_thread.run_sync(visitor.client.get, "/logs")).text
        truth = sorted(lines_of(text).items(), key=lambda item: (item[1][0], item[0]), reverse=True)
        if len(truth) != SHOWN or any(state != "sent" for _, (_, state) in truth):
            continue
        wrong = sum(page.shown() != truth for page in pages)
    return wrong


async def _with_pages(
    binary: Path, server: Server, load: Load, daemon: Daemon, visitor: Visitor, count: int, base_mib: float
) -> tuple[Run, Seen]:
    async with open_pages(daemon, visitor, count) as pages:
        run = await trio.to_thread.run_sync(partial(measure, binary, server, load))
        wrong = await _settled(pages, visitor)
        seen = Seen(
            wrong,
            sum(page.frames for page in pages),
            sum(page.resyncs for page in pages),
            sum(page.octets for page in pages) / 1e6,
            memory_of(daemon.pid)["peak"] / MEBI - base_mib,
        )
    return run, seen


async def _measure(
    binary: Path, server: Server, daemon: Daemon, visitor: Visitor, plan: Plan
) -> tuple[list[tuple[Run, Run]], list[Seen]]:
    """Pairs of runs without and with pages."""
    rate = plan.events / EVENTS_OF_A_MESSAGE
    load = Load(connections=plan.connections, messages=round(rate * plan.seconds), rate=rate)
    await trio.to_thread.run_sync(partial(measure, binary, server, Load(connections=plan.connections, messages=500)))
    reset_peak(daemon.pid)
    base_mib = memory_of(daemon.pid)["rss"] / MEBI
    pairs, all_seen = [], []
    for number in range(plan.rounds):
        runs: dict[bool, Run] = {}
        for with_pages in (False, True) if number % 2 == 0 else (True, False):
            if with_pages:
                runs[True], seen = await _with_pages(binary, server, load, daemon, visitor, plan.pages, base_mib)
                all_seen.append(seen)
            else:
                runs[False] = await trio.to_thread.run_sync(partial(measure, binary, server, load))
        pairs.append((runs[False], runs[True]))
    return pairs, all_seen


@contextlib.contextmanager
def open_server(database_url: str) -> Any:
    """The daemon, as the load generator sees it, and somebody who looks."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hepmaild-bench-")))
        folder.chmod(0o755)
        settings = bench_settings(make_certificate(folder))
        sink = stack.enter_context(smtp_sink())
        daemon = stack.enter_context(
            open_daemon(sink_port=sink.port, changes=settings, database_url=database_url, start=False)
        )
        key = daemon.setup(email=ACCOUNT, grant=1_000_000_000, plan="bench")
        daemon.start()
        visitor = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))))
        yield daemon, Server("hepmaild", daemon.pid, daemon.ports["starttls"], "api", key, sink), visitor


FIELDS = ("accepted_rate", "sink_rate", "cpu_ms", "dot_p50_ms", "dot_p99_ms")


def run(plan: Plan, database: str) -> int:
    """Measure and print; 1 if a target is missed."""
    from bench.drain import database_url

    began = time.monotonic()
    with built_generator() as binary, database_url(database) as url, open_server(url) as (daemon, server, visitor):
        pairs, seen = trio.run(_measure, binary, server, daemon, visitor, plan)
    table = Table(
        f"{plan.events:.0f} events a second offered ({database}), {plan.rounds} runs each",
        ("", "accepted/s", "to sink/s", "CPU-ms/msg", "dot p50 ms", "dot p99 ms"),
    )
    table.add("no page open", *(statistics.median(getattr(a, f) for a, _ in pairs) for f in FIELDS))
    name = f"{plan.pages} pages and one that never reads"
    table.add(name, *(statistics.median(getattr(b, f) for _, b in pairs) for f in FIELDS))
    ratios = [statistics.median(getattr(b, f) / getattr(a, f) for a, b in pairs) for f in FIELDS]
    table.add("pages ÷ none", *ratios)
    table.show()
    wrong, more = sum(s.wrong for s in seen), max(s.more_mib for s in seen)
    print(
        f"\n  frames taken: {sum(s.frames for s in seen):,}, {sum(s.megabytes for s in seen):,.0f} MB on the wire, "
        f"read anew: {sum(s.resyncs for s in seen):,}; {time.monotonic() - began:.0f} s in all"
    )
    good = min(ratios[:2]) >= 1 - MOST_SLOWER and not wrong and more <= MOST_MEMORY_MIB
    print(
        f"  send rate at least {1 - MOST_SLOWER:.2f} of that without pages: {min(ratios[:2]):.2f}; memory at most "
        f"{MOST_MEMORY_MIB:.0f} MiB more: {more:.0f}; pages that end with something untrue: {wrong}: "
        + ("ok" if good else "MISSED")
    )
    save(
        "live",
        {"plan": asdict(plan), "runs": [[asdict(a), asdict(b)] for a, b in pairs], "seen": [asdict(s) for s in seen]},
    )
    return 0 if good else 1
