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
from hepmaild.mail.sizes import MAX_ATTACHMENTS

MAX_FILENAME = 255
MAX_HEADERS = 100
MAX_HEADER_NAME = 76
MAX_HEADER_VALUE = 8192
# Header fields that are ours to write, and the beginnings of such.
DENIED = frozenset(
    {
        "apparently-to", "arc-authentication-results", "arc-message-signature", "arc-seal", "authentication-results",
        "bcc", "cc", "date", "delivered-to", "dkim-signature", "domainkey-signature", "from", "message-id",
        "mime-version", "received", "received-spf", "reply-to", "return-path", "sender", "subject", "to",
        "x-idempotency-key",
    }
)  # fmt: skip
DENIED_PREFIXES = ("content-", "resent-")

_PLAIN = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
LINE = f"^{_PLAIN}*$"
# Every mailbox that is accepted fits this; the converse would be a page of RFC 5321.
MAILBOX = f"^{_PLAIN}+@{_PLAIN}+$"
# Every repetition has its end, since it goes into one line, and no character two of them that are neighbours.
MEDIA_TYPE = r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(?: {0,20};[\x20-\x7e]{1,500})?"
CONTENT_ID = r"[!-;=?-~]{1,200}"


def _any_case(word: str) -> str:
    """A pattern for a word in capitals and small letters; flags are no part of ECMA-262's patterns in schemas."""
    return "".join(f"[{each.upper()}{each}]" if each.isalpha() else each for each in word)


_WORDS = "|".join([*(_any_case(word) + "$" for word in sorted(DENIED)), *map(_any_case, DENIED_PREFIXES)])
HEADER_NAME = f"^(?!{_WORDS})[!-9;-~]{{1,{MAX_HEADER_NAME}}}$"

Variables = dict[str, str | int | float | bool | None]


def described(description: str = "", *examples: Any, **schema: Any) -> Meta:
    """Words for the description; `schema` says more about the values, and is checked elsewhere."""
    return Meta(description=description or None, examples=list(examples) or None, extra_json_schema=schema or None)


Address = Annotated[str, described(format="mailbox", pattern=MAILBOX)]
MaybeAddress = Annotated[str, described(format="mailbox", pattern=f"{MAILBOX}|^$")]
ReplyTo = Annotated[str, described(format="mailbox", pattern=f"{MAILBOX}|^$|^[\\s\\S]{{321,}}$")]
TemplateId = Annotated[str, described(format="template-id")]
TemplateKey = Annotated[str, described(format="template-key")]
Headers = Annotated[
    dict[str, Annotated[str, described(pattern=LINE, maxLength=MAX_HEADER_VALUE)]],
    described(propertyNames={"pattern": HEADER_NAME}, maxProperties=MAX_HEADERS),
]
Line = Annotated[str, described(pattern=LINE)]


class AttachmentIn(msgspec.Struct, rename="camel"):
    """A file, in base64 (`filename` and `content`) or uploaded before (`uploadId`)."""

    filename: Annotated[
        Annotated[str, described(pattern=LINE, minLength=1, maxLength=MAX_FILENAME)] | None,
        described(f"1 to {MAX_FILENAME} characters; with uploadId, another name than the upload's.", "invoice.pdf"),
    ] = None
    content: Annotated[
        Annotated[bytes, described(format="byte")] | None,
        described("The file in base64; line breaks are allowed.", "SGVsbG8="),
    ] = None
    content_type: Annotated[
        Annotated[str, described(pattern=f"^({MEDIA_TYPE})?$")] | None,
        described("Its media type; application/octet-stream when left out.", "application/pdf"),
    ] = None
    content_id: Annotated[
        Annotated[str, described(pattern=f"^(<?{CONTENT_ID}>?)?$")] | None,
        described("Shows the file inline, where the HTML says cid: and this word.", "logo"),
    ] = None
    upload_id: Annotated[
        Annotated[str, described(format="upload-id")] | None,
        described("A file of this account, put in by POST /api/v1/email/uploads."),
    ] = None


