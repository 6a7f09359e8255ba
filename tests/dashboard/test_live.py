# SPDX-License-Identifier: Apache-2.0
"""The live stream with a real websocket client: new messages and changes within a second, nobody else's, no gaps."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto import ConnectionType, WSConnection
from wsproto.events import Request
from wsproto.extensions import Extension, PerMessageDeflate

from hepmaild.live import MAX_BATCHES, Batch, Feed, Resync
from tests.dashboard.conftest import OTHER, Site
from tests.dashboard.visitor import Visitor, link_of, sign_in
from tests.peers import postgres
from tests.peers.daemon import ACCOUNT, ROOT, Daemon, open_daemon, post, untrusting_context
from tests.peers.processes import assert_no_traceback
from tests.peers.sink import capture_sink

PATIENCE_S = 60.0  # for a machine that is busy; what is promised is a second


def seq_of(page: str) -> str:
    found = re.search(r'data-seq="(\d+)"', page)
    assert found is not None
    return found[1]


@asynccontextmanager
async def look(
    daemon: Daemon, visitor: Visitor | None, query: str = "", *, headers: dict[str, str] | None = None
) -> AsyncIterator[WebSocketConnection]:
    """A browser's websocket, with its cookies and the origin of our own page unless said otherwise."""
    port = daemon.ports["https"]
    sent = {"Origin": f"https://127.0.0.1:{port}"}
    if visitor is not None:
        sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in visitor.client.cookies.items())
    sent |= headers or {}
    extra = [(name.encode(), value.encode()) for name, value in sent.items() if value]
    # Not the library's own connecting: it leaves the socket open when it is turned away.
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port, ssl_context=untrusting_context(), https_compatible=True
    )
    try:
        async with trio.open_nursery() as nursery:
            host = f"127.0.0.1:{port}"
            yield await wrap_client_stream(nursery, stream, host, f"/live?{query}", extra_headers=extra)
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


async def refusal_of(
    daemon: Daemon, visitor: Visitor | None, query: str = "", headers: dict[str, str] | None = None
) -> int:
    """The HTTP status with which a websocket is refused; 0: it was not."""
    found: list[int] = []

    def note(error: BaseException) -> bool:
        found.append(getattr(error, "status_code", -1))
        return True

    try:
        async with look(daemon, visitor, query, headers=headers):
            pass
    except* ConnectionRejected as group:
        group.subgroup(lambda error: isinstance(error, ConnectionRejected) and note(error))
    return found[0] if found else 0


