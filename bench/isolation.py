# SPDX-License-Identifier: Apache-2.0
"""Whether next hops in trouble delay the others: ten routes, or a thousand destinations of one route, of which three
are bad.

One hangs (it takes TCP connections and never says a word), one refuses connections, one answers 451 to every RCPT for
ever.  Runs with and without the bad ones take turns, each with a fresh daemon and the same load at the same offered
rate; what is compared is the mail of all the others, from the moment its content left the load generator until it is
at the sink.  Good next hops are sent one message each before the clock starts; the bad ones get their first mail with
it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cpu import tree_cpu_ms
from bench.generator import BenchFailed, Load, built_generator, open_generator
from bench.report import Table, save
from bench.servers import Server, open_hepmaild
from tests.peers.certificates import Certificate, make_certificate
from tests.peers.nameservers import open_nameservers
from tests.peers.processes import Child, free_port, greets, open_folder, wait_until

ROOT = Path(__file__).resolve().parent.parent
MOST = 1.10  # times and rates may be so much worse
ROUTES = 10
DESTINATIONS = 1000
TTL_S = 3600  # also of what is not there: most of them have neither IPv6 nor MTA-STS


@dataclass(frozen=True, slots=True)
class Target:
    """Who writes to whom, and where that mail ends."""

    sender: str
    recipient: str
    address: str  # host:port


@dataclass(frozen=True, slots=True)
class Scene:
    """What is measured.  targets: the first three may be bad: one hangs, one refuses, one defers.

    weight: how many times its even share each of these three gets.
    """

    title: str
    targets: tuple[Target, ...]
    changes: dict[str, Any]
    weight: int = 1

    @property
    def bad(self) -> tuple[Target, Target, Target]:
        return self.targets[0], self.targets[1], self.targets[2]

    @property
    def others(self) -> tuple[Target, ...]:
        return self.targets[3:]

    def mail(self) -> list[Target]:
        """One round of the load, in an order of chance that is the same in every run."""
        every = [*self.others, *(self.bad * self.weight)]
        random.Random(1).shuffle(every)
        return every


@dataclass(frozen=True, slots=True)
class Run:
    """Of the others' mail: p50, p99 in milliseconds, rate in messages a second.  cpu_ms: of the daemon, all its work,
    for each message offered.  bad: messages that the three took."""

    p50_ms: float
    p99_ms: float
    rate: float
    cpu_ms: float
    others: int
    bad: int


# What there is


def routes_scene(port: int) -> Scene:
    """Ten routes, each with its own next hop and sender."""
    targets = tuple(
        Target(f"sender{n}@example.com", f"someone@route{n}.test", f"127.77.0.{n + 1}:{port}") for n in range(ROUTES)
    )
    routes, senders = [], []
    for n, target in enumerate(targets):
        host = target.address.partition(":")[0]
        routes.append({"name": f"route{n}", "kind": "smtp", "host": host, "port": port, "tls": "none"})
        senders.append({"address": target.sender, "route": f"route{n}"})
    return Scene(f"{ROUTES} routes", targets, {"route": routes, "sender": senders})


def destinations_scene(port: int, resolver_port: int, weight: int) -> Scene:
    """One route of kind `mx`, a thousand domains, each with its own MX host and address."""
    changes = {
        "route": [{"name": "direct", "kind": "mx", "port": port}],
        "sender": [{"address": "noreply@example.com", "route": "direct"}],
        "dns": {"servers": [f"127.0.0.1:{resolver_port}"]},
    }
    targets = tuple(
        Target("noreply@example.com", f"someone@d{n:04d}.many.test", f"{_host(n)}:{port}") for n in range(DESTINATIONS)
    )
    return Scene(f"{DESTINATIONS:,} destinations of one route", targets, changes, weight)


def _host(n: int) -> str:
    return f"127.78.{n // 250}.{n % 250 + 1}"


def many_zone() -> str:
    """The domains of `destinations_scene`."""
    lines = [f"d{n:04d} {TTL_S} MX 10 mx{n:04d}\nmx{n:04d} {TTL_S} A {_host(n)}\n" for n in range(DESTINATIONS)]
    return "".join(lines)


@contextlib.contextmanager
def open_hops(scene: Scene, *, with_bad: bool) -> Iterator[Path]:
    """All next hops; the file that the sink notes in."""
    hangs, refuses, defers = scene.bad
    silent = {hangs.address, refuses.address} if with_bad else set()
    with open_folder("hops") as folder, contextlib.ExitStack() as stack:
        (folder / "addresses").write_text("\n".join(t.address for t in scene.targets if t.address not in silent))
        (folder / "defer").write_text(defers.address if with_bad else "")
        if with_bad:
            # The kernel takes the connections; nobody ever says a word.
            host, _, port = hangs.address.partition(":")
            stack.enter_context(socket.create_server((host, int(port)), backlog=4096))
        log = folder / "log"
        log.touch()
        command = [sys.executable, "-m", "bench.timing_sink", "--addresses", folder / "addresses"]
        command += ["--defer", folder / "defer", "--log", log]
        child = Child("timing-sink", command, folder, env={"PYTHONPATH": str(ROOT)})
        stack.callback(child.close)
        host, _, port = scene.targets[-1].address.partition(":")
        child.wait_for(lambda: greets(int(port), host=host), "the sink to answer")
        yield log


# One run


def _lines(log: Path) -> list[tuple[int, int, str]]:
    """When each message came, when it was sent, to whom."""
    whole = log.read_bytes().rpartition(b"\n")[0]
    split = (line.split() for line in whole.splitlines())
    return [(int(at_us), int(sent_us), to.decode()) for at_us, sent_us, to in split]


def _send(binary: Path, server: Server, load: Load, prefix: str) -> None:
    with open_generator(
        binary, server.port, load, user=server.user, password=server.password, prefix=prefix
    ) as generator:
        generator.go()
        result = generator.result()
    if result["accepted"] != load.messages:
        raise BenchFailed(f"not everything was accepted: {result}")


def _write_targets(path: Path, targets: Sequence[Target]) -> str:
    path.write_text("".join(f"{t.sender} {t.recipient}\n" for t in targets))
    return str(path)


def _wait_for(log: Path, count: int) -> None:
    """Until so many messages are at the sink."""
    wait_until(lambda: log.read_bytes().count(b"\n") >= count, f"{count:,} messages at the sink", timeout_s=120)


def measure(binary: Path, scene: Scene, certificate: Certificate, plan: Plan, *, with_bad: bool) -> Run:
    """A fresh daemon, a warm-up by the good ones, the load."""
    names = {t.recipient for t in scene.others}
    mail = scene.mail()
    count = int(plan.rate * plan.seconds)
    expected = sum(t.recipient in names for t in itertools.islice(itertools.cycle(mail), count))
    # The next run begins when this daemon has ended: what hangs is not waited for.
    quick = {"server": {"drain_timeout_s": 1}, "delivery": {"retry_after_s": [plan.retry_after_s]}}
    changes = {**scene.changes, **quick}
    with (
        tempfile.TemporaryDirectory(prefix="hepmaild-bench-") as name,
        open_hops(scene, with_bad=with_bad) as log,
        open_hepmaild(certificate, changes=changes) as server,
    ):
        few = list(scene.others) * -(-plan.warm_up // len(scene.others))
        targets = _write_targets(Path(name, "warm-up"), few)
        _send(binary, server, Load(20, len(few), rate=plan.rate, targets=targets), "warm")
        _wait_for(log, len(few))
        before, cpu_before = len(_lines(log)), tree_cpu_ms(server.pid)
        _send(binary, server, Load(20, count, rate=plan.rate, targets=_write_targets(Path(name, "load"), mail)), "load")

        def others() -> list[tuple[int, int, str]]:
            found = [line for line in _lines(log)[before:] if line[2] in names]
            return found if len(found) >= expected else []

        found = wait_until(others, "the others' mail at the sink", timeout_s=120)
        cpu_ms = (tree_cpu_ms(server.pid) - cpu_before) / count
        bad = len(_lines(log)) - before - len(found)
    if len(found) != expected:
        raise BenchFailed(f"{len(found):,} messages of the others instead of {expected:,}")
    return _run_of(found, cpu_ms, bad)


def _run_of(found: list[tuple[int, int, str]], cpu_ms: float, bad: int) -> Run:
    times_ms = sorted((at_us - sent_us) / 1000 for at_us, sent_us, _ in found)
    span_s = (max(line[0] for line in found) - min(line[1] for line in found)) / 1e6
    return Run(
        p50_ms=statistics.median(times_ms),
        p99_ms=times_ms[int(0.99 * (len(times_ms) - 1) + 0.5)],
        rate=len(found) / span_s,
        cpu_ms=cpu_ms,
        others=len(found),
        bad=bad,
    )


# All of them


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.  rate: offered, messages a second.  weight: see `Scene`, for the destinations."""

    rate: float = 150
    seconds: float = 30
    rounds: int = 5
    warm_up: int = 500
    retry_after_s: int = 10
    weight: int = 20
    only: tuple[str, ...] = ("routes", "destinations")


