# SPDX-License-Identifier: Apache-2.0
"""An example of every refusal, for the description of the API: as the doors say them, made by the same functions."""

from __future__ import annotations

from hepmaild.errors import ErrorKind as Kind
from hepmaild.errors import Refusal
from hepmaild.mail.reply import Reply

# Only the SMTP door says these.
SMTP_ONLY = frozenset({Kind.MALFORMED_MESSAGE})

# Only uploads are refused so.
UPLOAD_ONLY = frozenset({Kind.INVALID_UPLOAD, Kind.UPLOAD_QUOTA_REACHED})
# Only POST /v1/emails says these, and it cannot say those.
OWN_ONLY = frozenset({Kind.MISSING_FIELDS, Kind.SMTP_NOT_FOUND})
NOT_OWN = frozenset({Kind.NO_RECIPIENTS, Kind.HEADER_NOT_ALLOWED})

REFUSALS: tuple[Refusal, ...] = (
    Refusal(Kind.HTTPS_REQUIRED, "Use https:// instead of http://."),
    Refusal(
        Kind.MALFORMED_REQUEST,
        "This is not a proper HTTP request; a library that speaks HTTP/1.1 or HTTP/2 makes one.",
    ),
    Refusal(Kind.NOT_FOUND, "There is nothing at this path; mail is sent by POST /api/v1/email/send."),
    Refusal(Kind.METHOD_NOT_ALLOWED, "Use POST here."),
    Refusal(Kind.MISSING_KEY, "Send your API key: Authorization: Bearer hyd-mail-…"),
    Refusal(Kind.INVALID_KEY, "This is not a valid API key."),
    Refusal(Kind.KEY_DISABLED, "This API key is disabled; enable it in the dashboard."),
    Refusal(Kind.KEY_EXPIRED, "This API key has expired; change its expiry in the dashboard."),
    Refusal(Kind.IP_NOT_ALLOWED, "This API key may not be used from 192.0.2.1."),
    Refusal(Kind.CHANNEL_NOT_ALLOWED, "This API key may not send by HTTP."),
    Refusal(Kind.ACCOUNT_SUSPENDED, "This account is suspended; ask the operator."),
    Refusal(Kind.RATE_LIMITED, "This key may make 120 calls a minute; try again in 12 seconds.", retry_after_s=12),
    Refusal(
        Kind.DAILY_LIMIT_REACHED, "The messages of today (UTC) are used up; try again tomorrow.", retry_after_s=3600
    ),
    Refusal(Kind.TOO_MANY_CONNECTIONS, "Your IP address has 20 connections open; close some first.", retry_after_s=1),
    Refusal(Kind.TOO_MANY_FAILED_KEYS, "Too many wrong keys came from your IP address.", retry_after_s=60),
    Refusal(Kind.REQUEST_TOO_LARGE, "The request is larger than 26214400 octets; send fewer or smaller attachments."),
    Refusal(Kind.MESSAGE_TOO_LARGE, "The message is larger than 26214400 octets; send less."),
    Refusal(Kind.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with the header Content-Type: application/json."),
    Refusal(Kind.INVALID_JSON, "The body is not a JSON object: Expecting value at line 1, column 1."),
    Refusal(Kind.MISSING_FIELDS, "Missing required fields: smtpId, from, to"),
    Refusal(Kind.NO_RECIPIENTS, "to must name at least one address.", field="to"),
    Refusal(
        Kind.TOO_MANY_RECIPIENTS,
        "A message may have 100 recipients over to, cc and bcc; send several.",
        field="to[100]",
    ),
    Refusal(
        Kind.INVALID_ADDRESS,
        "cc[2] is not an email address: An email address must have an @-sign.",
        field="cc[2]",
    ),
    Refusal(Kind.NO_BODY, "Send html, text or both; both are empty.", field="html"),
    Refusal(
        Kind.CONFLICTING_CONTENT,
        "html and templateKey exclude each other: the template has its own; leave one of them out.",
        field="html",
    ),
    Refusal(Kind.INVALID_FIELD, "subject must be a string.", field="subject"),
    Refusal(
        Kind.INVALID_HEADER_VALUE,
        "headers.X-Foo holds a line break or another control character; leave it out.",
        field="headers.X-Foo",
    ),
    Refusal(
        Kind.HEADER_NOT_ALLOWED,
        "The header field From cannot be set this way; leave it out.",
        field="headers.From",
    ),
    Refusal(
        Kind.INVALID_ATTACHMENT,
        "attachments[0].content is not base64.",
        field="attachments[0].content",
    ),
    Refusal(
        Kind.INVALID_IDEMPOTENCY_KEY,
        "Idempotency-Key must be 1 to 256 printable characters, and stand there once.",
        field="Idempotency-Key",
    ),
    Refusal(
        Kind.UNKNOWN_UPLOAD,
        "attachments[0].uploadId names no upload of this account.",
        field="attachments[0].uploadId",
    ),
    Refusal(
        Kind.INVALID_UPLOAD,
        "The multipart body cannot be used: there is no file in it, in a part named file.",
        field="file",
    ),
    Refusal(
        Kind.UPLOAD_QUOTA_REACHED,
        "The uploads of this account have no room for that; they go 24 hours after they came.",
        retry_after_s=3600,
    ),
    Refusal(Kind.UNKNOWN_TEMPLATE, "templateKey names no template of this account.", field="templateKey"),
    Refusal(Kind.BODY_TOO_LARGE, "The html and text together are larger than 10 MB; shorten them.", field="html"),
    Refusal(Kind.TOO_MANY_ATTACHMENTS, "A message may have 10 attachments; send fewer.", field="attachments"),
    Refusal(
        Kind.ATTACHMENT_TOO_LARGE,
        "An attachment may have 15 MB; this one is larger.",
        field="attachments[0]",
    ),
    Refusal(Kind.SMTP_NOT_FOUND, "smtpId names no SMTP server of this account.", field="smtpId"),
    Refusal(Kind.SENDER_NOT_ALLOWED, "This account may not send from boss@example.com.", field="from"),
    Refusal(Kind.IDEMPOTENCY_MISMATCH, "This Idempotency-Key was used with another body; take a new one."),
    Refusal(Kind.IDEMPOTENCY_IN_PROGRESS, "The first call with this Idempotency-Key still runs; try again soon."),
    Refusal(
        Kind.INSUFFICIENT_CREDITS,
        "This message costs 3 credits, and the account has 1.",
        extra={"required": 3, "balance": 1},
    ),
    Refusal(
        Kind.RELAY_FAILED,
        "The next hop refused every recipient for good: 550 5.1.1 no such user. The credits were refunded.",
        reply=Reply(550, "5.1.1", "no such user"),
    ),
    Refusal(
        Kind.UNAVAILABLE,
        "The service cannot store anything at the moment; try again soon. Nothing was charged.",
        retry_after_s=5,
    ),
    Refusal(Kind.BACKLOG_FULL, "Too many messages wait; try again later. Nothing was charged.", retry_after_s=60),
    Refusal(Kind.DRAINING, "The service is about to stop; try again soon.", retry_after_s=5),
    Refusal(
        Kind.INTERNAL,
        "Something went wrong on our side; nothing was charged. Name request 5f0c3a9be1d24b76 to support.",
    ),
)
BY_KIND = {refusal.kind: refusal for refusal in REFUSALS}
