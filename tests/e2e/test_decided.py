# SPDX-License-Identifier: Apache-2.0
"""Callers wait for a next hop that says nothing, and people decide about their messages: each is told so at once."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.dashboard.visitor import Visitor, link_of, sign_in
from tests.e2e.conftest import UNLIMITED
from tests.peers.daemon import ACCOUNT, Daemon, open_daemon, post
from tests.peers.processes import assert_no_traceback, wait_until

PATIENCE = {"delivery": {"relay_wait_s": 300}}  # more than any test may last


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return "sqlite:///hepmaild.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def service(database_url: str) -> Iterator[tuple[Daemon, str, Visitor]]:
    """In front of a next hop that takes connections, and is silent; a key of the account, and its owner."""
    with contextlib.ExitStack() as stack:
        hop = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        daemon = stack.enter_context(
            open_daemon(sink_port=hop.getsockname()[1], database_url=database_url, changes=PATIENCE, start=False)
        )
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        visitor = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))))
        yield daemon, key, visitor
        assert_no_traceback(daemon.log())


def cancel_on_its_page(visitor: Visitor, message_id: str) -> None:
    visitor.follow(f"/logs/{message_id}/cancel", page=f"/logs/{message_id}")


def test_those_who_wait_are_told_what_was_decided(service: tuple[Daemon, str, Visitor]) -> None:
    daemon, key, visitor = service

    def on_its_way(subject: str) -> str:
        """The message, once an attempt at it is under way."""
        found = [row["message_id"] for row in daemon.json("queue", "list") if row["under_way"]]
        return next((each for each in found if daemon.json("queue", "show", each)["subject"] == subject), "")

    def decide(subject: str, deed: Callable[[str], Any]) -> tuple[int, Any]:
        with ThreadPoolExecutor(1) as beside:
            body = {"to": "a@example.net", "subject": subject, "text": "x"}
            answer: Future[Any] = beside.submit(post, daemon, body, key)
            deed(wait_until(partial(on_its_way, subject), f"an attempt at {subject}"))
            status, data, _ = answer.result()
        return status, data

    status, held = decide("held", partial(daemon.cli, "queue", "hold"))
    assert (status, "it is held, and leaves when" in held["data"]["retryHint"]) == (202, True), held
    for deed in (partial(daemon.cli, "queue", "cancel"), partial(cancel_on_its_page, visitor)):
        status, gone = decide("cancelled", deed)
        assert (status, gone["code"]) == (502, "RELAY_FAILED")
        said = "550 5.3.0 the message was cancelled before it could leave"
        assert gone["error"] == f"Nothing was sent: {said}. The credits were refunded."
    status, paused = decide("paused", lambda _: daemon.cli("queue", "pause", "--route", "sink"))
    assert (status, "is paused, and it leaves when" in paused["data"]["retryHint"]) == (202, True), paused
