# SPDX-License-Identifier: Apache-2.0
"""The pages that no link leads to: what stands there after a form was sent, for `make screenshots`.

Each function does what a person does and yields a name while the page is open.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Iterator

from playwright.sync_api import expect

from tests.browser.guard import PASSWORD, Person


def code_of(secret: str, later: int = 0) -> str:
    """What an authenticator app shows now, or `later` steps of 30 seconds from now (RFC 6238)."""
    key = base64.b32decode(secret.replace(" ", "").upper())
    digest = hmac.digest(key, (int(time.time()) // 30 + later).to_bytes(8, "big"), hashlib.sha1)
    at = digest[-1] & 15
    return f"{(int.from_bytes(digest[at : at + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06d}"


def deeds_of_owner(person: Person) -> Iterator[str]:
    """Searches, refusals, and everything that is shown once."""
    page = person.page
    for name, search, status in (
        ("fits", "to:huber status:sent after:1d", 200),
        ("nothing", "nobody-has-this", 200),
        ("refused", "status:nonsense", 400),
    ):
        person.go(f"/logs?q={search}", status=status)
        yield f"search-{name}"
    person.go("/logs")
    page.keyboard.press("/")
    expect(page.locator("#search-offers")).to_be_visible()
    yield "search-offers"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    yield "keyboard"
    page.get_by_role("button", name="Close").click()
    page.locator(".menu summary").click()
    yield "menu"
    yield from _keys(person)
    yield from _checks(person)
    yield from _security(person)


def _keys(person: Person) -> Iterator[str]:
    page = person.page
    person.expect_complaint("status of (422|400)")
    person.go("/keys/new")
    page.get_by_label("From these IP addresses").fill("192.0.2.300")
    page.get_by_label("Expires").fill("yesterday")
    page.get_by_role("button", name="Make the key").click()
    yield "key-refused"
    page.get_by_label("Name", exact=True).fill("Rechnungslauf")
    page.get_by_label("From these IP addresses").fill("")
    page.get_by_label("Expires").fill("")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("heading", name="Save your key now")).to_be_visible()
    yield "key-made"
    page.get_by_label("I have saved it").check()
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("heading", name="Rechnungslauf")).to_be_visible()


def _checks(person: Person) -> Iterator[str]:
    page = person.page
    person.go("/addresses")
    page.get_by_role("button", name="Check DNS").first.click()
    expect(page.locator("#checks")).to_be_visible()
    yield "addresses-checked"
    person.go("/smtp-servers")
    page.get_by_role("link", name="Werkstatt").click()
    page.get_by_role("button", name="Test", exact=True).click()
    expect(page.locator("#tested")).to_be_visible()
    yield "smtp-server-tested"
    person.go("/credits")
    page.get_by_role("button", name="Verify the ledger").click()
    person.saved()
    yield "credits-verified"
    person.go("/suppressions")
    page.get_by_text("Suppress an address").click()
    page.get_by_label("Address", exact=True).fill("not an address")
    page.get_by_role("button", name="Suppress it").click()
    expect(page.get_by_role("alert")).to_be_visible()
    yield "suppression-refused"


def _security(person: Person) -> Iterator[str]:
    page = person.page
    person.go("/security/users/new")
    page.get_by_label("E-mail address").fill("lena.vogt@blumen-berger.example")
    page.get_by_role("button", name="Make the link").click()
    yield "user-invited"
    page.get_by_role("link", name="I have passed it on").click()
    person.go("/security/audit")
    page.get_by_role("button", name="Verify the chain").click()
    person.saved()
    yield "audit-verified"
    person.go("/security")
    page.get_by_label("Present password").fill("wrong")
    page.get_by_label("New password", exact=True).fill("short")
    page.get_by_label("New password, once more").fill("other")
    page.get_by_role("button", name="Change the password").click()
    expect(page.get_by_role("alert").first).to_be_visible()
    yield "password-refused"
    person.go("/security/second-factor")
    page.get_by_role("button", name="Begin").click()
    secret = page.get_by_label("The secret", exact=True).inner_text()
    yield "second-factor-scan"
    page.get_by_label("Six digits").fill(code_of(secret))
    page.get_by_role("button", name="Turn it on").click()
    expect(page.get_by_role("heading", name="Save your recovery codes now")).to_be_visible()
    yield "recovery-codes"
    page.get_by_label("I have saved them").check()
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_text("Signing in asks for a code of your app.")).to_be_visible()
    yield "security-with-factor"
    person.go("/security/second-factor")
    yield "second-factor-on"


def deeds_of_operator(person: Person) -> Iterator[str]:
    """What the checks find, what a route says, an account that is made."""
    page = person.page
    person.expect_complaint("status of (422|400)")
    person.go("/operator/health")
    page.get_by_role("button", name="Run the checks").click()
    expect(page.locator(".finding").first).to_be_visible()
    yield "operator-health-checked"
    person.go("/operator/routes")
    page.get_by_role("button", name="Test").first.click()
    expect(page.get_by_text("It works")).to_be_visible()
    yield "operator-route-tested"
    person.go("/operator/accounts/new")
    page.get_by_role("button", name="Make the account").click()
    yield "operator-account-refused"
    page.get_by_label("E-mail address of the owner").fill("shop@laden.example")
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_label("One-time link")).to_be_visible()
    yield "operator-account-made"


def deeds_of_stranger(person: Person, link: str, email: str) -> Iterator[str]:
    """A one-time link, a wrong password, and the question for the second factor that `email` has."""
    page = person.page
    person.expect_complaint("status of 401")
    page.goto(link)
    yield "link"
    person.sign_in(email, "not the password")
    expect(page.get_by_role("alert")).to_be_visible()
    yield "sign-in-refused"
    person.sign_in(email, PASSWORD)
    expect(page.get_by_label("Second factor")).to_be_visible()
    yield "sign-in-code"
