# SPDX-License-Identifier: Apache-2.0
"""`queue top`: the queue, live, in a terminal.

What waits is counted in the database, every second or as often as counting it costs little; what happens between two
counts comes from the live stream of the daemon (`follow`), and is missing while that does not answer.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import tty
import unicodedata
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import trio

from hepmaild.cli import backend
from hepmaild.cli.common import NumberRange, json_option, with_settings
from hepmaild.cli.output import clean, instant, print_json, span
from hepmaild.config import Settings
from hepmaild.counted import counted
from hepmaild.errors import StoreUnavailable

if TYPE_CHECKING:
    from hepmaild.cli.follow import Follower
    from hepmaild.storage.store import Store

COUNT_SHARE = 0.1  # of the time may be spent on counting
LATEST = 20
KNOWN = 10_000  # messages whose state is remembered
_STATES = ("sent", "queued", "deferred", "in_doubt", "held", "capped", "failed", "expired", "cancelled")
_COLUMNS = (
    ("waiting", 9),
    ("deferred", 9),
    ("held", 7),
    ("in_doubt", 8),
    ("oldest", 8),
    ("tried/min", 9),
    ("sent/min", 9),
)
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
BOLD, DIM, RED, REVERSE, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[7m", "\x1b[0m"


@dataclass
class View:
    """What is shown.  stats: `storage.stats.stats`; problem: why there are none.  counted_at_us: when (Unix µs).

    happened: messages that came into each state since the last picture.  latest: their newest lines, newest first.
    """

    stats: dict[str, Any] | None = None
    problem: str = ""
    counted_at_us: int = 0
    is_live: bool = False
    said: str = ""
    happened: Counter[str] = field(default_factory=Counter)
    latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LATEST))

    def __post_init__(self) -> None:
        self._states: OrderedDict[str, str] = OrderedDict()

    def take(self, line: dict[str, Any]) -> None:
        """A message is new, or has changed."""
        message_id, state = line["message_id"], str(line["state"])
        if self._states.get(message_id) == state:
            return
        self._states[message_id] = state
        self._states.move_to_end(message_id)
        if len(self._states) > KNOWN:
            self._states.popitem(last=False)
        if self.is_live:
            self.happened[state] += 1
        self.latest.appendleft(line)

    def to_json(self, now_us: int) -> dict[str, Any]:
        """One document of `--json`."""
        return {
            "at": now_us,
            "counted_at": self.counted_at_us or None,
            "live": self.is_live,
            "happened": dict(sorted(self.happened.items())),
            "problem": self.problem or None,
            "queue": self.stats,
        }


@click.command("top")
@click.option("--interval", type=NumberRange(0.2, 3600), default=1.0, show_default=True, help="Seconds.")
@json_option
@with_settings
def queue_top(settings: Settings, interval: float, as_json: bool) -> None:
    """The queue, live: what waits by route and destination, and what happens; q ends it.

    Without a terminal it prints one picture; with --json one document now and in every interval, until interrupted.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()

    async def run(store: Store) -> None:
        view = View()
        if not as_json and not is_terminal:
            await _count(store, view)
            for line in draw(
                view, backend.now_us(), shutil.get_terminal_size((200, 10_000)).columns, 10_000, ansi=False
            ):
                click.echo(line)
            return
        await _watch(settings, store, view, interval, as_json=as_json)

    backend.with_store(settings, run)


async def _count(store: Store, view: View) -> float:
    """Count anew; how long (s) that took."""
    from hepmaild.storage import stats as figures

    began = trio.current_time()
    now_us = backend.now_us()
    try:
        view.stats = await store.read(figures.stats, now_us)
        view.counted_at_us, view.problem = now_us, ""
    except StoreUnavailable as error:
        view.problem = str(error)
    return trio.current_time() - began


