# SPDX-License-Identifier: Apache-2.0
"""How figures, times and reasons are written on pages."""

from __future__ import annotations

import re

import pytest
from markupsafe import Markup

from hepmaild.counted import counted
from hepmaild.http.dashboard.key_form import show_expiry
from hepmaild.http.dashboard.words import FILTERS, no_address, number, span, told, when
from hepmaild.key_rules import LATEST_US


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.34, "340 ms"), (12, "12 s"), (3600, "60 min"), (86_400, "24 h"), (200_000, "2 days")],
)
def test_a_length_of_time(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_long_times_are_years() -> None:
    assert span(729 * 86_400) == "729 days"
    assert span(731 * 86_400) == "2 years"
    assert span(1_200 * 365 * 86_400) == "1,200 years"


def test_numbers_are_grouped_on_pages_as_everywhere() -> None:
    assert [number(n) for n in (None, 0, 999, 1_000, 12_345_678)] == ["–", "0", "999", "1,000", "12,345,678"]
    assert FILTERS["many"](12_345, "credit") == "12,345 credits"


def test_one_of_something_is_not_many() -> None:
    assert [counted(n, "credit") for n in (0, 1, 2, 12_345)] == [
        "0 credits",
        "1 credit",
        "2 credits",
        "12,345 credits",
    ]


def test_an_instant_that_no_date_can_show_is_the_latest() -> None:
    """Keys could have one: their row must not take the whole page with it."""
    for us in (LATEST_US, 253_402_300_799_999_999, 253_402_343_999_000_000, 2**62):
        assert "9999-12-31 00:00" in when(us)
        assert show_expiry(us) == "9999-12-30"


def test_a_reply_stands_as_it_was_said() -> None:
    assert told("550 5.1.1 no <such> user") == '<bdi class="reply">550 5.1.1 no &lt;such&gt; user</bdi>'


def test_instants_in_reasons_stand_in_the_readers_zone() -> None:
    shown = told('the cap of "a&b" is used up: leaves at about 2026-11-27T07:35:34Z, <b>or</b> 2026-11-28T00:00:00Z')
    assert isinstance(shown, Markup)
    assert re.findall(r'<time datetime="([^"]+)" data-style="exact"', shown) == [
        "2026-11-27T07:35:34.000Z",
        "2026-11-28T00:00:00.000Z",
    ]
    plain = re.sub(r"<time[^>]*>([^<]*)</time>", r"[\1]", shown)
    assert plain == (
        '<bdi class="break">the cap of &#34;a&amp;b&#34; is used up: leaves at about [2026-11-27 07:35], '
        "&lt;b&gt;or&lt;/b&gt; [2026-11-28 00:00]</bdi>"
    )


def test_an_instant_before_a_colon_is_one() -> None:
    shown = told("550 5.1.1 suppressed until 2026-12-12T05:06:23Z: asked to be left alone")
    assert re.sub(r"<time[^>]*>([^<]*)</time>", r"[\1]", shown) == (
        '<bdi class="reply">550 5.1.1 suppressed until [2026-12-12 05:06]: asked to be left alone</bdi>'
    )


@pytest.mark.parametrize(
    "text", ["", "2026-99-99T99:99:99Z", "x2026-11-27T07:35:34Z", "2026-11-27T07:35:34Z5", "2026-11-27T07:35:34Z:5"]
)
def test_what_is_no_instant_stays(text: str) -> None:
    assert told(text) == f'<bdi class="break">{text}</bdi>'


def test_why_it_is_no_address() -> None:
    assert no_address(ValueError("An email address must have an @-sign.")) == "An e-mail address must have an @-sign."
    assert no_address(ValueError("too long")) == "too long."
