# SPDX-License-Identifier: Apache-2.0
"""Every row of send-api.md's error table, by a real HTTPS request to the real process."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hepmaild.storage import announce
from tests.peers.daemon import Daemon, open_daemon, open_smtp, post, untrusting_context
from tests.peers.processes import assert_no_traceback, free_port
from tests.peers.sink import CaptureSink, capture_sink

GOOD = {"to": "someone@example.net", "subject": "hello", "text": "hello"}
MIB = 1 << 20


def ask(
    daemon: Daemon, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Any request at all."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", daemon.ports["https"], timeout=60, context=untrusting_context()
    )
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(response.read()), found


def check(answer: tuple[int, Any, dict[str, str]], status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """The answer has the promised form; its body."""
    got, body, headers = answer
    assert (got, body.get("code")) == (status, code), body
    assert body["ok"] is False
    assert body["error"]
    assert body.get("field") == field
    assert headers["x-request-id"]
    if status in (429, 503):
        assert int(headers["retry-after"]) >= 1
    return dict(body)


@pytest.fixture(scope="module")
def sink() -> Iterator[CaptureSink]:
    with capture_sink() as found:
        yield found


@pytest.fixture(scope="module")
def daemon(sink: CaptureSink) -> Iterator[Daemon]:
    plans = {
        "bench": {"calls_per_minute": 100_000_000},
        "one-call": {"calls_per_minute": 1},
        "one-a-day": {"messages_per_day": 1},
    }
    changes = {"plans": plans, "http": {"plain_listen": ["127.0.0.1:0"]}}
    with open_daemon(sink_port=sink.port, start=False, changes=changes) as found:
        found.setup(plan="bench")
        found.start()
        yield found
        assert_no_traceback(found.log())


@pytest.fixture(scope="module")
def key(daemon: Daemon) -> str:
    return daemon.mint(name="errors")["key"]


def make_account(daemon: Daemon, email: str, plan: str, credits_granted: int = 10) -> str:
    daemon.json("account", "add", email, "--credits", str(credits_granted), "--plan", plan)
    return daemon.mint(email=email)["key"]


def plain_port(daemon: Daemon) -> int:
    line = next(line for line in daemon.log().splitlines() if "event=listening" in line and "door=http " in line + " ")
    return int(line.rsplit(":", 1)[1])


def test_plain_http_is_refused(daemon: Daemon, key: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", plain_port(daemon), timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/api/v1/email/send", b"{}", {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        body = json.loads(response.read())
    assert (response.status, body["code"]) == (403, "HTTPS_REQUIRED")


@pytest.mark.parametrize("with_key", [False, True])
def test_other_paths_and_methods(daemon: Daemon, key: str, with_key: bool) -> None:
    headers = {"Authorization": f"Bearer {key}"} if with_key else {}
    check(ask(daemon, "GET", "/api/v1/nothing", headers), 404, "NOT_FOUND")
    check(ask(daemon, "POST", "/api/v1/email/send/", headers), 404, "NOT_FOUND")
    check(ask(daemon, "GET", "/api/v1/email/send", headers), 405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "MISSING_KEY"),
        ("", "MISSING_KEY"),
        ("Bearer nonsense", "INVALID_KEY"),
        ("Bearer hyd-mail-" + "x" * 40, "INVALID_KEY"),
        ("Basic " + base64.b64encode(b"hyd-mail-" + b"y" * 40 + b":").decode(), "INVALID_KEY"),
    ],
)
def test_credentials(daemon: Daemon, authorization: str | None, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    check(ask(daemon, "POST", "/api/v1/email/send", headers, json.dumps(GOOD).encode()), 401, code)


def test_basic_with_the_key_as_user_name(daemon: Daemon, key: str) -> None:
    headers = {
        "Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode(),
        "Content-Type": "application/json",
    }
    status, body, _ = ask(daemon, "POST", "/api/v1/email/send", headers, json.dumps(GOOD).encode())
    assert (status, body["data"]["status"]) == (200, "sent")


def test_keys_that_may_not(daemon: Daemon) -> None:
    disabled = daemon.mint(name="disabled")
    daemon.cli("key", "disable", disabled["id"])
    check(post(daemon, GOOD, disabled["key"]), 403, "KEY_DISABLED")
    elsewhere = daemon.mint(name="elsewhere", options=("--from-ip", "192.0.2.0/24"))
    check(post(daemon, GOOD, elsewhere["key"]), 403, "IP_NOT_ALLOWED")
    smtp_only = daemon.mint(name="smtp only", options=("--permission", "smtp"))
    check(post(daemon, GOOD, smtp_only["key"]), 403, "CHANNEL_NOT_ALLOWED")
    deleted = daemon.mint(name="deleted")
    daemon.cli("key", "delete", deleted["id"])
    check(post(daemon, GOOD, deleted["key"]), 401, "INVALID_KEY")
    rotated = daemon.mint(name="rotated")
    fresh = daemon.json("key", "rotate", rotated["id"])["key"]
    check(post(daemon, GOOD, rotated["key"]), 401, "INVALID_KEY")
    assert post(daemon, GOOD, fresh)[0] == 200


def test_an_expired_key(daemon: Daemon, key: str) -> None:
    minted = daemon.mint(name="short-lived", options=("--expires", "2099-01-01"))
    assert post(daemon, GOOD, minted["key"])[0] == 200
    # No command makes a key expire in the past, so the clock is moved the other way: in the table.
    import sqlite3

    with contextlib.closing(sqlite3.connect(daemon.state_dir / "hepmaild.db", timeout=30)) as database, database:
        database.execute("UPDATE api_key SET expires_at_us = 1 WHERE id = ?", (minted["id"],))
        database.execute("UPDATE counter SET value = value + 1 WHERE name = 'generation'")
    announce.send_datagram(daemon.state_dir, "keys")  # as a command would
    check(post(daemon, GOOD, minted["key"]), 403, "KEY_EXPIRED")


def test_a_suspended_account(daemon: Daemon) -> None:
    key = make_account(daemon, "suspended@example.com", "bench")
    daemon.cli("account", "suspend", "suspended@example.com")
    check(post(daemon, GOOD, key), 403, "ACCOUNT_SUSPENDED")
    daemon.cli("account", "resume", "suspended@example.com")
    assert post(daemon, GOOD, key)[0] == 200


def test_the_minute_is_used_up_by_any_call(daemon: Daemon) -> None:
    key = make_account(daemon, "fast@example.com", "one-call")
    malformed = post(daemon, b"not json", key)
    check(malformed, 400, "INVALID_JSON")
    assert malformed[2]["x-ratelimit-remaining"] == "0"
    answer = post(daemon, GOOD, key)
    check(answer, 429, "RATE_LIMITED")
    assert 1 <= int(answer[2]["retry-after"]) <= 61
    assert answer[2]["x-ratelimit-limit"] == "1"


def test_the_day_is_used_up(daemon: Daemon) -> None:
    key = make_account(daemon, "daily@example.com", "one-a-day")
    assert post(daemon, GOOD, key)[0] == 200
    check(post(daemon, GOOD, key), 429, "DAILY_LIMIT_REACHED")


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "INVALID_JSON", None),
        (b"[]", 400, "INVALID_JSON", None),
        (b'"text"', 400, "INVALID_JSON", None),
        ({"text": "x"}, 400, "NO_RECIPIENTS", "to"),
        ({"to": [], "text": "x"}, 400, "NO_RECIPIENTS", "to"),
        ({"to": [f"a{n}@x.test" for n in range(101)], "text": "x"}, 400, "TOO_MANY_RECIPIENTS", None),
        ({"to": "nobody", "text": "x"}, 400, "INVALID_ADDRESS", "to"),
        ({"to": "a@x.test", "cc": ["b@x.test", "c@x.test", "@"], "text": "x"}, 400, "INVALID_ADDRESS", "cc[2]"),
        ({"to": "a@x.test\r\nBcc: b@x.test", "text": "x"}, 400, "INVALID_ADDRESS", "to"),
        ({"to": "a@x.test"}, 400, "NO_BODY", None),
        ({"to": "a@x.test", "text": 5}, 400, "INVALID_FIELD", "text"),
        ({"to": 5, "text": "x"}, 400, "INVALID_FIELD", "to"),
        ({**GOOD, "subject": "a\r\nBcc: b@x.test"}, 400, "INVALID_HEADER_VALUE", "subject"),
        ({**GOOD, "headers": {"X-Foo": "a\nb"}}, 400, "INVALID_HEADER_VALUE", "headers.X-Foo"),
        ({**GOOD, "headers": {"Received": "a"}}, 400, "HEADER_NOT_ALLOWED", "headers.Received"),
        ({**GOOD, "attachments": [{"filename": "a"}]}, 400, "INVALID_ATTACHMENT", None),
        ({**GOOD, "attachments": [{"filename": "a", "content": "&&&"}]}, 400, "INVALID_ATTACHMENT", None),
        ({**GOOD, "attachments": [{"uploadId": "nope"}]}, 400, "UNKNOWN_UPLOAD", None),
        ({"to": "a@x.test", "templateId": "nope"}, 400, "UNKNOWN_TEMPLATE", None),
        ({**GOOD, "text": "x" * (10 * MIB + 1)}, 413, "BODY_TOO_LARGE", None),
        ({**GOOD, "attachments": [{"filename": "a", "content": ""}] * 11}, 413, "TOO_MANY_ATTACHMENTS", None),
        ({**GOOD, "from": "ceo@bank.test"}, 400, "SENDER_NOT_ALLOWED", "from"),
    ],
)
def test_what_is_in_the_body(
    daemon: Daemon, key: str, body: dict[str, Any] | bytes, status: int, code: str, field: str | None
) -> None:
    answer = post(daemon, body, key)
    got = answer[1].get("field")
    check(answer, status, code, field if field is not None else got)
    assert answer[2]["x-ratelimit-limit"]


def test_an_attachment_too_large(daemon: Daemon, key: str) -> None:
    content = base64.b64encode(b"x" * (15 * MIB + 1)).decode()
    check(post(daemon, {**GOOD, "attachments": [{"filename": "a", "content": content}]}, key), 413,
          "ATTACHMENT_TOO_LARGE", "attachments[0]")  # fmt: skip


def test_a_request_too_large_is_refused_before_it_is_sent(daemon: Daemon, key: str) -> None:
    with (
        socket.create_connection(("127.0.0.1", daemon.ports["https"]), 30) as raw,
        untrusting_context().wrap_socket(raw) as tls,
    ):
        head = f"POST /api/v1/email/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        tls.sendall((head + f"Content-Type: application/json\r\nContent-Length: {26 * MIB}\r\n\r\n").encode())
        answer = b""
        while b"REQUEST_TOO_LARGE" not in answer:
            piece = tls.recv(65536)
            assert piece, answer
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413")


def test_another_media_type(daemon: Daemon, key: str) -> None:
    check(post(daemon, b"to=x", key, headers={"Content-Type": "application/x-www-form-urlencoded"}), 415,
          "UNSUPPORTED_MEDIA_TYPE")  # fmt: skip


def test_idempotency(daemon: Daemon, key: str, sink: CaptureSink) -> None:
    too_long = post(daemon, GOOD, key, headers={"Idempotency-Key": "x" * 257})
    check(too_long, 400, "INVALID_IDEMPOTENCY_KEY", "Idempotency-Key")
    first = post(daemon, GOOD, key, headers={"Idempotency-Key": "order 1"})
    again = post(daemon, GOOD, key, headers={"Idempotency-Key": "order 1"})
    assert (again[0], again[1]) == (first[0], first[1])
    assert again[2]["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first[2]
    check(post(daemon, {**GOOD, "text": "other"}, key, headers={"Idempotency-Key": "order 1"}), 409,
          "IDEMPOTENCY_MISMATCH")  # fmt: skip


def test_twins_send_once(daemon: Daemon, key: str) -> None:
    answers: list[tuple[int, Any, dict[str, str]]] = []

    def one() -> None:
        answers.append(post(daemon, GOOD, key, headers={"Idempotency-Key": "twins"}))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = [body["data"]["messageId"] for status, body, _ in answers if status == 200]
    assert len(set(accepted)) == 1
    assert sum("idempotency-replayed" not in headers for status, _, headers in answers if status == 200) == 1
    assert {status for status, _, _ in answers} <= {200, 409}


def test_not_enough_credits(daemon: Daemon) -> None:
    key = make_account(daemon, "poor@example.com", "bench", credits_granted=1)
    body = check(post(daemon, {**GOOD, "to": ["a@x.test", "b@x.test"]}, key), 402, "INSUFFICIENT_CREDITS")
    assert (body["required"], body["balance"]) == (2, 1)
    assert daemon.json("credits", "show", "poor@example.com")["balance"] == 1


def test_a_next_hop_that_cannot_be_reached_is_not_said_to_have_answered() -> None:
    with open_daemon(sink_port=free_port()) as daemon:
        status, body, _ = post(daemon, GOOD, daemon.setup())
        assert status == 202
        assert body["data"]["retryHint"].startswith("Not delivered yet: 451 4.4.1 connect: ")


def test_refused_for_good_is_refunded(daemon: Daemon) -> None:
    key = make_account(daemon, "refused@example.com", "bench", credits_granted=5)
    for local, reply in (
        ("reject-a", "550 5.1.1 no such mailbox here"),
        ("nodot-a", "554 5.7.1 refused for its content"),
    ):
        body = check(post(daemon, {**GOOD, "to": [f"{local}@x.test"]}, key), 502, "RELAY_FAILED")
        assert body["error"] == f"The next hop refused every recipient for good: {reply}. The credits were refunded."
    assert daemon.json("credits", "show", "refused@example.com")["balance"] == 5
    status, body, _ = post(daemon, {**GOOD, "to": ["good@x.test", "reject-b@x.test"]}, key)
    data = body["data"]
    assert (status, data["status"], data["recipients"], data["creditsCharged"]) == (200, "sent", 2, 1)
    assert [each["address"] for each in data["rejected"]] == ["reject-b@x.test"]
    assert data["rejected"][0]["reply"].startswith("550")
    status, body, _ = post(daemon, {**GOOD, "to": ["defer-a@x.test", "reject-b@x.test", "good@x.test"]}, key)
    data = body["data"]
    assert (status, data["status"], data["creditsCharged"]) == (202, "queued", 2)
    assert "451" in data["retryHint"]
    assert len(data["rejected"]) == 1
    assert daemon.json("credits", "show", "refused@example.com")["balance"] == 2
    daemon.cli("credits", "verify")


def test_too_many_connections(sink: CaptureSink) -> None:
    changes = {"limits": {"connections_per_ip": 3}}
    with open_daemon(sink_port=sink.port, changes=changes) as daemon, contextlib.ExitStack() as stack:
        context = untrusting_context()
        for _ in range(3):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.ports["https"]), 30))
            stack.enter_context(context.wrap_socket(raw))
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            check(post(daemon, GOOD, None), 429, "TOO_MANY_CONNECTIONS")
            return
        pytest.fail("the fourth connection got no answer")


def test_too_many_failed_keys_do_not_hurt_a_good_one(sink: CaptureSink) -> None:
    changes = {"limits": {"unknown_keys_per_minute": 2}}
    with open_daemon(sink_port=sink.port, start=False, changes=changes) as daemon:
        key = daemon.setup()
        daemon.start()
        wrong = "hyd-mail-" + "z" * 40
        check(post(daemon, GOOD, wrong), 401, "INVALID_KEY")
        with pytest.raises(smtplib.SMTPAuthenticationError, match=r"5\.7\.8"):  # both doors together
            open_smtp(daemon, wrong)
        first, second = post(daemon, GOOD, wrong), post(daemon, GOOD, wrong)
        for answer in (first, second):
            check(answer, 429, "TOO_MANY_FAILED_KEYS")
        assert int(second[2]["retry-after"]) > int(first[2]["retry-after"])
        assert post(daemon, GOOD, key)[0] == 200


def test_a_full_backlog_is_unavailable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refuses connections
        changes = {"limits": {"backlog": 1}, "delivery": {"relay_wait_s": 1, "retry_after_s": [600]}}
        with open_daemon(sink_port=closed.getsockname()[1], start=False, changes=changes) as daemon:
            key = daemon.setup()
            daemon.start()
            status, body, _ = post(daemon, GOOD, key)
            assert (status, body["data"]["status"]) == (202, "queued")
            assert body["data"]["retryHint"]
            check(post(daemon, GOOD, key), 503, "UNAVAILABLE")
            assert daemon.json("credits", "show", "owner@example.com")["balance"] == 999_999
