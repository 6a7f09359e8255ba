# SPDX-License-Identifier: Apache-2.0
"""Getting the database file onto the disk a little at a time, so that the syncs of the log need not queue behind it.

A checkpoint copies hundreds of pages, scattered over the file, into the kernel's cache.  Synced at once they keep the
disk busy for as long as ten syncs of the log take, and every answer waits (docs/decisions/0125).
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from pathlib import Path
from typing import Any

import trio

PAUSE_S = 0.004  # between two parts, for whoever else wants the disk
_LEAST_OCTETS = 65_536
# sync_file_range(2): SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
_WRITE_AND_WAIT = 7
_REFUSALS = {errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESPIPE}  # not of this system, or not for this file


class PageFile:
    """The database file, held open.

    Closing *any* descriptor of a file takes the POSIX locks that this process has on it, SQLite's among them, so that
    another process could take the log for left behind: close this after the last connection.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._write: Any = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
        if self._write is not None:
            self._write.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def sync(self, parts: int) -> None:
        """Everything that is in the kernel's cache, in so many parts of the file; then `os.fdatasync`.

        In a thread of `trio.to_thread`: cancelled, it raises `trio.Cancelled` at the next part.  Raises OSError.
        """
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        if self._write is not None:
            self._write_out(parts)
        os.fdatasync(self._descriptor)

    def _write_out(self, parts: int) -> None:
        octets = os.fstat(self._descriptor).st_size
        part = max(_LEAST_OCTETS, octets // parts)
        for at in range(0, octets, part):
            if self._write(self._descriptor, at, part, _WRITE_AND_WAIT) != 0:
                number = ctypes.get_errno()
                if number in _REFUSALS:  # the sync has more to do
                    return
                # Raised here: the kernel tells a descriptor once of what could not be written.
                raise OSError(number, os.strerror(number))
            time.sleep(PAUSE_S)
            trio.from_thread.check_cancelled()

    def close(self) -> None:
        """Opened again when it is needed."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
