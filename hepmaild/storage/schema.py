# SPDX-License-Identifier: Apache-2.0
"""The tables, once, for both engines.

Instants are Unix microseconds (`…_us`).  JSON is text.  The tables that every message passes through carry no foreign
keys: their rows are only ever written together, by one unit, and a check per row would cost more than the insert.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    func,
    text,
)

from hepmaild.storage import schema_base
from hepmaild.storage import schema_own_smtp as _own_smtp  # noqa: F401  # its table belongs to the same metadata
from hepmaild.storage import schema_people as _people  # noqa: F401  # and so do these
from hepmaild.storage import schema_templates as _templates  # noqa: F401
from hepmaild.storage.schema_base import BigId

metadata = schema_base.metadata

# Small named numbers.  `generation` grows with every change of a key, account or sender: what a process has cached
# of those is good as long as it has not moved.
counter = Table(
    "counter",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

account = Table(
    "account",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("email", Text, nullable=False),
    Column("email_key", Text, nullable=False, unique=True),
    Column("plan", String(100), nullable=False),
    Column("status", String(20), nullable=False),  # active, suspended
    Column("balance", BigInteger, nullable=False),
    Column("ledger_seq", BigInteger, nullable=False),  # the newest ledger row's seq, 0 when there is none
    Column("ledger_head", String(64), nullable=False),  # and its hash
    Column("day", Integer, nullable=False),  # UTC date as days since 1970-01-01
    Column("day_messages", Integer, nullable=False),  # accepted on that day
    Column("created_at_us", BigInteger, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", String(36), ForeignKey("account.id"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("secret_hash", LargeBinary(32), nullable=False, unique=True),
    Column("last_five", String(5), nullable=False),
    Column("status", String(20), nullable=False),  # active, disabled, deleted
    Column("permissions", Text, nullable=True),  # JSON list; null: all
    Column("senders", Text, nullable=True),  # JSON list of address keys; null: all the account's
    Column("addresses", Text, nullable=True),  # JSON list of networks; null: from anywhere
    Column("expires_at_us", BigInteger, nullable=True),
    Column("chaos", String(20), nullable=True),  # how its sandbox misbehaves (`mail.chaos`); null: an ordinary key
    Column("created_at_us", BigInteger, nullable=False),
    Column("last_used_at_us", BigInteger, nullable=True),
    Column("last_used_ip", String(45), nullable=True),
    Column("last_used_door", String(10), nullable=True),
)
Index("ix_api_key_account_id", api_key.c.account_id)
Index(
    "uq_api_key_account_id_name",
    api_key.c.account_id,
    api_key.c.name,
    unique=True,
    sqlite_where=text("status <> 'deleted'"),
    postgresql_where=text("status <> 'deleted'"),
)

sender = Table(
    "sender",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("account_id", String(36), nullable=False),  # "" for a global sender
    Column("address", Text, nullable=False),
    Column("address_key", Text, nullable=False),
    Column("route", String(100), nullable=False),
    Column("daily_cap", Integer, nullable=False),
    Column("is_default", Boolean, nullable=False),
)
Index("uq_sender_account_id_address_key", sender.c.account_id, sender.c.address_key, unique=True)

# The sliding window of each key: one row for all calls let through at one instant.  `total` counts a key's calls up
# to and with this row, so that any window is two index look-ups, however many calls it holds.
rate_call = Table(
    "rate_call",
    metadata,
    Column("key_id", String(36), primary_key=True),
    Column("at_us", BigInteger, primary_key=True),
    Column("calls", Integer, nullable=False),
    Column("total", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

ledger = Table(
    "ledger",
    metadata,
    Column("account_id", String(36), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("reason", String(20), nullable=False),  # grant, debit, refund
    Column("message_id", String(16), nullable=True),
    Column("granted_by", Text, nullable=True),
    Column("note", Text, nullable=True),
    Column("at_us", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_ledger_message_id", ledger.c.message_id)
# For people who look through grants or refunds: without it they would wade through all debits.
NO_DEBIT = text("reason <> 'debit'")
Index(
    "ix_ledger_account_id_reason_seq",
    ledger.c.account_id,
    ledger.c.reason,
    ledger.c.seq,
    sqlite_where=NO_DEBIT,
    postgresql_where=NO_DEBIT,
)

message = Table(
    "message",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("account_id", String(36), nullable=False),
    Column("key_id", String(36), nullable=False),
    Column("key_name", String(100), nullable=False),
    Column("key_last_five", String(5), nullable=False),
    Column("door", String(10), nullable=False),
    Column("sender", Text, nullable=False),
    Column("route", String(100), nullable=False),
    Column("reverse_path", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("header_message_id", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("smtputf8", Boolean, nullable=False),
    Column("recipients", Integer, nullable=False),
    Column("state", String(20), nullable=False),  # the worst of its recipients' states, for lists
    Column("waiting", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("accepted_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("finished_at_us", BigInteger, nullable=True),
    Column("body_until_us", BigInteger, nullable=True),  # when the kept content of a finished message goes
    Column("answer", Text, nullable=True),  # JSON: what the caller was told
)
Index("ix_message_account_id_accepted_at_us", message.c.account_id, message.c.accepted_at_us, message.c.id)
Index("ix_message_accepted_at_us", message.c.accepted_at_us)
Index(
    "ix_message_body_until_us",
    message.c.body_until_us,
    sqlite_where=message.c.body_until_us.is_not(None),
    postgresql_where=message.c.body_until_us.is_not(None),
)

# What went wrong or waits for long: few, and looked for by people.  What is sent at once is never in it.
TROUBLED = text("state NOT IN ('queued', 'sent')")
Index(
    "ix_message_account_id_state_accepted_at_us",
    message.c.account_id,
    message.c.state,
    message.c.accepted_at_us,
    message.c.id,
    sqlite_where=TROUBLED,
    postgresql_where=TROUBLED,
)

recipient = Table(
    "recipient",
    metadata,
    Column("message_id", String(16), primary_key=True),
    Column("n", Integer, primary_key=True),  # its place in the message, from 0
    Column("address", Text, nullable=False),
    Column("kind", String(5), nullable=False),  # to, cc, bcc
    Column("destination", Text, nullable=False),  # which queue row it waits in
    # Waiting: queued, deferred, capped (a daily cap), held (until somebody releases it).  Final: sent, failed, expired,
    # cancelled.  One that is held is due at its expiry.
    Column("state", String(20), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("doubts", Integer, nullable=False),  # attempts whose final dot got no answer
    Column("due_at_us", BigInteger, nullable=True),  # null once final
    Column("last_reply", Text, nullable=True),
    Column("changed_at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# For people who look for an address.  Not by account: it would cost every message more than it saves a search.
Index("ix_recipient_lower_address", func.lower(recipient.c.address))

# How many messages of an account were accepted in a minute (span_s 60) or, once all of them are final and a day old,
# in an hour (3600), and what became of them.  Made from `message` by `tally`, for charts; no message waits for it.
tally = Table(
    "tally",
    metadata,
    Column("account_id", String(36), primary_key=True),
    Column("span_s", Integer, primary_key=True),
    Column("at_us", BigInteger, primary_key=True),  # where the minute or hour begins
    Column("sent", Integer, nullable=False),
    Column("waiting", Integer, nullable=False),  # those in doubt not among them
    Column("in_doubt", Integer, nullable=False),
    Column("failed", Integer, nullable=False),  # one recipient at least; expired and cancelled ones too
    Column("recount_at_us", BigInteger, nullable=True),  # when to look again; null: all are final
    sqlite_with_rowid=False,
)
Index("ix_tally_span_s_at_us", tally.c.span_s, tally.c.at_us)
Index(
    "ix_tally_recount_at_us",
    tally.c.recount_at_us,
    sqlite_where=tally.c.recount_at_us.is_not(None),
    postgresql_where=tally.c.recount_at_us.is_not(None),
)

# What waits.  One row for the recipients of a message that share a destination (a domain on routes of kind "mx", ""
# on routes with one next hop), for as long as one of them is not final.  A leased row has an owner and is due at
# NEVER_US plus the time of the lease: so it is known which recipients the attempt is for (those due by then).
NEVER_US = 2**62
queue = Table(
    "queue",
    metadata,
    Column("message_id", String(16), primary_key=True),
    Column("destination", Text, primary_key=True),
    Column("account_id", String(36), nullable=False),
    Column("route", String(100), nullable=False),
    Column("due_at_us", BigInteger, nullable=False),
    Column("owner", String(40), nullable=True),  # the process that holds the lease
    Column("token", BigInteger, nullable=False),  # fencing: grows with every lease
    Column("marked", Boolean, nullable=False),  # the final dot of the leased attempt may have left
    Column("cap_key", Text, nullable=False),  # whose daily cap it counts against (`cap_use`); "": none
    # Its place in the line behind that cap: when the message was accepted.  Null: it is not in the line.  One that is
    # stands there until `caps.let_go` takes it out, and is due at its expiry.
    Column("line_us", BigInteger, nullable=True),
    Column("accepted_at_us", BigInteger, nullable=False),  # the message's, which never change
    Column("expires_at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
# The claim goes from destination to destination, so that a backlog of one never stands before another.
Index("ix_queue_route_destination_due_at_us", queue.c.route, queue.c.destination, queue.c.due_at_us)
# What nobody works on, in the order of its due time and of its expiry.  A message that is leased when it is accepted,
# and delivered then, is never in these.
Index(
    "ix_queue_route_due_at_us",
    queue.c.route,
    queue.c.due_at_us,
    sqlite_where=queue.c.owner.is_(None),
    postgresql_where=queue.c.owner.is_(None),
)
Index(
    "ix_queue_expires_at_us",
    queue.c.expires_at_us,
    sqlite_where=queue.c.owner.is_(None),
    postgresql_where=queue.c.owner.is_(None),
)
Index(
    "ix_queue_cap_key_line_us",
    queue.c.cap_key,
    queue.c.line_us,
    sqlite_where=queue.c.line_us.is_not(None),
    postgresql_where=queue.c.line_us.is_not(None),
)
Index(
    "ix_queue_owner",
    queue.c.owner,
    sqlite_where=queue.c.owner.is_not(None),
    postgresql_where=queue.c.owner.is_not(None),
)

# A sender with a daily cap: the row that is locked while somebody looks whether the window has room.
cap = Table(
    "cap",
    metadata,
    Column("cap_key", Text, primary_key=True),  # account id (or "" for a global sender), "|", address key
    Column("daily_cap", Integer, nullable=False),  # 0: none any more
    Column("next_us", BigInteger, nullable=True),  # when the first in its line may go; null: nobody waits
)
Index(
    "ix_cap_next_us",
    cap.c.next_us,
    sqlite_where=cap.c.next_us.is_not(None),
    postgresql_where=cap.c.next_us.is_not(None),
)

# The rolling 24 hours of each of them: when each of its messages last went out (or is about to).
cap_use = Table(
    "cap_use",
    metadata,
    Column("cap_key", Text, primary_key=True),
    Column("message_id", String(16), primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_cap_use_cap_key_at_us", cap_use.c.cap_key, cap_use.c.at_us)
Index("ix_cap_use_at_us", cap_use.c.at_us)

# What nobody is to work on until somebody resumes it: a whole route (destination "") or one destination of it.
pause = Table(
    "pause",
    metadata,
    Column("route", String(100), primary_key=True),
    Column("destination", Text, primary_key=True),
    Column("since_us", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Addresses that a destination refused for good (5.1.1 and its like).  Suppressed until then; null: counted only.
suppression = Table(
    "suppression",
    metadata,
    Column("account_id", String(36), primary_key=True),
    Column("address_key", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("refusals", Integer, nullable=False),
    Column("refused_at_us", BigInteger, nullable=False),
    Column("suppressed_until_us", BigInteger, nullable=True),
    Column("last_reply", Text, nullable=False),
    Column("message_id", String(16), nullable=False),  # the last one that was refused; "": an operator's word
    Column("kept_until_us", BigInteger, nullable=False),  # then the row is forgotten
    sqlite_with_rowid=False,
)
Index("ix_suppression_kept_until_us", suppression.c.kept_until_us)
Index(
    "ix_suppression_account_id",
    suppression.c.account_id,
    suppression.c.refused_at_us,
    suppression.c.address_key,
    sqlite_where=suppression.c.suppressed_until_us.is_not(None),
    postgresql_where=suppression.c.suppressed_until_us.is_not(None),
)

# Keys that sign mail of a domain.  The private one is sealed (`vault`), bound to its row.
dkim_key = Table(
    "dkim_key",
    metadata,
    Column("domain", String(255), primary_key=True),
    Column("selector", String(63), primary_key=True),
    Column("algorithm", String(20), nullable=False),  # rsa-sha256, ed25519-sha256
    Column("sealed_key", LargeBinary, nullable=False),
    Column("public_key", Text, nullable=False),  # the value of p= in DNS
    Column("state", String(20), nullable=False),  # pending (DNS does not show it yet), active, retired
    Column("created_at_us", BigInteger, nullable=False),
    Column("checked_at_us", BigInteger, nullable=True),
    Column("changed_at_us", BigInteger, nullable=False),
)

# MTA-STS policies of destinations (RFC 8461 §3.3), so that a restart does not forget that TLS must be good.
sts_policy = Table(
    "sts_policy",
    metadata,
    Column("domain", String(255), primary_key=True),
    Column("policy_id", String(32), nullable=False),
    Column("policy", Text, nullable=False),
    Column("fetched_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
)

# A process that holds leases is alive until then; past it, its work is taken over (several processes only).
process = Table(
    "process",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("alive_until_us", BigInteger, nullable=False),
)

# Message content, in pieces.
body = Table(
    "body",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("message_id", String(16), nullable=False, index=True),
    Column("n", Integer, nullable=False),
    Column("at_us", BigInteger, nullable=False),  # pieces of a message that was never committed are swept by age
    Column("data", LargeBinary, nullable=False),
)

# Words of callers (24 hours) and fingerprints of SMTP submissions (replay window).
idempotency = Table(
    "idempotency",
    metadata,
    Column("word", Text, primary_key=True),
    Column("key_id", String(36), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("message_id", String(16), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index("ix_idempotency_at_us", idempotency.c.at_us)
Index("ix_idempotency_message_id", idempotency.c.message_id)

event = Table(
    "event",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("message_id", String(16), nullable=False, index=True),
    Column("account_id", String(36), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("data", Text, nullable=False),  # JSON
    sqlite_autoincrement=True,
)
