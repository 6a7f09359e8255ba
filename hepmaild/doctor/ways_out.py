# SPDX-License-Identifier: Apache-2.0
"""Checks of the routes: next hops are connected to and logged in at, folders written, name servers asked."""

from __future__ import annotations

from collections.abc import Callable

from hepmaild.config import RouteKind, RouteSettings, Settings
from hepmaild.delivery.answers import Failed
from hepmaild.delivery.client import Stage
from hepmaild.delivery.lookups import Lookups
from hepmaild.doctor.checks import Check, fail, ok, warn
from hepmaild.route_test import try_route

ROUTE_S = 15.0


async def route(settings: Settings, chosen: RouteSettings, lookups: Lookups, now_us: Callable[[], int]) -> list[Check]:
    """One route."""
    name = f"route {chosen.name}"
    if chosen.kind is RouteKind.MX:
        return [await _name_servers(settings, name, lookups)]
    found = await try_route(settings, chosen, now_us, ROUTE_S)
    if chosen.kind is RouteKind.SANDBOX:
        if not found["ok"]:
            return [fail(name, found["error"], "give the daemon's user the right to write there")]
        return [ok(name, f"a sandbox: messages are kept in {found['next_hop']}, none is sent")]
    if not found["ok"]:
        where = "" if str(found["next_hop"]) in found["error"] else f"{found['next_hop']}: "
        return [fail(name, where + found["error"], _todo(chosen, found["error"]))]
    logged_in = f", logged in as {chosen.username}" if chosen.username else ""
    said = f"{found['next_hop']} answers over {found['tls'] or 'clear text'}{logged_in}"
    if found["tls"] is None and chosen.username:
        return [warn(name, f"{said}: the password goes in clear text", 'set tls = "starttls" or "implicit" for it')]
    return [ok(name, said)]


def _todo(chosen: RouteSettings, error: str) -> str:
    stage = error.partition(":")[0].strip()
    here = f"`hepmaild route test {chosen.name}` shows every step"
    match stage:
        case Stage.CONNECT:
            return f"look whether a firewall stands between, and whether host and port are right; {here}"
        case Stage.TLS | Stage.STARTTLS:
            return f"look at the next hop's certificate and at the route's tls and tls_ca; {here}"
        case Stage.AUTH:
            return f"look at the route's username and password; {here}"
    return here


async def _name_servers(settings: Settings, name: str, lookups: Lookups) -> Check:
    """A route of kind mx goes wherever DNS says: so DNS must answer."""
    answer = await lookups.mx(settings.server.hostname)
    if isinstance(answer, Failed):
        servers = "set dns.servers to name servers that answer, or look at /etc/resolv.conf"
        return fail(name, f"no name server answers ({answer.why}): nothing can be delivered", servers)
    if chosen_dane_without_ad(settings, name.removeprefix("route "), lookups):
        return ok(name, "name servers answer; DANE is not used, since dns.trust_ad is off")
    return ok(name, "goes straight to the servers of each destination; name servers answer")


def chosen_dane_without_ad(settings: Settings, name: str, lookups: Lookups) -> bool:
    """Whether the route would obey TLSA records if it could believe them."""
    return any(r.name == name and r.dane for r in settings.route) and not lookups.trusts_ad
