# SPDX-License-Identifier: Apache-2.0
"""Submitted messages: what is read from their header section, and that nothing else in them changes."""

from __future__ import annotations

import email
from email.header import decode_header, make_header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.mail.address import check_address
from hepmaild.mail.content import HEAD_LIMIT_OCTETS, Content
from hepmaild.mail.headers import MAX_AUTHORS, MAX_LISTED_ADDRESSES
from hepmaild.mail.message import inspect, received_field, rewrite
from hepmaild.mail.submission import Door, Kind, Mailbox, Origin

TRACE = b"Received: from x\r\n\tby y;\r\n\tdate\r\n"


def rewritten(message: bytes, sender: Mailbox | None = None, date: str | None = None, mid: str | None = None) -> bytes:
    """The whole message after the rewrite, as the intake puts it together, without the trace field."""
    seen = inspect(message)
    head = rewrite(message, seen, received=TRACE, sender=sender, date=date, message_id=mid)
    assert head.startswith(TRACE)
    return head[len(TRACE) :] + message[seen.header_end :]


TYPICAL = (
    b"from: =?utf-8?q?J=C3=B6rg?= <J@B.c>\r\n"
    b"To:  Bob <bob@x.y>,\r\n\t\"a, b\" <c@x.y>\r\n"
    b"CC:d@x.y\r\n"
    b"Subject: =?utf-8?b?SGVsbMO2?=\r\n =?utf-8?q?_w=C3=B6rld?=\r\n"
    b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    b"Message-ID: <1@b.c>\r\n"
    b"\r\n"
    b"Bcc: this is body\r\n"
)  # fmt: skip


def test_a_typical_message() -> None:
    seen = inspect(TYPICAL)
    assert seen.problem is None
    assert TYPICAL[seen.header_end :] == b"Bcc: this is body\r\n"
    assert seen.from_addresses == ("J@b.c",)
    assert (seen.from_count, seen.message_id, seen.has_date) == (1, "<1@b.c>", True)
    assert seen.subject == "Hellö wörld"
    assert (seen.to, seen.cc, seen.bcc) == (("bob@x.y", "c@x.y"), ("d@x.y",), ())
    assert [seen.kind_of(a) for a in ("BOB@x.y", "d@x.y", "e@x.y")] == [Kind.TO, Kind.CC, Kind.BCC]
    assert rewritten(TYPICAL) == TYPICAL


@pytest.mark.parametrize("field", [b"Bcc: x@y.z\r\n", b"bcc : a@b.c,\r\n d@e.f\r\n", b"BCC:\r\n",
                                   b"X-Idempotency-Key: abc\r\n", b"x-idempotency-key:\r\n abc\r\n"])  # fmt: skip
@pytest.mark.parametrize("at", [0, TYPICAL.index(b"To:"), TYPICAL.index(b"\r\n\r\n") + 2])
def test_fields_that_are_removed(field: bytes, at: int) -> None:
    message = TYPICAL[:at] + field + TYPICAL[at:]
    assert rewritten(message) == TYPICAL
    twice = TYPICAL[:at] + field + field + TYPICAL[at:]
    assert rewritten(twice) == TYPICAL


