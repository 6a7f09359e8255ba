# SPDX-License-Identifier: Apache-2.0
"""Accepting and relaying, beside Postfix: rates, processor time, and how long the reply to the final dot takes."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cpu import tree_cpu_ms
from bench.generator import BenchFailed, Load, built_generator, open_generator
from bench.report import Table, save
from bench.servers import Server, open_hepmaild, open_postfix
from tests.peers.certificates import make_certificate
from tests.peers.processes import wait_until

_run_number = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run.  Rates in messages a second; times in milliseconds; cpu for each message, whole tree."""

    server: str
    connections: int
    accepted_rate: float
    sink_rate: float
    cpu_ms: float
    generator_cpu_ms: float
    sink_cpu_ms: float
    dot_p50_ms: float
    dot_p99_ms: float
    due_p99_ms: float


def measure(binary: Path, server: Server, load: Load) -> Run:
    """Send a load; wait until the sink has all of it; then read the clocks."""
    prefix = f"{server.name.partition(',')[0]}-{next(_run_number)}"
    before_sink = server.sink.count()
    with open_generator(
        binary, server.port, load, user=server.user, password=server.password, prefix=prefix
    ) as generator:
        cpu_before, sink_cpu_before = tree_cpu_ms(server.pid), tree_cpu_ms(server.sink.pid)
        started = _clock()
        generator.go()
        result = generator.result()
        if result["accepted"] != load.messages:
            raise BenchFailed(f"{server.name}: not everything was accepted: {result}")
        if server.delivers:
            server.sink.wait_for(before_sink + load.messages, timeout_s=load.deadline_s)
        elapsed_s = _clock() - started
        # The queue's own clean-up after the last delivery belongs to the message too.
        _wait_quiet(server)
        cpu_ms = tree_cpu_ms(server.pid) - cpu_before
        sink_cpu_ms = tree_cpu_ms(server.sink.pid) - sink_cpu_before
    return Run(
        server=server.name,
        connections=load.connections,
        accepted_rate=load.messages / result["elapsed_s"],
        sink_rate=load.messages / elapsed_s if server.delivers else 0.0,
        cpu_ms=cpu_ms / load.messages,
        generator_cpu_ms=result["cpu_ms"] / load.messages,
        sink_cpu_ms=sink_cpu_ms / load.messages,
        dot_p50_ms=result["dot_p50_ms"],
        dot_p99_ms=result["dot_p99_ms"],
        due_p99_ms=result["due_p99_ms"],
    )


def _clock() -> float:
    import time

    return time.monotonic()


def _wait_quiet(server: Server) -> None:
    """Until the tree has used no processor time for a moment."""
    last = [tree_cpu_ms(server.pid), _clock()]

    def quiet() -> bool:
        now = tree_cpu_ms(server.pid)
        if now > last[0] + 10:
            last[:] = [now, _clock()]
        return _clock() - last[1] > 0.3

    with contextlib.suppress(Exception):
        wait_until(quiet, "the server to come to rest", timeout_s=10)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    connections: tuple[int, ...] = (20, 100)
    messages: int = 3000
    rounds: int = 5
    warm_up: int = 300
    pipelining: bool = False
    servers: tuple[str, ...] = ("postfix", "hepmaild", "hepmaild, after-relay")
    accept_only: bool = True
    loads: tuple[float, ...] = (0.3, 0.6)  # offered to all alike, as parts of Postfix's rate


@contextlib.contextmanager
def open_servers(names: tuple[str, ...], *, accept_only: bool = False) -> Iterator[list[Server]]:
    """Start the named servers side by side."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hepmaild-bench-")))
        folder.chmod(0o755)
        certificate = make_certificate(folder)
        servers = []
        for name in names:
            if name == "postfix":
                servers.append(stack.enter_context(open_postfix(certificate, accept_only=accept_only)))
            else:
                reply = "after-relay" if "after-relay" in name else "on-commit"
                servers.append(stack.enter_context(open_hepmaild(certificate, reply=reply, accept_only=accept_only)))
        yield servers


def interleaved(binary: Path, servers: list[Server], load: Load, plan: Plan) -> dict[str, list[Run]]:
    """A B C C B A …, after one warm-up each: whoever runs behind another finds what that one left to be written."""
    runs: dict[str, list[Run]] = {server.name: [] for server in servers}
    for server in servers:
        measure(binary, server, Load(connections=load.connections, messages=plan.warm_up, pipelining=load.pipelining))
    for number in range(plan.rounds):
        for server in servers if number % 2 == 0 else reversed(servers):
            runs[server.name].append(measure(binary, server, load))
    return runs


def median(runs: list[Run], field: str) -> float:
    return float(statistics.median(getattr(run, field) for run in runs))


COLUMNS = ("accepted_rate", "sink_rate", "cpu_ms", "dot_p50_ms", "dot_p99_ms", "generator_cpu_ms", "sink_cpu_ms")
TITLES = ("accepted/s", "to sink/s", "CPU-ms/msg", "dot p50 ms", "dot p99 ms", "(generator CPU-ms)", "(sink CPU-ms)")


def _show(title: str, runs: dict[str, list[Run]]) -> None:
    table = Table(title, ("server", *TITLES))
    for name, found in runs.items():
        table.add(name, *(median(found, field) for field in COLUMNS))
    base = runs.get("postfix")
    if base:
        for name, found in runs.items():
            if name == "postfix":
                continue
            # Ratios of neighbours in time, then their median: drift of the machine falls out.
            table.add(f"{name} ÷ postfix", *(_ratio(found, base, field) for field in COLUMNS[:5]), "", "")
    table.show()


def _ratio(found: list[Run], base: list[Run], field: str) -> float:
    pairs = [
        getattr(ours, field) / getattr(theirs, field)
        for ours, theirs in zip(found, base, strict=True)
        if getattr(theirs, field)
    ]
    return statistics.median(pairs) if pairs else 0.0


def run(plan: Plan) -> dict[str, Any]:
    """The whole comparison; prints tables; returns all runs."""
    results: dict[str, Any] = {}
    with built_generator() as binary:

        def compare(servers: list[Server], key: str, title: str, connections: int, rate: float = 0) -> float:
            """Measure, show and keep; what Postfix (without it, the first server) brought to the sink in a second."""
            load = Load(connections=connections, messages=plan.messages, rate=rate, pipelining=plan.pipelining)
            runs = interleaved(binary, servers, load, plan)
            _show(title, runs)
            results[key] = {name: [asdict(run) for run in found] for name, found in runs.items()}
            return median(runs.get("postfix") or next(iter(runs.values())), "sink_rate")

        with open_servers(plan.servers) as servers:
            rates = {
                n: compare(servers, f"relay-{n}", f"relay, {n} kept connections, {Load().size_octets} octets", n)
                for n in plan.connections
            }
            for share, n in itertools.product(plan.loads, plan.connections):
                rate = rates[n] * share
                title = f"the same offered load, {rate:.0f}/s over {n} connections"
                compare(servers, f"offered-{share:g}-{n}", title, n, rate)
        if plan.accept_only:
            names = tuple(name for name in plan.servers if "after-relay" not in name)
            with open_servers(names, accept_only=True) as servers:
                for n in plan.connections:
                    title = f"accept only (nothing is relayed), {n} kept connections"
                    compare(servers, f"accept-only-{n}", title, n)
    save("relay", results)
    return results
