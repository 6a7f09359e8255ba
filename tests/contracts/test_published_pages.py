# SPDX-License-Identifier: Apache-2.0
"""The four published contracts, each by a client that knows its page only: host, key and ids are all that changes.

What a page shows as octets is sent and expected as those octets.
"""

from __future__ import annotations

import base64
import json
import re
import smtplib
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.peers.daemon import ACCOUNT, CommandFailed, Daemon, open_daemon, open_smtp, untrusting_context
from tests.peers.processes import assert_no_traceback
from tests.peers.programs import require
from tests.peers.sink import CaptureSink, capture_sink

PASSWORD = "a long enough pass phrase"
USER = "jack@example.com"
OWN = "you@example.com"


@dataclass(frozen=True, slots=True)
class Site:
    """A daemon as its operator set it up for these clients."""

    daemon: Daemon
    sink: CaptureSink
    key: str
    smtp_id: str

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.daemon.ports['https']}"

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=untrusting_context(), timeout=60, headers=headers)

    def curl(self, *arguments: str) -> tuple[int, bytes]:
        """Status and body."""
        done = subprocess.run(
            ["curl", "--silent", "--insecure", "--write-out", "\n%{http_code}", *arguments],
            capture_output=True,
            timeout=60,
            check=True,
        )
        body, _, status = done.stdout.rpartition(b"\n")
        return int(status), body


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require("curl")
    changes = {
        "sender": [{"address": "noreply@hep.gg", "route": "sink", "default": True}],
        "own_smtp": {"allow_private_addresses": True},
    }
    with capture_sink() as sink, open_daemon(sink_port=sink.port, start=False, changes=changes) as daemon:
        key = daemon.setup()
        daemon.cli("account", "add", USER, "--password-stdin", stdin=f"{PASSWORD}\n")
        options = ("--host", "127.0.0.1", "--port", str(sink.port), "--tls", "none", "--address", OWN)
        server = daemon.json("smtp-server", "add", ACCOUNT, "--name", "mine", *options)
        daemon.start()
        yield Site(daemon, sink, key, server["id"])
        assert_no_traceback(daemon.log())


def told(octets: bytes) -> Any:
    """JSON with the order of its members, and each but once."""
    return json.loads(octets, object_pairs_hook=lambda pairs: tuple(pairs))


# Transactional mail by one key, on two channels

HEP_ANSWER = b"""{
"ok": true,
"data": {
"messageId": "a1b2c3d4e5f6a7b8",
"smtpMessageId": "<...@hep.gg>",
"status": "sent",
"from": "noreply@hep.gg",
"recipients": 1,
"creditsCharged": 1
}
}"""


def test_hep_quickstart(site: Site) -> None:
    """The first message, from the global sender; the answer is the page's but for its ids."""
    body = '{"to": "someone@example.net", "subject": "Hello", "text": "It works."}'
    bearer, json_type = f"Authorization: Bearer {site.key}", "Content-Type: application/json"
    status, octets = site.curl(f"{site.url}/api/v1/email/send", "-H", bearer, "-H", json_type, "-d", body)
    assert status == 200
    message_id = json.loads(octets)["data"]["messageId"]
    assert re.fullmatch(r"[0-9a-f]{16}", message_id)
    shown = re.sub(rb"<[^@]+@hep\.gg>", b"<...@hep.gg>", octets).replace(message_id.encode(), b"a1b2c3d4e5f6a7b8")
    assert told(shown) == told(HEP_ANSWER)
    assert message_id in site.daemon.cli("log", "show", message_id)
    # No status by HTTP, and nobody makes keys by it.
    with site.client(Authorization=f"Bearer {site.key}") as client:
        assert client.get(f"/api/v1/email/{message_id}").status_code == 404
        assert client.post("/api/v1/keys", json={}).status_code == 404


