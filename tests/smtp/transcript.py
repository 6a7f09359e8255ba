# SPDX-License-Identifier: Apache-2.0
"""SMTP dialogues as text files, and a player that plays the client's side against anything that answers.

tests/transcripts/*.smtp.  First header lines `word: value` up to an empty line, then the dialogue:

    # a comment
    S: 250 2.1.0 *          the last line of the next reply, as a shell pattern
    S~: 250-SIZE *          some line of the next reply; before its `S:`
    C: NOOP                 a line, CRLF added; consecutive C lines travel in one write
    C=: bare\\nLF\\r\\n        octets as written, with the escapes \\r \\n \\0 \\\\ and nothing added
    C*: 100 RCPT TO:<r#@example.com>     a line so many times; # counts from 1
    Cx: 5000 A\\r\\n          octets so many times in one line
    - starttls              the client's side of the handshake
    - close                 the server has closed the connection, in order
    - wait idle             the idle time-out passes
    - drain                 the daemon begins to stop

`{key}`, `{b64key}`, `{plain}` (SASL PLAIN), `{from}`, `{to}` stand for what the peer under test knows; write `{{` for a
brace.  Headers:

    row:      which row of the contract's reply table it shows; may be given several times
    needs:    the state the daemon must be in: `none`, `account=suspended`, `key=disabled`, `key=expired`,
              `key=other-ip`, `key=http-only`, `key=unknown`, `store=down`, `store=down-after-auth`, `rate=used-up`,
              `credits=0`, `credits=0-after-data`, `plan=one-a-day`, `backlog=0`, `hop=refuses`,
              `key=disabled-after-auth`, `connections=0`
    intake:   the same for the scripted intake: `auth=… mail=… call=… message=…`, each `ok`, `store-down`, or kinds of
              refusal (`RATE_LIMITED:7` with its seconds); several with commas, one a call, the last one repeats
    door:     `starttls` (default) or `implicit`
    limits:   `size=1000 recipients=3`; a real daemon needs them in its settings
    on:       where it can be played: `machine`, `memory`, `tcp` (default: all)
"""

from __future__ import annotations

import base64
import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

FOLDER = Path(__file__).parent.parent / "transcripts"
PLACES = ("machine", "memory", "tcp")
_ESCAPE = re.compile(r"\\(r|n|0|\\)")
_ESCAPED = {"r": "\r", "n": "\n", "0": "\0", "\\": "\\"}
_STEP = re.compile(r"(S~|S|C=|C\*|Cx|C|-)(?::| )\s?(.*)")


@dataclass(frozen=True)
class Values:
    """What stands for the words in braces."""

    key: str = "hyd-mail-secret-of-the-test"
    sender: str = "noreply@example.com"
    recipient: str = "someone@example.net"

    def fill(self, text: str) -> str:
        plain = base64.b64encode(f"\0user\0{self.key}".encode()).decode()
        b64key = base64.b64encode(self.key.encode()).decode()
        words = {"key": self.key, "plain": plain, "b64key": b64key, "from": self.sender, "to": self.recipient}
        for word, value in words.items():
            text = text.replace("{" + word + "}", value)
        return text.replace("{{", "{")


@dataclass(frozen=True)
class Step:
    """verb: `send`, `expect`, `expect-some`, or the word of a directive."""

    number: int
    verb: str
    text: str


@dataclass
class Dialogue:
    """One file."""

    path: Path
    title: str = ""
    rows: list[str] = field(default_factory=list)
    needs: str = "none"
    intake: dict[str, list[str]] = field(default_factory=dict)
    implicit: bool = False
    size: int = 26_214_400
    recipients: int = 100
    places: tuple[str, ...] = PLACES
    steps: list[Step] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.stem


def load(path: Path) -> Dialogue:
    """Read one file; ValueError names the line that is wrong."""
    dialogue = Dialogue(path)
    lines = path.read_text("utf-8").splitlines()
    start = lines.index("")
    for number, line in enumerate(lines[:start], 1):
        if line.startswith("#"):
            dialogue.title = dialogue.title or line.lstrip("# ")
            continue
        word, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"{path.name}:{number}: not a header line")
        _header(dialogue, word, value.strip(), f"{path.name}:{number}")
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _STEP.fullmatch(line)
        if match is None:
            raise ValueError(f"{path.name}:{number}: not a step: {line}")
        dialogue.steps.append(_step(number, match[1], match[2]))
    return dialogue


def load_all() -> list[Dialogue]:
    """Every dialogue, by name."""
    return [load(path) for path in sorted(FOLDER.glob("*.smtp"))]


