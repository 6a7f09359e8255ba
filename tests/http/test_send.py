# SPDX-License-Identifier: Apache-2.0
"""What a good request becomes, and what is said about it."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from hepmaild.config import HttpSettings
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.http.send import NAMESPACE
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import Attachment, Draft, Kind, Mailbox, Recipient, Rejected, Status, Submission
from tests.conftest import LogEvents
from tests.http.door import GOOD, KEY, RECEIPT, Running, open_door


def draft_of(submission: Submission) -> Draft:
    assert isinstance(submission.source, Draft)
    return submission.source


@pytest.mark.parametrize("http2", [False, True])
async def test_sent(door: Running, http2: bool) -> None:
    answer = await door.post(http2=http2, headers={"X-Request-Id": "abc.DEF_1-2"})
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert answer.status_code == 200
    assert answer.json() == {
        "ok": True,
        "data": {"messageId": "a1b2c3d4e5f6a7b8", "smtpMessageId": "<1@hep.gg>", "status": "sent",
                 "from": "noreply@hep.gg", "recipients": 1, "creditsCharged": 1},
    }  # fmt: skip
    assert answer.headers["x-request-id"] == "abc.DEF_1-2"
    assert answer.headers["x-ratelimit-limit"] == "120"
    assert answer.headers["x-ratelimit-remaining"] == "119"
    assert answer.headers["x-ratelimit-reset"] == "1800000000"
    assert "idempotency-replayed" not in answer.headers
    (submission,) = door.intake.submissions
    assert submission.recipients == (Recipient("joe@example.com"),)
    assert submission.reverse_path is None
    assert submission.idempotency_word is None
    assert submission.origin.peer_ip == "127.0.0.1"
    assert submission.origin.session_id == "abc.DEF_1-2"
    assert submission.origin.tls_version == "TLSv1.3"
    assert draft_of(submission) == Draft(None, (Mailbox("joe@example.com"),), subject="Hi", text="Hello")
    assert KEY not in repr(submission)


@pytest.mark.parametrize("bad", ["a b", "x" * 129, "é", "a/b", ""])
async def test_a_strange_request_id_is_replaced(door: Running, bad: str) -> None:
    answer = await door.post(headers={"X-Request-Id": bad.encode("latin-1")})
    assert len(answer.headers["x-request-id"]) == 16


async def test_queued_replayed_and_partly_rejected(door: Running) -> None:
    rejected = (Rejected("a@b.c", Reply(550, "5.1.1", "no such user")),)
    door.intake.result = type(RECEIPT)(
        "a1b2c3d4e5f6a7b8",
        "<1@hep.gg>",
        Status.QUEUED,
        "noreply@hep.gg",
        3,
        2,
        rejected,
        "Trying again at 10:00.",
        True,
    )
    answer = await door.post()
    assert answer.status_code == 202
    data = answer.json()["data"]
    assert data["status"] == "queued"
    assert data["retryHint"] == "Trying again at 10:00."
    assert data["rejected"] == [{"address": "a@b.c", "reply": "550 5.1.1 no such user"}]
    assert (data["recipients"], data["creditsCharged"]) == (3, 2)
    assert answer.headers["idempotency-replayed"] == "true"


async def test_every_field(door: Running) -> None:
    png = bytes(range(256))
    answer = await door.post(
        {
            "to": ['"Joe, Doe" <Joe@Example.com>', "JOE@example.COM"],
            "cc": "jörg@müller.de",
            "bcc": ["boss@x.test", "joe@example.com"],
            "subject": "s" * 2000,
            "html": "<p>",
            "text": "text",
            "from": '"Acme" <a@b.c>',
            "fromName": "n" * 200,
            "replyTo": "R <r@b.c>",
            "headers": {"X-Foo": "bär", "List-Unsubscribe": "<https://x.test/?a=b>"},
            "attachments": [
                {"filename": "ä.png", "content": base64.encodebytes(png).decode(), "contentType": "image/png",
                 "contentId": "<logo@x>"},
                {"filename": "b", "content": ""},
            ],
            "templateId": None,
            "somethingElse": {"a": [1, 2]},
        },
        headers={"Idempotency-Key": "wörd".encode()},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    (submission,) = door.intake.submissions
    assert submission.recipients == (
        Recipient("Joe@example.com", Kind.TO),
        Recipient("jörg@xn--mller-kva.de", Kind.CC),
        Recipient("boss@x.test", Kind.BCC),
    )
    assert submission.idempotency_word == "wörd"
    draft = draft_of(submission)
    assert draft.sender == Mailbox("a@b.c", "Acme")
    assert draft.to == (Mailbox("Joe@example.com", "Joe, Doe"),)
    assert draft.cc == (Mailbox("jörg@xn--mller-kva.de"),)
    assert draft.reply_to == (Mailbox("r@b.c", "R"),)
    assert draft.subject == "s" * 988
    assert draft.from_name == "n" * 100
    assert (draft.text, draft.html) == ("text", "<p>")
    assert draft.headers == (("X-Foo", "bär"), ("List-Unsubscribe", "<https://x.test/?a=b>"))
    assert draft.attachments == (
        Attachment("ä.png", png, "image/png", "logo@x"),
        Attachment("b", b"", "application/octet-stream", None),
    )


async def test_fingerprints(door: Running) -> None:
    for content in (b'{"to":"a@b.c","text":"x"}', b'{"to":"a@b.c","text":"x"}', b'{"to":"a@b.c","text":"x" }'):
        headers = {"Content-Type": "application/json"}
        assert (await door.post(content=content, headers=headers)).status_code == 200
    one, two, three = (submission.fingerprint for submission in door.intake.submissions)
    assert one == two != three
    body = hashlib.sha256(b'{"to":"a@b.c","text":"x"}').digest()
    assert one == hashlib.sha256(NAMESPACE + body).digest()


@pytest.mark.parametrize("http2", [False, True])
async def test_a_large_request_arrives_whole(door: Running, http2: bool) -> None:
    content = bytes(range(256)) * 4096 * 12
    encoded = base64.b64encode(content).decode()
    answer = await door.post({**GOOD, "attachments": [{"filename": "a", "content": encoded}]}, http2=http2)
    assert answer.status_code == 200, answer.text
    (submission,) = door.intake.submissions
    assert draft_of(submission).attachments[0].content == content


async def test_many_requests_on_one_connection(door: Running) -> None:
    for http2 in (False, True):
        async with door.client(http2=http2, headers={"Authorization": f"Bearer {KEY}"}) as client:
            answers: list[int] = []

            async def one(client: httpx.AsyncClient, answers: list[int]) -> None:
                answers.append((await client.post("/api/v1/email/send", json=GOOD)).status_code)

            async with trio.open_nursery() as nursery:
                for _ in range(18):
                    nursery.start_soon(one, client, answers)
            assert answers == [200] * 18


async def test_health(door: Running, log_events: LogEvents) -> None:
    async with door.client() as client:
        assert (await client.get("/healthz")).json() == {"ok": True}
        assert (await client.get("/readyz")).status_code == 200
        door.problems.append("the backlog is full")
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ok": False, "problems": ["the backlog is full"]}
    assert log_events.named("listening")[0]["door"] == "https"


async def test_trusted_proxies(tmp_path: Path) -> None:
    async with open_door(tmp_path, plain=True, proxies=("127.0.0.0/8",)) as door:
        base = f"http://127.0.0.1:{door.plain_port}"

        async def ask(**headers: str) -> int:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            sent["Authorization"] = f"Bearer {KEY}"
            async with httpx.AsyncClient(base_url=base) as client:
                return (await client.post("/api/v1/email/send", json=GOOD, headers=sent)).status_code

        assert await ask(X_Forwarded_Proto="https", X_Forwarded_For="6.6.6.6, 192.0.2.7:555, 127.0.0.9") == 200
        assert await ask(X_Forwarded_Proto="https", X_Forwarded_For="[2001:db8::7]:44") == 200
        assert await ask(X_Forwarded_Proto="https", X_Forwarded_For="nonsense") == 200
        assert await ask(X_Forwarded_Proto="https") == 200
        assert door.intake.peers == ["192.0.2.7", "2001:db8::7", "127.0.0.1", "127.0.0.1"]
        assert await ask(X_Forwarded_Proto="http") == 403
        assert await ask() == 403
        async with door.client(headers={"X-Forwarded-Proto": "http"}) as client:
            assert (await client.post("/api/v1/email/send", json=GOOD)).status_code == 403


async def test_pages_are_redirected_to_the_name_that_was_used(tmp_path: Path) -> None:
    settings = HttpSettings(listen=("127.0.0.1:0",), plain_listen=("127.0.0.1:0",))
    async with (
        open_door(tmp_path, settings=settings) as door,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.plain_port}") as client,
    ):
        answer = await client.get("/x")
        assert (answer.status_code, answer.headers["location"]) == (308, f"https://127.0.0.1:{door.port}/x")
        answer = await client.get("/x", headers={"Host": "/evil"})
        assert answer.status_code in (400, 403)


async def test_nobody_else_may_say_so(door: Running) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7", "Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.plain_port}") as client:
        assert (await client.post("/api/v1/email/send", json=GOOD, headers=headers)).status_code == 403
    assert (await door.post(headers=headers)).status_code == 200
    assert door.intake.peers == ["127.0.0.1"]


async def test_connections_behind_a_proxy_are_their_clients(tmp_path: Path) -> None:
    async with open_door(tmp_path, plain=True, proxies=("127.0.0.0/8",)) as door:
        door.door._counter.limit = 1
        inside, leave = trio.Event(), trio.Event()

        async def hold(_: Submission) -> Any:
            inside.set()
            await leave.wait()
            return RECEIPT

        door.intake.accept_by = hold
        statuses: dict[str, int] = {}

        async def ask(name: str, client_ip: str) -> None:
            answer = await door.post(headers={"X-Forwarded-For": client_ip})
            statuses[name] = answer.status_code

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "first", "2001:db8::1")
            await inside.wait()
            await ask("neighbour", "2001:db8::2")  # the same /64
            nursery.start_soon(ask, "stranger", "2001:db9::1")
            while len(door.intake.submissions) < 2:  # noqa: ASYNC110
                await trio.sleep(0.005)
            leave.set()
        assert statuses == {"first": 200, "neighbour": 429, "stranger": 200}


@pytest.mark.parametrize("padding", ["", "x" * 100_000, "x" * 300_000], ids=["quick", "small", "large"])
@pytest.mark.parametrize(
    ("named", "code"),
    [({"templateKey": "gone"}, "UNKNOWN_TEMPLATE"), ({"attachments": [{"uploadId": "gone"}]}, "UNKNOWN_UPLOAD")],
    ids=["template", "upload"],
)
async def test_what_was_accepted_is_told_again_when_what_it_names_has_gone(
    door: Running, padding: str, named: dict[str, Any], code: str
) -> None:
    body = json.dumps({"to": "joe@example.com", "text": "x", "padding": padding, **named}).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": "order-1"}
    fingerprint = hashlib.sha256(NAMESPACE + hashlib.sha256(body).digest()).digest()

    async def ask(word: str = "order-1") -> tuple[int, Any, str | None]:
        answer = await door.post(content=body, headers=headers | {"Idempotency-Key": word})
        said = answer.json()
        return answer.status_code, said.get("code") or said["data"], answer.headers.get("idempotency-replayed")

    assert await ask() == (400, code, None), "never accepted"
    door.intake.told["order-1", fingerprint] = replace(RECEIPT, replayed=True)
    status, data, replayed = await ask()
    assert (status, data["messageId"], replayed) == (200, RECEIPT.message_id, "true")
    assert await ask("order-2") == (400, code, None)
    running = Refusal(ErrorKind.IDEMPOTENCY_IN_PROGRESS, "the first call still runs")
    door.intake.told["order-1", fingerprint] = running
    assert await ask() == (409, "IDEMPOTENCY_IN_PROGRESS", None)
    assert door.intake.calls == 4, "each is a call"
    assert not door.intake.submissions


async def test_a_sender_that_was_taken_away_since_does_not_make_an_accepted_call_a_refused_one(door: Running) -> None:
    body = json.dumps(GOOD).encode()
    door.intake.result = Refusal(ErrorKind.SENDER_NOT_ALLOWED, "not yours")
    headers = {"Content-Type": "application/json", "Idempotency-Key": "order-1"}
    assert (await door.post(content=body, headers=headers)).json()["code"] == "SENDER_NOT_ALLOWED"
    fingerprint = hashlib.sha256(NAMESPACE + hashlib.sha256(body).digest()).digest()
    door.intake.told["order-1", fingerprint] = replace(RECEIPT, replayed=True)
    again = await door.post(content=body, headers=headers)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
