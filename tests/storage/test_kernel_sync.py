# SPDX-License-Identifier: Apache-2.0
"""Syncing by the kernel: real files, what cannot be synced, and who gives up."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from hepmaild.storage import kernel_sync
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
                with pytest.raises(BlockingIOError):  # or the next one would block the loop until its end
                    os.eventfd_read(sync._bell)


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


class Kernel:
    """The kernel, but for what it says when it is asked for the end of a sync."""

    def __init__(self, sync: KernelSync, *, result: int = 0, count: int = 1) -> None:
        self.sync, self.real, self.result, self.count = sync, sync._call, result, count
        self.asked: list[int] = []

    def __call__(self, number: int, *arguments: Any) -> int:
        self.asked.append(number)
        got = self.real(number, *arguments)
        if number != self.sync._get_events:
            return int(got)
        self.sync._event.result = self.result
        return self.count


async def test_a_sync_that_failed_is_an_error_and_the_next_one_is_none(sync: KernelSync, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        kernel = Kernel(sync, result=-errno.EIO)
        sync._call = kernel
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as raised:
            await sync.fdatasync(file.fileno())
        assert raised.value.errno == errno.EIO
        assert sync.is_free
        sync._call = kernel.real
        assert await sync.fdatasync(file.fileno()) is True


async def test_a_sync_of_which_nothing_is_known_is_an_error(sync: KernelSync, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        sync._call = Kernel(sync, count=-1)
        with pytest.raises(OSError):  # noqa: PT011  # its number is whatever the kernel said last
            await sync.fdatasync(file.fileno())
        assert not sync.is_free


async def test_closing_waits_for_no_sync_that_hangs(sync: KernelSync, tmp_path: Path) -> None:
    """Ending its context would: that is only done while none is under way, and once."""
    for give_up in (False, True):
        one = offered()
        one._call = kernel = Kernel(one)
        with (tmp_path / "file").open("wb") as file, trio.CancelScope() as scope:
            if give_up:
                scope.cancel()
            await one.fdatasync(file.fileno())
        bell = one._bell
        one.close()
        one.close()
        assert kernel.asked.count(one._destroy) == (0 if give_up else 1)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(bell)
        assert not one.is_free


def _slice_ns() -> int:
    """This thread's, by sched_getattr(2)."""
    number = {"x86_64": 315, "aarch64": 275}[platform.machine()]
    attributes = kernel_sync._Attributes()
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), ctypes.sizeof(attributes), 0) == 0
    return int(attributes.runtime)


def _in_a_thread(prepare: Callable[[], Any]) -> tuple[int, int, int]:
    """Slice, niceness and policy of a thread that has done `prepare`, then made a `KernelSync`."""

    def run() -> None:
        prepare()
        KernelSync().close()
        found.append((_slice_ns(), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)))

    offered().close()
    found: list[tuple[int, int, int]] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


# Of no other thread: they begin with the slice of who made them.
UNUSUAL_NS = 7_000_000
KNOWS_SLICES = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 12)


def test_the_kernels_worker_may_interrupt_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    nicer = min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19)

    def prepare() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, nicer)
        monkeypatch.setattr(kernel_sync, "SLICE_NS", UNUSUAL_NS)

    slice_ns, nice, policy = _in_a_thread(prepare)
    assert slice_ns == (UNUSUAL_NS if KNOWS_SLICES else 0)
    assert (nice, policy) == (nicer, os.SCHED_OTHER)


def test_a_thread_of_another_kind_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        monkeypatch.setattr(kernel_sync, "SLICE_NS", UNUSUAL_NS)

    slice_ns, _, policy = _in_a_thread(prepare)
    assert policy == os.SCHED_BATCH
    assert slice_ns != UNUSUAL_NS


def test_a_slice_that_is_refused_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    offered().close()
    *others, _ = kernel_sync._NUMBERS[platform.machine()]
    monkeypatch.setitem(kernel_sync._NUMBERS, platform.machine(), (*others, 9999))
    with structlog.testing.capture_logs() as entries:
        offered().close()
    assert [entry["event"] for entry in entries] == ["slice_refused"]


def test_an_unknown_machine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="pdp11"):
        KernelSync()