async def hear(socket: WebSocketConnection, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The next frame that is wanted."""
    with trio.fail_after(PATIENCE_S):
        while True:
            frame: dict[str, Any] = json.loads(await socket.get_message())
            if wanted(frame):
                return frame


async def code_of_the_end(socket: WebSocketConnection) -> int | None:
    """With which code the daemon closes."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                await socket.get_message()
            except ConnectionClosed as closed:
                return None if closed.reason is None else int(closed.reason.code)


async def send(daemon: Daemon, key: str, **fields: Any) -> str:
    body = {"to": "anna@example.com", "subject": "Hi", "text": "Hello", **fields}
    status, answer, _ = await trio.to_thread.run_sync(post, daemon, body, key)
    assert status in (200, 202), answer
    return str(answer["data"]["messageId"])


def states_of(frame: dict[str, Any], message_id: str) -> list[str]:
    whole = [line["state"] for line in frame.get("lines", ()) if line["id"] == message_id]
    return whole + [state for changed, state, _, _ in frame.get("changed", ()) if changed == message_id]


async def test_a_message_and_its_end_appear(site: Site) -> None:
    async with look(site.daemon, site.owner) as socket:
        assert (await hear(socket, lambda frame: "hello" in frame))["seq"] >= 0
        message_id = await send(site.daemon, site.key, subject="<b>live</b>")
        frame = await hear(socket, lambda frame: "sent" in states_of(frame, message_id))
        html = next(line["html"] for line in frame["lines"] if line["id"] == message_id)
        assert "&lt;b&gt;live&lt;/b&gt;" in html
        assert "<b>live" not in html


async def test_the_search_holds_for_the_stream(site: Site) -> None:
    async with look(site.daemon, site.owner, "q=to:wanted@example.com") as socket:
        await hear(socket, lambda frame: "hello" in frame)
        other = await send(site.daemon, site.key, to="unwanted@example.com")
        wanted = await send(site.daemon, site.key, to="wanted@example.com")
        seen: list[str] = []
        while "lines" not in seen:
            frame = await hear(socket, lambda frame: "lines" in frame)
            assert other not in [line["id"] for line in frame["lines"]]
            if wanted in [line["id"] for line in frame["lines"]]:
                seen.append("lines")


async def test_one_message_is_followed(site: Site) -> None:
    message_id = await send(site.daemon, site.key)
    page = await trio.to_thread.run_sync(site.owner.get, f"/logs/{message_id}")
    async with look(site.daemon, site.owner, f"message={message_id}&since={max(0, int(seq_of(page)) - 50)}") as socket:
        frame = await hear(socket, lambda frame: "message" in frame)
        assert frame["message"] == message_id
        assert "html" not in frame


async def test_what_was_missed_comes_after_a_lost_connection(site: Site) -> None:
    page = await trio.to_thread.run_sync(site.owner.get, "/logs")
    missed = [await send(site.daemon, site.key, subject=f"missed {n}") for n in range(5)]
    async with look(site.daemon, site.owner, f"since={seq_of(page)}") as socket:
        left = set(missed)
        while left:
            frame = await hear(socket, lambda frame: "lines" in frame)
            left -= {line["id"] for line in frame["lines"] if line["state"] == "sent"}
            left -= {changed[0] for changed in frame["changed"] if changed[1] == "sent"}
    async with look(site.daemon, site.owner, f"since={10**15}") as socket:
        assert (await hear(socket, lambda frame: "resync" in frame))["seq"] < 10**15


async def test_nobody_hears_of_another_account(site: Site) -> None:
    other_key = await trio.to_thread.run_sync(lambda: site.daemon.mint(email=OTHER)["key"])
    async with look(site.daemon, site.other, "since=0") as stranger, look(site.daemon, site.owner) as owner:
        await hear(stranger, lambda frame: "hello" in frame)
        await hear(owner, lambda frame: "hello" in frame)
        message_id = await send(site.daemon, site.key)
        await hear(owner, lambda frame: "sent" in states_of(frame, message_id))
        # What happened first is told first.
        own_id = await send(site.daemon, other_key)

        def is_own(frame: dict[str, Any]) -> bool:
            assert "beat" in frame or own_id in json.dumps(frame), f"a stranger heard {frame}"
            assert message_id not in json.dumps(frame)
            return "sent" in states_of(frame, own_id)

        await hear(stranger, is_own)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "null"}, 403),
        ({"Cookie": "__Host-hepmaild-access=forged"}, 401),
        ({"Cookie": ""}, 401),
        ({"Authorization": "Bearer hepmaild-live.x.y.z"}, 401),
        ({"Authorization": "Bearer " + "x" * 2000}, 401),
    ],
)
async def test_who_may_not_look_is_turned_away(site: Site, headers: dict[str, str], status: int) -> None:
    assert await refusal_of(site.daemon, site.owner, headers=headers) == status


@pytest.mark.parametrize("query", ["q=status:open", "message=xyz", "q=" + "x" * 600])
async def test_nonsense_is_refused(site: Site, query: str) -> None:
    assert await refusal_of(site.daemon, site.owner, query) == 400


async def test_signing_out_ends_the_stream(site: Site) -> None:
    made = await trio.to_thread.run_sync(site.daemon.json, "user", "add", ACCOUNT, "leaver@example.com")
    with ExitStack() as stack:
        visitor = await trio.to_thread.run_sync(lambda: stack.enter_context(sign_in(site.daemon, link_of(made))))
        async with look(site.daemon, visitor) as socket:
            await hear(socket, lambda frame: "hello" in frame)
            await trio.to_thread.run_sync(lambda: visitor.post("/sign-out"))
            assert await code_of_the_end(socket) == 4401


