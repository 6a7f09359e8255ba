# SPDX-License-Identifier: Apache-2.0
"""Every row of the error table of send-api.md, by a real HTTPS request."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from hepmaild.config import HttpSettings, LimitSettings
from hepmaild.errors import ErrorKind, Refusal, StoreUnavailable
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import RateState
from tests.conftest import LogEvents
from tests.http.door import GOOD, KEY, Running, open_door, until
from tests.peers.processes import no_further_thread


def code_of(response: httpx.Response, status: int) -> str:
    """The code of an error answer that is complete: a sentence, an id, never a number of calls for no key."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body["ok"] is False
    assert body["error"][0].isupper() or body["error"].startswith(body.get("field", "-"))
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    return str(body["code"])


async def test_plain_http(door: Running) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.plain_port}") as client:
        answer = await client.post("/api/v1/email/send", json=GOOD, headers={"Authorization": f"Bearer {KEY}"})
        assert code_of(answer, 403) == "HTTPS_REQUIRED"
        assert (await client.get("/v1/emails")).json()["code"] == "https_required"
        page = await client.get("/log?a=b%20c")
        assert (page.status_code, page.headers["location"]) == (308, "https://hep.gg/log?a=b%20c")
        page = await client.get("/api/docs")
        assert (page.status_code, page.headers["location"]) == (308, "https://hep.gg/api/docs")
        assert code_of(await client.post("/api/docs"), 403) == "HTTPS_REQUIRED"
    assert door.intake.calls == 0


@pytest.mark.parametrize("key", [KEY, None])
async def test_no_such_path_or_method(door: Running, key: str | None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with door.client(headers=headers) as client:
        for path in ("/api", "/api/", "/api/v1/email/send/", "/api//v1/email/send", "/api/v1/email/SEND", "/api/%00"):
            assert code_of(await client.post(path, json=GOOD), 404) == "NOT_FOUND"
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
            answer = await client.request(method, "/api/v1/email/send")
            assert code_of(answer, 405) == "METHOD_NOT_ALLOWED"
            assert answer.headers["allow"] == "POST"
            assert "x-ratelimit-limit" not in answer.headers
        assert (await client.head("/api/v1/email/send")).status_code == 405
    assert door.intake.calls == 0


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "MISSING_KEY"),
        ("", "MISSING_KEY"),
        ("Bearer", "MISSING_KEY"),
        ("Digest x", "MISSING_KEY"),
        ("Basic " + base64.b64encode(b":").decode(), "MISSING_KEY"),
        ("Bearer nonsense", "INVALID_KEY"),
        ("Bearer " + "x" * 5000, "INVALID_KEY"),
        ("Basic %%%", "INVALID_KEY"),
        ("Basic " + base64.b64encode(b"\xff:").decode(), "INVALID_KEY"),
        ("Basic " + base64.b64encode(f"{KEY}:secret".encode()).decode(), "INVALID_KEY"),
    ],
)
async def test_credentials(door: Running, authorization: str | None, code: str) -> None:
    """RFC 6750, RFC 7617."""
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await door.post(key=None, headers=headers)
    assert code_of(answer, 401) == code
    assert "x-ratelimit-limit" not in answer.headers
    assert door.intake.calls == 0


@pytest.mark.parametrize(
    ("headers", "auth"),
    [({"Authorization": f"bearer {KEY}"}, None), ({"Authorization": f"BEARER   {KEY}"}, None), ({}, (KEY, ""))],
)
async def test_both_ways_to_send_a_key(door: Running, headers: dict[str, str], auth: Any) -> None:
    """RFC 6750, RFC 7617."""
    answer = await door.post(key=None, headers=headers, **({"auth": auth} if auth else {}))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "kind",
    [ErrorKind.KEY_DISABLED, ErrorKind.KEY_EXPIRED, ErrorKind.IP_NOT_ALLOWED, ErrorKind.CHANNEL_NOT_ALLOWED,
     ErrorKind.ACCOUNT_SUSPENDED, ErrorKind.TOO_MANY_FAILED_KEYS],
)  # fmt: skip
async def test_keys_that_may_not(door: Running, kind: ErrorKind) -> None:
    door.intake.verdict = Refusal(kind, "no", retry_after_s=7 if kind is ErrorKind.TOO_MANY_FAILED_KEYS else None)
    answer = await door.post()
    assert code_of(answer, kind.answer.http_status) == kind.name
    assert answer.headers.get("retry-after") == ("7" if kind is ErrorKind.TOO_MANY_FAILED_KEYS else None)
    assert "x-ratelimit-limit" not in answer.headers
    assert door.intake.calls == 0


