# SPDX-License-Identifier: Apache-2.0
"""What follows when recipients ended or wait again: their queue rows, the state of their message, and refunds.

Every change of `message.waiting` is made with the queue rows of its recipients locked, by arithmetic and not from what
was read before: several destinations of a message may end at the same time, in several processes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, delete, func, null, select, update

from hepmaild.mail.chaos import is_chaos
from hepmaild.storage import caps, messages
from hepmaild.storage.bulk import Bulk, Query
from hepmaild.storage.credits import LedgerRow, Purse
from hepmaild.storage.schema import body, message, queue, recipient

WAITING = ("queued", "deferred", "capped", "held")

# What is said of a message of which something waits: the gravest of what is so of any recipient that does.
_STATES = ("", "queued", "deferred", "capped", "in_doubt", "held")
_RANK = case(
    (recipient.c.state == "held", 5),
    (recipient.c.doubts > 0, 4),
    (recipient.c.state == "capped", 3),
    (recipient.c.state == "deferred", 2),
    else_=1,
)
_REST = Query(
    select(
        recipient.c.message_id,
        recipient.c.destination,
        func.min(recipient.c.due_at_us).label("due_at_us"),
        func.max(_RANK).label("rank"),
    )
    .where(recipient.c.message_id.in_(bindparam("ids", expanding=True)), recipient.c.due_at_us.is_not(None))
    .group_by(recipient.c.message_id, recipient.c.destination),
    "ids",
)
_STATE = Bulk(
    update(message).where(message.c.id == bindparam("m"), message.c.waiting > 0).values(state=bindparam("s")), "s", "m"
)
_REQUEUE = Bulk(
    update(queue)
    .where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d"))
    .values(due_at_us=bindparam("due"), owner=null(), marked=False),
    "due",
    "m",
    "d",
)
UNQUEUE = Bulk(
    delete(queue).where(queue.c.message_id == bindparam("m"), queue.c.destination == bindparam("d")), "m", "d"
)
DROP_BODY = Bulk(delete(body).where(body.c.message_id == bindparam("m")), "m")


def settle(conn: Connection, rows: Collection[tuple[str, str]]) -> None:
    """Put rows (message id, destination) back to when their next recipient is due, or take them away when none waits;
    and say truthfully of their messages what still waits."""
    if not rows:
        return
    dues = _look(conn, {m for m, _ in rows})
    _REQUEUE.run(conn, [(dues[row], *row) for row in rows if row in dues])
    UNQUEUE.run(conn, [row for row in rows if row not in dues])


def _look(conn: Connection, ids: Collection[str]) -> dict[tuple[str, str], int]:
    """When each destination of these messages is due next; and their states are written."""
    dues: dict[tuple[str, str], int] = {}
    ranks: dict[str, int] = {}
    for message_id, destination, due_at_us, rank in _REST.ask(conn, sorted(ids)):
        dues[message_id, destination] = due_at_us
        ranks[message_id] = max(ranks.get(message_id, 0), rank)
    _STATE.run(conn, [(_STATES[rank], m) for m, rank in ranks.items()])
    return dues


def say_states(conn: Connection, ids: Collection[str]) -> None:
    """Say truthfully of these messages what still waits."""
    if ids:
        _look(conn, set(ids))


@dataclass(frozen=True, slots=True)
class Row:
    """A locked queue row whose recipients are to end.  route: what its chaos keys sent cost nothing."""

    message_id: str
    destination: str
    account_id: str
    route: str
    cap_key: str = ""


_WAITING_HERE = (
    select(recipient.c.message_id, recipient.c.destination, func.count().label("recipients"))
    .where(recipient.c.message_id.in_(bindparam("ids", expanding=True)), recipient.c.due_at_us.is_not(None))
    .group_by(recipient.c.message_id, recipient.c.destination)
)
_END = Bulk(
    update(recipient)
    .where(
        recipient.c.message_id == bindparam("m"),
        recipient.c.destination == bindparam("d"),
        recipient.c.due_at_us.is_not(None),
    )
    .values(state=bindparam("s"), due_at_us=null(), changed_at_us=bindparam("at")),
    "s",
    "at",
    "m",
    "d",
)
_COUNT = Bulk(
    update(message)
    .where(message.c.id == bindparam("m"))
    .values(waiting=message.c.waiting - bindparam("k"), failed=message.c.failed + bindparam("f")),
    "k",
    "f",
    "m",
)
_DONE = select(message.c.id, message.c.failed).where(
    message.c.id.in_(bindparam("ids", expanding=True)), message.c.waiting == 0
)
_FINISH = Bulk(
    update(message)
    .where(message.c.id == bindparam("m"))
    .values(state=bindparam("s"), finished_at_us=bindparam("at"), body_until_us=bindparam("until")),
    "s",
    "at",
    "until",
    "m",
)


def end_waiting(
    conn: Connection,
    rows: Iterable[Row],
    state: str,
    now_us: int,
    body_keep_us: int,
    purses: Mapping[str, Purse],
    ledger_rows: list[LedgerRow],
) -> int:
    """End every recipient that waits in these rows as `state` ("expired", "cancelled"), refund what was paid; how many.

    The rows' accounts and then the rows themselves are locked; who locked the purses saves them with `ledger_rows`.
    """
    rows = list(rows)
    if not rows:
        return 0
    ids = sorted({r.message_id for r in rows})
    here = {(r.message_id, r.destination): int(r.recipients) for r in conn.execute(_WAITING_HERE, {"ids": ids})}
    accounts = {r.message_id: r.account_id for r in rows}
    ended = dict.fromkeys(ids, 0)
    for r in rows:
        ended[r.message_id] += here.get((r.message_id, r.destination), 0)
    _END.run(conn, [(state, now_us, r.message_id, r.destination) for r in rows])
    UNQUEUE.run(conn, [(r.message_id, r.destination) for r in rows])
    lost = int(state == "expired")
    _COUNT.run(conn, [(k, k * lost, m) for m, k in ended.items()])
    free = {r.message_id for r in rows if is_chaos(r.route)}
    ends = [(m, k, 0 if m in free else k) for m, k in ended.items() if k]
    for m, _, refund in ends:
        if refund:
            ledger_rows.append(purses[accounts[m]].book(refund, "refund", now_us, message_id=m))
    messages.insert_events(
        conn,
        [(m, accounts[m], now_us, state, json.dumps({"recipients": k, "refunded": refund})) for m, k, refund in ends],
    )
    done = _finish(conn, ids, state, now_us, body_keep_us)
    _look(conn, ids)
    cap_keys = {r.message_id: r.cap_key for r in rows}
    caps.ended(conn, [(cap_keys[m], m) for m in done if cap_keys[m]])
    return sum(ended.values())


def _finish(conn: Connection, ids: list[str], state: str, now_us: int, body_keep_us: int) -> list[str]:
    """Of these messages, those of which nothing waits any more are final: which."""
    until_us = now_us + body_keep_us if body_keep_us else None
    done = [(r.id, "failed" if r.failed else state) for r in conn.execute(_DONE, {"ids": ids})]
    _FINISH.run(conn, [(name, now_us, until_us, m) for m, name in done])
    if not body_keep_us:
        DROP_BODY.run(conn, [(m,) for m, _ in done])
    return [m for m, _ in done]


__all__ = ["DROP_BODY", "UNQUEUE", "WAITING", "Row", "end_waiting", "say_states", "settle"]
