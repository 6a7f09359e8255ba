# SPDX-License-Identifier: Apache-2.0
"""The statements of the hot path: compiled once, and given their parameters as the driver wants them.

SQLAlchemy spends several times what SQLite does on a statement that touches one row.  Here the statement is still
SQLAlchemy's, compiled by the engine's own dialect; only what it does for each execution is done once.  With SQLite the
driver is called directly; asyncpg is only reached through SQLAlchemy.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import Boolean, Connection, Select, Table, bindparam, insert
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
        if conn.dialect.name == "sqlite":
            driver(conn).executemany(compiled.sql, rows)
        else:
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


@dataclass(frozen=True, slots=True)
class _Question:
    """before, after: the SQL around the list's placeholders.  order: the parameters; None stands for the list's."""

    before: str
    after: str
    order: tuple[str | None, ...]
    constants: dict[str, Any]


class Query:
    """`ask(conn, **scalars)` gives the rows of a select, which can be asked by the names of their columns.

    many: the name of its one list of values, `bindparam(…, expanding)`; then `ask(conn, values, **scalars)`.  What
    stands in the rows is what the driver makes of it, but for truth values, for which SQLite has no type.
    """

    def __init__(self, statement: Select[Any], many: str = "") -> None:
        self._statement = statement
        self._many = many
        self._row = _row_type(statement)
        self._question: _Question | None = None
        self._sql: dict[int, str] = {}  # by the length of the list

    def ask(self, conn: Connection, values: Sequence[Any] = (), **scalars: Any) -> Sequence[Any]:
        """All rows; none when there is a list without a value."""
        if self._many and not values:
            return []
        if conn.dialect.name != "sqlite":
            listed = {self._many: list(values)} if self._many else {}
            return conn.execute(self._statement, {**listed, **scalars}).all()
        question = self._question or self._compile(conn)
        # Few lengths, so that the driver keeps the statements: the last value again fills up.
        length = 1 << (len(values) - 1).bit_length() if values else 0
        sql = self._sql.get(length)
        if sql is None:
            placeholders = f"({','.join('?' * length)})" if self._many else ""
            sql = self._sql[length] = question.before + placeholders + question.after
        parameters: list[Any] = []
        for name in question.order:
            if name is None:
                parameters += values
                parameters += [values[-1]] * (length - len(values))
            else:
                parameters.append(scalars[name] if name in scalars else question.constants[name])
        return list(map(self._row, driver(conn).execute(sql, parameters)))

    def value(self, conn: Connection, **scalars: Any) -> Any:
        """The first column of the first row; None when there is no row."""
        rows = self.ask(conn, **scalars)
        return rows[0][0] if rows else None

    def _compile(self, conn: Connection) -> _Question:
        compiled = self._statement.compile(dialect=conn.dialect)
        before, after = str(compiled), ""
        if self._many:
            before, after = before.split(f"(__[POSTCOMPILE_{self._many}])")
        order = tuple(None if name == self._many else name for name in compiled.positiontup or ())
        self._question = _Question(before, after, order, dict(compiled.params))
        return self._question


def _row_type(statement: Select[Any]) -> Callable[[Row], Any]:
    """Makes of a driver's row one whose columns have names."""
    columns = statement.selected_columns
    names = [str(name) for name in columns.keys()]  # noqa: SIM118  # no mapping
    truths = [place for place, column in enumerate(columns) if isinstance(column.type, Boolean)]
    row: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024  # known to SQL alone
    make: Callable[[Iterable[Any]], Any] = row._make
    if not truths:
        return make

    def make_with_truths(values: Row) -> Any:
        given = list(values)
        for place in truths:
            given[place] = None if given[place] is None else bool(given[place])
        return make(given)

    return make_with_truths


def driver(conn: Connection) -> sqlite3.Connection:
    """SQLite's own connection below SQLAlchemy's, inside the same transaction."""
    found = conn.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


def bulk_insert(table: Table, *columns: str) -> Bulk:
    """Insert rows that bring these columns in this order."""
    return Bulk(insert(table).values({column: bindparam(column) for column in columns}), *columns)
