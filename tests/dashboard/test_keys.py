# SPDX-License-Identifier: Apache-2.0
"""API keys on their pages, through the real daemon; the doors obey at once."""

from __future__ import annotations

import re
from html import unescape

import pytest

from tests.dashboard.conftest import OTHER, Site
from tests.dashboard.test_pages import alter
from tests.dashboard.visitor import Fields, words
from tests.peers.daemon import SENDER, post

NEW = {"permission": ["smtp", "http", "templates", "own_smtp"]}
MESSAGE = {"to": "joe@example.com", "subject": "Hi", "text": "Hello"}


def secret_of(page: str) -> str:
    found: set[str] = set(re.findall(r"hyd-mail-[A-Za-z0-9]{40}", page))
    assert len(found) == 1, words(page)[:500]
    return found.pop()


def mint(site: Site, name: str, **fields: str | list[str]) -> tuple[str, str]:
    """A new key: its id and its secret."""
    response = site.owner.post("/keys", {**NEW, "name": name, **fields}, page="/keys/new")
    assert response.status_code == 200, words(response.text)
    key_id = re.search(r'href="/keys/([0-9a-f-]{36})"', response.text)
    assert key_id is not None
    return key_id[1], secret_of(response.text)


def audit_actions(site: Site) -> list[str]:
    return [row["action"] for row in site.daemon.json("audit", "list", "owner@example.com")]


def test_a_key_is_shown_once_and_works(site: Site) -> None:
    response = site.owner.post("/keys", {**NEW, "name": "shop"}, page="/keys/new")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    secret = secret_of(response.text)
    for tool in ("curl", "swaks", "nodemailer"):
        assert tool in response.text
    assert "data-leave" in response.text
    assert post(site.daemon, MESSAGE, secret)[0] == 200
    for path in ("/keys", "/", "/credits"):
        assert secret not in site.owner.get(path)
    assert secret not in site.daemon.log()
    assert "…" + secret[-5:] in words(site.owner.get("/keys"))
    # The same form again makes no second one, and what was typed stays.
    again = site.owner.post("/keys", {**NEW, "name": "shop", "expires": "2199-01-01"}, page="/keys/new")
    assert again.status_code == 422
    assert "has a key named" in words(again.text)
    assert 'value="2199-01-01"' in again.text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": ""}, "Give the key a name"),
        ({"name": "x" * 101}, "Give the key a name"),
        ({"permission": []}, "Choose one thing at least"),
        ({"addresses": "192.0.2.1\nnonsense"}, "'nonsense' is no IP address"),
        ({"addresses": "192.0.2.1/24"}, "host bits are set"),
        ({"expires": "tomorrow"}, "is not a date"),
        ({"expires": "2020-01-01"}, "lies in the past"),
        ({"sender": ["nobody@elsewhere.example"]}, "no sender of the account"),
    ],
)
def test_what_is_wrong_is_said_and_what_was_typed_stays(site: Site, fields: dict[str, str], says: str) -> None:
    typed = {**NEW, "name": "typed", "addresses": "2001:db8::/32", **fields}
    response = site.owner.post("/keys", typed, page="/keys/new")
    assert response.status_code == 422
    assert says in words(response.text)
    if "addresses" not in fields:
        assert "2001:db8::/32</textarea>" in response.text
    assert "typed" not in words(site.owner.get("/keys"))


def test_restrictions_are_obeyed_at_once(site: Site) -> None:
    key_id, secret = mint(site, "restricted")
    path = f"/keys/{key_id}"
    assert post(site.daemon, MESSAGE, secret)[0] == 200
    changed = {"name": "renamed", "permission": ["smtp"], "sender": [SENDER], "expires": "2199-12-31"}
    page = words(site.owner.follow(path, changed, page=path))
    assert "Saved." in page
    assert "renamed" in page
    status, body, _ = post(site.daemon, MESSAGE, secret)
    assert (status, body["code"]) == (403, "CHANNEL_NOT_ALLOWED")
    assert '<input type="checkbox" name="permission" value="http">' in site.owner.get(path)
    site.owner.follow(path, {**NEW, "name": "renamed", "addresses": "192.0.2.0/24"}, page=path)
    status, body, _ = post(site.daemon, MESSAGE, secret)
    assert (status, body["code"]) == (403, "IP_NOT_ALLOWED")
    site.owner.follow(path, {**NEW, "name": "renamed"}, page=path)
    assert post(site.daemon, MESSAGE, secret)[0] == 200
    assert audit_actions(site).count("key.change") >= 3


