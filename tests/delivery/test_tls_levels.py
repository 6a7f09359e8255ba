# SPDX-License-Identifier: Apache-2.0
"""What TLS is worth on routes of kind `mx`, over real sockets: DANE, MTA-STS, opportunistic; and the pure checks."""

from __future__ import annotations

import datetime as dt
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from hepmaild.config import DeliverySettings, RouteKind
from hepmaild.delivery.hops import Hop, Hops, Tlsa, TlsLevel, TlsPolicy
from hepmaild.delivery.job import Attempt, Result
from hepmaild.delivery.pool import DeliveryPool
from hepmaild.delivery.route import Route
from hepmaild.delivery.tls_policy import check_dane, name_fits
from hepmaild.lifecycle import Lifecycle
from tests.delivery.memory_queue import MemoryQueue
from tests.delivery.peer import Peer
from tests.delivery.test_sockets import DEADLINE_S, EHLO_TLS, now_us

CLEAR_EHLO = b"250-peer\r\n250 PIPELINING\r\n"
NOW_US = now_us()


@dataclass(frozen=True)
class Authority:
    root: trustme.CA
    child: trustme.CA

    def chain(self, *names: str, **more: object) -> tuple[trustme.LeafCert, list[bytes]]:
        """A certificate for the names, and the chain (DER) that a server with it presents."""
        leaf = self.child.issue_cert(*names, **more)  # type: ignore[arg-type]
        pems = [pem.bytes() for pem in leaf.cert_chain_pems]
        return leaf, [x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER) for pem in pems]


@pytest.fixture(scope="module")
def authority() -> Authority:
    root = trustme.CA()
    return Authority(root, root.create_child_ca())


def tlsa(usage: int, selector: int, matching: int, der: bytes) -> Tlsa:
    data = der
    if selector:
        key = x509.load_der_x509_certificate(der).public_key()
        data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if matching:
        data = (hashlib.sha256 if matching == 1 else hashlib.sha512)(data).digest()
    return Tlsa(usage, selector, matching, data)


def dane(*records: Tlsa, names: tuple[str, ...] = ("mx.a.example",)) -> TlsPolicy:
    return TlsPolicy(TlsLevel.DANE, "dane", records, names)


def root_der(authority: Authority) -> bytes:
    pem = authority.root.cert_pem.bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


# The check


@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
def test_records_that_fit(authority: Authority, selector: int, matching: int) -> None:
    """RFC 6698 §2.1."""
    _, chain = authority.chain("mx.a.example")
    root = root_der(authority)
    assert check_dane(dane(tlsa(3, selector, matching, chain[0])), chain, NOW_US) is None
    assert check_dane(dane(tlsa(2, selector, matching, chain[1])), chain, NOW_US) is None
    assert check_dane(dane(tlsa(2, selector, matching, root)), [*chain, root], NOW_US) is None
    # A whole certificate or key in the record need not be presented (RFC 7671 §5.2.2).
    presented = check_dane(dane(tlsa(2, selector, matching, root)), chain, NOW_US)
    assert (presented is None) == (matching == 0)


def test_records_that_do_not_fit(authority: Authority) -> None:
    _, chain = authority.chain("mx.a.example")
    _, other = authority.chain("mx.a.example")
    stranger = root_der(Authority(trustme.CA(), trustme.CA()))
    for policy, presented in [
        (dane(tlsa(3, 1, 1, other[0])), chain),
        (dane(tlsa(2, 1, 1, chain[0])), chain),  # the server's own is no authority
        (dane(tlsa(2, 1, 1, stranger)), [*chain, stranger]),  # presented, but it signed nothing
        (dane(tlsa(3, 1, 1, chain[1])), chain),
        (dane(Tlsa(3, 7, 1, b"")), chain),
        (dane(Tlsa(2, 0, 9, b"")), chain),
        (dane(tlsa(3, 1, 1, chain[0])), []),
        (dane(tlsa(2, 1, 1, chain[1])), [chain[0]]),
        (dane(tlsa(3, 1, 1, chain[0])), [b"garbage"]),
    ]:
        assert check_dane(policy, presented, NOW_US)
    assert check_dane(dane(tlsa(3, 1, 1, other[0]), tlsa(3, 1, 1, chain[0])), chain, NOW_US) is None


