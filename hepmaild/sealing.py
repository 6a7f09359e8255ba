# SPDX-License-Identifier: Apache-2.0
"""Sealing something for the database beside a rotation of the vault's keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from hepmaild.storage import sealed
from hepmaild.storage.store import Store
from hepmaild.threads import in_thread
from hepmaild.vault import HEAD_OCTETS, Vault


@asynccontextmanager
async def sealing(vault: Vault, store: Store, files: trio.CapacityLimiter) -> AsyncIterator[None]:
    """No rotation of the keys until the block ends, within which what is sealed is to be committed.

    The first secret makes the vault's file; what is sealed already must be possible to open.  Raises
    `SecretsUnavailable`.
    """
    holding = vault.holding()
    await in_thread(holding.__enter__, limiter=files)
    try:
        heads = await store.read(sealed.heads, HEAD_OCTETS)
        if not heads:
            await in_thread(vault.make, limiter=files)
        await in_thread(vault.check, list(heads), limiter=files)
        yield
    finally:
        holding.__exit__(None, None, None)
