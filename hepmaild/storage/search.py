# SPDX-License-Identifier: Apache-2.0
"""Looking through the messages of an account, newest first, a page at a time.

A page begins behind a place (when a message was accepted, and its id), so that it stays what it was while mail arrives.
Whole addresses, ids and troubled states have an index.  Everything else is looked for in a bounded stretch of the
account's messages; a page that ends there says so, and the next one looks on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from sqlalchemy import ColumnElement, Connection, Integer, Select, exists, func, literal_column, or_, select

from hepmaild.mail.address import check_address
from hepmaild.mail.chaos import kind_of
from hepmaild.mail.ids import is_message_id
from hepmaild.search_words import TEXT, Search, Term
from hepmaild.storage.schema import TROUBLED, message, recipient

PAGE = 50
STRETCH = 5_000  # messages that one page looks through at most
MANY = 2_000  # an address with more messages than that is common: it is found by going through the newest
SHOWN_RECIPIENTS = 3
AT_ONCE = 500
_EVERY_TROUBLE = ("deferred", "capped", "held", "in_doubt", "failed", "expired", "cancelled")


class Place(NamedTuple):
    """Where in the log a message stands."""

    at_us: int
    message_id: str

    def __str__(self) -> str:
        return f"{self.at_us}-{self.message_id}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The place that `str` wrote; None if it is none."""
        at, _, message_id = text.partition("-")
        if not (at.isascii() and at.isdigit() and len(at) < 18 and is_message_id(message_id)):
            return None
        return cls(int(at), message_id)


@dataclass(frozen=True, slots=True)
class Found:
    """A page.  lines: newest first.  older, newer: where the next page begins (None: there is none).

    until_us: the stretch that was looked through ends there, and there is more to look through.
    """

    lines: list[dict[str, Any]]
    older: Place | None
    newer: Place | None
    until_us: int | None = None


_COLUMNS = (
    message.c.id,
    message.c.account_id,
    message.c.accepted_at_us,
    message.c.finished_at_us,
    message.c.state,
    message.c.door,
    message.c.sender,
    message.c.route,
    message.c.subject,
    message.c.key_name,
    message.c.key_last_five,
    message.c.size,
    message.c.recipients,
    message.c.failed,
)
# A place before every message, and one behind.
FIRST, LAST = Place(0, "0" * 16), Place(2**62, "f" * 16)


def find(
    conn: Connection,
    account_id: str | None,
    search: Search,
    *,
    before: Place | None = None,
    after: Place | None = None,
    limit: int = PAGE,
    shown: int = SHOWN_RECIPIENTS,
) -> Found:
    """A page of the messages that fit: those older than `before`, or the ones next newer than `after`.

    account_id None: of all accounts (the operator's).  shown: so many recipients of each.
    """
    going_up = after is not None and before is None
    start = after if going_up else before
    low, high = (start, None) if going_up else (None, start)
    wanted = _conditions(search)
    ids = _indexed(conn, account_id, search)
    end = None
    if ids is not None:
        where = [*_whose(account_id, of_ids=True), *_span(search, low, high, start), *wanted]
        rows = _of_ids(conn, ids, where, limit, going_up=going_up)
    else:
        whose = _whose(account_id)
        if _needs_looking(search):
            end = _stretch_end(conn, [*whose, *_span(search, low, high, start)], going_up=going_up)
        if end is not None:
            low, high = (low, end) if going_up else (end, high)
        rows = _read(conn, [*whose, *_span(search, low, high, start), *wanted], limit, going_up=going_up)
    is_full = len(rows) > limit
    rows = rows[:limit]
    onward = _place(rows[-1]) if is_full else end
    lines = _lines(conn, rows[::-1] if going_up else rows, shown)
    until_us = end.at_us if end is not None and not is_full else None
    if going_up:
        return Found(lines, _place_of(lines[-1]) if lines else start, onward, until_us)
    return Found(lines, onward, (_place_of(lines[0]) if lines else start) if start is not None else None, until_us)


def matching(conn: Connection, account_id: str | None, search: Search, ids: Collection[str]) -> list[dict[str, Any]]:
    """Of these messages those that fit, newest first: as `find` shows them."""
    wanted = sorted(ids)
    where = [*_whose(account_id, of_ids=True), *_span(search, None, None, None), *_conditions(search)]
    rows: list[Any] = []
    for n in range(0, len(wanted), AT_ONCE):
        here = [message.c.id.in_(wanted[n : n + AT_ONCE]), *where]
        rows += conn.execute(select(*_COLUMNS).where(*here)).all()
    return _lines(conn, sorted(rows, key=_place, reverse=True))


def _place(row: Any) -> Place:
    return Place(row.accepted_at_us, row.id)


def _place_of(line: dict[str, Any]) -> Place:
    return Place(line["at"], line["message_id"])


