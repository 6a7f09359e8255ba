# SPDX-License-Identifier: Apache-2.0
"""Leased jobs that nobody works on, on their way back to the store (Trio)."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
import trio

from hepmaild.delivery.job import Job, Queue
from hepmaild.errors import StoreUnavailable

log = structlog.get_logger()

AT_ONCE = 64  # in one unit of the store


class Returns:
    """queue: where they go back to."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._left: list[Job] = []

    async def give_back(self, *jobs: Job) -> None:
        """In one unit, due again at once; forsaken when the store cannot be told.

        Cancelled, they go with the next `give_back_all`; those that had gone back already are refused there.
        """
        for job in jobs:
            if job.content is not None:
                job.content.close()
        try:
            await self._queue.release(*jobs)
        except trio.Cancelled:
            self._left += jobs
            raise
        except StoreUnavailable:
            for job in jobs:
                log.warning("attempt_forsaken", message_id=job.message_id, route=job.route)
                self._queue.forsake(job)

    async def give_back_all(self, jobs: Iterable[Job]) -> None:
        """These, and all whose way back was cancelled; many in each unit.  Cancelled, the next call goes on."""
        self._left += jobs
        while self._left:
            some, self._left = self._left[:AT_ONCE], self._left[AT_ONCE:]
            await self.give_back(*some)
