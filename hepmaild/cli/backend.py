# SPDX-License-Identifier: Apache-2.0
"""How a command reaches the store: open it, bring the schema up to date, run one plain function, tell the daemon."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from hepmaild.cli.common import mark_changed
from hepmaild.cli.output import CommandFailed
from hepmaild.config import Migrate, Settings
from hepmaild.errors import StoreUnavailable, leaves

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.storage.audit import Actor
    from hepmaild.storage.store import Store

T = TypeVar("T")

KEYS = "keys"  # keys, accounts, senders, plans changed
PEOPLE = "people"  # users, their sessions
QUEUE = "queue"  # something became due
# A look at everything (a queue of a million, a ledger as long) takes longer than the daemon may wait for its store.
LOOK_S = 300.0


def now_us() -> int:
    """Unix microseconds."""
    return time.time_ns() // 1000


def operator_name() -> str:
    """Who runs this command, for the ledger."""
    try:
        return f"command line ({getpass.getuser()})"
    except (KeyError, OSError):
        return "command line"


def actor() -> Actor:
    """Who runs this command, for the audit log."""
    from hepmaild.storage.audit import Actor

    return Actor("", operator_name(), "", "cli")


def note(conn: Connection, account_id: str, action: str, subject: str, data: dict[str, Any] | None = None) -> None:
    """Write a change into the account's audit log ("": the service's); the last thing in its unit."""
    from hepmaild.storage import audit

    audit.note(conn, account_id=account_id, actor=actor(), action=action, subject=subject, data=data, now_us=now_us())


def read(settings: Settings, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run `fn(conn, …)` on a snapshot; a ValueError of `fn` is a refusal.  It may take `LOOK_S`."""
    return with_store(settings, lambda store: store.read(refusing(fn), *args, **kwargs), patience_s=LOOK_S)


def write(settings: Settings, topic: str, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run `fn(conn, …)` as a unit, durable when this returns, and announce `topic`; a ValueError is a refusal."""

    async def run(store: Store) -> T:
        result: T = await store.write(refusing(fn), *args, **kwargs)
        await tell(store, topic)
        return result

    return with_store(settings, run)


async def tell(store: Store, topic: str) -> None:
    """Announce what was committed, and from now on is done whatever becomes of the rest of the command.

    A hint: what cannot be told will be seen all the same.
    """
    mark_changed()
    await store.announce(topic)


def with_store(
    settings: Settings, fn: Callable[[Store], Awaitable[T]], *, upgrade: bool = True, patience_s: float = 0
) -> T:
    """Run an async function with the open store.  upgrade: first bring the schema up to date, or refuse to.

    patience_s: how long a unit may take, if that is longer than the settings say.
    """
    database = settings.database
    if patience_s > database.unit_timeout_s:
        database = replace(database, unit_timeout_s=patience_s)

    async def main() -> T:
        from hepmaild.storage.store import open_store
        from hepmaild.storage.unit import UnitRunner

        async with open_store(database, settings.server.state_dir, UnitRunner(now_us), exclusive=False) as store:
            if upgrade and await store.schema_is_due():
                if settings.database.migrate == Migrate.MANUAL:
                    raise CommandFailed("the database is not at this version's schema: run `hepmaild db upgrade`")
                await store.upgrade()
            return await fn(store)

    from hepmaild.storage.migrate import SchemaUnfit

    try:
        return trio.run(main)
    except SchemaUnfit as error:
        raise CommandFailed(str(error)) from None


def damage_behind(settings: Settings, error: BaseException) -> str | None:
    """Which damaged value of the database may have led to this error; None: there is none, and it is a bug."""
    from hepmaild.storage import damage

    found = list(leaves(error))
    if not all(isinstance(one, damage.SYMPTOMS) for one in found):
        return None
    with suppress(StoreUnavailable):
        return with_store(settings, lambda store: store.read(damage.find), upgrade=False, patience_s=LOOK_S)
    return None


def refusing(fn: Callable[..., T]) -> Callable[..., T]:
    """`fn`, whose ValueErrors are sentences for a person."""

    def run(conn: Any, *args: Any, **kwargs: Any) -> T:
        try:
            return fn(conn, *args, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise  # what was stored is damaged
        except ValueError as error:
            raise CommandFailed(str(error)) from None

    return run
