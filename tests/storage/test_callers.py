# SPDX-License-Identifier: Apache-2.0
"""Callers whose message nobody tries now, or ever, do not wait `delivery.relay_wait_s` for that (decision 0128)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from hepmaild.delivery.job import Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import Receipt, Status, Submission
from hepmaild.receipts import ENDINGS
from hepmaild.storage import claim, leases, queue
from tests.storage.conftest import Opener
from tests.storage.test_twins import House, open_house


@pytest.fixture
async def house(opener: Opener) -> AsyncIterator[House]:
    async with open_house(opener) as opened:
        yield opened


async def while_it_waits(
    house: House, submission: Submission, deed: Callable[[House, str], Awaitable[None]]
) -> Receipt | Refusal:
    """What a caller is told of a message that is on its way when `deed` is done.  Nobody's patience ends."""
    settings = house.intake.settings
    house.intake.settings = replace(settings, delivery=replace(settings.delivery, relay_wait_s=86_400))
    async with trio.open_nursery() as nursery:

        async def meddle() -> None:
            await house.hand.came.wait()
            await deed(house, house.hand.jobs[-1].message_id)

        nursery.start_soon(meddle)
        return (await house.by_smtp(submission))[1]


async def no_mark(house: House, message_id: str) -> None:
    """Others held this process for dead."""
    await house.books.store.write(leases.take_over, house.books.clock.us, alone=True)
    assert not await house.outbox.mark_in_doubt(house.hand.jobs[-1])
    del message_id


async def no_report(house: House, message_id: str) -> None:
    await house.books.store.write(leases.take_over, house.books.clock.us, alone=True)
    await house.attempt(Result.DELIVERED)
    del message_id


async def pause(house: House, message_id: str) -> None:
    await house.books.store.write(queue.pause_route, "up", "", "", house.books.clock.us)
    await house.outbox.recount()
    del message_id


async def hold(house: House, message_id: str) -> None:
    await house.books.store.write(queue.hold, message_id, house.books.clock.us)
    await house.outbox.recount()


async def hold_before_its_mark(house: House, message_id: str) -> None:
    """The attempt finds it out before anybody says so."""
    await house.books.store.write(queue.hold, message_id, house.books.clock.us)
    assert not await house.outbox.mark_in_doubt(house.hand.jobs[-1])


async def drain(house: House, message_id: str) -> None:
    """Nobody has it, as when the pool had no room for it, and this process takes nothing on any more."""
    await house.books.store.write(leases.take_over, house.books.clock.us, alone=True)
    await house.outbox.no_more_claims()
    del message_id


async def begin_elsewhere(house: House, message_id: str) -> None:
    """Another process claims it, and what comes of it is not heard here."""
    await house.books.store.write(leases.take_over, house.books.clock.us, alone=True)
    claimed = await house.books.store.write(claim.claim, "other", house.books.clock.us, 1, 0)
    assert [job.message_id for job in claimed.jobs] == [message_id]
    await house.outbox.recount()


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        (no_mark, "no attempt could be made at once"),
        (no_report, "no attempt could be made at once"),
        (begin_elsewhere, "no attempt could be made at once"),
        (drain, "no attempt could be made at once"),
        (pause, "is paused, and it leaves when that is over"),
        (hold, "is held, and leaves when somebody releases it"),
        (hold_before_its_mark, "is held, and leaves when somebody releases it"),
    ],
)
async def test_a_caller_is_told_at_once_that_nobody_tries_it_now(
    house: House, deed: Callable[[House, str], Awaitable[None]], says: str
) -> None:
    answer = await while_it_waits(house, house.mail(), deed)
    assert isinstance(answer, Receipt)
    assert (answer.status, answer.credits_charged) == (Status.QUEUED, 1)
    assert says in answer.retry_hint
    assert await house.by_smtp(house.mail()) == ("dot", replace(answer, replayed=True))


async def cancel(house: House, message_id: str) -> None:
    await house.books.store.write(queue.cancel, message_id, house.books.clock.us)
    await house.outbox.recount()


async def cancel_before_its_mark(house: House, message_id: str) -> None:
    await house.books.store.write(queue.cancel, message_id, house.books.clock.us)
    assert not await house.outbox.mark_in_doubt(house.hand.jobs[-1])


@pytest.mark.parametrize("deed", [cancel, cancel_before_its_mark])
async def test_a_caller_is_told_that_its_message_was_cancelled(
    house: House, deed: Callable[[House, str], Awaitable[None]]
) -> None:
    """It was refunded, and nobody will have it: "queued" would be a lie."""
    answer = await while_it_waits(house, house.mail("a@example.net", "b@example.net"), deed)
    assert isinstance(answer, Refusal)
    assert (answer.kind, answer.reply) == (ErrorKind.RELAY_FAILED, ENDINGS["cancelled"])
    assert await house.money() == [-2, 2]


async def test_who_waits_for_what_goes_on_is_left_alone(house: House) -> None:
    """Somebody changed other messages; and what is not committed yet is not gone."""
    outbox = house.outbox
    waiter = outbox.expect("0" * 16)
    await outbox.recount()
    assert not waiter.done.is_set()

    async def others(house: House, message_id: str) -> None:
        await house.books.store.write(queue.pause_route, "another", "", "", house.books.clock.us)
        await outbox.recount()
        await outbox.no_more_claims()  # a drain lets it go on
        await house.attempt(Result.DELIVERED)
        del message_id

    answer = await while_it_waits(house, house.mail(), others)
    assert isinstance(answer, Receipt)
    assert answer.status is Status.SENT
