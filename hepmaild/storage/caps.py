# SPDX-License-Identifier: Apache-2.0
"""Daily caps: in any 24 hours at most so many messages of a sender leave (money-and-limits.md "Sender addresses").

A message that may leave holds a slot (`cap_use`): taken when it is accepted, let go or claimed, moved to the instant
its attempt ended when the next hop took it (or may have).  What did not leave keeps its slot while it waits for its
retry, so that nothing younger overtakes it, and gives it back when it ends.  Whoever finds no room stands in a line in
order of acceptance (`queue.line_us`), due at its expiry like one that is held; `let_go` takes the first out when the
window has room, whatever route or destination they go to, so that no line stands behind a dead host.

The window is only read, and slots are only taken, with the cap's row locked: two processes take turns, and the cap
holds exactly.  That lock is the last one of a unit (keys, accounts, queue rows, caps): who holds it waits for no other.
Moving the slot of a message under way needs no lock: it is inside the window before and after.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, exists, func, null, select, text, update

from hepmaild.config import DAY_US
from hepmaild.counted import counted
from hepmaild.storage.bulk import Bulk, bulk_insert
from hepmaild.storage.schema import cap, cap_use, message, queue, recipient, sender


@dataclass(frozen=True, slots=True)
class Wish:
    """A message that is about to be accepted.  daily_cap: as the sender's row said when it was picked."""

    message_id: str
    cap_key: str
    daily_cap: int
    at_us: int
    expires_at_us: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A message in the line.  due_at_us: when it leaves, about; its expiry if that comes first.  text: for people."""

    due_at_us: int
    text: str


@dataclass(slots=True)
class Cap:
    """A locked cap."""

    cap_key: str
    daily_cap: int
    next_us: int | None


def cap_key_of(account_id: str, address_key: str) -> str:
    """The name of a sender's cap.  account_id "": a global sender."""
    return f"{account_id}|{address_key}"


_LOCK = (
    select(cap.c.cap_key, cap.c.daily_cap, cap.c.next_us)
    .where(cap.c.cap_key.in_(bindparam("keys", expanding=True)))
    .order_by(cap.c.cap_key)
    .with_for_update()
)
_ADD = text("INSERT INTO cap (cap_key, daily_cap) VALUES (:the_key, :the_cap) ON CONFLICT DO NOTHING")
_SENDER = select(sender.c.daily_cap).where(
    sender.c.account_id == bindparam("account"), sender.c.address_key == bindparam("address")
)
_SET = update(cap).where(cap.c.cap_key == bindparam("the_key"))
SET_NEXT = _SET.values(next_us=bindparam("next"))
# Somebody is to look again, if anybody waits at all.
_LOOK = (
    update(cap)
    .where(cap.c.cap_key.in_(bindparam("keys", expanding=True)), cap.c.next_us.is_not(None))
    .values(next_us=0)
)
_USED = select(func.count()).where(cap_use.c.cap_key == bindparam("key"), cap_use.c.at_us >= bindparam("since"))
_NEWEST = (
    select(cap_use.c.at_us)
    .where(cap_use.c.cap_key == bindparam("key"))
    .order_by(cap_use.c.at_us.desc())
    .limit(1)
    .offset(bindparam("place"))
)
_AFTER = (
    select(cap_use.c.at_us)
    .where(cap_use.c.cap_key == bindparam("key"), cap_use.c.at_us > bindparam("after"))
    .order_by(cap_use.c.at_us)
    .limit(bindparam("most"))
)
TAKE = bulk_insert(cap_use, "cap_key", "message_id", "at_us")
GIVE_BACK = Bulk(
    delete(cap_use).where(cap_use.c.cap_key == bindparam("key"), cap_use.c.message_id == bindparam("m")), "key", "m"
)
_SLOTS = select(cap_use.c.message_id, cap_use.c.at_us).where(
    cap_use.c.cap_key == bindparam("key"), cap_use.c.message_id.in_(bindparam("ids", expanding=True))
)
_LEFT = exists().where(
    recipient.c.message_id == cap_use.c.message_id, (recipient.c.state == "sent") | (recipient.c.doubts > 0)
)
# Some of it, at another destination: it may leave.
_UNDER_WAY = exists().where(queue.c.message_id == cap_use.c.message_id, queue.c.owner.is_not(None))
# Not waited for, as whoever ends such a message wants the cap next.
_YOUNGEST = (
    select(cap_use.c.message_id)
    .join(message, message.c.id == cap_use.c.message_id)
    .where(cap_use.c.cap_key == bindparam("key"), cap_use.c.at_us >= bindparam("since"), ~_LEFT, ~_UNDER_WAY)
    .order_by(message.c.accepted_at_us.desc(), message.c.id.desc())
    .limit(bindparam("most"))
    .with_for_update(of=cap_use, skip_locked=True)
)
_FREE = Bulk(
    delete(cap_use).where(cap_use.c.cap_key == bindparam("key"), cap_use.c.message_id == bindparam("m"), ~_LEFT),
    "key",
    "m",
)
_WENT = Bulk(
    update(cap_use)
    .where(
        cap_use.c.cap_key == bindparam("key"),
        cap_use.c.message_id == bindparam("m"),
        cap_use.c.at_us < bindparam("at"),
    )
    .values(at_us=bindparam("at")),
    "key",
    "m",
    "at",
)
LAST = (
    select(queue.c.message_id)
    .where(queue.c.cap_key == bindparam("key"), queue.c.line_us.is_not(None))
    .order_by(queue.c.line_us.desc(), queue.c.message_id.desc())
    .limit(1)
)
TIMERS = (
    select(recipient.c.message_id, func.min(recipient.c.due_at_us).label("due_at_us"), message.c.expires_at_us)
    .join(message, message.c.id == recipient.c.message_id)
    .where(recipient.c.message_id.in_(bindparam("ids", expanding=True)), recipient.c.state == "capped")
    .group_by(recipient.c.message_id, message.c.expires_at_us)
)
_HEADS = select(message.c.id, message.c.accepted_at_us, message.c.expires_at_us).where(
    message.c.id.in_(bindparam("ids", expanding=True))
)


