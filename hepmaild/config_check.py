# SPDX-License-Identifier: Apache-2.0
"""What no single key can tell: settings that contradict one another."""

from __future__ import annotations

import ipaddress
from collections import Counter

from hepmaild.config import RouteKind, RouteSettings, Settings, TlsMode, parse_address
from hepmaild.config_read import Reader
from hepmaild.mail.address import key_of


def check(settings: Settings, reader: Reader) -> None:
    """Report every contradiction to the reader."""
    # A route with a mistake may be missing here: what is said about it is enough.
    has_all_routes = not any(problem.key.startswith("route.") for problem in reader.problems)
    _check_listeners(settings, reader)
    _check_routes(settings, reader)
    _check_senders(settings, reader, has_all_routes=has_all_routes)
    if bool(settings.tls.certificate) != bool(settings.tls.private_key):
        missing = "private_key" if settings.tls.certificate else "certificate"
        reader.report(f"tls.{missing}", "is missing: certificate and private_key go together")
    if settings.delivery.attempt_timeout_s <= settings.delivery.final_dot_timeout_s:
        reader.report("delivery.attempt_timeout_s", "must be longer than final_dot_timeout_s")
    if not settings.delivery.retry_after_s:
        reader.report("delivery.retry_after_s", "must have at least one waiting time")


def _check_listeners(settings: Settings, reader: Reader) -> None:
    """No address twice, and none that another one, which means every address, has already."""
    seen: dict[tuple[str, int], str] = {}
    for key, addresses in (
        ("smtp.starttls", settings.smtp.starttls),
        ("smtp.implicit_tls", settings.smtp.implicit_tls),
        ("http.listen", settings.http.listen),
        ("http.plain_listen", settings.http.plain_listen),
        ("metrics.listen", settings.metrics.listen),
    ):
        for text in addresses:
            host, port = parse_address(text)
            taken = next((seen[other] for other in seen if port and port == other[1] and _meet(host, other[0])), None)
            if taken is not None:
                reader.report(key, f"{text} is taken by {taken} already")
            seen.setdefault((host, port), key)


def _meet(one: str, other: str) -> bool:
    """Whether these hosts cannot both be listened on at one port."""
    if one == other or "::" in (one, other):  # which takes IPv4 as well
        return True
    return "0.0.0.0" in (one, other) and _is_ipv4(one) and _is_ipv4(other)  # noqa: S104


def _check_routes(settings: Settings, reader: Reader) -> None:
    names = Counter(route.name for route in settings.route)
    for index, route in enumerate(settings.route):
        key = f"route.{index}"
        if names[route.name] > 1:
            reader.report(f"{key}.name", f"{names[route.name]} routes are called {route.name!r}: names must differ")
            names[route.name] = 0
        if route.kind is RouteKind.SMTP and not route.host and not reader.is_wrong(f"{key}.host"):
            reader.report(f"{key}.host", f'is missing: route {route.name!r} of kind "smtp" needs its next hop')
        is_told = reader.is_wrong(f"{key}.username", f"{key}.password", f"{key}.password_file")
        if bool(route.username) != bool(route.password) and not is_told:
            missing = "password (or password_file)" if route.username else "username"
            reader.report(f"{key}.{missing}", f"is missing: route {route.name!r} needs both to log in, or neither")
        if route.password and route.tls in {TlsMode.NONE, TlsMode.OPPORTUNISTIC} and not _is_loopback(route):
            reader.report(f"{key}.tls", f'would send the password of route {route.name!r} in clear: use "starttls"')


def _check_senders(settings: Settings, reader: Reader, *, has_all_routes: bool) -> None:
    routes = {route.name for route in settings.route}
    seen: set[str] = set()
    for index, sender in enumerate(settings.sender):
        key = f"sender.{index}"
        if sender.route not in routes and has_all_routes:
            known = ", ".join(sorted(routes)) or "none"
            reader.report(f"{key}.route", f"there is no route {sender.route!r}; there are: {known}")
        if key_of(sender.address) in seen:
            reader.report(f"{key}.address", f"{sender.address} is there twice")
        seen.add(key_of(sender.address))
    defaults = [sender.address for sender in settings.sender if sender.default]
    if len(defaults) > 1:
        reader.report("sender", f"at most one may be the default; {', '.join(defaults)} all are")


def _is_ipv4(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 4
    except ValueError:
        return False


def _is_loopback(route: RouteSettings) -> bool:
    if route.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(route.host).is_loopback
    except ValueError:
        return False
