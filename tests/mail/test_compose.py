# SPDX-License-Identifier: Apache-2.0
"""Composed messages, read back by the standard library's parser."""

from __future__ import annotations

import binascii
import email
import email.policy
import re
import sys
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hepmaild.mail.address import has_control_characters
from hepmaild.mail.compose import compose, encode_base64, encode_body, needs_smtputf8
from hepmaild.mail.headers import encode_text, encode_words
from hepmaild.mail.submission import Attachment, Draft, Mailbox, Recipient

SENDER = Mailbox("noreply@hep.gg")
TO = (Mailbox("joe@example.com"),)
PNG = bytes(range(256)) * 20


def octets(draft: Draft, sender: Mailbox = SENDER) -> bytes:
    made = compose(draft, sender, message_id="<1@hep.gg>", date=datetime(2026, 1, 1, tzinfo=UTC), entropy=bytes(16))
    assert re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", made) is None
    assert max(map(len, made.split(b"\r\n"))) <= 998
    return made


def read(draft: Draft, sender: Mailbox = SENDER) -> EmailMessage:
    made = email.message_from_bytes(octets(draft, sender), policy=email.policy.SMTP)
    for part in made.walk():
        assert not part.defects
    return made


def shape(part: Any) -> Any:
    kind = part.get_content_type()
    return (kind, [shape(child) for child in part.iter_parts()]) if part.is_multipart() else kind


@pytest.mark.parametrize(
    ("from_name", "of_the_sender", "in_from", "shown"),
    [
        ("A", "B", "C", "A"),
        (None, "B", "C", "B"),
        (None, "", "C", "C"),
        (None, "", None, ""),
    ],
)
def test_whose_name_is_shown(from_name: str | None, of_the_sender: str, in_from: str | None, shown: str) -> None:
    """`fromName` wins over the name in `from` (send-api.md)."""
    asked = None if in_from is None else Mailbox("noreply@hep.gg", in_from)
    draft = Draft(sender=asked, to=TO, text="x", from_name=from_name)
    written = read(draft, Mailbox("noreply@hep.gg", of_the_sender))["From"]
    assert written.addresses[0].display_name == shown


def test_the_smallest_message_word_for_word() -> None:
    assert octets(Draft(None, TO, subject="Hello", text="Hi there")) == (
        b"From: noreply@hep.gg\r\nTo: joe@example.com\r\nSubject: Hello\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <1@hep.gg>\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\nHi there\r\n'
    )


INLINE = Attachment("a.png", PNG, "image/png", "logo")
FILE = Attachment("b.pdf", PNG, "application/pdf")


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (Draft(None, TO, html="<p>x"), "text/html"),
        (Draft(None, TO, text="x", html="<p>x"), ("multipart/alternative", ["text/plain", "text/html"])),
        (Draft(None, TO, html="<p>x", attachments=(INLINE,)), ("multipart/related", ["text/html", "image/png"])),
        (Draft(None, TO, text="x", attachments=(FILE,)), ("multipart/mixed", ["text/plain", "application/pdf"])),
        (Draft(None, TO, text="x", attachments=(INLINE,)), ("multipart/mixed", ["text/plain", "image/png"])),
        (
            Draft(None, TO, text="x", html="<p>x", attachments=(FILE, INLINE)),
            (
                "multipart/mixed",
                [
                    ("multipart/alternative", ["text/plain", ("multipart/related", ["text/html", "image/png"])]),
                    "application/pdf",
                ],
            ),
        ),
    ],
)
def test_structure(draft: Draft, expected: Any) -> None:
    assert shape(read(draft)) == expected


def test_parts_come_back_whole() -> None:
    made = read(Draft(None, TO, text="tëxt\n.\n", html="<p>hëllo</p>", attachments=(FILE, INLINE)))
    body = made.get_body(("plain",))
    html = made.get_body(("html",))
    assert body is not None
    assert html is not None
    assert body.get_content() == "tëxt\r\n.\r\n"
    assert html.get_content() == "<p>hëllo</p>\r\n"
    image = next(part for part in made.walk() if part.get_content_type() == "image/png")
    assert image["Content-ID"] == "<logo>"
    assert image.get_content_disposition() == "inline"
    (pdf,) = made.iter_attachments()
    assert pdf.get_content() == PNG
    assert pdf.get_filename() == "b.pdf"
    assert pdf.get_content_disposition() == "attachment"


