# SPDX-License-Identifier: Apache-2.0
"""MTA-STS: the TXT record and the policy, line by line (RFC 8461 §3.1, §3.2, §4.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.delivery import mta_sts
from hepmaild.delivery.hops import TlsLevel, TlsPolicy
from hepmaild.delivery.mta_sts import Kept, Mode, Policy, names, parse_policy, read_txt

GOOD = """\
version: STSv1
mode: enforce
mx: mail.example.com
mx: *.example.net
mx: backupmx.example.com
max_age: 604800
"""


@pytest.mark.parametrize(
    ("records", "policy_id"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1 ; id=a ; "], "a"),
        (["v=STSv1; x=y; id=a"], "a"),
        (["v=STSv1; id=a; id=b"], "a"),
        (["v=spf1 -all", "v=STSv1; id=a;"], "a"),
        (["v=STSv1; id=a;", "v=STSv1; id=b;"], None),
        ([], None),
        ([""], None),
        (["v=STSv1"], None),
        (["v=STSv1;"], None),
        (["v=STSv1; id="], None),
        (["v=STSv1; id=a b"], None),
        (["v=STSv1; id=a-b"], None),
        (["v=STSv1; id=" + "x" * 33], None),
        (["v=STSv1; id=a; ;"], None),
        (["v=STSv1; nonsense; id=a"], None),
        (["v=stsv1; id=a"], None),
        (["V=STSv1; id=a"], None),
        ([" v=STSv1; id=a"], None),
        (["v=STSv10; id=a"], None),
        (["v=STSv1; id=a\n"], None),
    ],
)
def test_txt(records: list[str], policy_id: str | None) -> None:
    assert read_txt(records) == policy_id


def test_the_example_of_the_rfc() -> None:
    mx = ("mail.example.com", "*.example.net", "backupmx.example.com")
    assert parse_policy(GOOD) == Policy(Mode.ENFORCE, mx, 604_800)
    assert parse_policy(GOOD.replace("\n", "\r\n")) == parse_policy(GOOD)
    assert parse_policy(GOOD.rstrip()) == parse_policy(GOOD)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode: enforce", "mode:enforce"),
        ("mode: enforce", "mode: \t enforce \t"),
        ("mode: enforce", "mode: enforce\nmode: none"),
        ("max_age: 604800", "max_age: 604800\nmax_age: x"),
        ("mx: mail.example.com", "mx: MAIL.Example.COM"),
        ("mode: enforce", "x-new.thing_1: any text at all é\nmode: enforce"),
        ("mx: *.example.net", "mx: *.example.net\nmx: *.example.net"),
    ],
)
def test_other_ways_to_say_it(old: str, new: str) -> None:
    assert parse_policy(GOOD.replace(old, new)) == parse_policy(GOOD)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: STSv1\n", ""),
        ("STSv1", "STSv2"),
        ("STSv1", "stsv1"),
        ("version", "Version"),
        ("enforce", "Enforce"),
        ("enforce", "enforced"),
        ("mode: enforce", "mode enforce"),
        ("mode: enforce", "mode : enforce"),
        ("mode: enforce", " mode: enforce"),
        ("mode: enforce", "mode:"),
        ("mode: enforce", "mode: enforce\n"),
        ("mode: enforce", "mode: enforce\x00"),
        ("mode: enforce", "mode: enforce\rmode: none"),
        ("max_age: 604800", ""),
        ("604800", "-1"),
        ("604800", "1.5"),
        ("604800", "12345678901"),
        ("604800", "٣"),
        ("mx: mail.example.com", "mx: mail..example.com"),
        ("mx: mail.example.com", "mx: *"),
        ("mx: mail.example.com", "mx: *.*.example.com"),
        ("mx: mail.example.com", "mx: mail.*.example.com"),
        ("mx: mail.example.com", "mx: mail.example.com."),
        ("mx: mail.example.com", "mx: mäil.example.com"),
        ("mx: mail.example.com", "mx: [192.0.2.1]"),
        ("mx: mail.example.com\nmx: *.example.net\nmx: backupmx.example.com\n", ""),
    ],
)
def test_what_is_no_policy(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError):  # noqa: PT011
        parse_policy(GOOD.replace(old, new))


def test_mode_none_needs_no_mx_and_a_year_is_the_most() -> None:
    assert parse_policy("version: STSv1\nmode: none\nmax_age: 9999999999") == Policy(Mode.NONE, (), 31_557_600)


@given(st.text())
def test_any_text_is_a_policy_or_a_value_error(text: str) -> None:
    try:
        policy = parse_policy(text)
    except ValueError:
        return
    assert 0 <= policy.max_age_s <= mta_sts.MAX_AGE_S


@given(st.lists(st.text()))
def test_any_records_have_an_id_or_none(records: list[str]) -> None:
    found = read_txt(records)
    assert found is None or (0 < len(found) <= 32 and found.isalnum() and found.isascii())


label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
domain = st.lists(label, min_size=2, max_size=4).map(".".join)
policies = st.builds(
    Policy,
    st.sampled_from(Mode),
    st.lists(st.one_of(domain, domain.map("*.{}".format)), min_size=1, max_size=5, unique=True).map(tuple),
    st.integers(0, mta_sts.MAX_AGE_S),
)


@given(policies, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.randoms())
def test_written_and_read_again(policy: Policy, end: str, last: bool, dice: object) -> None:
    lines = ["version: STSv1", f"mode: {policy.mode}", f"max_age: {policy.max_age_s}", "later-version: whatever"]
    dice.shuffle(lines)  # type: ignore[attr-defined]
    text = end.join([*lines, *(f"mx: {pattern}" for pattern in policy.mx)]) + (end if last else "")
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("mx.example.com", "mx.example.com", True),
        ("mx.example.com", "MX.Example.com.", True),
        ("mx.example.com", "a.mx.example.com", False),
        ("*.example.com", "mx.example.com", True),
        ("*.example.com", "a.mx.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", "mxexample.com", False),
        ("example.com", "mx.example.com", False),
        ("*.com", "com", False),
    ],
)
def test_patterns(pattern: str, host: str, fits: bool) -> None:
    assert names(Policy(Mode.ENFORCE, (pattern,), 1), host) is fits


@given(domain, label)
def test_a_star_is_one_label(name: str, first: str) -> None:
    policy = Policy(Mode.ENFORCE, (f"*.{name}",), 1)
    assert names(policy, f"{first}.{name}")
    assert not names(policy, name)
    assert not names(policy, f"{first}.{first}.{name}")


def test_what_the_policy_leaves_of_tls() -> None:
    base = TlsPolicy(TlsLevel.ENCRYPTED, "dane: no usable TLSA record")
    for policy in (None, Policy(Mode.NONE, (), 1)):
        assert mta_sts.tls_policy(policy, "mx.test", at_least=base) is base
    enforce, testing = (Policy(mode, ("mx.test",), 1) for mode in (Mode.ENFORCE, Mode.TESTING))
    assert mta_sts.tls_policy(enforce, "mx.test", at_least=base) == TlsPolicy(TlsLevel.VERIFIED, "mta-sts enforce")
    assert mta_sts.tls_policy(enforce, "other.test", at_least=base) is None
    for host in ("mx.test", "other.test"):
        found = mta_sts.tls_policy(testing, host, at_least=base)
        assert found is not None
        assert found.level is TlsLevel.ENCRYPTED
        assert found.testing


def test_when_to_look_at_the_original() -> None:
    kept = Kept("test", "a", "", 1_000_000, 101_000_000)
    assert kept.is_current("a", 50_000_000)
    assert not kept.is_current("b", 50_000_000)
    assert not kept.is_current("a", 51_000_000)
    assert not kept.is_current("a", 0)  # the clock was ahead when it was fetched