@pytest.mark.parametrize("kind", [ErrorKind.RATE_LIMITED, ErrorKind.DAILY_LIMIT_REACHED])
async def test_too_many_calls(door: Running, kind: ErrorKind) -> None:
    door.intake.window = Refusal(kind, "wait", retry_after_s=33, rate=RateState(120, 0, 1_800_000_033))
    answer = await door.post()
    assert code_of(answer, 429) == kind.name
    assert answer.headers["retry-after"] == "33"
    assert answer.headers["x-ratelimit-limit"] == "120"
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert answer.headers["x-ratelimit-reset"] == "1800000033"
    assert not door.intake.submissions


async def test_too_many_connections(tmp_path: Path) -> None:
    async with open_door(tmp_path, limits=LimitSettings(connections_per_ip=2)) as door:
        first, second = await door.connect(), await door.connect()
        for stream in (first, second):
            await stream.do_handshake()
        answer = await door.post()
        assert code_of(answer, 429) == "TOO_MANY_CONNECTIONS"
        assert answer.headers["connection"] == "close"
        await first.aclose()
        await until(lambda: door.door.connections == 1)
        assert (await door.post()).status_code == 200
        await second.aclose()


async def test_a_request_that_says_it_is_too_large(tmp_path: Path) -> None:
    settings = HttpSettings(listen=("127.0.0.1:0",), max_request_bytes=65_536)
    async with open_door(tmp_path, settings=settings) as door:
        for http2 in (False, True):
            answer = await door.post(content=b"x" * 100_000, http2=http2)
            assert code_of(answer, 413) == "REQUEST_TOO_LARGE"
            assert answer.headers["x-ratelimit-remaining"] == "119"

        async def body() -> Any:  # chunked: it is seen only while it is read
            for _ in range(40):
                yield b" " * 4096

        for http2 in (False, True):
            answer = await door.post(content=body(), headers={"Content-Type": "application/json"}, http2=http2)
            assert code_of(answer, 413) == "REQUEST_TOO_LARGE"
        exactly = json.dumps(GOOD).encode().ljust(65_536)
        answer = await door.post(content=exactly, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
async def test_media_types(door: Running, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await door.post(content=json.dumps(GOOD), headers=headers)
    assert code_of(answer, 415) == "UNSUPPORTED_MEDIA_TYPE"
    assert door.intake.calls == 1


async def test_content_encoding(door: Running) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": "gzip"}
    assert code_of(await door.post(content=b"x", headers=headers), 415) == "UNSUPPORTED_MEDIA_TYPE"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"1", b"\xff\xfe{}", b'{"a":1,"a":2}', b'{"x":{"a":1,"a":1}}', b'{"a":NaN}',
     b'{"a":-Infinity}', b"[" * 200_000, b'{"a":' * 50_000, b'{"a":' + b"9" * 10_000 + b"}", b'{"a":"\n"}', b"{}{}",
     json.dumps(GOOD).encode("utf-16"), b"\x00"],
)  # fmt: skip
async def test_invalid_json(door: Running, body: bytes) -> None:
    answer = await door.post(content=body, headers={"Content-Type": "application/json"})
    assert code_of(answer, 400) == "INVALID_JSON"
    assert answer.headers["x-ratelimit-remaining"] == "119"


async def test_a_byte_order_mark_is_named(door: Running) -> None:
    """As some editors save; it cannot be seen there."""
    body = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    answer = await door.post(content=body, headers={"Content-Type": "application/json"})
    assert code_of(answer, 400) == "INVALID_JSON"
    assert "save it as UTF-8 without one (BOM)" in answer.json()["error"]


