# SPDX-License-Identifier: Apache-2.0
"""Checks as data, and how they run: side by side, each within its time, none in the way of the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
import trio

from hepmaild.errors import SecretsUnavailable, StoreUnavailable

log = structlog.get_logger()

MAX_TEXT = 600  # of what others said


class State(StrEnum):
    """How it stands.  skipped: it could not be tried, or there is nothing to try."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.  found: a sentence; may hold what others said.  todo: what helps; empty when all is
    well."""

    name: str
    state: State
    found: str
    todo: str = ""

    def to_json(self) -> dict[str, str]:
        """As `doctor --json` prints it."""
        return {"name": self.name, "state": str(self.state), "found": self.found, "todo": self.todo}


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, State.OK, found)


def warn(name: str, found: str, todo: str) -> Check:
    """It works, but somebody should look."""
    return Check(name, State.WARN, _cut(found), todo)


def fail(name: str, found: str, todo: str) -> Check:
    """It does not work."""
    return Check(name, State.FAIL, _cut(found), todo)


def skipped(name: str, found: str) -> Check:
    """Not tried, and why."""
    return Check(name, State.SKIPPED, found)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


@dataclass(frozen=True, slots=True)
class Part:
    """Something to try.  run: its checks.  limit_s: no longer than this; then `todo` says what to do."""

    name: str
    run: Callable[[], Awaitable[Sequence[Check]]]
    limit_s: float = 10.0
    todo: str = "look whether it is overloaded or unreachable, and try again"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.  began_at_us: Unix µs; took_s: seconds."""

    checks: tuple[Check, ...]
    began_at_us: int
    took_s: float

    @property
    def failed(self) -> int:
        """How many do not work."""
        return self.count(State.FAIL)

    def count(self, state: State) -> int:
        """How many stand like that."""
        return sum(check.state is state for check in self.checks)

    def to_json(self) -> list[dict[str, Any]]:
        """A list of checks (cli-and-config.md)."""
        return [check.to_json() for check in self.checks]


async def run_parts(parts: Iterable[Part], now_us: Callable[[], int]) -> Report:
    """Run all of them side by side; their checks in the order of the parts.  Takes as long as the longest limit."""
    parts = list(parts)
    found: list[Sequence[Check]] = [()] * len(parts)
    began_at_us, began = now_us(), trio.current_time()

    async def run_one(place: int, part: Part) -> None:
        found[place] = await _run(part)

    async with trio.open_nursery() as nursery:
        for place, part in enumerate(parts):
            nursery.start_soon(run_one, place, part)
    return Report(tuple(check for checks in found for check in checks), began_at_us, trio.current_time() - began)


async def _run(part: Part) -> Sequence[Check]:
    """The checks of a part; one that hangs or crashes is one that failed."""
    with trio.move_on_after(part.limit_s):
        try:
            return await part.run()
        except StoreUnavailable as error:
            return [fail(part.name, f"the database did not answer: {error}", "see the check of the database")]
        except SecretsUnavailable as error:
            return [fail(part.name, str(error), "restore secrets.key from where you keep its copy")]
        except OSError as error:
            return [fail(part.name, describe(error), part.todo)]
        except Exception as error:  # a check that crashes must not hide the others
            log.exception("check_crashed", check=part.name)
            return [fail(part.name, f"this check crashed: {error!r}", "tell the authors; the log has the whole story")]
    return [fail(part.name, f"no answer within {part.limit_s:g} s", part.todo)]


def describe(error: OSError) -> str:
    """An OSError as a sentence's part."""
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename else text
