# SPDX-License-Identifier: Apache-2.0
"""When to try again; pure.  Seconds in, seconds out; randomness is an argument in [0, 1)."""

from __future__ import annotations

from collections.abc import Sequence

JITTER = 0.1  # a tenth up or down, so that what failed together does not come back together


def retry_delay_s(schedule_s: Sequence[int], attempts: int, randomness: float, *, hint_s: int | None = None) -> float:
    """How long to wait after the `attempts`-th attempt (1 for the first).

    schedule_s: the waiting times; past its end the last one again.  hint_s: the peer's own "try again in", believed
    instead of the schedule: never earlier than it said, up to a tenth later.
    """
    if attempts < 1:
        raise ValueError("attempts counts from 1")
    if hint_s is not None:
        return hint_s * (1 + JITTER * randomness)
    base = schedule_s[min(attempts, len(schedule_s)) - 1]
    return base * (1 - JITTER + 2 * JITTER * randomness)


def retry_at_us(now_us: int, delay_s: float, expires_at_us: int) -> int:
    """The instant of the next attempt: never later than the message's end, at which the store gives it up."""
    return max(now_us, min(now_us + int(delay_s * 1_000_000), expires_at_us))
