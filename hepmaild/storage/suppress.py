# SPDX-License-Identifier: Apache-2.0
"""Suppressed addresses: what a destination refused for good several times is not tried again for a while.

Counted for each account, in the unit that records the refusal: an account's failures hold its row locked, so that two
never count at once.  One success forgets the count.  Only what speaks about the address itself counts (RFC 3463 §3.2):
no such mailbox, bad syntax of it, moved away, no mail at all at its domain.  A bare 550 may be an opinion about the
message, 5.1.2 a fault of a name server that hits a whole domain: they do not count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from hepmaild.counted import counted
from hepmaild.delivery.job import Attempt, Result
from hepmaild.mail.address import key_of
from hepmaild.mail.reply import Reply
from hepmaild.storage.bulk import Bulk
from hepmaild.storage.schema import account, suppression

PRUNED = 500
FOR_DOMAIN = (556, "5.1.10")  # RFC 7505: a domain says so for all its addresses
# Exchange says 550 5.1.10 of a mailbox that it does not have, and may say it only to the final dot.
FOR_ADDRESSES = frozenset({"5.1.1", "5.1.3", "5.1.6", "5.1.10"})
MAX_REPLY = 500


@dataclass(frozen=True, slots=True)
class Rule:
    """after: so many refusals suppress an address, 0: never.  for_us: and for so long."""

    after: int
    for_us: int


NEVER = Rule(0, 0)


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Why an address is not sent to, and until when.  refusals 0: somebody said so."""

    until_us: int
    refusals: int
    last_reply: str

    @property
    def reply(self) -> Reply:
        """What is recorded for its recipient and told to the sender, in place of a next hop's reply."""
        date = datetime.fromtimestamp(self.until_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        why = f"refused {counted(self.refusals, 'time')}; last: {self.last_reply}" if self.refusals else self.last_reply
        return Reply(550, "5.1.1", f"suppressed until {date}: {why}")


_FIND = select(suppression).where(
    suppression.c.account_id == bindparam("account"),
    suppression.c.address_key.in_(bindparam("addresses", expanding=True)),
)
_FORGET = Bulk(
    delete(suppression).where(
        suppression.c.account_id == bindparam("account"),
        suppression.c.address_key == bindparam("address"),
        suppression.c.message_id != "",  # an operator's word stands
    ),
    "account",
    "address",
)


# In the units


def find(conn: Connection, account_id: str, addresses: Collection[str], now_us: int) -> dict[str, Suppressed]:
    """Those of these address keys that are suppressed for the account now."""
    rows = conn.execute(_FIND, {"account": account_id, "addresses": sorted(set(addresses))})
    return {
        r.address_key: Suppressed(r.suppressed_until_us, r.refusals, r.last_reply)
        for r in rows
        if r.suppressed_until_us is not None and r.suppressed_until_us > now_us
    }


def refused(attempt: Attempt) -> list[tuple[str, Reply]]:
    """The recipients of an attempt of whom the destination said that there is no such address, and how.

    The answer to the final dot is one for all recipients; it says nothing about one of several.
    """
    failed = [o for o in attempt.outcomes if o.result is Result.FAILED and o.reply is not None]
    addresses = {r.recipient_id: r.address for r in attempt.job.recipients}
    found = []
    for o in failed:
        reply = o.reply
        assert reply is not None
        shared = sum(other.reply is reply for other in failed) > 1
        if (reply.code, reply.enhanced) == FOR_DOMAIN or (reply.enhanced in FOR_ADDRESSES and not shared):
            found.append((addresses[o.recipient_id], reply))
    return found


def note(conn: Connection, attempt: Attempt, rule: Rule) -> None:
    """Count the refusals of one attempt.  The account's row is locked."""
    if not rule.after:
        return
    for address, reply in refused(attempt):
        _count(conn, attempt, address, reply, rule)


def _count(conn: Connection, attempt: Attempt, address: str, reply: Reply, rule: Rule) -> None:
    at_us, account_id, key = attempt.ended_at_us, attempt.job.account_id, key_of(address)
    known = conn.execute(_FIND, {"account": account_id, "addresses": [key]}).one_or_none()
    if known is not None and not known.message_id and (known.suppressed_until_us or 0) > at_us:
        return  # an operator's word stands
    fresh = known is None or (known.suppressed_until_us is not None and known.suppressed_until_us <= at_us)
    refusals = 1 if fresh else known.refusals + 1  # type: ignore[union-attr]  # fresh when there is none
    values = {
        "address": address,
        "refusals": refusals,
        "refused_at_us": at_us,
        "suppressed_until_us": at_us + rule.for_us if refusals >= rule.after else None,
        "last_reply": str(reply)[:MAX_REPLY],
        "message_id": attempt.job.message_id,
        "kept_until_us": at_us + rule.for_us,
    }
    _put(conn, account_id, key, values)


def forget(conn: Connection, delivered: Iterable[tuple[str, str]]) -> None:
    """Account id and address of what was delivered: what was counted or suppressed is good again."""
    _FORGET.run(conn, [(account_id, key_of(address)) for account_id, address in delivered])


def _put(conn: Connection, account_id: str, key: str, values: dict[str, Any]) -> None:
    here = (suppression.c.account_id == account_id) & (suppression.c.address_key == key)
    if not conn.execute(update(suppression).where(here).values(**values)).rowcount:
        conn.execute(insert(suppression).values(account_id=account_id, address_key=key, **values))


# For people: an account's own, or the operator's


def list_of(conn: Connection, account_id: str, now_us: int, limit: int = 1000) -> list[dict[str, Any]]:
    """The suppressed addresses of an account, the newest refusal first; instants in µs."""
    rows = conn.execute(
        select(suppression)
        .where(suppression.c.account_id == account_id, suppression.c.suppressed_until_us > now_us)
        .order_by(suppression.c.refused_at_us.desc(), suppression.c.address_key)
        .limit(limit)
    )
    return [_shown(r) for r in rows]


def page(
    conn: Connection, account_id: str, now_us: int, *, words: str = "", behind: tuple[int, str] | None = None, most: int
) -> list[dict[str, Any]]:
    """Suppressed addresses whose text contains `words`, the newest refusal first; as in `list_of`, with `key`.

    behind: when the last one shown was refused, and its key.
    """
    query = (
        select(suppression)
        .where(
            suppression.c.account_id == account_id,
            suppression.c.suppressed_until_us.is_not(None),
            suppression.c.suppressed_until_us > now_us,
        )
        .order_by(suppression.c.refused_at_us.desc(), suppression.c.address_key.desc())
        .limit(most)
    )
    if words:
        query = query.where(suppression.c.address_key.contains(key_of(words), autoescape=True))
    if behind is not None:
        at_us, key = behind
        query = query.where(
            suppression.c.refused_at_us <= at_us,
            (suppression.c.refused_at_us < at_us) | (suppression.c.address_key < key),
        )
    return [{**_shown(r), "key": r.address_key} for r in conn.execute(query)]


def _shown(r: Any) -> dict[str, Any]:
    return {
        "address": r.address,
        "refusals": r.refusals,
        "refused_at": r.refused_at_us,
        "suppressed_until_at": r.suppressed_until_us,
        "last_reply": r.last_reply,
        "message_id": r.message_id or None,
    }


def lift(conn: Connection, account_id: str, address: str, now_us: int) -> dict[str, Any]:
    """Let the account send to this address again, the count begins anew.  ValueError: it is not suppressed."""
    here = (suppression.c.account_id == account_id) & (suppression.c.address_key == key_of(address))
    row = conn.execute(select(suppression).where(here)).one_or_none()
    if row is None or row.suppressed_until_us is None or row.suppressed_until_us <= now_us:
        raise ValueError(f"{address} is not suppressed for this account; `hepmaild suppression list` shows what is")
    conn.execute(delete(suppression).where(here))
    return {"address": row.address, "lifted": True}


def add(conn: Connection, account_id: str, address: str, *, until_us: int, reason: str, now_us: int) -> dict[str, Any]:
    """Suppress an address for an account until then, whatever its destination says meanwhile."""
    conn.execute(select(account.c.id).where(account.c.id == account_id).with_for_update(key_share=True))
    values = {
        "address": address,
        "refusals": 0,
        "refused_at_us": now_us,
        "suppressed_until_us": until_us,
        "last_reply": reason[:MAX_REPLY],
        "message_id": "",
        "kept_until_us": until_us,
    }
    _put(conn, account_id, key_of(address), values)
    return {"address": address, "suppressed_until_at": until_us, "last_reply": reason[:MAX_REPLY]}


def prune(conn: Connection, now_us: int) -> int:
    """Forget what is suppressed no longer, and counts that nothing was added to for as long; at most PRUNED."""
    old: Sequence[Any] = conn.execute(
        select(suppression.c.account_id, suppression.c.address_key)
        .where(suppression.c.kept_until_us <= now_us)
        .limit(PRUNED)
    ).all()
    gone = delete(suppression).where(
        suppression.c.account_id == bindparam("account"),
        suppression.c.address_key == bindparam("address"),
        suppression.c.kept_until_us <= now_us,
    )
    if old:
        conn.execute(gone, [{"account": r.account_id, "address": r.address_key} for r in old])
    return len(old)