@pytest.mark.parametrize("body", [b'{"a":"\n"}', b'{"a":"', b'{"a":"\\q"}', b"{]"])
async def test_where_json_ends_to_be_json_is_said_once(door: Running, body: bytes) -> None:
    answer = await door.post(content=body, headers={"Content-Type": "application/json"})
    assert code_of(answer, 400) == "INVALID_JSON"
    assert re.search(r"\w(?<! at) at line 1, column \d\.$", answer.json()["error"])


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"to": []}, "NO_RECIPIENTS", "to"),
        ({"to": [f"u{n}@x.test" for n in range(101)]}, "TOO_MANY_RECIPIENTS", "to[100]"),
        ({"cc": ["a@b.c", "nope"]}, "INVALID_ADDRESS", "cc[1]"),
        ({"text": ""}, "NO_BODY", "html"),
        ({"subject": 5}, "INVALID_FIELD", "subject"),
        ({"subject": "a\r\nBcc: x@y.z"}, "INVALID_HEADER_VALUE", "subject"),
        ({"headers": {"From": "x"}}, "HEADER_NOT_ALLOWED", "headers.From"),
        ({"attachments": [{"filename": "a", "content": "%"}]}, "INVALID_ATTACHMENT", "attachments[0].content"),
        ({"attachments": [{"uploadId": "u1"}]}, "UNKNOWN_UPLOAD", "attachments[0].uploadId"),
        ({"templateId": "t", "subject": None}, "UNKNOWN_TEMPLATE", "templateId"),
        ({"templateKey": "t", "subject": None, "text": None}, "UNKNOWN_TEMPLATE", "templateKey"),
    ],
)
async def test_fields(door: Running, change: dict[str, Any], code: str, field: str) -> None:
    answer = await door.post({**GOOD, **change})
    assert code_of(answer, 400) == code
    assert answer.json()["field"] == field
    assert not door.intake.submissions


@pytest.mark.parametrize("word", ["", "x" * 257, "a\tb"])
async def test_idempotency_words(door: Running, word: str) -> None:
    answer = await door.post(headers={"Idempotency-Key": word})
    assert code_of(answer, 400) == "INVALID_IDEMPOTENCY_KEY"
    assert answer.json()["field"] == "Idempotency-Key"
    assert door.intake.calls == 1


@pytest.mark.parametrize("is_large", [False, True], ids=["at once", "read in pieces"])
async def test_the_word_is_judged_before_what_is_too_large_and_known_when_the_call_is_counted(
    door: Running, is_large: bool
) -> None:
    files = [{"filename": "a", "content": "A" * (40_000 if is_large else 4)}] * 11
    too_many = {**GOOD, "attachments": files}
    bad = await door.post(too_many, headers={"Idempotency-Key": "x" * 257})
    assert code_of(bad, 400) == "INVALID_IDEMPOTENCY_KEY"
    good = await door.post(too_many, headers={"Idempotency-Key": "order-1"})
    assert code_of(good, 413) == "TOO_MANY_ATTACHMENTS"
    unknown = await door.post({**too_many, "templateKey": "nope", "subject": None})
    assert code_of(unknown, 400) == "UNKNOWN_TEMPLATE"
    assert door.intake.words == [None, "order-1", None]


