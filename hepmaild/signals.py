# SPDX-License-Identifier: Apache-2.0
"""The signals that the daemon obeys, until nothing is left that one of them could end."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType

import trio

END = (signal.SIGTERM, signal.SIGINT)
RELOAD = (signal.SIGHUP,)


class Signals:
    """Those that it was told to hear, in the order in which they came; one that comes again before it was taken is one.

    Not Trio's receiver: where that ends, a signal that it still holds, and each later one, does what it does to any
    program.  It ended the process while the store was being closed.  Make it inside `trio.run`, in the main thread.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._waiting: dict[int, None] = {}
        self._caught: set[int] = set()  # on their way into the loop
        self._came = trio.Event()
        self.hear(*numbers)

    def hear(self, *numbers: signal.Signals) -> None:
        """From now on these are kept for `take`."""
        for number in numbers:
            signal.signal(number, self._catch)

    def ignore_all(self) -> None:
        """From now on none does anything, up to the end of the process: Python gives up its handlers before that."""
        for number in (*END, *RELOAD):
            signal.signal(number, signal.SIG_IGN)

    async def take(self, *numbers: signal.Signals) -> signal.Signals:
        """The next one of these.  Cancel-safe."""
        while True:
            for number in self._waiting:
                if number in numbers:
                    del self._waiting[number]
                    return signal.Signals(number)
            await self._came.wait()

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if number in self._caught:  # a flood would run this inside itself, until there is no stack left
            return
        self._caught.add(number)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._note, number, idempotent=True)

    def _note(self, number: int) -> None:
        self._caught.discard(number)
        self._waiting[number] = None
        self._came.set()
        self._came = trio.Event()
