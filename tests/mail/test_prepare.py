# SPDX-License-Identifier: Apache-2.0
"""Whom a submitted message goes to, by its envelope and, where the settings say so, by its header."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio

from hepmaild.config import LimitSettings, RecipientsFrom, SmtpSettings
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.content import Content
from hepmaild.mail.headers import MAX_LISTED_ADDRESSES
from hepmaild.mail.submission import Door, KeyIdentity, Origin, Recipient, Submission
from hepmaild.policy import make_book
from hepmaild.prepare import Prepared, Preparer
from hepmaild.storage.directory import SenderRow

BOOK = make_book([SenderRow("", "me@example.com", "me@example.com", "up", 0, True)], ())


@dataclass
class Obeyed:
    smtp: SmtpSettings
    limits: LimitSettings = field(default_factory=LimitSettings)


async def prepare(header: bytes, recipients: RecipientsFrom, limit: int = 100) -> Prepared | Refusal:
    preparer = Preparer(
        hostname="smtp.test", spool_dir=None, limiter=trio.CapacityLimiter(1), now_us=lambda: 1_800_000_000_000_000
    )
    submission = Submission(
        key=KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120),
        origin=Origin(Door.SMTP, "127.0.0.1", "s"),
        recipients=(Recipient("to@example.net"),),
        source=Content(b"From: me@example.com\r\n" + header + b"\r\nHello\r\n"),
        reverse_path="me@example.com",
    )
    settings = Obeyed(SmtpSettings(recipients=recipients), LimitSettings(recipients_per_message=limit))
    return await preparer.prepare(submission, BOOK, settings)


async def goes_to(header: bytes, recipients: RecipientsFrom) -> list[str]:
    prepared = await prepare(header, recipients)
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
    book = make_book([SenderRow("", "info@xn--bcher-kva.example", "info@xn--bcher-kva.example", "up", 0, True)], ())
    preparer = Preparer(
        hostname="smtp.test", spool_dir=None, limiter=trio.CapacityLimiter(1), now_us=lambda: 1_800_000_000_000_000
    )
    submission = Submission(
        key=KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120),
        origin=Origin(Door.SMTP, "127.0.0.1", "s"),
        recipients=(Recipient("to@example.net"),),
        source=Content(b"Subject: hello\r\n\r\nHello\r\n"),
        reverse_path=said,
        smtputf8=True,
    )
    prepared = await preparer.prepare(submission, book, Obeyed(SmtpSettings()))
    assert isinstance(prepared, Prepared)
    assert prepared.from_address == "info@xn--bcher-kva.example"
    assert b"From: info@xn--bcher-kva.example\r\n" in prepared.content.data


async def test_nobody_is_left_out_without_a_word() -> None:
    """More than are looked at, though the settings would allow them."""
    words = b",\r\n ".join(b"u%d@b.c" % n for n in range(MAX_LISTED_ADDRESSES))
    header = b"To: " + words + b"\r\nCc: cc@example.net\r\n"
    refusal = await prepare(header, RecipientsFrom.ENVELOPE_AND_HEADERS, limit=10_000)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is ErrorKind.TOO_MANY_RECIPIENTS
    assert isinstance(await prepare(header, RecipientsFrom.ENVELOPE), Prepared)
