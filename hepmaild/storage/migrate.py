# SPDX-License-Identifier: Apache-2.0
"""The schema's version: what a database has, what this program needs, and the way there (Alembic, both engines).

Plain functions on a `Connection` inside a transaction: a migration that fails leaves nothing behind.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import structlog
from sqlalchemy import Connection, column, inspect, select, table, text

from hepmaild.storage import schema

log = structlog.get_logger()

FOLDER = Path(__file__).with_name("migrations")
LOCK_ID = 0x6865706D  # of PostgreSQL's advisory lock: "hepm"
VERSION = table("alembic_version", column("version_num"))


class SchemaUnfit(Exception):
    """This hepmaild would damage the database: it leaves it alone."""


class SchemaTooNew(SchemaUnfit):
    """A newer hepmaild made the database."""


class SchemaForeign(SchemaUnfit):
    """Another program has tables in it that are called like ours."""


@cache
def revisions() -> tuple[str, ...]:
    """All there are, the oldest first.  By their files: Alembic takes 7 MB, and has seldom anything to do."""
    return tuple(sorted(path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*.py")))


def head() -> str:
    """The revision this program needs."""
    return revisions()[-1]


def current(conn: Connection) -> str | None:
    """The database's revision; None: it has no schema yet."""
    if not inspect(conn).has_table(VERSION.name):
        return None
    revision: str | None = conn.execute(select(VERSION.c.version_num)).scalar()
    return revision


def is_due(conn: Connection) -> bool:
    """Whether `upgrade` has something to do.  Raises SchemaUnfit."""
    revision = current(conn)
    if revision is None:
        _check_names(conn)
    if revision is not None and revision not in revisions():
        raise SchemaTooNew(
            f"the database has schema {revision}, which this hepmaild does not know (it needs {head()}): "
            "upgrade hepmaild, or restore a backup"
        )
    return revision != head()


def _check_names(conn: Connection) -> None:
    """Raises SchemaForeign when a database without our schema has tables that would be in its way.

    Others may be there: extensions of PostgreSQL bring some along.
    """
    taken = sorted(set(inspect(conn).get_table_names()) & set(schema.metadata.tables))
    if taken:
        raise SchemaForeign(
            f"the database belongs to another program, which has its own {', '.join(taken)} in it: "
            "give hepmaild a database for itself (database.url)"
        )


def upgrade(conn: Connection, revision: str = "head") -> None:
    """Bring the schema to `revision`.  Several processes may do so at once: one works, the others wait, then see it
    done (SQLite's writer is alone anyway).  Raises SchemaUnfit."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": LOCK_ID})
    before = current(conn)
    if not is_due(conn) and revision == "head":
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, revision)
    log.info("schema_upgraded", before=before, now=current(conn))
