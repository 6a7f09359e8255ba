# SPDX-License-Identifier: Apache-2.0
"""What can be called, as a table: the part of `/api/openapi.json` that no type knows.

Order of everything is that of the document, and of the page at `/api/docs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hepmaild.errors import ErrorKind, Refusal
from hepmaild.http.answers import (
    ErrorAnswer,
    Healthy,
    LoginError,
    Nothing,
    OwnSendAnswer,
    OwnSendError,
    Ready,
    SendAnswer,
    Tokens,
    UploadAnswer,
    User,
)
from hepmaild.http.errors import error_answer, login_answer, own_smtp_answer
from hepmaild.http.examples import BY_KIND, NOT_OWN, OWN_ONLY, REFUSALS, SMTP_ONLY, UPLOAD_ONLY
from hepmaild.http.oauth import BAD_ACCESS_TOKEN, STORE_DOWN, UNKNOWN_GRANT
from hepmaild.http.own_fields import OwnSendRequest
from hepmaild.http.shapes import RefreshRequest, SendRequest, UploadRequest
from hepmaild.login import (
    BAD_REFRESH_TOKEN,
    BAD_REVOKED_TOKEN,
    BUSY,
    NEEDS_CODE,
    SUSPENDED,
    WRONG_PASSWORD,
    LoginRefusal,
    too_many,
)

JSON = "application/json"
ELSEWHERE = SMTP_ONLY | UPLOAD_ONLY
RATE_HEADERS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@dataclass(frozen=True, slots=True)
class Answer:
    """One status that is no refusal.  headers: beside x-request-id, those that may stand there."""

    status: int
    what: str
    type: type[msgspec.Struct] | None
    example: Any
    headers: tuple[str, ...] = ()
    media: str = JSON


@dataclass(frozen=True, slots=True)
class Denial:
    """One refusal, as an example of its status."""

    status: int
    name: str
    body: dict[str, Any]

    @property
    def code(self) -> str | int:
        """What programs look at."""
        code: str | int = self.body["code"]
        return code


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    security: names of schemes, any of which will do; none: everybody may.  body_examples: by name.  denials: everything
    it can be refused with; error: their type.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    description: str
    answers: tuple[Answer, ...]
    denials: tuple[Denial, ...]
    error: type[msgspec.Struct] = ErrorAnswer
    security: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("X-Request-Id",)
    body: type[msgspec.Struct] | None = None
    body_media: str = JSON
    body_required: bool = True
    body_examples: dict[str, Any] = field(default_factory=dict)
    denial_headers: tuple[str, ...] = ()
    curl: str = ""


def _denial(refusal: Refusal, answer_of: Callable[[Refusal], tuple[int, dict[str, Any]]] = error_answer) -> Denial:
    status, body = answer_of(refusal)
    return Denial(status, refusal.kind.name, body)


def _denials(*kinds: ErrorKind) -> tuple[Denial, ...]:
    chosen = [refusal for refusal in REFUSALS if not kinds or refusal.kind in kinds]
    return tuple(_denial(each) for each in chosen)


def _as_login(refusal: LoginRefusal | Refusal) -> Denial:
    if isinstance(refusal, Refusal):
        return _denial(refusal, login_answer)
    return Denial(refusal.http_status, str(refusal.code), {"code": refusal.code, "message": refusal.message})


def _login_denials(*refusals: LoginRefusal, body: bool = False) -> tuple[Denial, ...]:
    kinds = _ALWAYS
    if body:
        kinds += (ErrorKind.REQUEST_TOO_LARGE, ErrorKind.UNSUPPORTED_MEDIA_TYPE, ErrorKind.INVALID_JSON)
    told = [_as_login(each) for each in (*refusals, STORE_DOWN)]
    return (*told, *(_as_login(BY_KIND[kind]) for kind in kinds))


_ALWAYS: tuple[ErrorKind, ...] = (
    ErrorKind.HTTPS_REQUIRED,
    ErrorKind.MALFORMED_REQUEST,
    ErrorKind.METHOD_NOT_ALLOWED,
    ErrorKind.TOO_MANY_CONNECTIONS,
    ErrorKind.INTERNAL,
)
_KEY_KINDS = (
    ErrorKind.MISSING_KEY,
    ErrorKind.INVALID_KEY,
    ErrorKind.KEY_DISABLED,
    ErrorKind.KEY_EXPIRED,
    ErrorKind.IP_NOT_ALLOWED,
    ErrorKind.CHANNEL_NOT_ALLOWED,
    ErrorKind.ACCOUNT_SUSPENDED,
    ErrorKind.TOO_MANY_FAILED_KEYS,
)
_UPLOAD_ID = "59e458ab-02f2-4ee8-99de-06ca2f944ae0"
_SENT = {
    "messageId": "a1b2c3d4e5f6a7b8",
    "smtpMessageId": "<0192f3a4b5c6@hep.gg>",
    "status": "sent",
    "from": "noreply@hep.gg",
    "recipients": 1,
    "creditsCharged": 1,
}
_SEND_HEADERS = (*RATE_HEADERS, "idempotency-replayed")

SEND = Operation(
    method="post",
    path="/api/v1/email/send",
    name="send",
    tag="Sending",
    summary="Send a message",
    description=(
        "The message is stored and charged, one credit for every distinct recipient, then handed to the next hop; the "
        "answer waits for the first attempt, for 10 seconds at most. Every call with a valid key counts towards the "
        "limit of calls a minute, whatever comes of it. After an error nothing is charged."
    ),
    security=("bearerKey", "basicKey"),
    parameters=("Idempotency-Key", "X-Request-Id"),
    body=SendRequest,
    body_examples={
        "text": {"to": "joe@example.com", "subject": "Hello", "text": "It works."},
        "all of it": {
            "to": ["Joe <joe@example.com>", "ann@example.com"],
            "cc": "boss@example.com",
            "subject": "Your invoice",
            "html": "<p>It is attached.</p>",
            "text": "It is attached.",
            "fromName": "Acme",
            "replyTo": "billing@example.com",
            "headers": {"X-Order": "1234"},
            "attachments": [{"filename": "hello.txt", "content": "SGVsbG8=", "contentType": "text/plain"}],
        },
    },
    answers=(
        Answer(
            200,
            "The next hop has the message. Recipients that it refused for good stand in rejected; their credits were "
            "refunded.",
            SendAnswer,
            {"ok": True, "data": _SENT},
            _SEND_HEADERS,
        ),
        Answer(
            202,
            "Accepted and charged, but somebody still waits; retryHint says why, and when the next attempt is.",
            SendAnswer,
            {
                "ok": True,
                "data": {
                    **_SENT,
                    "status": "queued",
                    "retryHint": "Not delivered yet: 451 4.3.0 busy. The next attempt is at 2027-01-15T08:01:00Z.",
                },
            },
            _SEND_HEADERS,
        ),
    ),
    denials=tuple(_denial(each) for each in REFUSALS if each.kind not in ELSEWHERE | OWN_ONLY),
    denial_headers=RATE_HEADERS,
    curl="""curl {url}/api/v1/email/send \\
  -H 'Authorization: Bearer YOUR_API_KEY' \\
  -H 'Content-Type: application/json' \\
  -d '{{"to": "joe@example.com", "subject": "Hello", "text": "It works."}}'""",
)

OWN_SEND = Operation(
    method="post",
    path="/v1/emails",
    name="own-send",
    tag="Sending",
    summary="Send by a server of your own",
    description=(
        "The message leaves by an SMTP server that the account registered in the dashboard. Money, limits and log are "
        "those of the other call; so are cc, bcc, replyTo and attachments."
    ),
    security=("bearerKey", "basicKey"),
    parameters=("Idempotency-Key", "X-Request-Id"),
    body=OwnSendRequest,
    body_examples={
        "html": {
            "smtpId": "your_smtp_id",
            "from": "you@example.com",
            "to": "recipient@example.com",
            "subject": "Hello",
            "html": "<h1>Hello</h1>",
        }
    },
    answers=(
        Answer(
            200,
            "The server has the message.",
            OwnSendAnswer,
            {"success": True, "messageId": "<0192f3a4b5c6@example.com>"},
            _SEND_HEADERS,
        ),
        Answer(
            202,
            "Accepted and charged, but the first attempt did not finish.",
            OwnSendAnswer,
            {"success": True, "messageId": "<0192f3a4b5c6@example.com>", "queued": True},
            _SEND_HEADERS,
        ),
    ),
    denials=tuple(_denial(each, own_smtp_answer) for each in REFUSALS if each.kind not in ELSEWHERE | NOT_OWN),
    error=OwnSendError,
    denial_headers=RATE_HEADERS,
    curl="""curl -X POST {url}/v1/emails \\
  -H 'Authorization: Bearer YOUR_API_KEY' \\
  -H 'Content-Type: application/json' \\
  -d '{{"smtpId": "YOUR_SERVER", "from": "you@example.com", "to": "joe@example.com",
       "subject": "Hello", "html": "<h1>Hello</h1>"}}'""",
)

