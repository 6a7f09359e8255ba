# SPDX-License-Identifier: Apache-2.0
"""The queue as the operator sees and changes it.  Refusals are ValueErrors with a sentence that says what to do.

A change for many messages is made in steps (`Step`): each is a unit of its own, so that no sender waits long behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, exists, func, null, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hepmaild.mail.chaos import is_chaos
from hepmaild.own_routes import ALL, PREFIX, is_own
from hepmaild.storage import credits as money
from hepmaild.storage import messages
from hepmaild.storage.directory import bump
from hepmaild.storage.schema import message, pause, queue, recipient
from hepmaild.storage.settle import Row, end_waiting, say_states, settle

AT_ONCE = 500  # messages that one step changes
LOOK = 5_000  # rows that one step goes through: what is looked for may be seldom


def _quiet(column: Any) -> Any:
    """A column that no index is used for."""
    return column.concat("")


def of_accounts(conn: Connection) -> ColumnElement[bool]:
    """Rows of accounts' own servers.  SQLite finds a beginning only as a stretch of its index, PostgreSQL orders words
    by its locale."""
    if conn.dialect.name == "sqlite":
        return and_(queue.c.route >= PREFIX, queue.c.route < PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1))
    found: ColumnElement[bool] = queue.c.route.startswith(PREFIX)
    return found


class Refused(ValueError):
    """What the operator is told.  sentence: for anybody; the hint behind it is a command line."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(f"{sentence}; {hint}")
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Where:
    """Which part of the queue is meant.

    route: one, or `own:*` for all servers of accounts.  destination: a domain; on routes with one next hop that of the
    address.
    """

    route: str | None = None
    destination: str | None = None
    state: str | None = None

    def rows(self) -> ColumnElement[bool]:
        """Of the queue's rows, those that may be meant.  They are gone through by their keys: by another index every
        step would sort all of them."""
        parts: list[ColumnElement[bool]] = [queue.c.message_id.is_not(None)]
        if self.route is not None:
            here = _quiet(queue.c.route)
            parts.append(here.startswith(PREFIX) if self.route == ALL else here == self.route)
        if self.destination is not None:
            parts.append(_quiet(queue.c.destination).in_((self.destination, "")))
        return and_(*parts)

    def recipients(self, *states: str) -> ColumnElement[bool]:
        """Of the recipients, those that are meant; in one of these states."""
        parts: list[ColumnElement[bool]] = [recipient.c.due_at_us.is_not(None)]
        if states:
            parts.append(recipient.c.state.in_(states))
        if self.state is not None:
            parts.append(recipient.c.state == self.state)
        if self.destination is not None:
            of_address = func.lower(recipient.c.address).endswith(f"@{self.destination}", autoescape=True)
            parts.append(
                or_(
                    recipient.c.destination == self.destination,
                    and_(recipient.c.destination == "", of_address),
                )
            )
        return and_(*parts)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.  after: with what the next one goes on; None: that was the last one."""

    messages: int
    recipients: int
    after: str | None


# Recipients of queue rows.  Not the other way round: SQLite would rather go through all recipients there ever were.
SAME_ROW = and_(recipient.c.message_id == _quiet(queue.c.message_id), recipient.c.destination == queue.c.destination)


def cancel(conn: Connection, message_id: str, now_us: int, body_keep_us: int = 0) -> dict[str, Any]:
    """End everything of a message that still waits, and refund it.  An attempt under way stops before its dot."""
    # Accounts are locked before queue rows, everywhere: two orders would be a deadlock.
    purses = money.lock(conn, [_head(conn, message_id)["account_id"]])
    rows = _waiting_rows(conn, message_id)
    _refuse_marked(message_id, rows)
    ledger_rows: list[money.LedgerRow] = []
    ending = [Row(r.message_id, r.destination, r.account_id, r.route, r.cap_key) for r in rows]
    ended = end_waiting(conn, ending, "cancelled", now_us, body_keep_us, purses, ledger_rows)
    money.save(conn, purses.values(), ledger_rows)
    refunded = 0 if is_chaos(rows[0].route) else ended
    return {"message_id": message_id, "cancelled": ended, "refunded": refunded}


def retry(conn: Connection, message_id: str, now_us: int) -> dict[str, Any]:
    """Make everything of a message that waits for its next attempt due now."""
    rows = _waiting_rows(conn, message_id)
    idle = [r for r in rows if r.owner is None]
    changed = _make_due(conn, idle, Where().recipients("queued", "deferred"), now_us)
    if not changed and idle:
        states = set(
            conn.execute(
                select(recipient.c.state).where(
                    recipient.c.message_id == message_id, recipient.c.due_at_us.is_not(None)
                )
            ).scalars()
        )
        if "held" in states:
            raise Refused(f"message {message_id} is held", f"`hepmaild queue release {message_id}` lets it go")
        raise ValueError(f"message {message_id} waits for the daily cap of its sender: it leaves by itself")
    messages.insert_events(conn, [(message_id, rows[0].account_id, now_us, "retried", "{}")])
    return {"message_id": message_id, "destinations": len(rows), "recipients": changed}


def hold(conn: Connection, message_id: str, now_us: int) -> dict[str, Any]:
    """Keep everything of a message that still waits until somebody releases it, or it expires.

    An attempt under way stops before its final dot, by a higher token; one past it cannot be held.
    """
    rows = _waiting_rows(conn, message_id)
    _refuse_marked(message_id, rows)
    held = conn.execute(
        update(recipient)
        .where(recipient.c.message_id == message_id, recipient.c.due_at_us.is_not(None), recipient.c.state != "held")
        .values(state="held", due_at_us=rows[0].expires_at_us, changed_at_us=now_us)
    ).rowcount
    if not held:
        raise Refused(f"message {message_id} is held already", f"`hepmaild queue release {message_id}` lets it go")
    conn.execute(
        update(queue)
        .where(queue.c.message_id == message_id)
        .values(owner=null(), marked=False, token=queue.c.token + 1, due_at_us=queue.c.expires_at_us, line_us=null())
    )
    say_states(conn, [message_id])
    data = json.dumps({"recipients": held})
    messages.insert_events(conn, [(message_id, rows[0].account_id, now_us, "held", data)])
    return {"message_id": message_id, "held": held, "expires_at": rows[0].expires_at_us}


def release(conn: Connection, message_id: str, now_us: int) -> dict[str, Any]:
    """Let what is held of a message go: it is due now."""
    rows = _waiting_rows(conn, message_id)
    released = _let_go(conn, rows, Where(), now_us)
    if not released:
        todo = f"`hepmaild queue show {message_id}` says what it waits for"
        raise Refused(f"message {message_id} is not held", todo)
    return {"message_id": message_id, "released": released}


def retry_some(conn: Connection, where: Where, now_us: int, after: str = "") -> Step:
    """A step of making due now what waits for its next attempt.  What is held or capped stays so."""
    wanted = and_(where.recipients("queued", "deferred"), recipient.c.due_at_us > now_us)
    rows, behind = _some(conn, where, wanted, after, idle=True)
    changed = _make_due(conn, rows, wanted, now_us)
    _note(conn, rows, "retried", now_us)
    return _step(rows, changed, behind)


def release_some(conn: Connection, where: Where, now_us: int, after: str = "") -> Step:
    """A step of letting go what is held."""
    rows, behind = _some(conn, where, where.recipients("held"), after, idle=False)
    return _step(rows, _let_go(conn, rows, where, now_us), behind)


STEPS: dict[str, Callable[..., Step]] = {"retry": retry_some, "release": release_some}


def _some(
    conn: Connection, where: Where, wanted: ColumnElement[bool], after: str, *, idle: bool
) -> tuple[list[Any], str | None]:
    """All rows with wanted recipients of the next few messages, in the order of their keys, locked; and behind which
    message to go on (None: that was all).

    That is told from what was looked for: others may have taken some of it before the lock was had.
    """
    ahead = select(queue.c.message_id).where(queue.c.message_id > after).order_by(queue.c.message_id)
    end = conn.execute(ahead.offset(LOOK).limit(1)).scalar()
    here = and_(queue.c.message_id > after, where.rows(), exists().where(SAME_ROW, wanted))
    if end is not None:
        here = and_(here, queue.c.message_id <= end)
    if idle:
        here = and_(here, queue.c.owner.is_(None))
    found = select(queue.c.message_id).where(here).distinct().order_by(queue.c.message_id).limit(AT_ONCE)
    ids = list(conn.execute(found).scalars())
    behind = ids[-1] if len(ids) == AT_ONCE else end
    rows = select(queue).where(queue.c.message_id.in_(ids), here).order_by(queue.c.message_id, queue.c.destination)
    return list(conn.execute(rows.with_for_update())) if ids else [], behind


def _step(rows: list[Any], recipients: int, behind: str | None) -> Step:
    return Step(len({r.message_id for r in rows}), recipients, behind)


def _make_due(conn: Connection, rows: list[Any], wanted: ColumnElement[bool], now_us: int) -> int:
    """Make these recipients of idle rows due now; how many."""
    changed = _change(conn, rows, wanted, {"due_at_us": now_us})
    if changed:
        settle(conn, [(r.message_id, r.destination) for r in rows])
    return changed


def _let_go(conn: Connection, rows: list[Any], where: Where, now_us: int) -> int:
    state = case((recipient.c.attempts > 0, "deferred"), else_="queued")
    values = {"state": state, "due_at_us": now_us, "changed_at_us": now_us}
    changed = _change(conn, rows, where.recipients("held"), values)
    if changed:
        settle(conn, [(r.message_id, r.destination) for r in rows if r.owner is None])
        say_states(conn, [r.message_id for r in rows if r.owner is not None])
        _note(conn, rows, "released", now_us)
    return changed


def _change(conn: Connection, rows: list[Any], wanted: ColumnElement[bool], values: dict[str, Any]) -> int:
    if not rows:
        return 0
    ids, wheres = {r.message_id for r in rows}, {r.destination for r in rows}
    here = and_(recipient.c.message_id.in_(sorted(ids)), _quiet(recipient.c.destination).in_(sorted(wheres)))
    return int(conn.execute(update(recipient).where(here, wanted).values(**values)).rowcount)


def _note(conn: Connection, rows: list[Any], kind: str, now_us: int) -> None:
    accounts = {r.message_id: r.account_id for r in rows}
    messages.insert_events(conn, [(m, account_id, now_us, kind, "{}") for m, account_id in accounts.items()])


def _refuse_marked(message_id: str, rows: list[Any]) -> None:
    if any(r.marked for r in rows):
        raise ValueError(
            f"message {message_id} is being handed to the next hop right now: it cannot be called back; "
            "look again when that attempt has ended"
        )


def _head(conn: Connection, message_id: str) -> dict[str, Any]:
    row = conn.execute(select(message).where(message.c.id == message_id)).mappings().one_or_none()
    if row is None:
        raise Refused(f"there is no message {message_id}", "`hepmaild log tail` shows the newest")
    return dict(row)


def _waiting_rows(conn: Connection, message_id: str) -> list[Any]:
    _head(conn, message_id)
    rows = conn.execute(
        select(queue).where(queue.c.message_id == message_id).order_by(queue.c.destination).with_for_update()
    ).all()
    if not rows:
        raise ValueError(f"message {message_id} is final: nothing of it waits")
    return list(rows)


# Pauses


def pause_route(conn: Connection, route: str, destination: str, note: str, now_us: int) -> dict[str, Any]:
    """Have nobody work on a route (destination "") or one destination of it until `resume`.

    Attempts under way stop before their final dot; those past it end as they will.
    """
    here = and_(pause.c.route == route, pause.c.destination == destination)
    make = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    row = make(pause).values(route=route, destination=destination, since_us=now_us, note=note)
    conn.execute(row.on_conflict_do_update(index_elements=[pause.c.route, pause.c.destination], set_={"note": note}))
    leased = and_(queue.c.owner.is_not(None), queue.c.route == route, queue.c.marked.is_(False))
    if destination:
        leased = and_(leased, queue.c.destination == destination)
    stopped = conn.execute(
        update(queue).where(leased).values(owner=null(), token=queue.c.token + 1, due_at_us=now_us)
    ).rowcount
    _tell_of_own(conn, route)
    since_us = conn.execute(select(pause.c.since_us).where(here)).scalar_one()
    return {"route": route, "destination": destination, "since_at": since_us, "note": note, "stopped": stopped}


def resume(conn: Connection, route: str, destination: str) -> dict[str, Any]:
    """End a pause."""
    here = and_(pause.c.route == route, pause.c.destination == destination)
    if not conn.execute(delete(pause).where(here)).rowcount:
        name = f"destination {destination} of route {route!r}" if destination else f"route {route!r}"
        raise Refused(f"{name} is not paused", "`hepmaild queue stats` shows what is")
    _tell_of_own(conn, route)
    rest = [row for row in pauses(conn) if row["route"] == route]
    return {"route": route, "destination": destination, "still_paused": rest}


def _tell_of_own(conn: Connection, route: str) -> None:
    """Whether an account's own server is paused is cached behind the generation."""
    if is_own(route):
        bump(conn)


