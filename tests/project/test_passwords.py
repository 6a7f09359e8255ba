# SPDX-License-Identifier: Apache-2.0
"""Which passwords are refused, and that a kept one is of no use to a thief."""

from __future__ import annotations

import pytest

from hepmaild import passwords
from hepmaild.key_rules import LATEST_US, parse_expiry, parse_networks


@pytest.mark.parametrize(
    "password",
    [
        *("short", "", "password12", "Password123!", "P@ssw0rd2026", "aaaaaaaaaaaa", "abababababab", "1234567890"),
        *("0987654321", "qwertyuiop", "letmein2025!", "hepmaild1234", "8273645019", "passwordpassword", "x" * 1001),
        *("jane.doe@example.com", "jane.doe2026", "abcdefghijkl", "changeme!!"),
    ],
)
def test_obvious_passwords_are_refused(password: str) -> None:
    with pytest.raises(ValueError, match="password"):
        passwords.check_password(password, email="jane.doe@example.com")


@pytest.mark.parametrize("password", ["correct horse battery", "8#4$9!2@7%1", "Ünïcödé-wörter", "jane likes 3 cats"])
def test_others_are_taken(password: str) -> None:
    passwords.check_password(password, email="jane.doe@example.com")


def test_a_kept_password() -> None:
    kept = passwords.hash_password("correct horse battery")
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert kept != passwords.hash_password("correct horse battery")
    assert passwords.verify_password(kept, "correct horse battery")
    assert not passwords.verify_password(kept, "correct horse batterz")
    assert not passwords.verify_password("rubbish", "correct horse battery")
    assert not passwords.needs_rehash(kept)


def test_expiry() -> None:
    assert parse_expiry("1970-01-01") == 86_400_000_000
    assert parse_expiry("1970-01-01T01:00:00.000001+01:00") == 1
    assert parse_expiry("1970-01-01T00:00:01Z") == 1_000_000
    for text in ("", "x", "2026-13-01", "9999-12-31", "2026-01-01T00:00:00"):
        with pytest.raises(ValueError, match="a date"):
            parse_expiry(text)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-12:00", "9999-12-31T00:00:00Z", "9999-12-30"])
def test_an_expiry_that_no_date_can_show(text: str) -> None:
    with pytest.raises(ValueError, match="too far ahead: give a date"):
        parse_expiry(text)


def test_the_last_expiry() -> None:
    assert parse_expiry("9999-12-29") == LATEST_US - 86_400_000_000


def test_networks() -> None:
    assert parse_networks(["10.0.0.0/8", "::1", "10.0.0.0/8", " 192.0.2.7 "]) == [
        "10.0.0.0/8",
        "::1/128",
        "192.0.2.7/32",
    ]
    for text in ("10.0.0.1/8", "x", "", "10.0.0.0/33"):
        with pytest.raises(ValueError, match="CIDR"):
            parse_networks([text])
