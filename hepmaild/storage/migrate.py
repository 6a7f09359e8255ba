# SPDX-License-Identifier: Apache-2.0
"""The schema's version: what a database has, what this program needs, and the way there (Alembic, both engines).

Plain functions on a `Connection` inside a transaction: a migration that fails leaves nothing behind.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

log = structlog.get_logger()

FOLDER = Path(__file__).with_name("migrations")
LOCK_ID = 0x6865706D  # of PostgreSQL's advisory lock: "hepm"


class SchemaTooNew(Exception):
    """The database was made by a newer hepmaild; this one would damage it."""


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(FOLDER))


def head() -> str:
    """The revision this program needs."""
    revision = _scripts().get_current_head()
    assert revision is not None
    return revision


def current(conn: Connection) -> str | None:
    """The database's revision; None: it has no schema yet."""
    return MigrationContext.configure(conn).get_current_revision()


def is_due(conn: Connection) -> bool:
    """Whether `upgrade` has something to do.  Raises SchemaTooNew."""
    revision = current(conn)
    if revision is not None and revision not in {script.revision for script in _scripts().walk_revisions()}:
        raise SchemaTooNew(
            f"the database has schema {revision}, which this hepmaild does not know (it needs {head()}): "
            "upgrade hepmaild, or restore a backup"
        )
    return revision != head()


def upgrade(conn: Connection, revision: str = "head") -> None:
    """Bring the schema to `revision`.  Several processes may do so at once: one works, the others wait, then see it
    done (SQLite's writer is alone anyway).  Raises SchemaTooNew."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": LOCK_ID})
    before = current(conn)
    if not is_due(conn) and revision == "head":
        return
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, revision)
    log.info("schema_upgraded", before=before, now=current(conn))