async def _watch(settings: Settings, store: Store, view: View, interval_s: float, *, as_json: bool) -> None:
    from hepmaild.cli.follow import Follower

    def tell(text: str) -> None:
        view.said = text

    async with trio.open_nursery() as nursery:
        follower = None
        if settings.http.listen:
            follower = Follower(settings, store, None, view.take, tell)
            nursery.start_soon(_follow, follower)
        took_s = await _count(store, view) if as_json else None  # there is no first document without figures
        nursery.start_soon(_keep_counting, store, view, interval_s, took_s)
        if as_json:
            await _print_documents(view, follower, interval_s)
        else:
            await _show_pictures(view, follower, interval_s, nursery)


async def _print_documents(view: View, follower: Follower | None, interval_s: float) -> None:
    while True:
        view.is_live = follower is not None and follower.is_connected
        print_json(view.to_json(backend.now_us()))
        sys.stdout.flush()
        view.happened.clear()
        await trio.sleep(interval_s)


async def _show_pictures(view: View, follower: Follower | None, interval_s: float, nursery: trio.Nursery) -> None:
    resized: list[trio.Event] = []
    with _screen():
        nursery.start_soon(_wait_for_q, nursery.cancel_scope)
        nursery.start_soon(_see_signals, resized, nursery.cancel_scope)
        while not nursery.cancel_scope.cancel_called:
            view.is_live = follower is not None and follower.is_connected
            _show(view)
            view.happened.clear()
            resized[:] = [trio.Event()]
            with trio.move_on_after(interval_s):
                await resized[0].wait()


async def _follow(follower: Follower) -> None:
    try:
        await follower.run(1)
    except StoreUnavailable:
        follower.is_connected = False


async def _keep_counting(store: Store, view: View, interval_s: float, took_s: float | None) -> None:
    """took_s: what the first count took; None: it is still to be made."""
    while True:
        if took_s is not None:
            await trio.sleep(max(interval_s, took_s / COUNT_SHARE))
        took_s = await _count(store, view)


# The terminal


