# SPDX-License-Identifier: Apache-2.0
"""The quick way of send requests: it reads what it takes exactly as h11 does, and leaves everything else to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import h11
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from hepmaild.errors import ErrorKind, Refusal
from hepmaild.http.limits import Timeouts
from hepmaild.http.quick import MAX_BODY_OCTETS, QuickRequest, Unready, read_quickly, write_answer
from tests.http.door import GOOD, KEY, PATIENCE_S, Running, open_door, read_all

LINE = b"POST /api/v1/email/send HTTP/1.1\r\n"
BODY = json.dumps(GOOD).encode()


def request(*fields: bytes, body: bytes = BODY, line: bytes = LINE) -> bytes:
    """A send request with more fields."""
    plain = (b"Host: x", b"Authorization: Bearer " + KEY.encode(), b"Content-Type: application/json")
    length = b"Content-Length: %d" % len(body)
    return line + b"\r\n".join((*plain, length, *fields)) + b"\r\n\r\n" + body


def by_library(octets: bytes) -> tuple[bytes, bytes, dict[str, str], bytes, bytes] | None:
    """What h11 makes of it: method, target, fields, body, what is left.  None: it refuses it, or wants more."""
    machine = h11.Connection(h11.SERVER, max_incomplete_event_size=32 << 10)
    try:
        machine.receive_data(octets)
        head = machine.next_event()
        if not isinstance(head, h11.Request):
            return None
        body = b""
        while not isinstance(event := machine.next_event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                return None
            body += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    fields = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    assert len(fields) == len(head.headers)
    return head.method, head.target, fields, body, machine.trailing_data[0]


def test_a_plain_request_is_taken() -> None:
    found = read_quickly(request(b"Idempotency-Key: a b", b"Connection: Keep-Alive"), {})
    assert isinstance(found, QuickRequest)
    assert found.octets == BODY
    assert found.headers.get("idempotency-key") == "a b"
    assert found.headers.getlist("Idempotency-Key") == ["a b"]
    assert found.headers.getlist("X-Forwarded-For") == []
    assert found.mimetype == "application/json"


@pytest.mark.parametrize(
    "octets",
    [
        request(b"Transfer-Encoding: chunked"),
        request(b"Expect: 100-continue"),
        request(b"Connection: close"),
        request(b"Connection: keep-alive, Upgrade", b"Upgrade: h2c"),
        request(b"Host: y"),
        request(b"Content-Length: 5"),
        request(b"X-Folded: a\r\n b"),
        request(b"X-Space : a"),
        request(b"X-Tab: a\tb"),
        request(b"X-Bare: a\rb"),
        request(b"X-Bare: a\nHost: y"),
        request(b"X-Null: \0"),
        request("X-Wide: ü".encode()),
        request(b": no name"),
        request() + b"GET",
        request().replace(b"Content-Length: ", b"Content-Length: +"),
        request().replace(b"Host: x\r\n", b""),
        request(line=b"POST /api/v1/email/send?a HTTP/1.1\r\n"),
        request(line=b"POST /api/v1/email/send HTTP/1.0\r\n"),
        request(line=b"PUT /api/v1/email/send HTTP/1.1\r\n"),
        request(body=b"x" * (MAX_BODY_OCTETS + 1)),
        request()[:60],
    ],
)
def test_what_is_not_plain_is_left_to_the_library(octets: bytes) -> None:
    assert read_quickly(octets, {}) is Unready.NOT_OURS


def test_the_rest_of_a_body_is_waited_for() -> None:
    whole = request()
    end = whole.index(b"\r\n\r\n") + 4
    for cut in range(end, len(whole)):
        assert read_quickly(whole[:cut], {}) is Unready.MORE


_WORDS = st.sampled_from(
    [b"Content-Length", b"content-length ", b"Transfer-Encoding", b"chunked", b"Host", b"Connection", b"close", b":",
     b": ", b"\r\n", b"\n", b"\r", b" ", b"\t", b"5", b"0", b"\0", b"\x0b", b"\x85", b"\xa0", b"X-A", b"x-a", b",",
     b";", b"\r\n\r\n", b"keep-alive", b"Expect", b"100-continue", b"(", b"@"]
)  # fmt: skip


@given(st.lists(_WORDS | st.binary(max_size=3), max_size=12), st.integers(0, 2), st.binary(max_size=8))
@example([b"X-A", b":", b"a"], 1, b"")
@example([b"Content-Length", b": ", b"5"], 1, b"")
def test_what_is_taken_is_read_as_the_library_reads_it(words: list[bytes], place: int, tail: bytes) -> None:
    noise = b"".join(words)
    fields = [b"Host: x", b"Content-Length: 8"]
    fields.insert(place, noise)
    octets = LINE + b"\r\n".join(fields) + b"\r\n\r\n" + tail
    found = read_quickly(octets, {})
    if not isinstance(found, QuickRequest):
        return
    theirs = by_library(octets)
    assert theirs is not None
    names = [line.partition(b":")[0].decode().lower() for line in octets[len(LINE) : -12].split(b"\r\n") if line]
    ours = {name: found.headers.get(name) for name in names}
    assert theirs == (b"POST", b"/api/v1/email/send", ours, found.octets, b"")


def test_an_answer_reads_as_it_was_meant() -> None:
    octets = write_answer(402, [("Content-Length", "2"), ("Retry-After", "7")], b"{}", [(b"date", b"today")])
    machine = h11.Connection(h11.CLIENT)
    machine.send(h11.Request(method="POST", target="/", headers=[("Host", "x")]))
    machine.send(h11.EndOfMessage())
    machine.receive_data(octets)
    response = machine.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == 402
    assert list(response.headers) == [(b"content-length", b"2"), (b"retry-after", b"7"), (b"date", b"today")]
    data = machine.next_event()
    assert isinstance(data, h11.Data)
    assert data.data == b"{}"
    with pytest.raises(ValueError, match="would break"):
        write_answer(200, [("X-A", "a\r\nB: c")], b"", [])


# Through the real door


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Running]:
    async with open_door(tmp_path, timeouts=Timeouts(body_idle_s=1.5)) as running:
        yield running


async def receive_answer(stream: trio.abc.ReceiveStream) -> tuple[int, dict[str, str], bytes]:
    """One answer on a kept connection."""
    machine = h11.Connection(h11.CLIENT)
    machine.send(h11.Request(method="POST", target="/", headers=[("Host", "x")]))
    machine.send(h11.EndOfMessage())
    status, fields, body = 0, {}, b""
    with trio.fail_after(PATIENCE_S):
        while not isinstance(event := machine.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                machine.receive_data(await stream.receive_some(4096))
            elif isinstance(event, h11.Response):
                status, fields = event.status_code, {n.decode(): v.decode() for n, v in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
    assert not machine.trailing_data[0]
    return status, fields, body


async def test_both_ways_take_turns_on_one_connection_and_answer_alike(door: Running) -> None:
    stream = await door.connect()
    chunked = request(b"Transfer-Encoding: chunked").replace(b"Content-Length: %d\r\n" % len(BODY), b"")
    chunked = chunked.replace(BODY, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    answers = []
    for octets in (request(), chunked, request(), request(b"X-Tab: a\tb"), request()):
        await stream.send_all(octets)
        answers.append(await receive_answer(stream))
    assert door.intake.calls == len(door.intake.submissions) == 5
    assert [s.is_counted for s in door.intake.submissions] == [False, True, False, True, False]
    for _, fields, _ in answers:
        assert fields.pop("x-request-id")
        fields.pop("date")
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0] == 200
    assert answers[0][1]["x-ratelimit-remaining"] == "119"
    await trio.aclose_forcefully(stream)


async def test_a_body_in_pieces_is_put_together(door: Running) -> None:
    stream = await door.connect()
    whole = request()
    for at in range(0, len(whole), 97):
        await stream.send_all(whole[at : at + 97])
    status, _, _ = await receive_answer(stream)
    assert status == 200
    head_end = whole.index(b"\r\n\r\n") + 4
    await stream.send_all(whole[:head_end])
    await stream.send_all(whole[head_end:])
    status, _, _ = await receive_answer(stream)
    assert status == 200
    await trio.aclose_forcefully(stream)


async def test_a_body_that_never_comes_is_told_by_the_library(hasty: Running) -> None:
    stream = await hasty.connect()
    await stream.send_all(request()[:-1])
    got = await read_all(stream)
    await trio.aclose_forcefully(stream)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"INVALID_JSON" in got
    assert hasty.intake.calls == 1
    assert not hasty.intake.submissions


async def test_a_call_that_cannot_be_read_counts_and_one_too_many_is_told_first(door: Running) -> None:
    answer = await door.post(content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_JSON")
    assert answer.headers["x-ratelimit-remaining"] == "119"
    assert door.intake.calls == 1
    door.intake.window = Refusal(ErrorKind.RATE_LIMITED, "too many", retry_after_s=7)
    for body in (b"{", BODY):
        answer = await door.post(content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (429, "RATE_LIMITED")
        assert answer.headers["retry-after"] == "7"
    assert not door.intake.submissions
