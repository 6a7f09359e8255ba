# SPDX-License-Identifier: Apache-2.0
"""People about themselves and each other: the second factor, users and roles, the operator's credits."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import SignIn
from tests.browser.deeds import code_of
from tests.browser.guard import PASSWORD, Person, open_person
from tests.browser.house import NEWCOMER, OPERATOR, OWNER, House
from tests.browser.pages import find_faults, find_overflow

COLLEAGUE = "lena.vogt@blumen-berger.example"


def assert_fine(page: Page, where: str) -> None:
    faults = find_faults(page, where) + find_overflow(page, where)
    assert not faults, "\n".join(faults)


def sign_out(page: Page) -> None:
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Sign out", exact=True).click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_the_second_factor(signed_in: SignIn, browser: Browser, house: House) -> None:
    with signed_in(NEWCOMER), open_person(browser, house.url) as person:
        person.expect_complaint("status of 401")
        person.sign_in(NEWCOMER)
        secret, codes = _turn_on(person)
        page = person.page
        _sign_in_with(person, "000000")
        expect(page.get_by_role("alert")).to_be_visible()
        assert_fine(page, "a wrong code")
        for code in (code_of(secret, 1), codes[0]):
            _sign_in_with(person, code)
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            sign_out(page)
        _sign_in_with(person, codes[1])
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        person.go("/security")
        expect(page.get_by_text("8 recovery codes left.")).to_be_visible()
        expect(page.get_by_role("region", name="Sessions").get_by_text("this browser")).to_be_visible()
        assert_fine(page, "security with a second factor")
        page.get_by_role("link", name="Recovery codes, turn off").click()
        assert_fine(page, "second factor on")
        page.get_by_label("Or your password").fill(PASSWORD)
        page.get_by_role("button", name="Turn the second factor off").click()
        person.saved()
        expect(page.get_by_role("link", name="Set up a second factor")).to_be_visible()


def _turn_on(person: Person) -> tuple[str, list[str]]:
    page = person.page
    page.get_by_role("link", name="Security").click()
    page.get_by_role("link", name="Set up a second factor").click()
    page.get_by_role("button", name="Begin").click()
    secret = page.get_by_label("The secret", exact=True).inner_text()
    assert_fine(page, "scan")
    page.get_by_label("Six digits").fill(code_of(secret))
    page.get_by_role("button", name="Turn it on").click()
    codes = page.get_by_label("Recovery codes", exact=True).inner_text().split()
    assert len(codes) == 10
    assert_fine(page, "recovery codes")
    page.get_by_label("I have saved them").check()
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_text("Signing in asks for a code of your app.")).to_be_visible()
    sign_out(page)
    return secret, codes


def _sign_in_with(person: Person, code: str) -> None:
    person.sign_in(NEWCOMER)
    page = person.page
    expect(page.get_by_label("Second factor")).to_be_focused()
    expect(page.get_by_label("Password")).to_have_count(0)
    page.get_by_label("Second factor").fill(code)
    page.get_by_role("button", name="Sign in").click()


def test_users_and_their_roles(signed_in: SignIn, browser: Browser, house: House) -> None:
    """Somebody is invited to look, becomes an admin, and is shown the door; each of it counts at once."""
    with signed_in(OWNER) as owner, open_person(browser, house.url) as colleague:
        page = owner.page
        owner.go("/security/users/new")
        page.get_by_label("E-mail address").fill(COLLEAGUE)
        page.get_by_label("Read only").check()
        page.get_by_role("button", name="Make the link").click()
        assert_fine(page, "invited")
        link = page.get_by_label("The one-time link").inner_text()
        page.get_by_role("link", name="I have passed it on").click()

        colleague.first_sign_in(f"{house.url}/link/{link.rpartition('/')[2]}")
        _cannot_change(colleague)
        page.get_by_role("link", name=COLLEAGUE).click()
        expect(page.locator("dl.facts")).to_contain_text("active")
        page.get_by_label("Admin").check()
        page.get_by_role("button", name="Save the role").click()
        owner.saved()
        colleague.go("/keys")
        expect(colleague.page.get_by_role("link", name="New key")).to_be_visible()
        page.get_by_role("button", name="Suspend").click()
        owner.saved()
        colleague.page.get_by_role("link", name="Logs").click()
        expect(colleague.page.get_by_role("heading", name="Sign in")).to_be_visible()
        owner.go(f"/security/audit?q={COLLEAGUE}")
        expect(page.locator("tbody tr").first).to_contain_text("suspended")


def _cannot_change(reader: Person) -> None:
    """Nothing to change with is offered; a form that is sent all the same is refused."""
    page = reader.page
    reader.go("/keys")
    expect(page.get_by_role("link", name="New key")).to_have_count(0)
    page.get_by_role("link", name="shop").click()
    expect(page.get_by_role("button", name=re.compile("Disable|Rotate|Delete|Save"))).to_have_count(0)
    assert_fine(page, "a key, read only")
    csrf = page.locator("input[name=csrf]").first.get_attribute("value")
    headers = {"Sec-Fetch-Site": "same-origin"}
    answer = reader.context.request.post(f"{page.url}/disable", form={"csrf": csrf or ""}, headers=headers)
    assert answer.status == 403
    reader.go("/security/users", status=403)


def test_the_operator_grants_credits(signed_in: SignIn) -> None:
    with signed_in(OPERATOR) as operator, signed_in(NEWCOMER) as newcomer:
        page = operator.page
        operator.go("/operator/accounts")
        page.get_by_placeholder("Part of an address, or an id").fill("start.example")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name=NEWCOMER).click()
        page.get_by_label("Credits to grant").fill("1500")
        page.get_by_label("Note").fill("Willkommen")
        page.get_by_role("button", name="Grant").click()
        operator.saved()
        newcomer.go("/credits?reason=grant")
        expect(newcomer.page.locator(".top-credits")).to_contain_text("1,500 credits")
        expect(newcomer.page.locator("tbody tr").first).to_contain_text("Willkommen")
        operator.go("/operator/health")
        page.get_by_role("button", name="Run the checks").click()
        expect(page.locator(".finding").first).to_be_visible()
        assert_fine(page, "health with its findings")
        operator.go("/operator/routes")
        page.get_by_role("button", name="Test").first.click()
        expect(page.get_by_text("It works")).to_be_visible()
        assert_fine(page, "a route that was tested")
