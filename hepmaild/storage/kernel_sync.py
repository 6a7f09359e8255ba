# SPDX-License-Identifier: Apache-2.0
"""Syncing a file without a thread: the kernel is asked, and rings an event descriptor that the loop waits for (Trio).

A thread has to get the interpreter back before the loop hears of a sync, which cost the latest answers at half load
nearly as much as the sync itself (docs/decisions/0123).  Python offers no such call, so it is made by number:
io_submit(2) with `IOCB_CMD_FDSYNC`, Linux 4.18.  Where that is refused (another kernel or machine, a container that
forbids it) there is no `KernelSync`.
"""

from __future__ import annotations

import ctypes
import os
import platform

import structlog
import trio

log = structlog.get_logger()

# io_setup, io_destroy, io_submit, io_getevents, sched_setattr
_NUMBERS = {"x86_64": (206, 207, 209, 208, 314), "aarch64": (0, 1, 2, 4, 274)}
SLICE_NS = 5_000_000  # of processor time; the kernel's own choice is 3 ms at most
_FDSYNC = 3
_RINGS = 1  # IOCB_FLAG_RESFD
_EVENTS = 4  # room for completions; there is never more than one


class _Request(ctypes.Structure):
    """`struct iocb` of linux/aio_abi.h, on little-endian machines."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("octets", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("bell", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """`struct io_event`."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class _Attributes(ctypes.Structure):
    """`struct sched_attr` of linux/sched/types.h in its first version.  runtime: the slice in nanoseconds."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


class KernelSync:
    """One sync at a time, for the thread that makes this.  Raises OSError where the kernel does not offer it."""

    def __init__(self) -> None:
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(f"unknown system call numbers on {platform.machine()}")
        setup, self._destroy, self._submit, self._get_events, set_attributes = numbers
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        if self._call(setup, _EVENTS, ctypes.byref(self._context)) != 0:
            raise _error()
        self._give_way(set_attributes)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._request = _Request(opcode=_FDSYNC, flags=_RINGS, bell=self._bell)
        self._requests = (ctypes.POINTER(_Request) * 1)(ctypes.pointer(self._request))
        self._event = _Event()
        self._one = ctypes.c_long(1)
        self.is_free = True

    def _give_way(self, set_attributes: int) -> None:
        """Have this thread interrupted by the kernel's worker (EEVDF; before Linux 6.12 nothing comes of it).

        The worker runs on the processor that asked for the sync, and needs it for every step of it.  Among threads with
        slices of one length it would have to wait until the loop sleeps or its slice is over; a shorter one goes first.
        """
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attributes = _Attributes(size=ctypes.sizeof(_Attributes), nice=nice, runtime=SLICE_NS)
        if self._call(set_attributes, 0, ctypes.byref(attributes), 0) != 0:
            log.info("slice_refused", reason=str(_error()))

    async def fdatasync(self, descriptor: int) -> bool:
        """As `os.fdatasync`.  False: the kernel did not take it, and nothing was synced.

        Raises OSError when the sync failed.  Cancelled, the sync goes on, and this is never free again: who hears of
        its end would take it for that of a later one.
        """
        self._request.descriptor = descriptor
        if self._call(self._submit, self._context, self._one, self._requests) != 1:
            return False
        self.is_free = False
        await trio.lowlevel.wait_readable(self._bell)
        os.eventfd_read(self._bell)
        if self._call(self._get_events, self._context, self._one, self._one, ctypes.byref(self._event), None) != 1:
            raise _error()
        self.is_free = True
        if self._event.result < 0:
            number = -self._event.result
            raise OSError(number, os.strerror(number))
        return True

    def close(self) -> None:
        """For good.  While a sync is under way its context is left to the end of the process: it may hang."""
        bell, self._bell = self._bell, -1
        if bell < 0:
            return
        if self.is_free:
            self._call(self._destroy, self._context)
        self.is_free = False
        os.close(bell)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
