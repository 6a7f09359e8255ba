# SPDX-License-Identifier: Apache-2.0
"""Real DNS on loopback: Knot answers for zones (one of them signed), Unbound asks it, validates, and answers us.

`plain.test` is a plain zone, `signed.test` is signed and Unbound knows its key.  `bogus.test` should be signed, but is
not; for `lame.test` Unbound asks a server that knows nothing of it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from tests.peers.processes import Child, free_port, open_folder
from tests.peers.programs import find_program, require

_serials = itertools.count(1)
_ANCHOR = (
    "257 3 13 mdsswUyr3DPW132mOi8V9xESWE8jTo0dxCjjnopKl+GqJxpVXckHAeF+KkxLbxILfDLUT0rAK9iUzy1L53eKGQ=="  # the root's
)

ZONE_HEAD = (
    "$ORIGIN {name}.\n$TTL 0\n@ {nothing_s} SOA ns hostmaster {serial} 3600 600 86400 {nothing_s}\n"
    "@ NS ns\nns A 127.0.0.1\n"
)


def require_nameservers() -> None:
    """Skip (in CI: fail) unless Knot and Unbound are there."""
    require("knotd", "unbound")


@dataclass
class Nameservers:
    """Both running.  authority, resolver: their ports on 127.0.0.1.  nothing_s: how long "there is none" holds."""

    folder: Path
    authority: int
    resolver: int = 0
    knot: Child | None = None
    nothing_s: int = 0
    texts: dict[str, str] = field(default_factory=dict)

    def write_zone(self, name: str, records: str) -> int:
        """Its serial."""
        serial = next(_serials)
        self.texts[name] = records
        (self.folder / f"{name}.zone").write_text(
            ZONE_HEAD.format(name=name, serial=serial, nothing_s=self.nothing_s) + records
        )
        return serial

    def change(self, name: str, old: str, new: str) -> None:
        """Replace a piece of a zone; returns when the authority answers with it."""
        assert old in self.texts[name]
        assert self.knot is not None
        serial = self.write_zone(name, self.texts[name].replace(old, new))
        self.knot.signal(signal.SIGHUP)
        self.knot.wait_for(lambda: serial_of(self.authority, name) == serial, f"{name} with serial {serial}")


def _query(port: int, name: str, kind: dns.rdatatype.RdataType) -> dns.message.Message | None:
    request = dns.message.make_query(name, kind, want_dnssec=True)
    with contextlib.suppress(OSError, dns.exception.Timeout):
        return dns.query.tcp(request, "127.0.0.1", port=port, timeout=2)
    return None


def serial_of(port: int, name: str) -> int | None:
    found = _query(port, name, dns.rdatatype.SOA)
    if found is None or not found.answer:
        return None
    return int(found.answer[0][0].serial)


def _validates(port: int) -> bool:
    found = _query(port, "signed.test", dns.rdatatype.SOA)
    return found is not None and bool(found.flags & dns.flags.AD)


def _trust_anchor(port: int) -> str:
    """The signed zone's key, once Knot has made it."""
    found = _query(port, "signed.test", dns.rdatatype.DNSKEY)
    for rrset in () if found is None else found.answer:
        for record in rrset if rrset.rdtype == dns.rdatatype.DNSKEY else ():
            if record.flags & 1:
                return (
                    f"signed.test. IN DNSKEY {re.sub(r'(?<=[=/+A-Za-z0-9]{8}) (?=[=/+A-Za-z0-9]+)', '', str(record))}"
                )
    return ""


def _write_knot(folder: Path, port: int, zones: list[str]) -> Path:
    parts = [
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}\n",
        f"database:\n  storage: {folder}/db\n",
        "log:\n- target: stderr\n  any: info\n",
        "policy:\n- id: one-key\n  algorithm: ecdsap256sha256\n  single-type-signing: on\n",
        (
            f'template:\n- id: default\n  storage: {folder}\n  file: "%s.zone"\n  journal-content: none\n'
            "  zonefile-sync: -1\n  zonefile-load: whole\n"
        ),
        "zone:\n",
    ]
    parts += [f"- domain: {zone}\n" for zone in zones if zone != "signed.test"]
    parts.append("- domain: signed.test\n  dnssec-signing: on\n  dnssec-policy: one-key\n")
    path = folder / "knot.conf"
    path.write_text("".join(parts))
    return path


def _write_unbound(folder: Path, port: int, authority: int, anchor: str, zones: list[str]) -> Path:
    lines = [
        "server:",
        f"  interface: 127.0.0.1@{port}",
        f'  directory: "{folder}"',
        f'  pidfile: "{folder}/unbound.pid"',
        '  username: ""',
        '  chroot: ""',
        "  use-syslog: no",
        "  verbosity: 1",
        "  do-daemonize: no",
        "  do-not-query-localhost: no",
        "  do-ip6: no",
        '  module-config: "validator iterator"',
        '  local-zone: "test." nodefault',
        f'  trust-anchor: "{anchor}"',
        f'  trust-anchor: "bogus.test. IN DNSKEY {_ANCHOR}"',
        "remote-control:",
        "  control-enable: no",
    ]
    for zone in [*zones, "lame.test"]:
        lines += ["stub-zone:", f"  name: {zone}", f"  stub-addr: 127.0.0.1@{authority}"]
    path = folder / "unbound.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def open_nameservers(zones: dict[str, str], *, nothing_s: int = 0) -> Iterator[Nameservers]:
    """Both, with these zones (name: records), of which `signed.test` must be one.  Ended on leaving.

    nothing_s: how long it may be remembered that a name, or a record of some type, is not there (RFC 2308 §5).
    """
    with open_folder("dns") as folder, contextlib.ExitStack() as stack:
        servers = Nameservers(folder, free_port(), nothing_s=nothing_s)
        (folder / "db").mkdir()
        for name, records in zones.items():
            servers.write_zone(name, records)
        config = _write_knot(folder, servers.authority, list(zones))
        servers.knot = Child("knotd", [find_program("knotd"), "-c", config], folder)
        stack.callback(servers.knot.close)
        for name in zones:
            servers.knot.wait_for(functools.partial(serial_of, servers.authority, name), f"knot to answer for {name}")
        anchor = servers.knot.wait_for(functools.partial(_trust_anchor, servers.authority), "the signed zone's key")
        servers.resolver = free_port()
        config = _write_unbound(folder, servers.resolver, servers.authority, anchor, list(zones))
        unbound = Child("unbound", [find_program("unbound"), "-d", "-c", config], folder)
        stack.callback(unbound.close)
        unbound.wait_for(functools.partial(_validates, servers.resolver), "unbound to validate")
        yield servers
