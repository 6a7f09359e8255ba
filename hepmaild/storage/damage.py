# SPDX-License-Identifier: Apache-2.0
"""Values in SQLite's tables that no statement of ours can have written: a bad disk, or somebody's hand.

SQLite keeps any value in any column; PostgreSQL refuses what its columns do not hold.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import Integer, LargeBinary

from hepmaild.storage.schema import metadata

# What a command ends with that meets such a value.
SYMPTOMS = (TypeError, ValueError, AttributeError, DBAPIError)
_KINDS = {"integer": "a whole number", "text": "text", "blob": "octets"}


def find(conn: Connection) -> str | None:
    """Where the first such value is, as a sentence; None: there is none.  Reads whole tables."""
    if conn.dialect.name != "sqlite":
        return None
    return next((said for table in metadata.sorted_tables if (said := _find_in(conn, table))), None)


def _find_in(conn: Connection, table: Table) -> str | None:
    """Tables are read as octets: the driver stops at text that is none."""
    driver: Any = conn.connection.driver_connection
    columns = list(table.columns)
    kept, driver.text_factory = driver.text_factory, bytes
    try:
        texts = "typeof({0}), CASE typeof({0}) WHEN 'text' THEN {0} END"
        names = ", ".join(texts.format(f'"{column.name}"') for column in columns)
        row_id = "rowid" if table.dialect_options["sqlite"]["with_rowid"] else "NULL"
        for number, *values in driver.execute(f'SELECT {row_id}, {names} FROM "{table.name}"'):  # noqa: S608
            for column, kind, text in zip(columns, values[::2], values[1::2], strict=True):
                if _is_damaged(column, kind.decode(), text):
                    row = "a row" if number is None else f"row {number}"
                    return f"in {row} of the table {table.name}, {column.name} is not {_KINDS[_kind_of(column)]}"
    finally:
        driver.text_factory = kept
    return None


def _kind_of(column: Column[Any]) -> str:
    if isinstance(column.type, LargeBinary):
        return "blob"
    return "integer" if isinstance(column.type, Integer) or column.type.python_type is bool else "text"


def _is_damaged(column: Column[Any], kind: str, text: bytes | None) -> bool:
    if kind == "null":
        return not column.nullable
    if kind != _kind_of(column):
        return True
    try:
        (text or b"").decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False
