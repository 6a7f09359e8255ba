# SPDX-License-Identifier: Apache-2.0
"""Two processes on one PostgreSQL, killed at random under load: each takes over what the other one held.

Mail goes by two routes: one next hop that takes everything, and straight to the hosts of several destinations.
HEPMAILD_KILLS says how often each of them is killed.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.crash.conftest import GRANT, KILLS, QUICK
from tests.crash.load import Load, Mail, check_promises, daemons_die, running_load
from tests.peers import postgres
from tests.peers.daemon import SENDER, Daemon, open_daemon
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.sink import CaptureSink, capture_sink
from tests.peers.small_dns import small_dns

pytestmark = daemons_die

DIRECT = "direct@example.com"
DOMAINS = ("one.mx.test", "two.mx.test", "three.mx.test")
ZONE = "host.mx.test. 60 IN A 127.0.0.1\n" + "".join(f"{name}. 60 IN MX 10 host.mx.test.\n" for name in DOMAINS)
MAILS: tuple[Mail, ...] = (
    *((SENDER, f"someone@{name}") for name in ("example.net", "example.org", "example.com")),
    *((DIRECT, f"someone@{name}") for name in DOMAINS),
)
LEASE_S = float(QUICK["delivery"]["lease_s"])
PATIENCE_S = 90.0  # above the lease: a loaded machine is no reason to fail, a lease that never ends is


@dataclass(frozen=True, slots=True)
class Pair:
    """Both processes, and the next hop of both routes."""

    daemons: list[Daemon]
    sink: CaptureSink
    key: str
    url: str

    def held_by(self, pids: list[int]) -> int:
        """How much of the queue these processes hold; a lease names its owner's process id first."""
        theirs = " OR ".join(f"owner LIKE '{pid}-%'" for pid in pids)
        return int(postgres.sql(self.url, f"SELECT count(*) FROM queue WHERE {theirs}"))

    def wait_for_take_over(self, dead: list[int]) -> float:
        """Until the dead hold nothing; how long that took."""
        began = time.monotonic()
        wait_until(
            lambda: self.held_by(dead) == 0, "the work of the dead to be taken over", timeout_s=LEASE_S + PATIENCE_S
        )
        return time.monotonic() - began


@pytest.fixture
def pair() -> Iterator[Pair]:
    postgres.require_postgres()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres.open_database(stack.enter_context(postgres.open_server())))
        sink = stack.enter_context(capture_sink(content=False))
        dns = stack.enter_context(small_dns())
        dns.publish(ZONE)
        changes = {
            **{name: dict(table) for name, table in QUICK.items()},
            "dns": {"servers": [f"127.0.0.1:{dns.port}"]},
            "route": [
                {"name": "sink", "kind": "smtp", "host": "127.0.0.1", "port": sink.port, "tls": "none"},
                {"name": "direct", "kind": "mx", "port": sink.port, "mta_sts": False},
            ],
            "sender": [
                {"address": SENDER, "route": "sink", "default": True},
                {"address": DIRECT, "route": "direct"},
            ],
        }
        changes["database"]["url"] = url
        daemons = [
            stack.enter_context(
                open_daemon(sink_port=sink.port, database_url=url, changes=changes, start=False, name=name)
            )
            for name in ("first", "second")
        ]
        key = daemons[0].setup(plan="bench", grant=GRANT)
        for daemon in daemons:
            daemon.start()
        yield Pair(daemons, sink, key, url)
        for daemon in daemons:
            assert_no_traceback(daemon.log())


def kill_and_look(pair: Pair, load: Load, victims: list[Daemon], *, leave_dead: bool) -> float:
    """Kill; if they stay dead, see the survivor do their work; start them again."""
    promised = set(load.promises.acknowledged)
    pids = [victim.pid for victim in victims]
    for victim in victims:
        victim.kill()
    took_s = 0.0
    if leave_dead:
        took_s = pair.wait_for_take_over(pids)
        wait_until(lambda: promised <= pair.sink.ids().keys(), "what was promised, by the survivor")
    for victim in victims:
        victim.start()
    pair.wait_for_take_over(pids)
    return took_s


@pytest.mark.slow
def test_killed_in_turn_under_load(pair: Pair) -> None:
    dice = random.Random(20261123)
    turns = [0, 1] * KILLS
    dice.shuffle(turns)
    longest_s, both = 0.0, 0  # of the take-overs by the other one; kills of both at once
    with running_load(pair.daemons, pair.key, MAILS) as load:
        while turns:
            victims = [pair.daemons[turns.pop()]]
            other = pair.daemons[1] if victims[0] is pair.daemons[0] else pair.daemons[0]
            number = pair.daemons.index(other)
            if number in turns and dice.random() < 0.2:
                turns.remove(number)
                victims.append(other)
                both += 1
            # Not a time but a number of messages: as meaningful on a slow machine as on a fast one.
            load.wait_for(dice.randrange(5, 60))
            leave_dead = len(victims) == 1 and dice.random() < 0.5
            longest_s = max(longest_s, kill_and_look(pair, load, victims, leave_dead=leave_dead))
        load.wait_for(20)
    found = check_promises(pair.daemons[0], pair.sink, load.promises, grant=GRANT)
    to = {address for entry in pair.sink.deliveries() for address in entry["recipients"]}
    assert to == {address for _, address in MAILS}
    print(f"{KILLS} kills each, {both} of them together, longest take-over {longest_s:.1f} s: {found}")
