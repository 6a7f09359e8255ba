# SPDX-License-Identifier: Apache-2.0
"""What answers look like: these types are written as JSON, and the same types describe it in `/api/openapi.json`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hepmaild.mail.submission import Status

EpochMs = Annotated[int, Meta(description="Unix time in milliseconds.")]
Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]


class RejectedOut(msgspec.Struct):
    """A recipient that the next hop refused for good; its credit was refunded."""

    address: str
    reply: Annotated[str, Meta(description="The next hop's own words.")]


class SendData(msgspec.Struct, rename="camel", omit_defaults=True):
    """What became of a message so far."""

    message_id: Annotated[
        str, Meta(description="The id shown in Logs.", extra_json_schema={"pattern": "^[0-9a-f]{16}$"})
    ]
    smtp_message_id: Annotated[str, Meta(description="The Message-ID header.")]
    status: Annotated[
        Status, Meta(description="queued: somebody still waits for an attempt; it is made without another call.")
    ]
    sender: Annotated[str, Meta(description="The address in From.")] = msgspec.field(name="from")
    recipients: Annotated[int, Meta(description="Distinct recipients.")]
    credits_charged: Annotated[int, Meta(description="Without the refunded ones.")]
    rejected: list[RejectedOut] = []
    retry_hint: Annotated[str | None, Meta(description="With queued: why, and when the next attempt is.")] = None


class SendAnswer(msgspec.Struct):
    """An accepted message."""

    ok: bool
    data: SendData


class ErrorAnswer(msgspec.Struct, omit_defaults=True):
    """Why a call was refused.  Nothing was charged, or it was refunded."""

    ok: bool
    error: Annotated[str, Meta(description="A sentence that says what to do.")]
    code: Annotated[str, Meta(description="For programs.")]
    field: Annotated[str | None, Meta(description="The offending field, such as cc[2] or headers.X-Foo.")] = None
    required: Annotated[int | None, Meta(description="With INSUFFICIENT_CREDITS: what the message costs.")] = None
    balance: Annotated[int | None, Meta(description="With INSUFFICIENT_CREDITS: what there is.")] = None


class UploadData(msgspec.Struct, rename="camel"):
    """A file that waits for a message."""

    upload_id: Uuid
    filename: str
    size: Annotated[int, Meta(description="In octets.")]


class UploadAnswer(msgspec.Struct):
    """A file was put in."""

    ok: bool
    data: UploadData


class OwnSendAnswer(msgspec.Struct, rename="camel", omit_defaults=True):
    """An accepted message."""

    success: bool
    message_id: Annotated[str, Meta(description="The Message-ID header.")]
    queued: Annotated[bool, Meta(description="The first attempt did not finish; others follow.")] = False


class OwnSendError(msgspec.Struct):
    """Why a call was refused.  Nothing was charged, or it was refunded."""

    error: Annotated[str, Meta(description="A sentence that says what to do.")]
    code: Annotated[str, Meta(description="For programs.")]


class LoginError(msgspec.Struct):
    """Why a call was refused."""

    code: Annotated[int, Meta(description="For programs.")]
    message: str


class Tokens(msgspec.Struct):
    """Somebody is logged in."""

    token_type: Literal["bearer"]
    access_token: Annotated[str, Meta(description="A JWT that holds for 15 minutes at most.")]
    expires_at: EpochMs
    scope: list[Annotated[str, Meta(extra_json_schema={"enum": ["owner", "admin", "read_only"]})]]
    refresh_token: Annotated[str, Meta(description="128 characters; it can be used once.")]


class User(msgspec.Struct):
    """Who is logged in."""

    id: Uuid
    account_id: Uuid
    email_address: str
    first_name: str
    surname: str
    gravatar_url: Annotated[str, Meta(description="Empty unless the operator turned it on.")]
    is_owner: bool
    is_verified: bool
    created_at_utc: EpochMs
    modified_at_utc: EpochMs


class Nothing(msgspec.Struct):
    """An empty object: the status says it all."""


class Healthy(msgspec.Struct):
    """The process answers."""

    ok: bool


class Ready(msgspec.Struct):
    """Whether new mail can be taken, and why not."""

    ok: bool
    problems: list[str]
