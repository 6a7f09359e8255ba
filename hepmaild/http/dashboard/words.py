# SPDX-License-Identifier: Apache-2.0
"""How figures, times and states are written on pages: what templates call filters."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from hepmaild.counted import counted
from hepmaild.key_rules import LATEST_US

# Each state has its own shape and word, so that colour is never alone.
STATES: dict[str, tuple[str, str]] = {
    "sent": ("●", "sent"),
    "queued": ("◔", "queued"),
    "leased": ("◔", "sending"),
    "deferred": ("◑", "deferred"),
    "capped": ("◔", "capped"),
    "held": ("◫", "held"),
    "in_doubt": ("◇", "in doubt"),
    "failed": ("✕", "failed"),
    "expired": ("✕", "expired"),
    "cancelled": ("✕", "cancelled"),
    "refunded": ("↺", "refunded"),
    "active": ("●", "active"),
    "disabled": ("✕", "disabled"),
    "suspended": ("✕", "suspended"),
    "paused": ("◫", "paused"),
    "pending": ("◔", "pending"),
    "retired": ("○", "retired"),
}


# How our own reasons write an instant.  A next hop may write one too: then it is shown the reader's way as well.
_INSTANT = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ(?!\w|:\w)")
_REPLY = re.compile(r"[245]\d\d[ -]")


def instant(us: int) -> datetime:
    """Unix microseconds as a UTC datetime; what no date can say is the latest one."""
    return datetime.fromtimestamp(min(us, LATEST_US) / 1_000_000, UTC)


def when(us: int | None, none: str = "never", is_exact: bool = False) -> Markup:
    """An instant: UTC as it stands, in the reader's zone once the script has run; the exact UTC on hover.

    is_exact: never "in 3 h", which fits into no sentence.
    """
    if us is None:
        return Markup('<span class="quiet">{}</span>').format(none)
    at = instant(us)
    exact = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    style = Markup(' data-style="exact"') if is_exact else ""
    full = at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d}"
    return Markup('<time datetime="{}"{} title="{} UTC">{}</time>').format(
        exact, style, full, at.strftime("%Y-%m-%d %H:%M")
    )


def number(value: float | None) -> str:
    """Grouped by thousands, as in the replies and the command line's sentences beside it: `12,345`."""
    return "–" if value is None else f"{value:,.0f}"


def size(octets: int | None) -> str:
    """Octets for people: `2 kB`, `1.4 MB`."""
    if octets is None:
        return "–"
    if octets < 1000:
        return f"{octets} B"
    units = ["kB", "MB", "GB", "TB"]
    value = octets / 1000
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.1f} {units[0]}" if value < 10 else f"{value:.0f} {units[0]}"


def span(seconds: float | None) -> str:
    """A length of time: `340 ms`, `12 s`, `5 min`, `3 h`, `2 days`, `3 years`."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit_s, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    days = seconds / 86400
    return f"{days:.0f} days" if days < 2 * 365 else f"{days / 365:,.0f} years"


def state(name: str) -> Markup:
    """A state with its shape, word and colour."""
    shape, word = STATES.get(name, ("○", name.replace("_", " ")))
    return Markup('<span class="state state-{}"><span class="shape" aria-hidden="true">{}</span>{}</span>').format(
        name if name in STATES else "other", shape, word
    )


def middle(text: str, most: int = 40) -> Markup:
    """Text from outside, cut in the middle; the whole on hover and on copy."""
    if len(text) <= most:
        return Markup('<bdi class="mono">{}</bdi>').format(text)
    half = (most - 1) // 2
    cut = f"{text[:half]}…{text[-half:]}"
    return Markup('<bdi class="mono cut" title="{}" data-copy="{}">{}</bdi>').format(text, text, cut)


def told(text: str) -> Markup:
    """Why something waits or failed: a reply as it was said, or a reason with its times in the reader's zone."""
    parts, end = [], 0
    for found in _INSTANT.finditer(text):
        try:
            at = datetime.fromisoformat(found[0])
        except ValueError:
            continue
        parts += [escape(text[end : found.start()]), when(int(at.timestamp() * 1_000_000), is_exact=True)]
        end = found.end()
    kind = "reply" if _REPLY.match(text) else "break"
    return Markup('<bdi class="{}">{}{}</bdi>').format(kind, Markup("").join(parts), text[end:])


def sentence(said: Exception | str) -> str:
    """Why something was refused, as it stands on a page: with a capital and a full stop."""
    text = str(said)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def no_address(error: ValueError) -> str:
    """Why something is no e-mail address, as a sentence in the words of these pages."""
    return str(error).replace("email address", "e-mail address").rstrip(".") + "."


FILTERS: dict[str, Any] = {
    "when": when,
    "number": number,
    "many": counted,
    "size": size,
    "span": span,
    "state": state,
    "middle": middle,
    "told": told,
}

__all__ = [
    "FILTERS",
    "STATES",
    "instant",
    "middle",
    "no_address",
    "number",
    "sentence",
    "size",
    "span",
    "state",
    "told",
    "when",
]
