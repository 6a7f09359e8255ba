# SPDX-License-Identifier: Apache-2.0
"""Which settings a running daemon cannot take: it says so at every reload in which they differ.  Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from hepmaild.config import Settings

# Whole sections by their name, single keys as `section.key`.  All others are taken by `daemon._take_settings`, which
# tests/project/test_reload.py holds against this.
AT_START = (
    "server",
    "database",
    "tls",
    "smtp.starttls",
    "smtp.implicit_tls",
    "http",
    "delivery.workers",
    "delivery.lease_s",
    "delivery.body_days",
    "dns",
    "metrics",
)


def needs_restart(running: Settings, wanted: Settings) -> list[str]:
    """The settings, as `section.key`, that differ from those that the daemon began with and wait for its next start."""
    found = []
    for name in AT_START:
        section, _, key = name.partition(".")
        old, new = getattr(running, section), getattr(wanted, section)
        keys = [key] if key else [field.name for field in dataclasses.fields(old)]
        found += [f"{section}.{key}" for key in keys if _differ(old, new, key)]
    return found


def _differ(old: Any, new: Any, key: str) -> bool:
    return bool(getattr(old, key) != getattr(new, key))
