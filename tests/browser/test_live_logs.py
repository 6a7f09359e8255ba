# SPDX-License-Identifier: Apache-2.0
"""The log while things happen: states change, lines wait behind the pill, the daemon goes away and comes back."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo

from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.conftest import SignIn
from tests.browser.guard import PASSWORD, Person, open_person, wait_for_keys
from tests.browser.house import FULL, KEPT_OUT, OWNER, House
from tests.browser.pages import find_faults

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def open_log(person: Person, search: str = "") -> Page:
    """The log, connected; `isStillTheSame` says that nobody loaded the page again."""
    person.go("/logs" + search)
    expect(person.page.locator("#live-state")).to_have_text("live")
    person.page.evaluate("() => { window.isStillTheSame = true; }")
    return person.page


def assert_not_reloaded(page: Page) -> None:
    assert page.evaluate("() => window.isStillTheSame") is True


def test_a_state_changes_before_the_eyes(signed_in: SignIn, house: House) -> None:
    """In the log and on the message's page, by what somebody else does in another window."""
    with signed_in(OWNER) as watcher, signed_in(OWNER) as doer:
        log = open_log(watcher)
        sent = house.send(FULL, "Bitte warten", html="<p>Bitte warten</p>")
        row = log.locator(f'tr[data-id="{sent}"]')
        expect(row.locator(".log-state")).to_have_text("◑deferred")
        doer.go(f"/logs/{sent}")
        page = doer.page
        expect(page.get_by_text("The next attempt is due in")).to_be_visible()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".state-large")).to_have_text("✕cancelled")
        expect(page.locator("#message-facts")).to_contain_text("refunded 1 back")
        expect(row.locator(".log-state")).to_have_text("✕cancelled")
        assert_not_reloaded(log)
        # The time: the reader's, with the exact UTC in its title.
        time = row.locator("time")
        at = dt.datetime.fromisoformat(str(time.get_attribute("datetime")))
        there = at.astimezone(BERLIN).strftime("%H:%M:%S")
        utc = at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        expect(time).to_have_attribute("title", re.compile(rf"{there} here, {re.escape(utc)} UTC$"))
        expect(time).to_have_text(re.compile("^(now|.* ago)$"))


def test_lines_wait_while_somebody_reads(signed_in: SignIn, house: House) -> None:
    """Nothing moves under the eyes; the pill brings what waits, and the view to the top."""
    with signed_in(OWNER) as reader:
        page = open_log(reader)
        page.evaluate("() => scrollTo(0, 600)")
        anchor = page.locator("#log-lines tr").nth(30)
        identity = anchor.get_attribute("data-id")
        before = anchor.bounding_box()
        for n in range(3):
            house.send("maria.huber@example.net", f"Während des Lesens {n}")
        pill = page.get_by_role("button", name="3 new")
        expect(pill).to_be_visible()
        assert page.locator(f'tr[data-id="{identity}"]').bounding_box() == before
        assert not find_faults(page, "the pill", rules=("color-contrast",))
        pill.click()
        expect(page.locator("#log-lines tr").first).to_contain_text("Während des Lesens 2")
        expect(page.locator("#log-lines tr").nth(2)).to_contain_text("Während des Lesens 0")
        expect(page.locator("#pill")).to_be_hidden()
        assert page.evaluate("() => scrollY") == 0
        # At the top again, lines come by themselves; a search lets in only its own.
        house.send("maria.huber@example.net", "Wieder oben")
        expect(page.locator("#log-lines tr").first).to_contain_text("Wieder oben")
        assert_not_reloaded(page)
        page = open_log(reader, "?q=to:tom.wright")
        house.send("maria.huber@example.net", "Nicht gesucht")
        house.send("tom.wright@example.org", "Gesucht")
        expect(page.locator("#log-lines tr").first).to_contain_text("Gesucht")
        expect(page.get_by_text("Nicht gesucht")).to_have_count(0)


