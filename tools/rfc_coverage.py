# SPDX-License-Identifier: Apache-2.0
"""`docs/rfc-coverage.md`: which section of which RFC is followed where, and which test tries it; both ways round.

`python -m tools.rfc_coverage > docs/rfc-coverage.md`, or `make docs`; a test says when it was forgotten.  Read from
comments, docstrings and texts, where a citation is `RFC 5321 §4.5.3.2`; a bare `§` goes with the RFC before it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.rfc_titles import TITLES

ROOT = Path(__file__).resolve().parents[1]
QUIRKS = "docs/quirks.md"

_CITATION = re.compile(r"RFC\s+(?P<rfc>\d{3,5})(?:\s+to\s+(?P<last>\d{3,5}))?|§\s?(?P<section>[A-Z]?\d[\d.]*)|"
                       r"\b[Aa]ppendix\s+(?P<appendix>[A-Z](?:\.\d+)*)")  # fmt: skip
_NEAR = re.compile(r"[\s,;:()#/]*(?:and|or|to)?[\s,;:()#/]*$")


class Citation(NamedTuple):
    """A section (`§4.5.3.2`, `Appendix C`, "" for the whole RFC), and where it is named: file, and what of it."""

    rfc: int
    section: str
    file: str
    name: str


def find_all() -> list[Citation]:
    """Every citation of the repository, in the order of files."""
    found: list[Citation] = []
    for path in _files():
        file, text = path.relative_to(ROOT).as_posix(), path.read_text()
        texts = _texts(text) if path.suffix == ".py" else (("", line) for line in text.splitlines())
        found += [Citation(*cited, file, name) for name, words in texts for cited in _cited(words)]
    return list(dict.fromkeys(found))


def _files() -> list[Path]:
    files = [path for folder in ("hepmaild", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    files = [path for path in files if not {"__pycache__", "node_modules"} & set(path.parts)]
    return [*files, *sorted((ROOT / "tests" / "transcripts").glob("*.smtp")), ROOT / QUIRKS]


def _cited(text: str) -> Iterator[tuple[int, str]]:
    """The sections a text names.  An RFC without a section stands for itself, unless sections follow at once."""
    rfc, lone, end = 0, False, 0
    for match in _CITATION.finditer(text):
        if match["rfc"]:
            if lone:
                yield rfc, ""
            rfc, lone = int(match["rfc"]), True
            if match["last"]:
                yield from ((between, "") for between in range(rfc, int(match["last"])))
                rfc = int(match["last"])
        elif rfc:
            if lone and not _NEAR.match(text[end : match.start()]):
                yield rfc, ""
            lone = False
            section = match["section"]
            yield rfc, f"§{section.rstrip('.')}" if section else f"Appendix {match['appendix']}"
        end = match.end()
    if lone:
        yield rfc, ""


def _texts(source: str) -> Iterator[tuple[str, str]]:
    """Each comment (lines that follow one another are one), docstring and text, with the name of what it is in."""
    tree = ast.parse(source)
    names = _Names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield names.at(node.lineno), node.value
    block, begun, last = "", 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, alone = token.start[0], token.line.lstrip().startswith("#")
        if alone and line == last + 1:
            block += "\n" + token.string
        else:
            if block:
                yield names.at(begun), block
            block, begun = token.string, line
        last = line if alone else 0
    if block:
        yield names.at(begun), block


class _Names:
    """What a line belongs to: `Class.method`, a constant; a comment above one belongs to it."""

    def __init__(self, tree: ast.Module) -> None:
        self._spans: list[tuple[int, int, str]] = []
        self._add(tree.body, "", depth=0)

    def _add(self, body: list[ast.stmt], prefix: str, depth: int) -> None:
        end = 0
        for node in body:
            name = _name_of(node)
            if name:
                begin = node.lineno
                if end and depth == 0 and not _is_docstring(node):
                    begin = end + 1
                assert node.end_lineno is not None
                self._spans.append((begin, node.end_lineno, prefix + name))
                if isinstance(node, ast.ClassDef):
                    self._add(node.body, f"{prefix}{name}.", depth + 1)
            end = node.end_lineno or end

    def at(self, line: int) -> str:
        """The innermost name of a line; "" for the module itself."""
        fitting = [(end - begin, name) for begin, end, name in self._spans if begin <= line <= end]
        return min(fitting)[1] if fitting else ""


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr)


def _name_of(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    target = (
        node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
    )
    return target.id if isinstance(target, ast.Name) else ""


def _order(section: str) -> tuple[object, ...]:
    """Sections as numbers, appendices behind them, the whole RFC first."""
    kind = 0 if not section else 1 if section[0] == "§" else 2
    return kind, [(int(part) if part.isdigit() else 0, part) for part in re.split(r"\.", section.lstrip("§"))]


def render() -> str:
    """The whole page."""
    found = find_all()
    code = [c for c in found if c.file.startswith("hepmaild/")]
    tests = [c for c in found if c.file.startswith("tests/")]
    quirks = {(c.rfc, c.section) for c in found if c.file == QUIRKS}
    sections = {(c.rfc, c.section) for c in code}
    tried = sections & {(c.rfc, c.section) for c in tests}
    parts = [_INTRODUCTION.format(sections=len(sections), rfcs=len({rfc for rfc, _ in sections}), tried=len(tried))]
    for rfc in sorted({c.rfc for c in found}):
        parts += ["", f"### [RFC {rfc}](https://www.rfc-editor.org/rfc/rfc{rfc}){_title(rfc)}", "",
                  "| section | code | tests |", "|---|---|---|"]  # fmt: skip
        for section in sorted({c.section for c in found if c.rfc == rfc}, key=_order):
            marks = " ([quirk](quirks.md))" if (rfc, section) in quirks else ""
            cells = (_places([c for c in group if (c.rfc, c.section) == (rfc, section)]) for group in (code, tests))
            parts.append(f"| {section or 'as a whole'}{marks} | " + " | ".join(cells) + " |")
    parts += ["", "## By file", "", "| file | follows |", "|---|---|"]
    for file in dict.fromkeys(c.file for c in code):
        parts.append(f"| {_link(file, file)} | {_sections([c for c in code if c.file == file])} |")
    return "\n".join(parts) + "\n"


def _title(rfc: int) -> str:
    return f": {TITLES[rfc]}" if rfc in TITLES else ""


def _link(file: str, words: str) -> str:
    return f"[`{words}`](../{file})"


def _places(citations: list[Citation]) -> str:
    """Files with the names in them, a file once."""
    by_file: dict[str, list[str]] = {}
    for citation in citations:
        by_file.setdefault(citation.file, []).append(citation.name)
    cells = []
    for file, names in by_file.items():
        shown = file.split("/", 1)[1]
        inner = ", ".join(f"`{name}`" for name in dict.fromkeys(names) if name)
        cells.append(_link(file, shown) + (f" {inner}" if inner else ""))
    return "<br>".join(cells)


def _sections(citations: list[Citation]) -> str:
    by_rfc: dict[int, set[str]] = {}
    for citation in citations:
        by_rfc.setdefault(citation.rfc, set()).add(citation.section)
    return "; ".join(
        f"RFC {rfc} {', '.join(sorted(sections, key=_order))}".replace("  ", " ").strip().replace(" ,", "")
        for rfc, sections in sorted(by_rfc.items())
    )


_INTRODUCTION = """\
<!-- Made by `make docs` from comments and docstrings; do not edit. -->
# RFCs: where each section is followed

Comments, docstrings and texts name the section they follow; this page is gathered from them: {sections} sections (or
whole documents) of {rfcs} RFCs, {tried} of them named by a test too. A section without a test here may well be tested
by one that does not name it; a file that is not here has nothing that an RFC decides. Where we leave an RFC, or choose
where it lets us, is in [quirks.md](quirks.md), and marked "quirk".

## By RFC"""


if __name__ == "__main__":
    sys.stdout.write(render())
