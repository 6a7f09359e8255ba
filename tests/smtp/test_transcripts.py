# SPDX-License-Identifier: Apache-2.0
"""Every dialogue, on the bare machine (whole and octet by octet) and on a session over memory streams."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.smtp.harness import MachinePeer, open_session
from tests.smtp.scripted import Script, ScriptedIntake
from tests.smtp.transcript import Dialogue, Player, load_all

DIALOGUES = load_all()
# The reply table of the contract (smtp-relay.md), row by row.
ROWS = (
    "AUTH, MAIL before TLS",
    "MAIL before AUTH",
    "unknown, disabled, expired key, IP not allowed, channel not allowed, account suspended",
    "AUTH twice, or inside a transaction",
    "AUTH with bad base64 / `*` / unknown mechanism",
    "store unreachable at AUTH / later",
    "rate limit",
    "not enough credits",
    "daily plan limit",
    "backlog full",
    "sender not allowed",
    "a recipient address that is not an address",
    "a non-ASCII address without SMTPUTF8",
    "recipient 101",
    "oversize",
    "bare CR or LF anywhere, NUL, a line over 998 octets in the header",
    "all recipients refused for good by the next hop",
    "command out of order",
    "unknown command / parameter, line too long",
    "shutting down, too many connections, idle, the 20th wrong command of a session",
)


def on(place: str) -> list[object]:
    return [pytest.param(dialogue, id=dialogue.name) for dialogue in DIALOGUES if place in dialogue.places]


def test_every_row_of_the_reply_table_has_a_dialogue() -> None:
    shown = {row for dialogue in DIALOGUES for row in dialogue.rows}
    assert not [row for row in ROWS if row not in shown]
    assert all(row in ROWS or row.startswith("(") for row in shown)


@pytest.mark.parametrize("dialogue", on("machine"))
async def test_on_the_bare_machine(dialogue: Dialogue) -> None:
    await Player(dialogue, MachinePeer(dialogue)).play()


@pytest.mark.parametrize("dialogue", [d for d in on("machine") if d.id != "starttls-injection"])  # type: ignore[attr-defined]
async def test_on_the_bare_machine_octet_by_octet(dialogue: Dialogue) -> None:
    await Player(dialogue, MachinePeer(dialogue, piece=1 if dialogue.name != "line-endless" else 1000)).play()


@pytest.mark.parametrize("dialogue", on("memory"))
async def test_on_memory_streams(dialogue: Dialogue, mock_clock: trio.testing.MockClock) -> None:
    intake = ScriptedIntake(Script(dialogue.intake))
    async with open_session(
        intake, implicit=dialogue.implicit, clock=mock_clock, size=dialogue.size, recipients=dialogue.recipients
    ) as peer:
        with trio.fail_after(5000):
            await Player(dialogue, peer).play()
