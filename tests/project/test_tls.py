# SPDX-License-Identifier: Apache-2.0
"""Certificates: the self-made one, and changes without a restart, by real handshakes."""

from __future__ import annotations

import contextlib
import os
import resource
import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from hepmaild.config import TlsSettings
from hepmaild.listening import Shortage
from hepmaild.private_files import write_private
from hepmaild.tls import ServerTls, make_self_signed
from tests.peers.processes import wait_until


def write_pair(folder: Path, hostname: str) -> TlsSettings:
    certificate, key = make_self_signed(hostname, datetime.now(UTC))
    write_private(folder / "c.pem", certificate)
    write_private(folder / "k.pem", key)
    return TlsSettings(str(folder / "c.pem"), str(folder / "k.pem"))


def write_rsa_pair(folder: Path, hostname: str) -> None:
    """As an authority may sign it: most did before ECDSA."""
    key, name = rsa.generate_private_key(65_537, 2048), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "c.pem", certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    write_private(folder / "k.pem", key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def with_passphrase(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )


WRONG_PAIRS = {
    "no certificate": "c.pem: No such file or directory",
    "no key": "k.pem: No such file or directory",
    "a folder": "c.pem: Is a directory",
    "passphrase": "the private key is encrypted",
    "another key": "they do not fit together",
    "swapped": "there is no certificate in",
    "two certificates": "there is no private key in",
    "half a certificate": "OpenSSL cannot read them (",
}


def wrong_pair(folder: Path, case: str) -> tuple[TlsSettings, str]:
    """A pair of files that no daemon can use, and what is to be said of it."""
    settings = write_pair(folder, "one.example.com")
    certificate, key = Path(settings.certificate), Path(settings.private_key)
    if case == "no certificate":
        certificate.unlink()
    elif case == "no key":
        key.unlink()
    elif case == "a folder":
        certificate.unlink()
        certificate.mkdir()
    elif case == "passphrase":
        key.write_bytes(with_passphrase(key.read_bytes()))
    elif case == "another key":
        key.write_bytes(make_self_signed("one.example.com", datetime.now(UTC))[1])
    elif case == "swapped":
        settings = TlsSettings(settings.private_key, settings.certificate)
    elif case == "two certificates":
        key.write_bytes(certificate.read_bytes())
    else:
        certificate.write_bytes(certificate.read_bytes()[:200])
    return settings, WRONG_PAIRS[case]


def own(folder: Path, hostname: str = "smtp.example.com") -> ServerTls:
    return ServerTls(TlsSettings(), state_dir=folder, hostname=hostname)


async def handshake(server: ssl.SSLContext, **client_options: Any) -> tuple[trio.SSLStream[Any], bytes]:
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for name, value in client_options.items():
        if name == "alpn":
            client.set_alpn_protocols(value)
        else:
            setattr(client, name, value)
    near, far = trio.testing.memory_stream_pair()
    mine = trio.SSLStream(near, client, server_hostname="smtp.example.com")
    theirs = trio.SSLStream(far, server, server_side=True)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.do_handshake)
            nursery.start_soon(mine.do_handshake)
    der = mine.getpeercert(binary_form=True)
    assert der is not None
    return mine, der


def common_name(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).subject.rfc4514_string()


async def test_the_self_made_pair_is_private_and_kept(tmp_path: Path) -> None:
    first = own(tmp_path)
    assert (first.private_key.stat().st_mode & 0o777, first.certificate.stat().st_mode & 0o777) == (0o600, 0o600)
    before = first.certificate.read_bytes()
    assert own(tmp_path).certificate.read_bytes() == before
    assert own(tmp_path, "other.example.com").certificate.read_bytes() != before


@pytest.mark.parametrize("name", ["smtp.example.com", "localhost", "127.0.0.1", "::1"])
async def test_the_self_made_certificate_holds_for_its_names(tmp_path: Path, name: str) -> None:
    server = own(tmp_path)
    client = ssl.create_default_context(cafile=str(server.certificate))
    near, far = trio.testing.memory_stream_pair()
    mine = trio.SSLStream(near, client, server_hostname=name)
    theirs = trio.SSLStream(far, server.smtp, server_side=True)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.do_handshake)
            nursery.start_soon(mine.do_handshake)


