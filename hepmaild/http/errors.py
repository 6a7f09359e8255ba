# SPDX-License-Identifier: Apache-2.0
"""Answers of the API: a refusal as JSON, and what every answer carries (send-api.md "Errors")."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from quart.wrappers import Response

from hepmaild.errors import ErrorKind, Refusal
from hepmaild.http.call import LOGIN_PREFIX, OWN_SMTP_PREFIX, Call

DEFAULT_RETRY_AFTER_S = {429: 1, 503: 5}
# login-api.md has numbers: the HTTP status and two digits, of which others than 01 stand here.
LOGIN_CODES = {
    ErrorKind.INVALID_JSON: 40002,
    ErrorKind.MALFORMED_REQUEST: 40004,
    ErrorKind.TOO_MANY_CONNECTIONS: 42902,
}

_OWN_SMTP_SENTENCES = {
    "invalid_api_key": "Invalid or inactive API key",
    "email_send_failed": "The SMTP server refused the message; the credits were refunded, and its reply is in Logs",
}


def json_response(status: int, body: dict[str, Any] | msgspec.Struct) -> Response:
    """A JSON answer; nothing an API says may be kept by a cache."""
    try:
        octets = msgspec.json.encode(body)
    except UnicodeEncodeError:  # half of a surrogate pair, from somebody's own words
        octets = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    response = Response(octets, status=status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def sentence_of(refusal: Refusal) -> str:
    """What is said, with a capital unless it begins with the name of a field."""
    text = refusal.message
    if refusal.field is None or not text.startswith(refusal.field):
        text = text[:1].upper() + text[1:]
    return text


def error_answer(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Status and body in the form of send-api.md."""
    body: dict[str, Any] = {"ok": False, "error": sentence_of(refusal), "code": refusal.kind.api_code}
    if refusal.field is not None:
        body["field"] = refusal.field
    return refusal.kind.answer.http_status, {**body, **refusal.extra}


def login_answer(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Status and body in the form of login-api.md."""
    status = refusal.kind.answer.http_status
    number = LOGIN_CODES.get(refusal.kind, status * 100 + 1)
    return status, {"code": number, "message": sentence_of(refusal), **refusal.extra}


def own_smtp_answer(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Status and body in the form of own-smtp-api.md.  A server's reply is in Logs, not here."""
    status, code = refusal.kind.own_smtp_answer
    text = _OWN_SMTP_SENTENCES.get(code) or sentence_of(refusal)
    return status, {"error": text, "code": code}


# What no header of a request may be; its path is not known then.
UNREADABLE = {
    431: "The header of this request is too large: leave fields out, or shorten them.",
    501: "This Transfer-Encoding is not understood: send a Content-Length, or chunked.",
}


def malformed_body(status: int, path: str) -> bytes:
    """What is said to something that is no proper HTTP.  path: of the request if it got so far, else empty."""
    text = UNREADABLE.get(
        status, "This is not a proper HTTP request; a library that speaks HTTP/1.1 or HTTP/2 makes one."
    )
    _, body = _form_of(is_login=path.startswith(LOGIN_PREFIX), is_own_smtp=path.startswith(OWN_SMTP_PREFIX))(
        Refusal(ErrorKind.MALFORMED_REQUEST, text)
    )
    return msgspec.json.encode(body)


def _form_of(*, is_login: bool, is_own_smtp: bool) -> Callable[[Refusal], tuple[int, dict[str, Any]]]:
    return login_answer if is_login else own_smtp_answer if is_own_smtp else error_answer


def refuse(refusal: Refusal, call: Call) -> Response:
    """The answer for a refusal.  Nothing was charged, or it was refunded."""
    status, body = _form_of(is_login=call.is_login, is_own_smtp=call.is_own_smtp)(refusal)
    call.code = str(body["code"])
    response = json_response(status, body)
    if refusal.rate is not None:
        call.rate = refusal.rate
    if refusal.retry_after_s is not None or status in DEFAULT_RETRY_AFTER_S:
        seconds = refusal.retry_after_s or DEFAULT_RETRY_AFTER_S.get(status, 1)
        response.headers["Retry-After"] = str(max(1, seconds))
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="hepmaild"'
    return response


def finish(response: Any, call: Call, *, closes: bool) -> None:
    """What every answer carries, whatever it says.  closes: the connection ends behind it (HTTP/1.1)."""
    headers = response.headers
    headers["x-request-id"] = call.request_id
    rate = call.rate
    if rate is not None:
        headers["x-ratelimit-limit"] = str(rate.limit)
        headers["x-ratelimit-remaining"] = str(rate.remaining)
        headers["x-ratelimit-reset"] = str(rate.reset_at)
    if closes:
        headers["Connection"] = "close"
