# SPDX-License-Identifier: Apache-2.0
"""The overview's chart: which columns there are, how high they stand, what their axis says.  Pure.

Columns are of the server's making in UTC: minutes, hours or UTC days.  Templates draw them as SVG; the same figures
stand in a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from hepmaild.config import DAY_US
from hepmaild.storage.tally import HOUR_US, MINUTE_US, Count

TICKS = 4  # intervals of the axis


@dataclass(frozen=True, slots=True)
class View:
    """One of the chart's tabs.  form: of the times below it; every: how many columns apart those are."""

    name: str
    title: str
    column: str
    width_us: int
    columns: int
    form: str
    every: int

    def from_us(self, now_us: int) -> int:
        """Where the first column begins."""
        return now_us - now_us % self.width_us - (self.columns - 1) * self.width_us


VIEWS = {
    "hour": View("hour", "Last hour", "minute", MINUTE_US, 60, "%H:%M", 15),
    "day": View("day", "Last day", "hour", HOUR_US, 24, "%H:%M", 6),
    "month": View("month", "Last 30 days", "day", DAY_US, 30, "%d %b", 6),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a column, in parts of 1,000 of the chart's height, from above."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """One column.  at: when it begins, for people, UTC; iso: for scripts; label: below it, or ""."""

    count: Count
    at: str
    iso: str
    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """All of it.  axis: the figures at its lines, from above."""

    view: View
    columns: tuple[Column, ...]
    axis: tuple[int, ...]
    total: Count


def make_chart(view: View, parts: Iterable[Count], now_us: int) -> Chart:
    """Sum what was counted into columns.  What is older than the first one is left out."""
    from_us = view.from_us(now_us)
    sums = [Count(from_us + n * view.width_us) for n in range(view.columns)]
    total = Count(from_us)
    for part in parts:
        n = (part.at_us - from_us) // view.width_us
        if 0 <= n < view.columns:
            sums[n].take(part)
            total.take(part)
    top = nice_top(max(count.total for count in sums))
    columns = tuple(_column(view, n, count, top) for n, count in enumerate(sums))
    return Chart(view, columns, tuple(top * n // TICKS for n in range(TICKS, -1, -1)), total)


def sum_since(parts: Iterable[Count], from_us: int) -> Count:
    """What was counted since then, in one."""
    total = Count(from_us)
    for part in parts:
        if part.at_us >= from_us:
            total.take(part)
    return total


def nice_top(most: int) -> int:
    """The least number that an axis likes to end with, and that is not below `most`: 4, 8, 12, 20, 40, 80, 120 …"""
    scale = 1
    while True:
        for step in (4, 8, 12, 20):
            if step * scale >= most:
                return step * scale
        scale *= 10


def _column(view: View, n: int, count: Count, top: int) -> Column:
    at = datetime.fromtimestamp(count.at_us // 1_000_000, UTC)
    # Counted from the end: what is newest always has its time below it.
    is_labelled = (view.columns - 1 - n) % view.every == 0
    bars, y = [], 1000.0
    for kind, value in (("sent", count.sent), ("queued", count.queued), ("failed", count.failed)):
        height = 1000 * value / top
        if value:
            y -= height
            bars.append(Bar(kind, round(y, 2), round(height, 2)))
    text = at.strftime("%Y-%m-%d" if view.width_us == DAY_US else "%Y-%m-%d %H:%M")
    label = at.strftime(view.form) if is_labelled else ""
    return Column(count, text, at.strftime("%Y-%m-%dT%H:%M:%SZ"), label, tuple(bars))
