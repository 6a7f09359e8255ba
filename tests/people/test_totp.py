# SPDX-License-Identifier: Apache-2.0
"""Codes of the second factor: the vectors of RFC 6238 and RFC 4226, drift, recovery codes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild import totp

SECRET = b"12345678901234567890"
SECRETS = {"sha1": SECRET, "sha256": (SECRET * 2)[:32], "sha512": (SECRET * 4)[:64]}
# RFC 6238, appendix B.
VECTORS = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]


@pytest.mark.parametrize(("at_s", "sha1", "sha256", "sha512"), VECTORS)
def test_rfc_6238(at_s: int, sha1: str, sha256: str, sha512: str) -> None:
    """RFC 6238 Appendix B."""
    step = totp.step_of(at_s * 1_000_000)
    for algorithm, wanted in (("sha1", sha1), ("sha256", sha256), ("sha512", sha512)):
        assert totp.code(SECRETS[algorithm], step, digits=8, algorithm=algorithm) == wanted
    assert totp.matching_step(SECRET, sha1[2:], at_s * 1_000_000) == step


def test_rfc_4226() -> None:
    """RFC 4226 §5.3."""
    wanted = ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"]
    assert [totp.code(SECRET, n) for n in range(10)] == wanted


@given(st.binary(min_size=16, max_size=32), st.integers(0, 2**40), st.integers(-4, 4))
def test_drift(secret: bytes, step: int, off: int) -> None:
    """RFC 6238 §5.2."""
    now_us = step * totp.STEP_S * 1_000_000 + 17
    if step + off < 0:
        return
    found = totp.matching_step(secret, totp.code(secret, step + off), now_us)
    if abs(off) <= totp.DRIFT_STEPS:
        assert found is not None
        assert totp.code(secret, found) == totp.code(secret, step + off)
    else:  # another step's code may be the same by chance
        assert found is None or totp.code(secret, found) == totp.code(secret, step + off)


@given(st.text(max_size=70))
def test_nothing_else_is_a_code(text: str) -> None:
    codes = {totp.code(SECRET, step) for step in (0, 1)}
    assert (totp.matching_step(SECRET, text, 0) is not None) == (text in codes)
    totp.looks_like_recovery(totp.clean(text))


def test_codes_as_people_type_them() -> None:
    assert totp.clean(" 123 456 ") == "123456"
    (code,) = totp.recovery_codes(bytes(range(totp.RECOVERY_OCTETS)))
    assert code == "AAAQ-EAYE-AUDA-OCAJ"
    assert totp.looks_like_recovery(totp.clean(code))
    assert totp.hash_recovery(totp.clean(code.lower().replace("-", " "))) == totp.hash_recovery("AAAQEAYEAUDAOCAJ")
    assert not totp.looks_like_recovery("123456")


def test_what_an_app_reads() -> None:
    uri = totp.enrolment_uri(SECRET, issuer="hepmaild", email="ann+x@example.com")
    assert uri == (
        "otpauth://totp/hepmaild%3Aann%2Bx%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=hepmaild"
    )
    assert base64.b32decode(totp.secret_text(SECRET)) == SECRET
