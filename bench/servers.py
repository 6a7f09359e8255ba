# SPDX-License-Identifier: Apache-2.0
"""The servers under comparison, doing the same work: TLS, AUTH, a durable queue, a next hop that only counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.peers import postfix
from tests.peers.certificates import Certificate
from tests.peers.daemon import ACCOUNT, open_daemon
from tests.peers.processes import free_port
from tests.peers.sink import SmtpSink, smtp_sink

PASSWORD = "bench-secret"
# To the next hop.  Postfix is fastest with the 20 that both have by themselves; we use what the workers can.
CONNECTIONS = 64


@dataclass
class Server:
    """One server with its own sink.  pid: the root of its process tree."""

    name: str
    pid: int
    port: int
    user: str
    password: str
    sink: SmtpSink
    https_port: int = 0
    delivers: bool = True


@contextlib.contextmanager
def open_postfix(certificate: Certificate, *, accept_only: bool = False) -> Iterator[Server]:
    """Debian's Postfix with TLS and SASL; accept_only: everything goes to the hold queue."""
    with (
        smtp_sink() as sink,
        postfix.submission_server(
            next_hop=sink.port,
            password=PASSWORD,
            certificate=certificate.certificate,
            private_key=certificate.private_key,
            hold=accept_only,
        ) as peer,
    ):
        yield Server(
            "postfix", peer.pid, peer.ports["starttls"], "bench@postfix.test", PASSWORD, sink, delivers=not accept_only
        )


def bench_settings(certificate: Certificate, *, reply: str = "on-commit") -> dict[str, Any]:
    """What a benchmark changes: no limit is in its way, and both servers show the same certificate."""
    return {
        "tls": {"certificate": str(certificate.certificate), "private_key": str(certificate.private_key)},
        "smtp": {"reply": reply},
        "limits": {"connections_per_ip": 5000, "backlog": 10_000_000},
        "delivery": {"retry_after_s": [60]},
    }


@contextlib.contextmanager
def open_hepmaild(
    certificate: Certificate,
    *,
    reply: str = "on-commit",
    accept_only: bool = False,
    changes: Mapping[str, Any] | None = None,
    database_url: str = "sqlite:///hepmaild.db",
    python_options: tuple[str, ...] = (),
) -> Iterator[Server]:
    """The daemon on SQLite with a key of an account that no limit stops.

    accept_only: the next hop is down, so that mail is accepted, charged and waits.
    """
    settings = bench_settings(certificate, reply=reply)
    if accept_only:
        settings["delivery"] = {"retry_after_s": [86400]}
    with smtp_sink() as sink:
        port, connections = (free_port(), 1) if accept_only else (sink.port, CONNECTIONS)
        hop = {"name": "sink", "kind": "smtp", "host": "127.0.0.1", "port": port, "tls": "none"}
        settings["route"] = [hop | {"connections": connections}]
        for table, values in (changes or {}).items():
            if isinstance(values, dict):
                settings.setdefault(table, {}).update(values)
            else:
                settings[table] = values
        with open_daemon(
            sink_port=sink.port, changes=settings, database_url=database_url, start=False, python_options=python_options
        ) as daemon:
            key = daemon.setup(email=ACCOUNT, grant=1_000_000_000, plan="bench")
            daemon.start()
            yield Server(
                "hepmaild" if reply == "on-commit" else "hepmaild, after-relay",
                daemon.pid,
                daemon.ports["starttls"],
                "api",
                key,
                sink,
                https_port=daemon.ports.get("https", 0),
                delivers=not accept_only,
            )
