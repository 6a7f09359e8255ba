# SPDX-License-Identifier: Apache-2.0
"""The revisions make what `schema` says, from nothing and from every released schema, on both engines."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, inspect, select, text

from hepmaild.errors import StoreUnavailable
from hepmaild.storage import audit, migrate, schema
from hepmaild.storage import credits as ledger
from tests.peers import postgres
from tests.storage.conftest import Opener, outside

# Dumps of released schemas with what a daemon had written, by `tests.storage.release`.  Never changed afterwards.
RELEASED = Path(__file__).with_name("released")
# SQLite's reflection leaves those out; what they are is compared word by word below.
pytestmark = [
    pytest.mark.empty_database,
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]


def differences(conn: Connection) -> list[object]:
    context = MigrationContext.configure(conn, opts={"compare_type": True})
    return list(compare_metadata(context, schema.metadata))


def table_sql(conn: Connection) -> dict[str, str]:
    """What SQLite keeps of each table's and index's definition, without its layout."""
    rows = conn.execute(text("select name, sql from sqlite_schema where sql is not null and name <> 'alembic_version'"))
    return {name: "".join(sql.replace('"', "").split()).lower() for name, sql in rows}


async def test_an_empty_database_becomes_the_schema(opener: Opener) -> None:
    async with opener() as store:
        assert await store.read(migrate.current) is None
        assert await store.schema_is_due()
        await store.upgrade()
        assert not await store.schema_is_due()
        assert await store.read(migrate.current) == migrate.head()
        assert await store.read(differences) == []
        await store.upgrade()  # again: nothing to do


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_on_sqlite_every_word_of_the_definitions_is_the_same(opener: Opener) -> None:
    """What `compare_metadata` does not see: WITHOUT ROWID, AUTOINCREMENT and partial indexes."""
    async with opener() as store:
        await store.upgrade()
        migrated = await store.read(table_sql)
    async with opener() as store:
        await store.write(schema.metadata.drop_all)
        await store.write(schema.metadata.create_all)
        created = await store.read(table_sql)
    assert created.keys() == migrated.keys()
    for name, definition in created.items():
        assert sorted(definition) == sorted(migrated[name]), name


async def test_partial_indexes_are_partial(opener: Opener) -> None:
    async with opener() as store:
        await store.upgrade()
        for table in ("queue", "api_key", "message"):
            partial = {index.name for index in schema.metadata.tables[table].indexes if _is_partial(index)}
            found = await store.read(lambda conn, name: inspect(conn).get_indexes(name), table)
            where = {i["name"] for i in found if any("where" in key for key in i.get("dialect_options", {}))}
            assert where == partial


def _is_partial(index: object) -> bool:
    return index.dialect_options["sqlite"]["where"] is not None  # type: ignore[attr-defined, no-any-return]


async def test_several_processes_upgrade_at_once(opener: Opener) -> None:
    async with opener() as one, opener(exclusive=False) as two, opener(exclusive=False) as three:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for store in (one, two, three):
                    nursery.start_soon(store.upgrade)
        assert await two.read(differences) == []


async def test_a_newer_schema_is_refused(opener: Opener, database_url: str, tmp_path: Path) -> None:
    async with opener() as store:
        await store.upgrade()
        outside(database_url, tmp_path, "update alembic_version set version_num = '9999'")
        with pytest.raises(migrate.SchemaTooNew, match="9999"):
            await store.schema_is_due()
        with pytest.raises(migrate.SchemaTooNew):
            await store.upgrade()


async def test_a_database_of_another_program_is_left_alone(opener: Opener, database_url: str, tmp_path: Path) -> None:
    async with opener() as store:
        outside(database_url, tmp_path, "create table message (words varchar(10))")
        with pytest.raises(migrate.SchemaForeign, match=r"its own message in it: give hepmaild"):
            await store.schema_is_due()
        with pytest.raises(migrate.SchemaForeign):
            await store.upgrade()
        assert await store.read(migrate.current) is None
        assert await store.read(lambda conn: inspect(conn).get_table_names()) == ["message"]


async def test_tables_that_are_in_nobodys_way_may_be_there(opener: Opener, database_url: str, tmp_path: Path) -> None:
    async with opener() as store:
        outside(database_url, tmp_path, "create table spatial_ref_sys (srid integer)")
        await store.upgrade()
        assert await store.read(migrate.current) == migrate.head()


async def test_a_failed_migration_leaves_nothing(opener: Opener) -> None:
    def breaks(conn: Connection) -> None:
        migrate.upgrade(conn)
        raise RuntimeError("power cut")

    async with opener() as store:
        with pytest.raises(RuntimeError):
            await store._backend.migrate(breaks)
        assert await store.read(migrate.current) is None
        await store.upgrade()


async def test_foreign_keys_hold_after_the_upgrade(opener: Opener) -> None:
    async with opener() as store:
        await store.upgrade()
        row = {"id": "1", "account_id": "nobody", "name": "n", "secret_hash": b"h", "last_five": "12345"}
        row |= {"status": "active", "created_at_us": 1}
        with pytest.raises(Exception, match=r"(?i)foreign key"):
            await store.write(lambda conn: conn.execute(insert(schema.api_key), row))
        assert await store.read(lambda conn: conn.execute(select(schema.api_key)).all()) == []


def test_revisions_are_one_line() -> None:
    folder = ScriptDirectory(str(migrate.FOLDER))
    scripts = list(folder.walk_revisions())
    assert folder.get_heads() == [migrate.head()]
    assert tuple(script.revision for script in reversed(scripts)) == migrate.revisions()
    assert [s.revision for s in reversed(scripts)] == [f"{n + 1:04}" for n in range(len(scripts))]


VERSIONS = sorted(path.name.removesuffix(".sqlite.sql") for path in RELEASED.glob("*.sqlite.sql"))


def rows_of(conn: Connection, columns: dict[str, list[str]]) -> dict[str, list[tuple[object, ...]]]:
    """What stands in some columns of each table, in an order of its own."""
    found = {}
    for table, names in columns.items():
        rows = conn.execute(text(f"select {', '.join(names)} from {table}")).all()  # names from the schema, no input
        found[table] = sorted((tuple(row) for row in rows), key=repr)
    return found


def columns_of(conn: Connection) -> dict[str, list[str]]:
    there = inspect(conn)
    return {
        table: [column["name"] for column in there.get_columns(table)]
        for table in there.get_table_names()
        if table != "alembic_version"
    }


def faults(conn: Connection) -> list[object]:
    """What is wrong with the chains of the ledger and of the audit log."""
    accounts = list(conn.execute(select(schema.account.c.id)).scalars())
    found = [ledger.verify(conn, account) for account in accounts]
    found += [audit.verify(conn, account) for account in (*accounts, "")]
    return [fault for fault in found if fault is not None]


@pytest.mark.parametrize("version", VERSIONS)
async def test_from_a_released_schema(version: str, tmp_path: Path, opener: Opener, database_url: str) -> None:
    """Its tables become the present ones; no row is lost, and what both have is as it was."""
    engine = database_url.partition(":")[0]
    dump = RELEASED / f"{version}.{engine}.sql"
    if engine == "postgresql":
        postgres.load(database_url, dump)
    else:
        with closing(sqlite3.connect(tmp_path / "test.db")) as connection:
            connection.executescript(dump.read_text())
    async with opener() as store:
        columns = await store.read(columns_of)
        before = await store.read(rows_of, columns)
        assert not [table for table, rows in before.items() if not rows], "a table has nothing to lose"
        await store.upgrade()
        assert await store.read(differences) == []
        now = await store.read(columns_of)
        kept = {table: [name for name in names if name in now[table]] for table, names in columns.items()}
        expected = {
            table: sorted((tuple(row[columns[table].index(name)] for name in kept[table]) for row in rows), key=repr)
            for table, rows in before.items()
        }
        assert await store.read(rows_of, kept) == expected
        assert await store.read(faults) == []


def test_every_release_has_both() -> None:
    assert VERSIONS
    files = {path.name for path in RELEASED.iterdir()}
    assert files == {f"{version}.{engine}.sql" for version in VERSIONS for engine in ("sqlite", "postgresql")}


async def test_without_a_schema_the_store_says_what_it_is(opener: Opener) -> None:
    async with opener() as store:
        with pytest.raises(Exception, match=r"no such table|does not exist") as caught:
            await store.read(lambda conn: conn.execute(select(schema.account)).all())
        assert not isinstance(caught.value, StoreUnavailable)
