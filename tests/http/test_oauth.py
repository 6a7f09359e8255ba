# SPDX-License-Identifier: Apache-2.0
"""`/oauth` as programs meet it, over TLS: every row of login-api.md, with the published examples' shapes."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from hepmaild import totp
from hepmaild.config import HttpSettings
from hepmaild.errors import StoreUnavailable
from hepmaild.storage import accounts, users
from hepmaild.storage.store import Store
from tests.http.door import KEY, Running, open_door
from tests.people.conftest import (
    ANN,
    MINUTE_US,
    PASSWORD,
    World,
    database_url,
    open_world,
    opener,
)
from tests.storage.conftest import Opener

__all__ = ["database_url", "opener"]

GRANT = "/oauth/token?grant_type=password"
REFRESH = "/oauth/token?grant_type=refresh_token"
OTHER = {"X-Forwarded-For": "198.51.100.9"}


class Site:
    """A door with people behind it, and a client."""

    def __init__(self, door: Running, world: World, client: httpx.AsyncClient) -> None:
        self.door = door
        self.world = world
        self.client = client

    async def grant(self, email: str = ANN, password: str = PASSWORD, **headers: str) -> httpx.Response:
        return await self.client.post(GRANT, headers={**basic(f"{email}:{password}"), **headers})

    async def tokens(self) -> dict[str, Any]:
        answer = await self.grant()
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def refresh(self, token: Any) -> httpx.Response:
        return await self.client.post(REFRESH, json={"refresh_token": token})

    async def revoke(self, access: str, token: Any) -> httpx.Response:
        return await self.client.post("/oauth/revoke", headers=bearer(access), json={"refresh_token": token})

    async def holds(self, access: str) -> bool:
        answer = await self.client.get("/oauth/validate", headers=bearer(access))
        if answer.status_code != 200:
            refused(answer, 401, 40101)
        return answer.status_code == 200


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refused(answer: httpx.Response, status: int, code: int) -> str:
    """The message of a refusal, which is `{"code", "message"}` and nothing else."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert set(answer.json()) == {"code", "message"}
    assert_headers(answer)
    return str(answer.json()["message"])


def assert_headers(answer: httpx.Response) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    assert "set-cookie" not in answer.headers


@asynccontextmanager
async def open_site(opener: Opener, folder: Path, **options: Any) -> AsyncIterator[Site]:
    async with (
        open_world(opener, folder) as world,
        open_door(folder, plain=True, people=world.people, proxies=("127.0.0.0/8", "::1"), **options) as door,
        door.client() as client,
    ):
        yield Site(door, world, client)


