# SPDX-License-Identifier: Apache-2.0
"""The story of a message, made of its events: who came, what was said, what followed, how long each took.  Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

_VERBS = {
    "EHLO": "Hello",
    "HELO": "Hello",
    "STARTTLS": "Start TLS",
    "AUTH": "Log in",
    "MAIL": "Sender",
    "RCPT": "Recipient",
    "DATA": "Announce the content",
    "BDAT": "Content",
    "RSET": "Begin anew",
    "NOOP": "Nothing",
    "QUIT": "Goodbye",
    "POST": "Request",
    ".": "End of the content",
}
_ADDRESS = re.compile(r"<([^>]*)>")
_CONTENT = ("message content", "(content")
_EVENTS = {
    "retried": "Somebody asked for an attempt now",
    "cancelled": "Cancelled",
    "expired": "Expired: nobody took it in time",
    "recovered": "The process that worked on it ended; another took over",
    "held": "Held until somebody releases it",
    "released": "Released",
    "capped": "It waits: the daily cap of its sender is used up",
    "uncapped": "The daily cap of its sender has room: it is due now",
    "suppressed": "Nothing was sent: every recipient is suppressed. Lift that under Suppressions to send there again.",
}
IN_DOUBT = (
    "The whole message was handed over, but the answer to its end never came: it may have arrived or not, and nobody "
    "can know from here."
)


@dataclass(slots=True)
class Step:
    """One thing said or done with what was answered.  ms: since the step before; None: there is none.

    said: (arrow, text) pairs in order: `→` from whom the step came, `←` the answer.
    """

    at_us: int
    title: str
    detail: str = ""
    ms: float | None = None
    said: list[tuple[str, str]] = field(default_factory=list)
    ended_us: int = 0


@dataclass(slots=True)
class Ending:
    """How an attempt ended for some recipients.  result: delivered, failed, deferred, in_doubt."""

    result: str
    recipients: list[str]
    reply: str
    retry_at_us: int | None


@dataclass(slots=True)
class Group:
    """Steps that belong together.  kind: in (client → us), out (us → next hop), or an event's.

    key: names the group on the page.  waited_ms: since the group before it.
    """

    kind: str
    key: str
    title: str
    at_us: int
    facts: list[tuple[str, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    waited_ms: float | None = None
    note: str = ""


def groups(events: Iterable[Mapping[str, Any]], addresses: Mapping[int, str], *, is_paid: bool = True) -> list[Group]:
    """The story.  events: as stored, oldest first ({seq, at, kind, data}).  addresses: of the recipients, by number.

    is_paid: the message cost something.
    """
    found: list[Group] = []
    attempts = 0
    for event in events:
        kind, data, at_us = str(event["kind"]), event["data"], int(event["at"])
        if kind == "replied":
            _add_answer(found, data, at_us)
            continue
        if kind in ("accepted", "suppressed"):
            found.append(_inbound(event, data, is_paid=is_paid))
            if kind == "suppressed":
                found[-1].note = _EVENTS[kind]
        elif kind == "attempt":
            attempts += 1
            found.append(_outbound(event, data, attempts, addresses))
        else:
            title = _EVENTS.get(kind, kind.replace("_", " ").capitalize())
            found.append(Group("event", f"e{event['seq']}", title, at_us, _counts(data)))
    for before, group in pairwise(found):
        ended = max((step.ended_us for step in before.steps), default=before.at_us)
        group.waited_ms = max(0.0, (group.at_us - ended) / 1000)
    return found


def _counts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(data[name])) for name in ("recipients", "refunded") if data.get(name)]


def _inbound(event: Mapping[str, Any], data: Mapping[str, Any], *, is_paid: bool) -> Group:
    steps = _steps(data.get("steps") or (), speaker="peer")
    begun = steps[0].at_us if steps else int(event["at"])
    facts = [
        ("from", str(data.get("peer") or "")),
        ("TLS", _tls(data)),
        ("named itself", str(data.get("helo") or "")),
        ("session", str(data.get("session") or "")),
    ]
    title = "Stored and paid for" if is_paid else "Stored; nothing was paid"
    stored = Step(int(event["at"]), title, ended_us=int(event["at"]))
    stored.ms = max(0.0, (stored.at_us - steps[-1].ended_us) / 1000) if steps else None
    door = "SMTP" if data.get("door") == "smtp" else "the HTTPS API"
    title = f"Client → us, by {door}"
    return Group("in", "in", title, begun, [f for f in facts if f[1]], [*steps, stored])


def _add_answer(found: list[Group], data: Mapping[str, Any], at_us: int) -> None:
    """What the client was told belongs to its own group, though it came after the first attempt."""
    group = next((g for g in found if g.kind == "in"), None)
    if group is None:
        return
    said = f"{data.get('status', '')} {data.get('id', '')}".strip()
    if data.get("refused"):
        said = f"{data['refused']} {data.get('reply', '')}".strip()
    last = group.steps[-1].ended_us if group.steps else at_us
    step = Step(at_us, "The client was told", said, max(0.0, (at_us - last) / 1000), ended_us=at_us)
    if data.get("hint"):
        step.said.append(("←", str(data["hint"])))
    group.steps.append(step)


def _outbound(event: Mapping[str, Any], data: Mapping[str, Any], number: int, addresses: Mapping[int, str]) -> Group:
    begun = int(data.get("started_at") or event["at"])
    host = str(data.get("host") or "")
    facts = [
        ("next hop", host),
        ("TLS", _tls(data)),
        ("route", str(data.get("route") or "")),
        ("for", str(data.get("destination") or "")),
    ]
    steps = _steps(data.get("steps") or (), speaker="us", begun_us=begun)
    title = f"Us → {host or _way(data)}" + (f", attempt {number}" if number > 1 else "")
    group = Group("out", f"a{event['seq']}", title, begun, [f for f in facts if f[1]], steps)
    endings: dict[tuple[str, str, int | None], Ending] = {}
    for o in data.get("outcomes") or ():
        key = (str(o["result"]), str(o.get("reply") or ""), o.get("retry_at"))
        ending = endings.setdefault(key, Ending(key[0], [], key[1], key[2]))
        ending.recipients.append(addresses.get(int(o["recipient"]), f"recipient {int(o['recipient']) + 1}"))
    group.endings = list(endings.values())
    if any(e.result == "in_doubt" for e in group.endings):
        group.note = IN_DOUBT
    return group


def _way(data: Mapping[str, Any]) -> str:
    """Where there was no connection."""
    return str(data.get("destination") or "") or f"route {data.get('route', '')}"


def _tls(data: Mapping[str, Any]) -> str:
    tls = data.get("tls")
    return " ".join(str(part) for part in tls if part) if isinstance(tls, list) else ""


def _steps(raw: Sequence[Sequence[Any]], *, speaker: str, begun_us: int | None = None) -> list[Step]:
    """Commands with their answers.  Commands that were sent ahead get theirs in order (RFC 2920)."""
    steps: list[Step] = []
    unanswered: deque[Step] = deque()
    for at, who, said in raw:
        at_us, text = int(at), str(said)
        if who == "note":
            steps.append(Step(at_us, text[:1].upper() + text[1:], ended_us=at_us))
        elif who == speaker:
            _command(steps, unanswered, at_us, text)
        else:
            step = unanswered.popleft() if unanswered else None
            if step is None:
                step = Step(at_us, "Greeting" if not _has_spoken(steps) else "Said besides")
                steps.append(step)
            step.said.append(("←", text))
            step.ended_us = max(step.ended_us, at_us)
    before = begun_us
    for step in steps:
        step.ms = None if before is None else max(0.0, (step.ended_us - before) / 1000)
        before = max(step.ended_us, before or 0)
    return steps


def _command(steps: list[Step], unanswered: deque[Step], at_us: int, text: str) -> None:
    if text == "." and steps and steps[-1].title.startswith("Content"):
        step = steps[-1]
        step.said.append(("→", text))
        step.ended_us = at_us
        unanswered.append(step)
        return
    step = Step(at_us, *_named(text), said=[("→", text)], ended_us=at_us)
    steps.append(step)
    if not text.startswith(_CONTENT):
        unanswered.append(step)


def _has_spoken(steps: list[Step]) -> bool:
    return any(step.said for step in steps)


def _named(text: str) -> tuple[str, str]:
    """What a command is called, and whom it is about."""
    if text.startswith(_CONTENT):
        return "Content", text.strip("()").rpartition(", ")[2]
    verb = text.split(" ", 1)[0].upper()
    address = _ADDRESS.search(text) if verb in ("MAIL", "RCPT") else None
    return _VERBS.get(verb, verb[:20]), (address[1] or "<>") if address else ""
