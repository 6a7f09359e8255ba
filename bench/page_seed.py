# SPDX-License-Identifier: Apache-2.0
"""A service that has been used for weeks: a million finished messages of one large account and many small ones.

Rows are written as the units that accept and finish messages leave them (ledger chained, events with both legs of the
conversation, queue rows for what waits), but in bulk, since a million deliveries would take an hour.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, insert, select, text

from bench.backlog import EVENT
from hepmaild.cli.backend import LOOK_S, with_store
from hepmaild.config import Settings
from hepmaild.mail.ids import header_message_id, message_id
from hepmaild.storage import audit, tally
from hepmaild.storage import credits as money
from hepmaild.storage.bulk import Row, bulk_insert
from hepmaild.storage.schema import (
    account,
    api_key,
    counter,
    event,
    message,
    pause,
    queue,
    recipient,
    sender,
    suppression,
)
from hepmaild.storage.schema import tally as tally_table
from hepmaild.storage.schema_people import audit as audit_table
from hepmaild.storage.store import Store

AT_ONCE = 5000
DAYS = 25  # inside what the plan keeps
DAY_US = 86_400_000_000
SMALL_ACCOUNTS = 300
LARGE_SHARE = 0.8
COMMON = "orders@everyone.example"  # one recipient in fifty
RARE = "rare.address@seldom.example"
TOO_MANY = 1000  # ledger rows between two grants
SUPPRESSED = 20_000
SMALL_OWNER = "owner0@small0.example"
AUDITED = 20_000
EXPIRE_US = 4 * DAY_US  # what is older is final
ROUTE = "paused"  # what waits stands there, so that nothing moves while it is measured

# In ten thousand: what became of them.
STATES = {
    "sent": 9650,
    "failed": 150,
    "deferred": 80,
    "queued": 50,
    "expired": 30,
    "in_doubt": 15,
    "capped": 10,
    "held": 10,
    "cancelled": 5,
}
FINAL = {"sent", "failed", "expired", "cancelled"}
SUBJECTS = (
    "Your order {n} is on its way",
    "Invoice {n}",
    "Password reset",
    "Bestellung {n}: Größe geändert",
    "Welcome, {name}",
    "Weekly report {n}",
    "🎉 Your trial begins",
    "Re: ticket #{n}",
)
NAMES = ("anna", "ben", "chiara", "dmitri", "élodie", "farid", "grace", "hans", "ines", "jo", "kenji", "lena", "mara")
ATTEMPT = (
    '{"route":"sink","host":"127.0.0.1","destination":"","started_at":AT,"tls":["TLSv1.3","TLS_AES_256_GCM_SHA384"],'
    '"steps":[[AT,"peer","220 mx.example ESMTP"],[AT,"us","EHLO smtp.test"],[AT,"peer","250-mx.example"],'
    '[AT,"us","MAIL FROM:<noreply@example.com>"],[AT,"us","RCPT TO:<someone@example.net>"],[AT,"us","DATA"],'
    '[AT,"peer","250 2.1.0 ok"],[AT,"peer","250 2.1.5 ok"],[AT,"peer","354 go on"],[AT,"us","."],'
    '[AT,"peer","REPLY"]],"outcomes":[{"recipient":0,"result":"RESULT","reply":"REPLY"}]}'
)
REPLIES = {
    "sent": "250 2.0.0 Ok: queued as 4XyZ",
    "failed": "550 5.1.1 no such user here",
    "deferred": "451 4.2.0 try again later",
}

_MESSAGE = bulk_insert(message, *(column.name for column in message.columns))
_RECIPIENT = bulk_insert(recipient, *(column.name for column in recipient.columns))
_QUEUE = bulk_insert(queue, *(column.name for column in queue.columns))
_TALLY = bulk_insert(tally_table, *(column.name for column in tally_table.columns))
_AUDIT = bulk_insert(audit_table, *(column.name for column in audit_table.columns))
_EVENT = bulk_insert(event, "message_id", "account_id", "at_us", "kind", "data")


@dataclass(slots=True)
class Seeded:
    """What the pages are asked for.  key_id: of the large account.  many: a message with a hundred recipients."""

    account_id: str
    key_id: str
    common: str = COMMON
    rare: str = RARE
    sent: str = ""
    many: str = ""
    header_id: str = ""
    small_account_id: str = ""
    small_user_id: str = ""
    deep: list[tuple[int, str]] = field(default_factory=list)  # places in the log: a tenth, a half, nearly all behind


@dataclass(frozen=True, slots=True)
class _Account:
    """Whose messages are made."""

    account_id: str
    key: Row  # id, name, last five


def fill(settings: Settings, count: int) -> tuple[Seeded, float]:
    """Put them there; what to ask for, and how long it took (s).  The daemon does not run."""
    seeded: list[Seeded] = []

    async def run(store: Store) -> None:
        now_us = time.time_ns() // 1000
        accounts = await store.write(_make_accounts, now_us)
        rng = random.Random(1)  # the same for both engines
        found = Seeded(accounts[0].account_id, str(accounts[0].key[0]), small_account_id=accounts[1].account_id)
        seeded.append(found)
        counted = Counted(now_us - tally.FOLD_AGE_US)
        for start in range(0, count, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, count))
            await store.write(_fill_step, accounts, rng, numbers, count, now_us, found, counted)
        await store.write(counted.write, now_us)
        await store.write(_make_rest, accounts[0].account_id, now_us)

    began = time.monotonic()
    with_store(settings, run, patience_s=LOOK_S)
    return seeded[0], time.monotonic() - began


def _make_accounts(conn: Connection, now_us: int) -> list[_Account]:
    """The one that was set up, and many small ones."""
    row = conn.execute(select(api_key.c.id, api_key.c.name, api_key.c.last_five, api_key.c.account_id)).one()
    made = [_Account(row.account_id, (row.id, row.name, row.last_five))]
    began_us = now_us - (DAYS + 1) * DAY_US
    for n in range(SMALL_ACCOUNTS):
        account_id, key_id, email = str(uuid.uuid4()), str(uuid.uuid4()), f"owner{n}@small{n}.example"
        values = {"email": email, "email_key": email, "plan": "standard", "status": "active", "balance": 0}
        values |= {"ledger_seq": 0, "ledger_head": money.GENESIS, "day": 0, "day_messages": 0}
        conn.execute(insert(account).values(id=account_id, created_at_us=began_us, **values))
        secret = hashlib.sha256(os.urandom(32)).digest()
        key = {"name": f"app {n}", "last_five": f"{n:05d}", "status": "active", "created_at_us": began_us}
        conn.execute(insert(api_key).values(id=key_id, account_id=account_id, secret_hash=secret, **key))
        money.grant(conn, account_id, 1_000_000, granted_by="benchmark", note=None, now_us=began_us)
        made.append(_Account(account_id, (key_id, f"app {n}", f"{n:05d}")))
    conn.execute(insert(pause).values(route=ROUTE, destination="", since_us=now_us, note="benchmark"))
    for n in range(20):
        address = f"shop{n}@example.com"
        values = {"address": address, "address_key": address, "route": "sink", "daily_cap": 0, "is_default": False}
        conn.execute(insert(sender).values(account_id=made[0].account_id, **values))
    return made


def _fill_step(
    conn: Connection,
    accounts: list[_Account],
    rng: random.Random,
    numbers: range,
    count: int,
    now_us: int,
    found: Seeded,
    counted: Counted,
) -> None:
    purses = money.lock(conn, [a.account_id for a in accounts])
    messages: list[Row] = []
    recipients: list[Row] = []
    waiting: list[Row] = []
    events: list[Row] = []
    ledger: list[Row] = []
    for n in numbers:
        large = rng.random() < LARGE_SHARE
        who = accounts[0 if large else rng.randrange(1, len(accounts))]
        # Evenly over the days, the newest a moment ago.
        at_us = now_us - (count - n) * (DAYS * DAY_US // count) - rng.randrange(1_000_000)
        made = _Made(rng, who, n, at_us, is_many=n == count // 2, now_us=now_us)
        messages.append(made.row)
        counted.add(who.account_id, at_us, made.state)
        recipients += made.recipients()
        waiting += made.waiting()
        events += made.events()
        ledger.append(purses[who.account_id].book(-made.recipient_count, "debit", at_us, message_id=made.id))
        if made.state in {"failed", "expired", "cancelled"}:
            ledger.append(purses[who.account_id].book(made.recipient_count, "refund", at_us + 900, message_id=made.id))
        if large:
            _remember(found, made, n, count)
    _MESSAGE.run(conn, messages)
    _RECIPIENT.run(conn, recipients)
    _QUEUE.run(conn, waiting)
    _EVENT.run(conn, events)
    money.save(conn, purses.values(), ledger)


def _remember(found: Seeded, made: _Made, n: int, count: int) -> None:
    if made.is_many:
        found.many = made.id
    if made.state == "sent":
        found.sent, found.header_id = made.id, made.header_id
    for share in (0.01, 0.5, 0.9):
        if n / count >= share and len(found.deep) < (0.01, 0.5, 0.9).index(share) + 1:
            found.deep.append((made.at_us, made.id))


class Counted:
    """Figures for the charts of what is older than a day, as they are once the tallier has folded them."""

    def __init__(self, until_us: int) -> None:
        self._until_us = until_us - until_us % tally.HOUR_US
        self._minutes: dict[tuple[str, int], tally.Count] = {}

    def add(self, account_id: str, at_us: int, state: str) -> None:
        """Count a message."""
        minute_us = tally.minute_of(at_us)
        if minute_us < self._until_us:
            key = (account_id, minute_us)
            self._minutes.setdefault(key, tally.Count(minute_us)).add(state, 1)

    def write(self, conn: Connection, now_us: int) -> None:
        """Hours of what is final, minutes of what is not; and up to where it is counted."""
        hours: dict[tuple[str, int], tally.Count] = {}
        rows: list[Row] = []
        for (account_id, minute_us), c in self._minutes.items():
            if c.queued:
                due_us = now_us + tally.HOUR_US
                rows.append((account_id, tally.MINUTE_S, minute_us, c.sent, c.waiting, c.in_doubt, c.failed, due_us))
                continue
            hour_us = minute_us - minute_us % tally.HOUR_US
            hours.setdefault((account_id, hour_us), tally.Count(hour_us)).take(c)
        for (account_id, hour_us), c in hours.items():
            rows.append((account_id, tally.HOUR_S, hour_us, c.sent, c.waiting, c.in_doubt, c.failed, None))
        _TALLY.run(conn, rows)
        conn.execute(insert(counter).values(name=tally.CURSOR, value=self._until_us))


class _Made:
    """One message and its rows."""

    def __init__(self, rng: random.Random, who: _Account, n: int, at_us: int, *, is_many: bool, now_us: int) -> None:
        self.who, self.at_us, self.is_many = who, at_us, is_many
        self.now_us = now_us
        self.id = message_id(rng.randbytes(8), at_us)
        self.header_id = header_message_id(rng.randbytes(16), "noreply@example.com")
        self.state = "sent" if is_many else rng.choices(list(STATES), list(STATES.values()))[0]
        if self.state not in FINAL and at_us < now_us - EXPIRE_US:
            self.state = "expired"
        self.recipient_count = 100 if is_many else rng.choices((1, 2, 5), (90, 8, 2))[0]
        self.addresses = list(dict.fromkeys(self._address(rng, n) for _ in range(self.recipient_count)))
        self.recipient_count = len(self.addresses)
        self.sender = "noreply@example.com" if rng.random() < 0.7 else f"shop{rng.randrange(20)}@example.com"
        self.is_final = self.state in FINAL
        self.due_us = None if self.is_final else now_us + DAY_US + n
        self.door = "smtp" if rng.random() < 0.6 else "http"
        self.route = "sink" if self.is_final else ROUTE
        self.subject = rng.choice(SUBJECTS).format(n=n, name=rng.choice(NAMES))

    def _address(self, rng: random.Random, n: int) -> str:
        if rng.random() < 0.02:
            return COMMON
        if n % 100_000 == 99_999:
            return RARE
        # Half the mail goes to regular customers, half to people who write once.
        person = rng.randrange(30_000) if rng.random() < 0.5 else rng.randrange(10**9)
        return f"{rng.choice(NAMES)}.{person}@d{int(rng.paretovariate(0.8)) % 20_000}.example.net"

    @property
    def row(self) -> Row:
        open_count = 0 if self.is_final else self.recipient_count
        failed = self.recipient_count if self.is_final and self.state != "sent" else 0
        finished_us = self.at_us + 40_000 if self.is_final else None
        values = {
            "id": self.id,
            "account_id": self.who.account_id,
            "key_id": self.who.key[0],
            "key_name": self.who.key[1],
            "key_last_five": self.who.key[2],
            "door": self.door,
            "sender": self.sender,
            "route": self.route,
            "reverse_path": self.sender,
            "subject": self.subject,
            "header_message_id": self.header_id,
            "size": 1200,
            "smtputf8": False,
            "recipients": self.recipient_count,
            "state": self.state,
            "waiting": open_count,
            "failed": failed,
            "accepted_at_us": self.at_us,
            "expires_at_us": self.now_us + 10 * DAY_US,
            "finished_at_us": finished_us,
            "body_until_us": None,
            "answer": '{"status":"sent"}',
        }
        return tuple(values[column.name] for column in message.columns)

    def recipients(self) -> Iterator[Row]:
        state = "deferred" if self.state == "in_doubt" else self.state
        for n, address in enumerate(self.addresses):
            reply = REPLIES.get(state)
            doubts = 1 if self.state == "in_doubt" else 0
            yield (
                self.id,
                n,
                address,
                "to",
                "",
                state,
                1,
                doubts,
                self.due_us,
                reply,
                self.at_us + 40_000,
            )

    def waiting(self) -> Iterator[Row]:
        if self.due_us is None:
            return
        values = {
            "message_id": self.id,
            "destination": "",
            "account_id": self.who.account_id,
            "route": ROUTE,
            "due_at_us": self.due_us,
            "owner": None,
            "token": 1,
            "marked": False,
            "cap_key": "",
            "line_us": None,
            "accepted_at_us": self.at_us,
            "expires_at_us": self.now_us + 10 * DAY_US,
        }
        yield tuple(values[column.name] for column in queue.columns)

    def events(self) -> Iterator[Row]:
        """Both legs; the many-recipients one has as many attempts as a bad week brings."""
        whose = (self.id, self.who.account_id)
        yield (*whose, self.at_us, "accepted", EVENT.replace("AT", str(self.at_us)))
        result = {"sent": "delivered", "failed": "failed", "in_doubt": "in_doubt"}.get(self.state, "deferred")
        reply = REPLIES.get(self.state, REPLIES["deferred"])
        for n in range(40 if self.is_many else 1):
            at_us = self.at_us + 30_000 + n * 60_000_000
            text = ATTEMPT.replace("AT", str(at_us)).replace("REPLY", reply).replace("RESULT", result)
            yield (*whose, at_us, "attempt", text)


def _make_rest(conn: Connection, account_id: str, now_us: int) -> None:
    """Suppressions and an audit log of years."""
    values = {"refusals": 3, "last_reply": "550 5.1.1 no such user", "message_id": "", "account_id": account_id}
    rows = [
        {
            "address": f"gone{n}@example.net",
            "address_key": f"gone{n}@example.net",
            "refused_at_us": now_us - n * 1_000_000,
            "suppressed_until_us": now_us + 30 * DAY_US,
            "kept_until_us": now_us + 60 * DAY_US,
            **values,
        }
        for n in range(SUPPRESSED)
    ]
    conn.execute(insert(suppression), rows)
    _AUDIT.run(conn, list(_audit_rows(account_id, now_us)))


def _audit_rows(account_id: str, now_us: int) -> Iterator[Row]:
    """Behind those that are there: the chain of the account begins anew, which no page looks at."""
    head = audit.GENESIS
    for n in range(AUDITED):
        at_us = now_us - (AUDITED - n) * 60_000_000
        row = (account_id, 1000 + n, at_us, None, "benchmark", "192.0.2.1", "cli", "key.change", f"key {n}", '{"n":1}')
        head = audit.row_hash(head, row)
        yield (*row, head)


def is_tallied(settings: Settings) -> bool:
    """Whether the charts' figures are made."""

    def look(conn: Connection) -> bool:
        until_us = conn.execute(select(counter.c.value).where(counter.c.name == tally.CURSOR)).scalar_one_or_none()
        return until_us is not None and until_us > time.time_ns() // 1000 - 300_000_000

    async def run(store: Store) -> bool:
        return await store.read(look)

    return with_store(settings, run)


def server_pid(settings: Settings) -> list[int]:
    """PostgreSQL's first process, which is ours here; none with SQLite."""

    async def run(store: Store) -> list[int]:
        if store.is_sqlite:
            return []
        return [_parent_of(await store.read(lambda conn: conn.execute(text("SELECT pg_backend_pid()")).scalar_one()))]

    return with_store(settings, run)


def _parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/stat").read_text()
    return int(status[status.rindex(")") + 2 :].split()[1])


def analyse(settings: Settings) -> None:
    """What autovacuum does within the hour: figures for the planner."""

    async def run(store: Store) -> None:
        if not store.is_sqlite:
            await store.write(lambda conn: conn.execute(text("ANALYZE")).close())

    with_store(settings, run, patience_s=LOOK_S)
