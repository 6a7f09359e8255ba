# SPDX-License-Identifier: Apache-2.0
"""One service for the whole folder, one browser for a module; whoever was signed in just before still is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from hepmaild.tokens import ACCESS_S
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


@dataclass(frozen=True, slots=True)
class Cookies:
    """Of somebody who signed in.  since_s: when, by the monotonic clock."""

    state: Any
    since_s: float

    @property
    def are_good(self) -> bool:
        """Not for as long as the access token: then one window renews it, and the next comes with what was used."""
        return time.monotonic() < self.since_s + ACCESS_S / 2


@pytest.fixture(scope="session")
def cookies() -> dict[str, Cookies]:
    """By address."""
    return {}


@pytest.fixture
def signed_in(house: House, browser: Browser, cookies: dict[str, Cookies]) -> SignIn:
    """`with signed_in(email) as person`: a fresh window of somebody who chose a password once and came back."""

    @contextlib.contextmanager
    def enter(email: str, **options: Any) -> Iterator[Person]:
        if email not in cookies or not cookies[email].are_good:
            since_s = time.monotonic()
            with open_person(browser, house.url) as person:
                if email not in cookies:
                    person.first_sign_in(house.link(email))
                else:
                    person.sign_in(email)
                    expect(person.page.get_by_role("heading", name="Overview", level=1)).to_be_visible()
                cookies[email] = Cookies(person.context.storage_state(), since_s)
        with open_person(browser, house.url, storage_state=cookies[email].state, **options) as person:
            person.expect_complaint(KEPT_OUT)
            yield person

    return enter