def test_everybody_in_the_header_but_bcc() -> None:
    draft = Draft(
        Mailbox("x@hep.gg", "Ignored"),
        to=(Mailbox("a@b.c", 'Doe, "Joe"'), Mailbox("jörg@b.c", "Jörg Müller")),
        cc=tuple(Mailbox(f"user{n}@example.com", f"User {n}") for n in range(100)),
        reply_to=(Mailbox("reply@b.c"),),
        from_name="Acme ✉ Shop",
        text="x",
    )
    made = email.message_from_string(octets(draft).decode(), policy=email.policy.SMTPUTF8)
    assert [(a.display_name, a.addr_spec) for a in made["To"].addresses] == [
        ('Doe, "Joe"', "a@b.c"),
        ("Jörg Müller", "jörg@b.c"),
    ]
    assert [a.addr_spec for a in made["Cc"].addresses] == [f"user{n}@example.com" for n in range(100)]
    assert made["Reply-To"] == "reply@b.c"
    assert made["From"].addresses[0].display_name == "Acme ✉ Shop"
    assert made["Bcc"] is None
    assert max(len(line) for line in octets(draft).split(b"\r\n")) <= 80


def test_smtputf8_is_for_local_parts_only() -> None:
    """RFC 6531."""
    draft = Draft(None, (Mailbox("joe@xn--mller-kva.de", "Jörg"),), text="ö")
    assert not needs_smtputf8(draft, SENDER)
    assert octets(draft).isascii()
    assert needs_smtputf8(draft, Mailbox("jörg@hep.gg"))
    assert needs_smtputf8(draft, SENDER, [Recipient("jörg@hep.gg")])
    assert needs_smtputf8(Draft(None, (Mailbox("jörg@b.c"),), text="x"), SENDER)


@pytest.mark.parametrize(
    "name",
    [
        "ä.pdf",
        'a "quoted" \\ name.txt',
        "日本語の長いファイル名" * 20 + ".txt",
        "x" * 250,
        "",
        "a; b=c'd*%.txt",
        "💾" * 60,
    ],
)
def test_file_names(name: str) -> None:
    """RFC 2231."""
    made = octets(Draft(None, TO, text="x", attachments=(Attachment(name, b"x"),)))
    (part,) = email.message_from_bytes(made, policy=email.policy.SMTP).iter_attachments()
    assert (part.get_filename() or "") == name
    assert max(len(line) for line in made.split(b"\r\n")) <= 280


@pytest.mark.parametrize("kind", ["multipart/mixed", "message/rfc822", "nonsense", "text/plain\r\nX: y", ""])
def test_content_types_that_cannot_be_kept(kind: str) -> None:
    """RFC 2046 §5.1, §5.2.1."""
    made = read(Draft(None, TO, text="x", attachments=(Attachment("a", PNG, kind),)))
    (part,) = made.iter_attachments()
    assert part.get_content_type() == "application/octet-stream"
    assert part.get_content() == PNG


def test_a_content_type_keeps_its_parameters() -> None:
    made = read(Draft(None, TO, text="x", attachments=(Attachment("a", b"BEGIN", "text/calendar; method=REQUEST"),)))
    (part,) = made.iter_attachments()
    assert part["Content-Type"].params["method"] == "REQUEST"


def test_the_same_arguments_give_the_same_octets() -> None:
    draft = Draft(None, TO, text="ä", html="<p>", attachments=(FILE, INLINE), headers=(("X-Foo", "bar"),))
    assert octets(draft) == octets(draft)
    with pytest.raises(ValueError, match="random"):
        compose(draft, SENDER, message_id="<1@x>", date=datetime.now(UTC), entropy=b"")


VALUES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=400).filter(
    lambda text: not has_control_characters(text)
)


@given(VALUES)
def test_header_values_come_back_and_never_make_a_second_field(value: str) -> None:
    made = octets(Draft(None, TO, subject=value, text="x", headers=(("X-Foo", value),)))
    parsed = email.message_from_bytes(made)
    names = "From To Subject Date Message-ID X-Foo MIME-Version Content-Type Content-Transfer-Encoding".split()  # noqa: SIM905
    assert parsed.keys() == names
    # The parser of the standard library takes what `splitlines` knows for line ends; nobody else does.
    shown = str(make_header(decode_header(re.sub(r"\r\n(?=[ \t])", "", parsed["Subject"]))))
    assert shown.split() == value.split()
    if "=?" in value or not value.isascii():
        assert shown.strip() == value.strip()


@given(VALUES.filter(lambda text: len(text) <= 100))
def test_display_names_come_back(name: str) -> None:
    """RFC 2047, RFC 5322 §3.4."""
    made = octets(Draft(None, (Mailbox("a@b.c", name), Mailbox("d@e.f")), text="x"))
    parsed = email.message_from_bytes(made)
    assert len(parsed.keys()) == 8
    first, _, rest = parsed["To"].partition(" <a@b.c>" if name else "a@b.c")
    assert re.fullmatch(r",(\r\n)? d@e.f", rest)
    if first.startswith('"'):
        assert re.sub(r"\\(.)", r"\1", first[1:-1]) == name
    else:
        assert str(make_header(decode_header(first))).strip() == name.strip()