def _whose(account_id: str | None, *, of_ids: bool = False) -> list[ColumnElement[bool]]:
    """of_ids: the ids are known, and SQLite must not go through the account's messages for them."""
    if account_id is None:
        return []
    column: Any = message.c.account_id.concat("") if of_ids else message.c.account_id
    return [column == account_id]


def _span(search: Search, low: Place | None, high: Place | None, start: Place | None) -> list[ColumnElement[bool]]:
    """From `low` to `high` without `start`, and within the search's times.

    One bound at each side: of two SQLite may take the looser one, and go through all that is between them.
    """
    at = message.c.accepted_at_us
    lows = [search.after_us, None if low is None else low.at_us]
    highs = [None if search.before_us is None else search.before_us - 1, None if high is None else high.at_us]
    least = max((n for n in lows if n is not None), default=None)
    most = min((n for n in highs if n is not None), default=None)
    found: list[ColumnElement[bool]] = []
    if least is not None:
        found.append(at >= max(0, min(least, LAST.at_us)))
    if most is not None:
        found.append(at <= max(-1, min(most, LAST.at_us)))
    if low is not None:
        found.append(or_(at > low.at_us, message.c.id >= low.message_id))
    if high is not None:
        found.append(or_(at < high.at_us, message.c.id <= high.message_id))
    if start is not None:
        found.append(message.c.id != start.message_id)
    return found


def _read(conn: Connection, where: Sequence[ColumnElement[bool]], limit: int, *, going_up: bool) -> list[Any]:
    """One row more than `limit`, where there are so many."""
    order = (
        (message.c.accepted_at_us.asc(), message.c.id.asc())
        if going_up
        else (message.c.accepted_at_us.desc(), message.c.id.desc())
    )
    query = select(*_COLUMNS).where(*where).order_by(*order)
    return list(conn.execute(query.limit(limit + 1)))


def _of_ids(
    conn: Connection, ids: Collection[str], where: Sequence[ColumnElement[bool]], limit: int, *, going_up: bool
) -> list[Any]:
    wanted = sorted(ids)
    rows: list[Any] = []
    for n in range(0, len(wanted), AT_ONCE):
        here = [message.c.id.in_(wanted[n : n + AT_ONCE]), *where]
        rows += conn.execute(select(*_COLUMNS).where(*here)).all()
    rows.sort(key=_place, reverse=not going_up)
    return rows[: limit + 1]


def _stretch_end(conn: Connection, where: Sequence[ColumnElement[bool]], *, going_up: bool) -> Place | None:
    """Where the stretch ends; None: there is no more than that."""
    order = (
        (message.c.accepted_at_us.asc(), message.c.id.asc())
        if going_up
        else (message.c.accepted_at_us.desc(), message.c.id.desc())
    )
    query = select(message.c.accepted_at_us, message.c.id).where(*where)
    row = conn.execute(query.order_by(*order).offset(STRETCH).limit(1)).first()
    return None if row is None else _place(row)


def _indexed(conn: Connection, account_id: str | None, search: Search) -> set[str] | None:
    """The messages that an index gives for the rarest term; None: no term has few enough."""
    best: set[str] | None = None
    for term in search.terms:
        if term.field == "id" and len(search.values("id")) > 1:
            continue  # any of them will do
        found = _ids_of(conn, account_id, term)
        if found is not None and (best is None or len(found) < len(best)):
            best = found
    return best


def _ids_of(conn: Connection, account_id: str | None, term: Term) -> set[str] | None:
    message_id = _whole_id(term)
    if message_id:
        # Sixteen digits that are no message of theirs may be a number in a subject.
        here = [message.c.id == message_id, *_whose(account_id, of_ids=True)]
        is_theirs = term.field == "id" or conn.execute(select(message.c.id).where(*here)).first() is not None
        return {message_id} if is_theirs else None
    if term.field not in (TEXT, "to") or not term.is_address:
        return None
    here = [func.lower(recipient.c.address).in_(_ways_to_write(term.value))]
    ids = conn.execute(select(recipient.c.message_id).where(*here).limit(MANY + 1)).scalars().all()
    return set(ids) if len(ids) <= MANY else None


def _whole_id(term: Term) -> str:
    value = term.value.lower()
    return value if not term.quoted and term.field in (TEXT, "id") and is_message_id(value) else ""


def _needs_looking(search: Search) -> bool:
    """Whether rows must be gone through that do not fit.  One troubled state has an index."""
    others = [term for term in search.terms if term.field not in ("before", "after")]
    if not others:
        return False
    states = search.values("status")
    return not (len(states) == 1 == len(others) and states[0] in _EVERY_TROUBLE)