def test_missing_fields_are_added_behind_the_last_one() -> None:
    message = b"Subject: x\r\n\r\nbody"
    got = rewritten(message, Mailbox("a@b.c", 'A "quoted" name, Inc.'), "DATE", "<1@b.c>")
    assert got == (
        b'Subject: x\r\nFrom: "A \\"quoted\\" name, Inc." <a@b.c>\r\nDate: DATE\r\nMessage-ID: <1@b.c>\r\n\r\nbody'
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", b"Date: D\r\n\r\n"),
        (b"\r\n", b"Date: D\r\n\r\n"),
        (b"\r\nbody", b"Date: D\r\n\r\nbody"),
        (b"just a body\r\n", b"Date: D\r\n\r\njust a body\r\n"),
        (b" folded\r\nSubject: x\r\n\r\n", b"Date: D\r\n\r\n folded\r\nSubject: x\r\n\r\n"),
        (b"Subject: x\r\n", b"Subject: x\r\nDate: D\r\n\r\n"),
        (b"Subject: x", b"Subject: x\r\nDate: D\r\n\r\n"),
        (b"Subject: x\r\nno field\r\n", b"Subject: x\r\nDate: D\r\n\r\nno field\r\n"),
        (b"From joe Mon Jan 1 00:00:00 2026\r\nSubject: x\r\n\r\n", b"Subject: x\r\nDate: D\r\n\r\n"),
        (b"Subject: x\r\nBcc: a@b.c", b"Subject: x\r\nDate: D\r\n\r\n"),
        (b"Subject: x\r\nX-Idempotency-Key: k", b"Subject: x\r\nDate: D\r\n\r\n"),
        (b"From: " + b"x" * 150 + b" <a@b.c>", b"From: " + b"x" * 100 + b" <a@b.c>\r\nDate: D\r\n\r\n"),
        (b"Bcc: a@b.c", b"Date: D\r\n\r\n"),
        (b">From joe Mon Jan 1 00:00:00 2026\r\nSubject: x", b"Subject: x\r\nDate: D\r\n\r\n"),
        (b"From here on\r\nall is text\r\n", b"Date: D\r\n\r\nFrom here on\r\nall is text\r\n"),
        (b"From us to you\r\n\r\nBye\r\n", b"Date: D\r\n\r\nFrom us to you\r\n\r\nBye\r\n"),
        (b">From us to you", b"Date: D\r\n\r\n>From us to you"),
        (b'From : "A" <a@b.c>\r\nTo: x@y.z\r\n\r\n', b'From : "A" <a@b.c>\r\nTo: x@y.z\r\nDate: D\r\n\r\n'),
        (b"From \t:a@b.c\r\n\r\n", b"From \t:a@b.c\r\nDate: D\r\n\r\n"),
        (b"Subject: x\r\n \r\n y\r\n\r\nb", b"Subject: x\r\n \r\n y\r\nDate: D\r\n\r\nb"),
    ],
)
def test_odd_header_sections(message: bytes, expected: bytes) -> None:
    """RFC 5322 §4.5."""
    assert rewritten(message, date="D") == expected


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        (b"a@b.c", ["a@b.c"]),
        (b"<a@b.c>", ["a@b.c"]),
        (b"a@b.c (A. (nested) comment <x@y.z>)", ["a@b.c"]),
        (b'"x@y.z" <a@b.c>', ["a@b.c"]),
        (b'"Doe, Joe <x@y.z>" <a@b.c>, d@e.f', ["a@b.c", "d@e.f"]),
        (b"=?utf-8?q?x=40y=2Ez?= <a@b.c>", ["a@b.c"]),
        (b"Team: a@b.c, D <d@e.f>;", ["a@b.c", "d@e.f"]),
        (b"joe @ b . c", ["joe@b.c"]),
        (b"J\xc3\xb6rg <a@b.c>", ["a@b.c"]),
        (b"J\xf6rg <a@b.c>", ["a@b.c"]),
        (b"root", ["root"]),
        (b"a b@c.d", ["a b@c.d"]),
        (b"<>", [""]),
        (b"\r\n\ta@b.c\r\n", ["a@b.c"]),
    ],
)
def test_authors(value: bytes, addresses: list[str]) -> None:
    """RFC 5322 §3.4, RFC 6854."""
    seen = inspect(b"From: " + value + b"\r\n\r\n")
    assert seen.problem is None
    assert list(seen.from_addresses) == addresses


@pytest.mark.parametrize(
    "fields",
    [
        b"From: a@b.c\r\nFrom: a@b.c\r\n",
        b"From: a@b.c\r\nFROM : d@e.f\r\n",
        b"From: <a@b.c> <d@e.f>\r\n",
        b"From: <a@b.c> d@e.f\r\n",
        b'From: "a <a@b.c>\r\n',
        b"From: a <a@b.c\r\n",
        b"From: a (b <a@b.c>\r\n",
        b"From: a@b.c; d@e.f\r\n",
        b"From: Team: a@b.c\r\n",
        b"From:\r\n",
        b"From: undisclosed:;\r\n",
        b"From: " + b"a," * 40000 + b"\r\n",
        b"X-Idempotency-Key: a\r\nX-Idempotency-Key: b\r\n",
        b"X-Idempotency-Key:\r\n",
        b"X-Idempotency-Key: " + b"a" * 257 + b"\r\n",
    ],
)
def test_problems(fields: bytes) -> None:
    assert inspect(fields + b"\r\nbody").problem


@pytest.mark.parametrize("length", [1, 256])
def test_the_shortest_and_the_longest_word(length: int) -> None:
    seen = inspect(b"X-Idempotency-Key: " + b"k" * length + b"\r\n\r\n")
    assert (seen.problem, seen.idempotency_word) == (None, "k" * length)


