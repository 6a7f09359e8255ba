# SPDX-License-Identifier: Apache-2.0
"""The pages that are made from the source are as the source is now, and what they are made with sees right."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from hepmaild.smtp.state import REFUSALS, State
from tools import decisions_index, rfc_coverage, smtp_walk, state_picture

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = DOCS.parent / "hepmaild"


def test_the_picture_of_states_is_current() -> None:
    picture = (DOCS / "smtp-states.svg").read_text()
    assert picture == state_picture.render(), "run `make docs`"
    ET.fromstring(picture)


def test_the_page_of_rfcs_is_current() -> None:
    assert (DOCS / "rfc-coverage.md").read_text() == rfc_coverage.render(), "run `make docs`"


def test_the_list_of_decisions_is_current() -> None:
    assert (DOCS / "decisions" / "README.md").read_text() == decisions_index.render(), "run `make docs`"


def test_the_map_has_every_module_and_every_folder() -> None:
    """Of the package's first level; what is further in is said by the folder itself."""
    found = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    found |= {f"{path.parent.name}/" for path in PACKAGE.glob("*/*.py")}
    page = (DOCS / "architecture.md").read_text()
    assert not sorted(name for name in found if f"| `{name}`" not in page and f"` `{name}`" not in page)


def test_every_folder_says_what_is_in_it() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE / "storage" / "migrations" / "versions"}
    for folder in folders:
        begin = folder / "__init__.py"
        assert begin.exists(), f"{folder} has no __init__.py"
        assert ast.get_docstring(ast.parse(begin.read_text())), f"{begin} says nothing"


def test_the_walk_comes_everywhere_and_hears_what_the_table_says() -> None:
    steps = smtp_walk.walk()
    assert {step.state for step in steps} == set(State)
    for step in steps:
        refusal = REFUSALS[step.state][smtp_walk.EXAMPLES[step.command][0]]
        if refusal is not None:
            assert (step.reply, step.after) == (refusal.text, step.state), step
        else:
            assert step.reply[0] in "23", step


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("RFC 5321", [(5321, "")]),
        ("RFC 5321 §4.5.3.2.", [(5321, "§4.5.3.2")]),
        ("RFC 5321 §4.2.1, §4.3.2 and Appendix C", [(5321, "§4.2.1"), (5321, "§4.3.2"), (5321, "Appendix C")]),
        ("RFC 7672, RFC 7671\n    §9; it asks (§5.1)", [(7672, ""), (7671, "§9"), (7671, "§5.1")]),
        ("RFC 2045 to 2047", [(2045, ""), (2046, ""), (2047, "")]),
        ("RFC 6376 says much; more in §3", [(6376, ""), (6376, "§3")]),
        ("§4 of nothing", []),
    ],
)
def test_citations(text: str, found: list[tuple[int, str]]) -> None:
    assert list(rfc_coverage._cited(text)) == found


def test_a_citation_belongs_to_what_it_stands_at() -> None:
    source = """'All: RFC 1.'
# of A
# and on
A = 1  # a
B = 2  # b


class C:
    'c'

    def d(self):
        return "e"
"""
    texts = {text.strip("# "): name for name, text in rfc_coverage._texts(source)}
    assert texts == {"All: RFC 1.": "", "of A\n# and on": "A", "a": "A", "b": "B", "c": "C", "e": "C.d"}
