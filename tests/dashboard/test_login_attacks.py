# SPDX-License-Identifier: Apache-2.0
"""Sessions that are planted, tokens that are forged, refresh tokens that are stolen, streams of others' mail."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
import trio

from tests.dashboard.ground import ACCOUNT, Ground, open_ground
from tests.dashboard.test_live import look, refusal_of
from tests.dashboard.visitor import PASSWORD, csrf_of, open_client
from tests.peers.daemon import post

ACCESS, REFRESH, VISITOR = "__Host-hepmaild-access", "__Host-hepmaild-refresh", "__Host-hepmaild-visitor"


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with open_ground("sqlite:///hepmaild.db") as opened:
        yield opened


def sign_in_at(client: httpx.Client) -> httpx.Response:
    fields = {"csrf": csrf_of(client.get("/sign-in").text), "email": ACCOUNT, "password": PASSWORD}
    return client.post("/sign-in", data=fields)


def test_a_planted_session_is_not_taken_over(ground: Ground) -> None:
    """Whatever cookies a browser was given before, signing in gives it others, which nobody else knows."""
    with open_client(ground.daemon) as mallory, open_client(ground.daemon) as victim:
        csrf_of(mallory.get("/sign-in").text)
        planted = {
            ACCESS: ground.other.client.cookies[ACCESS],
            REFRESH: ground.other.client.cookies[REFRESH],
            VISITOR: mallory.cookies[VISITOR],
        }
        victim.cookies.set(VISITOR, planted[VISITOR])
        answer = sign_in_at(victim)
        assert answer.status_code == 303
        set_cookies = answer.headers.get_list("Set-Cookie")
        for name in (ACCESS, REFRESH):
            (made,) = [line for line in set_cookies if line.startswith(f"{name}=")]
            for mark in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
                assert mark in made
            assert "Domain" not in made
            assert victim.cookies[name] != planted[name]
        assert ACCOUNT in victim.get("/security").text
        # What was planted opens nothing of the victim's.
        mallory.cookies.set(ACCESS, planted[ACCESS])
        assert ACCOUNT not in mallory.get("/security").text
        # A form's token of the planted visitor is worth nothing in the session that came of it.
        with open_client(ground.daemon, cookies={VISITOR: planted[VISITOR]}) as again:
            token = csrf_of(again.get("/sign-in").text)
        assert victim.post("/sign-out", data={"csrf": token}).status_code == 403


def test_a_session_planted_whole_ends_with_the_sign_in(ground: Ground) -> None:
    """A browser that mallory had signed in as himself: whoever signs in there is not in his session, and it is over."""
    with open_client(ground.daemon) as victim:
        assert sign_in_at(victim).status_code == 303
        former = dict(victim.cookies)
        page = victim.get("/security").text
        with open_client(ground.daemon) as fresh:
            fresh_page = fresh.get("/sign-in")
            fields = {"csrf": csrf_of(fresh_page.text), "email": ACCOUNT, "password": PASSWORD}
            cookies = {**former, VISITOR: fresh.cookies[VISITOR]}
            answer = httpx.post(f"{fresh.base_url}/sign-in", data=fields, cookies=cookies, verify=False, timeout=60)
            assert answer.status_code == 303
        assert victim.get("/security").status_code == 303, "the former session lives"
        assert victim.post("/sign-out", data={"csrf": csrf_of(page)}).status_code == 303


def test_a_visitor_who_is_called_as_a_session_gets_no_token_for_its_forms(ground: Ground) -> None:
    """The id of a session is no secret: who manages an account's users sees theirs."""
    session_id = jwt.decode(ground.victim.client.cookies[ACCESS], options={"verify_signature": False})["sid"]
    with open_client(ground.daemon, cookies={VISITOR: session_id}) as mallory:
        page = mallory.get("/sign-in")
    token = csrf_of(page.text)
    answer = ground.victim.post("/suppressions", {"address": "forged@example.net"}, token=token)
    assert answer.status_code == 403
    assert "forged@example.net" not in ground.victim.get("/suppressions")
    assert page.cookies[VISITOR] != session_id, "no name that we gave"


