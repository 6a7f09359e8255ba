# SPDX-License-Identifier: Apache-2.0
"""The names of the routes that accounts' own SMTP servers are.  Pure.

Each server is a route of its own, `own:ID`, which no route of the settings can be called.  Where figures are told by
route all of them are one, `own:*`, so that their number is nobody's burden.
"""

from __future__ import annotations

PREFIX = "own:"
ALL = "own:*"


def route_of(server_id: str) -> str:
    """The route of a server."""
    return PREFIX + server_id


def is_own(route: str) -> bool:
    """Whether a route is an account's own server."""
    return route.startswith(PREFIX)


def server_of(route: str) -> str:
    """The id of the server that such a route is."""
    return route.removeprefix(PREFIX)


def label_of(route: str) -> str:
    """What a route is called where figures are told."""
    return ALL if is_own(route) else route
