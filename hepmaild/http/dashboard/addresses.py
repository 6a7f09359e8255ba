# SPDX-License-Identifier: Apache-2.0
"""Custom addresses: what may stand in From, which way it leaves, its daily cap, and whether DNS says the right things.

DNS is asked when somebody presses the button, never by looking at the page.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
from quart.wrappers import Response

from hepmaild.config import RouteKind, RouteSettings, Settings
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit
from hepmaild.http.dashboard.overview import book_of
from hepmaild.mail.address import domain_of
from hepmaild.mail.dkim_record import check_domain
from hepmaild.mail.dns_check import Check, Found, check_dkim, check_dmarc, check_spf, dmarc_names, no_dkim, own_dkim
from hepmaild.own_routes import is_own, server_of
from hepmaild.storage import cap_line, caps, dkim, smtp_servers
from hepmaild.storage.directory import SenderRow

if TYPE_CHECKING:
    from sqlalchemy import Connection

CHECK_S = 15.0
MAX_KEYS = 10
# As `Lookups.lookup_txt`: the texts, or something with a `why`.
LookupTxt = Callable[[str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Address:
    """A sender as it is shown.  usage: of its daily cap, None: it has none.  route: None: the settings lost it."""

    row: SenderRow
    is_default: bool
    usage: cap_line.Usage | None
    route: RouteSettings | None
    domain: str


def pages(dashboard: Dashboard) -> Pages:
    """`/addresses` and its check.  extras["lookups"]: asks DNS; without it there is no check."""
    group = Pages("addresses", dashboard)

    @group.get("/addresses")
    async def show(visit: Visit) -> Response:
        return await _page(visit, await _addresses(visit))

    @group.post("/addresses/check", needs="read_only")
    async def check(visit: Visit, form: Form) -> Response:
        found = await _addresses(visit)
        domain = form.get("domain", "")
        mine = [address for address in found if address.domain == domain]
        lookups: Any = dashboard.extras.get("lookups")
        if not mine or lookups is None:
            return visit.not_found()
        keys = await _keys_of(visit, domain, mine)
        mechanism = _mechanism(dashboard.settings(), mine[0].route, await _host_of(visit, mine[0].row))
        checks = await run_checks(lookups.lookup_txt, domain, mechanism, keys)
        return await _page(visit, found, checked=domain, checks=checks)

    return group


async def _addresses(visit: Visit) -> list[Address]:
    book = await book_of(visit)
    rows = list(book.by_key.values())
    names = [caps.cap_key_of(row.account_id, row.address_key) for row in rows if row.daily_cap]
    usage = await visit.store.read(usage_of, names, visit.dashboard.now_us()) if names else {}
    routes = {route.name: route for route in visit.dashboard.settings().route}
    return [
        Address(
            row,
            row is book.default,
            _usage(row, usage),
            routes.get(row.route),
            _domain(row.address),
        )
        for row in rows
    ]


def _usage(row: SenderRow, usage: dict[str, cap_line.Usage]) -> cap_line.Usage | None:
    if not row.daily_cap:
        return None
    return usage.get(caps.cap_key_of(row.account_id, row.address_key), cap_line.Usage(row.daily_cap, 0, 0, ()))


def usage_of(conn: Connection, cap_keys: Sequence[str], now_us: int) -> dict[str, cap_line.Usage]:
    """The caps that were ever used, in figures."""
    found = {key: cap_line.usage(conn, key, now_us, upcoming=1) for key in cap_keys}
    return {key: usage for key, usage in found.items() if usage is not None}


def _domain(address: str) -> str:
    try:
        return check_domain(domain_of(address))
    except ValueError:
        return domain_of(address).lower()


async def _page(visit: Visit, addresses: list[Address], *, checked: str = "", checks: Sequence[Check] = ()) -> Response:
    return await visit.render(
        "addresses/list.html",
        addresses=addresses,
        domains=sorted({address.domain for address in addresses}),
        can_check="lookups" in visit.dashboard.extras,
        checked=checked,
        checks=checks,
    )


async def _keys_of(visit: Visit, domain: str, mine: Sequence[Address]) -> Sequence[dict[str, Any]] | None:
    """Our DKIM keys that sign this account's mail of a domain; None: none ever does.

    What leaves by an account's own server is not signed by us (decision 0101), and anybody may name any domain there:
    that another account's domain has keys here is not for them.
    """
    if all(is_own(address.row.route) for address in mine):
        return None
    keys = await visit.store.read(dkim.list_of, domain, states=(dkim.PENDING, dkim.ACTIVE))
    return keys[-MAX_KEYS:]


async def _host_of(visit: Visit, row: SenderRow) -> str:
    """Of an account's own SMTP server; "" for every other way out."""
    if not is_own(row.route):
        return ""
    found = await visit.store.read(smtp_servers.rows_of, visit.account_id)
    return next((server.host for server in found if server.id == server_of(row.route)), "")


def _mechanism(settings: Settings, route: RouteSettings | None, own_host: str) -> str:
    """What in SPF lets our mail through: who hands it to the world.  own_host: of the account's own server."""
    if own_host:
        host = own_host
    elif route is not None and route.kind is RouteKind.SMTP and route.host:
        host = route.host.lower().strip("[]")
    else:
        host = settings.server.hostname.lower()
    try:
        return f"ip{ipaddress.ip_address(host).version}:{host}"
    except ValueError:
        return f"a:{host}"


async def run_checks(
    lookup_txt: LookupTxt, domain: str, mechanism: str, keys: Sequence[dict[str, Any]] | None
) -> list[Check]:
    """Ask for everything at once, for `CHECK_S` at most; what did not answer by then is UNKNOWN.  Cancel-safe.

    keys: None: we never sign this mail.
    """
    key_names = [f"{key['selector']}._domainkey.{key['domain']}" for key in keys or ()]
    names = {domain, *dmarc_names(domain), *key_names}
    found: dict[str, Found] = dict.fromkeys(names, f"no answer within {CHECK_S:g} s")

    async def ask(name: str) -> None:
        answer = await lookup_txt(name)
        found[name] = answer if isinstance(answer, tuple) else str(getattr(answer, "why", "no answer"))

    with trio.move_on_after(CHECK_S):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)
    dkim_checks = [check_dkim(key, found[name]) for key, name in zip(keys or (), key_names, strict=True)]
    return [
        check_spf(domain, found[domain], mechanism),
        *(dkim_checks or [own_dkim() if keys is None else no_dkim(domain)]),
        check_dmarc(domain, found),
    ]