async def test_versions_and_alpn(tmp_path: Path) -> None:
    """RFC 7301, RFC 9325 §4.2."""
    server = own(tmp_path)
    stream, _ = await handshake(server.smtp, alpn=["h2"])
    assert (stream.version(), stream.selected_alpn_protocol()) == ("TLSv1.3", None)
    stream, _ = await handshake(server.http, alpn=["http/1.1", "h2"], maximum_version=ssl.TLSVersion.TLSv1_2)
    assert (stream.version(), stream.selected_alpn_protocol()) == ("TLSv1.2", "h2")
    assert server.smtp.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_a_changed_file_is_used_by_the_next_handshake(tmp_path: Path, log_events: Any) -> None:
    settings = write_pair(tmp_path, "one.example.com")
    server = ServerTls(settings, state_dir=tmp_path, hostname="x")
    assert not server.reload_if_changed()
    write_pair(tmp_path, "two.example.com")
    assert server.reload_if_changed()
    for context in (server.smtp, server.http):
        assert common_name((await handshake(context))[1]) == "CN=two.example.com"
    assert log_events.named("certificate_loaded")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_new_certificate_may_have_another_kind_of_key(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """In either direction: of two kinds in one context clients choose, and most choose ECDSA."""
    server = ServerTls(write_pair(tmp_path, "one.example.com"), state_dir=tmp_path, hostname="x")
    write_rsa_pair(tmp_path, "two.example.com")
    assert server.reload_if_changed()
    for context in (server.smtp, server.http):
        assert common_name((await handshake(context, maximum_version=version))[1]) == "CN=two.example.com"
    write_pair(tmp_path, "three.example.com")
    assert server.reload_if_changed()
    for context in (server.smtp, server.http):
        assert common_name((await handshake(context, maximum_version=version))[1]) == "CN=three.example.com"


async def test_broken_files_keep_the_old_certificate(tmp_path: Path, log_events: Any) -> None:
    server = ServerTls(write_pair(tmp_path, "one.example.com"), state_dir=tmp_path, hostname="x")
    other = make_self_signed("other.example.com", datetime.now(UTC))
    encrypted = with_passphrase(other[1])
    for n, (name, content) in enumerate(
        [("c.pem", b""), ("c.pem", b"rubbish"), ("c.pem", other[0]), ("k.pem", other[1][:50]), ("k.pem", encrypted)]
    ):
        write_private(tmp_path / name, content)
        assert not server.reload_if_changed()
        assert len(log_events.named("certificate_not_loaded")) == n + 1
        assert not server.reload_if_changed()
        assert len(log_events.named("certificate_not_loaded")) == n + 1, "warned once a change"
        assert common_name((await handshake(server.smtp))[1]) == "CN=one.example.com"
    (tmp_path / "c.pem").unlink()
    assert not server.reload()
    write_pair(tmp_path, "two.example.com")
    assert server.reload_if_changed()
    assert common_name((await handshake(server.smtp))[1]) == "CN=two.example.com"


async def test_the_watcher_notices(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    server = ServerTls(write_pair(tmp_path, "one.example.com"), state_dir=tmp_path, hostname="x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.watch)
        write_pair(tmp_path, "two.example.com")
        await trio.sleep(11)
        nursery.cancel_scope.cancel()
    assert common_name((await handshake(server.smtp))[1]) == "CN=two.example.com"


async def test_a_self_made_certificate_that_was_removed_is_made_anew(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """As who wants another one does; the daemon that serves must not end by it."""
    server = own(tmp_path)
    before = server.certificate.read_bytes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.watch)
        server.certificate.unlink()
        await trio.sleep(11)
        server.certificate.write_bytes(b"rubbish")
        await trio.sleep(11)
        nursery.cancel_scope.cancel()
    now = server.certificate.read_bytes()
    assert now != before
    assert (await handshake(server.smtp))[1] == ssl.PEM_cert_to_DER_cert(now.decode())


async def test_a_certificate_that_openssl_alone_can_read_is_taken(tmp_path: Path, log_events: Any) -> None:
    """`openssl x509 -trustout` writes such a one."""
    settings = write_pair(tmp_path, "one.example.com")
    server = ServerTls(settings, state_dir=tmp_path, hostname="x")
    write_pair(tmp_path, "two.example.com")
    file = tmp_path / "c.pem"
    file.write_text(file.read_text().replace("CERTIFICATE-----", "TRUSTED CERTIFICATE-----"))
    assert server.reload_if_changed()
    assert common_name((await handshake(server.smtp))[1]) == "CN=two.example.com"


def wait_for_a_tick(path: Path) -> None:
    """Until what changes it now gives it another time: on most kernels that goes on every four milliseconds."""
    other = path.with_name("other")

    def is_later() -> bool:
        other.touch()
        return other.stat().st_ctime_ns > path.stat().st_ctime_ns

    wait_until(is_later, "the clock of files to go on")


async def test_a_key_that_may_be_read_later_is_taken_then(log_events: Any) -> None:
    """Whoever renews a certificate writes the files, and lets the service read them a moment later."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        server = ServerTls(write_pair(folder, "one.example.com"), state_dir=folder, hostname="x")
        write_pair(folder, "two.example.com")
        (folder / "k.pem").chmod(0)
        try:
            if user == 0:  # who may read everything
                for path in (folder, folder / "c.pem", folder / "k.pem"):
                    os.chown(path, 65_534, 65_534)
                os.seteuid(65_534)
            assert not server.reload_if_changed()
            assert "Permission denied" in log_events.named("certificate_not_loaded")[0]["error"]
            assert not server.reload_if_changed()
            assert len(log_events.named("certificate_not_loaded")) == 1
            wait_for_a_tick(folder / "k.pem")
            (folder / "k.pem").chmod(0o400)
            assert server.reload_if_changed()
        finally:
            os.seteuid(user)
    assert common_name((await handshake(server.smtp))[1]) == "CN=two.example.com"


def resume(server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLObject:
    """The client's side of a finished handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    mine = client.wrap_bio(to_client, to_server, server_hostname="smtp.example.com", session=session)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (mine, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return mine


async def test_what_tickets_are_sealed_with_does_not_live_long(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """RFC 9325 §3.4: or else it opens TLS 1.2 connections of months, forward secrecy or not."""
    server = ServerTls(write_pair(tmp_path, "one.example.com"), state_dir=tmp_path, hostname="x")
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    for door in ("smtp", "http"):
        first = resume(getattr(server, door), client, None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.watch)
            await trio.sleep(3600)
            assert resume(getattr(server, door), client, first.session).session_reused
            await trio.sleep(86_400)
            assert not resume(getattr(server, door), client, first.session).session_reused
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened, as when clients have taken all that the process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:  # noqa: PTH123
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_the_watch_goes_on_without_descriptors(tmp_path: Path, log_events: Any) -> None:
    """It ended, and the daemon with it."""
    tls = ServerTls(TlsSettings(), state_dir=tmp_path, hostname="mail.example")
    before = tls.smtp
    with no_descriptors():
        assert not tls.reload_if_changed()
        assert not tls.reload()
    assert tls.smtp is before
    assert "Too many open files" in log_events.named("certificate_not_loaded")[0]["error"]
    pair = write_pair(tmp_path, "mail.example")
    tls = ServerTls(pair, state_dir=tmp_path, hostname="mail.example")
    write_pair(tmp_path, "other.example")
    with no_descriptors():
        assert not tls.reload_if_changed()
    assert tls.reload_if_changed(), "what could not be read in that moment is read later"


async def test_a_lasting_shortage_is_told_once_a_minute(
    log_events: Any, autojump_clock: trio.testing.MockClock
) -> None:
    shortage = Shortage()
    while trio.current_time() < 150:
        await shortage.wait("https", "Too many open files")
    assert len(log_events.named("accept_failed")) == 3


async def test_a_self_made_certificate_is_renewed_in_time(tmp_path: Path) -> None:
    server = own(tmp_path)
    old = make_self_signed("smtp.example.com", datetime.now(UTC) - timedelta(days=825 - 29))
    write_private(server.certificate, old[0])
    write_private(server.private_key, old[1])
    assert server.reload_if_changed()
    assert server.expires_at() > datetime.now(UTC) + timedelta(days=800)


def test_a_daemon_without_its_certificate_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ServerTls(TlsSettings("/none/c.pem", "/none/k.pem"), state_dir=tmp_path, hostname="x")


@pytest.mark.parametrize("case", list(WRONG_PAIRS))
def test_why_a_pair_cannot_be_used_is_said(tmp_path: Path, case: str) -> None:
    settings, why = wrong_pair(tmp_path, case)
    with pytest.raises(OSError, match="cannot be used") as caught:
        ServerTls(settings, state_dir=tmp_path, hostname="x")
    said = str(caught.value)
    assert settings.certificate in said
    assert settings.private_key in said
    assert why in said
    assert "tls.certificate and tls.private_key must name PEM files that belong together" in said
    assert "\n" not in said
