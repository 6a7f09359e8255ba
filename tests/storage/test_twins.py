# SPDX-License-Identifier: Apache-2.0
"""The same call again, through the whole intake: whoever lost our answer hears it, pays once, and is not lied to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio

from hepmaild.config import ReplyWhen, ReversePath, RouteKind, RouteSettings, SenderSettings, Settings, SmtpSettings
from hepmaild.delivery.job import Attempt, Job, Outcome, Result
from hepmaild.directory import Directory
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.intake import Intake, IntakeSettings
from hepmaild.lifecycle import Lifecycle
from hepmaild.mail.content import Content
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import (
    Door,
    Draft,
    Kind,
    Mailbox,
    Origin,
    RateState,
    Receipt,
    Recipient,
    Status,
    Submission,
)
from hepmaild.outbox import Outbox
from hepmaild.prepare import Preparer
from hepmaild.storage import credits as money
from hepmaild.storage import queue, suppress
from tests.storage.books import HOUR_US, Books, open_books
from tests.storage.conftest import Opener

DEADLINE_S = 120
SECOND_US = 1_000_000
REPLIES = {Result.DELIVERED: Reply(250, "2.0.0", "fine"), Result.FAILED: Reply(550, "5.1.1", "no such user")}


@dataclass
class Hand:
    """A pool with one worker: the test."""

    jobs: list[Job] = field(default_factory=list)
    came: trio.Event = field(default_factory=trio.Event)
    is_away: bool = False  # its next hop

    def capacity_hint(self, route: str, destinations: Sequence[str] = ("",)) -> int:
        del route, destinations
        return 0 if self.is_away else 5

    def offer_nowait(self, job: Job) -> bool:
        self.jobs.append(job)
        self.came.set()
        return True

    def left(self, route: str, destinations: Collection[str]) -> Collection[str]:
        assert self.is_away, (route, destinations)
        return destinations

    def wake(self) -> None:
        raise AssertionError


@dataclass
class House:
    """An intake in front of a store, and what it hands over."""

    books: Books
    intake: Intake
    outbox: Outbox
    hand: Hand

    def mail(self, *addresses: str, text: str = "hello", word: str = "") -> Submission:
        """A message that came by SMTP, always of the same Message-ID."""
        extra = f"X-Idempotency-Key: {word}\r\n" if word else ""
        raw = f"From: app@example.com\r\nMessage-ID: <1@example.com>\r\n{extra}Subject: s\r\n\r\n{text}\r\n"
        recipients = tuple(Recipient(each, Kind.TO) for each in addresses or ("a@example.net",))
        origin = Origin(Door.SMTP, "192.0.2.1", "s1")
        return Submission(self.books.identity, origin, recipients, Content(raw.encode()), "app@example.com")

    def request(self, *addresses: str, word: str) -> Submission:
        """A message that came by HTTP."""
        addresses = addresses or ("a@example.net",)
        draft = Draft(sender=None, to=tuple(map(Mailbox, addresses)), subject="s", text="hello")
        recipients = tuple(Recipient(each, Kind.TO) for each in addresses)
        origin = Origin(Door.HTTP, "192.0.2.1", "r1")
        return Submission(self.books.identity, origin, recipients, draft, idempotency_word=word, fingerprint=b"f" * 32)

    async def by_smtp(self, submission: Submission) -> tuple[str, Receipt | Refusal]:
        """As the door does: the call when content is about to be asked for, then the content; where it was answered."""
        state = await self.intake.take_call(submission.key, recipients=len(submission.recipients))
        if not isinstance(state, RateState):
            return "DATA", state
        return "dot", await self.intake.accept(submission)

    async def attempt(self, result: Result) -> None:
        """The first attempt at the job that is next to come."""
        await self.hand.came.wait()
        self.hand.came = trio.Event()
        job, now_us = self.hand.jobs[-1], self.books.clock.us
        outcomes = tuple(Outcome(r.recipient_id, result, REPLIES[result]) for r in job.recipients)
        await self.outbox.report(Attempt(job, now_us, now_us, "next.example", "", "", (), outcomes))

    async def answered(self, submission: Submission, result: Result) -> Receipt | Refusal:
        """What the caller is told of a message whose first attempt ends so."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.attempt, result)
            return (await self.by_smtp(submission))[1]

    async def abandoned(self, submission: Submission, result: Result | None) -> None:
        """Its caller goes away while it waits for the first attempt, which ends so (None: not yet)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.intake.accept, submission)
            await self.hand.came.wait()
            nursery.cancel_scope.cancel()
        if result is not None:
            await self.attempt(result)
        else:
            self.hand.came = trio.Event()

    async def money(self) -> list[int]:
        """The account's ledger after the grant, oldest first."""
        rows = await self.books.store.read(money.history, self.books.account_id)
        return [row["amount"] for row in rows][::-1][1:]


