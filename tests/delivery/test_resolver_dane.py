# SPDX-License-Identifier: Apache-2.0
"""DANE: with a signed zone and a validating resolver, and its rules by themselves."""

from __future__ import annotations

import datetime as dt
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.config import DnsSettings
from hepmaild.delivery import dane
from hepmaild.delivery.answers import TlsaRow
from hepmaild.delivery.hops import Hops, NoHops, Tlsa, TlsLevel, TlsPolicy
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.resolver import Flags, Resolver
from hepmaild.tls import make_self_signed
from tests.delivery.zones import SHA256, SHA512
from tests.peers.nameservers import Nameservers

EE = Tlsa(3, 1, 1, bytes.fromhex(SHA256))


class MxRoute:
    """As the engine's routes."""

    def __init__(self, port: int = 25, *, dane: bool = True) -> None:
        self.port = port
        self.mta_sts = True
        self.dane = dane
        self.ipv6 = True


def make_resolver(nameservers: Nameservers, *, trust_ad: bool = True) -> Resolver:
    settings = DnsSettings(servers=(f"127.0.0.1:{nameservers.resolver}",), trust_ad=trust_ad)
    return Resolver(Lookups(settings), None, random.Random(1).random)


@pytest.fixture
def resolver(nameservers: Nameservers) -> Resolver:
    return make_resolver(nameservers)


async def policies(resolver: Resolver, name: str, port: int = 25) -> dict[str, TlsPolicy]:
    found = await resolver.resolve(f"{name}.signed.test", Flags(tlsa_port=port))
    assert isinstance(found, Hops), found
    return {hop.name.removesuffix(".signed.test"): hop.tls for hop in found.hops}


async def test_dane_ee(resolver: Resolver) -> None:
    """RFC 7672 §3.1.1."""
    expected = TlsPolicy(TlsLevel.DANE, "TLSA 3 1 1", (EE,), ("mx-ee.signed.test",))
    assert await policies(resolver, "ee") == {"mx-ee": expected}


async def test_dane_ta_with_the_strongest_digest_and_all_names(resolver: Resolver) -> None:
    """RFC 7672 §3.1.2, §3.2.2, RFC 7671 §9."""
    record = Tlsa(2, 0, 2, bytes.fromhex(SHA512))
    expected = TlsPolicy(TlsLevel.DANE, "TLSA 2 0 2", (record,), ("mx-ta.signed.test", "ta.signed.test"))
    assert await policies(resolver, "ta") == {"mx-ta": expected}


async def test_records_of_another_port(resolver: Resolver) -> None:
    """RFC 6698 §3."""
    policy = (await policies(resolver, "ee", 2525))["mx-ee"]
    assert policy.tlsa == (Tlsa(3, 1, 1, b"\x99" * 32),)
    assert (await policies(resolver, "ee", 26))["mx-ee"].level is TlsLevel.OPPORTUNISTIC


async def test_unusable_records_demand_encryption(resolver: Resolver) -> None:
    """RFC 7672 §2.2."""
    assert (await policies(resolver, "unusable"))["mx-unusable"].level is TlsLevel.ENCRYPTED


async def test_proof_of_absence(resolver: Resolver) -> None:
    assert (await policies(resolver, "none"))["mx-none"] == TlsPolicy(TlsLevel.OPPORTUNISTIC)


async def test_a_domain_that_is_its_own_host(resolver: Resolver) -> None:
    assert (await policies(resolver, "alone"))["alone"].level is TlsLevel.DANE


async def test_unknown_records_put_a_host_off(resolver: Resolver) -> None:
    """RFC 7672 §2.2."""
    found = await resolver.resolve("fails.signed.test", Flags(tlsa_port=25))
    assert isinstance(found, NoHops)
    assert str(found.reply).startswith("451 4.4.3 the TLSA records of mx-tlsa-fails.signed.test cannot")
    assert list(await policies(resolver, "half-fails")) == ["mx-ee"]
    assert list(await policies(resolver, "half-fails", 0)) == ["mx-tlsa-fails", "mx-ee"]


async def test_a_host_in_a_zone_without_signatures(resolver: Resolver) -> None:
    """RFC 7672 §2.2."""
    assert await policies(resolver, "elsewhere") == {"mx1.plain.test": TlsPolicy(TlsLevel.OPPORTUNISTIC)}


