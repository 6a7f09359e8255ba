# SPDX-License-Identifier: Apache-2.0
"""An account, a key and messages to play with, on a migrated store of either engine."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, update

from hepmaild.delivery.job import Attempt, Job, JobRecipient, Outcome, Result
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import KeyIdentity, Recipient
from hepmaild.storage import accounts, keys
from hepmaild.storage.schema import process
from hepmaild.storage.store import Store
from hepmaild.storage.unit import Accept, Call, Report, UnitRunner
from tests.storage.check_books import check_books
from tests.storage.conftest import Opener

START_US = 1_800_000_000_000_000
HOUR_US = 3_600_000_000


@dataclass
class Clock:
    """A clock that a test moves."""

    us: int = START_US

    def now_us(self) -> int:
        return self.us


def age_leases(conn: Connection, us: int) -> None:
    """As if the processes had said so long ago that they live."""
    conn.execute(update(process).values(alive_until_us=process.c.alive_until_us - us))


@dataclass
class Books:
    """A store with one account and one key.  are_falsified: a test did that, so they cannot hold at its end."""

    store: Store
    clock: Clock
    secret: str = ""
    are_falsified: bool = False
    account_id: str = "account-1"
    identity: KeyIdentity = field(
        default_factory=lambda: KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120)
    )

    def accept(self, *addresses: str, **changes: Any) -> Accept:
        """A member that accepts one message."""
        member = Accept(
            message_id=secrets.token_hex(8),
            account_id=self.account_id,
            key=self.identity,
            door="smtp",
            sender="app@example.com",
            route="up",
            reverse_path="app@example.com",
            subject="hello",
            header_message_id="<1@example.com>",
            size=5,
            smtputf8=False,
            recipients=tuple(Recipient(address) for address in addresses or ("a@example.net",)),
            content=b"hello",
            expires_at_us=self.clock.us + 96 * HOUR_US,
            at_us=self.clock.us,
            messages_per_day=0,
            event="{}",
            answer='{"final":false}',
            owner="me",
        )
        return replace(member, **changes)

    def call(self, *, limit: int = 120, recipients: int = 0, day: int = 0) -> Call:
        """A member that takes one call of the key."""
        return Call(self.identity.key_id, self.account_id, limit, day, recipients)

    def report(self, member: Accept, *results: Result, token: int = 1, retry_at_us: int | None = None) -> Report:
        """A member that reports an attempt at all recipients, with one result for each."""
        job = Job(
            member.message_id,
            member.account_id,
            member.route,
            member.reverse_path,
            tuple(JobRecipient(n, r.address) for n, r in enumerate(member.recipients)),
            token,
            member.size,
            member.smtputf8,
            member.at_us,
            member.expires_at_us,
        )
        waits = (Result.DEFERRED, Result.IN_DOUBT)
        due = retry_at_us or self.clock.us + HOUR_US
        outcomes = tuple(
            Outcome(n, result, Reply(250, "2.0.0", "fine"), due if result in waits else None)
            for n, result in enumerate(results)
        )
        attempt = Attempt(job, self.clock.us, self.clock.us, "next.example[192.0.2.1]:25", "", "", (), outcomes)
        return Report(attempt, "", member.account_id, json.dumps({"outcomes": len(outcomes)}), 0)


def mint_key(conn: Connection, books: Books, key_id: str, secret: str = "", chaos: str | None = None) -> None:
    """A key of the books' account without restrictions."""
    keys.mint(
        conn,
        account_id=books.account_id,
        key_id=key_id,
        name="app" if key_id == books.identity.key_id else key_id,
        secret=secret or keys.new_secret(),
        limit=15,
        permissions=None,
        senders=None,
        addresses=None,
        expires_at_us=None,
        now_us=books.clock.us,
        chaos=chaos,
    )


def add_account(conn: Connection, number: int, credits_granted: int, now_us: int) -> None:
    """`account-NUMBER`, with its owner."""
    accounts.create(
        conn,
        account_id=f"account-{number}",
        user_id=f"user-{number}",
        email=f"owner{number}@example.com",
        plan="standard",
        password_hash=None,
        is_operator=False,
        credits_granted=credits_granted,
        granted_by="a test",
        now_us=now_us,
    )


@asynccontextmanager
async def open_books(opener: Opener, *, credits_granted: int = 100, clock: Clock | None = None) -> AsyncIterator[Books]:
    """A migrated store with an account of `credits_granted` credits and one key.  At the end its books must hold."""
    clock = clock or Clock()
    secret = keys.new_secret()
    async with opener(UnitRunner(clock.now_us)) as store:
        await store.upgrade()
        books = Books(store, clock, secret)
        await store.write(add_account, 1, credits_granted, clock.us)
        await store.write(mint_key, books, books.identity.key_id, secret)
        yield books
        if not books.are_falsified:
            await store.read(check_books)
