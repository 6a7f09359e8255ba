# SPDX-License-Identifier: Apache-2.0
"""The C library's memory: what the environment made of it before Python began (docs/decisions/0120-freed-memory.md),
and what is given back to the system (0129-large-blocks.md)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

LARGE_OCTETS = 2 << 20
SPARE_OCTETS = 4 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def is_overwritten(environ: Mapping[str, str]) -> bool:
    """Whether what is freed is overwritten in a process with this environment: the units' two variables, with glibc."""
    tunables = dict(one.partition("=")[::2] for one in environ.get("GLIBC_TUNABLES", "").split(":"))
    return (
        "CS_GNU_LIBC_VERSION" in os.confstr_names
        and environ.get("PYTHONMALLOC") == "malloc"
        and tunables.get("glibc.malloc.perturb", "0") != "0"
        and tunables.get("glibc.malloc.tcache_count") == "0"
    )


def give_back_large_blocks(environ: Mapping[str, str]) -> bool:
    """From now on blocks of 2 MiB are the system's again once they are freed.  False: not with this C library, or the
    environment says otherwise.

    By itself glibc takes the largest block that was ever freed, up to 32 MiB, for an ordinary one: those like it then
    lie in heaps between small ones, and at the end of each heap twice as much stays.
    """
    said = "MALLOC_MMAP_THRESHOLD_" in environ or "glibc.malloc.mmap_threshold" in environ.get("GLIBC_TUNABLES", "")
    set_option = None if said else getattr(ctypes.CDLL(None), "mallopt", None)
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names or set_option is None:
        return False
    return bool(set_option(_M_MMAP_THRESHOLD, LARGE_OCTETS) and set_option(_M_TRIM_THRESHOLD, SPARE_OCTETS))
