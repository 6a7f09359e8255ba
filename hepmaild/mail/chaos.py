# SPDX-License-Identifier: Apache-2.0
"""Chaos keys: their mail goes to a sandbox inside the service, which misbehaves as the key says, and never leaves.

The route of a message says it all: it is `chaos:KIND`, a name that no route of the settings can have.  What is on such
a route costs nothing, so there is nothing to give back; it counts against no daily cap, and its refusals suppress
nobody.  Pure.  (docs/decisions/0115-chaos-keys.md)
"""

from __future__ import annotations

from hepmaild.config import Misbehaviour

PREFIX = "chaos:"
KINDS: dict[str, str] = {
    Misbehaviour.GREYLIST.value: "refuses each message for half a minute, then takes it",
    Misbehaviour.TEMPORARY.value: "refuses every attempt for now (451), until the message expires",
    Misbehaviour.PERMANENT.value: "refuses every recipient for good (550)",
    Misbehaviour.SLOW_DOT.value: "takes each message half a minute after its final dot",
    Misbehaviour.DROP_AFTER_DOT.value: "never answers the final dot: every attempt is in doubt",
}
LIFE_S = 3600  # what is never taken expires soon, so that the queue does not fill with it


def route_of(kind: str) -> str:
    """The route that mail of a key of this kind takes."""
    return PREFIX + kind


def kind_of(route: str) -> str:
    """What a route's sandbox does, if it is one of a chaos key's; else ""."""
    kind = route.removeprefix(PREFIX)
    return kind if kind != route and kind in KINDS else ""


def is_chaos(route: str) -> bool:
    """Whether mail on this route belongs to a chaos key."""
    return route.startswith(PREFIX)
