# SPDX-License-Identifier: Apache-2.0
"""`/api/openapi.json` (OpenAPI 3.1): made from the types that read and write the JSON, and a table of operations.

Pure but for the blueprint.  The document is made once; who asks again with its ETag gets 304.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import msgspec
from quart import Blueprint, request
from quart.wrappers import Response

from hepmaild import __version__
from hepmaild.http.answers import ErrorAnswer
from hepmaild.http.errors import UNREADABLE, malformed_body
from hepmaild.http.openapi_table import JSON, OPERATIONS, Answer, Denial, Operation
from hepmaild.http.shapes import WHOLE

PATH = "/api/openapi.json"
SCHEMAS = "#/components/schemas/{name}"

SECURITY = {
    "bearerKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key: hyd-mail- and 40 characters.",
    },
    "basicKey": {
        "type": "http",
        "scheme": "basic",
        "description": "The API key as user name, with an empty password.",
    },
    "accessToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The access token of a token set.",
    },
    "login": {"type": "http", "scheme": "basic", "description": "E-mail address and password of a user."},
}


def _parameter(name: str, place: str, description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "description": description,
        "required": required,
        "schema": {"type": "string", **schema},
    }


PARAMETERS = {
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "header",
        "A word of your own for this call: the same word with the same body gives the first answer again for 24 hours, "
        "sends nothing and charges nothing. Only an accepted call is remembered.",
        minLength=1,
        maxLength=256,
        pattern=r"^[!-~\u00a1-\u00ac\u00ae-\u00ff]([ -~\u00a1-\u00ac\u00ae-\u00ff]*[!-~\u00a1-\u00ac\u00ae-\u00ff])?$",
        examples=["order-1234-invoice"],
    ),
    "X-Request-Id": _parameter(
        "X-Request-Id",
        "header",
        "Your own id for this request. It is answered and logged if it is 1 to 128 letters, digits, dots, hyphens and "
        "underscores; else one is made up.",
        examples=["checkout-42"],
    ),
    "grant_type": _parameter(
        "grant_type", "query", "By which proof.", required=True, enum=["password", "refresh_token"]
    ),
    "X-OTP": _parameter("X-OTP", "header", "The six digits of the second factor, or a recovery code."),
    "If-None-Match": _parameter("If-None-Match", "header", "The ETag of an earlier answer."),
}


def _header(description: str, kind: str = "integer", *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": {"type": kind, **schema}}


HEADERS = {
    "x-request-id": _header("The id of this request: name it to support.", "string", required=True, minLength=1),
    "x-ratelimit-limit": _header("How many calls a minute the key may make. With every valid key.", minimum=0),
    "x-ratelimit-remaining": _header("How many are left in the window.", minimum=0),
    "x-ratelimit-reset": _header("When the window is empty again, in Unix seconds.", minimum=0),
    "Retry-After": _header("Whole seconds after which trying again makes sense.", required=True, minimum=1),
    "idempotency-replayed": _header(
        "This is the answer to an earlier call with the same Idempotency-Key.", "string", enum=["true"]
    ),
    "Allow": _header("The methods of this path.", "string", required=True),
    "WWW-Authenticate": _header("How to prove who you are.", "string", required=True),
    "ETag": _header("What the document is recognised by.", "string", required=True),
}
_BY_STATUS = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}


def build(operations: Sequence[Operation] = OPERATIONS, server: str = "/") -> dict[str, Any]:
    """The document.  server: where it is served, an absolute URL or a path."""
    types = {ErrorAnswer, *(each.error for each in operations)} | {each.body for each in operations if each.body}
    types |= {answer.type for each in operations for answer in each.answers if answer.type}
    _, schemas = msgspec.json.schema_components(sorted(types, key=lambda each: each.__name__), ref_template=SCHEMAS)
    for name, more in WHOLE.items():
        schemas[name].update(more)
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hepmaild",
            "version": __version__,
            "summary": "Transactional mail by HTTPS.",
            "description": "The same keys send by SMTP. Unknown members of a request are ignored, and new ones may "
            "come to answers; null is taken as absent wherever a member may be absent. A request whose header cannot "
            "be read is refused with MALFORMED_REQUEST in the form of the first call, whatever its path.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server}],
        "tags": [{"name": name} for name in dict.fromkeys(each.tag for each in operations)],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": SECURITY,
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "security": [{name: []} if name else {} for name in operation.security],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in operation.parameters],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        content: dict[str, Any] = {"schema": _ref(operation.body)}
        if operation.body_examples:
            examples = operation.body_examples.items()
            content["examples"] = {name.replace(" ", "-"): {"value": each} for name, each in examples}
        found["requestBody"] = {"required": operation.body_required, "content": {operation.body_media: content}}
    return found


def _ref(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": SCHEMAS.format(name=kind.__name__)}


def _responses(operation: Operation) -> dict[str, Any]:
    found: dict[int, dict[str, Any]] = {each.status: _answer(each) for each in operation.answers}
    for status in sorted({each.status for each in operation.denials}):
        refusal = _denial(operation, [each for each in operation.denials if each.status == status], status)
        found[status] = _either(found[status], refusal) if status in found else refusal
    anywhere = replace(operation, error=ErrorAnswer, denial_headers=())
    for status in UNREADABLE:
        body = msgspec.json.decode(malformed_body(status, ""))
        found[status] = _denial(anywhere, [Denial(status, body["code"], body)], status)
    return {str(status): found[status] for status in sorted(found)}


def _either(answer: dict[str, Any], refusal: dict[str, Any]) -> dict[str, Any]:
    """An answer and refusals under one status."""
    ours, theirs = answer["content"][JSON], refusal["content"][JSON]
    content = {
        "schema": {"anyOf": [ours["schema"], theirs["schema"]]},
        "examples": {**ours["examples"], **theirs["examples"]},
    }
    return {**answer, "content": {JSON: content}}


def _answer(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": answer.what,
        "headers": _headers(("x-request-id", *answer.headers)),
    }
    if answer.type is not None:
        content = {"schema": _ref(answer.type), "examples": {"answer": {"value": answer.example}}}
        found["content"] = {answer.media: content}
    elif answer.media:
        found["content"] = {answer.media: {"schema": {"type": "object" if answer.media == JSON else "string"}}}
    return found


def _denial(operation: Operation, denials: list[Denial], status: int) -> dict[str, Any]:
    codes = list(dict.fromkeys(each.code for each in denials))
    schema = {**_ref(operation.error), "properties": {"code": {"enum": codes}}}
    examples = {each.name: {"value": each.body} for each in denials}
    return {
        "description": f"{HTTPStatus(status).phrase}: {', '.join(map(str, codes))}.",
        "headers": _headers(("x-request-id", *_BY_STATUS.get(status, ()), *operation.denial_headers)),
        "content": {JSON: {"schema": schema, "examples": examples}},
    }


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def openapi_blueprint() -> Blueprint:
    """Serves the document."""
    blueprint = Blueprint("openapi", __name__)
    octets = msgspec.json.encode(build())
    etag = f'"{hashlib.sha256(octets).hexdigest()[:32]}"'

    @blueprint.get(PATH, provide_automatic_options=False)
    async def document() -> Response:
        same = etag in [each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")]
        response = Response(b"" if same else octets, status=304 if same else 200)
        if same:
            del response.headers["Content-Type"]
        else:
            response.content_type = JSON
        response.headers["ETag"] = etag
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return blueprint
