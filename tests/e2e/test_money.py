# SPDX-License-Identifier: Apache-2.0
"""Credits and the rate limit under real concurrency: both doors, several processes, restarts."""

from __future__ import annotations

import contextlib
import itertools
import smtplib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import UNLIMITED
from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.processes import wait_until
from tests.peers.sink import CaptureSink

TO = "someone@example.net"
CREDITS = 50
SENDS = 200


def send_by_smtp(daemon: Daemon, key: str, test_id: str) -> str:
    """One message over one connection: "accepted", or the code of the refusal."""
    session = open_smtp(daemon, key)
    try:
        session.sendmail(SENDER, [TO], plain_message(test_id, sender=SENDER, to=TO))
    except smtplib.SMTPResponseException as error:
        return f"{error.smtp_code} {bytes(error.smtp_error)[:5].decode()}"  # type: ignore[arg-type]
    finally:
        session.close()
    return "accepted"


def send_by_https(daemon: Daemon, key: str, test_id: str) -> str:
    body = {"to": TO, "subject": "x", "text": "x", "headers": {"X-Test-Id": test_id}}
    status, answer, _ = post(daemon, body, key)
    return "accepted" if status in {200, 202} else f"{status} {answer['code']}"


@contextlib.contextmanager
def two_processes(sink: CaptureSink, database_url: str) -> Iterator[list[Daemon]]:
    """Two daemons on one database."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                open_daemon(sink_port=sink.port, database_url=database_url, name=f"daemon{number}", start=False)
            )
            for number in range(2)
        ]


def race(daemons: list[Daemon], key: str) -> dict[str, str]:
    """200 sends at once, over both doors and all processes; what became of each."""
    ways = itertools.cycle(itertools.product(daemons, [send_by_smtp, send_by_https]))
    jobs = [(way, new_id()) for way, _ in zip(ways, range(SENDS), strict=False)]
    with ThreadPoolExecutor(40) as threads:
        futures = {test_id: threads.submit(send, daemon, key, test_id) for (daemon, send), test_id in jobs}
        return {test_id: future.result() for test_id, future in futures.items()}


def check_race(daemon: Daemon, sink: CaptureSink, outcomes: dict[str, str]) -> None:
    assert Counter(outcomes.values())["accepted"] == CREDITS, Counter(outcomes.values())
    assert set(outcomes.values()) == {"accepted", "451 4.7.1", "402 INSUFFICIENT_CREDITS"}
    assert daemon.json("credits", "show", ACCOUNT)["balance"] == 0
    daemon.cli("credits", "verify")
    history = daemon.json("credits", "history", ACCOUNT)
    assert all(entry["balance_after"] >= 0 for entry in history)
    assert sum(entry["amount"] for entry in history) == 0
    accepted = {test_id for test_id, outcome in outcomes.items() if outcome == "accepted"}
    wait_until(lambda: accepted <= set(sink.ids()), "every accepted message at the sink")
    assert set(sink.ids()) & set(outcomes) == accepted, "nothing refused was sent"


def test_200_sends_for_50_credits_over_two_processes(sink: CaptureSink, postgres_database: str) -> None:
    with two_processes(sink, postgres_database) as daemons:
        key = daemons[0].setup(grant=CREDITS, plan=UNLIMITED)
        for daemon in daemons:
            daemon.start()
        check_race(daemons[0], sink, race(daemons, key))


def test_200_sends_for_50_credits_on_sqlite(sink: CaptureSink) -> None:
    with open_daemon(sink_port=sink.port, start=False) as daemon:
        key = daemon.setup(grant=CREDITS, plan=UNLIMITED)
        daemon.start()
        check_race(daemon, sink, race([daemon], key))


LIMIT = 120
WINDOW_S = 60.0


@pytest.fixture(params=["sqlite", "postgresql"])
def processes(request: pytest.FixtureRequest, sink: CaptureSink) -> Iterator[list[Daemon]]:
    """One daemon on SQLite; two on PostgreSQL."""
    if request.param == "sqlite":
        with open_daemon(sink_port=sink.port, start=False) as daemon:
            yield [daemon]
    else:
        with two_processes(sink, request.getfixturevalue("postgres_database")) as daemons:
            yield daemons


def test_the_121st_call_of_a_minute_is_refused_even_after_kill_9(processes: list[Daemon]) -> None:
    key = processes[0].setup(plan="standard")
    for daemon in processes:
        daemon.start()
    let_through: list[tuple[float, float]] = []
    refused: list[str] = []

    def call(number: int) -> None:
        daemon = processes[number % len(processes)]
        began = time.monotonic()
        if number % 3 == 0:
            outcome = send_by_smtp(daemon, key, new_id())
        elif number % 3 == 1:
            outcome = send_by_https(daemon, key, new_id())
        else:  # malformed: counts like any other
            status, answer, headers = post(daemon, b"not json", key)
            outcome = f"{status} {answer['code']}"
            assert headers["x-ratelimit-limit"] == str(LIMIT)
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= WINDOW_S
        if outcome.startswith(("421", "429")):
            refused.append(outcome)
        else:
            let_through.append((began, time.monotonic()))

    def many(first: int, count: int) -> None:
        with ThreadPoolExecutor(12) as threads:
            for future in [threads.submit(call, number) for number in range(first, first + count)]:
                future.result()

    started = time.monotonic()
    many(0, 50)
    processes[0].kill()
    processes[0].start()
    many(50, 50)
    processes[-1].kill()
    processes[-1].start()
    many(100, 40)
    # Whatever the machine's speed: no window that lies within 60 s by our own clock has more than the limit.
    for begin, _ in let_through:
        inside = [end for start, end in let_through if start >= begin and end <= begin + WINDOW_S]
        assert len(inside) <= LIMIT
    if time.monotonic() - started < WINDOW_S - 1:
        assert len(let_through) == LIMIT
        assert len(refused) == 140 - LIMIT
        assert set(refused) <= {"421 4.7.0", "429 RATE_LIMITED"}
