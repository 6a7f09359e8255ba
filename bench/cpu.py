# SPDX-License-Identifier: Apache-2.0
"""Processor time of a whole process tree, from /proc: those that live, and those that were waited for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    ticks: int


def _processes() -> list[_Process]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:  # it has just ended
            continue
        # The name stands in parentheses and may hold anything; what follows is regular.
        fields = text[text.rindex(")") + 2 :].split()
        # utime, stime, and both of children that ended and were waited for: fields 14 to 17 of proc(5).
        found.append(_Process(int(entry.name), int(fields[1]), sum(int(field) for field in fields[11:15])))
    return found


def tree_cpu_ms(root: int) -> float:
    """Milliseconds of processor time that a process and all its descendants, also ended ones, have used so far."""
    processes = _processes()
    inside = {root}
    grew = True
    while grew:
        more = {process.pid for process in processes if process.parent in inside} - inside
        inside |= more
        grew = bool(more)
    ticks = sum(process.ticks for process in processes if process.pid in inside)
    return ticks * 1000 / TICKS_PER_SECOND


def tree_pids(root: int) -> list[int]:
    """A process and all its living descendants."""
    processes = _processes()
    inside = {root}
    grew = True
    while grew:
        more = {process.pid for process in processes if process.parent in inside} - inside
        inside |= more
        grew = bool(more)
    return sorted(inside)
