# SPDX-License-Identifier: Apache-2.0
"""What happened in a run, line by line: equal for equal seeds, octet for octet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import structlog
import trio

EPOCH_US = 1_800_000_000_000_000


def now_us() -> int:
    """The simulated clock: Unix microseconds."""
    return EPOCH_US + round(trio.current_time() * 1_000_000)


class Violation(AssertionError):
    """An invariant does not hold."""


class Trace:
    """The lines of one run.  errors: what was logged at ERROR, which no run may do."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []

    def add(self, who: str, text: str) -> None:
        """One line: simulated time, who, what."""
        self.lines.append(f"{trio.current_time():13.6f} {who:<10} {text}")

    @property
    def text(self) -> bytes:
        """Everything."""
        return "\n".join(self.lines).encode("utf-8", "backslashreplace")

    @property
    def digest(self) -> str:
        """A short name for the whole run."""
        return hashlib.sha256(self.text).hexdigest()[:16]

    def capture(self, _logger: object, method: str, event: Mapping[str, Any]) -> str:
        """As a structlog processor: the engine's log goes into the trace and nowhere else."""
        values = dict(event)
        name = values.pop("event", "")
        error = values.pop("exc_info", None)
        text = f"{name} " + " ".join(f"{key}={value}" for key, value in values.items())
        if method in {"error", "exception", "critical"}:
            import traceback

            detail = traceback.format_exc() if error else ""
            self.errors.append(f"{text}\n{detail}")
        try:
            self.add("log", text)
        except RuntimeError:  # outside of Trio
            self.lines.append(text)
        raise structlog.DropEvent
