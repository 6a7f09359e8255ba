# SPDX-License-Identifier: Apache-2.0
"""How fast a backlog drains: mail is taken while the next hop is down, then the next hop comes up.

The backlog is made through the real door, with the same load generator, TLS, AUTH, debit and fsync as any mail.  What
it is compared with is the rate from acceptance to the sink of the same daemon in the same run: the load generator
sends as fast as it gets replies, and the next hop works.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cpu import tree_cpu_ms
from bench.generator import BenchFailed, Load, built_generator, open_generator
from bench.relay import measure
from bench.report import Table, save
from bench.servers import Server, open_hepmaild
from tests.peers.certificates import make_certificate
from tests.peers.processes import wait_until

TARGET = 0.8
RETRY_S = 5  # the few that were tried while the next hop was down are due again soon
QUIET_S = 1.0


@dataclass(frozen=True, slots=True)
class Drained:
    """One backlog that drained.  rate: messages a second at the sink, from its first to its last.

    made_rate: at which the backlog was accepted.  began_after_s: from the next hop being up to its first message.
    """

    messages: int
    made_rate: float
    began_after_s: float
    elapsed_s: float
    rate: float
    cpu_ms: float


def _fill(binary: Path, server: Server, count: int, connections: int, prefix: str) -> float:
    """Have so many accepted; at which rate."""
    load = Load(connections=connections, messages=count, deadline_s=3600)
    with open_generator(
        binary, server.port, load, user=server.user, password=server.password, prefix=prefix
    ) as generator:
        generator.go()
        result = generator.result()
    if result["accepted"] != count:
        raise BenchFailed(f"not everything was accepted: {result}")
    return float(count / result["elapsed_s"])


def drain_once(binary: Path, server: Server, count: int, connections: int, prefix: str) -> Drained:
    """Next hop down, a backlog, next hop up; until the last of it is at the sink."""
    server.sink.stop()
    made_rate = _fill(binary, server, count, connections, prefix)
    cpu_before = tree_cpu_ms(server.pid)
    server.sink.start()
    up_at = time.monotonic()
    server.sink.child.wait_for(lambda: server.sink.count() > 0, "the first message of the backlog", timeout_s=180)
    first_at, ahead = time.monotonic(), server.sink.count()
    server.sink.wait_for(count, timeout_s=60 + count / 20)
    last_at = time.monotonic()
    time.sleep(QUIET_S)  # what comes twice comes late
    if server.sink.count() != count:
        raise BenchFailed(f"{server.sink.count():,} messages at the sink instead of {count:,}")
    return Drained(
        messages=count,
        made_rate=made_rate,
        began_after_s=first_at - up_at,
        elapsed_s=last_at - first_at,
        rate=(count - ahead) / (last_at - first_at),
        cpu_ms=(tree_cpu_ms(server.pid) - cpu_before) / count,
    )


def run(count: int, connections: int, messages: int, rounds: int, database: str) -> int:
    """Measure, print; 1 if the target is missed.  messages: in each run of accepting and relaying."""
    load = Load(connections=connections, messages=messages)
    reached: list[float] = []
    cpu: list[float] = []
    drained: list[Drained] = []
    with contextlib.ExitStack() as stack:
        binary = stack.enter_context(built_generator())
        url = stack.enter_context(database_url(database))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hepmaild-bench-")))
        folder.chmod(0o755)
        changes = {"delivery": {"retry_after_s": [RETRY_S]}}
        server = stack.enter_context(open_hepmaild(make_certificate(folder), changes=changes, database_url=url))
        measure(binary, server, Load(connections=connections, messages=500))
        for number in range(rounds):
            before = measure(binary, server, load)
            drained.append(drain_once(binary, server, count, connections, f"drain{number}"))
            _wait_empty(server)
            after = measure(binary, server, load)
            reached.append((before.sink_rate + after.sink_rate) / 2)
            cpu.append((before.cpu_ms + after.cpu_ms) / 2)
    ratio = statistics.median(d.rate / rate for d, rate in zip(drained, reached, strict=True))
    table = Table(
        f"a backlog of {count:,} messages drains ({database}, {connections} connections filled it)",
        ("", "messages/s", "CPU-ms/msg", "began after s", "took s", "(filled at msg/s)"),
    )
    table.add("accept to sink, before and after", statistics.median(reached), statistics.median(cpu), "", "", "")
    fields = ("rate", "cpu_ms", "began_after_s", "elapsed_s", "made_rate")
    table.add("drain", *(statistics.median(getattr(d, field) for d in drained) for field in fields))
    table.show()
    good = ratio >= TARGET
    print(f"\n  drain ÷ accept to sink: {ratio:.2f}; target at least {TARGET}: {'ok' if good else 'MISSED'}")
    results: dict[str, Any] = {"accept_to_sink": reached, "drained": [asdict(d) for d in drained], "ratio": ratio}
    save("drain", results)
    return 0 if good else 1


def _wait_empty(server: Server) -> None:
    """Until the daemon has come to rest: what it still writes belongs to the drain."""
    last = [tree_cpu_ms(server.pid), time.monotonic()]

    def quiet() -> bool:
        now = tree_cpu_ms(server.pid)
        if now > last[0] + 10:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > QUIET_S

    wait_until(quiet, "the daemon to come to rest", timeout_s=120)


def database_url(name: str) -> contextlib.AbstractContextManager[str]:
    """The URL of a new database of that engine."""
    if name == "sqlite":
        return contextlib.nullcontext("sqlite:///hepmaild.db")
    return _postgresql()


@contextlib.contextmanager
def _postgresql() -> Any:
    from tests.peers import postgres

    with postgres.open_server() as server, postgres.open_database(server) as url:
        yield url