MB = 1 << 20


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"html": "x" * (10 * MB)}, "BODY_TOO_LARGE"),
        ({"text": "x" * (10 * MB + 1)}, "BODY_TOO_LARGE"),
        ({"attachments": [{"filename": "a", "content": ""}] * 11}, "TOO_MANY_ATTACHMENTS"),
        ({"attachments": [{"filename": "a", "content": "AAAA" * (5 * MB + 1)}]}, "ATTACHMENT_TOO_LARGE"),
        ({"attachments": [{"filename": "a", "content": "AAAA" * (3 * MB)}] * 2}, "ATTACHMENT_TOO_LARGE"),
    ],
)
async def test_sizes(door: Running, change: dict[str, Any], code: str) -> None:
    answer = await door.post({**GOOD, **change})
    assert code_of(answer, 413) == code
    assert not answer.json()["error"].startswith("Html")  # fields are told as they are written


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (Refusal(ErrorKind.SENDER_NOT_ALLOWED, "not yours"), 400, "SENDER_NOT_ALLOWED"),
        (Refusal(ErrorKind.IDEMPOTENCY_MISMATCH, "other"), 409, "IDEMPOTENCY_MISMATCH"),
        (Refusal(ErrorKind.IDEMPOTENCY_IN_PROGRESS, "wait"), 409, "IDEMPOTENCY_IN_PROGRESS"),
        (Refusal(ErrorKind.BACKLOG_FULL, "full"), 503, "UNAVAILABLE"),
        (Refusal(ErrorKind.DRAINING, "bye", retry_after_s=2), 503, "UNAVAILABLE"),
        (Refusal(ErrorKind.DAILY_LIMIT_REACHED, "tomorrow", retry_after_s=9), 429, "DAILY_LIMIT_REACHED"),
        (StoreUnavailable("gone"), 503, "UNAVAILABLE"),
    ],
)
async def test_what_the_intake_says(door: Running, refusal: Refusal | Exception, status: int, code: str) -> None:
    door.intake.result = refusal
    answer = await door.post()
    assert code_of(answer, status) == code
    assert answer.headers["x-ratelimit-limit"] == "120"


async def test_credits(door: Running) -> None:
    door.intake.result = Refusal(
        ErrorKind.INSUFFICIENT_CREDITS, "you need 3 credits", extra={"required": 3, "balance": 1}
    )
    answer = await door.post()
    assert code_of(answer, 402) == "INSUFFICIENT_CREDITS"
    assert (answer.json()["required"], answer.json()["balance"]) == (3, 1)


async def test_relay_failed_tells_the_next_hops_reply_once(door: Running) -> None:
    """What SMTP makes of it, always 550 and an enhanced code, is not said behind it."""
    text = "The next hop refused every recipient for good: 553 no such user. The credits were refunded."
    door.intake.result = Refusal(ErrorKind.RELAY_FAILED, text, reply=Reply(550, "5.0.0", "no such user"))
    answer = await door.post()
    assert code_of(answer, 502) == "RELAY_FAILED"
    assert answer.json()["error"] == text


async def test_store_down_at_the_key(door: Running) -> None:
    door.intake.verdict = StoreUnavailable("gone")
    answer = await door.post()
    assert code_of(answer, 503) == "UNAVAILABLE"
    assert "x-ratelimit-limit" not in answer.headers
    door.intake.verdict, door.intake.window = (type(door.intake)().verdict, StoreUnavailable("gone"))
    answer = await door.post()
    assert code_of(answer, 503) == "UNAVAILABLE"
    assert answer.headers["x-ratelimit-limit"] == "120"


async def test_a_want_of_threads_is_no_bug(door: Running) -> None:
    """What is long is read in a thread, and before that kept in a file; both may find none."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with door.client() as client:  # its connection is there before: to look up the name takes a thread
        for octets in (300_000, 2_000_000):
            message = {**GOOD, "text": "x" * octets}
            assert (await client.post("/api/v1/email/send", json=message, headers=headers)).status_code == 200
            with no_further_thread():
                answer = await client.post("/api/v1/email/send", json=message, headers=headers)
            assert code_of(answer, 503) == "UNAVAILABLE"


async def test_a_bug_is_an_answer(door: Running, log_events: LogEvents) -> None:
    log_events.expect_error("http_request_crashed")
    door.intake.result = RuntimeError("boom " + KEY)
    answer = await door.post(headers={"X-Request-Id": "my-id.1"})
    assert code_of(answer, 500) == "INTERNAL"
    assert "boom" not in answer.text
    assert "my-id.1" in answer.text
    (crash,) = log_events.named("http_request_crashed")
    assert crash["request_id"] == "my-id.1"
    door.intake.result = type(door.intake)().result
    assert (await door.post()).status_code == 200


async def test_a_host_that_can_be_nobodys(door: Running) -> None:
    """What is wrong is the Host, not the path: a name's label has at most 63 octets (RFC 1035 §2.3.4)."""
    for method, path in (("GET", "/healthz"), ("PUT", "/api/v1/email/send"), ("GET", "/api/nothing")):
        async with door.client() as client:
            answer = await client.request(method, path, headers={"Host": "a" * 64})
        assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED_REQUEST"), path
