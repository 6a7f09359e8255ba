# SPDX-License-Identifier: Apache-2.0
"""`POST /v1/emails`: what a good request becomes, and every answer in the form of own-smtp-api.md.

The examples are those of the page that the published service shows.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from hepmaild.errors import ErrorKind, Refusal, StoreUnavailable
from hepmaild.http.own_smtp import NAMESPACE
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import Door, Draft, Kind, Mailbox, Permission, RateState, Recipient, Rejected, Status
from hepmaild.own_servers import OwnServers
from hepmaild.storage.smtp_servers import ServerRow
from tests.http.door import KEY, RECEIPT, Running, open_door

# As the page has them, octet by octet, but for its host, its key and the id of its server.
REQUEST = b"""{
"smtpId": "your_smtp_id",
"from": "you@example.com",
"to": "recipient@example.com",
"subject": "Hello",
"html": "<h1>Hello</h1>"
}"""
CURL = b"""{
"smtpId": "your_smtp_id",
"from": "you@example.com",
"to": "recipient@example.com",
"subject": "Hello from Mailzeno",
"html": "<h1>Hello World</h1>"
}"""
SUCCESS = """{
"success": true,
"messageId": "<unique-message-id@smtp.example.com>"
}"""
MISSING = """{
"error": "Missing required fields: smtpId, from, to",
"code": "missing_required_fields"
}"""
UNAUTHORIZED = """{
"error": "Invalid or inactive API key",
"code": "invalid_api_key"
}"""

SERVER = ServerRow(
    "your_smtp_id",
    "a1",
    "shop",
    "smtp.example.com",
    587,
    "starttls",
    "you@example.com",
    "you@example.com",
    "you@example.com",
    "",
    is_default=False,
    is_paused=False,
)
GOOD: dict[str, Any] = json.loads(REQUEST)


class Servers(OwnServers):
    """The servers of account a1, which a test may change."""

    def __init__(self) -> None:
        self.rows: tuple[ServerRow, ...] = (SERVER,)
        self.fails = False

    async def of_account(self, account_id: str) -> tuple[ServerRow, ...]:
        if self.fails:
            raise StoreUnavailable
        assert account_id == "a1"
        return self.rows


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
async def door(tmp_path: Path, servers: Servers) -> AsyncIterator[Running]:
    async with open_door(tmp_path, plain=True, own_servers=servers) as running:
        yield running


async def post(door: Running, body: bytes | dict[str, Any] = REQUEST, **headers: str) -> httpx.Response:
    sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with door.client() as client:
        return await client.post("/v1/emails", headers=sent, content=content)


def draft_of(door: Running) -> Draft:
    source = door.intake.submissions[-1].source
    assert isinstance(source, Draft)
    return source


@pytest.mark.parametrize("body", [REQUEST, CURL])
async def test_the_examples_of_the_page(door: Running, body: bytes) -> None:
    door.intake.result = replace(RECEIPT, header_message_id="<unique-message-id@smtp.example.com>")
    answer = await post(door, body)
    assert answer.status_code == 200
    assert list(answer.json().items()) == list(json.loads(SUCCESS).items())
    assert {"x-request-id", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(answer.headers)
    assert "retry-after" not in answer.headers
    (submission,) = door.intake.submissions
    assert submission.recipients == (Recipient("recipient@example.com"),)
    assert submission.origin.door is Door.HTTP
    assert submission.fingerprint == hashlib.sha256(NAMESPACE + hashlib.sha256(body).digest()).digest()
    assert draft_of(door).sender == Mailbox("you@example.com")
    assert draft_of(door).subject == json.loads(body)["subject"]
    assert draft_of(door).html == json.loads(body)["html"]
    assert door.intake.needed == [Permission.OWN_SMTP]


async def test_the_errors_of_the_page(door: Running) -> None:
    answer = await post(door, b"{}")
    assert (answer.status_code, list(answer.json().items())) == (400, list(json.loads(MISSING).items()))
    answer = await post(door, Authorization="Bearer mz_api_your_api_key")
    assert (answer.status_code, list(answer.json().items())) == (401, list(json.loads(UNAUTHORIZED).items()))
    assert not door.intake.submissions


async def test_everything_that_may_be_said(door: Running, servers: Servers) -> None:
    servers.rows = (replace(SERVER, from_name="The shop"),)
    body = {
        **GOOD,
        "from": '"Me" <YOU@example.com>',
        "to": ["a@example.com", "b@example.com"],
        "cc": "c@example.com",
        "bcc": ["a@example.com", "d@example.com"],
        "replyTo": "help@example.com",
        "text": "Hello",
        "attachments": [{"filename": "a.txt", "content": base64.b64encode(b"hi").decode()}],
        "headers": {"X-Ignored": "as any unknown field"},
        "fromName": "ignored too",
    }
    assert (await post(door, body, Idempotency_Key="word")).status_code == 200
    draft, submission = draft_of(door), door.intake.submissions[-1]
    assert (draft.sender, draft.from_name) == (Mailbox("you@example.com", "Me"), "Me")
    assert [(r.address, r.kind) for r in submission.recipients] == [
        ("a@example.com", Kind.TO),
        ("b@example.com", Kind.TO),
        ("c@example.com", Kind.CC),
        ("d@example.com", Kind.BCC),
    ]
    assert submission.idempotency_word == "word"
    assert (draft.text, draft.headers, draft.attachments[0].content) == ("Hello", (), b"hi")
    assert draft.reply_to == (Mailbox("help@example.com"),)
    await post(door, {**GOOD, "from": "you@example.com"})
    assert draft_of(door).from_name == "The shop"


async def test_no_server_named_is_the_default_one(door: Running, servers: Servers) -> None:
    body = {name: value for name, value in GOOD.items() if name != "smtpId"}
    answer = await post(door, body)
    assert answer.json() == {"error": "Missing required fields: smtpId", "code": "missing_required_fields"}
    other = replace(SERVER, id="other", address="o@example.com", address_key="o@example.com", is_default=True)
    servers.rows = (SERVER, other)
    assert (await post(door, body)).json()["code"] == "from_mismatch"
    assert (await post(door, {**body, "from": "o@example.com"})).status_code == 200
    assert draft_of(door).sender == Mailbox("o@example.com")
    assert (await post(door, {**body, "smtpId": "your_smtp_id"})).status_code == 200
    answer = await post(door, {"smtpId": None})
    assert answer.json()["error"] == "Missing required fields: from, to"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"from": ""}, 400, "missing_required_fields"),
        ({"to": []}, 400, "missing_required_fields"),
        ({"to": None}, 400, "missing_required_fields"),
        ({"html": ""}, 400, "missing_email_content"),
        ({"html": None, "text": "only"}, 400, "missing_email_content"),
        ({"subject": None}, 400, "missing_email_content"),
        ({"to": "nobody"}, 400, "invalid_recipient"),
        ({"cc": ["a@example.com", "b"]}, 400, "invalid_recipient"),
        ({"to": [f"a{n}@example.com" for n in range(101)]}, 400, "invalid_recipient"),
        ({"to": "a@b.example\r\nBcc: c@d.example"}, 400, "invalid_recipient"),
        ({"from": "other@example.com"}, 400, "from_mismatch"),
        ({"from": "nobody"}, 400, "from_mismatch"),
        ({"from": "you@example.com\r\nBcc: x@example.com"}, 400, "from_mismatch"),
        ({"smtpId": "other"}, 404, "smtp_not_found"),
        ({"smtpId": 7}, 400, "invalid_request"),
        ({"from": ["you@example.com"]}, 400, "invalid_request"),
        ({"variables": [1]}, 400, "invalid_request"),
        ({"variables": {"a": {}}}, 400, "invalid_request"),
        ({"subject": "a\nb"}, 400, "invalid_request"),
        ({"replyTo": "nobody"}, 400, "invalid_request"),
        ({"attachments": [{"filename": "a"}]}, 400, "invalid_request"),
        ({"attachments": [{"filename": "a", "content": ""}] * 11}, 413, "payload_too_large"),
        ({"html": None, "subject": None, "templateKey": "none"}, 404, "template_not_found"),
        ({"templateKey": "none"}, 400, "conflicting_content"),
        ({"attachments": [{"uploadId": "none"}]}, 400, "invalid_request"),
    ],
)
async def test_what_is_wrong_with_a_request(door: Running, change: Any, status: int, code: str) -> None:
    answer = await post(door, {**GOOD, **change})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert set(answer.json()) == {"error", "code"}
    assert not door.intake.submissions
    assert answer.headers["x-ratelimit-limit"] == "120"


async def test_the_order_is_the_contracts(door: Running) -> None:
    """Input, then the server, then From."""
    answer = await post(door, {**GOOD, "to": "nobody", "smtpId": "other", "from": "x@example.com"})
    assert answer.json()["code"] == "invalid_recipient"
    answer = await post(door, {**GOOD, "smtpId": "other", "from": "x@example.com"})
    assert answer.json() == {"error": "smtpId names no SMTP server of this account.", "code": "smtp_not_found"}


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a"', b'{"to": "a", "to": "b"}'])
async def test_no_json(door: Running, body: bytes) -> None:
    answer = await post(door, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_no_json_said(door: Running) -> None:
    assert (await post(door, Content_Type="text/plain")).json()["code"] == "invalid_request"


@pytest.mark.parametrize("authorization", ["", "Bearer", "Basic !!", "Digest x", "mz_api_key"])
async def test_no_key(door: Running, authorization: str) -> None:
    answer = await post(door, Authorization=authorization)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_auth_header")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_basic_is_allowed(door: Running) -> None:
    word = base64.b64encode(f"{KEY}:".encode()).decode()
    assert (await post(door, Authorization=f"Basic {word}")).status_code == 200


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (ErrorKind.INVALID_KEY, 401, "invalid_api_key"),
        (ErrorKind.KEY_DISABLED, 401, "invalid_api_key"),
        (ErrorKind.KEY_EXPIRED, 401, "invalid_api_key"),
        (ErrorKind.IP_NOT_ALLOWED, 403, "forbidden"),
        (ErrorKind.CHANNEL_NOT_ALLOWED, 403, "forbidden"),
        (ErrorKind.ACCOUNT_SUSPENDED, 403, "forbidden"),
        (ErrorKind.TOO_MANY_FAILED_KEYS, 429, "rate_limit_exceeded"),
    ],
)
async def test_keys_that_are_refused(door: Running, kind: ErrorKind, status: int, code: str) -> None:
    door.intake.verdict = Refusal(kind, "something", retry_after_s=3 if status == 429 else None)
    answer = await post(door)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if status == 401:
        assert answer.json()["error"] == "Invalid or inactive API key"
    assert answer.headers.get("retry-after") == ("3" if status == 429 else None)


async def test_the_rate(door: Running) -> None:
    rate = RateState(120, 0, 1_800_000_000)
    door.intake.window = Refusal(ErrorKind.RATE_LIMITED, "too many", retry_after_s=12, rate=rate)
    answer = await post(door)
    assert answer.json() == {"error": "Too many", "code": "rate_limit_exceeded"}
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "12")
    assert answer.headers["x-ratelimit-remaining"] == "0"


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (ErrorKind.SENDER_NOT_ALLOWED, 400, "from_mismatch"),
        (ErrorKind.IDEMPOTENCY_MISMATCH, 409, "idempotency_mismatch"),
        (ErrorKind.IDEMPOTENCY_IN_PROGRESS, 409, "idempotency_in_progress"),
        (ErrorKind.INSUFFICIENT_CREDITS, 402, "insufficient_credits"),
        (ErrorKind.DAILY_LIMIT_REACHED, 429, "rate_limit_exceeded"),
        (ErrorKind.BACKLOG_FULL, 503, "service_unavailable"),
    ],
)
async def test_what_the_intake_refuses(door: Running, kind: ErrorKind, status: int, code: str) -> None:
    door.intake.result = Refusal(kind, "it is so", extra={"required": 3, "balance": 1})
    answer = await post(door)
    assert (answer.status_code, answer.json()) == (status, {"error": "It is so", "code": code})


async def test_the_servers_reply_is_in_logs_not_in_the_answer(door: Running) -> None:
    reply = Reply(550, "5.1.1", "internal host 10.0.0.3 says no")
    door.intake.result = Refusal(ErrorKind.RELAY_FAILED, f"refused: {reply}", reply=reply)
    answer = await post(door)
    assert (answer.status_code, answer.json()["code"]) == (502, "email_send_failed")
    assert "10.0.0.3" not in answer.text
    assert "550" not in answer.text


async def test_queued_partly_rejected_and_replayed(door: Running) -> None:
    rejected = (Rejected("b@example.com", Reply(550, "5.1.1", "no")),)
    door.intake.result = replace(RECEIPT, status=Status.QUEUED, retry_hint="later", rejected=rejected, replayed=True)
    answer = await post(door)
    assert answer.status_code == 202
    assert answer.json() == {"success": True, "messageId": "<1@hep.gg>", "queued": True}
    assert answer.headers["idempotency-replayed"] == "true"


async def test_a_store_that_is_down(door: Running, servers: Servers) -> None:
    servers.fails = True
    answer = await post(door)
    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert answer.headers["retry-after"] == "5"


async def test_plain_http_other_paths_and_methods(door: Running) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"http://127.0.0.1:{door.plain_port}/v1/emails", json=GOOD)
    assert (answer.status_code, answer.json()["code"]) == (403, "https_required")
    async with door.client() as client:
        answer = await client.get("/v1/emails")
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
        answer = await client.post("/v1/email", json=GOOD)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert set(answer.json()) == {"error", "code"}


async def test_a_large_one(door: Running) -> None:
    assert (await post(door, {**GOOD, "html": "x" * 400_000})).status_code == 200
    assert len(draft_of(door).html or "") == 400_000
    answer = await post(door, b"x" * (26_214_400 + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


def test_every_kind_has_a_code_that_the_contract_knows() -> None:
    known = {
        "missing_required_fields", "missing_email_content", "invalid_recipient", "from_mismatch", "invalid_request",
        "conflicting_content", "invalid_auth_header", "invalid_api_key", "forbidden", "https_required",
        "insufficient_credits", "smtp_not_found", "template_not_found", "idempotency_mismatch",
        "idempotency_in_progress", "payload_too_large", "rate_limit_exceeded", "internal_server_error",
        "email_send_failed", "service_unavailable",
    }  # fmt: skip
    codes = {kind.own_smtp_answer[1] for kind in ErrorKind}
    assert codes - known == {"not_found", "method_not_allowed"}  # other paths and methods, of which it says nothing
    assert known <= codes