@pytest.fixture
async def site(opener: Opener, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(opener, tmp_path) as opened:
        yield opened


# Token sets


async def test_login_as_published(site: Site) -> None:
    answer = await site.grant()
    assert answer.status_code == 200
    assert_headers(answer)
    tokens = answer.json()
    assert set(tokens) == {"token_type", "access_token", "expires_at", "scope", "refresh_token"}
    assert tokens["token_type"] == "bearer"
    assert tokens["scope"] == ["owner"]
    assert len(tokens["refresh_token"]) == 128
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert {"iss", "sub", "id", "account_id", "name", "scope", "is_account_verified", "iat", "exp", "jti"} <= set(
        claims
    )
    assert claims["sub"] == ANN
    assert claims["exp"] - claims["iat"] <= 15 * 60
    assert tokens["expires_at"] == claims["exp"] * 1000
    assert isinstance(tokens["expires_at"], int)


async def test_refresh_as_published(site: Site) -> None:
    first = await site.tokens()
    answer = await site.refresh(first["refresh_token"])
    assert answer.status_code == 200
    assert_headers(answer)
    second = answer.json()
    assert set(second) == set(first)
    assert second["refresh_token"] != first["refresh_token"]
    assert await site.holds(second["access_token"])
    assert refused(await site.refresh(first["refresh_token"]), 403, 40106) == "Refresh token is invalid"
    assert not await site.holds(second["access_token"])
    refused(await site.refresh(second["refresh_token"]), 403, 40106)


async def test_wrong_password_as_published(site: Site) -> None:
    for email, password in ((ANN, "wrong"), ("nobody@example.com", PASSWORD)):
        answer = await site.grant(email, password)
        assert refused(answer, 403, 40102) == "Username and password are incorrect"
        assert answer.content == b'{"code":40102,"message":"Username and password are incorrect"}'


async def test_revoke_as_published(site: Site) -> None:
    tokens = await site.tokens()
    refused(await site.revoke(tokens["access_token"], "nonsense"), 401, 40106)
    answer = await site.revoke(tokens["access_token"], tokens["refresh_token"])
    assert (answer.status_code, answer.json()) == (200, {})
    assert_headers(answer)
    assert not await site.holds(tokens["access_token"])
    refused(await site.revoke(tokens["access_token"], tokens["refresh_token"]), 401, 40101)
    refused(await site.refresh(tokens["refresh_token"]), 403, 40106)


async def test_me_as_published(site: Site) -> None:
    tokens = await site.tokens()
    answer = await site.client.get("/oauth/me", headers=bearer(tokens["access_token"]))
    assert answer.status_code == 200
    assert_headers(answer)
    me = answer.json()
    now_ms = site.world.clock.us // 1000
    assert me == {
        "id": site.world.ids[ANN],
        "account_id": "account-1",
        "email_address": ANN,
        "first_name": "",
        "surname": "",
        "gravatar_url": "",
        "is_owner": True,
        "is_verified": False,
        "created_at_utc": now_ms,
        "modified_at_utc": now_ms,
    }
    assert str(uuid.UUID(me["id"])) == me["id"]


async def test_validate(site: Site) -> None:
    tokens = await site.tokens()
    answer = await site.client.get("/oauth/validate", headers=bearer(tokens["access_token"]))
    assert (answer.status_code, answer.json()) == (200, {})
    assert_headers(answer)
    site.world.clock.us += 15 * MINUTE_US
    assert not await site.holds(tokens["access_token"])


async def test_a_picture_at_a_third_party_only_if_the_operator_wants_it(opener: Opener, tmp_path: Path) -> None:
    settings = HttpSettings(listen=("127.0.0.1:0",), gravatar=True)
    async with (
        open_world(opener, tmp_path) as world,
        open_door(tmp_path, people=world.people, settings=settings) as door,
        door.client() as client,
    ):
        tokens = (await client.post(GRANT, headers=basic(f"{ANN}:{PASSWORD}"))).json()
        me = (await client.get("/oauth/me", headers=bearer(tokens["access_token"]))).json()
    assert me["gravatar_url"] == "https://gravatar.com/avatar/" + hashlib.sha256(ANN.encode()).hexdigest()


# Sessions


async def test_a_newer_grant_ends_the_earlier_one(site: Site) -> None:
    first = await site.tokens()
    second = await site.tokens()
    assert not await site.holds(first["access_token"])
    refused(await site.refresh(first["refresh_token"]), 403, 40106)
    assert await site.holds(second["access_token"])


async def test_password_change_and_suspension_count_at_once(site: Site) -> None:
    tokens = await site.tokens()
    world = site.world
    kept = (await world.store.read(users.find, ANN)).password_hash
    await world.store.write(accounts.set_password, ANN, kept or "", world.clock.us)
    assert not await site.holds(tokens["access_token"])
    tokens = await site.tokens()
    await world.store.write(accounts.set_status, ANN, "suspended", world.clock.us)
    assert not await site.holds(tokens["access_token"])
    refused(await site.refresh(tokens["refresh_token"]), 403, 40106)
    refused(await site.grant(), 403, 40302)


async def test_revoking_from_another_session_of_the_same_user(site: Site) -> None:
    program = await site.tokens()
    browser = await site.world.tokens(kind="browser")
    assert (await site.revoke(browser.access_token, program["refresh_token"])).status_code == 200
    assert not await site.holds(program["access_token"])
    assert await site.holds(browser.access_token)


# Credentials


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b":" + PASSWORD.encode()).decode(),
        "Basic " + base64.b64encode(f"{KEY}:".encode()).decode(),
        f"Bearer {KEY}",
        "Digest username=ann",
        "Basic " + base64.b64encode(f"{ANN}:{PASSWORD}".encode()).decode() + " x",
        "Basic " + base64.b64encode(b"x" * 15_000).decode(),
    ],
)
async def test_what_is_no_login(site: Site, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    refused(await site.client.post(GRANT, headers=headers), 403, 40102)


async def test_passwords_with_colons_and_umlauts(site: Site) -> None:
    world = site.world
    viewer = await world.viewer()
    password = "a:b:ü 😀 long"
    await world.people.change_password(viewer, PASSWORD, password, ip="192.0.2.1", agent="")
    assert (await site.grant(ANN, password)).status_code == 200
    assert (await site.grant(ANN, "a:b:u\u0308 😀 long")).status_code == 200, "composed otherwise, the same characters"


@pytest.mark.parametrize("path", ["/oauth/me", "/oauth/validate"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer x", f"Bearer {KEY}", "Bearer " + "x" * 20_000, "Basic YTpi", "Token x"],
)
async def test_what_is_no_access_token(site: Site, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await site.client.get(path, headers=headers)
    refused(answer, 401, 40101)
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_keys_and_cookies_are_worth_nothing_here(site: Site) -> None:
    refused(await site.client.get("/oauth/me", headers=basic(f"{KEY}:")), 401, 40101)
    refused(await site.client.post("/oauth/revoke", headers=bearer(KEY), json={"refresh_token": "x"}), 401, 40101)
    tokens = await site.world.tokens(kind="browser")
    cookie = {"Cookie": f"__Host-hepmaild-access={tokens.access_token}"}
    refused(await site.client.get("/oauth/me", headers=cookie), 401, 40101)


async def test_an_access_token_sends_no_mail(site: Site) -> None:
    tokens = await site.tokens()
    answer = await site.client.post("/api/v1/email/send", headers=bearer(tokens["access_token"]), json={})
    assert answer.status_code == 401
    assert answer.json()["code"] == "INVALID_KEY"


@pytest.mark.parametrize(
    "query",
    ["", "?grant_type=", "?grant_type=client_credentials", "?grant_type=PASSWORD", "?grant_type=password&grant_type=x"],
)
async def test_unknown_grant_types(site: Site, query: str) -> None:
    refused(await site.client.post(f"/oauth/token{query}", headers=basic(f"{ANN}:{PASSWORD}")), 400, 40001)


# Bodies


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, 40002),
        (b"{", 400, 40002),
        (b"[]", 400, 40002),
        (b'"x"', 400, 40002),
        (b"\xff", 400, 40002),
        (b"[" * 10_000, 400, 40002),
        (b'{"refresh_token":"a","refresh_token":"b"}', 400, 40002),
        (b"{}", 403, 40106),
        (b'{"refresh_token": null}', 403, 40106),
        (b'{"refresh_token": 7}', 403, 40106),
        (b'{"refresh_token": ["x"]}', 403, 40106),
        (b'{"refresh_token": ""}', 403, 40106),
        (b'{"refresh_token": "\\ud800"}', 403, 40106),
        (b'{"refresh_token": "\\u0000"}', 403, 40106),
        (b'{"refresh_token": "' + b"x" * 20_000 + b'"}', 413, 41301),
    ],
)
async def test_bodies(site: Site, body: bytes, status: int, code: int) -> None:
    headers = {"Content-Type": "application/json"}
    refused(await site.client.post(REFRESH, headers=headers, content=body), status, code)