@asynccontextmanager
async def open_house(
    opener: Opener, *, credits_granted: int = 100, reverse_path: ReversePath = ReversePath.SENDER, **smtp: object
) -> AsyncIterator[House]:
    settings = Settings(
        sender=(SenderSettings(address="app@example.com", route="up", default=True),),
        route=(RouteSettings(name="up", kind=RouteKind.SMTP, host="next.example", reverse_path=reverse_path),),
        smtp=replace(SmtpSettings(), **smtp),  # type: ignore[arg-type]
    )
    with trio.fail_after(DEADLINE_S):
        async with open_books(opener, credits_granted=credits_granted) as books, trio.open_nursery() as nursery:
            now_us = books.clock.now_us
            directory = Directory(books.store, settings.sender)
            nursery.start_soon(directory.run)
            outbox = Outbox(books.store, owner="me", now_us=now_us, lease_s=60, body_days=0, spool_dir=None)
            hand = Hand()
            intake = Intake(
                IntakeSettings.of(settings),
                store=books.store,
                directory=directory,
                outbox=outbox,
                dispatcher=hand,
                preparer=Preparer(hostname="h", spool_dir=None, limiter=trio.CapacityLimiter(1), now_us=now_us),
                lifecycle=Lifecycle(),
                now_us=now_us,
            )
            yield House(books, intake, outbox, hand)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def house(opener: Opener) -> AsyncIterator[House]:
    async with open_house(opener) as opened:
        yield opened


async def test_nobody_waits_for_a_next_hop_that_is_away(house: House) -> None:
    house.hand.is_away = True
    answer = await house.intake.accept(house.mail())
    assert isinstance(answer, Receipt)
    assert answer.status is Status.QUEUED
    assert "could not be reached for a while" in answer.retry_hint
    assert await house.by_smtp(house.mail()) == ("dot", replace(answer, replayed=True))
    assert await house.money() == [-1]


# What costs nothing is not refused for want of credits


async def test_the_last_credit_bought_this_very_message(opener: Opener) -> None:
    """RFC 1047: the client lost our 250."""
    async with open_house(opener, credits_granted=1) as house:
        first = await house.answered(house.mail(), Result.DELIVERED)
        assert isinstance(first, Receipt)
        assert await house.by_smtp(house.mail()) == ("dot", replace(first, replayed=True))
        assert await house.money() == [-1]
        # Another message with as many recipients is refused once its content shows it; with more of them before.
        for submission, stage in (
            (house.mail(text="another"), "dot"),
            (house.mail("a@example.net", "b@example.net"), "DATA"),
        ):
            where, refusal = await house.by_smtp(submission)
            assert isinstance(refusal, Refusal)
            assert (where, refusal.kind) == (stage, ErrorKind.INSUFFICIENT_CREDITS)
        house.books.clock.us += 600 * SECOND_US  # smtp.replay_window_s
        where, refusal = await house.by_smtp(house.mail())
        assert isinstance(refusal, Refusal)
        assert (where, refusal.kind) == ("DATA", ErrorKind.INSUFFICIENT_CREDITS)


async def test_a_word_of_the_callers_own_holds_for_a_day_without_credits(opener: Opener) -> None:
    async with open_house(opener, credits_granted=1) as house:
        first = await house.answered(house.mail(word="order-1"), Result.DELIVERED)
        assert isinstance(first, Receipt)
        house.books.clock.us += 23 * HOUR_US
        await house.outbox.flush()
        assert await house.by_smtp(house.mail(word="order-1")) == ("dot", replace(first, replayed=True))
        house.books.clock.us += HOUR_US
        where, refusal = await house.by_smtp(house.mail(word="order-1"))
        assert isinstance(refusal, Refusal)
        assert (where, refusal.kind) == ("DATA", ErrorKind.INSUFFICIENT_CREDITS)
        assert await house.money() == [-1]


