# SPDX-License-Identifier: Apache-2.0
"""`docs/smtp-states.svg`: what is allowed when at the submission door, and where it leads.

`python -m tools.state_picture > docs/smtp-states.svg`, or `make docs`; a test says when it was forgotten.  Nothing is
drawn from memory: refusals are the cells of `hepmaild.smtp.state`, arrows are what a machine did (`smtp_walk`).
"""

from __future__ import annotations

import sys
from xml.sax.saxutils import escape

from hepmaild.smtp.state import REFUSALS, State
from tools.smtp_walk import EXAMPLES, Step, walk

LEFT, COLUMN, ROW = 116, 152, 34
BOX_TOP, BOX_HEIGHT = 188, 56
TABLE_TOP = BOX_TOP + BOX_HEIGHT + 166
WIDTH = LEFT + COLUMN * len(State) + 16
HEIGHT = TABLE_TOP + ROW * len(EXAMPLES) + 46

MEANING = {
    State.CONNECTED: "before EHLO",
    State.PLAIN: "greeted, no TLS",
    State.SECURED: "greeted under TLS",
    State.READY: "authenticated",
    State.MAIL: "a reverse-path",
    State.RCPT: "a recipient, or more",
    State.CHUNKS: "content by BDAT begun",
}

STYLE = """
svg { --paper: #ffffff; --ink: #1d2329; --soft: #5d6873; --line: #d4dae0; --head: #f1f4f6;
      --yes: #0b6e75; --yes-paper: #e6f3f3; --no: #6b4a4f; color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14181c; --ink: #e4e8ec; --soft: #9aa5b0; --line: #333c45; --head: #1c2228;
        --yes: #62c6cc; --yes-paper: #16302f; --no: #c0a0a4 }
}
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink) }
.title { font-size: 17px; font-weight: 600 }
.soft { fill: var(--soft); font-size: 11px }
.state { font-weight: 600; font-size: 14px }
.code { font: 12px ui-monospace, "DejaVu Sans Mono", monospace }
.yes { fill: var(--yes) }
.no { fill: var(--no) }
.arrow { fill: none; stroke: var(--yes); stroke-width: 1.4 }
.label { fill: var(--yes); stroke: var(--paper); stroke-width: 5px; paint-order: stroke; stroke-linejoin: round }
.head { fill: var(--yes) }
"""


_BEGIN = f"""\
<!-- Made by `make docs` from hepmaild/smtp/state.py and machine.py; do not edit. -->
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"
 role="img" aria-labelledby="name about">
<title id="name">States of a submission session</title>
<desc id="about">Seven states from left to right; arrows are commands that lead from one to another. The table below
 gives for each command and state the reply and the state that follows.</desc>
<style>{STYLE}</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--paper)"/>"""


def render() -> str:
    """The whole picture."""
    steps = walk()
    return "\n".join([_BEGIN, *_words(), *_boxes(), *_arrows(steps), *_table(steps), "</svg>", ""])


def _text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "middle", title: str = "") -> str:
    inner = (f"<title>{escape(title)}</title>" if title else "") + escape(words)
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{inner}</text>'


def _centre(state: State) -> float:
    return LEFT + COLUMN * (list(State).index(state) + 0.5)


def _words() -> list[str]:
    top = "On port 465 TLS comes first, and EHLO leads to SECURED. QUIT ends a session anywhere. HELO is like EHLO."
    foot = (
        "Each cell: the reply, and the state that follows where it is another. Without colour: refused. "
        "The reply to the content itself comes after the 354, or to BDAT LAST."
    )
    return [
        _text(16, 32, "States of a submission session", "title", anchor="start"),
        _text(16, 52, top, "soft", anchor="start"),
        _text(16, HEIGHT - 18, foot, "soft", anchor="start"),
    ]


