# SPDX-License-Identifier: Apache-2.0
"""What a running process has in its memory: all that a core dump would hold."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 8 << 20
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)$")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """While the process stands still, as it does for gcore."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def count_in_memory(pid: int, needles: Iterable[bytes]) -> dict[bytes, int]:
    """How often each of these is found in the memory that a core dump of the process would hold."""
    found = dict.fromkeys(needles, 0)
    overlap = max(map(len, found)) - 1
    with stopped(pid), Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _mappings(pid):
            tail = b""
            for at in range(start, end, CHUNK):
                try:
                    memory.seek(at)
                    piece = memory.read(min(CHUNK, end - at))
                except (OSError, ValueError, OverflowError):  # a guard page, or the kernel's own
                    break
                text = tail + piece
                for needle in found:
                    found[needle] += text.count(needle)
                tail = text[-overlap:] if overlap else b""
                tail = _without_counted(tail, found)
    return found


def _without_counted(tail: bytes, needles: Iterable[bytes]) -> bytes:
    """What the next piece is looked at with must not hold a whole needle again: it was counted."""
    for needle in needles:
        if needle in tail:
            tail = tail[tail.rindex(needle) + 1 :]
    return tail


def _mappings(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = _MAPPING.match(line)
        if match is not None and match[3].startswith("r") and match[4] not in {"[vvar]", "[vsyscall]"}:
            yield int(match[1], 16), int(match[2], 16)
