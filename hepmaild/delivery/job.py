# SPDX-License-Identifier: Apache-2.0
"""The work of the delivery engine as data, and what it asks of the store.

The engine never sees a database: it claims `Job`s, reports `Outcome`s, and the `Queue` it was given makes both durable.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from hepmaild.events import Step
from hepmaild.mail.content import Content
from hepmaild.mail.reply import Reply


class Result(StrEnum):
    """What became of one recipient in one attempt."""

    DELIVERED = "delivered"  # the next hop took responsibility
    DEFERRED = "deferred"  # tried in vain, or not at all; certainly not delivered
    FAILED = "failed"  # refused for good
    IN_DOUBT = "in_doubt"  # the dot went out and no reply came back: it may be delivered


@dataclass(frozen=True, slots=True)
class JobRecipient:
    """A recipient that is due.  recipient_id: the store's; attempts: how many were made before this one."""

    recipient_id: int
    address: str
    attempts: int = 0


@dataclass(slots=True)  # not frozen: its many fields would cost five times as much to set
class Job:
    """One message with those of its recipients that are due on one route and go to one destination.

    destination: a domain (lower case, A-labels) on routes of kind `mx`, "" on those with one next hop.
    token: the fencing token of the lease; a report made with an older one is refused by the store.
    content: at hand after the intake's hand-over; None: ask `Queue.load`.  reverse_path: "" for the null path.
    """

    message_id: str
    account_id: str
    route: str
    reverse_path: str
    recipients: tuple[JobRecipient, ...]
    token: int
    size: int
    smtputf8: bool
    accepted_at_us: int
    expires_at_us: int
    content: Content | None = None
    destination: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt meant for one recipient.

    retry_at_us: with DEFERRED and IN_DOUBT, when to try again; None with IN_DOUBT: hold it until somebody decides.
    """

    recipient_id: int
    result: Result
    reply: Reply | None
    retry_at_us: int | None = None


@dataclass(slots=True)  # not frozen: its many fields would cost five times as much to set
class Attempt:
    """The record of one attempt.

    host: `name[address]:port` of the next hop, or "" if none was reached.  tls_level: what its TLS was worth, a
    `hops.TlsLevel`; "" without a connection.
    """

    job: Job
    started_at_us: int
    ended_at_us: int
    host: str
    tls_version: str
    tls_cipher: str
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]
    tls_level: str = ""


class Claim(NamedTuple):
    """What a claim brought.

    due_at_us: when the next claim with the same arguments has something to do; None: nothing waits.  That is the
    earliest due time of what is neither excluded, full nor paused; the earliest expiry of anything; or the end of a
    dead process's lease.  It says nothing when there are as many jobs as were asked for: claim again.
    """

    jobs: Sequence[Job]
    due_at_us: int | None = None


class Queue(Protocol):
    """What the engine needs from the store.  Every method raises `StoreUnavailable` when the store does not answer.

    A lease is one destination of one message: `mark_in_doubt`, `report`, `release` and `forsake` mean the row of
    (`job.message_id`, `job.destination`), and are refused when `job.token` is not the newest one.
    """

    async def claim(
        self,
        limit: int,
        *,
        exclude: Collection[str] = (),
        full: Collection[tuple[str, str]] = (),
        most_of: Mapping[str, int] | None = None,
        patient: bool = False,
    ) -> Claim:
        """Lease up to `limit` due jobs to this process: of every destination some, of each the oldest due first.

        exclude: routes that have no room (or are down); full: such destinations, as (route, destination).  Neither
        these nor what somebody paused is leased, and their backlog does not stand before the others'.  most_of: of each
        of these routes so many at most.  patient: what is due may wait some milliseconds, for a moment in which nobody
        else needs the store.
        """

    async def load(self, job: Job) -> Content:
        """The content of a claimed job.  LookupError: it is not kept any more.  `SpoolUnavailable`: no room for it."""

    async def mark_in_doubt(self, job: Job) -> bool:
        """Durably note that the final dot is about to leave.

        False: the lease is lost, the dot must not leave.  `release` and `report` take the mark away again.
        """

    async def report(self, attempt: Attempt) -> bool:
        """Durably record an attempt: states, refunds, events.  False: the lease was lost and nothing was written."""

    async def release(self, *jobs: Job) -> None:
        """Give claimed jobs back untried (drain, no worker), in one unit: due again at once."""

    async def put_off(self, job: Job, until_us: int, why: str) -> None:
        """Give a claimed job back untried: due again then, at its expiry at the latest.  `why` is shown with it."""

    def forsake(self, job: Job) -> None:
        """Nobody works on this claimed job any more, and the store could not be told how it ended.

        Remembered, and settled before the next claim: due again, in doubt if it was marked.  (The lease itself is the
        process's, and does not end while the process lives.)
        """
