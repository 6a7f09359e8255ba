# SPDX-License-Identifier: Apache-2.0
"""Hostile first contact on the real process, by SMTP: the promised reply, and nothing left behind."""

from __future__ import annotations

import base64
import contextlib
import ssl
import warnings
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import UNLIMITED, Service
from tests.e2e.hygiene import MEBI, assert_secret_is_nowhere, leaves_nothing, still_works
from tests.peers.daemon import SENDER, open_daemon
from tests.peers.messages import new_id, plain_message
from tests.peers.processes import assert_no_traceback
from tests.peers.raw import Raw, raw, raw_smtp
from tests.peers.sink import CaptureSink

TO = "someone@example.net"
SIZE_LIMIT = 26_214_400


def served(sink: CaptureSink, idle_timeout_s: int) -> Iterator[Service]:
    limits = {"connections_per_ip": 30, "idle_timeout_s": idle_timeout_s, "unknown_keys_per_minute": 100_000}
    with open_daemon(sink_port=sink.port, changes={"limits": limits}, start=False) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        still_works(daemon, key)  # whatever is opened once and kept is open now
        yield Service(daemon, sink, key)
        assert_no_traceback(daemon.log())
        assert_secret_is_nowhere(daemon, key, base64.b64encode(f"\0api\0{key}".encode()).decode())


@pytest.fixture(scope="module")
def service(sink: CaptureSink) -> Iterator[Service]:
    """A daemon that waits longer than any test here is silent, on however slow a machine."""
    yield from served(sink, 120)


@pytest.fixture(scope="module")
def impatient(sink: CaptureSink) -> Iterator[Service]:
    """A daemon that loses patience quickly."""
    yield from served(sink, 8)


def begin_data(connection: Raw) -> None:
    assert connection.command(f"MAIL FROM:<{SENDER}>").startswith(b"250")
    assert connection.command(f"RCPT TO:<{TO}>").startswith(b"250")
    assert connection.command("DATA").startswith(b"354")


def assert_closed(connection: Raw) -> None:
    assert connection.rest() == b""


SMUGGLERS = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CRLF.CR": b"\r\n.\r",
    "CR.CRLF": b"\r.\r\n",
    "CR.LF": b"\r.\n",
    "NUL": b"\0.\r\n",
    "CRLF.NULCRLF": b"\r\n.\0\r\n",
    "bare LF": b"\n",
    "bare CR": b"\r",
}


@pytest.mark.parametrize("ending", sorted(SMUGGLERS))
def test_nothing_is_smuggled(service: Service, ending: str) -> None:
    test_id, smuggled = new_id(), new_id()
    inner = plain_message(smuggled, sender=SENDER, to=TO)
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        begin_data(connection)
        connection.send(
            plain_message(test_id, sender=SENDER, to=TO)
            + b"first message"
            + SMUGGLERS[ending]
            + f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{TO}>\r\nDATA\r\n".encode()
            + inner
            + b"\r\n.\r\n"
        )
        assert connection.reply().startswith(b"550 5.6.0")
        assert_closed(connection)
    still_works(service.daemon, service.key)
    assert not {test_id, smuggled} & set(service.sink.ids())


def test_nothing_is_smuggled_by_bdat(service: Service) -> None:
    test_id = new_id()
    content = plain_message(test_id, sender=SENDER, to=TO) + b"bare\nline feed\r\n.\r\n"
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        assert connection.command(f"MAIL FROM:<{SENDER}>").startswith(b"250")
        assert connection.command(f"RCPT TO:<{TO}>").startswith(b"250")
        connection.send(f"BDAT {len(content)} LAST\r\n".encode() + content)
        assert connection.reply().startswith(b"550 5.6.0")
        assert_closed(connection)
    assert test_id not in service.sink.ids()


def test_a_header_line_over_998_octets(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        begin_data(connection)
        connection.send(b"X-Long: " + b"x" * 991 + b"\r\n" + plain_message(new_id(), sender=SENDER, to=TO) + b".\r\n")
        assert connection.reply().startswith(b"550 5.6.0")
        assert_closed(connection)


@pytest.mark.parametrize("behind", [b"EHLO evil.test\r\n", b"AUTH PLAIN AGFwaQB4\r\n", b"\x00", b"x"])
def test_what_stands_behind_starttls_is_never_taken(service: Service, behind: bytes) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, tls=False) as connection:
        connection.send(b"STARTTLS\r\n" + behind)
        answer = connection.rest()
    assert b"250" not in answer
    assert b"235" not in answer


def test_auth_before_tls_is_refused(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, tls=False) as connection:
        word = base64.b64encode(f"\0api\0{service.key}".encode()).decode()
        assert connection.command(f"AUTH PLAIN {word}").startswith(b"538 5.7.11")
        assert connection.command(f"MAIL FROM:<{SENDER}>").startswith(b"530 5.7.0")


