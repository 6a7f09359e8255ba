# SPDX-License-Identifier: Apache-2.0
"""Operator: the routes, what they are and how they do; a button tries one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quart.wrappers import Response

from hepmaild.config import RouteKind, RouteSettings, Settings, TlsMode
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit
from hepmaild.mail.address import domain_of
from hepmaild.mail.dkim_record import check_domain
from hepmaild.storage import dkim, health
from hepmaild.storage import queue as rows

BASE = "/operator/routes"
KINDS = {
    RouteKind.SMTP: "a next hop that takes everything",
    RouteKind.MX: "straight to the recipients' servers",
    RouteKind.SANDBOX: "a sandbox: messages are kept as files, none is sent",
}
TLS = {
    TlsMode.STARTTLS: "STARTTLS, with a certificate that is good",
    TlsMode.IMPLICIT: "TLS from the first octet, with a certificate that is good",
    TlsMode.OPPORTUNISTIC: "TLS where it is offered",
    TlsMode.NONE: "none",
}
MAX_DOMAINS = 20


@dataclass(frozen=True, slots=True)
class Way:
    """A route as it is shown.  settings None: they do not have it any more.  lanes: see `DeliveryPool.figures`; None:
    nothing runs there.  keys: DKIM domains with their state."""

    name: str
    settings: RouteSettings | None
    hops: tuple[str, ...]
    lanes: tuple[int, int, int, int] | None
    figures: dict[str, Any] | None
    pauses: tuple[dict[str, Any], ...]
    senders: int
    keys: tuple[tuple[str, str], ...]
    more_domains: int


def pages(dashboard: Dashboard) -> Pages:
    """`/operator/routes…`.  extras["operations"]: `operations.Operations`."""
    group = Pages("operator_routes", dashboard)

    @group.get(BASE, needs="operator")
    async def show(visit: Visit) -> Response:
        return await _page(visit)

    @group.post(f"{BASE}/test", needs="operator")
    async def test(visit: Visit, form: Form) -> Response:
        operations: Any = dashboard.extras["operations"]
        found = await operations.test_route(form.get("route", ""))
        if found is None:
            return visit.not_found()
        return await _page(visit, tested=with_waits(found))

    return group


def with_waits(found: dict[str, Any]) -> dict[str, Any]:
    """The result of a route's test, each step with the seconds since the one before."""
    steps = []
    before = None
    for at_us, who, text in found["steps"]:
        steps.append(
            {"at_us": at_us, "who": str(who), "text": text, "s": 0 if before is None else (at_us - before) / 1e6}
        )
        before = at_us
    return {**found, "steps": steps}


async def _page(visit: Visit, tested: dict[str, Any] | None = None) -> Response:
    operations: Any = visit.dashboard.extras["operations"]
    stats = await operations.stats()
    settings = visit.dashboard.settings()
    pairs, keys, pauses = await visit.store.read(_read)
    pairs = [*((sender.address, sender.route) for sender in settings.sender), *pairs]
    ways = ways_of(settings, operations.lanes(), stats, pairs, keys, pauses)
    return await visit.render("operator/routes.html", ways=ways, stats=stats, tested=tested, kinds=KINDS, tls=TLS)


def _read(conn: Any) -> tuple[list[tuple[str, str]], list[dict[str, Any]], list[dict[str, Any]]]:
    states = (dkim.PENDING, dkim.ACTIVE)
    return health.sender_routes(conn), dkim.list_of(conn, states=states), rows.pauses(conn)


def ways_of(
    settings: Settings,
    lanes: dict[str, tuple[int, int, int, int]],
    stats: dict[str, Any] | None,
    pairs: list[tuple[str, str]],
    keys: list[dict[str, Any]],
    pauses: list[dict[str, Any]],
) -> list[Way]:
    """The routes of the settings, then those that only mail which waits still knows.  pairs: senders with routes."""
    figures = {row["route"]: row for row in (stats or {}).get("routes", ())}
    named = {route.name: route for route in settings.route}
    states: dict[str, str] = {}
    for key in keys:
        states[key["domain"]] = "active" if "active" in (key["state"], states.get(key["domain"])) else key["state"]
    found = []
    for name in dict.fromkeys([*named, *figures]):
        addresses = [address for address, route in pairs if route == name]
        domains = sorted({check_domain(domain_of(address)) for address in addresses})
        found.append(
            Way(
                name,
                named.get(name),
                _hops(settings, named.get(name)),
                lanes.get(name),
                figures.get(name),
                tuple(p for p in pauses if p["route"] == name),
                len(addresses),
                tuple((domain, states.get(domain, "")) for domain in domains[:MAX_DOMAINS]),
                max(0, len(domains) - MAX_DOMAINS),
            )
        )
    return found


def _hops(settings: Settings, route: RouteSettings | None) -> tuple[str, ...]:
    if route is None or route.kind is RouteKind.MX:
        return ()
    if route.kind is RouteKind.SANDBOX:
        return (str(settings.server.state_dir / (route.directory or "sandbox")),)
    return (f"{route.host}:{route.port}" if route.port else route.host, *route.fallback_hosts)