def pauses(conn: Connection) -> list[dict[str, Any]]:
    """What is paused."""
    rows = conn.execute(select(pause).order_by(pause.c.route, pause.c.destination))
    return [{"route": r.route, "destination": r.destination, "since_at": r.since_us, "note": r.note} for r in rows]


# Looking


def has_waiting(conn: Connection, route: str) -> bool:
    """Whether anything waits on this route."""
    here = of_accounts(conn) if route == ALL else queue.c.route == route
    return conn.execute(select(queue.c.message_id).where(here).limit(1)).first() is not None


def list_waiting(conn: Connection, limit: int = 1000, where: Where | None = None) -> list[dict[str, Any]]:
    """Waiting recipients, those due first first; those under way come last."""
    where = where or Where()
    rows = conn.execute(
        select(recipient, queue.c.route, queue.c.owner.is_not(None).label("leased"))
        .select_from(queue.join(recipient, SAME_ROW))
        .where(where.rows(), where.recipients())
        .order_by(queue.c.due_at_us, recipient.c.message_id, recipient.c.n)
        .limit(limit)
    )
    return [{**recipient_row(r), "route": r.route, "under_way": bool(r.leased)} for r in rows]


def show(conn: Connection, message_id: str) -> dict[str, Any]:
    """A message with its recipients."""
    head = _head(conn, message_id)
    rows = conn.execute(select(recipient).where(recipient.c.message_id == message_id).order_by(recipient.c.n))
    return {
        "message_id": message_id,
        **{name: head[name] for name in ("account_id", "door", "sender", "route", "subject", "size", "state")},
        "header_message_id": head["header_message_id"],
        "key": head["key_name"],
        "accepted_at": head["accepted_at_us"],
        "expires_at": head["expires_at_us"],
        "finished_at": head["finished_at_us"],
        "recipients": [recipient_row(r) for r in rows],
    }


def recipient_row(r: Any) -> dict[str, Any]:
    """A recipient as the command line and the pages show it; instants in µs."""
    return {
        "message_id": r.message_id,
        "recipient": r.address,
        "kind": r.kind,
        "destination": r.destination,
        "state": r.state,
        "attempts": r.attempts,
        "in_doubt": r.doubts,
        "next_attempt_at": None if r.state == "held" else r.due_at_us,
        "last_reply": r.last_reply,
        "changed_at": r.changed_at_us,
    }


def count_waiting(conn: Connection) -> int:
    """How many messages wait, each once for every destination."""
    return int(conn.execute(select(func.count()).select_from(queue)).scalar_one())


def learn(conn: Connection) -> tuple[int, frozenset[tuple[str, str]]]:
    """What a process keeps in mind: how many messages wait, and what is paused."""
    return count_waiting(conn), frozenset((r.route, r.destination) for r in conn.execute(select(pause)))
