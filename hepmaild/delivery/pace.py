# SPDX-License-Identifier: Apache-2.0
"""No more than so many in a second; pure.  Times are seconds of any clock that goes forward."""

from __future__ import annotations

_BURSTS_PER_S = 50  # at high rates several go together, so that nobody wakes for each
_NEARLY = 1e-9


class Pace:
    """A token bucket.  In no second more than `rate` tokens are taken."""

    __slots__ = ("_at", "_burst", "_per_s", "_tokens")

    def __init__(self, rate: float) -> None:
        self._burst = max(1.0, rate / _BURSTS_PER_S)
        self._per_s = rate if self._burst == 1.0 else rate - self._burst
        self._tokens = self._burst
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """How long until one may go; 0: now."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
            self._at = now
        if self._tokens >= 1.0 - _NEARLY:
            return 0.0
        return (max(1.0, self._burst / 2) - self._tokens) / self._per_s

    def take(self) -> None:
        """One goes.  `wait_s` must just have said 0."""
        self._tokens -= 1.0
