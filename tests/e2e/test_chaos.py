# SPDX-License-Identifier: Apache-2.0
"""Chaos keys on the real daemon: each kind by both doors; nothing leaves, nothing is paid, and Logs say so."""

from __future__ import annotations

import json
import signal
import smtplib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import UNLIMITED, Service
from tests.peers.daemon import ACCOUNT, SENDER, CommandFailed, Daemon, open_daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.sink import CaptureSink

TO = "someone@example.net"
NO_RETRY = {"delivery": {"retry_after_s": [3600]}}
SLOW = ("slow-dot", "drop-after-dot")  # nobody waits for these
# By kind: what HTTP answers, what SMTP answers, and the state of its message then.
ANSWERS = {
    "greylist": (202, 250, "deferred"),
    "4xx": (202, 250, "deferred"),
    "5xx": (502, 550, "failed"),
    "slow-dot": (202, 250, "queued"),
    "drop-after-dot": (202, 250, ""),  # its doubt is written when the answer to the dot is given up
}


@pytest.fixture(scope="module")
def service(sink: CaptureSink) -> Iterator[Service]:
    """Without a credit; the sender's mail would leave by the sink, and there is no sandbox route."""
    with open_daemon(sink_port=sink.port, changes=NO_RETRY, start=False) as daemon:
        key = daemon.setup(grant=1, plan=UNLIMITED)
        daemon.start()
        assert post(daemon, {"to": TO, "text": "x"}, key)[0] == 200
        yield Service(daemon, sink, key)
        assert_no_traceback(daemon.log())


@contextmanager
def callers_wait(daemon: Daemon, seconds: int) -> Iterator[None]:
    """For the first attempt, inside; else as long as it takes."""
    before = daemon.settings["delivery"]["relay_wait_s"]
    set_patience(daemon, seconds)
    try:
        yield
    finally:
        set_patience(daemon, before)


def set_patience(daemon: Daemon, seconds: int) -> None:
    daemon.settings["delivery"]["relay_wait_s"] = seconds
    daemon.write_settings()
    reloads = daemon.log().count("event=settings_reloaded")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: daemon.log().count("event=settings_reloaded") > reloads, "the settings to be taken")


def send_by_smtp(service: Service, key: str) -> tuple[int, str]:
    with open_smtp(service.daemon, key) as session:
        try:
            session.mail(SENDER)
            session.rcpt(TO)
            code, text = session.data(plain_message(new_id(), sender=SENDER, to=TO))
        except smtplib.SMTPResponseException as error:
            code, text = error.smtp_code, error.smtp_error  # type: ignore[assignment]
    return code, text.decode()


def check_kind(service: Service, kind: str) -> None:
    http, smtp, _ = ANSWERS[kind]
    key = service.daemon.mint(name=kind, options=("--chaos", kind))["key"]
    status, answer, _ = post(service.daemon, {"to": [TO, "other@example.net"], "subject": kind, "text": "x"}, key)
    assert status == http, answer
    if status == 502:
        assert answer["code"] == "RELAY_FAILED"
        assert "nothing was charged" in answer["error"]
    else:
        assert answer["data"]["creditsCharged"] == 0
        assert answer["data"]["recipients"] == 2
    code, text = send_by_smtp(service, key)
    assert code == smtp, text


def test_every_kind_by_both_doors(service: Service) -> None:
    daemon, left = service.daemon, len(service.sink.ids())
    assert post(daemon, {"to": TO, "text": "x"}, service.key)[0] == 402, "the account has no credit"
    for kind in (kind for kind in ANSWERS if kind not in SLOW):
        check_kind(service, kind)
    with callers_wait(daemon, 1):
        for kind in SLOW:
            check_kind(service, kind)

    tail = daemon.cli("log", "tail", "--json", "-n", str(2 * len(ANSWERS))).splitlines()
    lines = [json.loads(line) for line in tail]
    for line, kind in zip(lines, [kind for kind in ANSWERS for _ in range(2)], strict=True):
        assert line["chaos"] == kind
        assert not ANSWERS[kind][2] or line["state"] == ANSWERS[kind][2]
    done = daemon.json("queue", "cancel", lines[0]["message_id"])
    assert (done["cancelled"], done["refunded"]) == (2, 0)
    shown = daemon.json("log", "show", lines[0]["message_id"])
    assert (shown["chaos"], shown["state"], shown["ledger"]) == ("greylist", "cancelled", [])
    assert daemon.json("credits", "show", ACCOUNT)["balance"] == 0
    daemon.cli("credits", "verify")
    assert len(service.sink.ids()) == left, "nothing left"


def test_the_kind_can_change_and_nothing_else_about_it(service: Service) -> None:
    daemon = service.daemon
    minted = daemon.mint(name="turns", options=("--chaos", "4xx"))
    assert post(daemon, {"to": TO, "text": "x"}, minted["key"])[0] == 202
    assert daemon.json("key", "edit", minted["id"], "--chaos", "5xx")["chaos"] == "5xx"
    assert post(daemon, {"to": TO, "text": "x"}, minted["key"])[0] == 502
    ordinary = daemon.mint(name="ordinary")
    with pytest.raises(CommandFailed, match="cannot become a chaos key"):
        daemon.json("key", "edit", ordinary["id"], "--chaos", "5xx")
    assert post(daemon, {"to": TO, "text": "x"}, ordinary["key"])[0] == 402


def test_it_obeys_restrictions_and_the_rate(service: Service) -> None:
    daemon = service.daemon
    daemon.cli("account", "plan", ACCOUNT, "free")
    try:
        key = daemon.mint(name="rated", options=("--chaos", "5xx", "--permission", "http"))["key"]
        answers = [post(daemon, {"to": TO, "text": "x"}, key)[0] for _ in range(6)]
        assert answers == [502] * 5 + [429]
        with pytest.raises(smtplib.SMTPAuthenticationError):
            open_smtp(daemon, key)
    finally:
        daemon.cli("account", "plan", ACCOUNT, UNLIMITED)
