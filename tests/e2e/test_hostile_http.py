# SPDX-License-Identifier: Apache-2.0
"""Hostile first contact on the real process, by HTTPS: the promised answer, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import UNLIMITED, Service
from tests.e2e.hygiene import MEBI, assert_secret_is_nowhere, leaves_nothing, still_works
from tests.peers.daemon import open_daemon
from tests.peers.processes import assert_no_traceback
from tests.peers.raw import Raw, raw
from tests.peers.sink import CaptureSink

PATH = "/api/v1/email/send"
REQUEST_LIMIT = 26_214_400


@pytest.fixture(scope="module")
def service(sink: CaptureSink) -> Iterator[Service]:
    limits = {"connections_per_ip": 30, "unknown_keys_per_minute": 100_000}
    with open_daemon(sink_port=sink.port, changes={"limits": limits}, start=False) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        still_works(daemon, key)
        yield Service(daemon, sink, key)
        assert_no_traceback(daemon.log())
        assert_secret_is_nowhere(daemon, key)


def head(key: str, *fields: str, method: str = "POST", path: str = PATH) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}"]
    lines += ["Content-Type: application/json", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(connection: Raw) -> tuple[int, dict[str, object]]:
    """Status and JSON of the one answer before the end of the connection."""
    octets = connection.rest()
    status = re.match(rb"HTTP/1\.1 (\d{3})", octets)
    assert status, octets[:200]
    _, _, body = octets.partition(b"\r\n\r\n")
    start, end = body.find(b"{"), body.rfind(b"}")
    return int(status[1]), json.loads(body[start : end + 1]) if start >= 0 else {}


MALFORMED = {
    "noise": b"\x00\xff\xfe\r\n\r\n",
    "smtp": b"EHLO evil.test\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "bare colon": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "two lengths": b"POST /api/v1/email/send HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "negative length": b"POST /api/v1/email/send HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "bad chunk": b"POST /api/v1/email/send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless header": b"GET / HTTP/1.1\r\nX: " + b"x" * (2 * MEBI) + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_malformed_requests(service: Service, name: str) -> None:
    """An answer of the 400s, or none; the connection ends either way."""
    with leaves_nothing(service.daemon, connections=1), raw(service.daemon.ports["https"], tls=True) as connection:
        connection.send(MALFORMED[name])
        octets = connection.rest()
        assert not octets or re.match(rb"HTTP/1\.1 4\d\d", octets), octets[:200]
        if octets:
            head, _, body = octets.partition(b"\r\n\r\n")
            assert b"x-request-id: " in head
            assert json.loads(body)["code"]
    still_works(service.daemon, service.key)


def test_plain_http_on_the_tls_port(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw(service.daemon.ports["https"]) as connection:
        connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in connection.rest()


def test_declared_oversize_is_refused_before_the_body(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw(service.daemon.ports["https"], tls=True) as connection:
        connection.send(head(service.key, f"Content-Length: {REQUEST_LIMIT + 1}", "Connection: close"))
        status, body = answer(connection)
        assert (status, body["code"]) == (413, "REQUEST_TOO_LARGE")


def test_undeclared_oversize_is_refused_while_it_is_read(service: Service) -> None:
    chunk = b"100000\r\n" + b"x" * MEBI + b"\r\n"
    with leaves_nothing(service.daemon, connections=1), raw(service.daemon.ports["https"], tls=True) as connection:
        connection.send(head(service.key, "Transfer-Encoding: chunked", "Connection: close"))
        for _ in range(40):
            connection.send(chunk)
        connection.send(b"0\r\n\r\n")
        octets = connection.rest()
        # Who goes on sending may lose the answer to the reset; who reads gets it.
        assert not octets or octets.startswith(b"HTTP/1.1 413"), octets[:200]
    still_works(service.daemon, service.key)


def test_a_deeply_nested_document(service: Service) -> None:
    document = b"[" * 100_000
    with leaves_nothing(service.daemon, connections=1), raw(service.daemon.ports["https"], tls=True) as connection:
        connection.send(head(service.key, f"Content-Length: {len(document)}", "Connection: close") + document)
        status, body = answer(connection)
        assert (status, body["code"]) == (400, "INVALID_JSON")


def test_connection_close_is_obeyed(service: Service) -> None:
    document = json.dumps({"to": "someone@example.net", "subject": "x", "text": "x"}).encode()
    with leaves_nothing(service.daemon, connections=1), raw(service.daemon.ports["https"], tls=True) as connection:
        connection.send(head(service.key, f"Content-Length: {len(document)}", "Connection: close") + document)
        status, body = answer(connection)
        assert status in {200, 202}, body


def test_ends_in_the_middle(service: Service) -> None:
    """FIN and RST at every stage: nothing is accepted, nothing stays open."""
    document = json.dumps({"to": "someone@example.net", "subject": "half", "text": "x" * 1000}).encode()
    whole = head(service.key, f"Content-Length: {len(document)}") + document
    cuts = [0, 1, 30, len(whole) - len(document), len(whole) - 10]
    balance = service.daemon.json("credits", "show", "owner@example.com")["balance"]
    with leaves_nothing(service.daemon, connections=2 * len(cuts)):
        for cut in cuts:
            for reset in (True, False):
                with raw(service.daemon.ports["https"], tls=True) as connection:
                    connection.send(whole[:cut])
                    if reset:
                        connection.reset()
    assert service.daemon.json("credits", "show", "owner@example.com")["balance"] == balance
    still_works(service.daemon, service.key)


def test_many_large_requests_at_once(service: Service) -> None:
    """Bodies are held while they are read; what the limits allow is bounded, and is given back."""
    count = 6
    with contextlib.ExitStack() as stack:
        stack.enter_context(leaves_nothing(service.daemon, connections=count, room_octets=400 * MEBI))
        connections = [stack.enter_context(raw(service.daemon.ports["https"], tls=True)) for _ in range(count)]
        for connection in connections:
            connection.send(head(service.key, f"Content-Length: {25 * MEBI}"))
        for _ in range(20):
            for connection in connections:
                connection.send(b" " * MEBI)
        for connection in connections:
            connection.reset()
    still_works(service.daemon, service.key)


def test_too_many_connections(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=31), contextlib.ExitStack() as stack:
        kept = [stack.enter_context(raw(service.daemon.ports["https"], tls=True)) for _ in range(30)]
        document = b"{}"
        for connection in kept:
            connection.send(head(service.key, f"Content-Length: {len(document)}") + document)
            assert connection.reply().startswith(b"HTTP/1.1 400")
        one_more = stack.enter_context(raw(service.daemon.ports["https"], tls=True))
        one_more.send(head(service.key, f"Content-Length: {len(document)}", "Connection: close") + document)
        status, body = answer(one_more)
        assert (status, body["code"]) == (429, "TOO_MANY_CONNECTIONS")


@pytest.mark.slow
def test_slow_requests_are_ended(service: Service) -> None:
    """Nothing at all, half a head, half a body: each connection ends by itself, in a time that has a limit."""
    beginnings = [b"", b"POST /api", head(service.key, "Content-Length: 100") + b"{"]
    with leaves_nothing(service.daemon, connections=len(beginnings)), contextlib.ExitStack() as stack:
        connections = [stack.enter_context(raw(service.daemon.ports["https"], tls=True)) for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.socket.settimeout(180)
            connection.send(beginning)
        for connection in connections:
            assert b"HTTP/1.1 2" not in connection.rest()