UPLOAD = Operation(
    method="post",
    path="/api/v1/email/uploads",
    name="upload",
    tag="Sending",
    summary="Put in a file",
    description=(
        "For attachments of messages to come, which name it by uploadId. It is kept for 24 hours, may have 15 MB, and "
        "belongs to the account: every key of it may use it. Nothing is charged, and no call is counted."
    ),
    security=("bearerKey", "basicKey", "accessToken"),
    body=UploadRequest,
    body_media="multipart/form-data",
    answers=(
        Answer(
            200,
            "The file is there.",
            UploadAnswer,
            {"ok": True, "data": {"uploadId": _UPLOAD_ID, "filename": "invoice.pdf", "size": 48213}},
            RATE_HEADERS,
        ),
    ),
    denials=_denials(
        *_ALWAYS,
        *_KEY_KINDS,
        ErrorKind.REQUEST_TOO_LARGE,
        ErrorKind.UNSUPPORTED_MEDIA_TYPE,
        ErrorKind.INVALID_HEADER_VALUE,
        ErrorKind.INVALID_UPLOAD,
        ErrorKind.UPLOAD_QUOTA_REACHED,
        ErrorKind.UNAVAILABLE,
        ErrorKind.DRAINING,
    ),
    denial_headers=RATE_HEADERS,
    curl="curl {url}/api/v1/email/uploads -H 'Authorization: Bearer YOUR_API_KEY' -F file=@invoice.pdf",
)

