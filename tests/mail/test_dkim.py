# SPDX-License-Identifier: Apache-2.0
"""Signatures, judged by dkimpy, which shares no code with us; and records, judged by us."""

from __future__ import annotations

import base64
import hashlib
import re

import dkim as dkimpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hepmaild.dkim_keys import KeyPair, make_pair, make_signer
from hepmaild.errors import SecretsUnavailable
from hepmaild.mail import dkim_record
from hepmaild.mail.dkim import ED25519, RSA, BodyHash, Signer, body_hash, relaxed_value, sign

DOMAIN = "example.com"
PAIRS: dict[str, KeyPair] = {algorithm: make_pair(algorithm) for algorithm in (RSA, ED25519)}
SELECTORS = {RSA: "r", ED25519: "e"}
AT_S = 1_700_000_000


def signers(*algorithms: str) -> list[Signer]:
    return [make_signer(DOMAIN, SELECTORS[name], name, PAIRS[name].private_key) for name in algorithms]


def records(name: bytes, timeout: float = 5) -> bytes | None:
    for algorithm, selector in SELECTORS.items():
        if name.rstrip(b".").decode() == dkim_record.record_name(DOMAIN, selector):
            return dkim_record.record_value(algorithm, PAIRS[algorithm].public_key).encode()
    return None


def signed(message: bytes, *algorithms: str) -> bytes:
    """A whole message with its signatures."""
    head, blank, body = message.partition(b"\r\n\r\n")
    return sign(head + blank, body_hash([body]), signers(*(algorithms or (RSA, ED25519))), at_s=AT_S) + message


def verifies(message: bytes, count: int = 2) -> list[bool]:
    """What dkimpy says of each signature.  It reads octets as they come by SMTP: the last line has its end."""
    if not message.endswith(b"\r\n"):
        message += b"\r\n"
    return [_verify(message, number) for number in range(count)]


def _verify(message: bytes, number: int) -> bool:
    try:
        return bool(dkimpy.DKIM(message).verify(idx=number, dnsfunc=records))
    except dkimpy.ValidationError:
        return False


PLAIN = (
    b"Received: from a\r\n\tby b;\r\n\tdate\r\nFrom: A <a@example.com>\r\nTo: b@example.net\r\n"
    b"Subject:  Hello \t you\r\n"
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@example.com>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain\r\nX-Own: 1\r\n\r\nHello  you \t\r\n\r\n\r\n"
)


@pytest.mark.parametrize("algorithms", [(RSA,), (ED25519,), (RSA, ED25519)])
def test_signatures_verify(algorithms: tuple[str, ...]) -> None:
    """RFC 6376, RFC 8463 §3."""
    message = signed(PLAIN, *algorithms)
    assert message.endswith(PLAIN)
    assert verifies(message, len(algorithms)) == [True] * len(algorithms)


def test_the_field_as_it_is_written() -> None:
    field = signed(PLAIN, RSA).removesuffix(PLAIN)
    assert field.startswith(
        b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com;\r\n\ts=r; t=1700000000;"
    )
    assert field.endswith(b"\r\n")
    assert max(map(len, field.split(b"\r\n"))) <= 78
    tags = dict(part.strip().split(b"=", 1) for part in re.sub(rb"\s+", b"", field[15:]).split(b";"))
    assert list(tags) == [b"v", b"a", b"c", b"d", b"s", b"t", b"h", b"bh", b"b"], "never l="
    names = tags[b"h"].lower().split(b":")
    assert names.count(b"from") == names.count(b"subject") == names.count(b"content-type") == 2
    assert names.count(b"cc") == names.count(b"reply-to") == 1, "missing ones cannot be added"
    assert not {b"received", b"x-own", b"sender", b"dkim-signature", b"return-path"} & set(names)


@pytest.mark.parametrize(
    "added",
    [b"From: x@example.org", b"Cc: x@example.org", b"Subject: x", b"Reply-To: x@example.org", b"Content-Type: x/y"],
)
def test_nothing_that_is_read_can_be_added(added: bytes) -> None:
    """RFC 6376 §8.15."""
    message = signed(PLAIN)
    assert verifies(added + b"\r\n" + message) == [False, False]
    assert verifies(message.replace(b"X-Own: 1\r\n", b"X-Own: 1\r\n" + added + b"\r\n")) == [False, False]


def test_what_relays_do_does_no_harm() -> None:
    message = signed(PLAIN)
    assert verifies(b"Received: x\r\nReturn-Path: <>\r\nX-Spam: no\r\nSender: list@example.org\r\n" + message) == [
        True,
        True,
    ]
    assert verifies(message.replace(b"Subject:  Hello \t you", b"SUBJECT: Hello\r\n\tyou ")) == [True, True]
    assert verifies(message + b"\r\n\r\n") == [True, True], "empty lines at the end"


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"Hello  you", b"Hello y ou"), (b"Subject:  H", b"Subject:  h"), (b"a@example", b"b@example")],
)
def test_changes_are_found(before: bytes, after: bytes) -> None:
    assert verifies(signed(PLAIN).replace(before, after)) == [False, False]