def test_the_keyboard(signed_in: SignIn, house: House) -> None:
    with signed_in(OWNER) as person:
        person.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = open_log(person)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("/")
        expect(page.get_by_label("Search messages")).to_be_focused()
        page.keyboard.type("j?g")
        expect(page.get_by_label("Search messages")).to_have_value("j?g")
        page.keyboard.press("Escape")
        for key in "jjk":
            page.keyboard.press(key)
        first = page.locator("#log-lines tr").first
        expect(first).to_have_class(re.compile("chosen"))
        page.keyboard.press("c")
        expect(page.get_by_role("status").filter(has_text="Copied")).to_be_visible()
        assert page.evaluate("() => navigator.clipboard.readText()") == first.get_attribute("data-id")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog", name="Keyboard")).to_be_hidden()
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile(r"/logs/[0-9a-f]+$"))
        wait_for_keys(page)
        for key, title in (("o", "Overview"), ("k", "API keys"), ("l", "Logs")):
            page.keyboard.press("g")
            page.keyboard.press(key)
            expect(page.get_by_role("heading", level=1)).to_have_text(title)
            wait_for_keys(page)


def test_mail_shows_itself_and_does_nothing(signed_in: SignIn, house: House) -> None:
    """Its HTML stands in a frame without scripts, and nothing is fetched from anywhere."""
    with signed_in(OWNER) as person:
        answered: list[str] = []
        person.context.on("response", lambda response: answered.append(response.url))
        person.go(f"/logs/{house.ids['sent']}")
        frame = person.page.frame_locator("iframe.mail")
        expect(frame.get_by_role("heading")).to_have_text("Schöne Grüße 🌷")
        person.wait_for_complaints(KEPT_OUT, 2)  # of its script, and of its picture
        assert answered
        assert not [url for url in answered if not url.startswith(house.url)]


def test_the_daemon_goes_away_and_comes_back(signed_in: SignIn, house: House) -> None:
    """A quiet bar and greyed lines; then the page catches up with what happened meanwhile, by itself."""
    with signed_in(OWNER) as person:
        person.expect_complaint("WebSocket connection to|ERR_CONNECTION_REFUSED|status of 502")
        page = open_log(person)
        house.daemon.kill()
        bar = page.locator("#offline")
        expect(bar).to_be_visible()
        expect(bar).to_have_text(re.compile("connection is lost.*catches up by itself"))
        expect(page.locator("#live-state")).to_have_text("connecting")
        expect(page.locator("main")).to_have_css("opacity", "0.55")
        house.daemon.start()
        house.send("s.oconnor@post.example", "Während der Störung")
        expect(page.locator("#log-lines tr").first).to_contain_text("Während der Störung", timeout=90_000)
        expect(bar).to_be_hidden()
        expect(page.locator("#live-state")).to_have_text("live")
        assert_not_reloaded(page)


# As a page that was opened long ago: the daemon has no such number, and says that some was missed.
LONG_AGO = """() => document.addEventListener("readystatechange", () => {
  const log = document.getElementById("log");
  if (log) Object.assign(log.dataset, { newest: "yes", seq: "1000000000000000" });
}, { once: true })"""


class Between:
    """What stands between a page and the daemon: it fails, or asks for another page."""

    def __init__(self, page: Page, path: str, *, instead: str = "") -> None:
        self.fails = 0  # so many of the next questions
        self._instead = instead  # of the first question's address
        page.route(re.compile(re.escape(path) + "$"), self._answer)

    def _answer(self, route: Route) -> None:
        instead, self._instead = self._instead, ""
        if instead:
            route.continue_(url=instead)
        elif self.fails:
            self.fails -= 1
            route.fulfill(status=503, content_type="text/plain", body="not now")
        else:
            route.continue_()


def ids_of(page: Page) -> list[str]:
    ids: list[str] = page.locator("#log-lines tr").evaluate_all("rows => rows.map((row) => row.dataset.id)")
    return ids


def test_a_message_is_read_again_when_it_could_not_be(signed_in: SignIn, house: House) -> None:
    """Nothing more happens to it: what could not be read when it was told is asked for again."""
    with signed_in(OWNER) as watcher, signed_in(OWNER) as doer:
        watcher.expect_complaint("status of 503")
        sent = house.send(FULL, "Bitte noch einmal lesen")
        between = Between(watcher.page, f"/logs/{sent}")
        watcher.go(f"/logs/{sent}")
        expect(watcher.page.locator("#live-state")).to_have_text("live")
        expect(watcher.page.locator(".state-large")).to_have_text("◑deferred")
        between.fails = 1
        doer.go(f"/logs/{sent}")
        doer.page.once("dialog", lambda dialog: dialog.accept())
        doer.page.get_by_role("button", name="Cancel").click()
        expect(watcher.page.locator(".state-large")).to_have_text("✕cancelled")
        assert between.fails == 0