async def test_the_last_message_of_the_day_may_come_again(house: House) -> None:
    """By SMTP the word is not known yet; by HTTP it is, and nothing else is let through, or counted."""
    books = house.books
    await house.answered(house.mail(word="order-1"), Result.DELIVERED)
    by_smtp = replace(books.call(recipients=1, day=1), replay_window_us=600 * SECOND_US)
    by_http = replace(books.call(day=1), word="w:order-1")
    inside = [await books.store.submit(call) for call in (by_smtp, by_http)]
    assert [isinstance(state, RateState) for state in inside] == [True, True]
    books.clock.us += 900 * SECOND_US
    others = [replace(by_smtp, recipients=2), replace(by_http, word=None), replace(by_http, word="w:order-2")]
    for other in others:
        refused = await books.store.submit(other)
        assert isinstance(refused, Refusal)
        assert refused.kind is ErrorKind.DAILY_LIMIT_REACHED
        # PostgreSQL's own clock decides what is inside, and all of this is.
        assert refused.rate is not None
        assert refused.rate.remaining == (120 if books.store.is_sqlite else 120 - 3)
    assert isinstance(await books.store.submit(by_smtp), RateState), "a word of the caller's own holds for a day"


async def test_without_a_word_smtp_may_come_again_within_its_window(house: House) -> None:
    books = house.books
    await house.answered(house.mail(), Result.DELIVERED)
    call = replace(books.call(recipients=1, day=1), replay_window_us=600 * SECOND_US)
    assert isinstance(await books.store.submit(call), RateState)
    assert isinstance(await books.store.submit(replace(call, replay_window_us=0)), Refusal)
    books.clock.us += 600 * SECOND_US
    assert isinstance(await books.store.submit(call), Refusal)


async def test_without_room_for_one_more_a_call_is_told_again(house: House) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.attempt, Result.DELIVERED)
        first = await house.intake.accept(house.request(word="order-1"))
    assert isinstance(first, Receipt)
    house.outbox.backlog = house.intake.settings.limits.backlog
    assert await house.intake.accept(house.request(word="order-1")) == replace(first, replayed=True)
    for other in (house.request(word="order-2"), house.mail()):
        refused = await house.intake.accept(other)
        assert isinstance(refused, Refusal)
        assert refused.kind is ErrorKind.BACKLOG_FULL
    stranger = house.request(word="order-2")
    assert isinstance(stranger.source, Draft)
    stranger = replace(stranger, source=replace(stranger.source, sender=Mailbox("nobody@example.org")))
    refused = await house.intake.accept(stranger)
    assert isinstance(refused, Refusal)
    assert refused.kind is ErrorKind.SENDER_NOT_ALLOWED