_BEARER_401 = (BAD_ACCESS_TOKEN,)
_TOKENS = {
    "token_type": "bearer",
    "access_token": "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJoZXBtYWlsZCJ9.c2lnbmF0dXJl",
    "expires_at": 1767225600000,
    "scope": ["owner"],
    "refresh_token": "x" * 128,
}
_USER = {
    "id": "19ab52c7-da60-4dd2-af27-19f17d6afe37",
    "account_id": "811affc1-66c7-4982-b39e-29f9536b4720",
    "email_address": "owner@example.com",
    "first_name": "Ada",
    "surname": "King",
    "gravatar_url": "",
    "is_owner": True,
    "is_verified": True,
    "created_at_utc": 1767139200000,
    "modified_at_utc": 1767139200000,
}

LOGIN = (
    Operation(
        method="post",
        path="/oauth/token",
        name="token",
        tag="Logging in",
        summary="Log in, or refresh",
        description=(
            "For programs that manage an account; to send, use a key. With grant_type=password, e-mail address and "
            "password come as HTTP Basic, and the code of a second factor as X-OTP; no body is read. With "
            "grant_type=refresh_token, the body holds the token, which can be used once. A new password grant ends all "
            "earlier ones."
        ),
        security=("login", ""),
        parameters=("grant_type", "X-OTP", "X-Request-Id"),
        body=RefreshRequest,
        body_required=False,
        body_examples={"refresh": {"refresh_token": "x" * 128}},
        answers=(Answer(200, "A token set.", Tokens, _TOKENS),),
        denials=_login_denials(
            UNKNOWN_GRANT,
            NEEDS_CODE,
            WRONG_PASSWORD,
            BAD_REFRESH_TOKEN,
            SUSPENDED,
            too_many(600_000_000),
            BUSY,
            body=True,
        ),
        error=LoginError,
        curl="""curl -X POST -u 'YOUR_EMAIL:YOUR_PASSWORD' '{url}/oauth/token?grant_type=password'""",
    ),
    Operation(
        method="post",
        path="/oauth/revoke",
        name="revoke",
        tag="Logging in",
        summary="Log out",
        description="Ends the session of a refresh token, and with it its access tokens, at once.",
        security=("accessToken",),
        body=RefreshRequest,
        body_examples={"revoke": {"refresh_token": "x" * 128}},
        answers=(Answer(200, "The session has ended.", Nothing, {}),),
        denials=_login_denials(*_BEARER_401, BAD_REVOKED_TOKEN, body=True),
        error=LoginError,
        curl="""curl {url}/oauth/revoke -H 'Authorization: Bearer YOUR_ACCESS_TOKEN' \\
  -H 'Content-Type: application/json' -d '{{"refresh_token": "YOUR_REFRESH_TOKEN"}}'""",
    ),
    Operation(
        method="get",
        path="/oauth/me",
        name="me",
        tag="Logging in",
        summary="Who is logged in",
        description="The user whose access token this is.",
        security=("accessToken",),
        answers=(Answer(200, "The user.", User, _USER),),
        denials=_login_denials(*_BEARER_401),
        error=LoginError,
        curl="curl {url}/oauth/me -H 'Authorization: Bearer YOUR_ACCESS_TOKEN'",
    ),
    Operation(
        method="get",
        path="/oauth/validate",
        name="validate",
        tag="Logging in",
        summary="Whether a token holds",
        description="200 while the access token holds.",
        security=("accessToken",),
        answers=(Answer(200, "It holds.", Nothing, {}),),
        denials=_login_denials(*_BEARER_401),
        error=LoginError,
        curl="curl {url}/oauth/validate -H 'Authorization: Bearer YOUR_ACCESS_TOKEN'",
    ),
)