async def test_other_media_types(site: Site) -> None:
    tokens = await site.tokens()
    answer = await site.client.post(REFRESH, data={"refresh_token": tokens["refresh_token"]})
    refused(answer, 415, 41501)
    assert (await site.refresh(tokens["refresh_token"])).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", GRANT, 405, 40501),
        ("PUT", GRANT, 405, 40501),
        ("OPTIONS", GRANT, 405, 40501),
        ("GET", "/oauth/revoke", 405, 40501),
        ("POST", "/oauth/me", 405, 40501),
        ("DELETE", "/oauth/validate", 405, 40501),
        ("GET", "/oauth/", 404, 40401),
        ("POST", "/oauth/token/", 404, 40401),
        ("GET", "/oauth/authorize", 404, 40401),
    ],
)
async def test_methods_and_paths(site: Site, method: str, path: str, status: int, code: int) -> None:
    refused(await site.client.request(method, path), status, code)


async def test_plain_http_is_refused_before_anything_is_looked_at(site: Site) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.door.plain_port}") as client:
        for method, path in (("POST", GRANT), ("POST", REFRESH), ("POST", "/oauth/revoke"), ("GET", "/oauth/me")):
            refused(await client.request(method, path, headers=basic(f"{ANN}:{PASSWORD}")), 403, 40301)


