# SPDX-License-Identifier: Apache-2.0
"""Taking messages apart and telling their stories: hostile input gives something to read, never an error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepmaild.http.dashboard.export import harmless
from hepmaild.http.dashboard.parts import disposition, safe_name, take_apart
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
    assert "nested too deeply" in take_apart(head).problem


def test_pictures_that_came_with_it_are_shown() -> None:
    mail = (
        b"Content-Type: multipart/related; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/html\r\n\r\n<img src='cid:p@x'>\r\n"
        b"--b\r\nContent-Type: image/png\r\nContent-ID: <p@x>\r\n\r\nPNG\r\n--b--\r\n"
    )
    assert take_apart(mail).html == "<img src='data:image/png;base64,UE5H'>"


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