def test_disable_enable_rotate_delete(site: Site) -> None:
    key_id, secret = mint(site, "a life")
    path = f"/keys/{key_id}"
    assert "Disabled." in words(site.owner.follow(f"{path}/disable", page=path))
    assert post(site.daemon, MESSAGE, secret)[1]["code"] == "KEY_DISABLED"
    site.owner.follow(f"{path}/enable", page=path)
    assert post(site.daemon, MESSAGE, secret)[0] == 200

    rotated = site.owner.post(f"{path}/rotate", {"last": secret[-5:]}, page=path)
    fresh = secret_of(rotated.text)
    assert fresh != secret
    assert post(site.daemon, MESSAGE, secret)[0] == 401
    assert post(site.daemon, MESSAGE, fresh)[0] == 200
    # A reload of that page sends the form again: nothing more happens.
    assert "Nothing was done" in words(site.owner.follow(f"{path}/rotate", {"last": secret[-5:]}, page=path))
    assert post(site.daemon, MESSAGE, fresh)[0] == 200

    wrong = site.owner.post(f"{path}/delete", {"confirm": "a lief"}, page=path)
    assert wrong.status_code == 422
    assert "Nothing was deleted" in words(wrong.text)
    assert post(site.daemon, MESSAGE, fresh)[0] == 200
    assert "is deleted" in words(site.owner.follow(f"{path}/delete", {"confirm": "a life"}, page=path))
    assert post(site.daemon, MESSAGE, fresh)[0] == 401
    site.owner.get(path, status=404)
    wanted = {"key.mint", "key.disable", "key.enable", "key.rotate", "key.delete"}
    assert wanted <= set(audit_actions(site))


def test_the_page_says_how_it_is_used(site: Site) -> None:
    key_id, secret = mint(site, "used")
    for _ in range(3):
        assert post(site.daemon, MESSAGE, secret)[0] == 200
    page = words(site.owner.get(f"/keys/{key_id}"))
    assert "3 messages" in page
    assert "3 of 120 calls" in page


def test_a_chaos_key_is_marked_wherever_it_shows(site: Site) -> None:
    wrong = site.owner.post("/keys", {**NEW, "name": "trouble", "chaos": "fire"}, page="/keys/new")
    assert wrong.status_code == 422
    key_id, secret = mint(site, "trouble", chaos="5xx")
    status, answer, _ = post(site.daemon, {**MESSAGE, "subject": "chaotic"}, secret)
    assert (status, answer["code"]) == (502, "RELAY_FAILED")
    assert "chaos: 5xx" in words(site.owner.get("/keys"))
    path = f"/keys/{key_id}"
    assert "nothing leaves, nothing is charged" in words(site.owner.get(path))
    logs = site.owner.get("/logs?q=chaotic")
    assert 'title="Sent with a chaos key' in logs
    message = re.search(r'href="/logs/([0-9a-f]{16})"', logs)
    assert message is not None
    page = words(site.owner.get(f"/logs/{message[1]}"))
    assert "chaos: 5xx" in page
    assert "nothing was paid" in page
    assert "the credit was refunded" not in page
    # Another kind, the same key; an ordinary one never becomes one.
    site.owner.follow(path, {**NEW, "name": "trouble", "chaos": "greylist"}, page=path)
    assert post(site.daemon, MESSAGE, secret)[0] == 202
    ordinary, secret = mint(site, "no trouble")
    refused = site.owner.post(f"/keys/{ordinary}", {**NEW, "name": "x", "chaos": "5xx"}, page=f"/keys/{ordinary}")
    assert refused.status_code == 422
    assert post(site.daemon, MESSAGE, secret)[0] == 200