FIELDS = ("p50_ms", "p99_ms", "rate", "cpu_ms")


def _compare(scene: Scene, runs: dict[str, list[Run]], plan: Plan) -> bool:
    """Print the table; whether the target is met."""
    table = Table(
        f"{scene.title}, {plan.rate:.0f} messages/s offered for {plan.seconds:.0f} s: the mail of the others",
        ("", "p50 ms", "p99 ms", "to sink/s", "(CPU-ms/msg)", "(messages)", "(to the three)"),
    )
    for name, found in runs.items():
        counts = (statistics.median(float(run.others) for run in found), statistics.median(float(r.bad) for r in found))
        table.add(name, *(statistics.median(getattr(run, field) for run in found) for field in FIELDS), *counts)
    without, with_bad = runs["all good"], runs["three bad"]
    ratios = {
        field: statistics.median(
            getattr(b, field) / getattr(a, field) for a, b in zip(without, with_bad, strict=True) if getattr(a, field)
        )
        for field in FIELDS
    }
    table.add("three bad ÷ all good", *(ratios[field] for field in FIELDS), "", "")
    if len(without) > 1:
        pairs = list(itertools.pairwise(without))
        noise = [statistics.median(getattr(b, f) / getattr(a, f) for a, b in pairs) for f in FIELDS]
        table.add("(all good ÷ all good before: noise)", *noise, "", "")
    table.show()
    good = ratios["p50_ms"] <= MOST and ratios["p99_ms"] <= MOST and ratios["rate"] >= 1 / MOST
    print(f"\n  within 10 % of a run without them: {'ok' if good else 'MISSED'}")
    return good


