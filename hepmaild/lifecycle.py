# SPDX-License-Identifier: Apache-2.0
"""Whether the daemon is starting, serving or draining; shared by everything that must stop in order."""

from __future__ import annotations

import trio

from hepmaild.config import Settings

HARD_STOP_MARGIN_S = 5.0


def longest_stop_s(settings: Settings) -> float:
    """The drain, its hard end, the goodbye to other processes and the closing of the store."""
    return settings.server.drain_timeout_s + 2 * HARD_STOP_MARGIN_S + settings.database.unit_timeout_s


class Lifecycle:
    """`ready` is set once, when the ports are bound.  So is `draining`, at the first SIGTERM or SIGINT: no new
    connection, no new transaction, no new claim.
    """

    def __init__(self) -> None:
        self.draining = trio.Event()
        self.ready = trio.Event()

    @property
    def is_draining(self) -> bool:
        """Whether the drain has begun."""
        return self.draining.is_set()