def test_a_header_section_without_end() -> None:
    assert inspect((b"X: y\r\n" * (HEAD_LIMIT_OCTETS // 6 + 1))[:HEAD_LIMIT_OCTETS]).problem


@pytest.mark.parametrize("beyond", range(20))
def test_a_header_section_that_is_cut_off_anywhere(beyond: int) -> None:
    """What lies beyond the limit would be sent as body, the Bcc included."""
    ending = b"Bcc: x@y.z\r\n\r\n"
    fill = HEAD_LIMIT_OCTETS + beyond - len(ending)
    fields = b"From: a@b.c\r\n" + b"X: y\r\n" * (fill // 6 - 10)
    fields += b"Z: " + b"z" * (fill - len(fields) - 5) + b"\r\n"
    section = fields + ending
    assert len(section) == HEAD_LIMIT_OCTETS + beyond
    seen = inspect(Content(section + b"body\r\n").head())
    if beyond:
        assert seen.problem
    else:
        assert (seen.problem, seen.bcc, seen.header_end) == (None, ("x@y.z",), HEAD_LIMIT_OCTETS)


def test_a_large_body_is_no_header_section() -> None:
    for header in (b"X: y\r\n\r\n", b"X: y\r\nno field\r\n", b"\r\n"):
        message = header + b"body " * HEAD_LIMIT_OCTETS
        assert inspect(message[:HEAD_LIMIT_OCTETS]).problem is None


@pytest.mark.parametrize(
    "value",
    [b"x" * 150 + b" <a@b.c>", b'"' + b"x" * 150 + b'" <a@b.c>', b"=?utf-8?q?" + b"=C3=B6" * 150 + b"?= <a@b.c>",
     b"=?utf-8?b?" + b"w7bDtsO2" * 50 + b"?= <a@b.c>", "ö".encode() * 150 + b" <a@b.c>",
     b"y <d@e.f>, " + b"x" * 101 + b" <a@b.c>"],
)  # fmt: skip
def test_long_display_names_are_cut(value: bytes) -> None:
    message = b"A: 1\r\nFROM: " + value + b"\r\nB: 2\r\n\r\nbody"
    got = rewritten(message)
    assert got.startswith(b"A: 1\r\nFROM: ")
    assert got.endswith(b"\r\nB: 2\r\n\r\nbody")
    last = email.message_from_bytes(got)["From"].rpartition(",")[2].strip()
    name, _, address = str(make_header(decode_header(last))).rpartition(" ")
    assert len(name.strip('"')) == 100
    assert address == "<a@b.c>"
    assert inspect(got).from_addresses == inspect(message).from_addresses


def test_a_long_from_with_short_names_is_left_alone() -> None:
    message = b"From: " + b", ".join(b"a <a@b.c>" for _ in range(50)) + b"\r\n\r\n"
    assert rewritten(message) == message


@pytest.mark.parametrize("word", ["%x@-", "%x@a..b", "%x@\u00e9.", "%x@xn--%x"])
@pytest.mark.parametrize("fields", [1, 50])
def test_words_that_are_no_addresses_are_not_looked_at_without_end(word: str, fields: int) -> None:
    """Each costs the library's whole attention, and a quarter of a megabyte of them half a second."""
    words = [(word % ((n,) * word.count("%"))).encode() for n in range(20_000)]
    step = len(words) // fields
    bodies = [b",\r\n ".join(words[at : at + step]) for at in range(0, len(words), step)]
    names = [b"To", b"Cc", b"Bcc"]
    head = b"".join(names[n % 3] + b": a@b.c, " + body + b"\r\n" for n, body in enumerate(bodies))
    before = check_address.cache_info()
    seen = inspect(head + b"\r\n")
    after = check_address.cache_info()
    assert after.hits + after.misses - before.hits - before.misses <= MAX_LISTED_ADDRESSES
    assert (seen.problem, seen.to[0], seen.has_more) == (None, "a@b.c", True)


def test_as_many_addresses_as_are_looked_at_are_all_found() -> None:
    words = b",\r\n ".join(b"u%d@b.c" % n for n in range(MAX_LISTED_ADDRESSES))
    seen = inspect(b"To: " + words + b"\r\n\r\n")
    assert (len(seen.to), seen.has_more) == (MAX_LISTED_ADDRESSES, False)
    assert inspect(b"To: " + words + b"\r\nCc: x@y.z\r\n\r\n").has_more


def test_authors_are_not_counted_without_end() -> None:
    most = b", ".join(b"u%d@b.c" % n for n in range(MAX_AUTHORS))
    assert len(inspect(b"From: " + most + b"\r\n\r\n").from_addresses) == MAX_AUTHORS
    before = check_address.cache_info()
    problem = inspect(b"From: " + b", ".join(b"%x@-" % n for n in range(8000)) + b"\r\n\r\n").problem
    after = check_address.cache_info()
    assert problem == "The From: header field cannot be read: it has more than 100 addresses."
    assert after.hits + after.misses - before.hits - before.misses <= MAX_AUTHORS


def test_received() -> None:
    """RFC 5321 §4.4."""
    origin = Origin(Door.SMTP, "192.0.2.7", "s1", "TLSv1.3", "TLS_AES_256_GCM_SHA384", "client.example")
    got = received_field(origin, "smtp.hep.gg", "a1b2c3d4e5f6a7b8", "Thu, 01 Jan 2026 00:00:00 +0000")
    assert got == (
        b"Received: from client.example\r\n\tby smtp.hep.gg with ESMTPSA id a1b2c3d4e5f6a7b8\r\n"
        b"\t(TLSv1.3 TLS_AES_256_GCM_SHA384);\r\n\tThu, 01 Jan 2026 00:00:00 +0000\r\n"
    )
    assert b"192.0.2.7" not in got
    shown = received_field(origin, "smtp.hep.gg", "a" * 16, "D", with_address=True)
    assert shown.startswith(b"Received: from client.example ([192.0.2.7])\r\n")


@pytest.mark.parametrize("helo", ["", "[192.0.2.7]", "192.0.2.7", "2001:db8::1", "[IPv6:2001:db8::1]"])
def test_received_hides_an_address_given_as_name(helo: str) -> None:
    got = received_field(Origin(Door.SMTP, "192.0.2.7", "s", helo=helo), "h", "a" * 16, "D")
    assert got.startswith(b"Received: from unknown\r\n")


@pytest.mark.parametrize("helo", ["hyd-mail-" + "k" * 40, "host-hyd-mail-" + "k" * 90])
def test_received_tells_nobody_a_key_given_as_name(helo: str) -> None:
    got = received_field(Origin(Door.SMTP, "192.0.2.7", "s", helo=helo), "h", "a" * 16, "D", with_address=True)
    assert got.startswith(b"Received: from unknown ([192.0.2.7])\r\n")


@given(st.text(max_size=300))
def test_received_survives_any_name(helo: str) -> None:
    got = received_field(Origin(Door.SMTP, "::1", "s", helo=helo), "h", "a" * 16, "D", with_address=True)
    assert got.count(b"\r\n") == got.count(b"\n") == got.count(b"\r") == 3
    assert max(map(len, got.split(b"\r\n"))) < 200


NAMES = st.sampled_from(["Subject", "To", "X-Foo", "DKIM-Signature", "MIME-Version", "Bcc", "X-Idempotency-Key", "Cc"])
LINE = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=60)


@given(st.lists(st.tuples(NAMES, st.lists(LINE, min_size=1, max_size=3)), max_size=8), st.binary(max_size=80))
def test_untouched_fields_stay_byte_for_byte(fields: list[tuple[str, list[str]]], body: bytes) -> None:
    """Whatever stands in the fields and the body: only the two named fields go, nothing else changes."""
    raw = [(name, f"{name}:{(chr(13) + chr(10) + chr(9)).join(lines)}\r\n".encode()) for name, lines in fields]
    message = b"".join(octets for _, octets in raw) + b"\r\n" + body
    kept = b"".join(octets for name, octets in raw if name not in ("Bcc", "X-Idempotency-Key"))
    assert rewritten(message, date="D") == kept + b"Date: D\r\n\r\n" + body


@given(st.binary(max_size=400))
def test_inspect_takes_anything(head: bytes) -> None:
    seen = inspect(head)
    assert 0 <= seen.fields_end <= seen.header_end <= len(head)
    assert rewritten(head).endswith(b"\r\n" + head[seen.header_end :])


@given(st.text(alphabet='a@b.c <>"\\(),:;=?\u00e9', max_size=60))
def test_from_takes_anything(value: str) -> None:
    seen = inspect(f"From: {value}\r\n\r\n".encode())
    assert seen.problem or seen.from_addresses


@pytest.mark.parametrize(
    "evil",
    [b"From: " + b" " * 60000, b"From: " + b"(" * 60000, b'From: "' + b'\\"' * 30000, b"From: " + b"<" * 60000,
     b'To: "' + b'\\"' * 200000, b"To: " + b"a" * 400000, b"To: " + b"a@b " * 90000, b"To: " + b"(\\" * 200000,
     b"To: " + b"(" * 400000, b"To: " + b'"' * 399999, b"To: " + b"a@" * 200000, b"To: " + b"a@b.c," * 80000,
     b"a:\r\n" * 100000, b"a" * 500000, b"Subject: " + b"=?utf-8?q?" * 50000, b"From: " + b"=?a?q?a?= " * 6000,
     b"From: " + b"a " * 30000 + b"<a@b.c>", b"To: " + b"=?" * 200000, b"X:" + b"\r\n " * 100000],
)  # fmt: skip
def test_hostile_heads_end(evil: bytes) -> None:
    """Each runs in linear time: a quadratic one would take minutes here."""
    rewritten(evil + b"\r\n\r\n")
