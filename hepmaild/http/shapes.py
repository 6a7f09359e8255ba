# SPDX-License-Identifier: Apache-2.0
"""What requests look like: these types read the JSON, and the same types describe it in `/api/openapi.json`.

Only the types of values are judged while reading (`typed`); what a value says is judged by who uses it, with the code
that the contract has for it.  What a `Meta` says here about lengths and forms is for the description.  Null is taken as
absent wherever a member may be absent.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hepmaild.http.typed import Shape

MAX_FILENAME = 255
MAX_HEADERS = 100

Variables = dict[str, str | int | float | bool | None]


def _described(description: str, *examples: Any, **schema: Any) -> Meta:
    """Words for the description; `schema` says more about the values, and is checked elsewhere."""
    return Meta(description=description, examples=list(examples) or None, extra_json_schema=schema or None)


class AttachmentIn(msgspec.Struct, rename="camel"):
    """A file, in base64 (`filename` and `content`) or uploaded before (`uploadId`)."""

    filename: Annotated[
        str | None,
        _described(f"1 to {MAX_FILENAME} characters; with uploadId, another name than the upload's.", "invoice.pdf"),
    ] = None
    content: Annotated[bytes | None, _described("The file in base64; line breaks are allowed.", "SGVsbG8=")] = None
    content_type: Annotated[
        str | None, _described("Its media type; application/octet-stream when left out.", "application/pdf")
    ] = None
    content_id: Annotated[
        str | None, _described("Shows the file inline, where the HTML says cid: and this word.", "logo")
    ] = None
    upload_id: Annotated[str | None, _described("A file of this account, put in by POST /api/v1/email/uploads.")] = None


class SendRequest(msgspec.Struct, rename="camel"):
    """A message to be sent.  Unknown members are ignored."""

    to: Annotated[
        str | list[str],
        _described("One address or several; a display name is allowed.", "joe@example.com"),
    ]
    cc: Annotated[str | list[str] | None, _described("As to; written into the message.")] = None
    bcc: Annotated[str | list[str] | None, _described("As to; never written into the message.")] = None
    subject: Annotated[str | None, _described("Cut to 988 characters; no control characters.", "Hello")] = None
    html: Annotated[str | None, _described("The message in HTML; html, text or both.", "<p>Hello</p>")] = None
    text: Annotated[str | None, _described("The message as plain text.", "Hello")] = None
    sender: Annotated[
        str | None,
        _described("An address the account may send from; left out: its default.", "Acme <noreply@hep.gg>"),
    ] = msgspec.field(name="from", default=None)
    from_name: Annotated[
        str | None, _described("The display name; wins over the one in from.  Cut to 100 characters.", "Acme")
    ] = None
    reply_to: Annotated[
        str | None, _described("Where answers go; dropped when longer than 320 characters.", "help@example.com")
    ] = None
    headers: Annotated[
        dict[str, str] | None,
        _described(f"Further header fields, at most {MAX_HEADERS}.", {"X-Order": "1234"}),
    ] = None
    attachments: Annotated[list[AttachmentIn] | None, _described("At most 10 files.")] = None
    template_id: Annotated[str | None, _described("A template of the account, by its id.")] = None
    template_key: Annotated[str | None, _described("A template of the account, by its key.", "welcome")] = None
    variables: Annotated[
        Variables | None, _described("What the placeholders of a template stand for.", {"name": "Joe"})
    ] = None


class RefreshRequest(msgspec.Struct):
    """A refresh token."""

    refresh_token: Annotated[str, _described("128 characters, of an earlier answer.")]


SEND = Shape(SendRequest)
REFRESH = Shape(RefreshRequest)
