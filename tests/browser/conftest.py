# SPDX-License-Identifier: Apache-2.0
"""One service for the whole folder, one browser for a module; whoever was signed in once stays it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser.guard import Person, open_browser, open_person
from tests.browser.house import KEPT_OUT, House, open_house
from tests.peers.processes import assert_no_traceback

SignIn = Callable[..., AbstractContextManager[Person]]


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """A service in use."""
    with open_house() as house:
        yield house
        log = house.daemon.log()
        assert_no_traceback(log)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium.  Not for longer: Playwright keeps this thread's asyncio to itself while it runs."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def cookies() -> dict[str, Any]:
    """Of those who signed in."""
    return {}


@pytest.fixture
def signed_in(house: House, browser: Browser, cookies: dict[str, Any]) -> SignIn:
    """`with signed_in(email) as person`: a fresh window of somebody who chose a password once and came back."""

    @contextlib.contextmanager
    def enter(email: str, **options: Any) -> Iterator[Person]:
        if email not in cookies:
            with open_person(browser, house.url) as person:
                person.first_sign_in(house.link(email))
                cookies[email] = person.context.storage_state()
        with open_person(browser, house.url, storage_state=cookies[email], **options) as person:
            person.expect_complaint(KEPT_OUT)
            yield person

    return enter