def _header(dialogue: Dialogue, word: str, value: str, where: str) -> None:
    match word:
        case "row":
            dialogue.rows.append(value)
        case "needs":
            dialogue.needs = value
        case "intake":
            for pair in value.split():
                question, _, answers = pair.partition("=")
                dialogue.intake[question] = answers.split(",")
        case "door":
            dialogue.implicit = value == "implicit"
        case "limits":
            for pair in value.split():
                name, _, number = pair.partition("=")
                setattr(dialogue, name, int(number))
        case "on":
            dialogue.places = tuple(value.split())
        case _:
            raise ValueError(f"{where}: unknown header {word}")


def _step(number: int, mark: str, text: str) -> Step:
    match mark:
        case "S":
            return Step(number, "expect", text)
        case "S~":
            return Step(number, "expect-some", text)
        case "C":
            return Step(number, "send", text + "\r\n")
        case "C=":
            return Step(number, "send", _unescape(text))
        case "C*":
            times, _, line = text.partition(" ")
            lines = [line.replace("#", str(n)) + "\r\n" for n in range(1, int(times) + 1)]
            return Step(number, "send", "".join(lines))
        case "Cx":
            times, _, octets = text.partition(" ")
            return Step(number, "send", _unescape(octets) * int(times))
        case _:
            return Step(number, text.strip(), "")


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED[match[1]], text)


class Peer(Protocol):
    """What a dialogue is played against: a machine, a session on memory streams, a daemon behind a socket."""

    async def send(self, octets: bytes) -> None:
        """Send octets to the server; not an error when it no longer listens."""

    async def read(self) -> bytes:
        """The next octets of the server, b"" at its end; with a deadline of its own."""

    async def starttls(self) -> None:
        """Shake hands."""

    async def wait_idle(self) -> None:
        """Let the idle time-out pass."""

    async def drain(self) -> None:
        """Make the daemon stop."""


class DialogueFailed(AssertionError):
    """The server said something else; the message shows the conversation."""


class Player:
    """Plays one dialogue.  `after_step` is called after each (for checks of the server's inside)."""

    def __init__(self, dialogue: Dialogue, peer: Peer, values: Values | None = None) -> None:
        self._dialogue = dialogue
        self._peer = peer
        self._values = values or Values()
        self._received = b""
        self.conversation: list[str] = []

    async def play(self, after_step: Callable[[Step], None] | None = None) -> None:
        """Raises DialogueFailed."""
        steps = self._dialogue.steps
        some: list[Step] = []
        at = 0
        while at < len(steps):
            step = steps[at]
            at += 1
            if step.verb == "send":
                octets = [step.text]
                while at < len(steps) and steps[at].verb == "send":
                    octets.append(steps[at].text)
                    at += 1
                text = self._values.fill("".join(octets))
                self.conversation.append("C: " + (text if len(text) < 500 else text[:200] + "…"))
                await self._peer.send(text.encode("utf-8"))
            elif step.verb == "expect-some":
                some.append(step)
            elif step.verb == "expect":
                await self._expect(step, some)
                some = []
            else:
                await self._direct(step)
            if after_step is not None:
                after_step(step)

    async def _direct(self, step: Step) -> None:
        self.conversation.append(f"- {step.verb}")
        match step.verb:
            case "starttls":
                await self._peer.starttls()
            case "close":
                rest = self._received or await self._peer.read()
                if rest:
                    self._fail(step, f"expected the end, got {rest!r}")
            case "wait idle":
                await self._peer.wait_idle()
            case "drain":
                await self._peer.drain()
            case _:
                self._fail(step, "unknown directive")

    async def _expect(self, step: Step, some: list[Step]) -> None:
        lines = await self._read_reply(step)
        for wanted in [*some, step]:
            pattern = self._values.fill(wanted.text)
            offered = lines[-1:] if wanted is step else lines
            if not any(fnmatch.fnmatchcase(line, pattern) for line in offered):
                self._fail(wanted, f"expected {pattern}")

    async def _read_reply(self, step: Step) -> list[str]:
        lines: list[str] = []
        while True:
            line, newline, rest = self._received.partition(b"\r\n")
            if not newline:
                more = await self._peer.read()
                if not more:
                    self._fail(step, f"expected {step.text}, got the end")
                self._received += more
                continue
            self._received = rest
            lines.append(line.decode("utf-8"))
            self.conversation.append(f"S: {lines[-1]}")
            if line[3:4] != b"-":
                return lines

    def _fail(self, step: Step, problem: str) -> None:
        conversation = "\n".join(self.conversation[-30:])
        raise DialogueFailed(f"{self._dialogue.path.name}:{step.number}: {problem}\n{conversation}")
