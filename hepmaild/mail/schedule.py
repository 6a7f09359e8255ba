# SPDX-License-Identifier: Apache-2.0
"""When to try again; pure.  Seconds in, seconds out; randomness is an argument in [0, 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

JITTER = 0.1  # a tenth up or down, so that what failed together does not come back together
# So often a peer is believed that says to come back sooner than the schedule has it.  Greylisting keeps its word at
# once; "one message a second" from one that never takes it would be an attempt a second for days.
SHORT_HINTS = 2


def retry_delay_s(
    schedule_s: Sequence[int], attempts: int, randomness: float, *, hint_s: int | None = None, age_s: float = math.inf
) -> float:
    """How long to wait after the `attempts`-th attempt (1 for the first).

    schedule_s: the waiting times; past its end the last one again.  hint_s: the peer's own "try again in": never
    earlier than it said, up to a tenth later.  It stands instead of the schedule; after SHORT_HINTS attempts only where
    it is longer.  age_s: how old the message is.  Attempts that came sooner than by the schedule do not use it up:
    somebody asked for them, or others of the message went first.  But those that a short hint asks for do.
    """
    if attempts < 1:
        raise ValueError("attempts counts from 1")
    if hint_s is not None and hint_s < schedule_s[0]:
        age_s = math.inf
    place, passed_s = 0, 0.0
    while place + 1 < min(attempts, len(schedule_s)):
        passed_s += schedule_s[place] * (1 - JITTER)
        if passed_s > age_s:
            break
        place += 1
    base = schedule_s[place]
    scheduled_s = base * (1 - JITTER + 2 * JITTER * randomness)
    if hint_s is None:
        return scheduled_s
    hinted_s = hint_s * (1 + JITTER * randomness)
    return hinted_s if attempts <= SHORT_HINTS else max(hinted_s, scheduled_s)


def retry_at_us(now_us: int, delay_s: float, expires_at_us: int) -> int:
    """The instant of the next attempt: never later than the message's end, at which the store gives it up."""
    return max(now_us, min(now_us + int(delay_s * 1_000_000), expires_at_us))