def test_text_that_is_appended_is_found() -> None:
    assert verifies(signed(PLAIN) + b"more\r\n") == [False, False]


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n", b" \t\r\n \r\n", b" "])
def test_bodies_without_text_hash_as_nothing(body: bytes) -> None:
    """RFC 6376 §3.4.4."""
    assert body_hash([body]) == hashlib.sha256(b"").digest()
    assert verifies(signed(PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body)) == [True, True]


def test_the_end_without_a_line_end() -> None:
    assert (
        body_hash([b"a"]) == body_hash([b"a\r\n"]) == body_hash([b"a \t\r\n\r\n"]) == hashlib.sha256(b"a\r\n").digest()
    )
    assert body_hash([b" a"]) == hashlib.sha256(b" a\r\n").digest()
    assert body_hash([b"\r\n\r\na"]) == hashlib.sha256(b"\r\n\r\na\r\n").digest()


def test_the_example_of_the_rfc() -> None:
    """RFC 6376 §3.4.5, example 1."""
    assert relaxed_value(b" X\r\n") == b"X"
    assert relaxed_value(b" Y\t\r\n\tZ  \r\n") == b"Y Z"
    assert body_hash([b" C \r\nD \t E\r\n\r\n\r\n"]) == hashlib.sha256(b" C\r\nD E\r\n").digest()


def test_space_before_the_colon_is_not_signed() -> None:
    """RFC 6376 §3.4.2; dkimpy takes such a field for no field at all."""
    head = PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    spaced = head.replace(b"Subject:", b"Subject \t:")
    assert spaced != head
    assert sign(spaced, b"", signers(ED25519), at_s=1) == sign(head, b"", signers(ED25519), at_s=1)


def test_the_example_of_rfc_8463() -> None:
    """RFC 8463 Appendix A: the body hash, and a key that is given there."""
    body = b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n\r\n"
    assert base64.b64encode(body_hash([body])) == b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="


PIECES = st.lists(
    st.sampled_from(
        [b" ", b"\t", b"\r\n", b"\r\n\r\n", b"a", b"Zz", b".", b"\xc3\xa4", b"   \t ", b"\r\n \r\n", b"x" * 90]
    ),
    max_size=25,
)


@given(PIECES, st.data())
@settings(max_examples=300, deadline=None)
def test_pieces_of_any_size_hash_as_the_whole(parts: list[bytes], data: st.DataObject) -> None:
    body = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    hashed = BodyHash()
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        hashed.update(body[start:end])
    lines = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in body.split(b"\r\n")]
    while lines and not lines[-1]:
        lines.pop()
    assert hashed.digest() == hashlib.sha256(b"".join(line + b"\r\n" for line in lines)).digest()


def test_hostile_bodies_take_linear_time_and_no_memory() -> None:
    hashed = BodyHash()
    for _ in range(200):
        hashed.update(b"\r\n" * 65536)
        hashed.update(b" \t" * 65536)
    assert hashed.digest() == hashlib.sha256(b"").digest()
    hashed = BodyHash()
    hashed.update(b"\r\n" * 1_000_000)
    hashed.update(b"x" + b" " * 1_000_000 + b"y")
    assert hashed.digest() == hashlib.sha256(b"\r\n" * 1_000_000 + b"x y\r\n").digest()


_TEXT_NAMES = ["Subject", "subject", "Date", "Message-ID", "References", "List-Unsubscribe", "X-Other", "Received"]
_MIME_NAMES = ["Content-Type", "content-TYPE", "MIME-Version"]
NAMES = st.sampled_from([*_TEXT_NAMES, *_MIME_NAMES, "To", "Cc", "Reply-To", "Sender", "Resent-From", "resent-FROM"])
VALUES = st.lists(
    st.sampled_from(
        [" ", "\t", "a", "b@example.org", "<1@x>", "ä€", "\r\n ", "\r\n\t", ";", ":", "=", "=?utf-8?q?=C3?="]
    ),
    min_size=1,
    max_size=10,
).map("".join)


@given(st.lists(st.tuples(NAMES, st.sampled_from([":", ": ", ":\t"]), VALUES), max_size=12), PIECES)
@example([("Subject", ":", " "), ("Subject", ":", "a"), ("To", ":", "\r\n a")], [])
@settings(max_examples=300, deadline=None)
def test_whatever_is_signed_verifies(fields: list[tuple[str, str, str]], body: list[bytes]) -> None:
    """Repeated, folded, empty and UTF-8 fields (RFC 6532), any body."""
    lines = [f"{name}{colon}{value}\r\n" for name, colon, value in fields]
    message = ("".join([*lines, "From: ä <a@example.com>\r\n"]) + "\r\n").encode() + b"".join(body)
    assert verifies(signed(message)) == [True, True]


