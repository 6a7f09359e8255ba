# SPDX-License-Identifier: Apache-2.0
"""An account with people on a migrated store of either engine, and as many processes on it as a test wants."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio

from hepmaild import passwords, totp
from hepmaild.login import Kind, LoginRefusal, TokenSet, Viewer
from hepmaild.people import People
from hepmaild.storage import accounts, audit, tries, users
from hepmaild.storage.audit import Actor
from hepmaild.storage.store import Store
from hepmaild.storage.unit import UnitRunner
from hepmaild.vault import Vault
from tests.storage.books import Clock
from tests.storage.conftest import Opener, database_url, opener

__all__ = ["database_url", "opener"]

ANN, BEN, EVE = "ann@example.com", "ben@example.com", "eve@elsewhere.example"
PASSWORD = "correct horse battery"
IP, OTHER_IP = "192.0.2.7", "192.0.2.8"
AGENT = "a test"
TURN_WAIT_S = 60.0
CHEAP = passwords.Cost(rounds=1, memory_kib=64, lanes=1)  # of a hash; most tests are not about what guessing costs
MINUTE_US = 60_000_000


@cache
def kept_password() -> str:
    """The hash of `PASSWORD`, made once."""
    return passwords.hash_password(PASSWORD, CHEAP)


@dataclass
class World:
    """One process, and the means to open another."""

    store: Store
    people: People
    clock: Clock
    opener: Opener
    folder: Path
    ids: dict[str, str] = field(default_factory=dict)

    async def login(
        self,
        email: str = ANN,
        password: str = PASSWORD,
        *,
        otp: str | None = None,
        ip: str = IP,
        kind: Kind = "program",
    ) -> TokenSet | LoginRefusal:
        return await self.people.password_grant(email, password, otp=otp, ip=ip, agent=AGENT, kind=kind)

    async def tokens(self, email: str = ANN, *, otp: str | None = None, kind: Kind = "program") -> TokenSet:
        """A login that succeeds."""
        granted = await self.login(email, otp=otp, kind=kind)
        assert isinstance(granted, TokenSet), granted
        return granted

    async def refusal(self, *args: Any, **kwargs: Any) -> int:
        """The code of a login that fails."""
        refused = await self.login(*args, **kwargs)
        assert isinstance(refused, LoginRefusal)
        return refused.code

    async def viewer(self, email: str = ANN, *, kind: Kind = "browser") -> Viewer:
        """Somebody who is logged in."""
        viewer = await self.people.viewer_of((await self.tokens(email, kind=kind)).access_token)
        assert viewer is not None
        return viewer

    async def wrong_tries(self, emails: int) -> None:
        """One wrong try at each of so many addresses, without the work of hashing."""
        for n in range(emails):
            address, try_id = f"user{n}@example.com", str(uuid.uuid4())
            wait_us = await self.store.write(
                tries.begin, try_id=try_id, client=IP, email_key=address, now_us=self.clock.us
            )
            assert wait_us == 0

    async def add_user(self, email: str, scope: str, *, of: str = "account-1") -> str:
        """A further user with `PASSWORD`."""
        user_id = str(uuid.uuid4())
        now_us = self.clock.us
        await self.store.write(users.add, account_id=of, user_id=user_id, email=email, scope=scope, now_us=now_us)
        await self.store.write(users.set_password, user_id, kept_password(), now_us)
        return user_id

    async def enrol(self, email: str = ANN) -> tuple[bytes, list[str]]:
        """Turn the second factor on; its secret and recovery codes."""
        viewer, step = await self.viewer(email), totp.step_of(self.clock.us)
        secret = b""
        while not tells_steps_apart(secret, step):
            await self.people.members.begin_second_factor(viewer)
            row = await self.store.read(users.find, email)
            secret = await self.people.second_factor._open(row)
        code = totp.code(secret, step)
        return secret, await self.people.members.confirm_second_factor(viewer, actor_of(viewer), code)

    async def actions(self, account_id: str = "account-1") -> list[str]:
        """What the account's audit log says, oldest first; its chain holds."""
        assert await self.store.read(audit.verify, account_id) is None
        return [row["action"] for row in reversed(await self.store.read(audit.history, account_id))]

    @asynccontextmanager
    async def another(self) -> AsyncIterator[World]:
        """Another process on the same database."""
        async with self.opener(UnitRunner(self.clock.now_us), exclusive=False) as store:
            people = make_people(store, self.folder, self.clock)
            await people.start()
            yield World(store, people, self.clock, self.opener, self.folder, self.ids)


def tells_steps_apart(secret: bytes, step: int) -> bool:
    """Whether it is a secret of which no two codes about this step are the same, as two are once in a million."""
    codes = [totp.code(secret, n) for n in range(step - 4, step + 40)]
    return bool(secret) and len(set(codes)) == len(codes)


def actor_of(viewer: Viewer) -> Actor:
    return Actor(viewer.user_id, viewer.email, IP, "dashboard")


def make_people(store: Store, folder: Path, clock: Clock, cost: passwords.Cost = CHEAP) -> People:
    limiters = [trio.CapacityLimiter(2) for _ in range(2)]
    return People(
        store,
        Vault(folder),
        hashing=limiters[0],
        files=limiters[1],
        now_us=clock.now_us,
        turn_wait_s=TURN_WAIT_S,
        cost=cost,
    )


async def add_account(store: Store, account_id: str, email: str, now_us: int, *, is_operator: bool = False) -> str:
    user_id = str(uuid.uuid4())
    await store.write(
        accounts.create,
        account_id=account_id,
        user_id=user_id,
        email=email,
        plan="standard",
        password_hash=kept_password(),
        is_operator=is_operator,
        credits_granted=0,
        granted_by="a test",
        now_us=now_us,
    )
    return user_id


@asynccontextmanager
async def open_world(opener: Opener, folder: Path) -> AsyncIterator[World]:
    """Ann owns account-1 and Eve account-2."""
    clock = Clock()
    async with opener(UnitRunner(clock.now_us)) as store:
        await store.upgrade()
        ids = {
            ANN: await add_account(store, "account-1", ANN, clock.us),
            EVE: await add_account(store, "account-2", EVE, clock.us),
        }
        people = make_people(store, folder, clock)
        await people.start()
        yield World(store, people, clock, opener, folder, ids)


@pytest.fixture
async def world(opener: Opener, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(opener, tmp_path) as opened:
        yield opened