@contextmanager
def _screen() -> Iterator[None]:
    """The other screen without a cursor, keys as they are pressed; everything as it was afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        _write(ENTER)
        yield
    finally:
        _write(LEAVE)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _wait_for_q(scope: trio.CancelScope) -> None:
    descriptor = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        keys = os.read(descriptor, 64)
        if not keys or keys in (b"q", b"Q", b"\x1b", b"\x04"):
            scope.cancel()
            return


async def _see_signals(resized: list[trio.Event], scope: trio.CancelScope) -> None:
    """A new size is drawn at once; an end leaves the terminal as it was."""
    with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGWINCH:
                scope.cancel()
            for event in resized:
                event.set()


def _show(view: View) -> None:
    size = shutil.get_terminal_size()
    lines = draw(view, backend.now_us(), size.columns, size.lines, ansi=True)
    _write(HOME + "".join(f"{line}{CLEAR_LINE}\r\n" for line in lines[:-1]) + lines[-1] + CLEAR_LINE + CLEAR_REST)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


# The picture


def draw(view: View, now_us: int, width: int, height: int, *, ansi: bool) -> list[str]:
    """The lines of the picture, at most `height` of at most `width` cells.  Nothing from outside moves the cursor."""
    lines = _head(view, now_us)
    if view.stats is not None:
        room = max(3, height - len(lines) - 2)
        lines += _tables(view.stats, now_us, width, room, latest=len(view.latest))
    if view.latest and height - len(lines) > 3:
        lines.append(("", ""))
        lines.append((BOLD, "latest"))
        lines += [("", _latest(line)) for line in list(view.latest)[: height - len(lines) - 1]]
    lines = lines[: max(1, height)]
    return [_paint(style, cut(text, width), ansi=ansi) for style, text in lines]


def _paint(style: str, text: str, *, ansi: bool) -> str:
    return f"{style}{text}{PLAIN}" if ansi and style else text


Line = tuple[str, str]


def _head(view: View, now_us: int) -> list[Line]:
    if view.stats is None:
        said = view.problem or "counting what waits …"
        return [(RED if view.problem else "", said)]
    by_state = view.stats["by_state"]
    age_s = (now_us - view.counted_at_us) / 1e6
    parts = [f"{sum(by_state.values()):,} waiting", f"{view.stats['leased']:,} under way"]
    parts += [f"{by_state[state]:,} {state}" for state in by_state if by_state[state]]
    if view.stats["in_doubt"]:
        parts.append(f"{view.stats['in_doubt']:,} in doubt")
    live = "live" if view.is_live else clean(view.said or "not live")
    happened = " ".join(f"{view.happened[state]:,} {state}" for state in _STATES if view.happened[state])
    lines: list[Line] = [(BOLD, "hepmaild queue: " + ", ".join(parts))]
    lines.append(
        ("" if view.is_live else DIM, f"{instant(now_us)[:19]}Z  counted {age_s:.0f} s ago  {live}  {happened}")
    )
    if view.problem:
        lines.append((RED, clean(view.problem)))
    for row in view.stats["paused"]:
        what = f"{row['destination']} of {row['route']}" if row["destination"] else f"route {row['route']}"
        lines.append((DIM, f"paused: {clean(what)} since {instant(row['since_at'])[:19]}Z {clean(row['note'])}"))
    return lines


def _tables(stats: dict[str, Any], now_us: int, width: int, room: int, *, latest: int) -> list[Line]:
    routes, destinations = stats["routes"], stats["destinations"]
    lines: list[Line] = [("", "")]
    lines += _table("route", ("route",), routes, now_us, width)
    rest = room - len(lines) - 2 - min(latest, 5)
    if destinations and rest > 0:
        lines.append(("", ""))
        lines += _table("destination", ("destination", "route"), destinations[:rest], now_us, width)
        more = len(stats["by_destination"]) - min(rest, len(destinations))
        if more > 0:
            lines.append((DIM, f"and {counted(more, 'more destination')}"))
    if not routes:
        lines.append((DIM, "nothing waits"))
    return lines


def _table(title: str, names: Sequence[str], rows: Sequence[dict[str, Any]], now_us: int, width: int) -> list[Line]:
    room = 30 if width >= 100 else 20
    head = f"{title:<{room}}" + "".join(f" {name:>{wide}}" for name, wide in _COLUMNS) + "  last error"
    lines = [(REVERSE, pad(head, width))]
    for row in rows:
        name = pad(cut(" ".join(clean(row[n]) for n in names), room), room)
        oldest = "-" if row["oldest_at"] is None else span((now_us - row["oldest_at"]) / 1e6)
        cells = (
            f"{row['waiting']:,}",
            f"{row['deferred']:,}",
            f"{row['held']:,}",
            f"{row['in_doubt']:,}",
            oldest,
            f"{row['attempted_per_minute']:,.0f}",
            f"{row['delivered_per_minute']:,.0f}",
        )
        figures_shown = "".join(f" {cell:>{wide}}" for cell, (_, wide) in zip(cells, _COLUMNS, strict=True))
        why = "paused " if row["paused"] else ""
        why += clean(row["last_error"]) if row["last_error"] else ""
        lines.append((DIM if row["paused"] else "", f"{name}{figures_shown}  {why}"))
    return lines


def _latest(line: dict[str, Any]) -> str:
    at = clean(line["at"] if isinstance(line["at"], str) else instant(line["at"]))[11:19]
    to = line.get("recipients")
    shown = clean(", ".join(map(str, to)) if isinstance(to, list) else to)
    message = f"{clean(line['state']):<9} {clean(line['message_id'])}"
    return f"{at}  {message}  {clean(line.get('sender'))} → {shown}  {clean(line.get('subject'))}"


def cells_of(ch: str) -> int:
    """How many cells of a terminal a character takes."""
    if unicodedata.combining(ch) or unicodedata.category(ch) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(ch) in {"W", "F"} else 1


def cut(text: str, width: int) -> str:
    """At most so many cells."""
    used = kept = 0
    for n, ch in enumerate(text):
        used += cells_of(ch)
        if used > width:
            return text[:kept] + "…" if width > 0 else ""
        if used < width:
            kept = n + 1
    return text


def pad(text: str, width: int) -> str:
    """At least so many cells."""
    return text + " " * max(0, width - sum(map(cells_of, text)))