def test_a_log_that_missed_much_has_no_hole(signed_in: SignIn, house: House) -> None:
    """It shows what is newest now, and nothing below from before; also when that could not be read at first."""
    with signed_in(OWNER) as reader:
        reader.expect_complaint("status of 503")
        page = reader.page
        reader.go("/logs")
        newest = ids_of(page)
        older = str(page.get_by_role("link", name="Older").get_attribute("href"))
        reader.go(older)
        assert not set(ids_of(page)) & set(newest)
        between = Between(page, "/logs", instead=house.url + older)
        between.fails = 1
        page.add_init_script(f"({LONG_AGO})()")
        reader.go("/logs")
        expect(page.locator(f'tr[data-id="{newest[0]}"]')).to_be_visible()
        assert ids_of(page) == newest
        assert between.fails == 0
        # What is older begins behind it, not behind what stood there before.
        page.get_by_role("link", name="Older").click()
        expect(page.get_by_role("link", name="Newest")).to_be_visible()
        assert page.url == house.url + older


# A page that has been open for long: as many lines as it keeps, of which the last are to go.
FILL = """(most) => {
  const body = document.getElementById("log-lines"), last = body.rows[body.rows.length - 1];
  for (let n = body.rows.length; n < most; n += 1) {
    const row = last.cloneNode(true);
    row.dataset.at = String(Number(last.dataset.at) - n);
    row.dataset.id = n.toString(16).padStart(16, "0");
    body.append(row);
  }
}"""


def test_what_left_a_full_log_is_on_the_older_page(signed_in: SignIn, house: House) -> None:
    """Lines that come push the last ones out: `Older` begins there, also where there was nothing older at first."""
    house.send("maria.huber@example.net", "Randvoll")
    with signed_in(OWNER) as reader:
        for search, query in (("", "?"), ("?q=randvoll", "?q=randvoll&")):
            page = open_log(reader, search)
            older = page.get_by_role("link", name="Older", exact=True)
            expect(older).to_have_count(0 if search else 1)
            page.evaluate(FILL, 200)
            lines = page.locator("#log-lines tr")
            expect(lines).to_have_count(200)
            house.send("maria.huber@example.net", "Randvoll, noch eine")
            expect(lines.first).to_contain_text("Randvoll, noch eine")
            expect(lines).to_have_count(200)
            place = lines.last.evaluate("(row) => `${row.dataset.at}-${row.dataset.id}`")
            assert place.endswith(f"-{198:016x}")
            expect(older).to_have_attribute("href", f"{house.url}/logs{query}before={place}")
            assert_not_reloaded(page)


def test_who_is_signed_out_is_told_so_and_goes_on(signed_in: SignIn, browser: Browser, house: House) -> None:
    """The session ends in another window: the log says that it is old, and how to go on; then it does."""
    with signed_in(OWNER):
        pass  # has a password from now on
    with open_person(browser, house.url) as person:
        person.expect_complaint("WebSocket connection to|status of 401")
        person.sign_in(OWNER)
        expect(person.page.get_by_role("heading", name="Overview", level=1)).to_be_visible()
        page = open_log(person, "?q=status%3Asent")
        other = person.context.new_page()
        other.goto(house.url)
        other.locator(".menu summary").click()
        other.get_by_role("button", name="Sign out").click()
        expect(page.locator("#live-state")).to_have_text("signed out")
        bar = page.locator("#signed-out")
        expect(bar).to_contain_text("You are signed out. What you see is from before")
        expect(bar.get_by_role("link", name="sign in")).to_have_attribute(
            "href", "/sign-in?next=%2Flogs%3Fq%3Dstatus%253Asent"
        )
        expect(page.locator("main")).to_have_css("opacity", "0.55")
        other.get_by_label("E-mail address").fill(OWNER)
        other.get_by_label("Password").fill(PASSWORD)
        other.get_by_role("button", name="Sign in").click()
        expect(other.get_by_role("heading", name="Overview", level=1)).to_be_visible()
        page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")  # the reader comes back to it
        expect(page.locator("#live-state")).to_have_text("live")
        expect(bar).to_be_hidden()
        assert_not_reloaded(page)
