# SPDX-License-Identifier: Apache-2.0
"""What dialogues are played against here: the bare machine, and a session on memory streams."""

from __future__ import annotations

import contextlib
import functools
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from hepmaild.config import LimitSettings, SmtpSettings
from hepmaild.errors import Refusal
from hepmaild.mail.address import check_address
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import Verified
from hepmaild.smtp import actions as act
from hepmaild.smtp.facts import TlsInfo
from hepmaild.smtp.machine import SubmissionMachine
from hepmaild.smtp.say import refusal_reply
from hepmaild.smtp.session import SessionSetup, SmtpSession
from hepmaild.timers import Timers
from tests.peers.certificates import make_certificate
from tests.smtp.scripted import KEY, MESSAGE_ID, RATE, Script, ScriptedIntake
from tests.smtp.transcript import Dialogue

TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
HOSTNAME = "smtp.test"


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context that trust each other."""
    with tempfile.TemporaryDirectory() as folder:
        made = make_certificate(Path(folder))
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(made.certificate, made.private_key)
        client = ssl.create_default_context(cafile=str(made.certificate))
    return server, client


class MachineDriver:
    """A machine, and answers to its questions from a script.  No I/O at all."""

    def __init__(
        self, script: Script | None = None, *, implicit: bool = True, size: int = 26_214_400, recipients: int = 100
    ) -> None:
        self.machine = SubmissionMachine(
            hostname=HOSTNAME,
            max_message_octets=size,
            max_recipients=recipients,
            check_address=check_address,
            peer="192.0.2.1",
        )
        self.script = script or Script()
        self.sent = b""
        self.trace: list[object] = []  # what was asked and done, replies and content joined
        self.contents: list[bytes] = []
        self.envelopes: list[object] = []
        self.secrets: list[str] = []
        self.closed: act.CloseReason | None = None
        self.wants_tls = False
        self._content = b""
        self.do(self.machine.start_tls_first(TLS, 0) if implicit else self.machine.start(0))

    def receive(self, octets: bytes) -> None:
        self.do(self.machine.receive(octets, 0))

    def do(self, actions: list[act.Action]) -> None:
        while actions:
            answer: list[act.Action] = []
            for number, action in enumerate(actions, 1):
                if isinstance(action, act.Send):
                    self.sent += action.octets
                elif isinstance(action, act.BeginMessage | act.AbortMessage):
                    self._content = b""
                elif isinstance(action, act.MessageChunk):
                    self._content += action.octets
                elif isinstance(action, act.Close):
                    self.closed = action.reason
                    self.trace.append(("close", action.reason, self.sent))
                elif isinstance(action, act.StartTls):
                    self.wants_tls = True
                else:
                    assert number == len(actions), "a question is the last action"
                    answer = self._ask(action)
            actions = answer

    def tls_done(self) -> None:
        self.wants_tls = False
        self.do(self.machine.tls_established(TLS, 0))

    def _ask(self, question: act.Action) -> list[act.Action]:
        machine = self.machine
        if isinstance(question, act.Verify):
            self.secrets.append(question.secret)
            self.trace.append(("verify", question.secret))
            answer = self.script.answer("auth")
            return machine.auth_result(Verified(KEY) if isinstance(answer, str) else answer, 0)
        if isinstance(question, act.OpenTransaction):
            self.trace.append(("mail",))
            answer = self.script.answer("mail")
            return machine.mail_result(KEY if isinstance(answer, str) else answer, 0)
        if isinstance(question, act.TakeCall):
            self.trace.append(("call", question.recipients))
            answer = self.script.answer("call")
            return machine.call_result(RATE if isinstance(answer, str) else answer, 0)
        assert isinstance(question, act.EndMessage)
        self.contents.append(self._content)
        self.envelopes.append(question.envelope)
        self.trace.append(("message", question.envelope, self._content, self.sent))
        answer = self.script.answer("message")
        if answer is None:
            return machine.message_result(Reply(451, "4.3.0", "store"), 0)
        if isinstance(answer, Refusal):
            return machine.message_result(refusal_reply(answer), 0)
        word = "sent" if answer == "sent" else "queued"
        return machine.message_result(Reply(250, "2.0.0", f"{word} as {MESSAGE_ID}"), 0)


class MachinePeer:
    """The bare machine as a dialogue's peer; every write arrives in pieces of `piece` octets, 0 for whole."""

    def __init__(self, dialogue: Dialogue, piece: int = 0) -> None:
        self.driver = MachineDriver(
            Script(dialogue.intake), implicit=dialogue.implicit, size=dialogue.size, recipients=dialogue.recipients
        )
        self._piece = piece
        self._read = 0

    async def send(self, octets: bytes) -> None:
        step = self._piece or len(octets)
        for at in range(0, len(octets), step):
            self.driver.receive(octets[at : at + step])

    async def read(self) -> bytes:
        more = self.driver.sent[self._read :]
        self._read += len(more)
        assert more or self.driver.closed, "the machine has nothing more to say, and has not closed"
        return more

    async def starttls(self) -> None:
        assert self.driver.wants_tls
        self.driver.tls_done()

    async def wait_idle(self) -> None:
        self.driver.do(self.driver.machine.timeout(0))

    async def drain(self) -> None:
        self.driver.do(self.driver.machine.drain(0))


class StreamPeer:
    """A session behind a client's stream."""

    def __init__(
        self, session: SmtpSession, stream: trio.abc.HalfCloseableStream, clock: trio.testing.MockClock | None
    ):
        self.session = session
        self.transport = stream
        self.stream: trio.abc.Stream = stream
        self._clock = clock

    async def send(self, octets: bytes) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(octets)

    async def read(self) -> bytes:
        return bytes(await self.stream.receive_some(65536))

    async def starttls(self) -> None:
        tls = trio.SSLStream(self.transport, contexts()[1], server_hostname="localhost", https_compatible=True)
        await tls.do_handshake()
        self.stream = tls

    async def wait_idle(self) -> None:
        assert self._clock is not None
        await trio.testing.wait_all_tasks_blocked()
        self._clock.jump(601)

    async def drain(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self.session.drain()


@asynccontextmanager
async def open_session(
    intake: ScriptedIntake,
    *,
    implicit: bool = True,
    clock: trio.testing.MockClock | None = None,
    size: int = 26_214_400,
    recipients: int = 100,
    spool_dir: Path | None = None,
    handshake: bool = True,
) -> AsyncIterator[StreamPeer]:
    """A session on memory streams; it must have ended by itself when the block ends, else it is cancelled."""
    setup = SessionSetup(
        hostname=HOSTNAME,
        settings=SmtpSettings(max_message_bytes=size),
        limits=LimitSettings(recipients_per_message=recipients),
        intake=intake,
        ssl_context=lambda: contexts()[0],
        timers=Timers(),
        spool_dir=spool_dir,
    )
    ours, theirs = trio.testing.memory_stream_pair()
    session = SmtpSession(setup, theirs, peer_ip="192.0.2.1", session_id="0123456789abcdef", implicit=implicit)
    async with trio.open_nursery() as outer:
        outer.start_soon(setup.timers.run)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            peer = StreamPeer(session, ours, clock)
            if implicit and handshake:
                await peer.starttls()
            yield peer
            with trio.move_on_after(5):
                await trio.aclose_forcefully(ours)
            nursery.cancel_scope.deadline = trio.current_time() + 10
        outer.cancel_scope.cancel()
