# SPDX-License-Identifier: Apache-2.0
"""The intake's pure checks at their very ends: who waits for wrong keys, when a key has expired, which sender it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hepmaild import policy
from hepmaild.config import Plan
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.submission import Door, Kind, Permission, Recipient
from hepmaild.policy import FailedKeys
from hepmaild.storage.directory import KeyRow, SenderRow
from tests.storage.books import START_US, Clock

KEY = KeyRow("key-1", "app", "abcde", "active", None, None, None, None, "account-1", "o@example.com", "active", "pro")
PEER = "192.0.2.1"


def refused(row: KeyRow, peer_ip: str = PEER, needs: Permission | None = None) -> ErrorKind | None:
    refusal = policy.check_key(row, Door.SMTP, peer_ip, START_US, needs)
    return None if refusal is None else refusal.kind


# Wrong keys


def test_ten_wrong_keys_in_a_minute_are_free_and_every_further_one_waits_longer() -> None:
    clock = Clock()
    failed = FailedKeys(lambda: 10, clock.now_us)
    assert [failed.note(PEER) for _ in range(10)] == [0] * 10
    assert [failed.note(PEER) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert failed.note("192.0.2.2") == 0


def test_a_wrong_key_is_forgotten_after_exactly_a_minute() -> None:
    clock = Clock()
    failed = FailedKeys(lambda: 1, clock.now_us)
    assert failed.note(PEER) == 0
    clock.us += FailedKeys.WINDOW_US - 1
    assert failed.note(PEER) == 1
    clock.us += 1  # the first one is a minute old, the second is not
    assert failed.note(PEER) == 1
    clock.us += FailedKeys.WINDOW_US
    assert failed.note(PEER) == 0


def test_another_limit_holds_at_once() -> None:
    clock, limit = Clock(), [3]
    failed = FailedKeys(lambda: limit[0], clock.now_us)
    assert [failed.note(PEER) for _ in range(3)] == [0, 0, 0]
    limit[0] = 1
    assert failed.note(PEER) == 4
    limit[0] = 5
    assert failed.note(PEER) == 0


def test_who_failed_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailedKeys, "MAX_CLIENTS", 2)
    failed = FailedKeys(lambda: 1, Clock().now_us)
    for peer in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"):
        failed.note(peer)
    assert failed.note("192.0.2.1") == 2
    assert failed.note("192.0.2.2") == 0


@pytest.mark.parametrize(
    ("peer_ip", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a socket", "a socket"),
    ],
)
def test_who_counts_as_one_client(peer_ip: str, client: str) -> None:
    assert policy.client_of(peer_ip) == client


# Keys


def test_a_key_is_good_until_the_instant_of_its_expiry() -> None:
    assert refused(replace(KEY, expires_at_us=START_US + 1)) is None
    assert refused(replace(KEY, expires_at_us=START_US)) is ErrorKind.KEY_EXPIRED


def test_the_first_reason_is_told() -> None:
    row = replace(
        KEY,
        status="disabled",
        expires_at_us=START_US,
        addresses=("198.51.100.0/24",),
        permissions=frozenset({"http"}),
        account_status="suspended",
    )
    told = []
    for change in (
        {"status": "active"},
        {"expires_at_us": None},
        {"addresses": None},
        {"permissions": None},
        {"account_status": "active"},
    ):
        told.append(refused(row))
        row = replace(row, **change)  # type: ignore[arg-type]
    assert told == [
        ErrorKind.KEY_DISABLED,
        ErrorKind.KEY_EXPIRED,
        ErrorKind.IP_NOT_ALLOWED,
        ErrorKind.CHANNEL_NOT_ALLOWED,
        ErrorKind.ACCOUNT_SUSPENDED,
    ]
    assert refused(row) is None


def test_what_is_needed_stands_in_place_of_the_door() -> None:
    """A key that may send by SMTP may not therefore do what needs another permission, and the other way round."""
    by_smtp = replace(KEY, permissions=frozenset({"smtp"}))
    templates = replace(KEY, permissions=frozenset({"templates"}))
    assert (refused(by_smtp), refused(by_smtp, needs=Permission.TEMPLATES)) == (None, ErrorKind.CHANNEL_NOT_ALLOWED)
    assert (refused(templates), refused(templates, needs=Permission.TEMPLATES)) == (ErrorKind.CHANNEL_NOT_ALLOWED, None)


@pytest.mark.parametrize(
    ("peer_ip", "is_inside"),
    [
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("somewhere", False),
    ],
)
def test_addresses_of_a_key(peer_ip: str, is_inside: bool) -> None:
    row = replace(KEY, addresses=("192.0.2.4/30", "2001:db8::/32"))
    assert refused(row, peer_ip) is (None if is_inside else ErrorKind.IP_NOT_ALLOWED)
    assert refused(replace(KEY, addresses=()), peer_ip) is ErrorKind.IP_NOT_ALLOWED


def test_a_plan_that_left_the_settings_is_the_standard_one() -> None:
    free, standard = Plan(calls_per_minute=5), Plan(calls_per_minute=7)
    assert policy.plan_of({"free": free, "standard": standard}, "free") is free
    assert policy.plan_of({"free": free, "standard": standard}, "gone") is standard
    assert policy.plan_of({"free": free}, "gone").calls_per_minute == 120


# Senders


def sender(account_id: str, address: str, *, is_default: bool = False) -> SenderRow:
    return SenderRow(account_id, address, address.lower(), "up", 0, is_default)


def test_an_accounts_own_sender_goes_before_a_global_one_of_the_same_address() -> None:
    own = sender("account-1", "App@example.com")
    book = policy.make_book([own, sender("", "app@example.com", is_default=True)], [sender("", "app@example.com")])
    assert book.by_key == {"app@example.com": own}
    assert policy.pick_sender(book, ["APP@EXAMPLE.COM"], None) is own


def test_the_first_default_counts() -> None:
    first, second = sender("account-1", "a@example.com", is_default=True), sender("", "b@example.com", is_default=True)
    book = policy.make_book([sender("account-1", "c@example.com"), first, second], [])
    assert book.default is first
    assert policy.pick_sender(book, [], None) is first


def test_every_address_in_from_must_be_the_accounts_and_the_keys() -> None:
    book = policy.make_book([sender("", "a@example.com"), sender("", "b@example.com")], [])
    both = ["a@example.com", "b@example.com"]
    assert policy.pick_sender(book, both, None) is book.by_key["a@example.com"]
    for wanted, allowed in (
        (["a@example.com", "c@example.com"], None),
        (["c@example.com", "a@example.com"], None),
        (both, frozenset({"a@example.com"})),
        (both, frozenset({"b@example.com"})),
        (["a@example.com"], frozenset()),
        ([], None),
    ):
        found = policy.pick_sender(book, wanted, allowed)
        assert isinstance(found, Refusal), (wanted, allowed)
        assert (found.kind, found.field) == (ErrorKind.SENDER_NOT_ALLOWED, "from")


def test_the_default_sender_too_must_be_one_that_the_key_may_use() -> None:
    book = policy.make_book([sender("", "a@example.com", is_default=True)], [])
    assert isinstance(policy.pick_sender(book, [], frozenset({"b@example.com"})), Refusal)
    assert policy.pick_sender(book, [], frozenset({"a@example.com"})) is book.default


def test_the_first_of_a_repeated_recipient_stays() -> None:
    to, cc = Recipient("A@x.test", Kind.TO), Recipient("a@X.TEST", Kind.CC)
    other = Recipient("b@x.test", Kind.BCC)
    assert policy.distinct([to, other, cc]) == (to, other)
