# SPDX-License-Identifier: Apache-2.0
"""What the environment made of memory before Python began (docs/decisions/0120-freed-memory.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping


def is_overwritten(environ: Mapping[str, str]) -> bool:
    """Whether what is freed is overwritten in a process with this environment: the units' two variables, with glibc."""
    tunables = dict(one.partition("=")[::2] for one in environ.get("GLIBC_TUNABLES", "").split(":"))
    return (
        "CS_GNU_LIBC_VERSION" in os.confstr_names
        and environ.get("PYTHONMALLOC") == "malloc"
        and tunables.get("glibc.malloc.perturb", "0") != "0"
        and tunables.get("glibc.malloc.tcache_count") == "0"
    )