def test_no_plaintext_on_the_implicit_port(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw(service.daemon.ports["implicit"]) as connection:
        connection.send(b"EHLO evil.test\r\n")
        assert b"250" not in connection.rest()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_is_refused(service: Service, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = version
        context.maximum_version = version
    with (
        leaves_nothing(service.daemon, connections=1),
        raw(service.daemon.ports["implicit"]) as connection,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        context.wrap_socket(connection.socket, server_hostname="localhost")


def test_declared_oversize_is_refused_at_mail(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        assert connection.command(f"MAIL FROM:<{SENDER}> SIZE={SIZE_LIMIT + 1}").startswith(b"552 5.3.4")
        assert connection.command(f"MAIL FROM:<{SENDER}> SIZE={'9' * 20}")[:3] in {b"552", b"501", b"555"}
        assert connection.command(f"MAIL FROM:<{SENDER}> SIZE={SIZE_LIMIT}").startswith(b"250")


def test_oversize_is_refused_while_it_is_sent(service: Service) -> None:
    line = b"x" * 76 + b"\r\n"
    block = line * (MEBI // len(line))
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        begin_data(connection)
        connection.send(b"Subject: endless\r\n\r\n")
        for _ in range(40):
            connection.send(block)
        connection.send(b".\r\n")
        assert connection.reply().startswith(b"552 5.3.4")
    assert list((service.daemon.state_dir / "spool").glob("*")) == []


def test_oversize_by_bdat(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        assert connection.command(f"MAIL FROM:<{SENDER}>").startswith(b"250")
        assert connection.command(f"RCPT TO:<{TO}>").startswith(b"250")
        connection.send(f"BDAT {SIZE_LIMIT + 1}\r\n".encode())
        for _ in range(26):
            connection.send(b"x" * MEBI)
        assert connection.reply().startswith(b"552 5.3.4")


def test_an_endless_command_line(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        for _ in range(16):
            connection.send(b"x" * MEBI)
        connection.send(b"\r\n")
        assert connection.reply().startswith((b"500 5.5.6", b"421 4.7.0"))


def test_an_endless_word_at_auth(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon) as connection:
        assert connection.command("AUTH LOGIN").startswith(b"334")
        for _ in range(16):
            connection.send(b"QUFB" * (MEBI // 4))
        connection.send(b"\r\n")
        assert connection.reply().startswith((b"500 5.5.6", b"501 5.5.2", b"421 4.7.0"))


def test_an_endless_line_of_content(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, key=service.key) as connection:
        begin_data(connection)
        connection.send(b"X-Endless: ")
        for _ in range(40):
            connection.send(b"x" * MEBI)
        connection.send(b"\r\n.\r\n")
        assert connection.reply().startswith((b"552 5.3.4", b"550 5.6.0"))


def test_many_large_messages_at_once_stay_out_of_memory(service: Service) -> None:
    """Content goes to the spool; ten clients with 20 MB each do not make 200 MB."""
    count, block = 10, (b"x" * 76 + b"\r\n") * 13_000
    with contextlib.ExitStack() as stack:
        stack.enter_context(leaves_nothing(service.daemon, connections=count, room_octets=120 * MEBI))
        connections = [stack.enter_context(raw_smtp(service.daemon, key=service.key)) for _ in range(count)]
        for connection in connections:
            begin_data(connection)
            connection.send(b"Subject: large\r\n\r\n")
        for _ in range(20):
            for connection in connections:
                connection.send(block)
        for connection in connections:
            connection.reset()
    assert list((service.daemon.state_dir / "spool").glob("*")) == []


def test_silence_is_ended(impatient: Service) -> None:
    with leaves_nothing(impatient.daemon, connections=3), contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(raw_smtp(impatient.daemon, tls=False)),
            stack.enter_context(raw_smtp(impatient.daemon)),
            stack.enter_context(raw_smtp(impatient.daemon, key=impatient.key)),
        ]
        for connection in connections:
            assert connection.reply().startswith(b"421 4.4.2")
            assert_closed(connection)


def test_wrong_commands_are_counted(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, tls=False) as connection:
        replies = [connection.command("GET / HTTP/1.1") for _ in range(20)]
        assert all(reply.startswith(b"500 5.5.2") for reply in replies[:-1]), replies
        assert replies[-1].startswith(b"421 4.7.0")
        assert_closed(connection)


def test_wrong_keys_are_counted(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon) as connection:
        word = base64.b64encode(b"\0api\0hyd-mail-" + b"x" * 40).decode()
        assert connection.command(f"AUTH PLAIN {word}").startswith(b"535 5.7.8")
        assert connection.command(f"AUTH PLAIN {word}").startswith(b"535 5.7.8")
        assert connection.command(f"AUTH PLAIN {word}").startswith(b"421 4.7.0")
        assert_closed(connection)


def test_too_many_connections(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=31), contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(raw(service.daemon.ports["starttls"]))
            assert connection.reply().startswith(b"220")
        one_more = stack.enter_context(raw(service.daemon.ports["starttls"]))
        assert one_more.reply().startswith(b"421 4.7.0")
        assert_closed(one_more)


def test_ends_in_the_middle(service: Service) -> None:
    """FIN and RST at every stage: nothing is accepted, nothing stays open."""
    ids = [new_id() for _ in range(8)]
    with leaves_nothing(service.daemon, connections=10):
        for test_id, reset in zip(ids, [True, False] * 4, strict=True):
            with raw_smtp(service.daemon, key=service.key) as connection:
                stage = ids.index(test_id) // 2
                if stage >= 1:
                    connection.send(f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{TO}>\r\n".encode())
                if stage >= 2:
                    connection.send(b"DATA\r\n")
                if stage == 3:
                    connection.send(plain_message(test_id, sender=SENDER, to=TO, size_octets=2 * MEBI))
                if reset:
                    connection.reset()
        for reset in (True, False):
            with raw(service.daemon.ports["implicit"]) as connection:
                connection.send(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
                if reset:
                    connection.reset()
    still_works(service.daemon, service.key)
    assert not set(ids) & set(service.sink.ids())


def test_a_client_that_half_closes_still_gets_its_reply(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon, tls=False) as connection:
        connection.send(b"NOOP\r\n")
        connection.half_close()
        assert connection.rest().startswith(b"250")


def test_empty_lines_for_ever_are_wrong_commands(service: Service) -> None:
    with leaves_nothing(service.daemon, connections=1), raw_smtp(service.daemon) as connection:
        connection.send(b"\r\n" * 100)
        assert b"\r\n421 4.7.0" in b"\r\n" + connection.rest()
