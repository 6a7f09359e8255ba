# SPDX-License-Identifier: Apache-2.0
"""From the intake to the pool, on a real store: whom a caller waits for, and whom not."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from hepmaild.config import DeliverySettings, RouteKind, RouteSettings, SenderSettings, Settings
from hepmaild.delivery.hops import NoHops, Tlsa, TlsLevel, TlsPolicy
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.route import from_settings
from hepmaild.directory import Directory
from hepmaild.errors import StoreUnavailable
from hepmaild.intake import Intake, IntakeSettings
from hepmaild.lifecycle import Lifecycle
from hepmaild.mail.reply import Reply
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
from hepmaild.storage import log, queue, schema, suppress
from tests.conftest import LogEvents
from tests.delivery.peer import Network, Peer
from tests.delivery.test_mx import Everybody, Names, hops
from tests.peers.processes import no_file_beyond
from tests.storage.books import HOUR_US, START_US, Books, open_books
from tests.storage.conftest import Opener

RELAY_WAIT_S = 300
PATIENCE_S = 60
ROUTE = RouteSettings("direct", RouteKind.MX, port=25)
SENDER = SenderSettings("app@example.com", "direct", default=True)


@dataclass
class Service:
    """An intake with a store and a pool, whose mail goes to the recipients' servers, on memory streams."""

    books: Books
    intake: Intake
    outbox: Outbox

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
async def serve(
    books: Books, names: Names | None = None, peers: dict[str, Peer] | None = None
) -> AsyncIterator[Service]:
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
            connect=Network(nursery, Everybody(set()) if peers is None else peers).connect,
            resolve=names or Names(),
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
        yield Service(books, intake, outbox)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("paused", [[], ["bad.example"]])
async def test_nobody_waits_for_a_destination_that_only_suppressed_recipients_have(
    opener: Opener, paused: list[str]
) -> None:
    """Whether it has room, or is paused, so that nothing would be leased for it in any case."""
    async with open_service(opener, *paused) as service:
        answer = await service.send("a@good.example", "gone@bad.example")
    assert (answer.status, answer.credits_charged, len(answer.rejected)) == (Status.SENT, 1, 1)


async def test_a_paused_destination_is_not_waited_for_beside_others(opener: Opener) -> None:
    async with open_service(opener, "bad.example") as service:
        answer = await service.send("a@good.example", "b@bad.example")
    assert (answer.status, answer.credits_charged, answer.rejected) == (Status.QUEUED, 2, ())
    assert answer.retry_hint == "Some recipients still wait for their first attempt."


async def test_what_only_goes_to_paused_destinations_is_not_waited_for(opener: Opener) -> None:
    """The other one has nobody left to send to, and no say in it."""
    async with open_service(opener, "good.example") as service:
        answer = await service.send("a@good.example", "gone@bad.example")
    assert (answer.status, len(answer.rejected)) == (Status.QUEUED, 1)


# What others say that a store does not take


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_what_was_certainly_not_committed_is_not_looked_for(opener: Opener, tmp_path: Path) -> None:
    """Else a disk that is full for an hour takes memory for each call that is made meanwhile."""
    async with open_service(opener) as service:
        assert (await service.send("a@good.example")).status is Status.SENT
        await service.outbox.flush()
        with no_file_beyond((tmp_path / "test.db-wal").stat().st_size):
            for _ in range(5):
                with pytest.raises(StoreUnavailable, match="SQLITE"):
                    await service.send("b@good.example")
            assert not service.outbox._uncertain
        assert (await service.send("c@good.example")).status is Status.SENT


async def test_a_certificate_whose_name_no_store_takes_defers(opener: Opener, tmp_path: Path) -> None:
    """PostgreSQL has no NUL in texts: every report failed, and the message was nobody's until the next start."""
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\0b\x1b[31m")])
    day, now = dt.timedelta(days=10_000), dt.datetime.fromtimestamp(START_US // 1_000_000, dt.UTC)
    built = x509.CertificateBuilder(named, named, key.public_key(), 1, now - day, now + day)
    pems = built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "odd.pem").write_bytes(pems)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "odd.pem")
    peer = Peer(ehlo=b"250-peer\r\n250 STARTTLS\r\n", tls=context)
    anchor = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    dane = TlsPolicy(TlsLevel.DANE, "dane", (Tlsa(2, 1, 0, anchor),), ("mx.odd.example",))
    names = Names({"odd.example": hops(("mx.odd.example", ("192.0.2.9",)), group="odd", tls=dane)})
    async with open_books(opener) as books, serve(books, names, {"192.0.2.9": peer}) as service:
        answer = await service.send("a@odd.example")
        (recipient,) = (await books.store.read(log.show, answer.message_id))["recipients"]
    assert answer.status is Status.QUEUED
    assert recipient["state"] == "deferred"
    assert "the certificate is for a?b?[31m, not for mx.odd.example" in recipient["last_reply"]


async def test_a_report_that_cannot_be_written_is_written_without_the_words_of_others(
    opener: Opener, log_events: LogEvents
) -> None:
    log_events.expect_error("attempt_crashed")
    names = Names({"odd.example": NoHops(Reply(556, "5.1.10", "half of a surrogate: \ud800"))})
    async with open_books(opener) as books, serve(books, names) as service:
        answer = await service.send("a@odd.example", "b@good.example")
        shown = (await books.store.read(log.show, answer.message_id))["recipients"]
        held = await books.store.read(lambda conn: conn.execute(select(schema.queue.c.owner)).scalars().all())
    reply = "556 5.1.10 the text of this reply could not be recorded"
    assert [(r["state"], r["last_reply"]) for r in shown] == [("failed", reply), ("sent", "250 2.0.0 ok")]
    assert list(held) == []
    assert len(log_events.named("attempt_crashed")) == 1
