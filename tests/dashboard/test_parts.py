# SPDX-License-Identifier: Apache-2.0
"""Taking messages apart and telling their stories: hostile input gives something to read, never an error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepmaild.http.dashboard.export import harmless
from hepmaild.http.dashboard.parts import MAX_PICTURES, disposition, safe_name, take_apart, without_links
from hepmaild.http.dashboard.timeline import IN_DOUBT, groups

HEADS = st.sampled_from(
    (
        b"Content-Type: multipart/mixed; boundary=b\r\n",
        b"Content-Type: text/html; charset=nonsense\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b"Content-Transfer-Encoding: quoted-printable\r\n",
        b"Content-Disposition: attachment; filename*=utf-8''%zz\r\n",
        b'Content-Disposition: attachment; filename="=?x?q?=ff?="\r\n',
        b"Content-Type: message/rfc822\r\n",
        b"--b\r\n",
        b"--b--\r\n",
        b"\r\n",
    )
)


@settings(deadline=None)
@given(st.lists(st.one_of(HEADS, st.binary(max_size=40)), max_size=20))
def test_nothing_breaks_it(pieces: list[bytes]) -> None:
    parts = take_apart(b"".join(pieces))
    for attachment in parts.attachments:
        assert attachment.name
        assert disposition(attachment.name).isascii()


def test_deep_nesting_is_not_followed() -> None:
    head = b"".join(b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (n, n) for n in range(5000))
    assert "too intricate" in take_apart(head).problem


@pytest.mark.parametrize(
    "mail",
    [
        b'Content-Type: text/plain; x="' + b";" * 500_000 + b'"\r\n\r\nx',
        b'Content-Type: text/plain; x="' + b";\r\n " * 100_000 + b'"\r\n\r\nx',
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        + (b'--b\r\nContent-Disposition: x; x="' + b";" * 2000 + b'"\r\n\r\nx\r\n') * 1000,
    ],
    ids=["one long field", "one of many lines", "many fields"],
)
def test_parameters_that_would_take_the_parser_minutes_are_not_read(mail: bytes) -> None:
    """It counts the quotes before each semicolon from the start."""
    assert "too intricate" in take_apart(mail).problem


def html_and_picture(html: bytes, picture: bytes) -> bytes:
    return (
        b"Content-Type: multipart/related; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/html\r\n\r\n" + html + b"\r\n"
        b"--b\r\nContent-Type: image/png\r\nContent-ID: <p@x>\r\n\r\n" + picture + b"\r\n--b--\r\n"
    )


def test_pictures_that_came_with_it_are_shown() -> None:
    """RFC 2392: the name is escaped as in any URL; words that only look like one stay."""
    html = b"<img src='cid:p@x'><img src=CID:p%40x><p style='background: url(cid:p@x)'>a cid:p@x</p><img src='cid:q'>"
    put = "data:image/png;base64,UE5H"
    assert take_apart(html_and_picture(html, b"PNG")).html == (
        f"<img src='{put}'><img src={put}><p style='background: url({put})'>a cid:p@x</p><img src='cid:q'>"
    )


def test_links_to_elsewhere_are_none() -> None:
    """Neither the policy nor the sandbox of a frame keeps Chromium from opening the connection of a preconnect."""
    html = "<LINK rel=preconnect href=//a><p>links<link\nrel=dns-prefetch href=//b><li>a</li><svg><linK/></svg>"
    shown = without_links(html)
    assert "<link" not in shown.lower()
    assert "<p>links<x-link" in shown
    assert "<li>a</li>" in shown


def test_a_picture_takes_room_wherever_it_stands() -> None:
    html = take_apart(html_and_picture(b"<img src='cid:p@x'>" * 2000, b"P" * 30_000)).html
    assert html is not None
    assert 1 < html.count("data:image/png") < 2000
    assert len(html) < 2 * MAX_PICTURES


CHARSETS = (b"punycode", b"idna", b"unicode_escape", b"raw_unicode_escape", b"utf-7", b"utf-16", b"rot13", b"undefined")


@settings(deadline=None)
@given(st.sampled_from(CHARSETS), st.one_of(st.binary(max_size=60), st.just(b"\\ud800+2AA-")))
def test_a_text_of_any_charset_can_be_shown(charset: bytes, text: bytes) -> None:
    parts = take_apart(
        b"Content-Disposition: inline\r\nContent-Type: text/plain; charset=" + charset + b"\r\n\r\n" + text
    )
    assert parts.text is not None
    assert parts.text.encode("utf-8").decode("utf-8") == parts.text


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        (b"filename*=utf-8''%e2%82%ac.pdf", "\u20ac.pdf"),
        (b"filename*0*=windows-1252''%80; filename*1=.pdf", "\u20ac.pdf"),
        (b'filename="=?iso-8859-1?q?=fc?=.pdf"', "\u00fc.pdf"),
        (b"filename=plain.pdf", "plain.pdf"),
        (b"filename*=punycode''bcher-kva", "attachment"),
    ],
)
def test_names_are_read_however_they_are_written(parameter: bytes, name: str) -> None:
    """RFC 2231, and RFC 2047 where it does not belong."""
    [found] = take_apart(b"Content-Disposition: attachment; " + parameter + b"\r\n\r\nx").attachments
    assert found.name == name


@given(st.text(max_size=300))
def test_names_of_files_are_safe(text: str) -> None:
    name = safe_name(text, 3, "application/pdf")
    assert 0 < len(name) <= 120
    assert not name.startswith(".")
    assert not set(name) & set('/\\<>:"|?*\r\n\0')
    said = disposition(name)
    assert said.isascii()
    assert "\r" not in said


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\bill.pdf", "bill.pdf"),
        ("\u202efdp.exe", "fdp.exe"),
        (".htaccess", "htaccess"),
        ("a" * 500 + ".pdf", "a" * 100 + ".pdf"),
        ("", "part-1.html"),
    ],
)
def test_examples_of_names(name: str, safe: str) -> None:
    """RFC 6266."""
    assert safe_name(name, 1, "text/html") == safe


@given(st.one_of(st.text(max_size=50), st.integers(), st.none(), st.lists(st.text(max_size=9))))
def test_no_cell_is_a_formula(value: Any) -> None:
    cell = harmless(value)
    assert isinstance(value, int) or not cell.lstrip(" \u00a0").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_a_pipelined_leg_has_its_answers_where_they_belong() -> None:
    """RFC 2920."""
    steps = [
        (0, "note", "connected to mx.test"),
        (10, "peer", "220 mx.test"),
        (20, "us", "EHLO us.test"),
        (30, "peer", "250 mx.test"),
        (40, "us", "MAIL FROM:<a@us.test>"),
        (40, "us", "RCPT TO:<b@mx.test>"),
        (40, "us", "DATA"),
        (2_050, "peer", "250 sender"),
        (2_050, "peer", "250 recipient"),
        (2_050, "peer", "354 go"),
        (2_100, "us", "(content, 9 octets)"),
        (2_100, "us", "."),
    ]
    outcome = {"recipient": 0, "result": "in_doubt", "reply": None, "retry_at": 99}
    data = {"host": "mx.test", "route": "r", "started_at": 1, "steps": steps, "outcomes": [outcome]}
    [group] = groups([{"seq": 1, "at": 5_000, "kind": "attempt", "data": data}], {0: "b@mx.test"})
    told = {step.title: step.said[-1][1] for step in group.steps if step.said}
    assert told["Sender"] == "250 sender"
    assert told["Recipient"] == "250 recipient"
    assert told["Announce the content"] == "354 go"
    assert told["Content"] == "."
    assert group.steps[-1].detail == "9 octets"
    assert next(step.ms for step in group.steps if step.title == "Sender") == pytest.approx(2.02)
    assert group.note == IN_DOUBT
    assert group.endings[0].recipients == ["b@mx.test"]


@given(
    st.lists(
        st.tuples(st.integers(0, 10**15), st.sampled_from(("peer", "us", "note")), st.text(max_size=30)), max_size=30
    )
)
def test_any_transcript_is_told(steps: list[tuple[int, str, str]]) -> None:
    events = [
        {"seq": 1, "at": 0, "kind": "accepted", "data": {"door": "smtp", "steps": steps}},
        {"seq": 2, "at": 1, "kind": "attempt", "data": {"steps": steps}},
        {"seq": 3, "at": 2, "kind": "replied", "data": {"status": "sent"}},
        {"seq": 4, "at": 3, "kind": "something_new", "data": {}},
    ]
    assert len(groups(events, {})) == 3
