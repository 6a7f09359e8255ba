# SPDX-License-Identifier: Apache-2.0
"""From the intake to the pool, on a real store: whom a caller waits for, and whom not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from hepmaild.config import DeliverySettings, RouteKind, RouteSettings, SenderSettings, Settings
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.route import from_settings
from hepmaild.directory import Directory
from hepmaild.intake import Intake, IntakeSettings
from hepmaild.lifecycle import Lifecycle
from hepmaild.mail.submission import (
    Door,
    Draft,
    Kind,
    Mailbox,
    Origin,
    Receipt,
    Recipient,
    Status,
    Submission,
    Verified,
)
from hepmaild.outbox import Outbox
from hepmaild.prepare import Preparer
from hepmaild.storage import queue, suppress
from tests.delivery.peer import Network
from tests.delivery.test_mx import Everybody, Names
from tests.storage.books import HOUR_US, Books, open_books
from tests.storage.conftest import Opener

RELAY_WAIT_S = 60
PATIENCE_S = 20
ROUTE = RouteSettings("direct", RouteKind.MX, port=25)
SENDER = SenderSettings("app@example.com", "direct", default=True)


@dataclass
class Service:
    """An intake with a store and a pool, whose mail goes to the recipients' servers, on memory streams."""

    books: Books
    intake: Intake

    async def send(self, *addresses: str) -> Receipt:
        """What a caller hears, which must not take long."""
        verified = await self.intake.authenticate(self.books.secret, door=Door.HTTP, peer_ip="192.0.2.1")
        assert isinstance(verified, Verified)
        draft = Draft(sender=None, to=tuple(map(Mailbox, addresses)), subject="hello", text="hello")
        recipients = tuple(Recipient(address, Kind.TO) for address in addresses)
        origin = Origin(Door.HTTP, "192.0.2.1", "s1")
        with trio.fail_after(PATIENCE_S):
            answer = await self.intake.accept(Submission(verified.key, origin, recipients, draft))
        assert isinstance(answer, Receipt)
        return answer


@asynccontextmanager
async def open_service(opener: Opener, *paused: str) -> AsyncIterator[Service]:
    """paused: destinations.  One address is suppressed: gone@bad.example."""
    async with open_books(opener) as books:
        now_us, until_us = books.clock.us, books.clock.us + HOUR_US
        await books.store.write(
            suppress.add, "account-1", "gone@bad.example", until_us=until_us, reason="no such user", now_us=now_us
        )
        for destination in paused:
            await books.store.write(queue.pause_route, "direct", destination, "", now_us)
        async with serve(books) as service:
            yield service


@asynccontextmanager
async def serve(books: Books) -> AsyncIterator[Service]:
    delivery = DeliverySettings(relay_wait_s=RELAY_WAIT_S)
    settings = Settings(delivery=delivery, sender=(SENDER,), route=(ROUTE,))
    store, now_us, lifecycle = books.store, books.clock.now_us, Lifecycle()
    outbox = Outbox(store, owner="me", now_us=now_us, lease_s=60, body_days=0, spool_dir=None)
    await outbox.recount()  # also what is paused
    async with trio.open_nursery() as nursery:
        pool = DeliveryPool(
            delivery,
            [from_settings(ROUTE)],
            outbox,
            lifecycle,
            "me.example",
            state_dir=Path("/nonexistent"),
            now_us=now_us,
            random=lambda: 0.5,
            connect=Network(nursery, Everybody(set())).connect,
            resolve=Names(),
            is_paused=outbox.is_paused,
        )
        directory = Directory(store, settings.sender)
        nursery.start_soon(directory.run)
        nursery.start_soon(outbox.run_late_writer)
        await nursery.start(pool.run)
        intake = Intake(
            IntakeSettings.of(settings),
            store=store,
            directory=directory,
            outbox=outbox,
            dispatcher=pool,
            preparer=Preparer(hostname="me.example", spool_dir=None, limiter=trio.CapacityLimiter(1), now_us=now_us),
            lifecycle=lifecycle,
            now_us=now_us,
        )
        yield Service(books, intake)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("paused", [[], ["bad.example"]])
async def test_nobody_waits_for_a_destination_that_only_suppressed_recipients_have(
    opener: Opener, paused: list[str]
) -> None:
    """Whether it has room, or is paused, so that nothing would be leased for it in any case."""
    async with open_service(opener, *paused) as service:
        answer = await service.send("a@good.example", "gone@bad.example")
    assert (answer.status, answer.credits_charged, len(answer.rejected)) == (Status.SENT, 1, 1)


async def test_what_only_goes_to_paused_destinations_is_not_waited_for(opener: Opener) -> None:
    """The other one has nobody left to send to, and no say in it."""
    async with open_service(opener, "good.example") as service:
        answer = await service.send("a@good.example", "gone@bad.example")
    assert (answer.status, len(answer.rejected)) == (Status.QUEUED, 1)
