# SPDX-License-Identifier: Apache-2.0
"""The lines behind daily caps: who may go, when the others may, and the figures for people.

`let_go` is called when `next_at_us` says that a window has room.  It chooses by age alone and not by route or
destination: what goes holds its slot and waits for its turn at the next hop like everything else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, func, null, select, update

from hepmaild.config import DAY_US
from hepmaild.storage import messages
from hepmaild.storage.bulk import Query
from hepmaild.storage.caps import (
    GIVE_BACK,
    LAST,
    SET_NEXT,
    TAKE,
    TIMERS,
    Cap,
    lock,
    room_at_us,
    turn_of,
    turns_of,
    used,
)
from hepmaild.storage.schema import cap, cap_use, message, queue, recipient
from hepmaild.storage.settle import say_states

BATCH = 200  # messages let go in one unit
FRONT = 100  # timers that are set right with them; the reaper does the rest
REFRESHED = 500
SLACK_US = 30_000_000  # by which a timer may be wrong: it says "about"
PRUNED = 2000

Cursor = tuple[int, int]  # a place in a line, and when the one before it leaves


@dataclass(frozen=True, slots=True)
class Usage:
    """A cap as it is shown.  used: in the last 24 hours; waiting: messages in the line; frees_at_us: when the next
    slots become free, the earliest first (now, while there is room)."""

    daily_cap: int
    used: int
    waiting: int
    frees_at_us: tuple[int, ...]


_LINE = (
    select(queue.c.message_id, queue.c.line_us)
    .where(queue.c.cap_key == bindparam("key"), queue.c.line_us.is_not(None), queue.c.line_us >= bindparam("since"))
    .distinct()
    .order_by(queue.c.line_us, queue.c.message_id)
    .limit(bindparam("most"))
)
_NEXT = Query(select(func.min(cap.c.next_us)).where(cap.c.next_us.is_not(None)))
_SET_TIMER = (
    update(recipient)
    .where(recipient.c.message_id == bindparam("m"), recipient.c.state == "capped")
    .values(due_at_us=bindparam("due"), last_reply=bindparam("reply"))
)


def next_at_us(conn: Connection) -> int | None:
    """When the first of any line may go; None: nobody waits behind a cap."""
    at_us = _NEXT.value(conn)
    return None if at_us is None else int(at_us)


def let_go(conn: Connection, now_us: int) -> int:
    """Let the first of the most urgent line go, as many as there is room for; how many messages.

    They are due now, oldest first, and hold their slots.  At most BATCH: `next_at_us` says whether to come again.
    """
    key = conn.execute(
        select(cap.c.cap_key).where(cap.c.next_us <= now_us).order_by(cap.c.next_us, cap.c.cap_key).limit(1)
    ).scalar_one_or_none()
    if key is None:
        return 0
    found = lock(conn, [key])[key]
    room = found.daily_cap - used(conn, key, now_us) if found.daily_cap else BATCH
    gone = _let_go(conn, found, min(room, BATCH), now_us) if room > 0 else 0
    # Who has expired only waits for a claim to say so.
    waiting = conn.execute(LAST.where(queue.c.due_at_us > now_us), {"key": key}).scalar_one_or_none() is not None
    conn.execute(SET_NEXT, {"the_key": key, "next": room_at_us(conn, found, now_us) if waiting else None})
    if waiting:
        _set_timers(conn, found, FRONT, now_us, None, 1_000_000)
    return gone


def _let_go(conn: Connection, found: Cap, most: int, now_us: int) -> int:
    key = found.cap_key
    line = _LINE.where(queue.c.due_at_us > now_us)  # what has expired is the claim's
    first = [r.message_id for r in conn.execute(line, {"key": key, "since": 0, "most": most})]
    mine = _lock_free(conn, first)
    ids = [i for i in first if i in mine]
    if not ids:
        return 0
    GIVE_BACK.run(conn, [(key, i) for i in ids])  # one that is too old to count
    if found.daily_cap:
        TAKE.run(conn, [(key, i, now_us + n) for n, i in enumerate(ids)])
    dues = [{"m": i, "due": now_us - len(ids) + n} for n, i in enumerate(ids)]
    conn.execute(
        update(queue)
        .where(queue.c.message_id == bindparam("m"), queue.c.line_us.is_not(None))
        .values(line_us=null(), due_at_us=bindparam("due")),
        dues,
    )
    state = case((recipient.c.attempts > 0, "deferred"), else_="queued")
    conn.execute(
        update(recipient)
        .where(recipient.c.message_id == bindparam("m"), recipient.c.state == "capped")
        .values(state=state, due_at_us=bindparam("due"), last_reply=null()),
        dues,
    )
    tell(conn, ids, "uncapped", now_us)
    return len(ids)


def tell(conn: Connection, ids: Collection[str], kind: str, now_us: int) -> None:
    """Have the log say of these messages that they stand in their line from now on ("capped"), or not any more."""
    say_states(conn, ids)
    accounts = conn.execute(select(message.c.id, message.c.account_id).where(message.c.id.in_(ids)))
    messages.insert_events(conn, [(m, account_id, now_us, kind, "{}") for m, account_id in accounts])


def _lock_free(conn: Connection, ids: list[str]) -> set[str]:
    """Lock those of these messages in the line of which nobody has a row; which these are.

    What somebody cancels or holds just now is left out, not waited for: he may wait for the cap, which we have.
    """
    rows = select(queue.c.message_id, queue.c.destination).where(
        queue.c.message_id.in_(ids), queue.c.line_us.is_not(None)
    )
    locked = {(r.message_id, r.destination) for r in conn.execute(rows.with_for_update(skip_locked=True))}
    if conn.dialect.name == "postgresql":
        taken = {r.message_id for r in conn.execute(rows) if (r.message_id, r.destination) not in locked}
    else:
        taken = set()  # nobody else writes
    return {m for m, _ in locked} - taken


def _set_timers(
    conn: Connection, found: Cap, most: int, now_us: int, cursor: Cursor | None, slack_us: int
) -> tuple[Cursor | None, int]:
    """Set right what `most` in the line say about when they leave: a cursor behind them, and how many were wrong.

    Those that somebody has locked stay wrong for now.
    """
    since, last_us = cursor or (0, None)
    line = conn.execute(_LINE, {"key": found.cap_key, "since": since, "most": most}).all()
    if not line:
        return None, 0
    times = turns_of(conn, found, last_us, len(line), now_us)
    shown = {r.message_id: r for r in conn.execute(TIMERS, {"ids": [r.message_id for r in line]})}
    wrong = []
    for r, at_us in zip(line, times, strict=True):
        row = shown.get(r.message_id)
        if row is not None:
            turn = turn_of(found, at_us, row.expires_at_us)
            if abs(turn.due_at_us - row.due_at_us) >= slack_us:
                wrong.append({"m": r.message_id, "due": turn.due_at_us, "reply": turn.text})
    free = _lock_free(conn, [timer["m"] for timer in wrong]) if wrong else set()
    mine = [timer for timer in wrong if timer["m"] in free]
    if mine:
        conn.execute(_SET_TIMER, mine)
    return ((line[-1].line_us + 1, times[-1]) if len(line) == most else None), len(wrong)


# For people, and for the reaper


def usage(conn: Connection, cap_key: str, now_us: int, upcoming: int = 10) -> Usage | None:
    """A cap in figures; None: the sender has none, and nothing was ever counted."""
    row = conn.execute(select(cap).where(cap.c.cap_key == cap_key)).one_or_none()
    if row is None:
        return None
    found = Cap(row.cap_key, row.daily_cap, row.next_us)
    waiting = conn.execute(
        select(func.count(queue.c.message_id.distinct())).where(
            queue.c.cap_key == cap_key, queue.c.line_us.is_not(None)
        )
    ).scalar_one()
    times = turns_of(conn, found, None, upcoming, now_us)
    return Usage(found.daily_cap, used(conn, cap_key, now_us), int(waiting), tuple(times))


_STEP = select(func.min(queue.c.cap_key)).where(queue.c.line_us.is_not(None), queue.c.cap_key > bindparam("last"))


def lines(conn: Connection) -> list[str]:
    """The caps that somebody waits behind: one step down the index for each, however many wait."""
    found, last = [], ""
    while (key := conn.execute(_STEP, {"last": last}).scalar_one()) is not None:
        found.append(str(key))
        last = key
    return found


def refresh(conn: Connection, cap_key: str, now_us: int, cursor: Cursor | None = None) -> Cursor | None:
    """Set right the timers of a part of one line (`cursor`: behind the part before); where to go on, None: done.

    When those of the first part are right, so are the others.  Also the net under it all: a line whose alarm is too
    late or was lost is looked at again.
    """
    found = lock(conn, [cap_key]).get(cap_key)
    if found is None:
        return None
    if cursor is None and conn.execute(LAST, {"key": cap_key}).scalar_one_or_none() is not None:
        room_us = room_at_us(conn, found, now_us)
        if found.next_us is None or found.next_us > room_us:
            conn.execute(SET_NEXT, {"the_key": cap_key, "next": room_us})
    behind, wrong = _set_timers(conn, found, REFRESHED, now_us, cursor, SLACK_US)
    return behind if wrong or cursor is not None else None


def prune(conn: Connection, now_us: int) -> int:
    """Forget slots that no window can hold any more; how many went (at most PRUNED)."""
    before = now_us - DAY_US - 3_600_000_000
    old = conn.execute(
        select(cap_use.c.cap_key, cap_use.c.message_id).where(cap_use.c.at_us < before).limit(PRUNED)
    ).all()
    GIVE_BACK.run(conn, [(r.cap_key, r.message_id) for r in old])
    return len(old)
