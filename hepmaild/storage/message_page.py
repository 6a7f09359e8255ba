# SPDX-License-Identifier: Apache-2.0
"""One message of an account, for its page; and what people may do with it there.  None: the account has no such one."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, exists, select

from hepmaild.mail.content import Content
from hepmaild.own_routes import is_own, server_of
from hepmaild.storage import audit, keys, messages
from hepmaild.storage import queue as queue_rows
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema import body, event, ledger, message, pause, queue, recipient
from hepmaild.storage.schema_own_smtp import smtp_server

MAX_RECIPIENTS = 200
MAX_EVENTS = 300


def page(conn: Connection, account_id: str, message_id: str) -> dict[str, Any] | None:
    """Everything that the page shows; instants in µs.  Of very many recipients and events the first, and how many."""
    head = conn.execute(select(message).where(message.c.id == message_id, message.c.account_id == account_id)).first()
    if head is None:
        return None
    rows = conn.execute(
        select(recipient).where(recipient.c.message_id == message_id).order_by(recipient.c.n).limit(MAX_RECIPIENTS)
    ).all()
    newest_first = select(event).where(event.c.message_id == message_id).order_by(event.c.seq.desc())
    oldest = select(event).where(event.c.message_id == message_id).order_by(event.c.seq).limit(20)
    found = {e.seq: e for e in [*conn.execute(newest_first.limit(MAX_EVENTS)), *conn.execute(oldest)]}
    money = conn.execute(select(ledger).where(ledger.c.message_id == message_id).order_by(ledger.c.seq)).all()
    waits = conn.execute(
        select(queue.c.destination, queue.c.due_at_us, queue.c.owner, queue.c.marked).where(
            queue.c.message_id == message_id
        )
    ).all()
    destinations = {w.destination for w in waits}
    pauses = _pauses(conn, head.route, destinations)
    stopped = destinations if "" in pauses else set(pauses)
    to_be_tried = [r for r in rows if r.due_at_us is not None and r.state in ("queued", "deferred")]
    dues = {r.due_at_us for r in to_be_tried if r.destination not in stopped}
    return {
        **head._asdict(),
        "recipient_rows": [
            {
                "n": r.n,
                "address": r.address,
                "kind": r.kind,
                "state": r.state,
                "attempts": r.attempts,
                "doubts": r.doubts,
                "due_at_us": None if r.state == "held" else r.due_at_us,
                "last_reply": r.last_reply,
            }
            for r in rows
        ],
        "events": [{"seq": e.seq, "at": e.at_us, "kind": e.kind, "data": json.loads(e.data)} for e in _sorted(found)],
        "money": [{"at_us": r.at_us, "amount": r.amount, "reason": r.reason} for r in money],
        "has_body": conn.execute(select(exists().where(body.c.message_id == message_id))).scalar_one(),
        "is_under_way": any(w.owner is not None for w in waits),
        "waits": bool(waits),
        "has_key": keys.of_account(conn, account_id, head.key_id) is not None,
        "server_name": _server_name(conn, head.route),
        "pauses": pauses,
        "can_be_retried": bool(to_be_tried),
        "dues": dues,
        "due_at_us": min(dues, default=None),
    }


def still_there(conn: Connection, account_id: str, message_ids: Collection[str]) -> set[str]:
    """Which of these the account's log still has: ledger and suppressions outlive it."""
    # Asked by the ids alone: for the account as well SQLite would go through all of its messages.
    found = conn.execute(select(message.c.id, message.c.account_id).where(message.c.id.in_(sorted(set(message_ids)))))
    return {message_id for message_id, owner in found if owner == account_id}


def _server_name(conn: Connection, route: str) -> str | None:
    """Of the account's own SMTP server that it leaves by; "": that was removed.  None: it leaves another way."""
    if not is_own(route):
        return None
    name = conn.execute(select(smtp_server.c.name).where(smtp_server.c.id == server_of(route))).scalar()
    return "" if name is None else str(name)


def _pauses(conn: Connection, route: str, destinations: Collection[str]) -> dict[str, str]:
    """What of a message is kept from leaving, and why: notes by destination, "" for all of its route."""
    if not destinations:
        return {}
    here = select(pause.c.destination, pause.c.note).where(
        pause.c.route == route, pause.c.destination.in_({*destinations, ""})
    )
    return {row.destination: row.note for row in conn.execute(here.order_by(pause.c.destination))}


def _sorted(found: dict[int, Any]) -> list[Any]:
    return [found[seq] for seq in sorted(found)]


def content(conn: Connection, account_id: str, message_id: str, spool_dir: str | None = None) -> Content | None:
    """The content, as long as it is kept."""
    if not _is_theirs(conn, account_id, message_id):
        return None
    return messages.load_content(conn, message_id, spool_dir)


def _is_theirs(conn: Connection, account_id: str, message_id: str) -> bool:
    found = conn.execute(select(message.c.id).where(message.c.id == message_id, message.c.account_id == account_id))
    return found.first() is not None


def cancel(
    conn: Connection, account_id: str, message_id: str, *, actor: Actor, now_us: int, body_keep_us: int
) -> dict[str, Any] | None:
    """As `queue.cancel`; raises its ValueErrors."""
    if not _is_theirs(conn, account_id, message_id):
        return None
    done = queue_rows.cancel(conn, message_id, now_us, body_keep_us)
    _note(conn, account_id, message_id, actor, "message.cancel", {"refunded": done["refunded"]}, now_us)
    return done


def retry(conn: Connection, account_id: str, message_id: str, *, actor: Actor, now_us: int) -> dict[str, Any] | None:
    """As `queue.retry`; raises its ValueErrors.  is_paused: nothing of it is tried before somebody ends a pause."""
    if not _is_theirs(conn, account_id, message_id):
        return None
    done = queue_rows.retry(conn, message_id, now_us)
    here = select(queue.c.route, queue.c.destination).where(queue.c.message_id == message_id)
    waits = conn.execute(here).all()
    destinations = {w.destination for w in waits}
    pauses = _pauses(conn, waits[0].route, destinations)
    done["is_paused"] = "" in pauses or destinations <= pauses.keys()
    _note(conn, account_id, message_id, actor, "message.retry", {"recipients": done["recipients"]}, now_us)
    return done


def _note(
    conn: Connection, account_id: str, message_id: str, actor: Actor, action: str, data: dict[str, Any], now_us: int
) -> None:
    audit.note(conn, account_id=account_id, actor=actor, action=action, subject=message_id, data=data, now_us=now_us)
