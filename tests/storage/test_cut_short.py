# SPDX-License-Identifier: Apache-2.0
"""Cancelled at any step: a message is accepted as a whole, and told again to who asks again, or not at all."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field

import pytest
import trio
from sqlalchemy import Connection, select

from hepmaild.delivery.job import Job
from hepmaild.live import LiveHub
from hepmaild.mail.content import SPOOL_OCTETS, Content
from hepmaild.mail.submission import Door, Draft, Kind, Mailbox, Origin, Receipt, Recipient, Submission, Verified
from hepmaild.outbox import CLAIM_UNIT, Outbox
from hepmaild.storage import credits as money
from hepmaild.storage import schema
from hepmaild.storage.schema_templates import upload, upload_piece
from hepmaild.storage.uploads import Upload
from hepmaild.uploads import Uploads
from tests.delivery.peer import Peer
from tests.peers.cancelling import Cut, at_each_cut
from tests.storage.books import open_books
from tests.storage.conftest import Opener
from tests.storage.test_hand_over import Service, serve

GRANTED = 1000
LARGE = SPOOL_OCTETS + 1000
HEAD = b"From: app@example.com\r\nTo: a@good.example\r\nMessage-ID: <%d@x.example>\r\nIdempotency-Key: w%d\r\n\r\n"
LATER_US = 400_000_000  # so long after a call that never ended its twin is told what is known
SECOND_US = 1_000_000


class AnySize(dict[str, Peer]):
    """A next hop at every address, which takes any size."""

    def __contains__(self, host: object) -> bool:
        return True

    def __missing__(self, host: str) -> Peer:
        return self.setdefault(host, Peer(ehlo=b"250-peer\r\n250 8BITMIME\r\n"))


def all_sent(conn: Connection) -> list[str] | None:
    """The messages; None while one of them has not left."""
    states = conn.execute(select(schema.recipient.c.message_id, schema.recipient.c.state)).all()
    is_over = all(row.state == "sent" for row in states) and not conn.execute(select(schema.queue.c.message_id)).all()
    return [row.message_id for row in states] if is_over else None


@dataclass
class Caller:
    """Calls with another word each, one recipient, by one door."""

    service: Service
    verified: Verified
    door: Door
    size: int
    number: int = 0
    accepted: list[str] = field(default_factory=list)

    def _source(self) -> Content | Draft:
        if self.door is Door.HTTP:
            return Draft(sender=None, to=(Mailbox("a@good.example"),), subject="hello", text="x" * self.size)
        message = HEAD % (self.number, self.number) + b"x" * 70 + b"\r\n" * (self.size // 2)
        if self.size <= SPOOL_OCTETS:
            return Content(message)
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.write(message)
        file.flush()
        return Content(file=file, size=len(message))

    async def call(self) -> object:
        """As a door does: what it does not close itself shows as a warning."""
        source, word = self._source(), f"w{self.number}"
        submission = Submission(
            self.verified.key,
            Origin(self.door, "192.0.2.1", "s1"),
            (Recipient("a@good.example", Kind.TO),),
            source,
            reverse_path="app@example.com" if self.door is Door.SMTP else None,
            idempotency_word=word if self.door is Door.HTTP else None,
            fingerprint=word.encode(),
            is_counted=self.door is Door.SMTP,
        )
        try:
            return await self.service.intake.accept(submission)
        finally:
            if isinstance(source, Content):
                source.close()

    async def check(self, cut: Cut) -> None:
        books = self.service.books
        assert isinstance(cut.result, Receipt) or not cut.is_whole, cut.result
        accepted = None
        while accepted is None:  # what was committed goes on without its caller
            accepted = await books.store.read(all_sent)
        new = [message_id for message_id in accepted if message_id not in self.accepted]
        assert len(accepted) == len(self.accepted) + len(new)
        assert len(new) in ({1} if cut.is_whole else {0, 1})
        assert await books.store.read(money.balance, books.account_id) == GRANTED - len(accepted)
        self.accepted = accepted
        if new:
            books.clock.us += LATER_US
            again = await self.call()
            assert isinstance(again, Receipt)
            assert (again.message_id, again.replayed) == (new[0], True)
            assert await books.store.read(all_sent) == accepted
        assert not self.service.intake._twins._pending
        assert not self.service.outbox._callers._waiting
        self.number += 1
        books.clock.us += SECOND_US


@pytest.mark.parametrize("size", [100, LARGE])
@pytest.mark.parametrize("door", [Door.HTTP, Door.SMTP])
async def test_a_message_is_accepted_as_a_whole_or_not_at_all(opener: Opener, door: Door, size: int) -> None:
    async with open_books(opener, credits_granted=GRANTED) as books, serve(books, peers=AnySize()) as service:
        verified = await service.intake.authenticate(books.secret, door=door, peer_ip="192.0.2.1")
        assert isinstance(verified, Verified)
        caller = Caller(service, verified, door, min(size, 300_000) if door is Door.HTTP else size)
        with trio.fail_after(120):
            await at_each_cut(caller.call, caller.check)
        assert 0 < len(caller.accepted) < caller.number


async def test_what_a_claim_that_is_cut_short_had_leased_comes_with_the_next(opener: Opener) -> None:
    async with open_books(opener) as books:
        outbox = Outbox(books.store, owner="me", now_us=books.clock.now_us, lease_s=60, body_days=0, spool_dir=None)
        members = [books.accept(owner="", left=frozenset([""])) for _ in range(CLAIM_UNIT + 2)]
        for member in members:
            await books.store.submit(member)

        async def check(cut: Cut) -> None:
            jobs: list[Job] = cut.result.jobs if cut.is_whole else []
            while len(jobs) < len(members):
                books.clock.us += SECOND_US
                jobs += (await outbox.claim(100)).jobs
            assert {job.message_id for job in jobs} == {member.message_id for member in members}
            await outbox.release(*jobs)
            books.clock.us += SECOND_US

        with trio.fail_after(120):
            await at_each_cut(lambda: outbox.claim(100), check)


async def test_an_upload_that_is_cut_short_leaves_nothing(opener: Opener) -> None:
    async with open_books(opener) as books:
        uploads = Uploads(books.store, books.clock.now_us, lambda: 1 << 30)
        whole: set[str] = set()

        async def receive() -> Upload:
            async with uploads.receive(books.account_id, None) as incoming:
                for _ in range(3):
                    await incoming.write(bytes(900_000))
                return await incoming.finish("a.txt", "text/plain")

        async def check(cut: Cut) -> None:
            if cut.is_whole:
                whole.add(cut.result.upload_id)
            for column in (upload.c.id, upload_piece.c.upload_id):
                assert set(await books.store.read(lambda conn: conn.execute(select(column)).scalars().all())) == whole  # noqa: B023

        await at_each_cut(receive, check)


async def test_a_listener_that_is_cut_short_leaves_the_live_stream_as_it_was(opener: Opener) -> None:
    async with open_books(opener) as books:
        hub = LiveHub(books.store)

        async def listen() -> None:
            async with hub.listen(None, 0):
                await trio.lowlevel.checkpoint()

        async def check(_cut: Cut) -> None:
            assert hub.readers == 0
            with trio.fail_after(60):
                await listen()

        await at_each_cut(listen, check)
