# SPDX-License-Identifier: Apache-2.0
"""DKIM keys on both engines: their states, who signs now, the watch over pending ones, sealing anew."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest
import trio
from sqlalchemy import Connection, delete, insert, select

from hepmaild.cli.secrets import UNIT, _reseal
from hepmaild.config import LimitSettings, SmtpSettings
from hepmaild.delivery.answers import Failed
from hepmaild.directory import Directory
from hepmaild.dkim_keys import KeyPair, make_pair, place_of
from hepmaild.dkim_watch import FIRST_LOOK_S, MAX_PAUSE_S, DkimWatch
from hepmaild.errors import ErrorKind, Refusal, SecretsUnavailable
from hepmaild.mail import dkim_record
from hepmaild.mail.content import SPOOL_OCTETS, Content, ContentBuilder
from hepmaild.mail.dkim import ED25519, RSA
from hepmaild.mail.submission import Door, Draft, KeyIdentity, Mailbox, Origin, Recipient, Submission
from hepmaild.policy import SenderBook, make_book
from hepmaild.prepare import Prepared, Preparer
from hepmaild.signing import NotLoaded, SigningKeys
from hepmaild.storage import dkim as rows
from hepmaild.storage import sealed
from hepmaild.storage.directory import SenderRow, bump
from hepmaild.storage.schema import dkim_key
from hepmaild.storage.store import Store
from hepmaild.vault import HEAD_OCTETS, VERSION, Place, Vault, new_key
from tests.storage.books import Clock, open_books
from tests.storage.conftest import Opener

DOMAIN = "example.com"
PAIRS = {RSA: make_pair(RSA), ED25519: make_pair(ED25519)}


@dataclass
class World:
    """A store, a vault, and what knows the keys; `texts` is DNS."""

    store: Store
    clock: Clock
    vault: Vault
    directory: Directory
    signing: SigningKeys
    texts: dict[str, tuple[str, ...] | Failed] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def add(self, selector: str, algorithm: str = ED25519, *, domain: str = DOMAIN) -> KeyPair:
        pair = PAIRS[algorithm]
        await self.store.write(
            rows.add,
            domain=domain,
            selector=selector,
            algorithm=algorithm,
            sealed_key=self.vault.seal(place_of(domain, selector), pair.private_key),
            public_key=pair.public_key,
            now_us=self.clock.us,
        )
        return pair

    async def active(self, selector: str, algorithm: str = ED25519, *, domain: str = DOMAIN) -> None:
        await self.add(selector, algorithm, domain=domain)
        await self.store.write(rows.activate, domain, selector, self.clock.us)

    async def lookup_txt(self, name: str) -> tuple[str, ...] | Failed:
        self.asked.append(name)
        return self.texts.get(name, ())

    def publish(self, selector: str, algorithm: str = ED25519) -> None:
        value = dkim_record.record_value(algorithm, PAIRS[algorithm].public_key)
        self.texts[dkim_record.record_name(DOMAIN, selector)] = (value,)

    async def selectors(self, domain: str = DOMAIN) -> list[str]:
        """Who signs now, as a message that just came is told."""
        await self.directory.key(b"\0" * 32)  # validates the generation, as every MAIL does
        for _ in range(5):
            try:
                return [signer.selector for signer in self.signing.of(domain)]
            except NotLoaded as missing:
                await self.signing.load(missing.domain)
        raise AssertionError("does not settle")

    async def states(self) -> dict[str, str]:
        return {key["selector"]: key["state"] for key in await self.store.read(rows.list_of)}


@pytest.fixture
async def world(opener: Opener, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(opener, tmp_path) as opened:
        yield opened


@asynccontextmanager
async def open_world(opener: Opener, folder: Path) -> AsyncIterator[World]:
    clock = Clock(1_700_000_000_000_000)  # the past: dkimpy refuses signatures of the future
    async with open_books(opener, clock=clock) as books, trio.open_nursery() as nursery:
        vault = Vault(folder)
        vault.make()
        directory = Directory(books.store, ())
        nursery.start_soon(directory.run)
        yield World(
            books.store,
            books.clock,
            vault,
            directory,
            SigningKeys(books.store, vault, lambda: directory.generation),
        )
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------------- states


async def test_states(world: World) -> None:
    store = world.store
    await world.add("one")
    with pytest.raises(ValueError, match="already"):
        await world.add("one")
    with pytest.raises(ValueError, match="no key with the selector two"):
        await store.write(rows.activate, DOMAIN, "two", 1)
    with pytest.raises(ValueError, match="no key with the selector two"):
        await store.write(rows.remove, DOMAIN, "two")
    assert await world.states() == {"one": "pending"}
    assert (await store.write(rows.activate, DOMAIN, "one", 7))["changed_at_us"] == 7
    assert (await store.write(rows.activate, DOMAIN, "one", 8))["changed_at_us"] == 7
    with pytest.raises(ValueError, match="dkim retire"):
        await store.write(rows.remove, DOMAIN, "one")
    assert (await store.write(rows.retire, DOMAIN, "one", 9))["state"] == "retired"
    await store.write(rows.remove, DOMAIN, "one")
    assert await world.states() == {}


async def test_two_that_see_the_record_activate_it_once(world: World) -> None:
    await world.add("one")
    assert await world.store.write(rows.activate_seen, DOMAIN, "one", 5)
    assert not await world.store.write(rows.activate_seen, DOMAIN, "one", 6)
    await world.store.write(rows.retire, DOMAIN, "one", 7)
    assert not await world.store.write(rows.activate_seen, DOMAIN, "one", 8), "a retired key stays so"
    assert not await world.store.write(rows.activate_seen, DOMAIN, "gone", 8)


async def test_the_one_before_signs_on_for_a_while(world: World) -> None:
    await world.active("r1", RSA)
    await world.active("e1")
    await world.active("other", domain="example.org")
    world.clock.us += 1000
    await world.active("r2", RSA)
    started_us = world.clock.us
    assert sorted(await world.selectors()) == ["e1", "r1", "r2"]
    assert (await world.store.read(rows.waiting))[1] == started_us + rows.OVERLAP_US
    assert await world.store.write(rows.retire_overlapped, started_us + rows.OVERLAP_US - 1) == []
    gone = await world.store.write(rows.retire_overlapped, started_us + rows.OVERLAP_US)
    assert [key["selector"] for key in gone] == ["r1"]
    assert await world.selectors() == ["r2", "e1"]
    assert await world.selectors("example.org") == ["other"]
    assert (await world.store.read(rows.waiting))[1] is None


# ------------------------------------------------------------------------------------------------- who signs


async def test_changes_are_obeyed_by_the_next_message(world: World) -> None:
    assert await world.selectors() == []
    await world.add("one")
    assert await world.selectors() == []
    await world.store.write(rows.activate, DOMAIN, "one", 1)
    assert await world.selectors() == ["one"]
    await world.active("two", RSA)
    assert sorted(await world.selectors()) == ["one", "two"]
    assert await world.selectors("sub.example.com") == [], "this domain and no other"
    await world.store.write(rows.retire, DOMAIN, "one", 2)
    assert await world.selectors() == ["two"]
    await world.store.write(rows.retire, DOMAIN, "two", 3)
    assert await world.selectors() == []


async def test_what_is_known_needs_no_store(world: World) -> None:
    await world.active("one")
    await world.selectors()
    (signer,) = world.signing.of(DOMAIN)
    assert world.signing.of("elsewhere.example") == ()
    await world.store.write(bump)  # something else changed: the opened key is used again
    await world.selectors()
    assert world.signing.of(DOMAIN)[0] is signer


async def test_a_key_that_cannot_be_opened_is_told_once(world: World, log_events: Any) -> None:
    log_events.expect_error("dkim_key_unusable")
    await world.active("one")
    world.vault.replace([new_key()])
    for _ in range(3):
        with pytest.raises(SecretsUnavailable, match="has not the key"):
            await world.selectors()
    assert len(log_events.named("dkim_key_unusable")) == 1
    with pytest.raises(SecretsUnavailable, match="has not the key"):
        await world.signing.check()


async def test_a_sealed_key_opens_in_its_own_row_only(world: World, log_events: Any) -> None:
    log_events.expect_error("dkim_key_unusable")
    await world.active("one")
    await world.store.write(lambda conn: conn.execute(dkim_key.update().values(selector="two")))
    await world.store.write(bump)
    with pytest.raises(SecretsUnavailable, match="changed or moved"):
        await world.selectors()


async def test_everything_is_sealed_anew(world: World) -> None:
    await world.active("one")
    await world.active("two", RSA)
    await world.signing.check()
    (head,) = await world.store.read(sealed.heads, HEAD_OCTETS)
    before = await world.selectors()
    newest = new_key()
    world.vault.replace([*world.vault.read(), newest])

    def anew(table: str, column: str, row: tuple[str, ...], value: bytes) -> bytes:
        place = Place(table, column, row)
        return world.vault.seal(place, world.vault.open(place, value))

    new_head = VERSION + newest.id
    for left in ({head: 1, new_head: 1}, {new_head: 2}):
        assert await world.store.write(sealed.reseal_some, new_head, anew, 1) == 1
        assert await world.store.read(sealed.heads, HEAD_OCTETS) == left
        assert sorted(await world.selectors()) == sorted(before), "whichever of them is how far"
    assert await world.store.write(sealed.reseal_some, new_head, anew, 1) == 0
    heads = await world.store.read(sealed.heads, HEAD_OCTETS)
    assert list(heads.values()) == [2]
    assert head not in heads
    world.vault.replace([world.vault.read()[-1]])
    await world.store.write(bump)
    assert await world.selectors() == before
    await world.signing.check()


async def test_more_secrets_than_a_unit_takes(world: World) -> None:
    """All in one took until `database.unit_timeout_s` with ten thousand of them, and nobody else wrote meanwhile."""
    many = 2 * UNIT + 1
    pair = make_pair(ED25519)

    def fill(conn: Connection) -> None:
        sealed_key = {n: world.vault.seal(place_of(f"d{n}.example", "s"), pair.private_key) for n in range(many)}
        common = {"selector": "s", "algorithm": ED25519, "public_key": pair.public_key, "state": rows.RETIRED}
        conn.execute(
            insert(dkim_key),
            [
                {**common, "domain": f"d{n}.example", "sealed_key": octets, "created_at_us": 0, "changed_at_us": 0}
                for n, octets in sealed_key.items()
            ],
        )

    await world.store.write(fill)
    newest = new_key()
    world.vault.replace((*world.vault.read(), newest))
    assert await _reseal(world.store, world.vault, newest) == many
    world.vault.replace((newest,))
    found = await world.store.read(rows.list_of, "d0.example")
    assert len(found) == 1
    await world.signing.check()


# ------------------------------------------------------------------------------------------------- the watch


def minutes(count: float) -> int:
    return int(count * 60_000_000)


async def test_a_pending_key_waits_for_dns(world: World) -> None:
    watch = DkimWatch(world.store, world.lookup_txt, world.clock.now_us)
    assert await watch.round() == math.inf
    await world.add("one")
    assert await watch.round() == FIRST_LOOK_S, "not asked at once: the resolver would remember that there is nothing"
    assert world.asked == []
    world.clock.us += minutes(2)
    assert await watch.round() == FIRST_LOOK_S
    assert world.asked == ["one._domainkey.example.com"]
    world.texts["one._domainkey.example.com"] = Failed("SERVFAIL")
    world.clock.us += minutes(60)
    assert await watch.round() == 62 * 60 / 8, "the longer it waits, the less often"
    assert await world.states() == {"one": "pending"}
    world.publish("one")
    world.clock.us += minutes(10)
    assert await watch.round() == math.inf
    assert await world.states() == {"one": "active"}
    assert await world.selectors() == ["one"]


async def test_a_rotation_ends_by_itself(world: World) -> None:
    watch = DkimWatch(world.store, world.lookup_txt, world.clock.now_us)
    await world.active("one")
    assert await watch.round() == math.inf
    await world.add("two")
    world.publish("two")
    world.clock.us += minutes(3)
    assert await watch.round() == rows.OVERLAP_US / 1e6
    assert sorted(await world.selectors()) == ["one", "two"]
    world.clock.us += rows.OVERLAP_US
    assert await watch.round() == math.inf
    assert await world.states() == {"one": "retired", "two": "active"}


async def test_an_old_pending_key_is_looked_at_now_and_then(world: World) -> None:
    watch = DkimWatch(world.store, world.lookup_txt, world.clock.now_us)
    await world.add("one")
    world.clock.us += minutes(60 * 24 * 30)
    assert await watch.round() == MAX_PAUSE_S
    assert len(world.asked) == 1


async def test_the_watch_sleeps_until_it_is_woken(world: World) -> None:
    watch = DkimWatch(world.store, world.lookup_txt, world.clock.now_us)
    await world.add("one")
    world.publish("one")
    world.clock.us += minutes(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        with trio.fail_after(60):
            while await world.states() != {"one": "active"}:
                await trio.lowlevel.checkpoint()
            await world.add("two", RSA)
            world.publish("two", RSA)
            world.clock.us += minutes(3)
            watch.wake()
            while await world.states() != {"one": "active", "two": "active"}:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------- messages


class Obeyed:
    smtp = SmtpSettings()
    limits = LimitSettings()


ADDRESS = "noreply@example.com"
BOOK = make_book([SenderRow("", "Noreply@Example.COM", ADDRESS, "up", 0, True)], ())
KEY = KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120)
BODY = b"Hello \t you\r\n\r\n"


def submission(source: Content | Draft, reverse_path: str | None = ADDRESS) -> Submission:
    door = Door.SMTP if isinstance(source, Content) else Door.HTTP
    return Submission(
        key=KEY,
        origin=Origin(door, "127.0.0.1", "s", "TLSv1.3", "x", "client.test"),
        recipients=(Recipient("b@example.net"),),
        source=source,
        reverse_path=reverse_path,
    )


def records(world: World) -> Any:
    def find(name: bytes, timeout: float = 5) -> bytes | None:
        for algorithm, pair in PAIRS.items():
            if name.decode().startswith(f"{algorithm[:3]}._domainkey.example.com"):
                return dkim_record.record_value(algorithm, pair.public_key).encode()
        return None

    return find


async def prepare(world: World, source: Content | Draft, *, spool_dir: Path, book: SenderBook = BOOK) -> Any:
    preparer = Preparer(
        hostname="smtp.test",
        spool_dir=spool_dir,
        limiter=trio.CapacityLimiter(1),
        now_us=world.clock.now_us,
        signing=world.signing,
    )
    await world.directory.key(b"\0" * 32)
    return await preparer.prepare(submission(source), book, Obeyed())


def octets_of(prepared: Prepared) -> bytes:
    return b"".join(prepared.content.chunks())


def assert_signed(world: World, message: bytes, count: int) -> None:
    assert message.startswith(b"DKIM-Signature: ")
    assert message.count(b"DKIM-Signature: ") == count
    for number in range(count):
        assert dkimpy.DKIM(message).verify(idx=number, dnsfunc=records(world))


def spooled(octets: bytes, folder: Path) -> Content:
    builder = ContentBuilder(folder)
    builder.write(octets)
    return builder.finish()


@pytest.mark.parametrize("padding", [0, 300 << 10, SPOOL_OCTETS])
@pytest.mark.parametrize("author", [b"From: A <noreply@example.com>\r\n", b""])
async def test_messages_are_signed_as_they_are_stored(
    world: World, tmp_path: Path, padding: int, author: bytes
) -> None:
    """Small, in a thread, and in a file; with an author or without one."""
    await world.active("rsa", RSA)
    await world.active("ed2", ED25519)
    await world.store.write(lambda conn: conn.execute(dkim_key.update().values(state="active")))
    message = author + b"To: b@example.net\r\nBcc: c@example.net\r\nSubject: x\r\n\r\n" + BODY
    message += (b"x" * 76 + b" \r\n") * (padding // 79 + (1 if padding else 0))
    prepared = await prepare(world, spooled(message, tmp_path), spool_dir=tmp_path)
    assert isinstance(prepared, Prepared)
    assert prepared.content.is_spooled == (padding == SPOOL_OCTETS)
    stored = octets_of(prepared)
    assert_signed(world, stored, 2)
    assert stored.index(b"DKIM-Signature") < stored.index(b"Received: ")
    assert stored.endswith(message.partition(b"\r\n\r\n")[2])
    prepared.content.close()


@pytest.mark.parametrize("octets", [10, 400_000])
async def test_drafts_are_signed(world: World, tmp_path: Path, octets: int) -> None:
    await world.active("rsa", RSA)
    draft = Draft(sender=Mailbox(ADDRESS, "Ä"), to=(Mailbox("b@example.net"),), subject="Grüße", text="ö \n" * octets)
    assert_signed(world, octets_of(await prepare(world, draft, spool_dir=tmp_path)), 1)


async def test_nothing_is_signed_that_leaves_by_an_accounts_own_server(world: World, tmp_path: Path) -> None:
    """Anybody may call a server by an address of ours."""
    await world.active("rsa", RSA)
    book = make_book([SenderRow("account-1", ADDRESS, ADDRESS, "own:1", 0, False), *BOOK.by_key.values()], ())
    draft = Draft(sender=Mailbox(ADDRESS), to=(Mailbox("b@example.net"),), text="Hello")
    message = Content(b"From: <" + ADDRESS.encode() + b">\r\n\r\nHello\r\n")
    for source in (draft, message):
        prepared = await prepare(world, source, spool_dir=tmp_path, book=book)
        assert prepared.sender.route == "own:1"
        assert b"DKIM-Signature" not in octets_of(prepared)
        assert b"DKIM-Signature" in octets_of(await prepare(world, source, spool_dir=tmp_path))


async def test_a_signature_of_the_client_stays(world: World, tmp_path: Path) -> None:
    await world.active("ed2")
    own = b"DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=x;\r\n\tb=abc\r\nFrom: noreply@example.com\r\n\r\n"
    stored = octets_of(await prepare(world, Content(own + BODY), spool_dir=tmp_path))
    assert stored.count(b"DKIM-Signature: ") == 2
    assert own.partition(b"From")[0] in stored
    assert dkimpy.DKIM(stored).verify(idx=0, dnsfunc=records(world))


async def test_other_domains_are_not_signed(world: World, tmp_path: Path) -> None:
    await world.active("ed2", domain="sub.example.com")
    message = b"From: noreply@example.com\r\n\r\n"
    assert b"DKIM-Signature" not in octets_of(await prepare(world, Content(message), spool_dir=tmp_path))


async def test_a_message_that_cannot_be_signed_is_not_taken(world: World, tmp_path: Path, log_events: Any) -> None:
    """Unsigned it would be refused, or land in junk, with nobody knowing why.  The caller tries again."""
    log_events.expect_error("dkim_key_unusable")
    await world.active("ed2")
    kept = world.vault.read()
    world.vault.replace([new_key()])
    source = spooled(b"From: noreply@example.com\r\n\r\n" + b"x" * SPOOL_OCTETS + b"\r\n", tmp_path)
    refused = await prepare(world, source, spool_dir=tmp_path)
    assert isinstance(refused, Refusal)
    assert refused.kind is ErrorKind.UNAVAILABLE
    assert (refused.to_reply().code, refused.kind.answer.http_status) == (451, 503)
    world.vault.replace(kept)
    prepared = await prepare(world, source, spool_dir=tmp_path)
    assert_signed(world, octets_of(prepared), 1)
    prepared.content.close()


async def test_keys_that_go_while_messages_come(world: World, tmp_path: Path) -> None:
    await world.active("ed2")
    assert_signed(
        world, octets_of(await prepare(world, Content(b"From: noreply@example.com\r\n\r\n"), spool_dir=tmp_path)), 1
    )
    await world.store.write(rows.retire, DOMAIN, "ed2", 1)
    await world.store.write(lambda conn: conn.execute(delete(dkim_key)))
    stored = octets_of(await prepare(world, Content(b"From: noreply@example.com\r\n\r\n"), spool_dir=tmp_path))
    assert b"DKIM-Signature" not in stored
    assert await world.store.read(lambda conn: conn.execute(select(dkim_key)).first()) is None
