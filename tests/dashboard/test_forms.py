# SPDX-License-Identifier: Apache-2.0
"""Forms cost no more than they are worth, also those of people whom nobody knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hepmaild.http.dashboard.forms import MAX_FIELDS, MAX_FORM_OCTETS, SMALL_FORM_OCTETS
from tests.dashboard.inside import Inside, open_inside
from tests.dashboard.visitor import csrf_of, words
from tests.people.conftest import database_url, opener
from tests.storage.conftest import Opener

__all__ = ["database_url", "opener"]

KIND = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
async def inside(opener: Opener, tmp_path: Path) -> AsyncIterator[Inside]:
    async with open_inside(opener, tmp_path) as opened:
        yield opened


async def pieces(form: bytes) -> AsyncIterator[bytes]:
    """Sent so, nothing says beforehand how long it is."""
    for at in range(0, len(form), 16 << 10):
        yield form[at : at + (16 << 10)]


@pytest.mark.parametrize("path", ["/sign-in", "/link"])
async def test_a_strangers_form_is_small(inside: Inside, path: str) -> None:
    form = b"email=" + b"a" * SMALL_FORM_OCTETS
    for content in (form, pieces(form)):
        answer = await inside.browser.post(path, content=content, headers=KIND)
        assert (answer.status_code, "too large" in words(answer.text)) == (400, True)


@pytest.mark.parametrize("path", ["/sign-in", "/link", "/suppressions"])
async def test_a_form_has_so_many_fields_at_most(inside: Inside, path: str) -> None:
    """Each becomes objects, a hundred times as large as the two octets it takes."""
    await inside.sign_in()
    answer = await inside.browser.post(path, content=b"a&" * MAX_FIELDS, headers=KIND)
    assert (answer.status_code, "too many fields" in words(answer.text)) == (400, True)


async def test_who_is_signed_in_may_send_more(inside: Inside) -> None:
    """As a template needs: what is large is read in a thread, and as it was written."""
    await inside.sign_in()
    token = csrf_of((await inside.browser.get("/templates")).text)
    html = "<p>ü</p>" * 20_000
    form = {"csrf": token, "name": "Large", "subject": "S", "html": html, "text": "a+b & c=d%"}
    answer = await inside.browser.post("/templates", data=form)
    assert answer.status_code == 303, words(answer.text)
    page = (await inside.browser.get(answer.headers["Location"])).text
    assert page.count("&lt;p&gt;ü&lt;/p&gt;") == 20_000
    assert "a+b &amp; c=d%" in page
    answer = await inside.browser.post("/templates", content=pieces(b"a" * (MAX_FORM_OCTETS + 1)), headers=KIND)
    assert (answer.status_code, "too large" in words(answer.text)) == (400, True)


async def test_what_is_no_form_has_no_fields(inside: Inside) -> None:
    await inside.sign_in()
    token = csrf_of((await inside.browser.get("/suppressions")).text)
    fields = {"csrf": (None, token), "address": (None, "anna@example.net")}
    answer = await inside.browser.post("/suppressions", files=fields)
    assert answer.status_code == 403
