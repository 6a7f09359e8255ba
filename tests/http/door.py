# SPDX-License-Identifier: Apache-2.0
"""A real HTTPS door in this process, in front of an intake that answers by script."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import trio
from sqlalchemy import Connection

from hepmaild.config import HttpSettings, LimitSettings
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.http.limits import Timeouts
from hepmaild.http.server import BoundHttp, HttpDoor
from hepmaild.intake import Intake
from hepmaild.lifecycle import Lifecycle
from hepmaild.mail.submission import Door, KeyIdentity, Permission, RateState, Receipt, Status, Submission, Verified
from hepmaild.materials import Materials
from hepmaild.own_servers import OwnServers
from hepmaild.people import People
from hepmaild.storage import accounts
from hepmaild.tls import new_context
from tests.peers.certificates import Certificate, make_certificate

KEY = "hyd-mail-" + "A" * 35 + "b1c2d"
IDENTITY = KeyIdentity("k1", "test", "b1c2d", "a1", "demo@example.com", "standard", 120)
# How long is waited for what must come: a busy machine may take a while.  Below `Timeouts.idle_s`: what should end at
# once does not pass because it ends then.
PATIENCE_S = 45.0
RECEIPT = Receipt("a1b2c3d4e5f6a7b8", "<1@hep.gg>", Status.SENT, "noreply@hep.gg", 1, 1)
GOOD: dict[str, Any] = {"to": "joe@example.com", "subject": "Hi", "text": "Hello"}

Accept = Callable[[Submission], Awaitable[Receipt | Refusal]]


class ScriptedIntake(Intake):
    """Knows one key, counts calls, keeps submissions; `verdict`, `window` and `accept_by` may be changed by a test."""

    def __init__(self) -> None:
        self.verdict: Verified | Refusal | Exception = Verified(IDENTITY)
        self.window: RateState | Refusal | Exception = RateState(120, 119, 1_800_000_000)
        self.accept_by: Accept | None = None
        self.result: Receipt | Refusal | Exception = RECEIPT
        self.peers: list[str] = []
        self.needed: list[Permission | None] = []
        self.calls = 0
        self.words: list[str | None] = []
        self.told: dict[tuple[str, bytes], Receipt | Refusal] = {}
        self.submissions: list[Submission] = []

    async def authenticate(
        self, secret: str, *, door: Door, peer_ip: str, needs: Permission | None = None
    ) -> Verified | Refusal:
        assert door is Door.HTTP
        self.needed.append(needs)
        self.peers.append(peer_ip)
        if secret != KEY:
            return Refusal(ErrorKind.INVALID_KEY, "this is not a valid API key")
        return _told(self.verdict)  # type: ignore[no-any-return]

    async def take_call(self, key: KeyIdentity, *, recipients: int = 0, word: str | None = None) -> RateState | Refusal:
        self.words.append(word)
        assert key is IDENTITY
        assert recipients == 0
        self.calls += 1
        return _told(self.window)  # type: ignore[no-any-return]

    async def told_before(self, key: KeyIdentity, word: str, fingerprint: bytes) -> Receipt | Refusal | None:
        assert key is IDENTITY
        return self.told.get((word, fingerprint))

    async def accept(self, submission: Submission) -> Receipt | Refusal:
        state: RateState | Refusal | None = None
        if not submission.is_counted:
            state = await self.take_call(submission.key, word=submission.idempotency_word)
            if isinstance(state, Refusal):
                return state
        self.submissions.append(submission)
        answer: Receipt | Refusal = _told(self.result) if self.accept_by is None else await self.accept_by(submission)
        return answer if state is None else replace(answer, rate=state)


def make_owner(conn: Connection, now_us: int) -> None:
    """The account of `IDENTITY`, in a store."""
    accounts.create(
        conn,
        account_id=IDENTITY.account_id,
        user_id="u1",
        email=IDENTITY.account_email,
        plan="standard",
        password_hash=None,
        is_operator=False,
        credits_granted=0,
        granted_by="a test",
        now_us=now_us,
    )


def _told(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


@dataclass
class Running:
    """A door that serves, and how to reach it."""

    door: HttpDoor
    intake: ScriptedIntake
    lifecycle: Lifecycle
    bound: BoundHttp
    trust: ssl.SSLContext
    context: ssl.SSLContext
    problems: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.bound.https[0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def plain_port(self) -> int:
        return int(self.bound.plain[0].rpartition(":")[2])

    def client(self, *, http2: bool = False, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, verify=self.trust, http2=http2, timeout=PATIENCE_S, **options)

    async def post(self, payload: Any = None, *, key: str | None = KEY, **options: Any) -> httpx.Response:
        """One send request on its own connection."""
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {key}")
        if "content" not in options:
            options["json"] = GOOD if payload is None else payload
        async with self.client(http2=options.pop("http2", False)) as client:
            return await client.post("/api/v1/email/send", headers=headers, **options)

    async def connect(self, alpn: str | None = None) -> trio.SSLStream[trio.SocketStream]:
        """A raw TLS connection."""
        return self.secure(await trio.open_tcp_stream("127.0.0.1", self.port), alpn)

    def secure(self, raw: trio.SocketStream, alpn: str | None) -> trio.SSLStream[trio.SocketStream]:
        """TLS over a connection to the door."""
        context = ssl.create_default_context(cafile=self.cafile)
        if alpn:
            context.set_alpn_protocols([alpn])
        return trio.SSLStream(raw, context, server_hostname="127.0.0.1", https_compatible=True)

    cafile: str = ""


@asynccontextmanager
async def open_door(
    folder: Path,
    *,
    settings: HttpSettings | None = None,
    limits: LimitSettings | None = None,
    plain: bool = False,
    proxies: tuple[str, ...] = (),
    timeouts: Timeouts | None = None,
    make: type[HttpDoor] = HttpDoor,
    people: People | None = None,
    materials: Materials | None = None,
    own_servers: OwnServers | None = None,
    dashboard: Dashboard | None = None,
) -> AsyncIterator[Running]:
    """A door on a free loopback port; it is drained at the end, which must not take long."""
    certificate = make_certificate(folder)
    context = new_context(("h2", "http/1.1"))
    load(context, certificate)
    lifecycle = Lifecycle()
    intake = ScriptedIntake()
    problems: list[str] = []

    async def readiness() -> list[str]:
        return problems

    settings = settings or HttpSettings(
        listen=("127.0.0.1:0",),
        plain_listen=("127.0.0.1:0",) if plain else (),
        public_url="https://hep.gg/",
        trusted_proxies=proxies,
    )
    door = make(
        settings,
        limits or LimitSettings(),
        intake,
        lifecycle,
        lambda: context,
        readiness=readiness,
        spool_dir=folder,
        timeouts=timeouts,
        people=people,
        own_servers=own_servers,
        materials=materials,
        dashboard=dashboard,
    )
    stopped = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[BoundHttp]) -> None:
        await door.run(task_status=task_status)
        stopped.set()

    async with trio.open_nursery() as nursery:
        bound: BoundHttp = await nursery.start(serve)
        trust = ssl.create_default_context(cafile=str(certificate.certificate))
        yield Running(door, intake, lifecycle, bound, trust, context, problems, str(certificate.certificate))
        lifecycle.draining.set()
        with trio.fail_after(PATIENCE_S):
            await stopped.wait()


def load(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Load, or load anew, what `context` presents."""
    context.load_cert_chain(certificate.certificate, certificate.private_key)


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait for something that happens in other tasks and has no event."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def read_all(stream: trio.abc.ReceiveStream, timeout_s: float = PATIENCE_S) -> bytes:
    """Everything up to the end of the connection, which must come in time."""
    got = b""
    with trio.fail_after(timeout_s):
        try:
            while chunk := await stream.receive_some(65536):
                got += chunk
        except trio.BrokenResourceError:
            pass
    return got