async def test_one_that_does_not_read_slows_nobody(site: Site) -> None:
    async with look(site.daemon, site.owner) as reader:
        await hear(reader, lambda frame: "hello" in frame)
        # A browser that is connected and never takes an octet.
        idle = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", site.daemon.ports["https"], ssl_context=untrusting_context(), https_compatible=True
        )
        cookies = "; ".join(f"{name}={value}" for name, value in site.owner.client.cookies.items())
        host = f"127.0.0.1:{site.daemon.ports['https']}"
        await idle.send_all(
            f"GET /live HTTP/1.1\r\nHost: {host}\r\nOrigin: https://{host}\r\nCookie: {cookies}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        left = {await send(site.daemon, site.key, subject="x" * 900) for _ in range(30)}
        while left:
            frame = await hear(reader, lambda frame: "lines" in frame)
            left -= {message_id for message_id in left if "sent" in states_of(frame, message_id)}
        await trio.aclose_forcefully(idle)


async def test_every_reader_ends_with_the_truth(site: Site) -> None:
    """Five pages and one that never reads, while much happens: the daemon keeps little, and each page is right."""
    states: list[dict[str, str]] = [{} for _ in range(5)]
    # A key of its own: others send here too, and a key may call 120 times a minute.
    key = site.daemon.json("key", "mint", ACCOUNT, "--name", "much")["key"]
    before = site.daemon.memory()["rss"]

    async def follow(own: dict[str, str], *, task_status: trio.TaskStatus[None]) -> None:
        async with look(site.daemon, site.owner, "q=to:much@example.com") as socket:
            await hear(socket, lambda frame: "hello" in frame)
            task_status.started()
            while True:
                frame = json.loads(await socket.get_message())
                own |= {line["id"]: line["state"] for line in frame.get("lines", ())}
                own |= {changed[0]: changed[1] for changed in frame.get("changed", ())}

    async with trio.open_nursery() as nursery, look(site.daemon, site.owner):
        for own in states:
            await nursery.start(follow, own)
        wanted: list[str] = []

        async def send_some() -> None:
            for _ in range(25):
                wanted.append(await send(site.daemon, key, to="much@example.com", subject="x" * 900))

        async with trio.open_nursery() as senders:
            for _ in range(4):
                senders.start_soon(send_some)
        with trio.fail_after(PATIENCE_S):
            while any(own.get(message_id) != "sent" for own in states for message_id in wanted):  # noqa: ASYNC110
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    export = await trio.to_thread.run_sync(site.owner.get, "/logs/export.jsonl?q=to:much@example.com")
    truth = {line["message_id"]: line["state"] for line in map(json.loads, export.splitlines())}
    assert all(own == truth for own in states)
    assert len(truth) == 100
    assert site.daemon.memory()["rss"] - before < 64 << 20


async def test_a_reader_that_is_too_slow_is_told_to_look_anew(autojump_clock: MockClock) -> None:
    """Whatever happens meanwhile, it waits in no more than `MAX_BATCHES`."""
    feed = Feed("a")
    for n in range(1, 1000):
        feed.put(Batch(n, n * 10, (f"{n:016x}",)))
    taken = []
    with trio.move_on_after(1):  # once there is nothing more
        while True:
            taken.append(await feed.take())
    assert isinstance(taken[0], Resync)
    assert len(taken) <= MAX_BATCHES
    # It goes on from there: what came later is told.
    seqs = [item.seq for item in taken if item is not None]
    assert seqs == sorted(seqs)
    assert seqs[-1] == 9990


# Stopping, other processes, the command line: daemons of their own


@pytest.fixture
def pair(postgres_server: str, migrated_postgres: str) -> Iterator[tuple[Daemon, Daemon, str, Visitor]]:
    """Two processes on one PostgreSQL; somebody signed in at the second."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.open_database(postgres_server, migrated_postgres))
        sink = stack.enter_context(capture_sink())
        first = stack.enter_context(open_daemon(sink_port=sink.port, database_url=url, start=False, name="first"))
        key = first.setup()
        first.start()
        second = stack.enter_context(open_daemon(sink_port=sink.port, database_url=url, name="second"))
        visitor = stack.enter_context(sign_in(second, link_of(first.json("account", "link", ACCOUNT))))
        yield first, second, key, visitor


async def test_what_another_process_does_appears(pair: tuple[Daemon, Daemon, str, Visitor]) -> None:
    first, second, key, visitor = pair
    async with look(second, visitor) as socket:
        await hear(socket, lambda frame: "hello" in frame)
        for _ in range(3):
            message_id = await send(first, key)
            await hear(socket, lambda frame, wanted=message_id: "sent" in states_of(frame, wanted))  # type: ignore[misc]


async def test_the_end_of_the_daemon_is_said() -> None:
    with capture_sink() as sink, open_daemon(sink_port=sink.port, start=False) as daemon:
        daemon.setup()
        daemon.start()
        with sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))) as visitor:
            async with look(daemon, visitor) as socket:
                await hear(socket, lambda frame: "hello" in frame)
                daemon.signal(signal.SIGTERM)
                assert await code_of_the_end(socket) == 1001
        assert await trio.to_thread.run_sync(daemon.terminate) == 0
        assert_no_traceback(daemon.log())


async def test_the_command_line_follows_over_a_restart() -> None:
    with capture_sink() as sink, open_daemon(sink_port=sink.port, start=False) as daemon:
        key = await trio.to_thread.run_sync(daemon.setup)
        await trio.to_thread.run_sync(daemon.start)
        daemon.write_settings()  # with the ports
        before = await send(daemon, key, subject="before")
        command = [sys.executable, "-m", "hepmaild", "-c", str(daemon.config_path), "log", "tail", "--follow", "--json"]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        lines = Lines(process)
        try:
            await lines.until(before, "sent")
            here = await send(daemon, key, subject="while it follows")
            await lines.until(here, "sent")
            for n in range(2):
                await trio.to_thread.run_sync(daemon.terminate)
                await trio.to_thread.run_sync(daemon.start)
                after = await send(daemon, key, subject=f"after restart {n}")
                await lines.until(after, "sent")
            process.terminate()
            assert process.stderr is not None
            with trio.fail_after(PATIENCE_S):
                told = b"".join([piece async for piece in process.stderr]).decode()
            assert told.count("waiting for the daemon at") == 2, told
        finally:
            process.kill()
            await process.wait()


class Lines:
    """What a command prints, a JSON object a line."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._rest = b""

    async def until(self, message_id: str, state: str) -> None:
        """Read until this message has this state."""
        with trio.fail_after(PATIENCE_S * 2):
            while True:
                line, newline, rest = self._rest.partition(b"\n")
                if not newline:
                    piece = await self._stream.receive_some()
                    assert piece, "the command ended"
                    self._rest += piece
                    continue
                self._rest = rest
                found = json.loads(line)
                if found["message_id"] == message_id and found["state"] == state:
                    return


async def ends(stream: trio.abc.ReceiveStream) -> None:
    """Read until the daemon has ended the connection."""
    with trio.fail_after(PATIENCE_S), suppress(trio.BrokenResourceError):  # a reset, since we did not listen
        while await stream.receive_some():
            pass


@asynccontextmanager
async def upgrade(site: Site, words: bytes = b"", **handshake: Any) -> AsyncIterator[trio.SSLStream[Any]]:
    """A browser's websocket by hand: the request, and `words` right behind it."""
    port = site.daemon.ports["https"]
    cookies = "; ".join(f"{name}={value}" for name, value in site.owner.client.cookies.items())
    ours = [(b"Origin", f"https://127.0.0.1:{port}".encode()), (b"Cookie", cookies.encode())]
    ask = Request(host=f"127.0.0.1:{port}", target="/live", extra_headers=ours, **handshake)
    async with await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port, ssl_context=untrusting_context(), https_compatible=True
    ) as stream:
        await stream.send_all(WSConnection(ConnectionType.CLIENT).send(ask) + words)
        yield stream
        await trio.aclose_forcefully(stream)


