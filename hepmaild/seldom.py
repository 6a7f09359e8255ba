# SPDX-License-Identifier: Apache-2.0
"""For what would fill the log if it were said each time."""

from __future__ import annotations

import math

import trio

EVERY_S = 60.0


class Seldom:
    """Whether to say it: at once, and once a minute while it lasts.  On Trio's clock."""

    def __init__(self) -> None:
        self._said_at = -math.inf

    def is_due(self) -> bool:
        """If so, it counts as said."""
        now = trio.current_time()
        if now - self._said_at < EVERY_S:
            return False
        self._said_at = now
        return True
