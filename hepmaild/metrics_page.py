# SPDX-License-Identifier: Apache-2.0
"""The page behind `GET /metrics`: what was counted, what is now, and the process, in Prometheus' text format.

The figures are copied in Trio's thread, where nothing changes meanwhile; the text is made in a worker thread, since a
page of a few thousand lines takes milliseconds.  A page serves everybody who asks within `KEEP_S`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from hepmaild import __version__, metrics
from hepmaild.census import Census, Count
from hepmaild.metrics import Counter, Family, Histogram, Metrics
from hepmaild.storage.gauges import Entries, Recipients
from hepmaild.threads import in_thread

KEEP_S = 1.0
OPENMETRICS = "application/openmetrics-text"
_ACCEPTS = {True: f"{OPENMETRICS}; version=1.0.0", False: ""}
STATES = ("queued", "deferred", "capped", "held")


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """One route just now.  paused: next hops of it that are left alone for a moment."""

    active: int
    ready: int
    kept: int
    paused: int


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures come from that nobody counts.  connections: by door; lanes: by route."""

    connections: Callable[[], Mapping[str, int]]
    lanes: Callable[[], Mapping[str, LaneFigures]]
    store_waiting: Callable[[], int]
    backlog: Callable[[], int]
    is_draining: Callable[[], bool]


class _Copy(Collector):
    """The figures as they were at one moment, and the process as it is when they are written down."""

    def __init__(self, families: list[Metric], process: ProcessCollector) -> None:
        self._families = families
        self._process = process

    def collect(self) -> Iterable[Metric]:
        yield from self._families
        yield from self._process.collect()


class Page:
    """Makes the page.  For one thread."""

    def __init__(self, counted: Metrics, sources: Sources, census: Census) -> None:
        self._counted = counted
        self._sources = sources
        self._census = census
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._limiter = trio.CapacityLimiter(1)
        self._lock = trio.Lock()
        self._made: dict[bool, tuple[float, bytes, str]] = {}

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics for those who accept it, else the format 0.0.4.

        Cancel-safe.  Waits for the store a moment at most; a store that is down leaves its figures out.
        """
        is_open = any(each.partition(";")[0].strip() == OPENMETRICS for each in accept.split(","))
        async with self._lock:  # who waited for somebody's page gets that page
            made = self._made.get(is_open)
            if made is not None and trio.current_time() - made[0] < KEEP_S:
                return made[1], made[2]
            count = await self._census.take()
            copy = _Copy(self._families(count), self._process)
            encode, content_type = choose_encoder(_ACCEPTS[is_open])
            page = await in_thread(encode, copy, limiter=self._limiter)
            self._made[is_open] = trio.current_time(), page, content_type
            return page, content_type

    def _families(self, count: Count) -> list[Metric]:
        families = [_counter(each) for each in self._counted.counters]
        families += [_histogram(each) for each in self._counted.histograms]
        families += self._gauges()
        families.append(_gauge(metrics.STORE_UP, {(): float(count.is_up)}))
        if count.entries is not None:
            families += self._entries(count.entries, count.entries_age_s)
        if count.recipients is not None:
            families += self._recipients(count.recipients, count.recipients_age_s)
        ages: dict[tuple[str, ...], float] = {}
        if count.entries is not None:
            ages["entries",] = count.entries_age_s
        if count.recipients is not None:
            ages["recipients",] = count.recipients_age_s
        families.append(_gauge(metrics.COUNT_AGE, ages))
        return families

    def _gauges(self) -> list[Metric]:
        sources = self._sources
        lanes = sources.lanes()
        return [
            _gauge(metrics.CONNECTIONS, {(door,): n for door, n in sources.connections().items()}),
            _gauge(metrics.ACTIVE, {(route,): lane.active for route, lane in lanes.items()}),
            _gauge(metrics.READY, {(route,): lane.ready for route, lane in lanes.items()}),
            _gauge(metrics.KEPT, {(route,): lane.kept for route, lane in lanes.items()}),
            _gauge(metrics.PAUSED, {(route,): lane.paused for route, lane in lanes.items()}),
            _gauge(metrics.STORE_WAITING, {(): sources.store_waiting()}),
            _gauge(metrics.BACKLOG, {(): sources.backlog()}),
            _gauge(metrics.DRAINING, {(): float(sources.is_draining())}),
            _gauge(metrics.BUILD, {(__version__, platform.python_version()): 1}),
        ]

    def _entries(self, found: Mapping[str, Entries], age_s: float) -> list[Metric]:
        entries: dict[tuple[str, ...], float] = {}
        overdue: dict[tuple[str, ...], float] = {}
        nothing = Entries(0, 0, 0, 0.0)
        for route in {**self._sources.lanes(), **found}:
            here = found.get(route, nothing)
            entries[route, "leased"] = here.leased
            entries[route, "due"] = here.due
            entries[route, "scheduled"] = here.scheduled
            overdue[route,] = here.overdue_s + (age_s if here.due else 0)
        return [_gauge(metrics.ENTRIES, entries), _gauge(metrics.OVERDUE, overdue)]

    def _recipients(self, found: Mapping[str, Recipients], age_s: float) -> list[Metric]:
        waiting: dict[tuple[str, ...], float] = {}
        doubtful: dict[tuple[str, ...], float] = {}
        oldest: dict[tuple[str, ...], float] = {}
        nothing = Recipients()
        for route in {**self._sources.lanes(), **found}:
            here = found.get(route, nothing)
            for state in (*STATES, *(each for each in here.by_state if each not in STATES)):
                waiting[route, state] = here.by_state.get(state, 0)
            doubtful[route,] = here.in_doubt
            oldest[route,] = here.oldest_s + (age_s if here.by_state else 0)
        return [
            _gauge(metrics.RECIPIENTS, waiting),
            _gauge(metrics.DOUBTFUL, doubtful),
            _gauge(metrics.OLDEST, oldest),
        ]


def _counter(counter: Counter) -> Metric:
    family = counter.family
    made = CounterMetricFamily(family.name, family.doc, labels=family.labels)
    for labels, value in counter.cells.items():
        made.add_metric(labels, value)
    return made


def _gauge(family: Family, values: Mapping[tuple[str, ...], float]) -> Metric:
    made = GaugeMetricFamily(family.name, family.doc, labels=family.labels)
    for labels, value in values.items():
        made.add_metric(labels, value)
    return made


def _histogram(histogram: Histogram) -> Metric:
    family = histogram.family
    bounds = [*map(floatToGoString, family.buckets), "+Inf"]
    made = HistogramMetricFamily(family.name, family.doc, labels=family.labels)
    for labels, spread in histogram.cells.items():
        made.add_metric(labels, list(zip(bounds, spread.cumulative(), strict=True)), spread.total)
    return made
