# SPDX-License-Identifier: Apache-2.0
"""Tables for people, JSON for machines."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


class Table:
    """A small table of text, shown at once when it is full."""

    def __init__(self, title: str, columns: tuple[str, ...]) -> None:
        self.title = title
        self.rows: list[tuple[str, ...]] = [columns]

    def add(self, *cells: str | float) -> None:
        self.rows.append(tuple(cell if isinstance(cell, str) else _number(cell) for cell in cells))

    def show(self) -> None:
        widths = [max(len(row[index]) for row in self.rows) for index in range(len(self.rows[0]))]
        print(f"\n{self.title}")
        for row in self.rows:
            first, *rest = zip(row, widths, strict=True)
            cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
            print("  " + "  ".join(cells), flush=True)


def _number(value: float) -> str:
    if value == 0:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def save(name: str, results: dict[str, Any]) -> Path:
    """Write results with the machine they came from to bench/results/ (not committed)."""
    RESULTS.mkdir(exist_ok=True)
    now = dt.datetime.now(dt.UTC)
    path = RESULTS / f"{name}-{now:%Y%m%dT%H%M%SZ}.json"
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    path.write_text(json.dumps({"at": now.isoformat(), "machine": machine, "results": results}, indent=1))
    print(f"\nall runs: {path}")
    return path
