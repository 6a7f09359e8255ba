# SPDX-License-Identifier: Apache-2.0
"""What the command line does to a key holds at once: for the next request, and the next MAIL of an open session."""

from __future__ import annotations

import base64
import json
import smtplib
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.e2e.conftest import UNLIMITED
from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.sink import CaptureSink

TO = "someone@example.net"
BODY = {"to": TO, "subject": "x", "text": "x"}
HTTP_ANSWERS = {"disable": (403, "KEY_DISABLED"), "rotate": (401, "INVALID_KEY"), "delete": (401, "INVALID_KEY")}


@pytest.fixture(scope="module")
def sqlite_daemons(sink: CaptureSink) -> Iterator[list[Daemon]]:
    with open_daemon(sink_port=sink.port, start=False) as daemon:
        daemon.setup(plan=UNLIMITED)
        daemon.start()
        yield [daemon]


@pytest.fixture(params=["sqlite", "postgresql"])
def daemons(request: pytest.FixtureRequest, sink: CaptureSink) -> Iterator[list[Daemon]]:
    """All processes of one service."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_daemons")
        return
    url = request.getfixturevalue("postgres_database")
    with (
        open_daemon(sink_port=sink.port, database_url=url, name="daemon0", start=False) as first,
        open_daemon(sink_port=sink.port, database_url=url, name="daemon1", start=False) as second,
    ):
        first.setup(plan=UNLIMITED)
        first.start()
        second.start()
        yield [first, second]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def send(session: smtplib.SMTP) -> None:
    session.sendmail(SENDER, [TO], plain_message(new_id(), sender=SENDER, to=TO))


@pytest.mark.parametrize("change", ["disable", "rotate", "delete"])
def test_a_change_ends_open_sessions_too(daemons: list[Daemon], stack: ExitStack, change: str) -> None:
    minted = daemons[0].mint(name=f"{change}-{new_id()[:8]}")
    key = minted["key"]
    sessions = [stack.enter_context(closing(open_smtp(daemon, key))) for daemon in daemons]
    for daemon, session in zip(daemons, sessions, strict=True):
        send(session)
        assert post(daemon, BODY, key)[0] in {200, 202}

    changed = daemons[0].cli("key", change, minted["id"], "--json")

    for daemon, session in zip(daemons, sessions, strict=True):
        status, answer, _ = post(daemon, BODY, key)
        assert (status, answer["code"]) == HTTP_ANSWERS[change]
        code, text = session.mail(SENDER)
        assert code == 535, text
        assert text.startswith(b"5.7.8")
        code, text = session.mail(SENDER)
        assert code == 530, "the session is as before AUTH"
        assert text.startswith(b"5.7.0")
        # By hand: smtplib would try the other mechanism too, and the third failure of a session is a 421.
        code, _ = session.docmd("AUTH", "PLAIN " + base64.b64encode(f"\0api\0{key}".encode()).decode())
        assert code == 535
    if change == "disable":
        daemons[-1].cli("key", "enable", minted["id"])
    if change == "rotate":
        key = json.loads(changed)["key"]
        assert key != minted["key"]
    for daemon, session in zip(daemons, sessions, strict=True):
        session.close()
        if change != "delete":
            with open_smtp(daemon, key) as again:
                send(again)
            assert post(daemon, BODY, key)[0] in {200, 202}


def test_a_suspended_account_is_stopped_at_once(daemons: list[Daemon]) -> None:
    key = daemons[0].mint(name=f"suspend-{new_id()[:8]}")["key"]
    with open_smtp(daemons[-1], key) as session:
        send(session)
        daemons[0].cli("account", "suspend", ACCOUNT)
        try:
            code, text = session.mail(SENDER)
            assert (code, text[:5]) == (535, b"5.7.8")
            status, answer, _ = post(daemons[-1], BODY, key)
            assert (status, answer["code"]) == (403, "ACCOUNT_SUSPENDED")
        finally:
            daemons[0].cli("account", "resume", ACCOUNT)
    with open_smtp(daemons[-1], key) as session:
        send(session)


def test_another_plan_counts_at_once_in_every_process(daemons: list[Daemon]) -> None:
    """Also for the next message of a session that is open, and for what was sent under the plan before."""
    key = daemons[0].mint(name=f"plan-{new_id()[:8]}")["key"]
    with open_smtp(daemons[-1], key) as session:
        send(session)
        daemons[0].cli("account", "plan", ACCOUNT, "free")
        try:
            for _ in range(4):
                send(session)
            status, answer, headers = post(daemons[0], BODY, key)
            assert (status, answer["code"], headers["x-ratelimit-limit"]) == (429, "RATE_LIMITED", "5")
            session.mail(SENDER)
            session.rcpt(TO)
            code, text = session.docmd("DATA")
            assert (code, text[:5]) == (421, b"4.7.0")
        finally:
            daemons[0].cli("account", "plan", ACCOUNT, UNLIMITED)
    assert post(daemons[-1], BODY, key)[0] in {200, 202}