async def test_aliases(resolver: Resolver) -> None:
    """Records are where a secure alias leads; at the alias itself when it leads out of DNSSEC (RFC 7672 §2.2.2)."""
    assert (await policies(resolver, "via-alias"))["mx-alias"].names == ("mx-ee.signed.test",)
    assert (await policies(resolver, "alias-out"))["mx-out"] == TlsPolicy(
        TlsLevel.DANE, "TLSA 3 1 1", (EE,), ("mx-out.signed.test",)
    )


async def test_only_where_the_route_and_the_settings_say_so(nameservers: Nameservers) -> None:
    levels = []
    for trust_ad, wanted in ((True, True), (True, False), (False, True)):
        resolve = make_resolver(nameservers, trust_ad=trust_ad).for_route(MxRoute(dane=wanted))
        found = await resolve("ee.signed.test")
        assert isinstance(found, Hops)
        levels.append(found.hops[0].tls.level)
    assert levels == [TlsLevel.DANE, TlsLevel.OPPORTUNISTIC, TlsLevel.OPPORTUNISTIC]


async def test_demands_and_names_part_groups(resolver: Resolver) -> None:
    groups = []
    for name, port in (("ee", 25), ("ee", 0), ("ta", 25)):
        found = await resolver.resolve(f"{name}.signed.test", Flags(tlsa_port=port))
        assert isinstance(found, Hops)
        groups.append(found.group)
    assert groups == ["mx-ee.signed.test/dane", "mx-ee.signed.test", "mx-ta.signed.test/dane/ta.signed.test"]


# The rules by themselves


def _der() -> tuple[bytes, bytes]:
    pem, _ = make_self_signed("mx.test", dt.datetime.now(dt.UTC))
    certificate = x509.load_pem_x509_certificate(pem)
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return certificate.public_bytes(serialization.Encoding.DER), key


CERTIFICATE, KEY = _der()


@pytest.mark.parametrize(
    ("row", "usable"),
    [
        (TlsaRow(3, 1, 1, b"x" * 32), True),
        (TlsaRow(3, 0, 2, b"x" * 64), True),
        (TlsaRow(2, 0, 1, b"x" * 32), True),
        (TlsaRow(0, 0, 1, b"x" * 32), False),
        (TlsaRow(1, 1, 1, b"x" * 32), False),
        (TlsaRow(255, 1, 1, b"x" * 32), False),
        (TlsaRow(3, 2, 1, b"x" * 32), False),
        (TlsaRow(3, 1, 3, b"x" * 32), False),
        (TlsaRow(3, 1, 1, b"x" * 31), False),
        (TlsaRow(3, 1, 2, b"x" * 32), False),
        (TlsaRow(3, 1, 1, b""), False),
        (TlsaRow(3, 0, 0, CERTIFICATE), True),
        (TlsaRow(2, 1, 0, KEY), True),
        (TlsaRow(3, 1, 0, CERTIFICATE), False),
        (TlsaRow(3, 0, 0, CERTIFICATE[:-1]), False),
        (TlsaRow(3, 0, 0, b""), False),
    ],
)
def test_usable(row: TlsaRow, usable: bool) -> None:
    """RFC 7672 §3.1.3."""
    assert dane.is_usable(row) is usable


def test_the_strongest_digest_of_each_usage_and_selector() -> None:
    """RFC 7671 §9."""
    rows = [
        TlsaRow(3, 1, 1, b"a" * 32),
        TlsaRow(3, 1, 2, b"a" * 64),
        TlsaRow(3, 1, 0, KEY),
        TlsaRow(3, 0, 1, b"b" * 32),
        TlsaRow(2, 1, 1, b"c" * 32),
    ]
    policy = dane.policy_of(rows, ("mx.test",))
    assert policy is not None
    assert [(r.usage, r.selector, r.matching) for r in policy.tlsa] == [(3, 1, 2), (3, 1, 0), (3, 0, 1), (2, 1, 1)]


rows = st.builds(TlsaRow, st.integers(0, 4), st.integers(0, 3), st.integers(0, 3), st.binary(max_size=70))


@given(st.lists(rows, max_size=6))
def test_whatever_the_records_are(found: list[TlsaRow]) -> None:
    policy = dane.policy_of(found, ("mx.test", "test"))
    if not found:
        assert policy is None
        return
    assert policy is not None
    assert policy.level is (TlsLevel.DANE if any(map(dane.is_usable, found)) else TlsLevel.ENCRYPTED)
    assert bool(policy.tlsa) is (policy.level is TlsLevel.DANE)
    assert policy == dane.policy_of(found[::-1], ("mx.test", "test"))
