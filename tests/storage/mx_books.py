# SPDX-License-Identifier: Apache-2.0
"""Messages with several destinations, their jobs and reports; and a queue that is filled without accepting."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select, text

from hepmaild.delivery.job import Attempt, Job, JobRecipient, Outcome, Result
from hepmaild.mail.reply import Reply
from hepmaild.storage import claim, schema
from hepmaild.storage.accept import Accept
from hepmaild.storage.unit import Report
from tests.storage.books import HOUR_US, Books
from tests.storage.check_books import FILLED

WAITS = (Result.DEFERRED, Result.IN_DOUBT)


def mx_accept(books: Books, *addresses: str, **changes: Any) -> Accept:
    """A member whose recipients go to the domains of their addresses."""
    wheres = tuple(address.rpartition("@")[2] for address in addresses)
    return books.accept(*addresses, route=changes.pop("route", "mx"), destinations=wheres, **changes)


def job_of(member: Accept, destination: str, token: int = 1) -> Job:
    """The job that was leased when the message was accepted."""
    wheres = member.destinations or ("",) * len(member.recipients)
    return Job(
        member.message_id,
        member.account_id,
        member.route,
        member.reverse_path,
        tuple(JobRecipient(n, r.address) for n, r in enumerate(member.recipients) if wheres[n] == destination),
        token,
        member.size,
        member.smtputf8,
        member.at_us,
        member.expires_at_us,
        destination=destination,
    )


def report_on(
    job: Job, now_us: int, *results: Result, due_us: int | None = None, hold: bool = False, spread_us: int = 0
) -> Report:
    """What became of a job: one result for each recipient, or one for all.  hold: doubt is not retried.  spread_us:
    between the due times of two recipients."""
    every = results if len(results) == len(job.recipients) else results * len(job.recipients)
    outcomes = tuple(
        Outcome(
            r.recipient_id,
            result,
            Reply(250, "2.0.0", "said"),
            (due_us or now_us + HOUR_US) + n * spread_us
            if result in WAITS and not (hold and result is Result.IN_DOUBT)
            else None,
        )
        for n, (r, result) in enumerate(zip(job.recipients, every, strict=True))
    )
    attempt = Attempt(job, now_us, now_us, "next.example[192.0.2.1]:25", "", "", (), outcomes)
    return Report(attempt, job.destination, job.account_id, "{}", 0)


async def claimed(books: Books, most: int = 100, owner: str = "me", **arguments: Any) -> list[Job]:
    """The jobs of one claim."""
    found = await books.store.write(claim.claim, owner, books.clock.us, most, 0, **arguments)
    return found.jobs


def fill(conn: Connection, route: str, waiting: dict[str, int], now_us: int, due_us: int | None = None) -> None:
    """So many messages with one recipient each for each destination, accepted and due a while ago."""
    messages, recipients, rows = [], [], []
    start = conn.execute(select(schema.message.c.id).order_by(schema.message.c.id.desc()).limit(1)).scalar()
    number = 1 + (int(start, 16) if start else 0)
    for destination, count in waiting.items():
        for n in range(count):
            message_id, at_us = f"{number:016x}", now_us - HOUR_US
            due = now_us - 1000 * (count - n) if due_us is None else due_us
            number += 1
            messages.append(
                {
                    "id": message_id,
                    "account_id": "account-1",
                    "key_id": "key-1",
                    "key_name": "app",
                    "key_last_five": "",
                    "door": "smtp",
                    "sender": "app@example.com",
                    "route": route,
                    "reverse_path": "app@example.com",
                    "subject": "",
                    "header_message_id": FILLED,
                    "size": 5,
                    "smtputf8": False,
                    "recipients": 1,
                    "state": "queued",
                    "waiting": 1,
                    "failed": 0,
                    "accepted_at_us": at_us,
                    "expires_at_us": now_us + 96 * HOUR_US,
                }
            )
            recipients.append(
                {
                    "message_id": message_id,
                    "n": 0,
                    "address": f"u{n}@{destination or 'one.example'}",
                    "kind": "to",
                    "destination": destination,
                    "state": "queued",
                    "attempts": 0,
                    "doubts": 0,
                    "due_at_us": due,
                    "last_reply": None,
                    "changed_at_us": at_us,
                }
            )
            rows.append(
                {
                    "message_id": message_id,
                    "destination": destination,
                    "account_id": "account-1",
                    "route": route,
                    "due_at_us": due,
                    "owner": None,
                    "token": 1,
                    "marked": False,
                    "cap_key": "",
                    "accepted_at_us": at_us,
                    "expires_at_us": now_us + 96 * HOUR_US,
                }
            )
    for table, values in ((schema.message, messages), (schema.recipient, recipients), (schema.queue, rows)):
        if values:
            conn.execute(insert(table), values)


def entries_read(conn: Connection, table: str = "queue") -> int:
    """Rows of a table and entries of its indexes that this unit has read; on PostgreSQL, SQLite counts none."""
    if conn.dialect.name == "sqlite":
        return 0
    read = "pg_stat_get_xact_tuples_returned"
    both = f"SELECT {read}('{table}'::regclass) + coalesce(sum({read}(indexrelid)), 0) FROM pg_index"
    return int(conn.execute(text(f"{both} WHERE indrelid = '{table}'::regclass")).scalar_one())