def test_names_and_dates_count_for_authorities_only(authority: Authority) -> None:
    """RFC 7672 §3.1.1, §3.1.2."""
    _, chain = authority.chain("mx.b.example")
    assert check_dane(dane(tlsa(3, 1, 1, chain[0])), chain, NOW_US) is None
    assert "mx.b.example, not for mx.a.example" in str(check_dane(dane(tlsa(2, 1, 1, chain[1])), chain, NOW_US))
    both = dane(tlsa(2, 1, 1, chain[1]), names=("mx.a.example", "MX.b.example."))
    assert check_dane(both, chain, NOW_US) is None
    _, old = authority.chain("mx.a.example", not_after=dt.datetime.now(dt.UTC) - dt.timedelta(days=1))
    assert check_dane(dane(tlsa(3, 1, 1, old[0])), old, NOW_US) is None
    assert "has expired" in str(check_dane(dane(tlsa(2, 1, 1, old[1])), old, NOW_US))
    assert "not valid yet" in str(check_dane(dane(tlsa(2, 1, 1, chain[1])), chain, 0))


def signed_by(root: ec.EllipticCurvePrivateKey, tbs: bytes) -> bytes:
    """A certificate (DER) of octets that no honest tool would sign."""

    def node(tag: int, *parts: bytes) -> bytes:
        octets = b"".join(parts)
        size = len(octets).to_bytes((len(octets).bit_length() + 7) // 8, "big")
        return bytes([tag]) + (size if len(octets) < 128 else bytes([0x80 + len(size)]) + size) + octets

    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    return node(0x30, tbs, ecdsa_with_sha256, node(3, b"\0", root.sign(tbs, ec.ECDSA(hashes.SHA256()))))


@pytest.mark.parametrize("flaw", ["a name of no use", "an extension twice", "a version that does not exist"])
def test_a_certificate_that_cannot_be_read_does_not_fit(flaw: str) -> None:
    """Not ours to crash at: what each of these raises is no ValueError."""
    root = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.a.example")])
    day = dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC)
    built = x509.CertificateBuilder(named, named, root.public_key(), 1, now - day, now + day)
    x400 = bytes.fromhex("3004a3023000")
    for number in (17, 99):
        built = built.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(f"2.5.29.{number}"), x400), False)
    tbs = built.sign(root, hashes.SHA256()).tbs_certificate_bytes
    if flaw == "an extension twice":
        tbs = tbs.replace(bytes.fromhex("0603551d63"), bytes.fromhex("0603551d11"))
    elif flaw == "a version that does not exist":
        tbs = tbs.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020109"))
    chain = [signed_by(root, tbs)]
    anchor = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert "cannot be read" in str(check_dane(dane(Tlsa(2, 1, 0, anchor)), chain, NOW_US))


def test_names_of_a_certificate_are_shown_without_what_no_store_takes() -> None:
    """And not at any length: they are told of each recipient of each attempt."""
    root = ec.generate_private_key(ec.SECP256R1())
    day, now = dt.timedelta(days=1), dt.datetime.now(dt.UTC)
    anchor = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\0b\x1b[1m")])
    built = x509.CertificateBuilder(named, named, root.public_key(), 1, now - day, now + day)
    for names, shown in [
        (None, "the certificate is for a?b?[1m, not for mx.a.example"),
        (["x" * 20_000] * 9, f"the certificate is for {', '.join(['x' * 100] * 5)}, not for mx.a.example"),
    ]:
        if names is not None:
            built = built.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), False)
        chain = [built.sign(root, hashes.SHA256()).public_bytes(Encoding.DER)]
        assert check_dane(dane(Tlsa(2, 1, 0, anchor)), chain, NOW_US) == shown


def test_who_may_sign(authority: Authority) -> None:
    # A server's certificate signs another: the anchor is real, but the one between is no authority.
    _, chain = authority.chain("mx.a.example")
    leaf_key_signs = check_dane(dane(tlsa(2, 1, 1, root_der(authority))), [chain[0], root_der(authority)], NOW_US)
    assert leaf_key_signs == "no TLSA record fits an authority of the certificate"


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("mx.a.example", "mx.a.example", True),
        ("*.a.example", "mx.a.example", True),
        ("*.a.example", "a.example", False),
        ("*.a.example", "x.mx.a.example", False),
        ("m*.a.example", "mx.a.example", False),
        ("*", "example", False),
        ("*.example", "a.example", False),
        ("*.a.example", "*.a.example", False),
    ],
)
def test_names(pattern: str, name: str, fits: bool) -> None:
    """RFC 6125 §6.4.3, RFC 7672 §3.2.3."""
    assert name_fits(pattern, name) is fits


# On the wire


def server_context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.configure_cert(context)
    return context


