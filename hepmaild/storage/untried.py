# SPDX-License-Identifier: Apache-2.0
"""What became of messages, or of some of their destinations, at which no attempt was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, and_, bindparam, select

from hepmaild.storage.bulk import Query
from hepmaild.storage.schema import message, queue, recipient


@dataclass(slots=True)
class Untried:
    """One destination of a message.  owner: who works on it; None: nobody.  states: of its recipients, by their place;
    not of those who are suppressed."""

    message_id: str
    destination: str
    route: str
    owner: str | None
    states: dict[int, str] = field(default_factory=dict)


_RECIPIENTS = Query(
    select(
        recipient.c.message_id,
        recipient.c.destination,
        recipient.c.n,
        recipient.c.state,
        recipient.c.attempts,
        message.c.route,
        queue.c.owner,
    )
    .join(message, message.c.id == recipient.c.message_id)
    .join(
        queue,
        and_(queue.c.message_id == recipient.c.message_id, queue.c.destination == recipient.c.destination),
        isouter=True,
    )
    .where(recipient.c.message_id.in_(bindparam("ids", expanding=True)))
    .order_by(recipient.c.message_id, recipient.c.n),
    "ids",
)


def untried(conn: Connection, ids: Sequence[str]) -> list[Untried]:
    """Of these messages the destinations that were not tried yet, or never were.  What is not committed is not here."""
    found: dict[tuple[str, str], Untried] = {}
    tried: set[tuple[str, str]] = set()
    for r in _RECIPIENTS.ask(conn, ids):
        here = (r.message_id, r.destination)
        if r.attempts:
            tried.add(here)
        elif r.state != "failed":
            one = found.setdefault(here, Untried(*here, r.route, r.owner))
            one.states[r.n] = r.state
    return [one for here, one in found.items() if here not in tried]
