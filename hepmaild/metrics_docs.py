# SPDX-License-Identifier: Apache-2.0
"""The tables in docs/metrics.md: `make docs` has them made anew, and a test sees to it that they are as here."""

from __future__ import annotations

import sys

from hepmaild.metrics import SECTIONS, Family

BEGIN, END = "<!-- made from hepmaild/metrics.py by `make docs` -->\n", "<!-- end -->\n"


def render(page: str) -> str:
    """The page with its tables as they should be.  Raises ValueError when it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no place for the tables")
    return before + BEGIN + "\n" + tables() + END + after


def tables() -> str:
    """A heading and a table for each section."""
    lines = []
    for title, families in SECTIONS.items():
        lines += [f"## {title}", "", "| Name | Type | Labels | Meaning |", "|---|---|---|---|"]
        lines += [_row(family) for family in families]
        lines.append("")
    return "".join(f"{line}\n" for line in lines)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.doc} |"


if __name__ == "__main__":
    sys.stdout.write(render(sys.stdin.read()))