async def deliver(
    *servers: tuple[Peer, str, TlsPolicy], authority: Authority, tmp_path: Path, messages: int = 1
) -> list[Attempt]:
    """One attempt for each message, to one MX host after the other (all on 127.0.0.0/8, at the same port)."""
    trusted = tmp_path / "ca.pem"
    authority.root.cert_pem.write_to_path(str(trusted))
    queue, lifecycle, reported = MemoryQueue(now_us), Lifecycle(), list[Attempt]()
    async with trio.open_nursery() as nursery:
        peers = {f"127.0.0.{n + 1}": peer for n, (peer, _, _) in enumerate(servers)}

        async def serve(stream: trio.SocketStream) -> None:
            await peers[stream.socket.getsockname()[0]].serve(stream)

        [listener] = await trio.open_tcp_listeners(0, host="0.0.0.0")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        found = Hops(
            tuple(Hop(name, (f"127.0.0.{n + 1}",), policy) for n, (_, name, policy) in enumerate(servers)), "group"
        )

        async def resolve(destination: str) -> Hops:
            await trio.lowlevel.checkpoint()
            return found

        route = Route("direct", RouteKind.MX, port=listener.socket.getsockname()[1], tls_ca=str(trusted), connections=1)
        pool = DeliveryPool(
            DeliverySettings(),
            [route],
            queue,
            lifecycle,
            "me.example",
            state_dir=tmp_path,
            now_us=now_us,
            random=lambda: 0.5,
            resolve=resolve,
            on_reported=reported.append,
        )
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as running:
                await running.start(pool.run)
                for n in range(messages):
                    job = queue.add(f"m{n}", ["x@a.example"], route="direct", destination="a.example", leased=True)
                    assert pool.offer_nowait(job)
                await queue.until(lambda: len(reported) == messages)
                lifecycle.draining.set()
        nursery.cancel_scope.cancel()
    return reported


def notes(attempt: Attempt) -> str:
    return "\n".join(step.text for step in attempt.steps if step.who == "note")


async def one(policy: TlsPolicy, peer: Peer, authority: Authority, tmp_path: Path) -> Attempt:
    [attempt] = await deliver((peer, "mx.a.example", policy), authority=authority, tmp_path=tmp_path)
    return attempt


@pytest.mark.parametrize("usage", [2, 3])
@pytest.mark.parametrize("right", [True, False])
async def test_dane(authority: Authority, tmp_path: Path, usage: int, right: bool) -> None:
    """RFC 7672 §3.1, §8.1."""
    leaf, chain = authority.chain("mx.a.example")
    _, other = authority.chain("mx.a.example")
    stranger = root_der(Authority(trustme.CA(), trustme.CA()))
    wanted = {2: chain[1] if right else stranger, 3: chain[0] if right else other[0]}[usage]
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(leaf))
    attempt = await one(dane(tlsa(usage, 1, 1, wanted)), peer, authority, tmp_path)
    [outcome] = attempt.outcomes
    if right:
        assert outcome.result is Result.DELIVERED
        assert attempt.tls_level == "dane"
        assert "TLS dane (dane)" in notes(attempt)
    else:
        assert outcome.result is Result.DEFERRED
        assert outcome.reply is not None
        assert outcome.reply.enhanced == "4.7.5"
        assert "TLSA record" in outcome.reply.text
        assert peer.lines == [b"EHLO me.example", b"STARTTLS"]


@pytest.mark.parametrize("name", ["mx.a.example", "*.a.example", "mx.b.example"])
async def test_mta_sts_asks_for_the_hosts_name(authority: Authority, tmp_path: Path, name: str) -> None:
    """RFC 8461 §4.1."""
    leaf, _ = authority.chain(name)
    policy = TlsPolicy(TlsLevel.VERIFIED, "mta-sts enforce")
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(leaf))
    attempt = await one(policy, peer, authority, tmp_path)
    if name.endswith("a.example"):
        assert attempt.outcomes[0].result is Result.DELIVERED
        assert "TLS verified (mta-sts enforce)" in notes(attempt)
    else:
        assert attempt.outcomes[0].result is Result.DEFERRED
        assert "the certificate is not good" in str(attempt.outcomes[0].reply)
        assert "(mta-sts enforce)" in str(attempt.outcomes[0].reply)
        assert peer.received == []


async def test_mta_sts_wants_an_authority_that_is_trusted(authority: Authority, tmp_path: Path) -> None:
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(trustme.CA().issue_cert("mx.a.example")))
    attempt = await one(TlsPolicy(TlsLevel.VERIFIED, "mta-sts enforce"), peer, authority, tmp_path)
    assert attempt.outcomes[0].result is Result.DEFERRED
    assert peer.connections == 1


@pytest.mark.parametrize("level", [TlsLevel.ENCRYPTED, TlsLevel.VERIFIED, TlsLevel.DANE])
async def test_what_is_required_never_falls_back(authority: Authority, tmp_path: Path, level: TlsLevel) -> None:
    peer = Peer(ehlo=CLEAR_EHLO)
    attempt = await one(TlsPolicy(level, "why not"), peer, authority, tmp_path)
    assert attempt.outcomes[0].result is Result.DEFERRED
    assert attempt.outcomes[0].reply is not None
    assert attempt.outcomes[0].reply.enhanced == "4.7.10"
    assert "required but not offered (why not)" in attempt.outcomes[0].reply.text
    assert peer.connections == 1
    assert peer.received == []


