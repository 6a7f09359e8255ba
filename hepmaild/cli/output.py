# SPDX-License-Identifier: Apache-2.0
"""What commands print: one JSON document, or text for people in which nothing from outside can move the cursor."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from hepmaild.key_rules import LATEST_US

_INSTANTS = frozenset({"at", "at_us"})


class CommandFailed(Exception):
    """The command was refused or failed: its sentence goes to standard error, the exit status is 1."""


def mend_streams() -> None:
    """Make the standard streams such that no command fails at them.

    A closed descriptor would be that of the next file or socket, which then gets what is meant for a terminal.  What
    the terminal's encoding does not have is written as an escape: a key is shown only once.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free one is this
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def instant(at_us: int) -> str:
    """Unix microseconds as ISO 8601 in UTC; what no date can say is the latest one."""
    at_us = min(at_us, LATEST_US)
    stamp = datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(microsecond=at_us % 1_000_000)
    return stamp.isoformat(timespec="microseconds").replace("+00:00", "Z")


def span(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `2 d`."""
    for limit, unit_s, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(0.0, seconds) / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def public(value: Any) -> Any:
    """Rows of the store as they are shown: `…_us` and `…_at` become instants, sets become lists."""
    if isinstance(value, Mapping):
        return dict(_public_pair(str(name), member) for name, member in value.items())
    if isinstance(value, list | tuple):
        return [public(member) for member in value]
    return value


def _public_pair(name: str, value: Any) -> tuple[str, Any]:
    is_instant = name in _INSTANTS or name.endswith(("_at", "_at_us"))
    if is_instant and isinstance(value, int) and not isinstance(value, bool):
        return name.removesuffix("_us"), instant(value)
    if name == "steps" and isinstance(value, list):
        return name, [_step(step) for step in value]
    return (name.removesuffix("_us") if is_instant else name), public(value)


def _step(step: Any) -> Any:
    """`events.Step.to_json` with names: {"at", "who", "text"}."""
    if isinstance(step, list) and len(step) == 3:
        return {"at": instant(step[0]), "who": step[1], "text": step[2]}
    return step


def clean(value: Any) -> str:
    """A value as text for a terminal: no control characters, nothing invisible that acts."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(clean(member) for member in value) or "-"
    text = str(value)
    return text if text.isprintable() else "".join(ch if ch.isprintable() else _escape(ch) for ch in text)


def _escape(ch: str) -> str:
    return ch.encode("unicode_escape", "surrogatepass").decode("ascii")


@contextlib.contextmanager
def shown_once(otherwise: str) -> Iterator[None]:
    """Print what was made just now and what nothing can show again.

    Raises CommandFailed with `otherwise`, which says what became of it and what to do, when it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{otherwise} ({error.strerror or error})") from None


def print_hint(sentence: str) -> None:
    """A word beside what was printed, on standard error; nothing fails without it."""
    with contextlib.suppress(OSError):
        click.echo(sentence, err=True)


def print_json(value: Any) -> None:
    """One JSON document, on one line."""
    click.echo(json.dumps(public(value), ensure_ascii=True))


def print_pairs(row: Mapping[str, Any], names: Sequence[str] = ()) -> None:
    """`name: value`, a line each, in this order (default: as they are)."""
    shown = public(row)
    chosen = [name for name in (names or list(shown)) if name in shown]
    width = max((len(name) for name in chosen), default=0)
    for name in chosen:
        click.echo(f"{name.replace('_', ' '):<{width}}  {clean(shown[name])}")


def print_table(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    empty: str,
    whole: str = "",
    figures: Collection[str] = (),
) -> None:
    """Aligned columns with a heading; `empty` when there are no rows.

    whole: a column, the last one, that is not cut.  figures: columns whose values stand at their right.
    """
    shown = [public(row) for row in rows]
    cells = [[clean(row.get(name)) if name == whole else _cell(row.get(name)) for name in columns] for row in shown]
    if not cells:
        click.echo(empty)
        return
    heading = [name.replace("_", " ").upper() for name in columns]
    widths = [max(len(line[n]) for line in [heading, *cells]) for n in range(len(columns))]
    sides = [">" if name in figures else "<" for name in columns]
    for line in [heading, *cells]:
        aligned = (f"{text:{side}{width}}" for text, side, width in zip(line, sides, widths, strict=True))
        click.echo("  ".join(aligned).rstrip())


def _cell(value: Any) -> str:
    text = clean(value)
    if len(text) == 27 and text.endswith("Z") and text[10] == "T":  # whole seconds do for people
        return f"{text[:10]} {text[11:19]}"
    return text if len(text) <= 60 else text[:59] + "…"
