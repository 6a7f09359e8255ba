# SPDX-License-Identifier: Apache-2.0
"""How much memory the daemon needs: idle, with many idle sessions, with large messages at once, with a long queue."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.cpu import tree_pids
from bench.generator import BenchFailed, Load, built_generator, open_generator
from bench.report import Table, save
from bench.servers import Server, open_hepmaild
from tests.peers.certificates import make_certificate
from tests.peers.daemon import memory_of, reset_peak
from tests.peers.processes import free_port, wait_until

MEBI = 1024 * 1024
LIMITS = {"idle": 100, "sessions": 200, "large": 400, "waiting": 50}
SESSIONS = 1000
LARGE_CLIENTS = 20
LARGE_OCTETS = 25 * MEBI - 4096


def tree_memory(root: int) -> dict[str, float]:
    """Of a process and its descendants, in MiB: rss, pss and peak."""
    found = {"rss": 0.0, "pss": 0.0, "peak": 0.0}
    for pid in tree_pids(root):
        with contextlib.suppress(OSError):
            for name, octets in memory_of(pid).items():
                found[name] += octets / MEBI
    return found


@contextlib.contextmanager
def _daemon(**options: Any) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="hepmaild-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with open_hepmaild(make_certificate(folder), **options) as server:
            yield server


def settled(pid: int) -> dict[str, float]:
    """The memory once it has stopped changing."""
    last = tree_memory(pid)
    changed_at = time.monotonic()

    def settled() -> bool:
        nonlocal last, changed_at
        now = tree_memory(pid)
        if abs(now["rss"] - last["rss"]) > 0.5:
            last, changed_at = now, time.monotonic()
        return time.monotonic() - changed_at > 1

    wait_until(settled, "memory to settle", timeout_s=60)
    return tree_memory(pid)


def idle(_binary: Path) -> dict[str, float]:
    """Freshly started, nobody there."""
    with _daemon() as server:
        return settled(server.pid)


def sessions(binary: Path) -> dict[str, float]:
    """A thousand authenticated TLS sessions that do nothing."""
    with _daemon() as server:
        load = Load(connections=SESSIONS, messages=1)
        with open_generator(
            binary, server.port, load, user="api", password=server.password, prefix="idle", hold_only=True
        ):
            return settled(server.pid)


def large(binary: Path) -> dict[str, float]:
    """Twenty clients each send 25 MB at the same moment; the highest memory on the way."""
    with _daemon() as server:
        load = Load(connections=LARGE_CLIENTS, messages=LARGE_CLIENTS, size_octets=LARGE_OCTETS)
        with open_generator(
            binary, server.port, load, user="api", password=server.password, prefix="large"
        ) as generator:
            reset_peak(server.pid)
            generator.go()
            result = generator.result()
            if result["accepted"] != LARGE_CLIENTS:
                raise BenchFailed(f"not every large message was accepted: {result}")
            server.sink.wait_for(LARGE_CLIENTS, timeout_s=300)
            return tree_memory(server.pid)


def waiting(binary: Path, count: int) -> dict[str, float]:
    """A long queue behind a next hop that is down, against a queue of none after the same warm-up."""
    dead_hop = {"name": "sink", "kind": "smtp", "host": "127.0.0.1", "port": free_port(), "tls": "none"}
    changes = {"route": [dead_hop], "delivery": {"retry_after_s": [86400]}}
    with _daemon(changes=changes) as server:
        _send(binary, server, 500, "warm")
        before = settled(server.pid)
        _send(binary, server, count, "waiting")
        after = settled(server.pid)
    return {
        "rss": after["rss"] - before["rss"],
        "pss": after["pss"] - before["pss"],
        "peak": after["peak"] - before["rss"],
    }


def _send(binary: Path, server: Server, count: int, prefix: str) -> None:
    load = Load(connections=50, messages=count, size_octets=1024, deadline_s=1800)
    with open_generator(binary, server.port, load, user="api", password=server.password, prefix=prefix) as generator:
        generator.go()
        result = generator.result()
        if result["accepted"] != count:
            raise BenchFailed(f"not everything was accepted: {result}")


def run(only: tuple[str, ...], waiting_count: int) -> int:
    """Measure and print; 1 if a limit is exceeded."""
    results: dict[str, Any] = {}
    table = Table("memory of the daemon in MiB", ("case", "rss", "pss", "peak", "limit", ""))
    with built_generator() as binary:
        measurements = {
            "idle": lambda: idle(binary),
            "sessions": lambda: sessions(binary),
            "large": lambda: large(binary),
            "waiting": lambda: waiting(binary, waiting_count),
        }
        titles = {
            "idle": "idle",
            "sessions": f"{SESSIONS:,} idle TLS sessions",
            "large": f"25 MB from each of {LARGE_CLIENTS} clients (peak)",
            "waiting": f"{waiting_count:,} messages waiting (more than none)",
        }
        good = True
        for name in only:
            found = measurements[name]()
            results[name] = found
            value = found["peak"] if name == "large" else found["rss"]
            good &= value < LIMITS[name]
            verdict = "ok" if value < LIMITS[name] else "TOO MUCH"
            table.add(titles[name], found["rss"], found["pss"], found["peak"], float(LIMITS[name]), verdict)
    table.show()
    save("memory", results)
    return 0 if good else 1
