# SPDX-License-Identifier: Apache-2.0
"""`POST /api/v1/email/send`: one JSON request becomes one submission (send-api.md).

The order of the checks is that of the contract's error table.  Each step raises RefusedError; the application's
boundary makes the answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio
from quart import Blueprint
from quart import request as current_request
from quart.wrappers import Request, Response

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.events import MAX_TEXT, Step, Who
from hepmaild.http.answers import RejectedOut, SendAnswer, SendData
from hepmaild.http.auth import check_readable, count, identify, recognise
from hepmaild.http.body import Received, check_length, check_media_type, read_body
from hepmaild.http.call import Call
from hepmaild.http.errors import json_response
from hepmaild.http.fields import Wanted, read_idempotency_word, read_request
from hepmaild.http.limits import MemoryGate, Timeouts
from hepmaild.http.quick import SEND_PATH, QuickRequest
from hepmaild.intake import Intake
from hepmaild.mail.content import Content
from hepmaild.mail.sizes import MAX_TOTAL_OCTETS, SIZE_KINDS
from hepmaild.mail.submission import (
    Door,
    Draft,
    KeyIdentity,
    Origin,
    Permission,
    Receipt,
    Recipient,
    Status,
    Submission,
)
from hepmaild.materials import Found, Materials
from hepmaild.threads import in_thread

THREAD_OCTETS = 256 << 10  # above this, JSON and base64 are worked on in a thread, and the memory gate counts
# Two requests of the largest size at once, one of them being parsed: measured, 20 of them peak at 290 MB in all.
GATE_OCTETS = 52 << 20
NAMESPACE = b"email/send\x00"
# What may be said of a call that was accepted once: what it names has changed since, or has gone.
_CHANGED_SINCE = frozenset(
    {
        ErrorKind.UNKNOWN_UPLOAD,
        ErrorKind.UNKNOWN_TEMPLATE,
        ErrorKind.NO_BODY,
        ErrorKind.BODY_TOO_LARGE,
        ErrorKind.ATTACHMENT_TOO_LARGE,
        ErrorKind.SMTP_NOT_FOUND,
        ErrorKind.SENDER_NOT_ALLOWED,
    }
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A call that sends.

    namespace: the same body at another endpoint is another call.  reader: what reads the body of a request of this key;
    raises StoreUnavailable, and what it gives RefusedError.  needs: the permission that a key must have, None: `http`.
    unreadable_is_missing: a bad Authorization header is told as a missing one.
    """

    namespace: bytes
    reader: Callable[[KeyIdentity], Awaitable[Callable[[Content, int], Wanted]]]
    respond: Callable[[Receipt], Response]
    needs: Permission | None = None
    unreadable_is_missing: bool = False


@dataclass(slots=True)
class _Asked:
    """A request whose key is known and whose body has come."""

    request: Request | QuickRequest
    call: Call
    key: KeyIdentity
    body: Received
    endpoint: Endpoint

    def fingerprint(self) -> bytes:
        """The same body at the same endpoint has the same one."""
        return hashlib.sha256(self.endpoint.namespace + self.body.digest).digest()


@dataclass(frozen=True, slots=True)
class _Ready:
    """A request that was read and completed.  note: which template and uploads went into it."""

    recipients: tuple[Recipient, ...]
    draft: Draft
    note: str
    word: str | None


