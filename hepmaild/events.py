# SPDX-License-Identifier: Apache-2.0
"""What happened to a message, as data.

An event is one row of the record behind Logs, `log show` and the live stream.  The two big ones carry a whole leg of
the conversation as `Step`s: `accepted` the inbound one (client → us), `attempt` an outbound one (us → next hop).
Passwords are masked before a step is made, keys (which may stand anywhere) when the record is written; text is cut, so
that a record stays small whatever a peer says.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from hepmaild.masking import mask_keys

MAX_STEPS = 300
MAX_TEXT = 500


class Who(StrEnum):
    """Who speaks in a step."""

    PEER = "peer"
    US = "us"
    NOTE = "note"  # nobody spoke: connected, TLS negotiated, timed out


class Step(NamedTuple):
    """One thing said or done.  at_us: Unix microseconds.

    A tuple, since every message makes thirty of them; as JSON it is `[at_us, who, text]`.
    """

    at_us: int
    who: Who
    text: str


class Transcript:
    """Collects the steps of one leg.  Bounded: past MAX_STEPS the middle is left out and says so."""

    __slots__ = ("_dropped", "steps")

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._dropped = 0

    def add(self, at_us: int, who: Who, text: str) -> None:
        """Add a step; `text` must already be free of passwords."""
        if len(text) > MAX_TEXT:
            text = text[: MAX_TEXT - 1] + "…"
        if len(self.steps) >= MAX_STEPS:
            del self.steps[MAX_STEPS // 2]
            self._dropped += 1
        self.steps.append(Step(at_us, who, text))

    def snapshot(self) -> tuple[Step, ...]:
        """The steps so far; where some were dropped a note in the middle says how many."""
        if not self._dropped:
            return tuple(self.steps)
        half = MAX_STEPS // 2
        note = Step(self.steps[half].at_us, Who.NOTE, f"{self._dropped} steps left out")
        return (*self.steps[:half], note, *self.steps[half:])


_encoder = msgspec.json.Encoder()


def to_json(value: Any) -> str:
    """What an event or an answer holds, as compact JSON; every message has half a dozen."""
    return _encoder.encode(value).decode()


def to_record(value: Any) -> str:
    """What an event holds, as it is stored: JSON without the keys that somebody said by mistake."""
    return mask_keys(to_json(value))
