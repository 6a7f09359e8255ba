# SPDX-License-Identifier: Apache-2.0
"""One session over memory streams under a mock clock: time-outs, slow and half-open peers, crashes, spooling."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from hepmaild.mail.content import SPOOL_OCTETS
from hepmaild.mail.submission import Submission
from hepmaild.smtp import session as session_module
from hepmaild.smtp.keep import ContentKeeper
from tests.peers.processes import no_file_beyond
from tests.smtp.harness import StreamPeer, open_session
from tests.smtp.scripted import Script, ScriptedIntake

if TYPE_CHECKING:
    from tests.conftest import LogEvents

AUTH = b"EHLO c\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n"
ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"


async def read_until(peer: StreamPeer, wanted: bytes) -> bytes:
    """What the server says up to and including `wanted`."""
    received = b""
    with trio.fail_after(10_000):
        while wanted not in received:
            more = await peer.read()
            assert more, f"the end came before {wanted!r}: {received!r}"
            received += more
    return received


async def begin(peer: StreamPeer, octets: bytes = AUTH, wanted: bytes = b"235 ") -> None:
    await read_until(peer, b"220 ")
    await peer.send(octets)
    await read_until(peer, wanted)


async def test_silence_between_commands(autojump_clock: trio.testing.MockClock, log_events: LogEvents) -> None:
    async with open_session(ScriptedIntake()) as peer:
        await begin(peer)
        began = trio.current_time()
        assert await peer.read() == b"421 4.4.2 Timed out, closing\r\n"
        assert trio.current_time() - began == pytest.approx(600, abs=1)
        assert await peer.read() == b""
    (event,) = log_events.named("session_closed")
    assert event["reason"] == "timeout"
    assert event["commands"] == 2


async def test_a_command_an_octet_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """RFC 5321 §4.5.3.2.7."""
    async with open_session(ScriptedIntake()) as peer:
        await begin(peer)
        began = trio.current_time()

        async def drip() -> None:
            while True:
                await peer.send(b"x")
                await trio.sleep(20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            assert (await peer.read()).startswith(b"421 4.4.2")
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began == pytest.approx(300, abs=1)


async def test_every_line_has_its_own_time(autojump_clock: trio.testing.MockClock) -> None:
    """Also where each read ends within the next one, as with a client that sends on without a pause."""
    async with open_session(ScriptedIntake()) as peer:
        await begin(peer)
        await peer.send(b"NO")
        for _ in range(10):
            await trio.sleep(100)
            await peer.send(b"OP\r\nNO")
            assert await peer.read() == b"250 2.0.0 OK\r\n"


async def test_every_content_has_its_own_time(autojump_clock: trio.testing.MockClock) -> None:
    begun = ENVELOPE + b"BDAT 18 LAST\r\nSubject: x\r\n\r\n"
    async with open_session(ScriptedIntake()) as peer:
        await begin(peer)
        await peer.send(begun)
        for _ in range(40):
            await trio.sleep(100)
            await peer.send(b"12\r\n" + begun)
            await read_until(peer, b"queued as")


async def test_content_that_stops(autojump_clock: trio.testing.MockClock) -> None:
    """RFC 5321 §4.5.3.2.5."""
    intake = ScriptedIntake()
    async with open_session(intake) as peer:
        await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
        await peer.send(b"Subject: x\r\n")
        began = trio.current_time()
        assert (await peer.read()).startswith(b"421 4.4.2")
        assert trio.current_time() - began == pytest.approx(180, abs=1)
    assert intake.accepted == []


async def test_content_an_octet_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(ScriptedIntake()) as peer:
        await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
        began = trio.current_time()

        async def drip() -> None:
            while True:
                await peer.send(b"x")
                await trio.sleep(150)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            assert (await peer.read()).startswith(b"421 4.4.2")
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began <= 3601


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_stops(
    autojump_clock: trio.testing.MockClock, log_events: LogEvents, octets: bytes
) -> None:
    async with open_session(ScriptedIntake(), handshake=False) as peer:
        if octets:
            await peer.send(octets)
        began = trio.current_time()
        assert await peer.transport.receive_some(100) == b""
        assert trio.current_time() - began == pytest.approx(30, abs=1)
    assert len(log_events.named("session_closed")) == 1


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_stops_behind_starttls(
    autojump_clock: trio.testing.MockClock, log_events: LogEvents, octets: bytes
) -> None:
    async with open_session(ScriptedIntake(), implicit=False) as peer:
        await read_until(peer, b"220 ")
        await peer.send(b"EHLO client\r\n")
        await read_until(peer, b"STARTTLS\r\n")
        await peer.send(b"STARTTLS\r\n")
        await read_until(peer, b"220 ")
        if octets:
            await peer.send(octets)
        assert await peer.transport.receive_some(100) == b""
    assert log_events.named("session_closed")[0]["reason"] == "timeout while TLS began"


async def test_no_tls_at_all_on_the_implicit_port(log_events: LogEvents) -> None:
    async with open_session(ScriptedIntake(), handshake=False) as peer:
        await peer.send(b"EHLO client\r\n")
        with trio.fail_after(60):
            while await peer.transport.receive_some(100):
                pass
    (event,) = log_events.named("session_closed")
    assert str(event["reason"]).startswith("TLS handshake failed")
    assert event["level"] == "info"


async def test_the_peer_leaves_without_close_notify(log_events: LogEvents) -> None:
    """RFC 8446 §6.1."""
    async with open_session(ScriptedIntake()) as peer:
        await begin(peer)
        await peer.send(b"MAIL FROM:<a@example.com>\r\n")
        await read_until(peer, b"250 2.1.0")
        await peer.transport.aclose()
    (event,) = log_events.named("session_closed")
    assert event["reason"] == "eof"


async def test_half_closed_peers_get_their_answers() -> None:
    intake = ScriptedIntake()
    async with open_session(intake, implicit=False) as peer:
        await read_until(peer, b"220 ")
        await peer.send(b"EHLO c\r\nNOOP\r\n")
        await peer.transport.send_eof()
        assert b"250 2.0.0 OK" in await read_until(peer, b"OK\r\n")
        assert await peer.read() == b""


async def test_too_many_failed_keys_wait_before_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    script = Script({"auth": ["TOO_MANY_FAILED_KEYS:4", "TOO_MANY_FAILED_KEYS:600", "ok"]})
    async with open_session(ScriptedIntake(script)) as peer:
        for seconds in (4, 10):
            began = trio.current_time()
            if seconds == 4:
                await begin(peer, wanted=b"535 5.7.8")
            else:
                await peer.send(b"AUTH PLAIN AHVzZXIAcGFzcw==\r\n")
                await read_until(peer, b"535 5.7.8")
            assert trio.current_time() - began == pytest.approx(seconds, abs=0.5)


async def test_a_crash_is_answered_and_ends_nothing_else(log_events: LogEvents) -> None:
    log_events.expect_error("session_crashed")
    async with open_session(ScriptedIntake(Script({"message": ["crash"]}))) as peer:
        await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
        await peer.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        await read_until(peer, b"421 4.3.0 ")
        assert await peer.read() == b""
    (event,) = log_events.named("session_crashed")
    assert event["session"] == "0123456789abcdef"
    assert "cGFzcw" not in repr(log_events)


async def test_draining_while_the_intake_works() -> None:
    class Slow(ScriptedIntake):
        def __init__(self) -> None:
            super().__init__()
            self.begun, self.go_on = trio.Event(), trio.Event()

        async def accept(self, submission: Submission):  # type: ignore[no-untyped-def]
            self.begun.set()
            await self.go_on.wait()
            return await super().accept(submission)

    intake = Slow()
    async with open_session(intake) as peer:
        await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
        await peer.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        with trio.fail_after(60):
            await intake.begun.wait()
        peer.session.drain()
        intake.go_on.set()
        received = await read_until(peer, b"421 4.3.2")
        assert received.startswith(b"250 2.0.0 queued as ")
        assert await peer.read() == b""


async def test_large_content_is_spooled_and_whole(tmp_path: Path) -> None:
    intake = ScriptedIntake()
    body = b"".join(b"%06d %s\r\n" % (n, b"y" * 70) for n in range(40_000))
    async with open_session(intake, spool_dir=tmp_path) as peer:
        await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
        await peer.send(b"Subject: x\r\n\r\n" + body + b".\r\nQUIT\r\n")
        await read_until(peer, b"221 ")
    assert intake.bodies == [b"Subject: x\r\n\r\n" + body]
    assert intake.accepted[0].source.is_spooled  # type: ignore[union-attr]
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_a_full_disk_is_a_temporary_refusal(tmp_path: Path, log_events: LogEvents) -> None:
    intake = ScriptedIntake()
    async with open_session(intake, spool_dir=tmp_path / "missing") as peer:
        await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
        await peer.send(b"Subject: x\r\n\r\n" + (b"y" * 70 + b"\r\n") * 40_000 + b".\r\n")
        await read_until(peer, b"451 4.3.0 ")
        await peer.send(ENVELOPE + b"DATA\r\n")
        await read_until(peer, b"354 ")
        await peer.send(b"Subject: small\r\n\r\nbody\r\n.\r\n")
        await read_until(peer, b"250 2.0.0 queued as ")
    assert len(log_events.named("spool_failed")) == 1
    assert intake.bodies == [b"Subject: small\r\n\r\nbody\r\n"]


LARGE = b"Subject: x\r\n\r\n" + (b"y" * 70 + b"\r\n") * 40_000


async def test_nothing_is_denied_that_may_have_been_committed() -> None:
    """The store gave no answer: whether the message is ours nobody knows."""
    async with open_session(ScriptedIntake(Script({"message": ["store-down"]}))) as peer:
        await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
        await peer.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        reply = await read_until(peer, b"\r\n")
    assert reply.startswith(b"451 4.3.0 Temporary failure")
    assert b"nothing was accepted" not in reply


@pytest.mark.parametrize("missing", [1, 100, 5000, 300_000])
async def test_a_disk_that_is_full_at_the_last_octet(missing: int, tmp_path: Path, log_events: LogEvents) -> None:
    intake = ScriptedIntake()
    with no_file_beyond(len(LARGE) - missing):
        async with open_session(intake, spool_dir=tmp_path) as peer:
            await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
            await peer.send(LARGE + b".\r\n")
            await read_until(peer, b"451 4.3.0 ")
            await peer.send(b"QUIT\r\n")
            await read_until(peer, b"221 ")
    assert len(log_events.named("spool_failed")) == 1
    assert intake.bodies == []


async def test_a_client_that_leaves_while_the_disk_is_full(tmp_path: Path) -> None:
    """It ends its own session only: what found no room is not written once more when the spool is dropped."""
    with no_file_beyond(len(LARGE) - 100):
        async with open_session(ScriptedIntake(), spool_dir=tmp_path) as peer:
            await begin(peer, AUTH + ENVELOPE + b"DATA\r\n", b"354 ")
            await peer.send(LARGE)
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_the_submission_says_how_it_came() -> None:
    intake = ScriptedIntake()
    async with open_session(intake) as peer:
        await begin(peer, AUTH + b"MAIL FROM:<> SMTPUTF8\r\n" + ENVELOPE[27:] + b"DATA\r\n", b"354 ")
        await peer.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
        await read_until(peer, b"250 2.0.0 queued as a1b2c3d4e5f6a7b8\r\n")
    (submission,) = intake.accepted
    assert intake.secrets == ["pass"]
    assert submission.reverse_path == ""
    assert submission.smtputf8
    assert [r.address for r in submission.recipients] == ["b@example.com"]
    assert submission.origin.tls_version == "TLSv1.3"
    assert submission.origin.helo == "c"
    assert submission.origin.peer_ip == "192.0.2.1"
    assert submission.steps[-1].text == "message content, 20 octets"


async def test_a_peer_that_stops_reading_is_given_up(
    autojump_clock: trio.testing.MockClock, log_events: LogEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 250 cannot be sent; the session ends within the send time-out and frees everything."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with open_session(ScriptedIntake(), implicit=False, handshake=False) as peer:
        await read_until(peer, b"220 ")
        session = peer.session
        session._stream = theirs  # a transport whose send waits for the reader
        began = trio.current_time()
        await peer.send(b"EHLO c\r\n")
        while not log_events.named("session_closed"):  # noqa: ASYNC110
            await trio.sleep(1)
        assert trio.current_time() - began <= session_module.SEND_TIMEOUT_S + session_module.LINGER_S + 2
    await trio.aclose_forcefully(ours)


async def test_pieces_of_any_size_keep_their_order(tmp_path: Path) -> None:
    """A small piece must not overtake larger ones that wait to be written."""
    keeper = ContentKeeper(tmp_path, trio.CapacityLimiter(1))
    keeper.begin()
    pieces = [bytes([n]) * size for n, size in enumerate((900_000, 200_000, 10, 70_000, 1, 300_000, 5))]
    for piece in pieces:
        assert await keeper.write(piece)
    content = await keeper.finish()
    assert content is not None
    assert b"".join(content.chunks()) == b"".join(pieces)
    content.close()


@pytest.mark.parametrize("before", [0, SPOOL_OCTETS + 1])
async def test_tiny_pieces_take_no_more_memory_than_large_ones(tmp_path: Path, before: int) -> None:
    """BDAT 2 as often as one likes: an object for each was 22 times as large as what was in it."""
    keeper = ContentKeeper(tmp_path, trio.CapacityLimiter(1))
    keeper.begin()
    assert await keeper.write(bytes(before))
    source = os.urandom(100_000)
    tracemalloc.start()
    for at in range(0, len(source), 2):
        assert await keeper.write(source[at : at + 2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    content = await keeper.finish()
    assert content is not None
    assert b"".join(content.chunks(before)) == source, "the octets differ"
    content.close()
    assert peak < 4 * len(source)


async def test_a_transaction_that_stalls_does_not_hold_the_drain(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(ScriptedIntake()) as peer:
        await begin(peer, AUTH + ENVELOPE, b"250 2.1.5")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        peer.session.drain()
        assert (await peer.read()).startswith(b"421 4.3.2")
        assert trio.current_time() - began == pytest.approx(15, abs=1)
        assert await peer.read() == b""


@pytest.mark.parametrize(("implicit", "told"), [(True, "before"), (True, "meanwhile"), (False, "meanwhile")])
async def test_who_never_begins_with_tls_does_not_hold_the_drain(
    implicit: bool, told: str, autojump_clock: trio.testing.MockClock, log_events: LogEvents
) -> None:
    """A stranger's silent connection: every stop waited for it, and no port was open meanwhile."""
    async with open_session(ScriptedIntake(), implicit=implicit, handshake=False) as peer:
        if told == "before":
            peer.session.drain()
        if not implicit:
            await read_until(peer, b"220 ")
            await peer.send(b"EHLO client\r\nSTARTTLS\r\n")
            await read_until(peer, b"Ready to start TLS\r\n")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        peer.session.drain()
        assert await peer.transport.receive_some(100) == b""
        assert trio.current_time() - began == pytest.approx(3, abs=1)
    assert log_events.named("session_closed")[0]["reason"] == "drain while TLS began"


async def test_who_shakes_hands_during_the_drain_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async with open_session(ScriptedIntake(), handshake=False) as peer:
        await trio.testing.wait_all_tasks_blocked()
        peer.session.drain()
        await trio.sleep(1)
        await peer.starttls()
        await read_until(peer, b"421 4.3.2 ")


async def test_who_takes_nothing_does_not_hold_the_drain(
    autojump_clock: trio.testing.MockClock, log_events: LogEvents
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with open_session(ScriptedIntake(), implicit=False, handshake=False) as peer:
        await read_until(peer, b"220 ")
        peer.session._stream = theirs  # a transport whose send waits for the reader
        await peer.send(b"EHLO c\r\n")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        peer.session.drain()
        while not log_events.named("session_closed"):  # noqa: ASYNC110
            await trio.sleep(1)
        assert trio.current_time() - began <= session_module.DRAIN_PATIENCE_S + 1
    await trio.aclose_forcefully(ours)
