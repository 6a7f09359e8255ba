# SPDX-License-Identifier: Apache-2.0
"""The revisions make what `schema` says, from nothing and from every released schema, on both engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, inspect, select, text

from hepmaild.errors import StoreUnavailable
from hepmaild.storage import migrate, schema
from tests.storage.conftest import Opener, outside

# Dumps of released schemas, `NUMBER.sqlite.sql` and `NUMBER.postgresql.sql`, made when a version is released
# (`sqlite3 FILE .dump`, `pg_dump --inserts`), with a few rows in every table.  Never changed afterwards.
RELEASED = Path(__file__).with_name("released")
# SQLite's reflection leaves those out; what they are is compared word by word below.
pytestmark = [
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


async def test_on_sqlite_every_word_of_the_definitions_is_the_same(tmp_path: Path, opener: Opener) -> None:
    """What `compare_metadata` does not see: WITHOUT ROWID, AUTOINCREMENT, partial indexes."""
    async with opener() as store:
        if not store.is_sqlite:
            pytest.skip("PostgreSQL has none of these words but partial indexes")
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
    scripts = list(migrate._scripts().walk_revisions())
    assert len(migrate._scripts().get_heads()) == 1
    assert [s.revision for s in reversed(scripts)] == [f"{n + 1:04}" for n in range(len(scripts))]


@pytest.mark.parametrize("dump", sorted(RELEASED.glob("*.sqlite.sql")), ids=lambda path: path.stem)
async def test_from_a_released_schema(dump: Path, tmp_path: Path, opener: Opener, database_url: str) -> None:
    import sqlite3

    if not database_url.startswith("sqlite"):
        dump = dump.with_name(dump.name.replace(".sqlite.", ".postgresql."))
        for statement in dump.read_text().split(";\n"):
            if statement.strip():
                outside(database_url, tmp_path, statement)
    else:
        with sqlite3.connect(tmp_path / "test.db") as connection:
            connection.executescript(dump.read_text())
        connection.close()
    async with opener() as store:
        await store.upgrade()
        assert await store.read(differences) == []


async def test_without_a_schema_the_store_says_what_it_is(opener: Opener) -> None:
    async with opener() as store:
        with pytest.raises(Exception, match=r"no such table|does not exist") as caught:
            await store.read(lambda conn: conn.execute(select(schema.account)).all())
        assert not isinstance(caught.value, StoreUnavailable)
