# SPDX-License-Identifier: Apache-2.0
"""`POST /api/v1/email/send`: one JSON request becomes one submission (send-api.md).

The order of the checks is that of the contract's error table.  Each step raises RefusedError; the application's
boundary makes the answer.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio
from quart import Blueprint
from quart import request as current_request
from quart.wrappers import Request, Response

from hepmaild.errors import Refusal, RefusedError
from hepmaild.events import Step, Who
from hepmaild.http.auth import identify
from hepmaild.http.body import Received, check_length, check_media_type, read_body
from hepmaild.http.call import Call
from hepmaild.http.errors import json_response
from hepmaild.http.fields import Wanted, read_idempotency_word, read_request
from hepmaild.http.limits import MemoryGate, Timeouts
from hepmaild.intake import Intake
from hepmaild.mail.submission import Door, KeyIdentity, Origin, Receipt, Status, Submission

THREAD_OCTETS = 256 << 10  # above this, JSON and base64 are worked on in a thread, and the memory gate counts
# Two requests of the largest size at once, one of them being parsed: measured, 20 of them peak at 290 MB in all.
GATE_OCTETS = 52 << 20
ENDPOINT = b"email/send\x00"  # the same body at another endpoint is another call


@dataclass(slots=True)
class SendDesk:
    """What the send endpoint needs.

    max_request, max_recipients: from the settings.  spool_dir: for large bodies; None: the system's.  threads: for
    parsing them; files: for writing them.
    """

    intake: Intake
    max_request: int
    max_recipients: int
    spool_dir: Path | None = None
    timeouts: Timeouts = Timeouts()
    threads: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 1))
    files: trio.CapacityLimiter = field(default_factory=partial(trio.CapacityLimiter, 4))
    gate: MemoryGate = field(init=False)

    def __post_init__(self) -> None:
        self.gate = MemoryGate(GATE_OCTETS, self.timeouts.gate_s)

    async def send(self, request: Request, call: Call) -> Response:
        """Answer one request.  Raises RefusedError and StoreUnavailable.

        Cancelled before the commit it costs nothing but the call; from the commit on the message is accepted.
        """
        key = await identify(self.intake, call, request.headers.get("Authorization"))
        check_length(request, self.max_request)
        body = await read_body(request, self.max_request, self.timeouts, self.spool_dir, self.files)
        try:
            check_media_type(request)
            if body.content.size <= THREAD_OCTETS:
                wanted = read_request(body.content, self.max_recipients)
                return await self._accept(request, call, key, body, wanted)
            async with self.gate.admit(body.content.size):
                wanted = await trio.to_thread.run_sync(
                    read_request, body.content, self.max_recipients, limiter=self.threads
                )
                return await self._accept(request, call, key, body, wanted)
        finally:
            body.content.close()

    async def _accept(self, request: Request, call: Call, key: KeyIdentity, body: Received, wanted: Wanted) -> Response:
        word = read_idempotency_word(request.headers.getlist("Idempotency-Key"))
        version, cipher = call.connection.tls()
        submission = Submission(
            key=key,
            origin=Origin(Door.HTTP, str(call.client_ip), call.request_id, tls_version=version, tls_cipher=cipher),
            recipients=wanted.recipients,
            source=wanted.draft,
            idempotency_word=word,
            fingerprint=hashlib.sha256(ENDPOINT + body.digest).digest(),
            steps=_steps(request, body, key, f"{version} {cipher}".strip()),
        )
        del wanted
        answer = await self.intake.accept(submission)
        if isinstance(answer, Refusal):
            raise RefusedError(answer)
        return receipt_response(answer)


def _steps(request: Request, body: Received, key: KeyIdentity, tls: str) -> tuple[Step, ...]:
    """The inbound leg, as Logs shows it: no secret in it."""
    at_us = time.time_ns() // 1000
    said = f"POST {request.path} HTTP/{request.http_version}, {body.content.size} octets, key …{key.last_five}"
    if tls:
        return (Step(at_us, Who.NOTE, f"TLS: {tls}"), Step(at_us, Who.PEER, said))
    return (Step(at_us, Who.PEER, said),)


def receipt_response(receipt: Receipt) -> Response:
    """200 when everything that could leave has left, 202 when something still waits."""
    data: dict[str, Any] = {
        "messageId": receipt.message_id,
        "smtpMessageId": receipt.header_message_id,
        "status": receipt.status.value,
        "from": receipt.sender,
        "recipients": receipt.recipients,
        "creditsCharged": receipt.credits_charged,
    }
    if receipt.rejected:
        data["rejected"] = [{"address": each.address, "reply": str(each.reply)} for each in receipt.rejected]
    if receipt.status is Status.QUEUED:
        data["retryHint"] = receipt.retry_hint
    response = json_response(200 if receipt.status is Status.SENT else 202, {"ok": True, "data": data})
    if receipt.replayed:
        response.headers["idempotency-replayed"] = "true"
    return response


def send_blueprint(desk: SendDesk) -> Blueprint:
    """The route of the endpoint."""
    blueprint = Blueprint("send", __name__)

    @blueprint.post("/api/v1/email/send", provide_automatic_options=False)
    async def send() -> Response:
        request: Any = current_request
        return await desk.send(request, request.call)

    return blueprint