async def test_what_was_accepted_is_found_by_word_and_call_for_a_day(house: House) -> None:
    """For a call that would be refused now, since what it names has gone."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.attempt, Result.DELIVERED)
        first = await house.intake.accept(house.request(word="order-1"))
    assert isinstance(first, Receipt)
    key, call = house.books.identity, b"f" * 32
    assert await house.intake.told_before(key, "order-1", call) == replace(first, replayed=True)
    assert await house.intake.told_before(key, "order-2", call) is None
    assert await house.intake.told_before(key, "order-1", b"g" * 32) is None
    assert await house.intake.told_before(replace(key, key_id="another"), "order-1", call) is None
    house.books.clock.us += 24 * HOUR_US
    assert await house.intake.told_before(key, "order-1", call) is None
    assert await house.money() == [-1]


@pytest.mark.parametrize("path", ReversePath)
async def test_another_reverse_path_is_another_message_where_it_leaves_with_it(
    opener: Opener, path: ReversePath
) -> None:
    async with open_house(opener, reverse_path=path) as house:
        first = await house.answered(replace(house.mail(), reverse_path="bounce+a@example.com"), Result.DELIVERED)
        again = replace(house.mail(), reverse_path="bounce+b@example.com")
        if path is ReversePath.SENDER:
            assert isinstance(first, Receipt)
            assert await house.by_smtp(again) == ("dot", replace(first, replayed=True))
        else:
            second = await house.answered(again, Result.DELIVERED)
            assert isinstance(second, Receipt)
            assert not second.replayed
        null = await house.answered(replace(house.mail(), reverse_path=""), Result.DELIVERED)
        assert isinstance(null, Receipt)
        assert not null.replayed


# Whoever makes the call again hears what became of it


async def test_what_was_refused_for_good_is_a_new_message_at_once(house: House) -> None:
    """Nobody writes late answers here: the word is free before the 550 is said."""
    first = await house.answered(house.mail(), Result.FAILED)
    assert isinstance(first, Refusal)
    house.books.clock.us += 3 * SECOND_US
    again = await house.answered(house.mail(), Result.DELIVERED)
    assert isinstance(again, Receipt)
    assert (again.status, again.replayed) == (Status.SENT, False)
    assert len(house.hand.jobs) == 2
    assert await house.money() == [-1, 1, -1]


async def test_an_answer_that_is_not_written_yet_is_told_all_the_same(house: House) -> None:
    first = await house.answered(house.mail(), Result.DELIVERED)
    assert isinstance(first, Receipt)
    assert first.status is Status.SENT
    house.books.clock.us += 3 * SECOND_US
    assert await house.by_smtp(house.mail()) == ("dot", replace(first, replayed=True))
    await house.outbox.flush()
    assert await house.by_smtp(house.mail()) == ("dot", replace(first, replayed=True))


async def test_a_caller_that_left_before_all_was_refused_finds_its_word_free(house: House) -> None:
    await house.abandoned(house.request(word="order-1"), Result.FAILED)
    house.books.clock.us += 30 * SECOND_US
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.attempt, Result.DELIVERED)
        again = await house.intake.accept(house.request(word="order-1"))
    assert isinstance(again, Receipt)
    assert (again.status, again.replayed, again.credits_charged) == (Status.SENT, False, 1)
    assert await house.money() == [-1, 1, -1]
    assert await house.intake.accept(house.request(word="order-1")) == replace(again, replayed=True)


@pytest.mark.parametrize("result", [Result.DELIVERED, None], ids=["delivered", "still waiting"])
async def test_a_caller_that_left_does_not_send_twice(house: House, result: Result | None) -> None:
    await house.abandoned(house.request(word="order-1"), result)
    house.books.clock.us += 30 * SECOND_US
    again = await house.intake.accept(house.request(word="order-1"))
    assert isinstance(again, Receipt)
    assert (again.status, again.replayed, again.credits_charged) == (Status.QUEUED, True, 1)
    assert len(house.hand.jobs) == 1
    assert await house.money() == [-1]


@pytest.mark.parametrize("reply", ReplyWhen)
async def test_twins_hear_who_is_suppressed(opener: Opener, reply: ReplyWhen) -> None:
    async with open_house(opener, reply=reply) as house:
        books = house.books
        await books.store.write(
            suppress.add,
            books.account_id,
            "bad@example.net",
            until_us=books.clock.us + HOUR_US,
            reason="left",
            now_us=books.clock.us,
        )
        both = ("a@example.net", "bad@example.net")
        if reply is ReplyWhen.ON_COMMIT:
            first = (await house.by_smtp(house.mail(*both)))[1]
            again = (await house.by_smtp(house.mail(*both)))[1]
            assert isinstance(first, Receipt)
            assert again == replace(first, replayed=True)
        else:
            await house.abandoned(house.request(*both, word="order-1"), None)
            books.clock.us += 30 * SECOND_US
            again = await house.intake.accept(house.request(*both, word="order-1"))
        assert isinstance(again, Receipt)
        assert again.replayed
        assert again.credits_charged == 1
        assert [each.address for each in again.rejected] == ["bad@example.net"]
        assert await house.money() == [-1]


async def test_what_was_cancelled_is_not_sent_by_its_callers_next_try(house: House) -> None:
    await house.abandoned(house.request(word="order-1"), None)
    books, message_id = house.books, house.hand.jobs[0].message_id
    await books.store.write(queue.cancel, message_id, books.clock.us)
    books.clock.us += 30 * SECOND_US
    again = await house.intake.accept(house.request(word="order-1"))
    assert isinstance(again, Receipt)
    assert (again.message_id, again.replayed) == (message_id, True)
    assert await house.money() == [-1, 1]