def _boxes() -> list[str]:
    parts = []
    for state in State:
        x = _centre(state)
        parts.append(
            f'<rect x="{x - COLUMN / 2 + 9:g}" y="{BOX_TOP}" width="{COLUMN - 18}" height="{BOX_HEIGHT}" rx="8" '
            'fill="var(--head)" stroke="var(--line)"/>'
        )
        parts.append(_text(x, BOX_TOP + 24, state.name, "state"))
        parts.append(_text(x, BOX_TOP + 42, MEANING[state], "soft"))
    return parts


def _moves(steps: list[Step]) -> dict[tuple[State, State], list[str]]:
    """The commands that lead from one state to another, in the order of the table; HELO leads where EHLO does."""
    moves: dict[tuple[State, State], list[str]] = {}
    for step in steps:
        if step.after is None or step.after is step.state or step.command == "HELO":
            continue
        elsewhere = any(
            (other.state, other.command) == (step.state, step.command) and other.after is not step.after
            for other in steps
        )
        name = f"{step.command} {'under' if step.under_tls else 'without'} TLS" if elsewhere else step.command
        names = moves.setdefault((step.state, step.after), [])
        if name not in names:
            names.append(name)
    return moves


def _arrows(steps: list[Step]) -> list[str]:
    """Forward over the boxes, their words on top; back under them, their words beside where they begin."""
    parts = []
    order = list(State)
    for (start, end), names in _moves(steps).items():
        distance = order.index(end) - order.index(start)
        if distance > 0:
            edge, bend = BOX_TOP, -34 - 44 * distance
            x1, x2 = _centre(start) + (26 if distance == 1 else -34), _centre(end) - 26
        else:
            edge, bend, x1, x2 = BOX_TOP + BOX_HEIGHT, 34 - 50 * distance, _centre(start) - 26, _centre(end) + 26
        parts.append(
            f'<path class="arrow" marker-end="url(#head)" '
            f'd="M{x1:g} {edge} C{x1:g} {edge + bend:g} {x2:g} {edge + bend:g} {x2:g} {edge}"/>'
        )
        if distance > 0:  # a cubic curve comes three quarters of the way to its handles
            parts.append(_text((x1 + x2) / 2, edge + 0.75 * bend - 8, ", ".join(names), "label"))
            continue
        lines = (", ".join(names[at : at + 2]) for at in range(0, len(names), 2))
        for number, line in enumerate(lines):
            parts.append(_text(x1 + 6, edge + 0.5 * bend + 15 * number, line, "label", anchor="start"))
    return parts


def _table(steps: list[Step]) -> list[str]:
    parts = []
    for row, (name, (verb, _octets)) in enumerate(EXAMPLES.items()):
        top = TABLE_TOP + ROW * row
        parts.append(f'<path d="M16 {top} H{WIDTH - 16}" stroke="var(--line)"/>')
        parts.append(_text(16, top + 22, name, "code", anchor="start"))
        for state in State:
            here = [step for step in steps if step.state is state and step.command == name]
            refusal = REFUSALS[state][verb]
            if refusal is not None:
                parts.append(_text(_centre(state), top + 22, refusal.text[:10].strip(), "code no", title=refusal.text))
            else:
                parts += _allowed(_centre(state), top, here)
    return parts


def _allowed(x: float, top: float, here: list[Step]) -> list[str]:
    """A cell of a command that may proceed, in one state with and without TLS."""
    after: list[str] = []
    for step in here:
        where = "end" if step.after is None else "stays" if step.after is step.state else step.after.name
        if where not in after:
            after.append(where)
    words = f"{here[0].reply[:3]} → {' / '.join(after)}" if after != ["stays"] else here[0].reply[:3]
    kind = "code yes" if len(words) < 17 else "soft yes"
    left, width, height = x - COLUMN / 2 + 3, COLUMN - 6, ROW - 8
    shape = f'<rect x="{left:g}" y="{top + 4:g}" width="{width}" height="{height}" rx="5" fill="var(--yes-paper)"/>'
    return [shape, _text(x, top + 22, words, kind, title=here[0].reply)]


if __name__ == "__main__":
    sys.stdout.write(render())
