# SPDX-License-Identifier: Apache-2.0
"""Large blocks go back to the system once they are freed, in a process of its own: the C library's options stay set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
GLIBC = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="only with glibc")
# One block of 24 MiB was freed; then another of 3 and one of 1 are there: how much lies outside of the heaps.
PROGRAM = """
import ctypes, json, os
from hepmaild.memory import give_back_large_blocks

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
done = give_back_large_blocks(os.environ)
libc.free(libc.malloc(24 << 20))
before = libc.mallinfo2().hblkhd
outside = []
for octets in (3 << 20, 1 << 20):
    libc.malloc(octets)
    outside.append(libc.mallinfo2().hblkhd - before)
print(json.dumps([done, *outside]))
"""


def outside_the_heaps(**env: str) -> tuple[bool, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        check=True,
        text=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found[0], found[1] // MIB, found[2] // MIB


@GLIBC
def test_large_blocks_stay_outside_of_the_heaps() -> None:
    """Also after the largest one: by itself glibc would take each that is smaller for an ordinary one from then on."""
    assert outside_the_heaps() == (True, 3, 3)


@GLIBC
@pytest.mark.parametrize(
    "env", [{"MALLOC_MMAP_THRESHOLD_": "33554432"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}]
)
def test_who_says_otherwise_is_obeyed(env: dict[str, str]) -> None:
    assert outside_the_heaps(**env) == (False, 0, 0)
