# SPDX-License-Identifier: Apache-2.0
"""What the daemon counts, and the list of everything that `GET /metrics` shows.

Counting happens on the way of every message, in Trio's thread only, so it is plain numbers in plain dictionaries: a
third of what the library's own counters cost, which lock.  They become the library's families when somebody asks
(`metrics_page`).  Without a listener nobody counts: `Meter` does nothing.

Every label has few values, all ours: doors, codes, routes, results.  No address, destination, account or key is one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import trio

from hepmaild.delivery.job import Attempt, Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.events import Step, Who
from hepmaild.mail.submission import Door, Receipt
from hepmaild.own_routes import label_of

Labels = tuple[str, ...]

MAX_LABEL_SETS = 1000  # of one family; what comes after is counted as "other"
LAG_EVERY_S = 1.0
OTHER = "other"
MIXED = "mixed"  # the recipients of one attempt had different luck

# Upper bounds in seconds: what a client waits for, what a next hop takes, what the queue takes, how late the loop is.
_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TALK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
_QUEUED = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300, 900, 3600, 14_400, 86_400, 345_600)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_MEMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 200)


class Kind(StrEnum):
    """Prometheus' types, as far as we use them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.  name: as Prometheus stores it.  doc: what one sample says.  buckets: a histogram's upper bounds."""

    name: str
    kind: Kind
    doc: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, doc: str, *labels: str) -> Family:
    return Family(f"hepmaild_{name}", Kind.COUNTER, doc, labels)


def _gauge(name: str, doc: str, *labels: str) -> Family:
    return Family(f"hepmaild_{name}", Kind.GAUGE, doc, labels)


def _histogram(name: str, buckets: tuple[float, ...], doc: str, *labels: str) -> Family:
    return Family(f"hepmaild_{name}", Kind.HISTOGRAM, doc, labels, buckets)


# The doors
ACCEPTED = _counter("accepted_messages_total", "Messages that were committed and charged.", "door")
ACCEPTED_RECIPIENTS = _counter("accepted_recipients_total", "The recipients they go to, each one credit.", "door")
SUPPRESSED = _counter(
    "suppressed_recipients_total",
    "Recipients that were left out, for nothing: their destination had refused them for good.",
    "door",
)
ACCEPTED_BYTES = _counter("accepted_bytes_total", "Their size on the wire.", "door")
REPLAYED = _counter("replayed_messages_total", "Repeated calls that got the first answer again, for nothing.", "door")
REFUSED = _counter(
    "refusals_total",
    "What the intake refused at either door, by API code (`BACKLOG_FULL` and `DRAINING`, in the API `UNAVAILABLE`, are "
    "told apart).",
    "door",
    "code",
)
HTTP_RESPONSES = _counter(
    "http_responses_total",
    "Every answer to an HTTP request that could be read: its status, and the API code of an error (else empty).",
    "status",
    "code",
)
ACCEPT_SECONDS = _histogram(
    "accept_seconds",
    (*_QUICK, 30),
    "From a complete submission to its answer: `sent`, `queued` or `refused`. `sent` and most of `queued` hold the "
    "first attempt.",
    "door",
    "answer",
)
CONNECTIONS = _gauge("connections", "Connections of clients that are open.", "door")

# The store
STORE_UP = _gauge("store_up", "1: something could be committed just now; 0: the store failed, or did not answer.")
COMMIT_SECONDS = _histogram(
    "commit_seconds", _QUICK, "From handing an accepted message to the store to knowing that it is durable."
)
UNIT_SECONDS = _histogram("unit_seconds", _QUICK, "How long a unit of group commit took, from begin to durable.")
UNIT_MEMBERS = _histogram("unit_members", _MEMBERS, "How many calls, messages, marks and reports a unit committed.")
STORE_WAITING = _gauge("store_waiting", "Units of work that wait for their turn in this process.")

# Delivery
ATTEMPTS = _counter(
    "attempts_total",
    "Attempts that were recorded: `delivered`, `deferred`, `failed`, `in_doubt`, or `mixed` when the recipients of one "
    "attempt fared differently.",
    "route",
    "result",
)
RECIPIENT_RESULTS = _counter(
    "recipient_results_total",
    "What attempts meant for their recipients: `delivered`, `deferred`, `failed`, `in_doubt`.",
    "route",
    "result",
)
EXPIRED = _counter("expired_recipients_total", "Recipients that waited too long, were given up and refunded.")
TAKEN_OVER = _counter("taken_over_leases_total", "Leases of dead processes that this one took back.")
ATTEMPT_SECONDS = _histogram("attempt_seconds", _TALK, "How long an attempt took, without its report.", "route")
DOT_SECONDS = _histogram("dot_seconds", _TALK, "From the final dot to its answer, or to giving up on one.", "route")
DELIVERY_SECONDS = _histogram(
    "delivery_seconds", _QUEUED, "From the acceptance of a message to an attempt that delivered some of it.", "route"
)
ACTIVE = _gauge("attempts_active", "Attempts under way.", "route")
READY = _gauge("ready_messages", "Leased messages that stand ready in memory for an attempt.", "route")
KEPT = _gauge("kept_connections", "Idle connections to next hops, kept for the next message.", "route")
PAUSED = _gauge("paused_groups", "Next hops that are left alone for a moment, since they gave trouble.", "route")

# The queue
ENTRIES = _gauge(
    "queue_entries",
    "Messages that wait, once for each destination: `leased` (being worked on), `due`, `scheduled` (later).",
    "route",
    "state",
)
OVERDUE = _gauge("queue_overdue_seconds", "For how long the most overdue entry has been due; 0: nothing is.", "route")
RECIPIENTS = _gauge(
    "queue_recipients", "Recipients that wait: `queued`, `deferred`, `capped`, `held`.", "route", "state"
)
DOUBTFUL = _gauge(
    "queue_in_doubt_recipients", "Recipients that wait although an attempt may have delivered to them.", "route"
)
OLDEST = _gauge("queue_oldest_seconds", "How long ago the oldest message that still waits was accepted.", "route")
COUNT_AGE = _gauge(
    "queue_count_age_seconds", "How old the figures about the queue are: `entries` or `recipients`.", "count"
)
BACKLOG = _gauge("backlog_messages", "Messages that wait as far as this process knows: `limits.backlog` bounds it.")

# The process
LAG = _histogram("loop_lag_seconds", _LAG, "How late the event loop wakes a task that slept for a second.")
DRAINING = _gauge("draining", "1 once the daemon was told to stop.")
BUILD = _gauge("build_info", "Always 1; which version runs on which Python.", "version", "python")

SECTIONS: dict[str, tuple[Family, ...]] = {
    "The doors": (
        ACCEPTED,
        ACCEPTED_RECIPIENTS,
        SUPPRESSED,
        ACCEPTED_BYTES,
        REPLAYED,
        REFUSED,
        HTTP_RESPONSES,
        ACCEPT_SECONDS,
        CONNECTIONS,
    ),
    "The store": (STORE_UP, STORE_WAITING, COMMIT_SECONDS, UNIT_SECONDS, UNIT_MEMBERS),
    "Delivery": (
        ATTEMPTS,
        RECIPIENT_RESULTS,
        ATTEMPT_SECONDS,
        DOT_SECONDS,
        DELIVERY_SECONDS,
        EXPIRED,
        TAKEN_OVER,
        ACTIVE,
        READY,
        KEPT,
        PAUSED,
    ),
    "The queue": (ENTRIES, OVERDUE, RECIPIENTS, DOUBTFUL, OLDEST, COUNT_AGE, BACKLOG),
    "The process": (LAG, DRAINING, BUILD),
}


class Counter:
    """Numbers that only grow, by label values."""

    __slots__ = ("cells", "family")

    def __init__(self, family: Family) -> None:
        self.family = family
        self.cells: dict[Labels, int] = {}

    def add(self, labels: Labels = (), count: int = 1) -> None:
        """Count."""
        try:
            self.cells[labels] += count
        except KeyError:
            labels = _bounded(self.cells, labels)
            self.cells[labels] = self.cells.get(labels, 0) + count


class Spread:
    """How many observations fell below each bound, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.total = 0.0

    def cumulative(self) -> list[int]:
        """As Prometheus has it: at most this bound, for each bound and infinity."""
        sums, sum_so_far = [], 0
        for count in self.counts:
            sum_so_far += count
            sums.append(sum_so_far)
        return sums