def frame_of(octets: bytes, *, is_packed: bool = False) -> bytes:
    """A text message in one frame, masked with zeros (RFC 6455 §5.2, RFC 7692 §6)."""
    if is_packed:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        octets = (packer.compress(octets) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
    length = len(octets)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    return (b"\xc1" if is_packed else b"\x81") + size + bytes(4) + octets


@pytest.mark.parametrize("is_packed", [False, True])
async def test_who_says_more_than_a_page_ever_does_is_left(site: Site, is_packed: bool) -> None:
    """The library told it so, and then kept every octet of that message and of all that came behind it."""
    extensions: list[Extension] = [PerMessageDeflate()] if is_packed else []
    async with upgrade(site, extensions=extensions) as stream:
        heard = b""
        with trio.fail_after(PATIENCE_S):
            while b"hello" not in heard and not (is_packed and heard.partition(b"\r\n\r\n")[2]):
                heard += await stream.receive_some()
        await stream.send_all(frame_of(b"x" * 5000, is_packed=is_packed))
        await ends(stream)


async def test_who_speaks_before_the_handshake_is_over_is_left(site: Site) -> None:
    """The library forgot whoever served it, which then held the connection until the session ended."""
    async with upgrade(site, frame_of(b"x")) as stream:
        await ends(stream)
