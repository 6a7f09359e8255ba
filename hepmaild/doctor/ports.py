# SPDX-License-Identifier: Apache-2.0
"""Checks of the doors: does something answer at each address, is it us, and with the certificate that is on disk?"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from hepmaild.config import Settings, parse_address
from hepmaild.doctor.checks import Check, describe, fail, ok, skipped, warn

LIMIT_S = 8.0
GREETING_OCTETS = 1024


@dataclass(frozen=True, slots=True)
class Port:
    """address: as in the settings, or as it was bound.  door: starttls, implicit, https, http, metrics."""

    address: str
    door: str


def ports_of(settings: Settings) -> list[Port]:
    """All that the settings name."""
    doors = (
        ("starttls", settings.smtp.starttls),
        ("implicit", settings.smtp.implicit_tls),
        ("https", settings.http.listen),
        ("http", settings.http.plain_listen),
        ("metrics", settings.metrics.listen),
    )
    return [Port(address, door) for door, addresses in doors for address in addresses]


def bound_ports(
    starttls: Sequence[str], implicit: Sequence[str], https: Sequence[str], http: Sequence[str], metrics: Sequence[str]
) -> tuple[Port, ...]:
    """What a daemon listens on, by door."""
    doors = {"starttls": starttls, "implicit": implicit, "https": https, "http": http, "metrics": metrics}
    return tuple(Port(address, door) for door, addresses in doors.items() for address in addresses)


async def port(settings: Settings, which: Port, leaf: bytes | None, *, is_daemon: bool) -> list[Check]:
    """One address.  leaf: the certificate on disk (DER).  is_daemon: this process should be what answers there."""
    name = f"port {which.address}"
    host, number = parse_address(which.address)
    if number == 0:
        return [skipped(name, "any free port: the daemon's log says which (event=listening)")]
    try:
        stream = await _connect(host, number)
    except OSError as error:
        return [_closed(name, host, number, error, is_daemon=is_daemon)]
    async with stream:
        with trio.move_on_after(LIMIT_S):
            try:
                return [await _talk(settings, name, which, stream, leaf)]
            except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError) as error:
                reason = error.__cause__ or error
                return [fail(name, f"something answers, but broke off: {reason}", _who(number))]
    return [fail(name, f"something is connected, but said nothing in {LIMIT_S:g} s", _who(number))]


def _who(number: int) -> str:
    return f"look who listens there: `ss -ltnp 'sport = :{number}'`; restart the daemon if it is that"


async def _connect(host: str, number: int) -> trio.SocketStream:
    """To ourselves, where every address is meant."""
    targets = {"::": ("::1", "127.0.0.1"), "0.0.0.0": ("127.0.0.1",)}.get(host, (host,))  # noqa: S104
    problem: OSError = OSError(errno.ECONNREFUSED, "Connection refused")
    for target in targets:
        try:
            with trio.fail_after(LIMIT_S / 2):
                return await trio.open_tcp_stream(target, number)
        except OSError as error:
            problem = error
        except trio.TooSlowError:
            problem = TimeoutError(errno.ETIMEDOUT, "no answer")
    raise problem


def _closed(name: str, host: str, number: int, error: OSError, *, is_daemon: bool) -> Check:
    """Nothing answers.  Without a daemon that is no wonder, as long as the port could be had."""
    if is_daemon:
        return fail(name, f"we should be listening there, but: {describe(error)}", "restart the daemon")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, number))
    except PermissionError:
        todo = "start it as a service: the unit in systemd/ lets it have ports below 1024"
        return warn(name, "nothing listens; this user may not have a port below 1024", todo)
    except OSError as problem:
        return fail(name, f"nothing answers, and it cannot be had: {describe(problem)}", _who(number))
    return warn(name, "nothing listens: the daemon does not run here", "start it: `systemctl start hepmaild`")


async def _talk(settings: Settings, name: str, which: Port, stream: trio.SocketStream, leaf: bytes | None) -> Check:
    if which.door == "starttls":
        return _greeted(settings, name, await _line(stream))
    if which.door in {"http", "metrics"}:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return _is_http(name, await _line(stream))
    context = ssl.create_default_context()
    context.check_hostname = False  # whether the certificate is good is another check
    context.verify_mode = ssl.CERT_NONE
    secure = trio.SSLStream(stream, context, server_hostname=settings.server.hostname, https_compatible=True)
    await secure.do_handshake()
    presented = secure.getpeercert(binary_form=True)
    if which.door == "https":
        await secure.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        check = _is_http(name, await _line(secure))
    else:
        check = _greeted(settings, name, await _line(secure))
    if leaf is not None and presented != leaf:
        reload = "`systemctl reload hepmaild`, or see in its log why it did not take the new one"
        return warn(name, "answers with another certificate than the one on disk", reload)
    return check


async def _line(stream: trio.abc.Stream) -> str:
    octets = b""
    while b"\n" not in octets and len(octets) < GREETING_OCTETS:
        more = await stream.receive_some(GREETING_OCTETS)
        if not more:
            break
        octets += more
    return octets.partition(b"\n")[0].decode("latin-1").strip()


def _greeted(settings: Settings, name: str, line: str) -> Check:
    if line.startswith("421"):
        return warn(name, f"answers, but takes no more connections just now: {line}", "try again in a moment")
    if not line.startswith("220"):
        return fail(name, f"what answers is no SMTP server: {line!r}", _who(int(name.rpartition(":")[2])))
    words = line.removeprefix("220").split()
    if not words or words[0].lower() != settings.server.hostname.lower():
        todo = _who(int(name.rpartition(":")[2]))
        return fail(name, f"another SMTP server answers there: {line!r}", todo)
    return ok(name, f"SMTP, answers as {settings.server.hostname}")


def _is_http(name: str, line: str) -> Check:
    if line.startswith("HTTP/1.1 429"):
        return warn(name, f"answers, but takes no more connections just now: {line}", "try again in a moment")
    if not line.startswith("HTTP/1.1"):
        return fail(name, f"what answers is no web server: {line!r}", _who(int(name.rpartition(":")[2])))
    return ok(name, "answers HTTP")
