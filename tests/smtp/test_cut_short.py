# SPDX-License-Identifier: Apache-2.0
"""A session that is cancelled at any step, as all are when the daemon has to end at once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio

from hepmaild.config import LimitSettings, SmtpSettings
from hepmaild.mail.content import SPOOL_OCTETS
from hepmaild.smtp.session import SessionSetup, SmtpSession
from hepmaild.timers import Timers
from tests.conftest import LogEvents
from tests.peers.cancelling import MOST_CUTS, cut_at
from tests.smtp.harness import HOSTNAME, StreamPeer, contexts
from tests.smtp.scripted import ScriptedIntake
from tests.smtp.test_session import AUTH, ENVELOPE, begin, read_until

SMALL = b"Subject: x\r\n\r\nbody\r\n"
SPOOLED = SMALL + (b"x" * 998 + b"\r\n") * (SPOOL_OCTETS // 1000 + 1)


@pytest.mark.parametrize(
    ("ask", "message", "end"),
    [
        (b"DATA\r\n", SMALL, b".\r\n"),
        (b"DATA\r\n", SPOOLED, b".\r\n"),
        (b"", b"BDAT %d LAST\r\n%b" % (len(SPOOLED), SPOOLED), b""),
    ],
    ids=["data", "data-spooled", "bdat-spooled"],
)
async def test_a_session_that_is_cut_short_keeps_nothing_and_says_that_it_ended(
    tmp_path: Path, log_events: LogEvents, ask: bytes, message: bytes, end: bytes
) -> None:
    """Its record is what an operator has to find out what became of a client."""
    for number in range(MOST_CUTS):
        intake = ScriptedIntake()
        setup = SessionSetup(
            HOSTNAME, SmtpSettings(), LimitSettings(), intake, lambda: contexts()[0], Timers(), spool_dir=tmp_path
        )
        ours, theirs = trio.testing.memory_stream_pair()
        session = SmtpSession(setup, theirs, peer_ip="192.0.2.1", session_id=f"s{number}", implicit=True)

        async def talk(peer: StreamPeer) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, AssertionError):
                await peer.starttls()
                await begin(peer, AUTH + ENVELOPE + ask, b"354 " if ask else b"250 2.1.5")
                await peer.send(message + end)
                await read_until(peer, b"250 2.0.0 queued")
                await peer.send(b"QUIT\r\n")
                await read_until(peer, b"221 ")
            await trio.aclose_forcefully(peer.transport)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.timers.run)
            nursery.start_soon(talk, StreamPeer(session, ours, None))
            cut = await cut_at(number, session.run)
            with pytest.raises(trio.ClosedResourceError):
                await theirs.send_all(b"x")
            nursery.cancel_scope.cancel()
        for submission in intake.accepted:
            submission.source.close()  # type: ignore[union-attr]
        assert setup.spool_limiter.borrowed_tokens == 0
        (closed,) = [event for event in log_events.named("session_closed") if event["session"] == f"s{number}"]
        if not cut.is_reached:
            assert (closed["reason"], closed["messages"]) == ("quit", 1)
            assert number > 30
            break