@dataclass(slots=True)
class SendDesk:
    """What the send endpoint needs.

    max_request, max_recipients: from the settings.  spool_dir: for large bodies; None: the system's.  materials:
    templates and uploads.  threads: for parsing bodies; files: for writing them.  gate: for what comes large, or names
    much.  beside: for what a large one names; whoever is inside waits for no other room.
    """

    intake: Intake
    max_request: int
    max_recipients: int
    spool_dir: Path | None = None
    materials: Materials = field(default_factory=Materials)
    timeouts: Timeouts = Timeouts()
    threads: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 1))
    files: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 4))
    gate: MemoryGate = field(init=False)
    beside: MemoryGate = field(init=False)

    def __post_init__(self) -> None:
        self.gate = MemoryGate(GATE_OCTETS, self.timeouts.gate_s)
        self.beside = MemoryGate(MAX_TOTAL_OCTETS, self.timeouts.gate_s)

    async def send(self, request: Request, call: Call, endpoint: Endpoint) -> Response:
        """Answer one request at `endpoint`.  Raises RefusedError and StoreUnavailable.

        Cancelled before the commit it costs nothing but the call; from the commit on the message is accepted.
        """
        authorization = request.headers.get("Authorization")
        if endpoint.unreadable_is_missing:
            check_readable(authorization)
        key = await identify(self.intake, call, authorization, endpoint.needs, _word_for_count(request))
        check_length(request, self.max_request)
        body = await read_body(request, self.max_request, self.timeouts, self.spool_dir, self.files)
        asked = _Asked(request, call, key, body, endpoint)
        try:
            check_media_type(request)
            read = partial(await endpoint.reader(key), body.content, self.max_recipients)
            if body.content.size <= THREAD_OCTETS:
                wanted = _judged(request, read)
                found = await self.materials.find(key, wanted.draft, wanted.ask)
                return await self._accept(asked, wanted, found, self.gate)
            async with self.gate.admit(body.content.size):
                wanted = await in_thread(partial(_judged, request, read), limiter=self.threads)
                found = await self.materials.find(key, wanted.draft, wanted.ask)
                return await self._accept(asked, wanted, found, self.beside)
        except RefusedError as error:
            return await self._told_before(asked, error)
        finally:
            body.content.close()

    async def send_quickly(self, request: QuickRequest, call: Call, endpoint: Endpoint) -> Response:
        """As `send`, for a small request that is all there: it is counted by the commit that accepts its message.

        One that cannot be read is counted by itself, since every request with a valid key is a call, and one call too
        many is told before anything else.
        """
        key = await recognise(self.intake, call, request.headers.get("Authorization"), endpoint.needs)
        body = Received(Content(request.octets), hashlib.sha256(request.octets).digest())
        asked = _Asked(request, call, key, body, endpoint)
        try:
            check_length(request, self.max_request)
            check_media_type(request)
            read = partial(await endpoint.reader(key), body.content, self.max_recipients)
            wanted = _judged(request, read)
            found = await self.materials.find(key, wanted.draft, wanted.ask)
            ready = await self._complete(wanted, found) if found.octets <= THREAD_OCTETS else None
        except RefusedError as error:
            await count(self.intake, call, key, _word_for_count(request))
            return await self._told_before(asked, error)
        try:
            if ready is not None:
                return await self._submit(asked, ready, is_counted=False)
            await count(self.intake, call, key, _word_for_count(request))
            return await self._accept(asked, wanted, found, self.gate)
        except RefusedError as error:
            return await self._told_before(asked, error)

    async def _told_before(self, asked: _Asked, error: RefusedError) -> Response:
        """The first answer again, when this very call was accepted before.

        Raises `error` when it was not, RefusedError (IDEMPOTENCY_IN_PROGRESS), and StoreUnavailable.
        """
        word = _word_for_count(asked.request) if error.refusal.kind in _CHANGED_SINCE else None
        if word is None:
            raise error
        asked.call.rate = error.refusal.rate or asked.call.rate
        answer = await self.intake.told_before(asked.key, word, asked.fingerprint())
        if answer is None:
            raise error
        if isinstance(answer, Refusal):
            raise RefusedError(answer)
        return asked.endpoint.respond(answer)

    async def _accept(self, asked: _Asked, wanted: Wanted, found: Found, room: MemoryGate) -> Response:
        """room: where it waits for memory when its few words name megabytes."""
        if found.octets <= THREAD_OCTETS:
            return await self._submit(asked, await self._complete(wanted, found), is_counted=True)
        async with room.admit(min(found.octets, MAX_TOTAL_OCTETS)):
            return await self._submit(asked, await self._complete(wanted, found), is_counted=True)

    async def _complete(self, wanted: Wanted, found: Found) -> _Ready:
        draft = await self.materials.complete(found)
        return _Ready(wanted.recipients, draft, found.note, wanted.word)

    async def _submit(self, asked: _Asked, ready: _Ready, *, is_counted: bool) -> Response:
        call, key = asked.call, asked.key
        version, cipher = call.connection.tls()
        submission = Submission(
            key=key,
            origin=Origin(Door.HTTP, str(call.client_ip), call.request_id, tls_version=version, tls_cipher=cipher),
            recipients=ready.recipients,
            source=ready.draft,
            idempotency_word=ready.word,
            fingerprint=asked.fingerprint(),
            steps=_steps(asked.request, asked.body, key, f"{version} {cipher}".strip(), ready.note),
            is_counted=is_counted,
        )
        answer = await self.intake.accept(submission)
        if isinstance(answer, Refusal):
            raise RefusedError(answer)
        call.rate = answer.rate or call.rate
        return asked.endpoint.respond(answer)