Attachments = Annotated[list[AttachmentIn], described(maxItems=MAX_ATTACHMENTS)]


class SendRequest(msgspec.Struct, rename="camel"):
    """A message to be sent.  Unknown members are ignored."""

    to: Annotated[
        Address | Annotated[list[Address], described(minItems=1)],
        described("One address or several; a display name is allowed.", "joe@example.com"),
    ]
    cc: Annotated[MaybeAddress | list[Address] | None, described("As to; written into the message.")] = None
    bcc: Annotated[MaybeAddress | list[Address] | None, described("As to; never written into the message.")] = None
    subject: Annotated[Line | None, described("Cut to 988 characters.", "Hello")] = None
    html: Annotated[str | None, described("The message in HTML; html, text or both.", "<p>Hello</p>")] = None
    text: Annotated[str | None, described("The message as plain text.", "Hello")] = None
    sender: Annotated[
        Annotated[str, described(format="sender", pattern=MAILBOX)] | None,
        described("An address the account may send from; left out: its default.", "Acme <noreply@hep.gg>"),
    ] = msgspec.field(name="from", default=None)
    from_name: Annotated[
        Line | None, described("The display name; wins over the one in from.  Cut to 100 characters.", "Acme")
    ] = None
    reply_to: Annotated[
        ReplyTo | None,
        described("Where answers go; dropped when longer than 320 characters.", "help@example.com"),
    ] = None
    headers: Annotated[
        Headers | None,
        described(f"Further header fields, at most {MAX_HEADERS}.", {"X-Order": "1234"}),
    ] = None
    attachments: Annotated[Attachments | None, described(f"At most {MAX_ATTACHMENTS} files.")] = None
    template_id: Annotated[TemplateId | None, described("A template of the account, by its id.")] = None
    template_key: Annotated[
        TemplateKey | None,
        described("A template of the account, by its key.", "welcome"),
    ] = None
    variables: Annotated[
        Variables | None, described("What the placeholders of a template stand for.", {"name": "Joe"})
    ] = None


class RefreshRequest(msgspec.Struct):
    """A refresh token."""

    refresh_token: Annotated[str, described("128 characters, of an earlier answer.")]


class UploadRequest(msgspec.Struct):
    """The parts of a multipart/form-data body.  Others are ignored."""

    file: Annotated[str, described("The file, with its filename; its Content-Type is kept.", format="binary")]


SEND = Shape(SendRequest)
REFRESH = Shape(RefreshRequest)


def _given(*names: str, **others: Any) -> dict[str, Any]:
    """These stand there, and are not empty."""
    return {
        "required": list(names),
        "properties": {**{name: {"type": "string", "minLength": 1} for name in names}, **others},
    }


_NULL = {"type": "null"}
_EMPTY = {"type": ["null", "string"], "maxLength": 0}
_BY_TEMPLATE = [
    _given("templateId", subject=_EMPTY, html=_EMPTY, templateKey=_NULL),
    _given("templateKey", subject=_EMPTY, html=_EMPTY, templateId=_NULL),
]

# What the types cannot say of a whole object.
WHOLE: dict[str, dict[str, Any]] = {
    "SendRequest": {
        "anyOf": [
            _given("html", templateId=_NULL, templateKey=_NULL),
            _given("text", templateId=_NULL, templateKey=_NULL),
            *_BY_TEMPLATE,
        ]
    },
    "OwnSendRequest": {
        "required": ["from", "to"],
        "allOf": [{"properties": {"from": {"type": "string"}, "to": {"type": ["string", "array"]}}}],
        "anyOf": [_given("subject", "html", templateId=_NULL, templateKey=_NULL), *_BY_TEMPLATE],
    },
    "AttachmentIn": {
        "anyOf": [
            {
                "required": ["filename", "content"],
                "properties": {"filename": {"type": "string"}, "content": {"type": "string"}, "uploadId": _NULL},
            },
            _given("uploadId", content=_NULL),
        ]
    },
}
