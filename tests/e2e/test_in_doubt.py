# SPDX-License-Identifier: Apache-2.0
"""No answer to the final dot: in doubt, counted and shown; tried again with the same Message-ID, or held.

The next hops are Debian's smtp-sink, which drops the connection at the dot or answers it too late, and the capture
server, which writes down every copy it was given.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.peers.daemon import ACCOUNT, Daemon, open_daemon, post
from tests.peers.messages import new_id
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.programs import require
from tests.peers.sink import SmtpSink, capture_sink, smtp_sink

GRANT = 1000
DOT_S = 1  # how long the dot may take here; 600 s at the real value: tests/delivery/test_late_dot.py
LATE_S = 3  # how long it does take
TO = "someone@example.net"


@dataclass(frozen=True, slots=True)
class Service:
    daemon: Daemon
    key: str

    def send(self, to: str = TO) -> str:
        """A message is taken; its id.  Nobody waits for its delivery."""
        headers = {"X-Test-Id": new_id()}
        status, answer, _ = post(self.daemon, {"to": to, "subject": "x", "text": "x", "headers": headers}, self.key)
        assert status in {200, 202}, answer
        return str(answer["data"]["messageId"])

    def recipient(self, message_id: str) -> dict[str, Any]:
        """Its one recipient, as `queue show` has it."""
        (found,) = self.daemon.json("queue", "show", message_id)["recipients"]
        return dict(found)

    def row(self, message_id: str) -> tuple[str, int]:
        """State and doubts, out of the database: polled a hundred times more cheaply than a command."""
        with contextlib.closing(sqlite3.connect(self.daemon.state_dir / "hepmaild.db")) as conn:
            (found,) = conn.execute("SELECT state, doubts FROM recipient WHERE message_id = ?", (message_id,))
            return str(found[0]), int(found[1])

    def wait_for_doubts(self, message_id: str, count: int) -> None:
        wait_until(lambda: self.row(message_id)[1] >= count, f"{count} attempts in doubt")

    def wait_for_state(self, message_id: str, state: str) -> None:
        wait_until(lambda: self.row(message_id)[0] == state, f"{message_id} to be {state}")

    def results(self, message_id: str) -> list[str]:
        """Of all attempts, from the log."""
        events = self.daemon.json("log", "show", message_id)["events"]
        return [o["result"] for e in events if e["kind"] == "attempt" for o in e["data"]["outcomes"]]

    def balance(self) -> int:
        return int(self.daemon.json("credits", "show", ACCOUNT)["balance"])


@contextlib.contextmanager
def open_service(sink_port: int, in_doubt: str) -> Iterator[Service]:
    """A daemon with little patience at the dot."""
    delivery = {
        "in_doubt": in_doubt,
        "final_dot_timeout_s": DOT_S,
        "attempt_timeout_s": 20,
        "retry_after_s": [1],
        "relay_wait_s": 0,
    }
    with open_daemon(sink_port=sink_port, changes={"delivery": delivery}, start=False) as daemon:
        key = daemon.setup(plan="bench", grant=GRANT)
        daemon.start()
        yield Service(daemon, key)
        daemon.cli("credits", "verify")
        assert_no_traceback(daemon.log())


MANNERS = {"drops after the dot": ["-q", "."], "answers too late": ["-W", f".:{LATE_S}"]}
ALL_MANNERS = {part for manner in MANNERS.values() for part in manner}


@pytest.fixture(params=MANNERS)
def bad_sink(request: pytest.FixtureRequest) -> Iterator[SmtpSink]:
    """An smtp-sink that keeps what it gets, and never says so in time."""
    require("smtp-sink")
    with smtp_sink(dump=True, options=MANNERS[request.param]) as sink:
        yield sink


def copies(service: Service, sink: SmtpSink, message_id: str) -> list[bytes]:
    """Every copy that the sink was given of a message, known by its Message-ID: what we sent, header and body."""
    known_by = f"Message-ID: {service.daemon.json('queue', 'show', message_id)['header_message_id']}\n".encode()
    # smtp-sink puts lines of its own before it, the last of them its Received field.
    return [b"From: " + m.partition(b"\nFrom: ")[2] for m in sink.messages() if known_by in m]


def test_tried_again_and_counted(bad_sink: SmtpSink) -> None:
    with open_service(bad_sink.port, "retry") as service:
        message_id = service.send()
        service.wait_for_doubts(message_id, 2)
        assert "no answer came to the final dot" in service.recipient(message_id)["last_reply"]
        stats = service.daemon.json("queue", "stats")
        assert stats["in_doubt"] == 1
        (route,) = stats["routes"]
        assert (route["waiting"], route["in_doubt"]) == (1, 1)
        wait_until(lambda: "no answer" in str(service.daemon.json("queue", "stats")["routes"][0]["last_error"]), "why")
        assert service.balance() == GRANT - 1

        # The same next hop, now as it should be: in the end it is delivered, and every copy before was announced.
        bad_sink.stop()
        before = copies(service, bad_sink, message_id)
        bad_sink.child.command = [part for part in bad_sink.child.command if part not in ALL_MANNERS]
        bad_sink.start()
        service.wait_for_state(message_id, "sent")
        doubts = service.recipient(message_id)["in_doubt"]
        results = service.results(message_id)
        assert results.count("in_doubt") == doubts >= 2
        assert results[-1] == "delivered"
        assert results.count("delivered") == 1
        every = copies(service, bad_sink, message_id)
        assert 2 <= len(before) < len(every) <= doubts + 1
        assert len(set(every)) == 1, "every copy has the same octets"
        assert service.daemon.json("queue", "stats")["in_doubt"] == 0
        assert service.balance() == GRANT - 1


def test_held_and_released(bad_sink: SmtpSink) -> None:
    with open_service(bad_sink.port, "hold") as service:
        message_id = service.send()
        service.wait_for_state(message_id, "held")
        assert service.recipient(message_id)["in_doubt"] == 1
        stats = service.daemon.json("queue", "stats")
        assert stats["in_doubt"] == 1
        assert stats["by_state"]["held"] == 1
        # Somebody else's mail goes on meanwhile; nothing moves what is held but a human.
        other = service.send("other@example.org")
        service.wait_for_state(other, "held")
        assert service.results(message_id) == ["in_doubt"]
        assert len(copies(service, bad_sink, message_id)) == 1

        service.daemon.cli("queue", "release", message_id)
        service.wait_for_doubts(message_id, 2)
        service.wait_for_state(message_id, "held")
        both = copies(service, bad_sink, message_id)
        assert len(both) == 2
        assert both[0] == both[1]
        assert service.results(message_id) == ["in_doubt", "in_doubt"]
        assert service.recipient(other)["in_doubt"] == 1
        assert service.balance() == GRANT - 2


def age(service: Service, message_id: str) -> None:
    """Make a message as old as it may become; only while the daemon does not run."""
    with contextlib.closing(sqlite3.connect(service.daemon.state_dir / "hepmaild.db")) as conn, conn:
        for table, key in (("message", "id"), ("queue", "message_id")):
            done = conn.execute(
                f"UPDATE {table} SET expires_at_us = ? WHERE {key} = ?", (time.time_ns() // 1000, message_id)
            )
            assert done.rowcount == 1


def test_held_until_it_expires_and_refunded(bad_sink: SmtpSink) -> None:
    with open_service(bad_sink.port, "hold") as service:
        message_id = service.send()
        service.wait_for_state(message_id, "held")
        assert service.balance() == GRANT - 1
        service.daemon.terminate()
        age(service, message_id)
        service.daemon.start()
        service.wait_for_state(message_id, "expired")
        assert service.balance() == GRANT
        ledger = service.daemon.json("log", "show", message_id)["ledger"]
        assert [row["amount"] for row in ledger] == [-1, 1]
        stats = service.daemon.json("queue", "stats")
        assert (stats["in_doubt"], stats["by_state"]["held"]) == (0, 0)
        assert len(copies(service, bad_sink, message_id)) == 1


@pytest.mark.parametrize("policy", ["retry", "hold"])
def test_killed_between_the_dot_and_its_answer(policy: str) -> None:
    """The mark is in the store, its process is dead: in doubt all the same, under the same policy."""
    with capture_sink() as sink, open_service(sink.port, policy) as service:
        sink.stop()
        prompt = sink.command
        sink.command = [*prompt, "--delay-ms", "3600000"]
        sink.start()
        service.daemon.settings["delivery"] |= {"final_dot_timeout_s": 600, "attempt_timeout_s": 601}
        service.daemon.terminate()
        service.daemon.start()
        message_id = service.send()
        sink.wait_for(1)  # written down, and never answered
        service.daemon.kill()
        sink.stop()
        sink.command = prompt
        sink.start()
        service.daemon.start()
        service.wait_for_doubts(message_id, 1)
        if policy == "hold":
            service.wait_for_state(message_id, "held")
            assert len(sink.deliveries()) == 1
            service.daemon.cli("queue", "release", message_id)
        service.wait_for_state(message_id, "sent")
        first, second = sink.deliveries()
        assert first["sha256"] == second["sha256"]
        assert first["message_id"] == second["message_id"]
        assert service.recipient(message_id)["in_doubt"] == 1
        assert service.balance() == GRANT - 1
        assert "in_doubt" in str(service.daemon.json("log", "show", message_id)["events"])