def test_hep_relay(site: Site) -> None:
    """Any user name, the key as the password; the same credits, and the same switch, on both channels."""
    key = site.daemon.mint(name="both")
    before = site.daemon.json("credits", "show", ACCOUNT)["balance"]
    with open_smtp(site.daemon, None) as session:
        session.login("x", key["key"])
        session.sendmail("noreply@hep.gg", ["someone@example.net"], b"Subject: Hello\r\n\r\nIt works.\r\n")
    assert before - site.daemon.json("credits", "show", ACCOUNT)["balance"] == 1
    new = site.daemon.json("key", "rotate", key["id"])["key"]
    with site.client() as client:
        message = {"to": "someone@example.net", "text": "x"}
        for secret, status in ((key["key"], 401), (new, 200)):
            answer = client.post("/api/v1/email/send", json=message, headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == status
        site.daemon.cli("key", "disable", key["id"])
        answer = client.post("/api/v1/email/send", json=message, headers={"Authorization": f"Bearer {new}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "KEY_DISABLED")
    with open_smtp(site.daemon, None) as session, pytest.raises(smtplib.SMTPAuthenticationError):
        session.login("x", new)


# Mail by one's own SMTP server

MAILZENO_CURL = """{
"smtpId": "your_smtp_id",
"from": "you@example.com",
"to": "recipient@example.com",
"subject": "Hello from Mailzeno",
"html": "<h1>Hello World</h1>"
}"""


def test_mailzeno(site: Site) -> None:
    url, json_type = f"{site.url}/v1/emails", "Content-Type: application/json"
    body = MAILZENO_CURL.replace("your_smtp_id", site.smtp_id)
    bearer = f"Authorization: Bearer {site.key}"
    status, octets = site.curl("-X", "POST", url, "-H", bearer, "-H", json_type, "-d", body)
    assert status == 200, octets
    assert re.fullmatch(rb'\{"success":true,"messageId":"<[^@<>"]+@example\.com>"\}', octets)
    entry = site.sink.wait_for(1)[-1]
    assert entry["recipients"] == ["recipient@example.com"]

    with site.client(Authorization=f"Bearer {site.key}") as client:
        empty = client.post("/v1/emails", json={"subject": "x"})
        for name in ("x-request-id", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"):
            assert empty.headers[name]
        assert empty.status_code == 400
        word = {"Idempotency-Key": "once"}
        twins = [
            client.post("/v1/emails", content=body, headers=word | {"Content-Type": "application/json"}) for _ in "ab"
        ]
        assert twins[0].content == twins[1].content
        assert twins[1].headers["idempotency-replayed"] == "true"
    wrong = "Authorization: Bearer mz_api_your_api_key"
    status, octets = site.curl("-X", "POST", url, "-H", wrong, "-H", json_type, "-d", body)
    assert (status, octets) == (401, b'{"error":"Invalid or inactive API key","code":"invalid_api_key"}')


def test_mailzeno_names_what_is_missing(site: Site) -> None:
    """All three fields, for an account without a default server."""
    site.daemon.json("account", "add", "new@example.com", "--credits", "1")
    key = site.daemon.mint(email="new@example.com")["key"]
    with site.client(Authorization=f"Bearer {key}") as client:
        answer = client.post("/v1/emails", json={"subject": "Hello", "html": "<h1>Hello</h1>"})
    assert answer.status_code == 400
    assert answer.content == b'{"error":"Missing required fields: smtpId, from, to","code":"missing_required_fields"}'


# Logging in for tokens

TOKEN_MEMBERS = ["token_type", "access_token", "expires_at", "scope", "refresh_token"]
USER_MEMBERS = [
    "id", "account_id", "email_address", "first_name", "surname", "gravatar_url", "is_owner", "is_verified",
    "created_at_utc", "modified_at_utc",
]  # fmt: skip
BAD_PASSWORD = b'{"code":40102,"message":"Username and password are incorrect"}'
BAD_TOKEN = b'{"code":40106,"message":"Refresh token is invalid"}'


def test_smtpd(site: Site) -> None:
    """Grant, me, refresh, revoke, each as the page has it."""
    with site.client() as client:
        denied = client.post("/oauth/token", params={"grant_type": "password"}, auth=(USER, "wrong"))
        assert (denied.status_code, denied.content) == (403, BAD_PASSWORD)
        tokens = client.post("/oauth/token", params={"grant_type": "password"}, auth=(USER, PASSWORD)).json()
        assert list(tokens) == TOKEN_MEMBERS
        assert (tokens["token_type"], len(tokens["refresh_token"])) == ("bearer", 128)
        claims = json.loads(base64.urlsafe_b64decode(tokens["access_token"].split(".")[1] + "=="))
        assert {"iss", "sub", "id", "account_id", "name", "scope", "is_account_verified", "exp"} <= set(claims)
        assert tokens["expires_at"] == claims["exp"] * 1000

        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        me = client.get("/oauth/me").json()
        assert list(me) == USER_MEMBERS
        assert (me["email_address"], me["is_owner"], me["gravatar_url"]) == (USER, True, "")
        assert uuid.UUID(me["id"]) != uuid.UUID(me["account_id"])

        fresh = client.post("/oauth/token?grant_type=refresh_token", json={"refresh_token": tokens["refresh_token"]})
        assert list(fresh.json()) == TOKEN_MEMBERS
        client.headers["Authorization"] = f"Bearer {fresh.json()['access_token']}"
        denied = client.post("/oauth/revoke", json={"refresh_token": "nonsense"})
        assert (denied.status_code, denied.content) == (401, BAD_TOKEN)
        assert client.post("/oauth/revoke", json={"refresh_token": fresh.json()["refresh_token"]}).status_code == 200
        denied = client.post("/oauth/token?grant_type=refresh_token", json={"refresh_token": "nonsense"})
        assert (denied.status_code, denied.content) == (403, BAD_TOKEN)


def test_smtpd_key_as_user_name(site: Site) -> None:
    """HTTP Basic with a key and no password, where mail is sent; curl's -u as the page shows it."""
    body = '{"to": "someone@example.net", "text": "x"}'
    json_type = "Content-Type: application/json"
    status, octets = site.curl(f"{site.url}/api/v1/email/send", "-u", f"{site.key}:", "-H", json_type, "-d", body)
    assert status == 200, octets


# Managing keys, by people only


def test_elastic_email_keys(site: Site) -> None:
    """15 keys; shown once, then their last five characters; changed without losing what they may; deleted."""
    site.daemon.json("account", "add", "many@example.com", "--credits", "1")
    options = ("--permission", "http", "--from-ip", "192.0.2.0/24")
    keys = [site.daemon.mint(email="many@example.com", name=f"k{n}", options=options) for n in range(15)]
    with pytest.raises(CommandFailed):
        site.daemon.mint(email="many@example.com", name="one more")
    listed = site.daemon.cli("key", "list", "many@example.com", "--json")
    for each in keys:
        assert each["key"] not in listed
        assert each["key"][-5:] in listed
    before = next(row for row in json.loads(listed) if row["id"] == keys[0]["id"])
    secret = site.daemon.json("key", "rotate", keys[0]["id"])["key"]
    assert secret != keys[0]["key"]
    after = next(row for row in site.daemon.json("key", "list", "many@example.com") if row["id"] == keys[0]["id"])
    kept = ("name", "permissions", "addresses")
    assert [before.get(name) for name in kept] == [after.get(name) for name in kept]
    site.daemon.cli("key", "delete", keys[0]["id"])
    assert site.daemon.mint(email="many@example.com", name="one more")
