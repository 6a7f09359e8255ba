# SPDX-License-Identifier: Apache-2.0
"""A browser whose access token has run out stays signed in, whatever its next request is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hepmaild.errors import StoreUnavailable
from hepmaild.http.dashboard.frame import NOTICE_COOKIE, TOO_LATE
from hepmaild.storage import links, sessions
from tests.conftest import LogEvents
from tests.dashboard.inside import ACCESS, REFRESH, Inside, open_inside
from tests.dashboard.visitor import csrf_of, words
from tests.people.conftest import ANN, EVE, MINUTE_US, PASSWORD, database_url, opener
from tests.storage.conftest import Opener

__all__ = ["database_url", "opener"]

READER = "reader@example.com"
UPLOADS = "/api/v1/email/uploads"
NOBODYS = "/logs/0123456789abcdef"


@pytest.fixture
async def inside(opener: Opener, tmp_path: Path) -> AsyncIterator[Inside]:
    async with open_inside(opener, tmp_path) as opened:
        yield opened


async def assert_stays(inside: Inside) -> None:
    """The browser goes on, long after a tab's second request would get the same tokens, and nobody stole anything."""
    for _ in range(2):
        inside.world.clock.us += 16 * MINUTE_US
        assert (await inside.browser.get("/credits")).status_code == 200
    assert "session.theft" not in await inside.world.actions()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", NOBODYS, 404),
        ("GET", "/operator/accounts", 404),
        ("GET", "/keys/new", 403),
        ("POST", "/keys", 403),
        ("POST", "/sign-out", 403),
        ("POST", UPLOADS, 403),
        ("GET", "/sign-in", 303),
        ("GET", "/credits", 200),
    ],
)
async def test_what_was_renewed_comes_with_every_answer(inside: Inside, method: str, path: str, status: int) -> None:
    """Forms without their token, roles that are not enough, things that do not exist: all of them are answers."""
    await inside.world.add_user(READER, "read_only")
    await inside.sign_in(READER)
    before = inside.browser.cookies[REFRESH]
    inside.world.clock.us += 16 * MINUTE_US
    answer = await inside.browser.request(method, path)
    assert answer.status_code == status
    assert inside.browser.cookies[REFRESH] != before
    await assert_stays(inside)


async def test_nor_do_failures_sign_anybody_out(inside: Inside, log_events: LogEvents) -> None:
    log_events.expect_error("http_request_crashed")
    await inside.sign_in()
    for trouble, status in ((StoreUnavailable("gone"), 503), (ZeroDivisionError(), 500)):
        inside.trouble = trouble
        inside.world.clock.us += 16 * MINUTE_US
        before = inside.browser.cookies[REFRESH]
        assert (await inside.browser.get("/credits")).status_code == status
        assert inside.browser.cookies[REFRESH] != before
    inside.trouble = None
    await assert_stays(inside)


async def test_an_upload_that_is_refused_keeps_them_too(inside: Inside) -> None:
    await inside.sign_in()
    token = csrf_of((await inside.browser.get("/keys/new")).text)
    inside.world.clock.us += 16 * MINUTE_US
    answer = await inside.browser.post(UPLOADS, headers={"X-CSRF-Token": token}, content=b"no form")
    assert answer.status_code == 415, answer.text
    await assert_stays(inside)


@pytest.mark.parametrize("way", ["/sign-out", "/security/sessions/{}/end"])
async def test_who_signs_out_then_gets_no_tokens(inside: Inside, way: str) -> None:
    """What was renewed on the way is of a session that has just ended."""
    await inside.sign_in()
    page = (await inside.browser.get("/security")).text
    session_id = page.partition('action="/security/sessions/')[2][:36]
    inside.world.clock.us += 16 * MINUTE_US
    answer = await inside.browser.post(way.format(session_id), data={"csrf": csrf_of(page)})
    assert answer.headers["Location"] == "/sign-in"
    assert not {ACCESS, REFRESH} & set(inside.browser.cookies)


async def test_who_then_changes_the_password_goes_on_with_the_new_session(inside: Inside) -> None:
    await inside.sign_in()
    token = csrf_of((await inside.browser.get("/security")).text)
    inside.world.clock.us += 16 * MINUTE_US
    new = "another long phrase"
    fields = {"csrf": token, "old": PASSWORD, "new": new, "again": new}
    answer = await inside.browser.post("/security/password", data=fields)
    assert answer.status_code == 303, answer.text
    assert len(answer.headers.get_list("set-cookie")) == len({ACCESS, REFRESH, NOTICE_COOKIE})
    await assert_stays(inside)


@pytest.mark.parametrize(
    ("path", "stands_on", "leads_to"),
    [
        ("/suppressions", "/suppressions?q=ann", "?next=%2Fsuppressions%3Fq%3Dann"),
        ("/security/password", "/security/password", ""),  # the answer to a form that was refused before
        ("/suppressions", None, ""),
        ("/suppressions", "[", ""),  # no address at all
    ],
)
async def test_a_form_that_comes_too_late_says_so(
    inside: Inside, path: str, stands_on: str | None, leads_to: str
) -> None:
    """Its session has ended elsewhere: the sign-in page tells that nothing was changed, and leads back to the form."""
    await inside.sign_in()
    token = csrf_of((await inside.browser.get("/suppressions")).text)
    base = str(inside.browser.base_url).rstrip("/")
    headers = {} if stands_on is None else {"Referer": "https://[" if stands_on == "[" else base + stands_on}
    session_id = (await inside.browser.get("/security")).text.partition('action="/security/sessions/')[2][:36]
    await inside.world.people.sign_out(session_id)
    answer = await inside.browser.post(path, data={"csrf": token, "address": "ann@example.net"}, headers=headers)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/sign-in" + leads_to
    assert TOO_LATE in words((await inside.browser.get(answer.headers["Location"])).text)
    assert TOO_LATE not in words((await inside.browser.get("/sign-in")).text), "said once"


async def test_nobody_elses_page_says_that_a_form_came_too_late(inside: Inside) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example", "Referer": "https://evil.example/keys"}
    answer = await inside.browser.post("/suppressions", data={"address": "ann@example.net"}, headers=headers)
    assert answer.headers["Location"] == "/sign-in"
    assert NOTICE_COOKIE not in inside.browser.cookies


async def test_a_sign_in_form_that_is_too_old_keeps_the_address(inside: Inside) -> None:
    form = {"csrf": csrf_of((await inside.browser.get("/sign-in")).text), "email": "ann@example.com", "password": "x"}
    inside.browser.cookies.clear()
    answer = await inside.browser.post("/sign-in", data=form)
    assert answer.status_code == 400
    assert 'value="ann@example.com"' in answer.text


async def test_who_uses_a_link_then_leaves_no_session_behind(inside: Inside) -> None:
    """Of whoever was signed in at that browser before, and might have gone on there."""
    store, clock = inside.world.store, inside.world.clock
    await inside.sign_in(EVE)
    assert len(await store.read(sessions.list_of, "account-2", clock.us)) == 1
    token = links.new_token()
    await store.write(links.make, token=token, user_id=inside.world.ids[ANN], purpose=links.RESET, now_us=clock.us)
    clock.us += 16 * MINUTE_US
    answer = await inside.browser.post("/link", data={"token": token, "password": PASSWORD})
    assert answer.status_code == 303
    assert len(answer.headers.get_list("set-cookie")) == len({ACCESS, REFRESH})
    assert ANN in (await inside.browser.get("/security")).text
    assert await store.read(sessions.list_of, "account-2", clock.us) == []
    await assert_stays(inside)
