# SPDX-License-Identifier: Apache-2.0
"""The only place where asyncio meets Trio: asyncpg's loop, run inside `trio.run`.

Imported with PostgreSQL only, and trio_asyncio later still: it does not import on Python 3.14.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import structlog

from hepmaild.errors import StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


class Bridge:
    """Runs coroutines of asyncio for Trio's tasks."""

    def __init__(self, loop: Any, current_loop: Any) -> None:
        self._loop = loop
        self._current_loop = current_loop

    async def run(self, fn: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an asyncio coroutine function; its result or its error.  Cancellation becomes asyncio's, and is awaited.

        Works from every task, also from one that was started before the loop.
        """
        token = self._current_loop.set(self._loop)
        try:
            result: T = await self._loop.run_aio_coroutine(fn(*args, **kwargs))
            return result
        finally:
            self._current_loop.reset(token)


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """An asyncio loop for as long as the block lasts.  Raises `StoreUnavailable` where trio-asyncio is not there."""
    try:
        import trio_asyncio
    except (ImportError, AttributeError) as error:
        raise StoreUnavailable(
            "PostgreSQL needs trio-asyncio, which is not there or does not run on this Python: "
            "install hepmaild[postgresql] on Python 3.11 to 3.13"
        ) from error
    async with trio_asyncio.open_loop() as loop:
        # Without this, one stray error (a query cancelled while asyncpg connects) ends the whole program.
        loop.set_exception_handler(_note)
        yield Bridge(loop, trio_asyncio.current_loop)


def _note(_loop: Any, context: dict[str, Any]) -> None:
    log.warning("asyncio_stray_error", message=context.get("message"), error=repr(context.get("exception")))
