# SPDX-License-Identifier: Apache-2.0
"""Runs the revisions on the connection that `hepmaild.storage.migrate` (or a test) brings, in its transaction."""

from __future__ import annotations

from alembic import context

from hepmaild.storage.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run `hepmaild db upgrade`: migrations need hepmaild's own connection")
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
