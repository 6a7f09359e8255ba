# SPDX-License-Identifier: Apache-2.0
"""`docs/decisions/README.md`: the decisions by their titles.

`python -m tools.decisions_index > docs/decisions/README.md`, or `make docs`; a test says when it was forgotten.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "decisions"
_TITLE = re.compile(r"# (\d{4}): (.+)")


def render() -> str:
    """The page.  Raises ValueError for a decision whose first line is not `# NNNN: Title`."""
    return "\n".join([_INTRODUCTION, *_lines(), ""])


def _lines() -> Iterator[str]:
    for path in sorted(FOLDER.glob("[0-9]*.md")):
        first = path.read_text().partition("\n")[0]
        found = _TITLE.fullmatch(first)
        if found is None or not path.name.startswith(f"{found[1]}-"):
            raise ValueError(f"{path.name} begins with {first!r}: write # {path.name[:4]}: and its title")
        yield f"- [{found[1]}]({path.name}) {found[2]}"


_INTRODUCTION = """\
<!-- Made by `make docs` from the titles; do not edit. -->
# Decisions

What was decided, why, and instead of what. How one is written: [0001](0001-template.md).
"""


if __name__ == "__main__":
    sys.stdout.write(render())