def _word_of(request: Request | QuickRequest) -> str | None:
    return read_idempotency_word(request.headers.getlist("Idempotency-Key"))


def _word_for_count(request: Request | QuickRequest) -> str | None:
    """As it stands there: what is wrong with it is told in its turn."""
    with suppress(RefusedError):
        return _word_of(request)
    return None


def _judged(request: Request | QuickRequest, read: Callable[[], Wanted]) -> Wanted:
    """What `read` gives, with the idempotency word; a bad one is told before anything is too large."""
    try:
        wanted = read()
    except RefusedError as error:
        if error.refusal.kind in SIZE_KINDS:
            _word_of(request)
        raise
    word = _word_of(request)
    return wanted if word is None else replace(wanted, word=word)


def _steps(request: Request | QuickRequest, body: Received, key: KeyIdentity, tls: str, note: str) -> tuple[Step, ...]:
    """The inbound leg, as Logs shows it: no secret in it."""
    at_us = time.time_ns() // 1000
    said = f"POST {request.path} HTTP/{request.http_version}, {body.content.size} octets, key …{key.last_five}"
    steps = [Step(at_us, Who.NOTE, f"TLS: {tls}")] if tls else []
    steps.append(Step(at_us, Who.PEER, said))
    if note:
        steps.append(Step(at_us, Who.NOTE, note[:MAX_TEXT]))
    return tuple(steps)


def receipt_response(receipt: Receipt) -> Response:
    """200 when everything that could leave has left, 202 when something still waits."""
    data = SendData(
        message_id=receipt.message_id,
        smtp_message_id=receipt.header_message_id,
        status=receipt.status,
        sender=receipt.sender,
        recipients=receipt.recipients,
        credits_charged=receipt.credits_charged,
        rejected=[RejectedOut(each.address, str(each.reply)) for each in receipt.rejected],
        retry_hint=receipt.retry_hint if receipt.status is Status.QUEUED else None,
    )
    response = json_response(200 if receipt.status is Status.SENT else 202, SendAnswer(ok=True, data=data))
    if receipt.replayed:
        response.headers["idempotency-replayed"] = "true"
    return response


async def _reader(key: KeyIdentity) -> Callable[[Content, int], Wanted]:
    del key
    return read_request


SEND_ENDPOINT = Endpoint(NAMESPACE, reader=_reader, respond=receipt_response)


def send_blueprint(desk: SendDesk) -> Blueprint:
    """The route of the endpoint."""
    blueprint = Blueprint("send", __name__)

    @blueprint.post(SEND_PATH, provide_automatic_options=False)
    async def send() -> Response:
        request: Any = current_request
        return await desk.send(request, request.call, SEND_ENDPOINT)

    return blueprint