def _conditions(search: Search) -> list[ColumnElement[bool]]:
    """What a message must be, but for its time.  `or` within states, doors, keys, senders and ids; else `and`."""
    found: list[ColumnElement[bool]] = []
    states = search.values("status")
    if states:
        found.append(message.c.state.in_(states) if len(states) > 1 else message.c.state == states[0])
        if all(state in _EVERY_TROUBLE for state in states):
            found.append(TROUBLED)  # type: ignore[arg-type]  # by which both engines know their partial index
    if search.values("door"):
        found.append(message.c.door.in_(search.values("door")))
    for field, matches in (("key", _is_key), ("from", _is_from), ("id", _is_id)):
        terms = [term for term in search.terms if term.field == field]
        if terms:
            found.append(or_(*(matches(term) for term in terms)))
    found += [_has_recipient(term) for term in search.terms if term.field == "to"]
    found += [_has_text(term) for term in search.terms if term.field == TEXT]
    return found


def _spellings(text: str) -> list[str]:
    """The usual ones, with ASCII's capitals made small: SQLite knows no others, as PostgreSQL where its locale is C."""
    usual = (text, text.lower(), text.upper(), text.capitalize(), text.title())
    return list(dict.fromkeys(each.encode("utf-8", "replace").lower().decode() for each in usual))


def contains(column: Any, text: str) -> ColumnElement[bool]:
    """Whether a column has this text in it, without regard to case."""
    return or_(*(column.icontains(each, autoescape=True) for each in _spellings(text)))


def _ways_to_write(address: str) -> list[str]:
    """How this address may stand in the log, whose domains are in A-labels; without regard to case."""
    ways = {address}
    with suppress(ValueError):
        ways.add(check_address(address))
    return sorted({each for way in ways for each in _spellings(way)})


def _is_key(term: Term) -> ColumnElement[bool]:
    return or_(
        contains(message.c.key_name, term.value),
        message.c.key_last_five == term.value,
        message.c.key_id == term.value.lower(),
    )


def _is_from(term: Term) -> ColumnElement[bool]:
    if term.is_address:
        return func.lower(message.c.sender).in_(_ways_to_write(term.value))
    return contains(message.c.sender, term.value)


def _is_id(term: Term) -> ColumnElement[bool]:
    value = term.value.strip("<>")
    if is_message_id(value.lower()):
        return message.c.id == value.lower()
    return or_(message.c.id.startswith(value.lower(), autoescape=True), contains(message.c.header_message_id, value))


def _has_recipient(term: Term) -> ColumnElement[bool]:
    if term.is_address:
        # Not by the index on addresses, which would give all that anybody sent there.
        here: ColumnElement[bool] = func.lower(recipient.c.address.concat("")).in_(_ways_to_write(term.value))
    else:
        here = contains(recipient.c.address, term.value)
    # With an offset PostgreSQL asks for each message, and does not go through all recipients there are beforehand.
    theirs: Select[Any] = select(literal_column("1")).where(recipient.c.message_id == message.c.id, here)
    return exists(theirs.offset(literal_column("0", Integer)))


def _has_text(term: Term) -> ColumnElement[bool]:
    if term.is_address:
        return _has_recipient(term)  # as the index knows it, also where there are too many for that
    value = term.value
    parts = [contains(message.c.subject, value), _has_recipient(term)]
    if value.isascii() and not any(ch.isspace() for ch in value):
        parts += [
            message.c.id.startswith(value.lower(), autoescape=True),
            contains(message.c.header_message_id, value),
        ]
    return or_(*parts)


def _lines(conn: Connection, rows: Sequence[Any], shown: int = SHOWN_RECIPIENTS) -> list[dict[str, Any]]:
    """What a line shows; instants in µs, ms: until the last recipient was final."""
    addresses: dict[str, list[str]] = {row.id: [] for row in rows}
    ids = list(addresses)
    for n in range(0, len(ids), AT_ONCE):
        for message_id, address in conn.execute(
            select(recipient.c.message_id, recipient.c.address)
            .where(recipient.c.message_id.in_(ids[n : n + AT_ONCE]), recipient.c.n < shown)
            .order_by(recipient.c.message_id, recipient.c.n)
        ):
            addresses[message_id].append(address)
    return [
        {
            "message_id": row.id,
            "at": row.accepted_at_us,
            "state": row.state,
            "door": row.door,
            "sender": row.sender,
            "recipients": addresses[row.id],
            "more": row.recipients - len(addresses[row.id]),
            "failed": row.failed,
            "subject": row.subject,
            "key": row.key_name,
            "key_last_five": row.key_last_five,
            "size": row.size,
            "route": row.route,
            "chaos": kind_of(row.route) or None,
            "ms": None if row.finished_at_us is None else (row.finished_at_us - row.accepted_at_us) // 1000,
        }
        for row in rows
    ]
