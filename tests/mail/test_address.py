# SPDX-License-Identifier: Apache-2.0
"""Addresses are judged by email-validator; the fast path must never disagree with it."""

from __future__ import annotations

import email_validator
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.mail.address import check_address, domain_of, key_of, parse_mailbox
from hepmaild.mail.ids import header_message_id, is_message_id, message_id
from hepmaild.mail.submission import Mailbox


def library(address: str) -> str | None:
    try:
        found = email_validator.validate_email(address, check_deliverability=False, globally_deliverable=False)
    except email_validator.EmailNotValidError:
        return None
    return f"{found.local_part}@{found.ascii_domain}"


def ours(address: str) -> str | None:
    try:
        return check_address(address)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("given_", "normalised"),
    [
        ("Joe.Doe+x@Example.COM", "Joe.Doe+x@example.com"),
        ("a@localhost", "a@localhost"),
        ("x@printer.local", "x@printer.local"),
        ("x@foo.test", "x@foo.test"),
        ("x@foo.invalid", "x@foo.invalid"),
        ("POSTMASTER@a.b", "postmaster@a.b"),
        ("jörg@müller.de", "jörg@xn--mller-kva.de"),
        ("joe@XN--Mller-kva.de", "joe@xn--mller-kva.de"),
    ],
)
def test_good_addresses(given_: str, normalised: str) -> None:
    """RFC 5321 §4.5.3.1.3, RFC 5891, RFC 6531."""
    assert check_address(given_) == normalised


@pytest.mark.parametrize(
    "bad",
    ["", "a", "@b.c", "a@", "a@[127.0.0.1]", "a@[IPv6:::1]", '"a b"@c.d', "a b@c.d", "a@b..c", "a@-b.c", "a@b.c\r\n",
     "a@b.c\x00", "a\n@b.c", ".a@b.c", "a@b.c,d@e.f", "<a@b.c>", "a@b_c.d", "a" * 251 + "@b.c", "a@" + "b" * 64 + ".c",
     "a@ab--c.d", "a@xn--a.d", "a\ud800@b.c"],
)  # fmt: skip
def test_bad_addresses_say_why(bad: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_address(bad)


@given(st.from_regex(r"[A-Za-z0-9.!+_\-]{1,70}@[A-Za-z0-9.\-]{1,80}", fullmatch=True))
def test_fast_path_agrees_with_the_library(address: str) -> None:
    assert ours(address) == library(address)


@given(st.text(alphabet='ab.-@_+é ü\n\x00"<>[]1XN', max_size=40))
def test_anything_agrees_with_the_library(address: str) -> None:
    assert ours(address) == library(address)


def test_mailboxes() -> None:
    assert parse_mailbox("a@b.c") == Mailbox("a@b.c")
    assert parse_mailbox('"Acme" <a@B.c>') == Mailbox("a@b.c", "Acme")
    assert parse_mailbox("Acme, Inc. <a@b.c>") == Mailbox("a@b.c", "Acme, Inc.")
    assert parse_mailbox(r'"A \"B\" \\" <a@b.c>') == Mailbox("a@b.c", 'A "B" \\')
    assert parse_mailbox("<a@b.c>") == Mailbox("a@b.c")
    assert parse_mailbox("Jörg <j@b.c> ") == Mailbox("j@b.c", "Jörg")
    assert len(parse_mailbox("x" * 300 + " <a@b.c>").name) == 100


@pytest.mark.parametrize(
    "bad", ["a@b.c\r\nBcc: x@y.z", '"A\nB" <a@b.c>', "A\x00 <a@b.c>", "a@b.c>", '"A <a@b.c>', "A <a>", "\u2028<a@b.c>"]
)
def test_bad_mailboxes(bad: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_mailbox(bad)


def test_keys_and_domains() -> None:
    assert key_of("A@B.c") == key_of("a@b.C")
    assert key_of("\u00dcl\u00df@b.c") == key_of("\u00fcl\u00df@b.c")
    assert key_of("stra\u00dfe@b.c") != key_of("strasse@b.c"), "another letter is another mailbox"
    assert domain_of("a@b.c") == "b.c"


def test_ids() -> None:
    """RFC 5322 §3.6.4."""
    assert message_id(bytes(range(8)), 0) == "0000000304050607"
    assert message_id(b"\xff" * 8, 0x1234567 << 10) == "1234567" + "f" * 9
    assert message_id(bytes(8), (0xFFFFFFF << 10) + 1023) == "fffffff" + "0" * 9
    assert message_id(bytes(8), 1 << 38) == "0" * 16  # it comes round
    assert is_message_id("0001020304050607")
    assert not is_message_id("0001020304050607\n")
    assert header_message_id(bytes(16), "x@hep.gg") == f"<{'0' * 32}@hep.gg>"