class Histogram:
    """Observations, by label values."""

    __slots__ = ("_bounds", "cells", "family")

    def __init__(self, family: Family) -> None:
        self.family = family
        self._bounds = family.buckets
        self.cells: dict[Labels, Spread] = {}

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count one observation."""
        spread = self.cells.get(labels)
        if spread is None:
            labels = _bounded(self.cells, labels)
            spread = self.cells.setdefault(labels, Spread(len(self._bounds)))
        spread.counts[bisect_left(self._bounds, value)] += 1
        spread.total += value


def _bounded(cells: dict[Labels, int] | dict[Labels, Spread], labels: Labels) -> Labels:
    return labels if len(cells) < MAX_LABEL_SETS else (OTHER,) * len(labels)


class Meter:
    """Where things happen that somebody may want to count.  This one does nothing.

    No method may raise, wait or keep what it is given.
    """

    def accepted(self, door: Door, recipients: int, octets: int, commit_s: float, suppressed: int = 0) -> None:
        """A message was committed; handing it to the store took `commit_s` seconds.

        recipients: those it goes to; suppressed: those it does not.
        """

    def left_out(self, door: Door, suppressed: int) -> None:
        """All recipients of a message were suppressed: it was not accepted."""

    def answered(self, door: Door, answer: Receipt | Refusal, seconds: float) -> None:
        """A submission got its answer.  (The refusal itself is told by `refused`.)"""

    def refused(self, door: Door, kind: ErrorKind) -> None:
        """The intake refused something, or the store did not answer (UNAVAILABLE)."""

    def responded(self, status: int, code: str) -> None:
        """An HTTP answer.  code: the API code of an error, or empty."""

    def unit(self, members: int, seconds: float) -> None:
        """A unit of group commit is durable."""

    def reported(self, attempt: Attempt) -> None:
        """An attempt was recorded."""

    def expired(self, recipients: int) -> None:
        """So many were given up."""

    def taken_over(self, leases: int) -> None:
        """So many leases of dead processes were taken back."""

    def lagged(self, seconds: float) -> None:
        """The event loop was so late."""


class Metrics(Meter):
    """Counts.  For one thread; `counters` and `histograms` are what there is to show."""

    def __init__(self) -> None:
        self.counters: list[Counter] = []
        self.histograms: list[Histogram] = []
        self._accepted = self._new_counter(ACCEPTED)
        self._recipients = self._new_counter(ACCEPTED_RECIPIENTS)
        self._suppressed = self._new_counter(SUPPRESSED)
        self._octets = self._new_counter(ACCEPTED_BYTES)
        self._replayed = self._new_counter(REPLAYED)
        self._refused = self._new_counter(REFUSED)
        self._responses = self._new_counter(HTTP_RESPONSES)
        self._accept_seconds = self._new_histogram(ACCEPT_SECONDS)
        self._commit_seconds = self._new_histogram(COMMIT_SECONDS)
        self._unit_seconds = self._new_histogram(UNIT_SECONDS)
        self._unit_members = self._new_histogram(UNIT_MEMBERS)
        self._attempts = self._new_counter(ATTEMPTS)
        self._results = self._new_counter(RECIPIENT_RESULTS)
        self._expired = self._new_counter(EXPIRED)
        self._taken_over = self._new_counter(TAKEN_OVER)
        self._attempt_seconds = self._new_histogram(ATTEMPT_SECONDS)
        self._dot_seconds = self._new_histogram(DOT_SECONDS)
        self._delivery_seconds = self._new_histogram(DELIVERY_SECONDS)
        self._lag = self._new_histogram(LAG)
        # A series that begins at 0 shows its first step: `rate` misses that of one which begins at 1.
        for door in Door:
            for counter in (self._accepted, self._recipients, self._suppressed, self._octets, self._replayed):
                counter.add((door.value,), 0)
        self._expired.add((), 0)
        self._taken_over.add((), 0)

    def _new_counter(self, family: Family) -> Counter:
        counter = Counter(family)
        self.counters.append(counter)
        return counter

    def _new_histogram(self, family: Family) -> Histogram:
        histogram = Histogram(family)
        self.histograms.append(histogram)
        return histogram

    def know_routes(self, routes: Iterable[str]) -> None:
        """Show these routes' counters from the beginning, at 0."""
        for route in routes:
            for result in Result:
                self._results.add((route, result.value), 0)
                self._attempts.add((route, result.value), 0)

    def accepted(self, door: Door, recipients: int, octets: int, commit_s: float, suppressed: int = 0) -> None:
        """See Meter."""
        labels = (door.value,)
        self._accepted.add(labels)
        self._recipients.add(labels, recipients)
        if suppressed:
            self._suppressed.add(labels, suppressed)
        self._octets.add(labels, octets)
        self._commit_seconds.observe(commit_s)

    def left_out(self, door: Door, suppressed: int) -> None:
        """See Meter."""
        self._suppressed.add((door.value,), suppressed)

    def answered(self, door: Door, answer: Receipt | Refusal, seconds: float) -> None:
        """See Meter."""
        if isinstance(answer, Refusal):
            said = "refused"
        else:
            said = answer.status.value
            if answer.replayed:
                self._replayed.add((door.value,))
        self._accept_seconds.observe(seconds, (door.value, said))

    def refused(self, door: Door, kind: ErrorKind) -> None:
        """See Meter."""
        self._refused.add((door.value, kind.name))

    def responded(self, status: int, code: str) -> None:
        """See Meter."""
        self._responses.add((str(status), code))

    def unit(self, members: int, seconds: float) -> None:
        """See Meter."""
        self._unit_seconds.observe(seconds)
        self._unit_members.observe(members)

    def reported(self, attempt: Attempt) -> None:
        """See Meter."""
        job = attempt.job
        route = label_of(job.route)
        labels = (route,)
        outcomes = attempt.outcomes
        common = outcomes[0].result.value if outcomes else MIXED
        delivered = False
        for outcome in outcomes:
            result = outcome.result.value
            self._results.add((route, result))
            delivered = delivered or outcome.result is Result.DELIVERED
            if result != common:
                common = MIXED
        self._attempts.add((route, common))
        self._attempt_seconds.observe(max(0, attempt.ended_at_us - attempt.started_at_us) / 1e6, labels)
        if delivered:
            self._delivery_seconds.observe(max(0, attempt.ended_at_us - job.accepted_at_us) / 1e6, labels)
        dot_us = dot_wait_us(attempt.steps, attempt.ended_at_us)
        if dot_us is not None:
            self._dot_seconds.observe(dot_us / 1e6, labels)

    def expired(self, recipients: int) -> None:
        """See Meter."""
        self._expired.add((), recipients)

    def taken_over(self, leases: int) -> None:
        """See Meter."""
        self._taken_over.add((), leases)

    def lagged(self, seconds: float) -> None:
        """See Meter."""
        self._lag.observe(seconds)


def dot_wait_us(steps: Sequence[Step], ended_at_us: int) -> int | None:
    """How long the answer to the final dot took, in microseconds; None: no dot was sent.

    Without an answer it took until the attempt's end.
    """
    answered_at_us = ended_at_us
    for step in reversed(steps):
        if step.who is Who.PEER:
            answered_at_us = step.at_us
        elif step.who is Who.US and step.text == ".":
            return max(0, answered_at_us - step.at_us)
    return None


async def watch_loop(meter: Meter) -> None:
    """Measure, once a second, how late the event loop wakes us.  Until cancelled."""
    while True:
        wanted = trio.current_time() + LAG_EVERY_S
        await trio.sleep_until(wanted)
        meter.lagged(max(0.0, trio.current_time() - wanted))
