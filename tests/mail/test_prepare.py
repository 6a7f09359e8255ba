# SPDX-License-Identifier: Apache-2.0
"""Whom a submitted message goes to, by its envelope and, where the settings say so, by its header."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hepmaild.config import LimitSettings, RecipientsFrom, SmtpSettings
from hepmaild.errors import ErrorKind, Refusal, StoreUnavailable
from hepmaild.mail.content import SPOOL_OCTETS, Content, ContentBuilder
from hepmaild.mail.headers import MAX_LISTED_ADDRESSES
from hepmaild.mail.submission import Door, Draft, KeyIdentity, Mailbox, Origin, Recipient, Submission
from hepmaild.policy import make_book
from hepmaild.prepare import Prepared, Preparer
from hepmaild.storage.directory import SenderRow
from tests.peers.processes import no_file_beyond, no_further_thread

if TYPE_CHECKING:
    from tests.conftest import LogEvents

INTERNATIONAL = "info@xn--bcher-kva.example"
BOOK = make_book(
    [
        SenderRow("", "me@example.com", "me@example.com", "up", 0, True),
        SenderRow("", INTERNATIONAL, INTERNATIONAL, "up", 0, False),
    ],
    (),
)


@dataclass
class Obeyed:
    smtp: SmtpSettings
    limits: LimitSettings = field(default_factory=LimitSettings)


async def prepare(content: bytes, smtp: SmtpSettings, *, limit: int = 100, **submission: Any) -> Prepared | Refusal:
    preparer = Preparer(
        hostname="smtp.test", spool_dir=None, limiter=trio.CapacityLimiter(1), now_us=lambda: 1_800_000_000_000_000
    )
    submitted = Submission(
        key=KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120),
        origin=Origin(Door.SMTP, "127.0.0.1", "s"),
        recipients=(Recipient("to@example.net"),),
        source=Content(content),
        **submission,
    )
    return await preparer.prepare(submitted, BOOK, Obeyed(smtp, LimitSettings(recipients_per_message=limit)))


async def prepare_for(header: bytes, recipients: RecipientsFrom, limit: int = 100) -> Prepared | Refusal:
    content = b"From: me@example.com\r\n" + header + b"\r\nHello\r\n"
    return await prepare(content, SmtpSettings(recipients=recipients), limit=limit, reverse_path="me@example.com")


async def goes_to(header: bytes, recipients: RecipientsFrom) -> list[str]:
    prepared = await prepare_for(header, recipients)
    assert isinstance(prepared, Prepared)
    return [recipient.address for recipient in prepared.recipients]


@pytest.mark.parametrize("to", [b"To: to@example.net\r\n", b"To: other@example.net\r\n", b""])
async def test_the_header_counts_where_the_settings_say_so(to: bytes) -> None:
    header = to + b"Cc: cc@example.net\r\nBcc: bcc@example.net\r\n"
    assert await goes_to(header, RecipientsFrom.ENVELOPE) == ["to@example.net"]
    everybody = {"to@example.net", "cc@example.net", "bcc@example.net"} | (
        {"other@example.net"} if b"other" in to else set()
    )
    assert set(await goes_to(header, RecipientsFrom.ENVELOPE_AND_HEADERS)) == everybody


@pytest.mark.parametrize(
    "said", ["info@b\u00fccher.example", "info@XN--BCHER-KVA.example", "info@xn--bcher-kva.example"]
)
async def test_without_a_from_field_the_envelope_names_the_sender_however_it_is_spelt(said: str) -> None:
    prepared = await prepare(b"Subject: hello\r\n\r\nHello\r\n", SmtpSettings(), reverse_path=said, smtputf8=True)
    assert isinstance(prepared, Prepared)
    assert prepared.from_address == INTERNATIONAL
    assert f"From: {INTERNATIONAL}\r\n".encode() in prepared.content.data


async def test_nobody_is_left_out_without_a_word() -> None:
    """More than are looked at, though the settings would allow them."""
    words = b",\r\n ".join(b"u%d@b.c" % n for n in range(MAX_LISTED_ADDRESSES))
    header = b"To: " + words + b"\r\nCc: cc@example.net\r\n"
    refusal = await prepare_for(header, RecipientsFrom.ENVELOPE_AND_HEADERS, limit=10_000)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is ErrorKind.TOO_MANY_RECIPIENTS
    assert isinstance(await prepare_for(header, RecipientsFrom.ENVELOPE), Prepared)


async def test_large_header_fields_are_written_in_a_thread() -> None:
    threads = trio.CapacityLimiter(1)
    preparer = Preparer(hostname="smtp.test", spool_dir=None, limiter=threads, now_us=lambda: 1_800_000_000_000_000)
    headers = tuple((f"X-{number}", "ä" * 8192) for number in range(40))
    submission = Submission(
        key=KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120),
        origin=Origin(Door.HTTP, "127.0.0.1", "s"),
        recipients=(Recipient("to@example.net"),),
        source=Draft(None, (Mailbox("to@example.net"),), text="x", headers=headers),
    )
    made: list[Prepared | Refusal] = []

    async def prepare_it() -> None:
        made.append(await preparer.prepare(submission, BOOK, Obeyed(SmtpSettings())))

    async with trio.open_nursery() as nursery, threads:
        nursery.start_soon(prepare_it)
        await wait_all_tasks_blocked()
        assert not made, "it waits for the thread"
    (prepared,) = made
    assert isinstance(prepared, Prepared)
    assert prepared.content.size > 40 * 8192


async def test_a_disk_that_has_no_room_for_the_finished_message(tmp_path: Path, log_events: LogEvents) -> None:
    """What the client sent is there; with the trace field it needs as much once more."""
    builder = ContentBuilder(tmp_path)
    builder.write(b"From: me@example.com\r\n\r\n" + b"x" * 2 * SPOOL_OCTETS)
    source = builder.finish()
    preparer = Preparer(hostname="smtp.test", spool_dir=tmp_path, limiter=trio.CapacityLimiter(1), now_us=lambda: 0)
    submission = Submission(
        key=KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120),
        origin=Origin(Door.SMTP, "127.0.0.1", "s"),
        recipients=(Recipient("to@example.net"),),
        source=source,
    )
    with no_file_beyond(source.size), pytest.raises(StoreUnavailable):
        await preparer.prepare(submission, BOOK, Obeyed(SmtpSettings()))
    assert len(log_events.named("spool_failed")) == 1
    with no_further_thread(), pytest.raises(StoreUnavailable, match="no thread could be started"):
        await preparer.prepare(submission, BOOK, Obeyed(SmtpSettings()))
    source.close()
