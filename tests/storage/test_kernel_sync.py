# SPDX-License-Identifier: Apache-2.0
"""Syncing by the kernel: real files, what cannot be synced, and who gives up."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from hepmaild.storage.kernel_sync import KernelSync
from tests.peers.programs import missing


def offered() -> KernelSync:
    """One, where the kernel (or a container around it) does not refuse."""
    try:
        return KernelSync()
    except OSError as error:
        missing(f"io_setup is refused: {error}")
        raise


@pytest.fixture
def sync() -> Iterator[KernelSync]:
    found = offered()
    yield found
    found.close()


async def test_files_are_synced_one_after_the_other(sync: KernelSync, tmp_path: Path) -> None:
    with (tmp_path / "one").open("wb") as one, (tmp_path / "two").open("wb") as two:
        for n in range(20):
            for file in (one, two):
                file.write(b"%d" % n)
                file.flush()
                assert await sync.fdatasync(file.fileno()) is True
                assert sync.is_free


async def test_what_cannot_be_synced_is_not_taken(sync: KernelSync, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    assert await sync.fdatasync(writer) is False
    os.close(writer)
    assert await sync.fdatasync(writer) is False
    os.close(reader)
    with (tmp_path / "file").open("wb") as file:
        assert await sync.fdatasync(file.fileno()) is True


async def test_who_gives_up_leaves_a_sync_under_way(sync: KernelSync, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, trio.CancelScope() as scope:
        scope.cancel()
        await sync.fdatasync(file.fileno())
    assert scope.cancelled_caught
    assert not sync.is_free


def test_an_unknown_machine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="pdp11"):
        KernelSync()
