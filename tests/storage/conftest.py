# SPDX-License-Identifier: Apache-2.0
"""One suite, both engines: `store` comes once on SQLite and once on PostgreSQL, with small tables of the tests' own."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, String, Table, insert, select, update

from hepmaild.config import DatabaseSettings
from hepmaild.errors import StoreUnavailable
from hepmaild.storage.store import Store, open_store
from hepmaild.storage.writer import JudgeManner
from tests.peers import postgres

T = TypeVar("T")

PATIENCE_S = 60.0  # of a unit and a read, where a test is not about that: for a machine that is busy

tables = MetaData()
purse = Table("t_purse", tables, Column("id", Integer, primary_key=True), Column("credits", BigInteger, nullable=False))
note = Table("t_note", tables, Column("word", String(100), primary_key=True), Column("unit", Integer, nullable=False))


@dataclass
class Journal:
    """A small `run_unit`: a member is a word that is written down.

    A word with "poison" in it raises and one with "refuse" is refused; everything else is committed.
    """

    units: list[list[str]] = field(default_factory=list)

    def __call__(self, conn: Connection, members: list[Any]) -> list[Any]:
        self.units.append(list(members))
        results: list[Any] = []
        for word in members:
            if "poison" in word:
                raise ValueError(word)
            if "refuse" in word:
                results.append(("refused", word))
                continue
            conn.execute(insert(note), {"word": word, "unit": len(self.units)})
            results.append(("kept", word))
        return results


def words(conn: Connection) -> set[str]:
    return set(conn.execute(select(note.c.word)).scalars())


def keep(conn: Connection, word: str) -> str:
    conn.execute(insert(note), {"word": word, "unit": 0})
    return word


def debit(conn: Connection, amount: int) -> int | None:
    """Take credits of purse 1; the new balance, or None when there are too few."""
    statement = update(purse).where(purse.c.id == 1, purse.c.credits >= amount)
    row = conn.execute(statement.values(credits=purse.c.credits - amount).returning(purse.c.credits)).first()
    return None if row is None else int(row[0])


def make_tables(conn: Connection) -> None:
    tables.create_all(conn)
    conn.execute(insert(purse), {"id": 1, "credits": 100})


def outside(url: str, folder: Path, statement: str) -> None:
    """Run one statement as somebody else does, without the store."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(folder / "test.db", isolation_level=None)) as connection:
            connection.execute(statement)
    else:
        postgres.sql(url, statement)


async def until_it_works(call: Callable[[], Awaitable[T]]) -> T:
    """As a sender does: try again after a temporary error; its result."""
    while True:
        try:
            return await call()
        except StoreUnavailable:
            await trio.sleep(0.05)


Opener = Callable[..., AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def open_impatient(opener: Opener) -> AsyncIterator[Store]:
    """A store whose unit may take a second, as the connection it is opened with: a busy machine may need several."""
    async with AsyncExitStack() as stack:
        yield await until_it_works(lambda: stack.enter_async_context(opener(unit_timeout_s=1)))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database on each engine that has the present schema; with the mark `empty_database` it has nothing."""
    is_empty = request.node.get_closest_marker("empty_database") is not None
    if request.param == "sqlite":
        if not is_empty:
            shutil.copyfile(request.getfixturevalue("migrated_sqlite"), tmp_path / "test.db")
        yield "sqlite:///test.db"
        return
    template = "template1" if is_empty else request.getfixturevalue("migrated_postgres")
    with postgres.open_database(request.getfixturevalue("postgres_server"), template) as url:
        yield url


@pytest.fixture
def opener(database_url: str, tmp_path: Path) -> Opener:
    """Opens the same database as often as wanted: `async with opener(run_unit, exclusive=False) as store`."""
    return make_opener(database_url, tmp_path)


def make_opener(url: str, folder: Path) -> Opener:
    @asynccontextmanager
    async def open_it(
        run_unit: Any = None,
        *,
        exclusive: bool = True,
        unit_timeout_s: float = PATIENCE_S,
        tables: bool = False,
        judge: JudgeManner | None = None,
    ) -> AsyncIterator[Store]:
        settings = DatabaseSettings(url=url, unit_timeout_s=unit_timeout_s, connections=4)
        async with open_store(settings, folder, run_unit or Journal(), exclusive=exclusive, judge=judge) as store:
            if tables:
                await store.write(make_tables)
            yield store

    return open_it


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
async def store(opener: Opener, journal: Journal) -> AsyncIterator[Store]:
    """An open store whose members are words; see Journal."""
    async with opener(journal, tables=True) as opened:
        yield opened