def test_a_flood_of_fields_makes_no_flood_of_names() -> None:
    """RFC 6376 §5.4.2."""
    head = b"To: x@example.net\r\n" * 5000 + b"From: a@example.com\r\n\r\n"
    message = signed(head)
    assert len(message) - len(head) < 10_000
    assert verifies(message) == [True, True]


def test_another_signature_stays_and_verifies() -> None:
    once = signed(PLAIN, ED25519)
    twice = signed(once, RSA)
    assert twice.endswith(once)
    assert verifies(twice) == [True, True]


def test_a_key_of_another_kind_is_no_signer() -> None:
    with pytest.raises(SecretsUnavailable, match="not of its kind"):
        make_signer(DOMAIN, "s", RSA, PAIRS[ED25519].private_key)
    with pytest.raises(SecretsUnavailable, match="not of its kind"):
        make_signer(DOMAIN, "s", ED25519, b"\x00" * 40)
    with pytest.raises(ValueError, match="no algorithm"):
        make_pair("rsa-sha1")


def test_no_private_key_shows_itself() -> None:
    for pair in PAIRS.values():
        shown = repr(pair) + repr(make_signer(DOMAIN, "s", pair.algorithm, pair.private_key))
        assert "private" not in shown.lower()


# ---------------------------------------------------------------------------------------------------- records


def test_the_record_in_zone_form() -> None:
    """RFC 1035 §3.3, §5.1."""
    value = dkim_record.record_value(RSA, PAIRS[RSA].public_key)
    line = dkim_record.zone_line("r._domainkey.example.com", value)
    assert line.startswith('r._domainkey.example.com. IN TXT ( "v=DKIM1; k=rsa; p=MIIB')
    strings = re.findall(r'"([^"]*)"', line)
    assert "".join(strings) == value
    assert [len(text) for text in strings] == [255, len(value) - 255]
    short = dkim_record.zone_line("e", dkim_record.record_value(ED25519, PAIRS[ED25519].public_key))
    assert "(" not in short


@pytest.mark.parametrize("algorithm", [RSA, ED25519])
def test_records_that_are_right(algorithm: str) -> None:
    """RFC 6376 §3.6, RFC 8463 §4."""
    key = PAIRS[algorithm].public_key
    value = dkim_record.record_value(algorithm, key)
    kind = value.split(";")[1].strip()
    for text in (
        value,
        f"{value};",
        f"v=DKIM1;{kind};p={key[:20]} {key[20:]}",
        f"v=DKIM1; {kind}; t=y:s; h=sha1:sha256; s=email; n=hello; p={key}",
        f"{kind}; p={key}",
    ):
        assert dkim_record.judge([text], algorithm, key) is None, text


def test_a_record_without_a_type_is_rsa() -> None:
    assert dkim_record.judge([f"p={PAIRS[RSA].public_key}"], RSA, PAIRS[RSA].public_key) is None


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ([], "no TXT record"),
        (["v=DKIM1; p=x", "v=spf1 -all"], "there are 2"),
        (["v=spf1 -all"], "begin with v=DKIM1|no list"),
        (["p=x; v=DKIM1"], "begin with"),
        (["hello"], "no list of tags"),
        (["v=DKIM1; k=ed25519; p=AAAA"], "type rsa"),
        (["v=DKIM1; h=sha1; p=AAAA"], "sha256"),
        (["v=DKIM1; s=tlsrpt; p=AAAA"], "not for mail"),
        (["v=DKIM1; k=rsa"], "has no key"),
        (["v=DKIM1; p="], "revoked"),
        (["v=DKIM1; p=AAA"], "damaged"),
        (["v=DKIM1; p=AAAA"], "another key"),
        (["v=DKIM1; p=AAAA; p=BBBB"], "no list"),
    ],
)
def test_records_that_are_wrong(found: list[str], problem: str) -> None:
    """RFC 6376 §3.2, §3.6."""
    said = dkim_record.judge(found, RSA, PAIRS[RSA].public_key)
    assert said is not None
    assert re.search(problem, said)


@given(st.lists(st.text(max_size=60), max_size=3))
def test_no_record_makes_an_error(found: list[str]) -> None:
    assert dkim_record.judge(found, RSA, PAIRS[RSA].public_key) is not None


def test_domains_and_selectors() -> None:
    """RFC 6376 §3.1."""
    assert dkim_record.check_domain("Example.COM.") == "example.com"
    assert dkim_record.check_domain("bücher.example") == "xn--bcher-kva.example"
    assert dkim_record.check_selector("Key-2.a") == "key-2.a"
    for text in ("", "a..b", "-a", "a-", "ä", "a_b", "x" * 64, "a b", "a/b"):
        with pytest.raises(ValueError, match="no selector"):
            dkim_record.check_selector(text)
    for text in ("", "a b", "[192.0.2.1]", "a@b", "x" * 64 + ".com"):
        with pytest.raises(ValueError, match="no domain"):
            dkim_record.check_domain(text)
