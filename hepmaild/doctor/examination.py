# SPDX-License-Identifier: Apache-2.0
"""Everything that is looked at, put together from the settings and the database."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio

from hepmaild.config import RouteKind, Settings
from hepmaild.counted import counted
from hepmaild.delivery.lookups import Lookups
from hepmaild.doctor import books, machine, names, ports, ways_out
from hepmaild.doctor.checks import Check, Part, Report, run_parts, skipped
from hepmaild.doctor.names import Domain
from hepmaild.errors import StoreUnavailable
from hepmaild.mail.address import domain_of
from hepmaild.mail.dkim_record import check_domain
from hepmaild.storage import dkim, health, migrate
from hepmaild.storage.store import Store

MAX_DOMAINS = 200
LEARN_S = 10.0
Keys = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined.  store None: it cannot be opened, `problem` says why.

    bound: what this process listens on, as `host:port` with its door; None: this is not the daemon.
    """

    settings: Settings
    lookups: Lookups
    now_us: Callable[[], int]
    store: Store | None
    problem: str = ""
    bound: tuple[ports.Port, ...] | None = None


async def examine(patient: Patient) -> Report:
    """All checks, side by side; within about half a minute, whatever hangs.  Never raises; cancel-safe."""
    domains, keys, tables = await _learn(patient)
    return await run_parts([*_own_parts(patient, tables), *_outer_parts(patient, domains, keys)], patient.now_us)


async def _learn(patient: Patient) -> tuple[list[Domain], Keys, Store | None]:
    """The domains that mail is sent from, their DKIM keys, and the store if its tables can be read."""
    pairs = [(sender.address, sender.route) for sender in patient.settings.sender]
    keys: dict[str, list[Mapping[str, Any]]] = {}
    tables = None
    with trio.move_on_after(LEARN_S), suppress(StoreUnavailable, migrate.SchemaUnfit):  # the database's check tells
        if patient.store is not None and not await patient.store.schema_is_due():
            pairs += await patient.store.read(health.sender_routes)
            for key in await patient.store.read(dkim.list_of, states=(dkim.PENDING, dkim.ACTIVE)):
                keys.setdefault(key["domain"], []).append(key)
            tables = patient.store
    return domains_of(patient.settings, pairs), keys, tables


def domains_of(settings: Settings, pairs: Sequence[tuple[str, str]]) -> list[Domain]:
    """pairs: sender addresses with their routes."""
    kinds = {route.name: route.kind for route in settings.route}
    found: dict[str, set[RouteKind | None]] = {}
    for address, route in pairs:
        found.setdefault(check_domain(domain_of(address)), set()).add(kinds.get(route))
    return [
        Domain(name, RouteKind.MX in used, bool(used - {RouteKind.SANDBOX, None}))
        for name, used in sorted(found.items())
    ]


def _own_parts(patient: Patient, tables: Store | None) -> list[Part]:
    """The machine and the database.  tables: the store, if they can be read."""
    settings, store = patient.settings, patient.store
    now = datetime.fromtimestamp(patient.now_us() / 1e6, UTC)
    parts = [
        Part("disk", partial(machine.in_thread, partial(machine.disk, settings)), 5),
        Part("clock", partial(machine.clock, tables, patient.now_us)),
        Part("certificate", partial(machine.in_thread, partial(machine.certificate, settings, now)), 5),
        Part("secrets", partial(machine.secrets, settings, tables)),
    ]
    limit_s = settings.database.unit_timeout_s + 5
    if store is None:
        parts.insert(0, Part("database", partial(_at_once, books.no_database(settings, patient.problem))))
    else:
        parts.insert(0, Part("database", partial(books.database, settings, store), limit_s))
    if tables is None:
        parts.append(Part("queue", partial(_at_once, [skipped("queue", "the database's tables cannot be read")])))
    else:
        parts.append(Part("queue", partial(books.queue, settings, tables, patient.now_us), limit_s))
        parts.append(Part("uploads", partial(books.uploads, settings, tables), limit_s))
    return parts


def _outer_parts(patient: Patient, domains: Sequence[Domain], keys: Keys) -> list[Part]:
    """Doors, routes, DNS."""
    settings, lookups = patient.settings, patient.lookups
    leaf = _leaf(settings)
    dns_s = min(60.0, 3 * settings.dns.lifetime_s + 2)
    here = ports.ports_of(settings) if patient.bound is None else patient.bound
    is_daemon = patient.bound is not None
    parts = [
        Part(
            f"port {which.address}",
            partial(ports.port, settings, which, leaf, is_daemon=is_daemon),
            2 * ports.LIMIT_S,
        )
        for which in here
    ]
    parts += [
        Part(f"route {route.name}", partial(ways_out.route, settings, route, lookups, patient.now_us), 25)
        for route in settings.route
    ]
    hostname = settings.server.hostname
    if any(route.kind is RouteKind.MX for route in settings.route):
        parts.append(Part(f"address of {hostname}", partial(names.own_name, lookups, hostname), dns_s, _SLOW_DNS))
    for which in domains[:MAX_DOMAINS]:
        check = partial(names.domain, lookups, which, keys.get(which.name, ()), hostname)
        parts.append(Part(f"DNS of {which.name}", check, dns_s, _SLOW_DNS))
    if len(domains) > MAX_DOMAINS:
        rest = skipped("DNS", f"not looked at: {counted(len(domains) - MAX_DOMAINS, 'more domain')}")
        parts.append(Part("DNS", partial(_at_once, [rest])))
    return parts


_SLOW_DNS = "look whether the name servers in dns.servers answer quickly"


async def _at_once(checks: Sequence[Check]) -> Sequence[Check]:
    await trio.lowlevel.checkpoint()
    return checks


def _leaf(settings: Settings) -> bytes | None:
    """The certificate on disk (DER), to compare with what the doors present."""
    path, _, _ = machine.certificate_files(settings)
    try:
        text = path.read_text("ascii", "replace")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        return ssl.PEM_cert_to_DER_cert(text[begin : text.index("-----END CERTIFICATE-----") + 25])
    except (OSError, ValueError):
        return None
