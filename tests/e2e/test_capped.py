# SPDX-License-Identifier: Apache-2.0
"""Daily caps and suppression through both doors of a real daemon, up to the next hop."""

from __future__ import annotations

import signal
from typing import Any

from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.sink import CaptureSink, smtp_sink

TO = "someone@example.net"
CAPPED = "the daily cap of 2 messages of shop@example.com is used up"


def send(daemon: Daemon, key: str, test_id: str, **more: Any) -> tuple[int, Any]:
    body = {"to": TO, "subject": "x", "text": "x", "headers": {"X-Test-Id": test_id}, **more}
    status, answer, _ = post(daemon, body, key)
    return status, answer


def submit(daemon: Daemon, key: str, test_id: str, sender: str) -> bytes:
    """One message over SMTP; the reply to its content."""
    session = open_smtp(daemon, key)
    try:
        session.mail(sender)
        session.rcpt(TO)
        code, said = session.data(plain_message(test_id, sender=sender, to=TO))
    finally:
        session.close()
    assert code == 250
    return said


def test_over_the_cap_mail_waits_and_says_so_and_a_higher_cap_lets_it_go(sink: CaptureSink) -> None:
    shop = {"address": "shop@example.com", "route": "sink", "daily_cap": 2}
    senders = [{"address": SENDER, "route": "sink", "default": True}, shop]
    with open_daemon(sink_port=sink.port, changes={"sender": senders}, start=False) as daemon:
        key = daemon.setup(plan="bench")
        daemon.start()
        ids = [new_id() for _ in range(6)]
        for test_id in ids[:2]:
            assert send(daemon, key, test_id, **{"from": "shop@example.com"})[0] == 200
        status, answer = send(daemon, key, ids[2], **{"from": "shop@example.com"})
        assert status == 202
        assert answer["data"]["status"] == "queued"
        assert answer["data"]["creditsCharged"] == 1
        assert answer["data"]["retryHint"].startswith(f"T{CAPPED[1:]}: leaves at about 20")
        said = submit(daemon, key, ids[3], "shop@example.com").decode()
        first, second = said.split("\n")
        assert first.startswith("2.0.0 queued as ")
        assert CAPPED[1:] in second
        assert send(daemon, key, ids[4])[0] == 200, "another sender of the same route"
        (row,) = [r for r in daemon.json("queue", "list") if r["message_id"] == answer["data"]["messageId"]]
        assert row["state"] == "capped"
        assert CAPPED in row["last_reply"]
        assert row["next_attempt_at"] is not None

        daemon.settings["sender"][1]["daily_cap"] = 3
        daemon.write_settings()
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: ids[2] in sink.ids(), "the older one at the sink")
        assert ids[3] not in sink.ids()

        # A sender of the database stands before that of the settings, and is obeyed at once.
        daemon.cli("sender", "add", "shop@example.com", "--route", "sink", "--daily-cap", "5")
        wait_until(lambda: ids[3] in sink.ids(), "the younger one at the sink")
        assert_no_traceback(daemon.log())


def test_a_refused_address_is_suppressed_and_lifted() -> None:
    refusing = ("-f", "rcpt", "-B", "550 5.1.1 no such user")
    with (
        smtp_sink(options=refusing) as sink,
        open_daemon(sink_port=sink.port, changes={"delivery": {"suppress_after": 2}}, start=False) as daemon,
    ):
        key = daemon.setup(plan="bench")
        daemon.start()
        for _ in range(2):
            status, answer = send(daemon, key, new_id())
            assert (status, answer["code"]) == (502, "RELAY_FAILED")
        before = daemon.json("credits", "history", ACCOUNT)
        status, answer = send(daemon, key, new_id())
        assert (status, answer["code"]) == (502, "RELAY_FAILED")
        assert "suppressed until" in answer["error"]
        assert "refused 2 times; last: 550 5.1.1 no such user" in answer["error"]
        session = open_smtp(daemon, key)
        session.mail(SENDER)
        session.rcpt(TO)
        code, said = session.data(plain_message(new_id(), sender=SENDER, to=TO))
        session.close()
        assert code == 550
        assert said.startswith(b"5.1.1 suppressed until")
        assert daemon.json("credits", "history", ACCOUNT) == before, "nothing was charged"
        status, answer = send(daemon, key, new_id(), to=[TO, "other@example.net"])
        assert status == 502, "the other one is refused by the next hop"
        shown = daemon.json("suppression", "list", ACCOUNT)
        assert [row["address"] for row in shown] == [TO]
        daemon.cli("suppression", "lift", ACCOUNT, TO)
        status, answer = send(daemon, key, new_id())
        assert status == 502
        assert "suppressed" not in answer["error"]
        daemon.cli("credits", "verify")
        assert_no_traceback(daemon.log())
