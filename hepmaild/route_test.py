# SPDX-License-Identifier: Apache-2.0
"""Trying a route without sending mail: connect, start TLS, log in, say goodbye; every step kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from hepmaild.config import RouteKind, RouteSettings, Settings, TlsMode
from hepmaild.delivery.client import Credentials
from hepmaild.delivery.connections import Connect, Connection, Patience, connect_tcp, make_tls_context
from hepmaild.delivery.public import connect_public
from hepmaild.delivery.route import Route, from_settings
from hepmaild.events import Transcript

LIMIT_S = 60.0
GOODBYE_S = 5.0


def next_hop(settings: RouteSettings) -> str | None:
    """Where the route's mail goes: a folder, `host:port`, or (kind `mx`) None."""
    if settings.kind is RouteKind.SANDBOX:
        return settings.directory or "sandbox"
    return from_settings(settings).address if settings.kind is RouteKind.SMTP else None


async def try_route(
    settings: Settings, chosen: RouteSettings, now_us: Callable[[], int], limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """`{"ok", "error", "route", "next_hop", "tls", "steps"}`; steps: `[at_us, who, text]` each, free of secrets.

    error: a sentence that may hold what the next hop said; None when all went well.  Takes `limit_s` and a moment for
    the goodbye at most; cancelled, it drops the connection.  Of several next hops it tries the first.
    """
    found: dict[str, Any] = {
        "ok": True,
        "error": None,
        "route": chosen.name,
        "next_hop": next_hop(chosen),
        "tls": None,
        "steps": [],
    }
    if chosen.kind is RouteKind.SANDBOX:
        return {**found, **try_folder(settings.server.state_dir / (chosen.directory or "sandbox"))}
    if chosen.kind is RouteKind.MX:
        return {**found, "ok": False, "error": "routes of kind mx have no next hop of their own to test"}
    target = from_settings(chosen)
    return {**found, **await _try_host(settings, target, now_us, limit_s)}


async def try_server(
    settings: Settings,
    server: Route,
    credentials: Credentials | None,
    now_us: Callable[[], int],
    limit_s: float = LIMIT_S,
) -> dict[str, Any]:
    """The same for an account's own SMTP server, within what this service connects to for its accounts."""
    found: dict[str, Any] = {"ok": True, "error": None, "next_hop": server.address, "tls": None, "steps": []}
    return {**found, **await _try_host(settings, server, now_us, limit_s, credentials)}


async def _try_host(
    settings: Settings,
    target: Route,
    now_us: Callable[[], int],
    limit_s: float,
    credentials: Credentials | None = None,
) -> dict[str, Any]:
    host, tls = target.first_host, target.tls
    connect: Connect = partial(connect_public, connect_tcp) if target.public_only else connect_tcp
    transcript = Transcript()
    try:
        context = None if tls is TlsMode.NONE else make_tls_context(target)
    except OSError as error:
        return {"ok": False, "error": f"tls_ca cannot be used: {error}"}
    connection = Connection(target, settings.server.hostname, connect, tls, transcript, host, credentials)
    failure: str | None = None
    try:
        with trio.move_on_after(limit_s) as scope:
            failed = await connection.open(context, Patience(scope, scope.deadline), now_us)
            failure = None if failed is None else _describe(failed)
        if scope.cancelled_caught:
            failure = f"no answer within {limit_s:g} s, while: {connection.stage}"
        steps = transcript.snapshot()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
            await connection.quit(now_us)
    secured = f"{connection.tls_version} {connection.tls_cipher}".strip() or None
    return {"ok": failure is None, "error": failure, "tls": secured, "steps": steps}


def _describe(failure: Any) -> str:
    said = f" {failure.reply}" if failure.reply is not None else ""
    return f"{failure.stage}: {failure.text or ''}{said}".strip()


def try_folder(folder: Path) -> dict[str, Any]:
    """Whether the sandbox can write in its folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".hepmaild-route-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return {"ok": False, "error": f"{folder}: {error.strerror}", "next_hop": str(folder)}
    return {"next_hop": str(folder)}
