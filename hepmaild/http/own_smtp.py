# SPDX-License-Identifier: Apache-2.0
"""`POST /v1/emails`: a message by one of the account's own SMTP servers (own-smtp-api.md).

It differs from the other send call in what it reads and in what it says.  Everything between, the desk, the intake,
the pool and the ledger, is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from quart import Blueprint
from quart import request as current_request
from quart.wrappers import Response

from hepmaild.http.answers import OwnSendAnswer
from hepmaild.http.errors import json_response
from hepmaild.http.fields import Wanted
from hepmaild.http.own_fields import read_own_request
from hepmaild.http.send import Endpoint, SendDesk
from hepmaild.mail.content import Content
from hepmaild.mail.submission import KeyIdentity, Permission, Receipt, Status
from hepmaild.own_servers import OwnServers

PATH = "/v1/emails"
NAMESPACE = b"v1/emails\x00"


def own_response(receipt: Receipt) -> Response:
    """200, or 202 with `queued` when the first attempt did not finish, or did not bring everything to its end."""
    is_queued = receipt.status is Status.QUEUED
    body = OwnSendAnswer(success=True, message_id=receipt.header_message_id, queued=is_queued)
    response = json_response(202 if is_queued else 200, body)
    if receipt.replayed:
        response.headers["idempotency-replayed"] = "true"
    return response


def own_endpoint(servers: OwnServers) -> Endpoint:
    """How the desk works for this call."""

    async def reader(key: KeyIdentity) -> Callable[[Content, int], Wanted]:
        return partial(read_own_request, servers=await servers.of_account(key.account_id))

    return Endpoint(
        NAMESPACE, reader=reader, respond=own_response, needs=Permission.OWN_SMTP, unreadable_is_missing=True
    )


def own_blueprint(desk: SendDesk, servers: OwnServers) -> Blueprint:
    """The route of the endpoint."""
    blueprint = Blueprint("own_smtp", __name__)
    endpoint = own_endpoint(servers)

    @blueprint.post(PATH, provide_automatic_options=False)
    async def send() -> Response:
        request: Any = current_request
        return await desk.send(request, request.call, endpoint)

    return blueprint
