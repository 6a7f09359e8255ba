# SPDX-License-Identifier: Apache-2.0
"""Every dialogue of tests/transcripts, played against the real process over TCP and TLS.

What a dialogue needs of the world (a suspended account, a full queue, a store that stops in the middle) is really made
so, by the command line, by settings, or by stopping PostgreSQL.
"""

from __future__ import annotations

import contextlib
import json
import signal
import smtplib
import socket
import sqlite3
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.peers import postgres
from tests.peers.daemon import SENDER, Daemon, open_daemon, open_smtp, post, untrusting_context
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.sink import CaptureSink, capture_sink
from tests.smtp.transcript import Dialogue, Player, Step, Values, load_all

PATIENCE_S = 60
DIALOGUES = {dialogue.name: dialogue for dialogue in load_all()}
STORE_DOWN = [d for d in DIALOGUES.values() if d.needs.startswith("store=down")]
WITH_OWN_DAEMON = [
    d
    for d in DIALOGUES.values()
    if any(s.verb in ("drain", "wait idle") for s in d.steps) or d.needs.startswith("back")
]
SHARED = [d for d in DIALOGUES.values() if d not in STORE_DOWN and d not in WITH_OWN_DAEMON]
PLANS = {
    "bench": {"calls_per_minute": 100_000_000},
    "one-call": {"calls_per_minute": 1},
    "one-a-day": {"messages_per_day": 1},
}
MESSAGE = {"to": "someone@example.net", "subject": "hello", "text": "hello"}


class ProcessPeer:
    """A client of the real process."""

    def __init__(self, daemon: Daemon, stream: trio.SocketStream) -> None:
        self._daemon = daemon
        self._transport = stream
        self._stream: trio.abc.Stream = stream

    async def send(self, octets: bytes) -> None:
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(PATIENCE_S):
            await self._stream.send_all(octets)

    async def read(self) -> bytes:
        with trio.fail_after(PATIENCE_S):
            return bytes(await self._stream.receive_some(65536))

    async def starttls(self) -> None:
        tls = trio.SSLStream(self._transport, untrusting_context(), server_hostname="localhost", https_compatible=True)
        with trio.fail_after(PATIENCE_S):
            await tls.do_handshake()
        self._stream = tls

    async def wait_idle(self) -> None:
        """The daemon of this dialogue is impatient; reading waits for it."""

    async def drain(self) -> None:
        self._daemon.signal(signal.SIGTERM)
        await trio.to_thread.run_sync(
            wait_until, lambda: "event=draining" in self._daemon.log(), "the drain to begin", abandon_on_cancel=True
        )


@asynccontextmanager
async def connect(daemon: Daemon, dialogue: Dialogue) -> AsyncIterator[ProcessPeer]:
    port = daemon.ports["implicit" if dialogue.implicit else "starttls"]
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        peer = ProcessPeer(daemon, stream)
        if dialogue.implicit:
            await peer.starttls()
        yield peer


@pytest.fixture(scope="module")
def sink() -> Iterator[CaptureSink]:
    with capture_sink() as found:
        yield found


Shared = Callable[[Dialogue], Daemon]


@pytest.fixture(scope="module")
def daemon_for(sink: CaptureSink) -> Iterator[Shared]:
    """One daemon for each set of limits that dialogues want."""
    with contextlib.ExitStack() as stack:
        running: dict[tuple[int, int, int], Daemon] = {}

        def find(dialogue: Dialogue) -> Daemon:
            per_ip = 1 if dialogue.needs == "connections=0" else 200
            wanted = (dialogue.size, dialogue.recipients, per_ip)
            if wanted not in running:
                changes = {
                    "plans": PLANS,
                    "limits": {"connections_per_ip": per_ip, "recipients_per_message": dialogue.recipients},
                }
                name = f"daemon{len(running)}"
                daemon = stack.enter_context(open_daemon(sink_port=sink.port, start=False, changes=changes, name=name))
                daemon.settings["smtp"]["max_message_bytes"] = dialogue.size
                daemon.setup(plan="bench")
                daemon.start()
                running[wanted] = daemon
            return running[wanted]

        yield find
        for daemon in running.values():
            assert_no_traceback(daemon.log())


def make_key(daemon: Daemon, dialogue: Dialogue) -> dict[str, str]:
    """An account of its own for this dialogue, in the state that it needs, with a key in the state that it needs."""
    needs = dialogue.needs
    email = f"{dialogue.name}@example.com"
    plan = {"rate=used-up": "one-call", "plan=one-a-day": "one-a-day"}.get(needs, "bench")
    daemon.json("account", "add", email, "--credits", "0" if needs == "credits=0" else "50", "--plan", plan)
    options = {"key=http-only": ("--permission", "http"), "key=other-ip": ("--from-ip", "192.0.2.1")}.get(needs, ())
    minted = daemon.mint(email=email, options=options)
    if needs == "account=suspended":
        daemon.cli("account", "suspend", email)
    elif needs == "key=disabled":
        daemon.cli("key", "disable", minted["id"])
    elif needs == "key=unknown":
        daemon.cli("key", "delete", minted["id"])
    elif needs == "key=expired":
        path = daemon.state_dir / "hepmaild.db"
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as database, database:
            database.execute("UPDATE api_key SET expires_at_us = 1 WHERE id = ?", (minted["id"],))
    elif needs in ("rate=used-up", "plan=one-a-day"):
        assert post(daemon, MESSAGE, minted["key"])[0] == 200
    return {**minted, "email": email}