# The window


def lock(conn: Connection, keys: Iterable[str]) -> dict[str, Cap]:
    """Lock these caps, in the order of their names; unknown ones are left out."""
    return {r.cap_key: Cap(*r) for r in conn.execute(_LOCK, {"keys": sorted(set(keys))})}


def used(conn: Connection, key: str, now_us: int) -> int:
    """Slots of the last 24 hours, both ends counted."""
    return int(conn.execute(_USED, {"key": key, "since": now_us - DAY_US}).scalar_one())


def _floor_us(conn: Connection, key: str, daily_cap: int) -> int | None:
    """The slot that has to leave the window before another can be had; None: that many were never taken."""
    return conn.execute(_NEWEST, {"key": key, "place": daily_cap - 1}).scalar_one_or_none()


def room_at_us(conn: Connection, found: Cap, now_us: int) -> int:
    """When the window has room for one more."""
    floor_us = _floor_us(conn, found.cap_key, found.daily_cap) if found.daily_cap else None
    return now_us if floor_us is None else max(now_us, floor_us + DAY_US + 1)


def turns_of(conn: Connection, found: Cap, last_us: int | None, count: int, now_us: int) -> list[int]:
    """When the next `count` in the line will leave, about.

    Every slot comes back after a day, then again after two: the times are those of the slots, day after day.
    last_us: when the last one before them leaves; None: nobody stands before them.
    """
    daily_cap = found.daily_cap
    if not daily_cap:
        return [now_us] * count
    turns: list[int] = []
    if last_us is None:
        turns = [now_us] * min(count, max(0, daily_cap - used(conn, found.cap_key, now_us)))
    floor_us = _floor_us(conn, found.cap_key, daily_cap)
    lowest = now_us - DAY_US if floor_us is None else max(floor_us, now_us - DAY_US)
    start = lowest + DAY_US - 1 if last_us is None else last_us - 1
    days = max(1, -(-(start - now_us) // DAY_US))
    values = {"key": found.cap_key, "after": max(start - days * DAY_US, lowest - 1), "most": count}
    slots = list(conn.execute(_AFTER, values).scalars())
    while len(turns) < count:
        turns += [at_us + days * DAY_US + 1 for at_us in slots[: count - len(turns)]]
        if values["after"] != lowest - 1:
            values["after"] = lowest - 1
            slots = list(conn.execute(_AFTER, values).scalars())
        if not slots:  # nothing was sent for a day: they leave now
            turns += [max(now_us, last_us or 0)] * (count - len(turns))
        days += 1
    return turns


def turn_of(found: Cap, turn_us: int, expires_at_us: int) -> Turn:
    """What is said about a message that leaves then, about."""
    address = found.cap_key.partition("|")[2]
    said = f"the daily cap of {counted(found.daily_cap, 'message')} of {address} is used up"
    if turn_us >= expires_at_us:
        return Turn(expires_at_us, f"{said}: its turn comes only after it expires at {_stamp(expires_at_us)}")
    return Turn(turn_us, f"{said}: leaves at about {_stamp(turn_us)}")


def _stamp(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _last_turn_us(conn: Connection, key: str) -> int | None:
    """When the last one in the line leaves, about; None: nobody stands there."""
    last = conn.execute(LAST, {"key": key}).scalar_one_or_none()
    if last is None:
        return None
    timer = conn.execute(TIMERS, {"ids": [last]}).one_or_none()
    return 0 if timer is None else int(timer.due_at_us)


# Accepting


def ask(conn: Connection, wishes: Sequence[Wish], now_us: int) -> dict[str, Turn]:
    """Take a slot for each message whose sender's window has room; the others' turns, by message id.

    The caller writes those with `line_us` = their `at_us`, due at their expiry, their recipients `capped`.
    """
    keys = {w.cap_key: w.daily_cap for w in wishes}
    caps = lock(conn, keys)
    turns: dict[str, Turn] = {}
    for key in sorted(keys):
        found = caps.get(key) or _add(conn, key, keys[key])
        if found.daily_cap != keys[key]:
            _learn(conn, found, keys[key])
        if found.daily_cap:
            turns.update(_ask_one(conn, found, [w for w in wishes if w.cap_key == key], now_us))
    return turns


def _ask_one(conn: Connection, found: Cap, wishes: list[Wish], now_us: int) -> dict[str, Turn]:
    key = found.cap_key
    last_us = _last_turn_us(conn, key) if found.next_us is not None else None
    room = 0 if last_us is not None else max(0, found.daily_cap - used(conn, key, now_us))
    TAKE.run(conn, [(key, w.message_id, now_us + n) for n, w in enumerate(wishes[:room])])
    late = wishes[room:]
    if not late:
        return {}
    times = turns_of(conn, found, last_us, len(late), now_us)
    if last_us is None:
        conn.execute(SET_NEXT, {"the_key": key, "next": times[0]})
    return {w.message_id: turn_of(found, at_us, w.expires_at_us) for w, at_us in zip(late, times, strict=True)}


def _add(conn: Connection, key: str, daily_cap: int) -> Cap:
    conn.execute(_ADD, {"the_key": key, "the_cap": daily_cap})
    return lock(conn, [key])[key]


def _learn(conn: Connection, found: Cap, claimed: int) -> None:
    """A message came with another cap than the one we know: ask the sender's row, or believe the settings."""
    account_id, _, address_key = found.cap_key.partition("|")
    known = conn.execute(_SENDER, {"account": account_id, "address": address_key}).scalar_one_or_none()
    daily_cap = claimed if known is None else int(known)
    if daily_cap != found.daily_cap:
        set_cap(conn, found.cap_key, daily_cap)
        found.daily_cap = daily_cap


# Changing


def set_cap(conn: Connection, cap_key: str, daily_cap: int) -> bool:
    """A sender's cap is this from now on, also for what waits; 0: none.  Whether anything changed."""
    found = lock(conn, [cap_key]).get(cap_key)
    if found is None:
        if daily_cap:
            conn.execute(_ADD, {"the_key": cap_key, "the_cap": daily_cap})
        return bool(daily_cap)
    if found.daily_cap == daily_cap:
        return False
    conn.execute(_SET.values(daily_cap=daily_cap), {"the_key": cap_key})
    conn.execute(_LOOK, {"keys": [cap_key]})
    return True


def set_global_caps(conn: Connection, caps: dict[str, int]) -> int:
    """The caps of the settings' senders, by address key, also for what waits; how many changed.

    A global sender in the database stands before one of the settings with the same address.
    """
    if not caps:
        return 0
    mine = set(conn.execute(select(sender.c.address_key).where(sender.c.account_id == "")).scalars())
    wanted = {cap_key_of("", address): value for address, value in caps.items() if address not in mine}
    known = {r.cap_key: r.daily_cap for r in conn.execute(select(cap).where(cap.c.cap_key.in_(sorted(wanted))))}
    return sum(set_cap(conn, key, value) for key, value in sorted(wanted.items()) if known.get(key, 0) != value)


# Claiming


def admit(conn: Connection, rows: Sequence[Any], now_us: int) -> list[Any]:
    """Those of these locked, due queue rows that may be attempted now; the others stand in their line from here on.

    rows: with message_id, destination, cap_key, line_us.  Costs nothing when none of them has a cap.  What has expired
    is the caller's, and comes first: that locks accounts.
    """
    keys = {r.cap_key for r in rows if r.cap_key}
    if not keys:
        return list(rows)
    refused: set[str] = set()
    for key, found in sorted(lock(conn, keys).items()):
        if found.daily_cap:
            refused |= _admit_one(conn, found, [r for r in rows if r.cap_key == key], now_us)
    return [r for r in rows if r.message_id not in refused]


def _admit_one(conn: Connection, found: Cap, rows: list[Any], now_us: int) -> set[str]:
    """Move or take the slots of these messages, oldest first; the ids of those that have to wait."""
    key = found.cap_key
    ids = sorted({r.message_id for r in rows})
    heads = {r.id: r for r in conn.execute(_HEADS, {"ids": ids})}
    ids.sort(key=lambda i: (heads[i].accepted_at_us, i))
    count = used(conn, key, now_us)
    if count > found.daily_cap:
        count -= _shrink(conn, key, count - found.daily_cap, now_us)
    slots = {r.message_id: r.at_us for r in conn.execute(_SLOTS, {"key": key, "ids": ids})}
    lined = {r.message_id for r in rows if r.line_us is not None}
    anybody = found.next_us is not None and conn.execute(LAST, {"key": key}).scalar_one_or_none() is not None
    taken: list[str] = []
    refused: list[str] = []
    for i in ids:
        inside = slots.get(i, 0) >= now_us - DAY_US
        if i not in lined and count - inside < found.daily_cap and (inside or not (anybody or refused)):
            count += not inside
            taken.append(i)
            continue
        refused.append(i)
        if inside and _give_back(conn, key, i):
            count -= 1
    GIVE_BACK.run(conn, [(key, i) for i in taken if i in slots])
    TAKE.run(conn, [(key, i, now_us + n) for n, i in enumerate(taken)])
    if refused:
        _line_up(conn, found, [r for r in rows if r.message_id in set(refused)], heads, now_us)
    return set(refused)


def _shrink(conn: Connection, key: str, most: int, now_us: int) -> int:
    """The cap was lowered: take their slots from the youngest who only wait, so that the oldest leave first; how many.

    They find out when they are claimed.
    """
    values = {"key": key, "since": now_us - DAY_US, "most": most}
    ids = conn.execute(_YOUNGEST, values).scalars().all()
    GIVE_BACK.run(conn, [(key, i) for i in ids])
    if ids:
        conn.execute(_LOOK, {"keys": [key]})
    return len(ids)


def _give_back(conn: Connection, key: str, message_id: str) -> bool:
    """Free the slot of a message that never left, and is not about to; whether it was freed."""
    never_left = (cap_use.c.cap_key == key, cap_use.c.message_id == message_id, ~_LEFT, ~_UNDER_WAY)
    gone = conn.execute(delete(cap_use).where(*never_left))
    return bool(gone.rowcount)


def _line_up(conn: Connection, found: Cap, rows: Sequence[Any], heads: dict[str, Any], now_us: int) -> None:
    """Put due rows into the line, each at the place of its age."""
    first_us = room_at_us(conn, found, now_us)
    for r in rows:
        head = heads[r.message_id]
        turn = turn_of(found, first_us, head.expires_at_us)
        conn.execute(
            update(queue)
            .where(queue.c.message_id == r.message_id, queue.c.destination == r.destination)
            .values(line_us=head.accepted_at_us, due_at_us=head.expires_at_us, owner=null(), marked=False)
        )
        conn.execute(
            update(recipient)
            .where(
                recipient.c.message_id == r.message_id,
                recipient.c.destination == r.destination,
                recipient.c.state.in_(("queued", "deferred", "capped")),
            )
            .values(state="capped", due_at_us=turn.due_at_us, last_reply=turn.text)
        )
    conn.execute(SET_NEXT, {"the_key": found.cap_key, "next": first_us})


# After an attempt


def went(conn: Connection, rows: Iterable[tuple[str, str, int]]) -> None:
    """Messages that left, or may have: cap key, message id, at the latest when."""
    _WENT.run(conn, [(key, i, at_us) for key, i, at_us in rows])


def ended(conn: Connection, rows: Collection[tuple[str, str]]) -> None:
    """Messages that are final: cap key, message id.  The slots of those that never left are free again."""
    if not rows:
        return
    _FREE.run(conn, list(rows))
    conn.execute(_LOOK, {"keys": sorted({key for key, _ in rows})})