@pytest.mark.parametrize("length", [988, 980, 60])
def test_long_subjects(length: int) -> None:
    """RFC 2047, RFC 5322 §2.1.1."""
    subject = "x" * length
    assert octets(Draft(None, TO, subject=subject, text="x")).count(subject.encode()) == 1


def test_a_header_value_without_room_to_fold_is_encoded() -> None:
    parsed = email.message_from_bytes(octets(Draft(None, TO, text="x", headers=(("X-Foo", "y" * 5000),))))
    assert str(make_header(decode_header(parsed["X-Foo"]))).replace(" ", "") == "y" * 5000


@pytest.mark.parametrize("value", ["a" + " " * 1500 + "b", "a" + " " * 500 + "b" * 600, "a" + " " * 985 + "b"])
def test_no_line_is_too_long_for_its_white_space(value: str) -> None:
    """RFC 5322 §2.1.1: `octets` looks at each line."""
    parsed = email.message_from_bytes(octets(Draft(None, TO, text="x", headers=(("X-Foo", value),))))
    assert str(make_header(decode_header(re.sub(r"\r\n(?=[ \t])", "", parsed["X-Foo"])))) == value


@pytest.mark.parametrize(
    ("value", "is_kept"),
    [
        ("<https://shop.example/leave?who=?joe&from=?news>, <mailto:leave@shop.example>", True),
        ("1 =? 2 =? 3", True),
        ("=?utf-8?q?=41?=", False),
        ("x=?x?B?QQ==?=x", False),
        ("=?a b?q?c", False),
    ],
)
def test_only_what_looks_like_an_encoded_word_is_encoded_for_that(value: str, is_kept: bool) -> None:
    """RFC 2047 §2; nobody looks for encoded words in List-Unsubscribe (RFC 2369)."""
    written = encode_text("List-Unsubscribe", value)
    assert (re.sub(r"\r\n(?=[ \t])", "", written) == value) is is_kept
    assert str(make_header(decode_header(written.replace("\r\n", "")))) == value


@given(VALUES, st.integers(0, 100), st.sampled_from([76, 64]))
@example("aaaa" + "\xa0" * 11 + "\U00010000" * 5, 0, 76)
def test_encoded_words_keep_their_bounds(text: str, used: int, longest: int) -> None:
    """RFC 2047 §2, §5: at most 75 characters, in lines of at most 76, and each is a text of its own."""
    lines = encode_words(text, used, longest).split("\r\n ") if text else []
    for number, line in enumerate(lines):
        assert len(line) <= min(75, longest - (1 if number else used)) or (number == 0 and line == "")
    read = [decode_header(line)[0] for line in lines if line]
    assert all(charset == "utf-8" for _, charset in read)
    assert "".join(octets.decode() for octets, _ in read) == text


@pytest.mark.parametrize(
    "value", ["x" * 8192, "ä" * 8192, "=?" * 4096, "ä " * 4096], ids=["x", "a-umlaut", "word", "space"]
)
def test_a_long_value_is_encoded_word_by_word(value: str) -> None:
    """What is called for each character is called ten thousand times for a value, of which a call may have 100."""
    calls = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        written = encode_text("X-Foo", value)
    finally:
        sys.setprofile(None)
    assert calls < 50 * (written.count("\r\n") + 1)


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_bodies_come_back(text: str) -> None:
    encoding, raw = encode_body(text)
    assert raw.endswith(b"\r\n")
    decode: Any = {"7bit": bytes, "base64": binascii.a2b_base64, "quoted-printable": binascii.a2b_qp}[encoding]
    expected = re.sub("\r\n?|\n", "\r\n", text)
    assert decode(raw).decode() == expected + ("" if expected.endswith("\r\n") else "\r\n")
    assert re.search(rb"(?<!\r)\n|\r(?!\n)|[\x00-\x08\x7f-\xff]", raw) is None
    if encoding != "7bit":
        assert max(map(len, raw.split(b"\r\n"))) <= 76


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("x" * 990, "7bit"), ("x" * 991, "quoted-printable"), ("grüße an alle hier im Haus", "quoted-printable"),
     ("日本", "base64"), ("a\x00b", "quoted-printable"), ("tab\tok", "7bit"), ("", "7bit")],
)  # fmt: skip
def test_encodings(text: str, encoding: str) -> None:
    assert encode_body(text)[0] == encoding


@given(st.binary(max_size=200_000))
def test_base64_lines(data: bytes) -> None:
    """RFC 2045 §6.8."""
    encoded = encode_base64(data)
    assert binascii.a2b_base64(encoded) == data
    assert all(len(line) <= 76 for line in encoded.split(b"\r\n"))
