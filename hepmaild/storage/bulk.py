# SPDX-License-Identifier: Apache-2.0
"""Statements for many rows at once, compiled once and given their parameters as the driver wants them.

SQLAlchemy makes a dictionary into the driver's tuple for each row of each execution, which costs more than the insert.
Here the statement is still SQLAlchemy's, compiled by the engine's own dialect; only that step is done once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Table, bindparam, insert
from sqlalchemy.sql.dml import Delete, Insert, Update

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """sql: for the driver.  order: for each of its parameters the place in a row, behind which the constants stand."""

    sql: str
    order: tuple[int, ...] | None
    constants: Row


class Bulk:
    """`run(conn, rows)` executes `statement` for every row.

    names: the bind parameters in the order in which a row brings their values.
    """

    def __init__(self, statement: Insert | Update | Delete, *names: str) -> None:
        self._statement = statement
        self._names = names
        self._compiled: dict[str, _Compiled] = {}

    def run(self, conn: Connection, rows: Sequence[Row]) -> None:
        """Execute for each row; nothing when there is none."""
        if not rows:
            return
        compiled = self._compiled.get(conn.dialect.name) or self._compile(conn)
        if compiled.order is not None:
            pick, constants = itemgetter(*compiled.order), compiled.constants
            many = len(compiled.order) > 1
            rows = [pick(row + constants) if many else (pick(row + constants),) for row in rows]
        conn.exec_driver_sql(compiled.sql, list(rows))

    def _compile(self, conn: Connection) -> _Compiled:
        compiled = self._statement.compile(dialect=conn.dialect)
        wanted: list[str] = list(compiled.positiontup or ())
        constants = {name: value for name, value in compiled.params.items() if name not in self._names}
        places = {name: place for place, name in enumerate((*self._names, *constants))}
        order = tuple(places[name] for name in wanted)
        plain = order == tuple(range(len(self._names)))
        made = _Compiled(str(compiled), None if plain else order, tuple(constants.values()))
        self._compiled[conn.dialect.name] = made
        return made


def bulk_insert(table: Table, *columns: str) -> Bulk:
    """Insert rows that bring these columns in this order."""
    return Bulk(insert(table).values({column: bindparam(column) for column in columns}), *columns)