def test_no_more_than_the_plan_allows(site: Site) -> None:
    made: list[str] = []
    while "/keys/new" in site.other.get("/keys").partition("<main")[2]:
        response = site.other.post("/keys", {**NEW, "name": f"k{len(made)}"}, page="/keys/new")
        made.append(secret_of(response.text))
    assert len(made) == 15
    assert "15 of 15" in words(site.other.get("/keys"))
    refused = site.other.post("/keys", {**NEW, "name": "one more"}, page="/keys/new")
    assert refused.status_code == 422
    assert "as many as its plan allows" in words(refused.text)


def test_others_cannot(site: Site) -> None:
    key_id, secret = mint(site, "mine alone")
    path = f"/keys/{key_id}"
    posts: dict[str, Fields] = {
        path: {**NEW, "name": "stolen"},
        f"{path}/rotate": {"last": secret[-5:]},
        f"{path}/disable": {},
        f"{path}/enable": {},
        f"{path}/delete": {"confirm": "mine alone"},
    }
    site.other.get(path, status=404)
    for action, fields in posts.items():
        assert site.other.post(action, fields, page="/keys").status_code == 404  # of another account
        assert site.reader.post(action, fields, page="/keys").status_code == 403  # may only look
        assert site.owner.post(action, fields, token="forged").status_code == 403
    assert site.reader.post("/keys", {**NEW, "name": "no"}, page="/keys").status_code == 403
    site.reader.get("/keys/new", status=403)
    read = site.reader.get(path)
    assert f'action="{path}' not in read
    assert post(site.daemon, MESSAGE, secret)[0] == 200


def test_names_from_outside_stay_text(site: Site) -> None:
    name = "<script>alert(1)</script>{{ 7 * 7 }}"
    key_id, _ = mint(site, name)
    for path in ("/keys", f"/keys/{key_id}", "/"):
        page = site.owner.get(path)
        assert "<script>alert" not in page
        assert "49" not in words(page).partition("alert(1)")[2][:20]
    assert name in words(site.owner.get(f"/keys/{key_id}"))


def test_many_keys_come_a_page_at_a_time(site: Site) -> None:
    """2,000 of them were a page of 1.2 MB."""
    account_id = site.daemon.json("account", "show", OTHER)["id"]
    octets = "BLOB" if site.daemon.settings["database"]["url"].startswith("sqlite") else "BYTEA"
    alter(
        site,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250) "
        "INSERT INTO api_key (id, account_id, name, secret_hash, last_five, status, created_at_us) "
        f"SELECT 'many-' || i, '{account_id}', 'Many ' || i, CAST('hash ' || i AS {octets}), '1aAbB', 'active', i "
        "FROM n",
    )
    try:
        path, seen = "/keys?q=many", []
        while path:
            page = site.other.get(path)
            seen.append(re.findall(r'data-id="many-(\d+)"', page))
            assert len(page) < 150_000
            further = re.search(r'rel="next" href="(/keys\?[^"]*)"', page)
            path = unescape(further[1]) if further else ""
        assert [len(rows) for rows in seen] == [100, 100, 50]
        assert [int(n) for rows in seen for n in rows] == list(range(1, 251))
        assert re.findall(r'data-id="many-(\d+)"', site.other.get("/keys?q=many+24")) == [
            "24",
            *map(str, range(240, 250)),
        ]
        for path in ("/keys", "/keys?q=1aAbB"):
            assert len(re.findall("<tr data-line", site.other.get(path))) == 100
        assert "No key has this in its name" in words(site.other.get("/keys?q=nothing"))
        assert re.findall(r'data-id="many-(\d+)"', site.other.get("/keys?q=many&behind=gone")) == list(
            map(str, range(1, 101))
        )
    finally:
        alter(site, f"DELETE FROM api_key WHERE account_id = '{account_id}' AND id LIKE 'many-%'")
    assert '<form method="get"' not in site.other.get("/keys")