# Limits


async def test_too_many_tries(site: Site) -> None:
    for _ in range(5):
        refused(await site.grant(ANN, "wrong", **OTHER), 403, 40102)
    for password in ("wrong", PASSWORD):
        answer = await site.grant(ANN, password, **OTHER)
        refused(answer, 429, 42901)
        assert answer.headers["retry-after"] == "900"
    assert (await site.grant()).status_code == 200
    site.world.clock.us += 15 * MINUTE_US
    assert (await site.grant(ANN, PASSWORD, **OTHER)).status_code == 200


async def test_too_many_failed_refreshes(site: Site) -> None:
    tokens = await site.tokens()
    for n in range(20):
        refused(await site.refresh(f"{n}"), 403, 40106)
    answer = await site.refresh("x")
    refused(answer, 429, 42901)
    assert answer.headers["retry-after"] == "900"
    refused(await site.grant(), 429, 42901)
    refused(await site.refresh(tokens["refresh_token"]), 429, 42901)
    site.world.clock.us += 15 * MINUTE_US
    assert (await site.refresh(tokens["refresh_token"])).status_code == 200


async def test_a_browser_stays_signed_in_whatever_its_neighbours_try(site: Site) -> None:
    tokens = await site.world.tokens(kind="browser")
    for n in range(21):
        await site.refresh(f"{n}")
    assert (await site.refresh(tokens.refresh_token)).status_code == 200


# The second factor


async def test_the_second_factor(site: Site) -> None:
    secret, codes = await site.world.enrol()
    refused(await site.grant(), 401, 40103)
    refused(await site.grant(**{"X-OTP": "abcdef"}), 401, 40103)
    refused(await site.grant(**{"X-OTP": ""}), 401, 40103)
    refused(await site.grant(ANN, "wrong", **{"X-OTP": codes[0]}), 403, 40102)
    code = totp.code(secret, totp.step_of(site.world.clock.us) + 1)
    assert (await site.grant(**{"X-OTP": code})).status_code == 200
    refused(await site.grant(**{"X-OTP": code}), 401, 40103)
    assert (await site.grant(**{"X-OTP": codes[0]})).status_code == 200


# Trouble, and what is told about it


async def test_a_store_that_does_not_answer(site: Site) -> None:
    class Broken(Store):
        async def read(self, *_: Any, **__: Any) -> Any:
            raise StoreUnavailable("down")

        write = glance = read

    tokens = await site.tokens()
    whole = site.world.store.__class__
    site.world.store.__class__ = Broken
    for answer in (await site.grant(), await site.refresh("x"), await site.revoke(tokens["access_token"], "x")):
        refused(answer, 503, 50301)
        assert answer.headers["retry-after"] == "5"
    refused(await site.client.get("/oauth/me", headers=bearer(tokens["access_token"])), 503, 50301)
    site.world.store.__class__ = whole
    assert await site.holds(tokens["access_token"])


async def test_nothing_secret_is_logged(site: Site, log_events: Any) -> None:
    tokens = await site.tokens()
    await site.grant(ANN, "a wrong secret")
    await site.refresh(tokens["refresh_token"])
    await site.client.get("/link/" + "s3cret" * 7)
    await site.client.get("/mail/link/" + "s3cret" * 7)
    await site.refresh(tokens["refresh_token"])
    logged = json.dumps(log_events, default=str)
    for secret in (PASSWORD, "wrong secret", tokens["access_token"], tokens["refresh_token"], "s3cret"):
        assert secret not in logged
    paths = [event["path"] for event in log_events.named("http_request")]
    assert {"/link/…", "/mail/link/…"} <= set(paths)


@pytest.mark.parametrize("http2", [False, True])
async def test_by_both_protocols(site: Site, http2: bool) -> None:
    async with site.door.client(http2=http2) as client:
        answer = await client.post(GRANT, headers={**basic(f"{ANN}:{PASSWORD}"), "X-Request-Id": "mine-1"})
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "mine-1"
