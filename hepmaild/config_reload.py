# SPDX-License-Identifier: Apache-2.0
"""Which settings a running daemon cannot take: told and kept at every reload in which they differ.  Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
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
    return [
        f"{section}.{key}"
        for section, key in _kept(running)
        if _differ(getattr(running, section), getattr(wanted, section), key)
    ]


def until_restart(running: Settings, wanted: Settings) -> Settings:
    """What holds until then: `wanted`, with the keys of `running` that wait for the next start.

    Nothing may go by those any earlier: pages would name doors that nobody listens at, and take the forms of the
    address that people still use for another site's.
    """
    for section, key in _kept(running):
        kept = {key: getattr(getattr(running, section), key)}
        wanted = dataclasses.replace(wanted, **{section: dataclasses.replace(getattr(wanted, section), **kept)})
    return wanted


def _kept(settings: Settings) -> Iterator[tuple[str, str]]:
    """Section and key of each setting that is read at the start only."""
    for name in AT_START:
        section, _, key = name.partition(".")
        for field in dataclasses.fields(getattr(settings, section)):
            if key in ("", field.name):
                yield section, field.name


def _differ(old: Any, new: Any, key: str) -> bool:
    return bool(getattr(old, key) != getattr(new, key))
