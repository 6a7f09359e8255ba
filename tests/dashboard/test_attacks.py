# SPDX-License-Identifier: Apache-2.0
"""Every address of the daemon, tried by everybody who must not: whatever is added is tried too.

A rule whose parameters nobody can fill fails here (`rules.NoValue`): make such a thing in `ground._things` and name its
id.  One that a reader may use, or that needs no session, is added to the lists below, which is a decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest

from hepmaild.http.app import lasting_tls
from tests.dashboard.ground import MARKS, SUPPRESSED, Ground, open_ground
from tests.dashboard.rules import Rule, every_rule
from tests.dashboard.visitor import PASSWORD, Visitor, csrf_of, words
from tests.peers import postgres

# Parameters that are nobody's.  Every other is an id of somebody's: with another account's there is no such thing.
NOBODYS = {"deed", "kind", "name", "token", "version"}
# Answered to anybody: they carry their own proof, or show nothing.
OPEN = {
    "/api/docs",
    "/api/openapi.json",
    "/healthz",
    "/link",
    "/link/<token>",
    "/readyz",
    "/sign-in",
    "/static/<version>/<name>",
}
# What pages show in frames that run nothing: what others wrote.
FRAMES = {"/logs/<message_id>/html", "/templates/<template_id>/preview", "/templates/preview"}
API = ("/api/", "/oauth/", "/v1/")
# What a user who may only read sees, and may do: with what is theirs, and with what changes nothing.
READER_SEES = {
    "/",
    "/addresses",
    "/credits",
    "/keys",
    "/keys/<key_id>",
    "/live/session",
    "/logs",
    "/logs/<message_id>",
    "/logs/<message_id>/attachments/<int:n>",
    "/logs/<message_id>/html",
    "/logs/<message_id>/raw",
    "/logs/export.<kind>",
    "/security",
    "/security/second-factor",
    "/smtp-servers",
    "/smtp-servers/<server_id>",
    "/suppressions",
    "/templates",
    "/templates/<template_id>",
    "/templates/<template_id>/preview",
    "/templates/<template_id>/revisions/<int:revision>",
    "/templates/preview",
}
READER_MAY = {
    "/addresses/check",
    "/credits/verify",
    "/security/password",
    "/security/second-factor/begin",
    "/security/second-factor/codes",
    "/security/second-factor/confirm",
    "/security/second-factor/off",
    "/security/sessions/end-others",
    "/sign-out",
    "/templates/preview",
}
NO_ENTRY = {403, 404}
# What forms ask for, with the victim's ids where one could stand.
FIELDS = {
    "name": "stolen",
    "permission": "smtp",
    "last": "aaaaa",
    "confirm": "x",
    "email": "mallory@evil.example",
    "scope": "owner",
    "address": SUPPRESSED,
    "days": "5",
    "amount": "1000000",
    "credits": "1000000",
    "plan": "standard",
    "route": "sand",
    "deed": "cancel",
    "old": "not the password",
    "new": "mallory's own password",
    "again": "mallory's own password",
    "domain": "example.com",
    "back": "https://evil.example/",
    "next": "https://evil.example/",
}


@pytest.fixture(scope="session")
def rules(tmp_path_factory: pytest.TempPathFactory) -> list[Rule]:
    return every_rule(tmp_path_factory.mktemp("rules"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with ExitStack() as stack:
        url = "sqlite:///hepmaild.db"
        if request.param == "postgresql":
            url = stack.enter_context(postgres.open_database(request.getfixturevalue("postgres_server")))
        yield stack.enter_context(open_ground(url))


def pages_of(rules: list[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.method == "GET" and not rule.text.startswith(API)]


def changes_of(rules: list[Rule]) -> list[Rule]:
    """What changes something for people, signing out last: it ends what the next one would need."""
    found = [r for r in rules if r.method not in ("GET", "WEBSOCKET") and not r.text.startswith(API)]
    return sorted(found, key=lambda rule: rule.text == "/sign-out")


def fields_of(ground: Ground) -> dict[str, str]:
    return {**FIELDS, **ground.values, "id": ground.values["message_id"]}


def send(visitor: Visitor, rule: Rule, ground: Ground, token: str) -> httpx.Response:
    """The form of a rule with the victim's ids in it, as the attacker's own browser would send it."""
    path = rule.filled(ground.values)
    headers = {"Sec-Fetch-Site": "same-origin"}
    return visitor.client.request(rule.method, path, data={**fields_of(ground), "csrf": token}, headers=headers)


def assert_tells_nothing(rule: Rule, response: httpx.Response) -> None:
    shown = response.text + str(response.headers)
    for mark in MARKS:
        assert mark not in shown, f"{rule} shows {mark}: {words(response.text)[:500]}"


def differences(before: dict[str, list[dict[str, object]]], after: dict[str, list[dict[str, object]]]) -> list[str]:
    return [f"{name}: {before[name]} → {after[name]}" for name in before if before[name] != after[name]]


# Another account's ids


def test_every_rule_can_be_filled(rules: list[Rule], ground: Ground) -> None:
    for rule in rules:
        rule.filled(ground.values)
    known = {name for rule in rules for name in rule.names}
    assert known >= NOBODYS, "the lists here name parameters that no rule has"
    assert {rule.text for rule in rules} >= OPEN | READER_SEES | READER_MAY, "the lists here name rules that are gone"
    assert [rule.text for rule in rules if rule.method == "WEBSOCKET"] == ["/live"], "see the tests of websockets below"


def test_what_is_there_is_seen_by_its_owner(rules: list[Rule], ground: Ground) -> None:
    """Or the sweep below would show nothing: with these very ids the victim gets every page."""
    shown = ""
    for rule in pages_of(rules):
        visitor = ground.operator if rule.text.startswith("/operator/") else ground.victim
        if rule.text not in OPEN:
            response = visitor.client.get(rule.filled(ground.values))
            assert response.status_code in (200, 204), f"{rule}: {response.status_code}"
            shown += response.text
    assert [mark for mark in MARKS if mark not in shown] == []


def test_another_account_sees_nothing(rules: list[Rule], ground: Ground) -> None:
    for rule in pages_of(rules):
        response = ground.other.client.get(rule.filled(ground.values), params=fields_of(ground))
        assert_tells_nothing(rule, response)
        if set(rule.names) - NOBODYS or rule.text.startswith("/operator/"):
            assert response.status_code in NO_ENTRY, f"{rule}: {response.status_code}"


def test_another_account_changes_nothing(rules: list[Rule], ground: Ground) -> None:
    before = ground.rows()
    token = csrf_of(ground.other.get("/security"))
    for rule in changes_of(rules):
        if rule.text == "/sign-out":
            continue
        response = send(ground.other, rule, ground, token)
        assert_tells_nothing(rule, response)
        if set(rule.names) - NOBODYS or rule.text.startswith("/operator/"):
            assert response.status_code in NO_ENTRY, f"{rule}: {response.status_code} {words(response.text)[:300]}"
        assert ground.other.client.get("/live/session").status_code == 204, f"{rule} signed the attacker out"
    assert not differences(before, ground.rows())


def test_an_owner_is_no_operator(rules: list[Rule], ground: Ground) -> None:
    before = ground.rows()
    token = csrf_of(ground.victim.get("/security"))
    of_operators = [rule for rule in rules if rule.text.startswith("/operator")]
    assert len(of_operators) > 15
    for rule in of_operators:
        if rule.method == "GET":
            response = ground.victim.client.get(rule.filled(ground.values))
        else:
            response = send(ground.victim, rule, ground, token)
        assert response.status_code == 404, f"{rule}: {response.status_code}"
        assert "does not allow" not in words(response.text), f"{rule}: tells that there is something"
    assert not differences(before, ground.rows())


def test_a_reader_reads(rules: list[Rule], ground: Ground) -> None:
    before = ground.rows()
    for rule in pages_of(rules):
        status = ground.reader.client.get(rule.filled(ground.values)).status_code
        if rule.text in READER_SEES | OPEN:
            continue
        assert status in NO_ENTRY, f"{rule}: {status}: if that is meant, add it to READER_SEES"
    token = csrf_of(ground.reader.get("/security"))
    for rule in changes_of(rules):
        if rule.text not in READER_MAY | OPEN:
            response = send(ground.reader, rule, ground, token)
            assert response.status_code in NO_ENTRY, f"{rule}: {response.status_code}: see READER_MAY"
    assert not differences(before, ground.rows())


def test_nobody_sees_or_changes_anything(rules: list[Rule], ground: Ground) -> None:
    before = ground.rows()
    for rule in rules:
        if rule.method == "WEBSOCKET" or rule.text in OPEN:
            continue
        response = send(ground.nobody, rule, ground, "")
        assert_tells_nothing(rule, response)
        if rule.text.startswith(API):
            assert response.status_code in (400, 401, 403, 415), f"{rule}: {response.status_code}"
        else:
            assert response.status_code == 303, f"{rule}: {response.status_code}"
            assert urlsplit(response.headers["Location"]).path == "/sign-in"
    assert not differences(before, ground.rows())


# Forged requests


def forgeries(token: str, foreign: str) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """What another site can make a browser send: fields and headers, by what is wrong."""
    own = {"Sec-Fetch-Site": "same-origin"}
    wrong = token[:-9] + ("B" if token[-9] == "A" else "A") + token[-8:]
    return {
        "no token": ({}, own),
        "an empty token": ({"csrf": ""}, own),
        "a wrong token": ({"csrf": wrong}, own),
        "somebody else's token": ({"csrf": foreign}, own),
        "from another site": ({"csrf": token}, {"Sec-Fetch-Site": "cross-site"}),
        "from a neighbour": ({"csrf": token}, {"Sec-Fetch-Site": "same-site"}),
        "by an address that was typed": ({"csrf": token}, {"Sec-Fetch-Site": "none"}),
        "another origin": ({"csrf": token}, {"Origin": "https://evil.example"}),
        "another origin, though it says ours": ({"csrf": token}, {**own, "Origin": "https://evil.example"}),
        "no origin that can be named": ({"csrf": token}, {"Origin": "null"}),
    }


def test_no_change_without_the_forms_token(rules: list[Rule], ground: Ground) -> None:
    before = ground.rows()
    foreign = csrf_of(ground.other.get("/security"))
    for rule in changes_of(rules):
        visitor = ground.operator if rule.text.startswith("/operator") else ground.victim
        token = csrf_of(visitor.get("/security"))
        path = rule.filled(ground.values)
        for what, (fields, headers) in forgeries(token, foreign).items():
            response = visitor.client.request(
                rule.method, path, params={"csrf": token}, data={**fields_of(ground), **fields}, headers=headers
            )
            if rule.text == "/link":
                # The token of the link is what proves it; only where it comes from can be wrong.
                assert response.status_code in (403, 410), f"{rule}, {what}: {response.status_code}"
            else:
                refused = 400 if rule.text == "/sign-in" else 403
                assert response.status_code == refused, f"{rule}, {what}: {response.status_code}"
            assert visitor.client.get("/live/session").status_code == 204, f"{rule}, {what}: signed out"
    assert not differences(before, ground.rows())


def test_the_api_takes_no_cookies(rules: list[Rule], ground: Ground) -> None:
    found = [rule for rule in rules if rule.text.startswith(API) and rule.text not in OPEN]
    assert len(found) >= 5
    for rule in found:
        for body in ({"json": {"to": "x@example.com", "text": "x"}}, {"data": FIELDS}):
            response = ground.victim.client.request(rule.method, rule.filled(ground.values), **body)  # type: ignore[arg-type]
            # 400 and 403: /oauth/token without a grant, or without a password.
            assert response.status_code in (400, 401, 403, 405, 415), f"{rule}: {response.status_code}"
            assert_tells_nothing(rule, response)


def test_nothing_is_changed_by_looking(rules: list[Rule], ground: Ground) -> None:
    before = ground.rows()
    for rule in pages_of(rules):
        visitor = ground.operator if rule.text.startswith("/operator") else ground.victim
        token = csrf_of(visitor.get("/security"))
        visitor.client.get(rule.filled(ground.values), params={**fields_of(ground), "csrf": token})
    for rule in changes_of(rules):
        if rule.text not in {page.text for page in pages_of(rules)}:
            assert ground.victim.client.get(rule.filled(ground.values)).status_code in (404, 405), str(rule)
    assert not differences(before, ground.rows())


# Where a page may lead, and who may frame it


EVIL_PLACES = [
    "https://evil.example/",
    "//evil.example/",
    "///evil.example/",
    "/\\evil.example/",
    "\\\\evil.example/",
    "/\t/evil.example/",
    "/\r\nSet-Cookie: a=b",
    " //evil.example",
    "javascript:alert(1)",
    "data:text/html,x",
    "http:evil.example",
    "/%0d%0aSet-Cookie:a=b",
    "/%2f/evil.example",
    "@evil.example/",
    ".evil.example/",
]
NEXT_LIKE = ("next", "back", "return", "return_to", "redirect", "redirect_uri", "url", "continue", "to", "from")


def leads_away(response: httpx.Response) -> str:
    """Where a redirect leads when it is not to us; "" otherwise."""
    place = response.headers.get("Location", "")
    target = urlsplit(str(response.request.url.join(place))) if place else None
    ours = urlsplit(str(response.request.url)).netloc
    is_ours = target is None or (target.scheme == "https" and target.netloc == ours)
    is_plain = "\\" not in place and not any(ord(ch) < 33 for ch in place) and not place.startswith("//")
    return "" if is_ours and is_plain else place


@pytest.mark.parametrize("place", EVIL_PLACES)
def test_nobody_is_sent_elsewhere(ground: Ground, rules: list[Rule], place: str) -> None:
    query = dict.fromkeys(NEXT_LIKE, place)
    for rule in pages_of(rules):
        for visitor in (ground.nobody, ground.operator):
            response = visitor.client.get(rule.filled(ground.values), params=query)
            assert not leads_away(response), f"{rule}: {leads_away(response)}"
            assert "a=b" not in response.headers.get("Set-Cookie", "")
    response = ground.operator.post("/operator/queue/message", {"id": "0" * 16, "deed": "retry", **query})
    assert not leads_away(response)


def test_signing_in_leads_to_our_own_pages_only(ground: Ground) -> None:
    for place, leads in [*((place, "/") for place in EVIL_PLACES[:7]), ("/logs?q=a", "/logs?q=a")]:
        ground.nobody.client.cookies.clear()
        page = ground.nobody.client.get("/sign-in", params={"next": place})
        fields = {"csrf": csrf_of(page.text), "email": "reader@example.com", "password": PASSWORD, "next": place}
        response = ground.nobody.client.post("/sign-in", data=fields)
        assert (response.status_code, response.headers["Location"]) == (303, leads), place
    ground.nobody.client.cookies.clear()


def test_every_answer_has_the_headers_that_browsers_honour(rules: list[Rule], ground: Ground) -> None:
    seen = 0
    for rule in pages_of(rules):
        for visitor in (ground.operator, ground.victim, ground.nobody):
            response = visitor.client.get(rule.filled(ground.values))
            if rule.text in ("/healthz", "/readyz"):
                continue
            headers = response.headers
            assert headers["X-Content-Type-Options"] == "nosniff", str(rule)
            if not headers.get("Content-Type", "").startswith("text/html"):
                continue
            seen += 1
            policy = headers["Content-Security-Policy"]
            if policy.startswith("sandbox"):
                assert rule.text in FRAMES
                assert "frame-ancestors 'self'" in policy
                assert "script-src" not in policy
                assert headers["X-Frame-Options"] == "SAMEORIGIN"
                continue
            assert "frame-ancestors 'none'" in policy, str(rule)
            assert "default-src 'none'" in policy
            assert "unsafe-" not in policy
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Cache-Control"] == "no-store"
            assert headers["Referrer-Policy"] == "same-origin"
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert "<script>" not in response.text, f"{rule}: inline script"
            assert " style=" not in response.text, f"{rule}: inline style"
            assert " onclick=" not in response.text
    assert seen > 40


def test_browsers_are_told_to_come_by_tls_only(ground: Ground) -> None:
    """Not of a name that is everybody's own, such as localhost: it would hold for whatever else runs there."""
    assert "Strict-Transport-Security" not in ground.nobody.client.get("/sign-in").headers
    assert lasting_tls("https://localhost:8443") == lasting_tls("https://127.0.0.1") == lasting_tls("") == ""
    assert lasting_tls("https://[::1]/") == lasting_tls("http://mail.example") == ""
    assert lasting_tls("https://mail.example") == "max-age=31536000"
