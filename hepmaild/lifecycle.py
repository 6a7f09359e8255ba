# SPDX-License-Identifier: Apache-2.0
"""Whether the daemon is starting, serving or draining; shared by everything that must stop in order."""

from __future__ import annotations

import trio


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