def _play(binary: Path, scene: Scene, certificate: Certificate, plan: Plan) -> dict[str, list[Run]]:
    """A B A B …, the order changing with each round so that drift favours nobody."""
    runs: dict[str, list[Run]] = {"all good": [], "three bad": []}
    for number in range(plan.rounds):
        for with_bad in (False, True) if number % 2 == 0 else (True, False):
            name = "three bad" if with_bad else "all good"
            runs[name].append(measure(binary, scene, certificate, plan, with_bad=with_bad))
    return runs


def run(plan: Plan) -> int:
    """Measure and print; 1 if a target is missed."""
    results: dict[str, Any] = {}
    good = True
    with contextlib.ExitStack() as stack:
        binary = stack.enter_context(built_generator())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hepmaild-bench-")))
        folder.chmod(0o755)
        certificate = make_certificate(folder)
        scenes: dict[str, Callable[[], Scene]] = {
            "routes": lambda: routes_scene(free_port()),
            "destinations": lambda: destinations_scene(
                free_port(),
                stack.enter_context(
                    open_nameservers({"signed.test": "", "many.test": many_zone()}, nothing_s=TTL_S)
                ).resolver,
                plan.weight,
            ),
        }
        for name in plan.only:
            scene = scenes[name]()
            runs = _play(binary, scene, certificate, plan)
            good &= _compare(scene, runs, plan)
            results[name] = {kind: [asdict(one) for one in found] for kind, found in runs.items()}
    save("isolation", results)
    return 0 if good else 1