def forgeries(token: str) -> dict[str, str]:
    """Of a good access token, by what is wrong with it.  More of them: tests/people/test_tokens."""
    head, body, signature = token.split(".")

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def read(text: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=="))
        return found

    header, claims = read(head), read(body)
    return {
        "none": f"{part({**header, 'alg': 'none'})}.{body}.",
        "HS256": f"{part({**header, 'alg': 'HS256'})}.{body}.{signature}",
        "owner": f"{head}.{part({**claims, 'scope': ['owner', 'operator']})}.{signature}",
        "somebody else": f"{head}.{part({**claims, 'id': '0' * 36})}.{signature}",
        "longer": f"{head}.{part({**claims, 'exp': claims['exp'] + 900})}.{signature}",
        "kid is a path": f"{part({**header, 'kid': '../../../dev/null'})}.{body}.{signature}",
        "kid is SQL": f"{part({**header, 'kid': chr(39) + ' OR 1=1 --'})}.{body}.{signature}",
        "jku": f"{part({**header, 'jku': 'https://evil.example/keys'})}.{body}.{signature}",
        "cut": f"{head}.{body}",
    }


def test_forged_tokens_open_no_door(ground: Ground) -> None:
    good = ground.reader.client.cookies[ACCESS]
    with open_client(ground.daemon) as client:
        for what, token in forgeries(good).items():
            bearer = {"Authorization": f"Bearer {token}"}
            for path in ("/oauth/me", "/oauth/validate"):
                answer = client.get(path, headers=bearer)
                assert (answer.status_code, answer.json()["code"]) == (401, 40101), what
            assert post(ground.daemon, {}, token)[0] == 401, what
            assert client.get("/logs", headers={"Cookie": f"{ACCESS}={token}"}).status_code == 303, what
        assert client.get("/oauth/me", headers={"Authorization": f"Bearer {good}"}).status_code == 200


def test_a_stolen_refresh_token_ends_the_family(ground: Ground) -> None:
    """Over HTTP, with a program's: whoever comes second with a used one ends the session for both."""
    basic = {"Authorization": "Basic " + base64.b64encode(f"{ACCOUNT}:{PASSWORD}".encode()).decode()}
    with open_client(ground.daemon) as client:
        first = client.post("/oauth/token?grant_type=password", headers=basic).json()

        def refresh(token: str) -> httpx.Response:
            return client.post("/oauth/token?grant_type=refresh_token", json={"refresh_token": token})

        second = refresh(first["refresh_token"]).json()
        stolen = refresh(first["refresh_token"])
        assert (stolen.status_code, stolen.json()["code"]) == (403, 40106)
        assert refresh(second["refresh_token"]).status_code == 403
        for tokens in (first, second):
            bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
            assert client.get("/oauth/validate", headers=bearer).status_code == 401
        # The browser of the same person is another session.
        assert ground.victim.client.get("/security").status_code == 200


async def test_nobody_follows_another_accounts_message(ground: Ground) -> None:
    message_id = ground.values["message_id"]
    for query in (f"message={message_id}&since=0", f"q=id:{message_id}&since=0", "since=0"):
        async with look(ground.daemon, ground.other, query) as socket:
            status, answer, _ = await trio.to_thread.run_sync(
                post, ground.daemon, {"to": "sesame@example.net", "text": "x"}, ground.key
            )
            assert status in (200, 202), answer
            with trio.move_on_after(1.5):
                while True:
                    frame = json.loads(await socket.get_message())
                    assert set(frame) <= {"seq", "hello", "resync", "beat"}, frame


async def test_no_stream_for_pages_of_others(ground: Ground) -> None:
    port = ground.daemon.ports["https"]
    for origin in (
        "https://evil.example",
        f"http://127.0.0.1:{port}",
        f"https://127.0.0.1:{port}.evil.example",
        f"https://evil.example@127.0.0.1:{port}",
        f"https://127.0.0.1:{port + 1}",
        "null",
        "",
    ):
        assert await refusal_of(ground.daemon, ground.victim, headers={"Origin": origin}) == 403, origin
    forged = forgeries(ground.victim.client.cookies[ACCESS])
    for what in ("none", "longer"):
        assert await refusal_of(ground.daemon, None, headers={"Cookie": f"{ACCESS}={forged[what]}"}) == 401, what