SERVICE = (
    Operation(
        method="get",
        path="/healthz",
        name="healthz",
        tag="The service itself",
        summary="Whether the process answers",
        description="For whoever restarts it.",
        answers=(Answer(200, "It does.", Healthy, {"ok": True}),),
        denials=_denials(*_ALWAYS),
        curl="curl {url}/healthz",
    ),
    Operation(
        method="get",
        path="/readyz",
        name="readyz",
        tag="The service itself",
        summary="Whether new mail can be taken",
        description="For whoever sends clients here.",
        answers=(
            Answer(200, "It can.", Ready, {"ok": True, "problems": []}),
            Answer(503, "It cannot, and why.", Ready, {"ok": False, "problems": ["the store does not answer"]}),
        ),
        denials=_denials(*_ALWAYS),
        curl="curl {url}/readyz",
    ),
    Operation(
        method="get",
        path="/api/docs",
        name="docs",
        tag="The service itself",
        summary="This description, to read",
        description="A page; it asks nothing of any other server.",
        answers=(Answer(200, "The page.", None, None, media="text/html"),),
        denials=_denials(*_ALWAYS),
        curl="curl {url}/api/docs",
    ),
    Operation(
        method="get",
        path="/api/openapi.json",
        name="openapi",
        tag="The service itself",
        summary="This description",
        description="OpenAPI 3.1, made from the types that read the requests; with an ETag.",
        answers=(
            Answer(200, "The document.", None, None, ("ETag",)),
            Answer(304, "It is still the one of If-None-Match.", None, None, ("ETag",), ""),
        ),
        parameters=("If-None-Match", "X-Request-Id"),
        denials=_denials(*_ALWAYS),
        curl="curl {url}/api/openapi.json",
    ),
)

OPERATIONS: tuple[Operation, ...] = (SEND, OWN_SEND, UPLOAD, *LOGIN, *SERVICE)