async def test_unverified_tls_takes_any_certificate(authority: Authority, tmp_path: Path) -> None:
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(trustme.CA().issue_cert("elsewhere.example")))
    attempt = await one(TlsPolicy(TlsLevel.ENCRYPTED, "dane"), peer, authority, tmp_path)
    assert attempt.outcomes[0].result is Result.DELIVERED
    assert attempt.tls_level == TlsLevel.ENCRYPTED
    assert peer.connections == 1


TESTING = TlsPolicy(TlsLevel.OPPORTUNISTIC, "mta-sts testing", testing=True)


async def test_mta_sts_in_mode_testing_says_that_the_certificate_is_good(authority: Authority, tmp_path: Path) -> None:
    """RFC 8461 §5."""
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(authority.chain("mx.a.example")[0]))
    attempt = await one(TESTING, peer, authority, tmp_path)
    assert attempt.outcomes[0].result is Result.DELIVERED
    assert "TLS opportunistic (mta-sts testing; the certificate is good enough for enforce)" in notes(attempt)
    assert peer.connections == 1


async def test_mta_sts_in_mode_testing_says_what_enforce_would_refuse(authority: Authority, tmp_path: Path) -> None:
    """RFC 8461 §5: delivered all the same; the certificate is looked at once, and the transcript has what was wrong."""
    peer = Peer(ehlo=EHLO_TLS, tls=server_context(trustme.CA().issue_cert("mx.a.example")))
    attempts = await deliver((peer, "mx.a.example", TESTING), authority=authority, tmp_path=tmp_path, messages=2)
    assert [attempt.outcomes[0].result for attempt in attempts] == [Result.DELIVERED] * 2
    assert "the certificate is not good" in notes(attempts[0])
    for attempt in attempts:
        assert "TLS opportunistic (mta-sts testing; enforce would refuse the certificate)" in notes(attempt)
        assert attempt.tls_level == TlsLevel.OPPORTUNISTIC
    assert peer.connections == 2  # one to see, one for both messages

    plain = Peer(ehlo=CLEAR_EHLO)
    attempt = await one(TESTING, plain, authority, tmp_path)
    assert attempt.outcomes[0].result is Result.DELIVERED
    assert "clear text, no TLS (mta-sts testing; enforce would refuse clear text)" in notes(attempt)


async def test_opportunistic_falls_back(authority: Authority, tmp_path: Path) -> None:
    """RFC 7435."""
    leaf, _ = authority.chain("mx.a.example")
    context = server_context(leaf)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # cannot work with this key
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    peer = Peer(ehlo=EHLO_TLS, tls=context)
    policy = TlsPolicy(TlsLevel.OPPORTUNISTIC)
    attempts = await deliver((peer, "mx.a.example", policy), authority=authority, tmp_path=tmp_path, messages=2)
    assert [a.outcomes[0].result for a in attempts] == [Result.DELIVERED] * 2
    assert [a.tls_level for a in attempts] == ["none"] * 2
    assert "clear text, no TLS" in notes(attempts[0])
    assert peer.connections == 2


async def test_a_host_whose_tls_is_not_good_enough_is_left_for_the_next(authority: Authority, tmp_path: Path) -> None:
    wrong, _ = authority.chain("mx.b.example")
    right, _ = authority.chain("mx2.a.example")
    policy = TlsPolicy(TlsLevel.VERIFIED, "mta-sts enforce")
    first = Peer(ehlo=EHLO_TLS, tls=server_context(wrong))
    second = Peer(ehlo=EHLO_TLS, tls=server_context(right))
    attempts = await deliver(
        (first, "mx.a.example", policy),
        (second, "mx2.a.example", policy),
        authority=authority,
        tmp_path=tmp_path,
        messages=3,
    )
    assert [a.outcomes[0].result for a in attempts] == [Result.DELIVERED] * 3
    assert first.received == []
    assert first.connections == second.connections == 1
    assert "kept connection" in notes(attempts[1])
    assert "TLS verified (mta-sts enforce)" in notes(attempts[1])


async def test_clear_text_where_nothing_is_asked_for(authority: Authority, tmp_path: Path) -> None:
    attempt = await one(TlsPolicy(TlsLevel.NONE), Peer(), authority, tmp_path)
    assert attempt.outcomes[0].result is Result.DELIVERED
    assert attempt.tls_level == "none"
    assert attempt.host.startswith("mx.a.example[127.0.0.1]:")