def meanwhile(daemon: Daemon, dialogue: Dialogue, key: dict[str, str]) -> Callable[[Step], None]:
    """What happens in the world while the dialogue runs."""

    def after(step: Step) -> None:
        if step.verb != "expect":
            return
        if dialogue.needs == "key=disabled-after-auth" and step.text.startswith("235"):
            daemon.cli("key", "disable", key["id"])
        if dialogue.needs == "credits=0-after-data" and step.text.startswith("354"):
            daemon.cli("credits", "grant", key["email"], "--", "-50")

    return after


@pytest.mark.parametrize("dialogue", [pytest.param(d, id=d.name) for d in SHARED])
async def test_dialogue(dialogue: Dialogue, daemon_for: Shared) -> None:
    daemon = daemon_for(dialogue)
    key = make_key(daemon, dialogue)
    values = Values(
        key["key"], SENDER, f"reject-a@{dialogue.name}.test" if dialogue.needs == "hop=refuses" else "a@b.test"
    )
    with contextlib.ExitStack() as stack:
        if dialogue.needs == "connections=0":
            first = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.ports["starttls"]), 30))
            assert first.recv(3) == b"220"
        async with connect(daemon, dialogue) as peer:
            await Player(dialogue, peer, values).play(meanwhile(daemon, dialogue, key))


@pytest.mark.parametrize("dialogue", [pytest.param(d, id=d.name) for d in WITH_OWN_DAEMON])
async def test_dialogue_with_a_daemon_of_its_own(dialogue: Dialogue, sink: CaptureSink) -> None:
    full = dialogue.needs.startswith("backlog")
    changes = {
        "plans": PLANS,
        "limits": {"idle_timeout_s": 5 if dialogue.name == "idle" else 600, "backlog": 1 if full else 1000},
        "delivery": {"retry_after_s": [600], "relay_wait_s": 5},
    }
    with open_daemon(sink_port=sink.port, start=False, changes=changes) as daemon:
        key = daemon.setup(plan="bench")
        daemon.start()
        if full:
            assert post(daemon, {**MESSAGE, "to": "defer-a@b.test"}, key)[0] == 202
        async with connect(daemon, dialogue) as peer:
            await Player(dialogue, peer, Values(key, SENDER, "a@b.test")).play()
        assert_no_traceback(daemon.log())


# A store that goes away


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    postgres.require_postgres(own=True)
    with postgres.open_cluster() as found:
        yield found


@pytest.fixture(scope="module")
def on_postgres(cluster: postgres.Cluster, sink: CaptureSink) -> Iterator[tuple[Daemon, str]]:
    with postgres.open_database(cluster.server) as url:
        changes = {"plans": PLANS, "database": {"url": url, "unit_timeout_s": 5}, "smtp": {"reply": "on-commit"}}
        with open_daemon(sink_port=sink.port, start=False, database_url=url, changes=changes) as daemon:
            key = daemon.setup(plan="bench")
            daemon.start()
            yield daemon, key
            assert_no_traceback(daemon.log())


def wait_until_ready(daemon: Daemon) -> None:
    def ready() -> bool:
        url = f"https://127.0.0.1:{daemon.ports['https']}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=30, context=untrusting_context()) as response:
                return bool(json.load(response)["ok"])
        except OSError:
            return False

    wait_until(ready, "the daemon to be ready again")


def wait_until_answering(daemon: Daemon, key: str) -> None:
    """Ready to write, and a MAIL is answered by a read that works."""
    wait_until_ready(daemon)

    def answers() -> bool:
        try:
            with contextlib.closing(open_smtp(daemon, key)) as session:
                return session.mail(SENDER)[0] == 250
        except smtplib.SMTPException:
            return False

    wait_until(answers, "a MAIL to be accepted again")


@pytest.mark.parametrize("dialogue", [pytest.param(d, id=d.name) for d in STORE_DOWN])
async def test_dialogue_while_the_store_is_down(
    dialogue: Dialogue, on_postgres: tuple[Daemon, str], cluster: postgres.Cluster
) -> None:
    daemon, key = on_postgres
    stop_after = {"store-down-at-auth": "250", "store-down-at-mail": "235", "store-down-at-data": "250 2.1.5",
                  "store-down-at-end": "354"}[dialogue.name]  # fmt: skip
    is_down = False

    def after(step: Step) -> None:
        nonlocal is_down, stop_after
        if step.verb != "expect":
            return
        if stop_after and step.text.startswith(stop_after):
            cluster.stop("immediate")
            is_down, stop_after = True, ""
        elif is_down and step.text.startswith("451"):
            cluster.start()
            is_down = False
            wait_until_answering(daemon, key)

    try:
        async with connect(daemon, dialogue) as peer:
            await Player(dialogue, peer, Values(key, SENDER, "a@b.test")).play(after)
    finally:
        if is_down:
            cluster.start()
    assert not stop_after
    wait_until_answering(daemon, key)
    with contextlib.closing(open_smtp(daemon, key)) as session:
        session.sendmail(SENDER, "a@b.test", "Subject: again\r\n\r\nagain\r\n")


def test_every_dialogue_is_played() -> None:
    assert {d.name for d in (*SHARED, *WITH_OWN_DAEMON, *STORE_DOWN)} == set(DIALOGUES)
