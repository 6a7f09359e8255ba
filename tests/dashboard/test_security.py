# SPDX-License-Identifier: Apache-2.0
"""What everybody looks after for themselves, through the real daemon: password, second factor, sessions."""

from __future__ import annotations

import base64
import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import httpx
import pytest

from hepmaild import totp
from hepmaild.http.dashboard.security import draw_code
from tests.dashboard.conftest import READER, Site
from tests.dashboard.visitor import PASSWORD, Visitor, csrf_of, link_of, open_client, sign_in, words
from tests.peers.daemon import ACCOUNT
from tests.people.conftest import tells_steps_apart

PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.4 Mobile/15E148 Safari/604.1"
)
FACTOR = "/security/second-factor"
ACCESS, REFRESH = "__Host-hepmaild-access", "__Host-hepmaild-refresh"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the first account, for one test, signed in once."""

    site: Site
    email: str
    user_id: str
    visitor: Visitor

    def log_in(self, client: httpx.Client, password: str = PASSWORD, otp: str = "") -> httpx.Response:
        """The sign-in form, as a browser sends it."""
        token = csrf_of(client.get("/sign-in").text)
        fields = {"csrf": token, "email": self.email, "password": password, "next": "/security"}
        return client.post("/sign-in", data={**fields, **({"otp": otp} if otp else {})})

    def is_in(self, client: httpx.Client) -> bool:
        """Whether this browser is signed in."""
        return client.get("/security").status_code == 200

    def audited(self) -> list[str]:
        """What the audit log says that this person did, oldest first."""
        rows = self.site.daemon.json("audit", "list", ACCOUNT, "--limit", "1000")
        return [row["action"] for row in reversed(rows) if row["actor"] == self.email]


@contextmanager
def make_person(site: Site, scope: str = "read_only") -> Iterator[Person]:
    """Invited by the owner, as people are."""
    email = f"person{next(_numbers)}@example.com"
    shown = site.owner.post("/security/users", {"email": email, "scope": scope}, page="/security")
    assert shown.status_code == 200, words(shown.text)
    link = re.search(r"https://[^\s<]+/link/[\w-]{43}", shown.text)
    assert link is not None, words(shown.text)
    with sign_in(site.daemon, link[0]) as visitor:
        yield Person(site, email, user_id_of(site, email), visitor)


def user_id_of(site: Site, email: str) -> str:
    """By the list of users."""
    found = re.search(
        rf'<a href="/security/users/([0-9a-f-]{{36}})"><bdi class="break">{re.escape(email)}<',
        site.owner.get("/security/users"),
    )
    assert found is not None, email
    return found[1]


@pytest.fixture
def person(site: Site) -> Iterator[Person]:
    """Somebody who may change nothing but what is theirs."""
    with make_person(site) as made:
        yield made


def fields_of(old: str = PASSWORD, new: str = "another long phrase", again: str | None = None) -> dict[str, str]:
    return {"old": old, "new": new, "again": new if again is None else again}


def session_ids(page: str) -> list[str]:
    return re.findall(r'action="/security/sessions/([0-9a-f-]{36})/end"', page)


# The password


def test_a_new_password_ends_every_other_session(person: Person) -> None:
    with open_client(person.site.daemon) as elsewhere:
        assert person.log_in(elsewhere).status_code == 303
        assert person.is_in(elsewhere)
        before = dict(person.visitor.client.cookies)
        page = person.visitor.follow("/security/password", fields_of(), page="/security")
        assert "The password is changed." in words(page)
        # The other browser is out at its next request, and cannot come back by its refresh token.
        assert elsewhere.get("/security").headers["Location"] == "/sign-in?next=%2Fsecurity"
        assert not person.is_in(elsewhere)
        # This one goes on, in another session; what its cookies were is worth nothing.
        assert person.is_in(person.visitor.client)
        assert len(session_ids(page)) == 1
        after = dict(person.visitor.client.cookies)
        assert before[ACCESS] != after[ACCESS]
        assert before[REFRESH] != after[REFRESH]
        with open_client(person.site.daemon, cookies={name: before[name] for name in (ACCESS, REFRESH)}) as stolen:
            assert not person.is_in(stolen)
        assert person.log_in(elsewhere).status_code == 401
        assert person.log_in(elsewhere, "another long phrase").status_code == 303
    assert person.audited() == ["user.password", "user.password"]


@pytest.mark.parametrize(
    ("fields", "name", "says"),
    [
        (fields_of(old="not this one"), "old", "This is not your present password."),
        (fields_of(old=""), "old", "Type your present password."),
        (fields_of(new="short"), "new", "A password has at least 10 characters."),
        (fields_of(new="password2026"), "new", "among the first that anybody would try"),
        (fields_of(again="something else"), "again", "not the same as the new password"),
    ],
)
def test_what_is_wrong_stands_beside_the_field(person: Person, fields: dict[str, str], name: str, says: str) -> None:
    answer = person.visitor.post("/security/password", fields, page="/security")
    assert answer.status_code == 422
    field = re.search(
        rf'<input id="f-{name}"[^>]*aria-invalid="true"[^>]*>\s*<p class="help error" id="h-{name}">([^<]*)',
        answer.text,
    )
    assert field is not None, words(answer.text)
    assert says in field[1]
    assert not any(value in answer.text for value in fields.values() if len(value) > 5)
    with open_client(person.site.daemon) as client:
        assert person.log_in(client).status_code == 303


def test_the_old_password_cannot_be_guessed(person: Person) -> None:
    for _ in range(5):
        answer = person.visitor.post("/security/password", fields_of(old="a wrong guess"), page="/security")
        assert answer.status_code == 422
    refused = person.visitor.post("/security/password", fields_of(), page="/security")
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert "Too many wrong tries" in words(refused.text)
    assert person.is_in(person.visitor.client)


def test_signing_in_makes_a_session_of_its_own(person: Person) -> None:
    """Session fixation: nothing that was in the browser before is good for whoever signs in, or afterwards."""
    with open_client(person.site.daemon) as client:
        planted = dict(person.site.owner.client.cookies)
        for name in (ACCESS, REFRESH):
            client.cookies.set(name, "planted", domain="127.0.0.1", path="/")
        assert person.log_in(client).status_code == 303
        mine = {cookie.name: cookie.value for cookie in client.cookies.jar if cookie.name in (ACCESS, REFRESH)}
        assert "planted" not in mine.values()
        assert mine[ACCESS] != planted[ACCESS]
        first = session_ids(client.get("/security").text)
        # Again in the same browser: another session, and the one before has ended.
        token = client.cookies[ACCESS]
        with open_client(person.site.daemon) as blank:
            csrf = csrf_of(blank.get("/sign-in").text)
            visitor = next(cookie for cookie in blank.cookies.jar if "visitor" in cookie.name)
        client.cookies.jar.set_cookie(visitor)
        fields = {"csrf": csrf, "email": person.email, "password": PASSWORD, "next": "/security"}
        assert client.post("/sign-in", data=fields).status_code == 303
        assert client.cookies[ACCESS] != token
        assert len(session_ids(client.get("/security").text)) == len(first)
        with open_client(person.site.daemon, cookies={ACCESS: token}) as stolen:
            assert not person.is_in(stolen)


# Sessions


def test_sessions_are_shown_and_ended(person: Person) -> None:
    with (
        open_client(person.site.daemon, headers={"User-Agent": PHONE}) as phone,
        open_client(person.site.daemon) as third,
    ):
        assert person.log_in(phone).status_code == 303
        assert person.log_in(third).status_code == 303
        page = person.visitor.get("/security")
        assert "Safari on iPhone" in words(page)
        assert "127.0.0.1" in words(page)
        assert words(page).count("this browser") == 1
        assert len(session_ids(page)) == 3
        row = page[: page.index("End the session of Safari on iPhone")]
        said = person.visitor.follow(f"/security/sessions/{session_ids(row)[-1]}/end", page="/security")
        assert "The session has ended" in words(said)
        assert not person.is_in(phone)
        assert person.is_in(third)
        # Twice is no fault.
        again = person.visitor.follow(f"/security/sessions/{session_ids(row)[-1]}/end", page="/security")
        assert "has ended already" in words(again)
        assert "1 session ended." in words(person.visitor.follow("/security/sessions/end-others", page="/security"))
        assert not person.is_in(third)
        only = session_ids(person.visitor.get("/security"))
        assert len(only) == 1
        left = person.visitor.post(f"/security/sessions/{only[0]}/end", page="/security")
        assert left.headers["Location"] == "/sign-in"
        assert not person.is_in(person.visitor.client)
    assert person.audited().count("session.end") == 3


def test_sessions_of_others(site: Site, person: Person) -> None:
    mine = session_ids(site.owner.get("/security"))[0]
    theirs = session_ids(person.visitor.get("/security"))[0]
    for session_id in (mine, theirs, "nonsense", "0" * 36):
        assert site.other.post(f"/security/sessions/{session_id}/end", page="/security").status_code == 404
    assert person.visitor.post(f"/security/sessions/{mine}/end", page="/security").status_code == 403
    assert site.owner.post(f"/security/sessions/{theirs}/end", token="forged").status_code == 403
    with make_person(site, "admin") as admin:
        assert admin.visitor.post(f"/security/sessions/{mine}/end", page="/security").status_code == 403
        said = admin.visitor.follow(f"/security/sessions/{theirs}/end", page="/security")
        assert "The session has ended" in words(said)
    assert not person.is_in(person.visitor.client)
    assert site.owner.client.get("/security").status_code == 200


# The second factor


def secret_of(page: str) -> bytes:
    """The secret that stands on the page as text."""
    shown = re.search(r'aria-label="The secret">([A-Z2-7 ]+)</pre>', page)
    assert shown is not None, words(page)
    text = shown[1].replace(" ", "")
    assert f'data-copy="{text}"' in page
    return base64.b32decode(text)


def code_of(secret: bytes, *, later: int = 0) -> str:
    """The code of now, or of a step later, which is good already."""
    return totp.code(secret, totp.step_of(time.time_ns() // 1000) + later)


def wrong_code_of(secret: bytes) -> str:
    """Six digits that are no code about now."""
    right = {code_of(secret, later=n) for n in range(-2, 5)}
    return next(code for code in (f"{n:06}" for n in range(10)) if code not in right)


def codes_of(page: str) -> list[str]:
    shown = re.search(r'aria-label="Recovery codes">([A-Z2-7\n-]+)</pre>', page)
    assert shown is not None, words(page)
    return shown[1].split()


def enrol(person: Person) -> tuple[bytes, list[str]]:
    assert "Begin" in words(person.visitor.get(FACTOR))
    secret = b""
    while not tells_steps_apart(secret, totp.step_of(time.time_ns() // 1000)):
        secret = secret_of(person.visitor.follow(f"{FACTOR}/begin", page=FACTOR))
    answer = person.visitor.post(f"{FACTOR}/confirm", {"code": code_of(secret)}, page=FACTOR)
    assert answer.status_code == 200, words(answer.text)
    assert answer.headers["Cache-Control"] == "no-store"
    return secret, codes_of(answer.text)


def test_a_second_factor_is_set_up(person: Person) -> None:
    page = person.visitor.follow(f"{FACTOR}/begin", page=FACTOR)
    secret = secret_of(page)
    assert '<svg viewBox="0 0' in page
    assert "style=" not in page
    assert "otpauth://totp/hepmaild%3A" in page
    assert secret_of(person.visitor.get(FACTOR)) == secret, "a reload shows the same"
    wrong = person.visitor.post(f"{FACTOR}/confirm", {"code": "12345"}, page=FACTOR)
    assert wrong.status_code == 422
    assert "This code is wrong" in words(wrong.text)
    assert secret_of(wrong.text) == secret, "what was scanned stays good"
    with open_client(person.site.daemon) as client:
        assert person.log_in(client).status_code == 303, "it is not asked for before it was confirmed"
    other = secret_of(person.visitor.follow(f"{FACTOR}/begin", page=FACTOR))
    assert other != secret
    code = code_of(other)
    done = person.visitor.post(f"{FACTOR}/confirm", {"code": f"{code[:3]} {code[3:]}"}, page=FACTOR)
    codes = codes_of(done.text)
    assert len(set(codes)) == 10
    assert "data-leave" in done.text
    for path in ("/security", FACTOR):
        shown = person.visitor.get(path)
        assert not any(each in shown for each in codes)
        assert base64.b32encode(other).decode() not in shown.replace(" ", "")
    log = person.site.daemon.log()
    assert codes[0] not in log
    assert base64.b32encode(other).decode() not in log
    assert "10 recovery codes left" in words(person.visitor.get("/security"))
    begun = person.visitor.follow(f"{FACTOR}/begin", page="/security")
    assert "is on already" in words(begun)
    assert person.audited() == ["user.password", "second_factor.on"]


def test_a_second_factor_is_asked_for_and_recovered(person: Person) -> None:
    secret, codes = enrol(person)
    with open_client(person.site.daemon) as client:
        asked = person.log_in(client)
        assert asked.status_code == 401
        assert 'name="otp"' in asked.text
        assert 'name="password"' not in asked.text
        assert PASSWORD not in asked.text
        assert person.log_in(client, otp="nonsense").status_code == 401
        assert person.log_in(client, otp=code_of(secret, later=1)).status_code == 303
    with open_client(person.site.daemon) as client:
        assert person.log_in(client, otp=codes[0].lower()).status_code == 303
        assert "9 recovery codes left" in words(client.get("/security").text)
    with open_client(person.site.daemon) as client:
        assert person.log_in(client, otp=codes[0]).status_code == 401, "each works once"
    answer = person.visitor.post(f"{FACTOR}/codes", {"code": codes[1]}, page=FACTOR)
    fresh = codes_of(answer.text)
    assert not set(fresh) & set(codes)
    with open_client(person.site.daemon) as client:
        assert person.log_in(client, otp=codes[2]).status_code == 401
        assert person.log_in(client, otp=fresh[0]).status_code == 303


def _answer(client: httpx.Client, page: str, otp: str, **other: str) -> httpx.Response:
    """The form of the second step."""
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
    return client.post("/sign-in", data={**fields, "otp": otp, **other})


def test_the_second_step_asks_for_the_code_alone(person: Person) -> None:
    secret, codes = enrol(person)
    with open_client(person.site.daemon) as client, open_client(person.site.daemon) as mallory:
        asked = person.log_in(client).text
        again = _answer(client, asked, "")
        assert "Type the code." in words(again.text)
        again = _answer(client, again.text, "nonsense")
        assert again.status_code == 401
        assert "This code is wrong" in words(again.text)
        assert 'name="password"' not in again.text
        # What somebody else's browser saw is of no use, not even with the code.
        csrf = csrf_of(mallory.get("/sign-in").text)
        stolen = _answer(mallory, asked, code_of(secret, later=1), csrf=csrf)
        assert stolen.status_code == 401
        assert "sign in once more" in words(stolen.text)
        assert 'name="password"' in stolen.text
        assert not person.is_in(mallory)
        answer = _answer(client, again.text, code_of(secret, later=1))
        assert answer.status_code == 303
        assert answer.headers["Location"] == "/security"
        assert person.is_in(client)
    with open_client(person.site.daemon) as client:
        asked = person.log_in(client).text
        for hostile in ('"><b>x</b>', "x" * 9000, "\x00"):
            assert _answer(client, asked, codes[0], ticket=hostile).status_code in (400, 401)
            assert "<b>x" not in _answer(client, asked, "nonsense", email=hostile).text
    assert "ticket" not in person.site.daemon.log()


@pytest.mark.parametrize("by", ["code", "password"])
def test_it_is_turned_off_by_a_code_or_the_password(person: Person, by: str) -> None:
    secret, codes = enrol(person)
    for fields, says in (
        ({}, "Type a code, or your password."),
        ({"code": wrong_code_of(secret)}, "This code is wrong"),
        ({"password": "not this one"}, "This is not your present password."),
    ):
        refused = person.visitor.post(f"{FACTOR}/off", fields, page=FACTOR)
        assert refused.status_code == 422
        assert says in words(refused.text)
    given = {"code": codes[0]} if by == "code" else {"code": "", "password": PASSWORD}
    assert "The second factor is off." in words(person.visitor.follow(f"{FACTOR}/off", given, page=FACTOR))
    with open_client(person.site.daemon) as client:
        assert person.log_in(client).status_code == 303
    assert person.audited()[-1] == "second_factor.off"


def test_neither_way_off_can_be_guessed(person: Person) -> None:
    secret, codes = enrol(person)
    for n in range(5):
        fields = {"code": wrong_code_of(secret)} if n % 2 else {"password": "a wrong guess"}
        assert person.visitor.post(f"{FACTOR}/off", fields, page=FACTOR).status_code == 422
    assert person.visitor.post(f"{FACTOR}/off", {"password": PASSWORD}, page=FACTOR).status_code == 429
    refused = person.visitor.post(f"{FACTOR}/off", {"code": codes[0]}, page=FACTOR)
    assert "too many wrong tries" in words(refused.text).lower()
    assert "on since" in words(person.visitor.get("/security"))


def test_a_reset_link_asks_for_the_second_factor_too(person: Person) -> None:
    secret, codes = enrol(person)
    link = link_of(person.site.daemon.json("account", "link", person.email))
    token = link.rpartition("/")[2]
    with open_client(person.site.daemon) as client:
        assert 'name="otp"' in client.get(f"/link/{token}").text
        fields = {"token": token, "password": "another long phrase"}
        refused = client.post("/link", data=fields)
        assert refused.status_code == 401
        assert "Type the code of your second factor too." in words(refused.text)
        assert client.post("/link", data={**fields, "otp": wrong_code_of(secret)}).status_code == 401
        assert client.post("/link", data={**fields, "otp": codes[0]}).status_code == 303
        assert person.is_in(client)


def test_nothing_without_the_forms_token(person: Person) -> None:
    for path in (
        "password",
        "sessions/end-others",
        "second-factor/begin",
        "second-factor/confirm",
        "second-factor/codes",
        "second-factor/off",
    ):
        assert person.visitor.post(f"/security/{path}", {}, token="forged").status_code == 403
        assert person.visitor.client.get(f"/security/{path}").status_code == 405
    assert person.audited() == ["user.password"]


def test_the_reader_sees_only_what_is_theirs(site: Site) -> None:
    page = site.reader.get("/security")
    assert 'href="/security/users"' not in page
    assert READER in page
    for path in ("users", "users/new", "audit"):
        site.reader.get(f"/security/{path}", status=403)


# The picture


def test_the_picture_is_plain_svg() -> None:
    drawn = draw_code("otpauth://totp/hepmaild%3Aann%40example.com?secret=ABC&issuer=hepmaild")
    assert drawn is not None
    tree = ET.fromstring(str(drawn))
    assert {each.tag for each in tree.iter()} == {"svg", "path"}
    assert not any("style" in each.attrib for each in tree.iter())
    assert draw_code("x" * 5000) is None
