# SPDX-License-Identifier: Apache-2.0
"""The first day with the demo: from its link to mail that was sent, looked at, searched and exported."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.demo import Demo, open_demo, paste
from tests.browser.guard import Person, open_person, wait_for_keys
from tests.browser.pages import find_faults, find_overflow
from tests.peers.programs import require

FORMULA = "=1+1 Grüße"  # as a subject


@pytest.fixture
def demo() -> Iterator[Demo]:
    require("curl")
    with open_demo() as demo:
        yield demo


def test_the_first_day(demo: Demo, browser: Browser) -> None:
    with open_person(browser, demo.url) as person:
        page = person.page
        choose_password(person, demo)
        curl = mint_a_key(page)
        see_it_arrive(page, curl)
        read_its_story(page)
        stop_the_key(page, curl)
        search_and_export(page)
        choose_a_theme(page)
        page.locator(".menu summary").click()
        page.get_by_role("button", name="Sign out").click()
        expect(page).to_have_url(f"{demo.url}/sign-in")
        person.go("/logs")
        expect(page).to_have_url(f"{demo.url}/sign-in?next=%2Flogs")


def choose_password(person: Person, demo: Demo) -> None:
    """A bad one is refused with the reason, and the link still works."""
    page = person.page
    page.goto(demo.link)
    assert_fine(page, "choose a password")
    person.expect_complaint("status of 400")
    page.get_by_label("New password").fill("short")
    page.get_by_role("button", name="Save and sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("10")
    person.first_sign_in(demo.link)
    expect(page.get_by_role("heading", name="Send your first message")).to_be_visible()


def mint_a_key(page: Page) -> str:
    """The line for curl, as the page shows it beside the fresh key."""
    page.get_by_role("link", name="Make an API key").or_(page.get_by_role("link", name="API keys")).last.click()
    page.get_by_role("link", name="New key").click()
    page.get_by_label("Name").fill("first")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("heading", name="Save your key now")).to_be_visible()
    assert_fine(page, "a fresh key")
    key = page.get_by_label("The key", exact=True).inner_text()
    curl = page.get_by_label("curl").inner_text()
    assert key.startswith("hyd-mail-")
    assert key in curl
    # Whoever leaves is asked whether it was saved, and may stay.
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.get_by_role("link", name="Logs").click()
    expect(page.get_by_label("The key", exact=True)).to_have_text(key)
    assert asked == ["beforeunload"]
    page.get_by_label("I have saved it").check()
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("heading", name="first")).to_be_visible()
    assert key not in page.content()
    return curl


def see_it_arrive(page: Page, curl: str) -> None:
    """Without a reload, on a page that was empty."""
    page.get_by_role("link", name="Logs").click()
    expect(page.get_by_text("Nothing was sent yet")).to_be_visible()
    expect(page.locator("#live-state")).to_have_text("live")
    page.evaluate("() => { window.isStillTheSame = true; }")
    assert json.loads(paste(curl))["ok"] is True
    row = page.locator("#log-lines tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("demo@example.com")
    expect(row).to_contain_text("Hello")
    expect(row.locator(".log-state")).to_have_text("●sent")
    expect(page.get_by_text("Nothing was sent yet")).to_have_count(0)
    assert page.evaluate("() => window.isStillTheSame") is True


def read_its_story(page: Page) -> None:
    """Opened by the keyboard; the words that were said unfold; the way back is a key too."""
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Client → us, by the HTTPS API")).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("^Us → "))).to_be_visible()
    expect(page.locator(".state-large")).to_have_text("●sent")
    request = page.locator("details", has=page.get_by_text("Request", exact=True))
    request.locator("summary").click()
    expect(request).to_contain_text("POST /api/v1/email/send")
    expect(page.get_by_label("Text", exact=True)).to_have_text("It works.")
    times = page.locator("#message-facts time").first
    expect(times).to_have_attribute("title", re.compile(r"here, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC$"))
    assert_fine(page, "a message")
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("/logs$"))
    wait_for_keys(page)


def stop_the_key(page: Page, curl: str) -> None:
    """The next send is refused; enabled again, the one after that is not."""
    page.keyboard.press("g")
    page.keyboard.press("k")
    page.get_by_role("link", name="first").click()
    page.get_by_role("button", name="Disable").click()
    expect(page.locator("p.notice")).to_have_text("Disabled. It is refused on both doors from now on.")
    refused = json.loads(paste(curl))
    assert refused["ok"] is False
    page.get_by_role("button", name="Enable").click()
    expect(page.locator("p.notice")).to_have_text("Enabled. It works again.")
    wait_for_keys(page)
    assert json.loads(paste(curl.replace("Hello", FORMULA)))["ok"] is True


def search_and_export(page: Page) -> None:
    """The words are offered; what is searched for stands in the address, in chips, and in both files."""
    page.keyboard.press("g")
    page.keyboard.press("l")
    expect(page.locator("#log-lines tr")).to_have_count(2)
    wait_for_keys(page)
    page.keyboard.press("/")
    page.keyboard.type("sta")
    page.get_by_role("button", name="status:").click()
    page.get_by_role("button", name="status:sent").click()
    page.keyboard.type("Grüße")
    assert_fine(page, "the search")
    page.keyboard.press("Enter")
    expect(page.locator("#log-lines tr")).to_have_count(1)
    expect(page.get_by_role("list", name="What is searched for").get_by_role("listitem")).to_have_text(
        [re.compile("^status:sent"), re.compile("^Grüße"), "Clear all"]
    )
    with page.expect_download() as coming:
        page.get_by_role("link", name="Export as CSV").click()
    rows = list(csv.DictReader(Path(coming.value.path()).read_text("utf-8-sig").splitlines()))
    assert [row["subject"] for row in rows] == [f"'{FORMULA}"]
    with page.expect_download() as coming:
        page.get_by_role("link", name="Export as JSON lines").click()
    assert coming.value.suggested_filename.endswith(".jsonl")
    lines = [json.loads(line) for line in Path(coming.value.path()).read_text().splitlines()]
    assert [line["subject"] for line in lines] == [FORMULA]
    page.locator("#log-lines a").first.click()
    page.locator("p.back a").click()  # to the search, not to all of the log
    page.get_by_role("link", name="Remove Grüße").click()
    expect(page.locator("#log-lines tr")).to_have_count(2)


def choose_a_theme(page: Page) -> None:
    """It is remembered, whatever the system says."""
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Dark or light").click()
    dark = "rgb(18, 22, 27)"
    expect(page.locator("body")).to_have_css("background-color", dark)
    page.reload()
    expect(page.locator("body")).to_have_css("background-color", dark)


def assert_fine(page: Page, where: str) -> None:
    faults = find_faults(page, where) + find_overflow(page, where)
    assert not faults, "\n".join(faults)


def test_without_a_script(demo: Demo, browser: Browser) -> None:
    """Signing in, keys and logs ask for none."""
    with open_person(browser, demo.url, java_script_enabled=False) as person:
        page = person.page
        person.first_sign_in(demo.link)
        page.locator(".menu summary").click()
        page.get_by_role("button", name="Sign out").click()
        person.sign_in("demo@example.com")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        page.get_by_role("link", name="API keys").click()
        page.get_by_role("link", name="New key").click()
        page.get_by_label("Name").fill("plain")
        page.get_by_role("button", name="Make the key").click()
        curl = page.get_by_label("curl").inner_text()
        expect(page.get_by_role("button", name="Copy")).to_have_count(0)
        page.get_by_role("link", name="Done").click()
        sent = json.loads(paste(curl))["data"]["messageId"]
        page.get_by_role("link", name="Logs").click()
        page.get_by_label("Search messages").fill(f"key:plain id:{sent}")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#log-lines tr")).to_have_count(1)
        expect(page.locator("#log-lines time")).to_have_text(re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d$"))
        page.locator("#log-lines a").click()
        expect(page.get_by_text("Stored and paid for")).to_be_visible()
        page.get_by_role("link", name="Headers").click()
        expect(page.get_by_label("Header fields")).to_contain_text("Subject: Hello")
        page.get_by_role("link", name="plain").click()
        page.get_by_role("button", name="Disable").click()
        expect(page.locator("p.notice")).to_be_visible()
        assert json.loads(paste(curl))["ok"] is False
