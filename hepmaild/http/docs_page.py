# SPDX-License-Identifier: Apache-2.0
"""`/api/docs`: the description of the API as a page, drawn from the same document as `/api/openapi.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from quart import Blueprint
from quart.wrappers import Response

from hepmaild.http.dashboard.frame import Dashboard, plain_page
from hepmaild.http.dashboard.snippets import place_of
from hepmaild.http.openapi import build
from hepmaild.http.openapi_table import OPERATIONS, Operation

PATH = "/api/docs"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a JSON object, or one parameter."""

    name: str
    type: str
    required: bool
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """One status.  examples: name and JSON."""

    status: int
    phrase: str
    text: str
    examples: list[tuple[str, str]]
    headers: list[str]


def docs_blueprint(dashboard: Dashboard) -> Blueprint:
    """Serves the page, for everybody."""
    blueprint = Blueprint("docs", __name__)
    document = build()
    groups: dict[str, list[dict[str, Any]]] = {}
    for operation in OPERATIONS:
        groups.setdefault(operation.tag, []).append(_view(operation, document))

    @blueprint.get(PATH, provide_automatic_options=False)
    async def docs() -> Response:
        url = place_of(dashboard.settings(), dashboard.public_url()).url
        return plain_page(dashboard, "docs.html", groups=groups, url=url, document=document)

    return blueprint


def _view(operation: Operation, document: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of one operation."""
    described = document["paths"][operation.path][operation.method]
    components = document["components"]
    parameters = [components["parameters"][name] for name in operation.parameters]
    schemas = components["schemas"]
    body = None if operation.body is None else operation.body.__name__
    return {
        "method": operation.method.upper(),
        "path": operation.path,
        "id": operation.name,
        "summary": operation.summary,
        "description": operation.description,
        "curl": operation.curl,
        "security": [components["securitySchemes"][name]["description"] for name in operation.security if name],
        "parameters": [Member(each["name"], each["in"], each["required"], each["description"]) for each in parameters],
        "body": [] if body is None else _members(schemas[body], schemas),
        "inner": [] if operation.body is None else _inner(schemas[operation.body.__name__], schemas),
        "examples": [(name, _json(each)) for name, each in operation.body_examples.items()],
        "told": [_told(int(status), each) for status, each in described["responses"].items()],
    }


def _told(status: int, response: dict[str, Any]) -> Told:
    examples = [
        (name, _json(each["value"]))
        for content in response.get("content", {}).values()
        for name, each in content.get("examples", {}).items()
    ]
    text = response["description"].removeprefix(f"{HTTPStatus(status).phrase}: ")
    return Told(status, HTTPStatus(status).phrase, text, examples, list(response["headers"]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _members(schema: dict[str, Any], schemas: dict[str, Any]) -> list[Member]:
    required = schema.get("required", ())
    return [
        Member(name, _type(each, schemas), name in required, each.get("description", ""))
        for name, each in schema["properties"].items()
    ]


def _inner(schema: dict[str, Any], schemas: dict[str, Any]) -> list[tuple[str, list[Member]]]:
    """The objects inside an object."""
    said = json.dumps(schema)
    return [
        (name, _members(each, schemas))
        for name, each in schemas.items()
        if json.dumps({"$ref": f"#/components/schemas/{name}"}) in said
    ]


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A type in words."""
    if "anyOf" in schema:
        told = [_type(each, schemas) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(told))
    if "$ref" in schema:
        return "object"
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"{_type(schema['items'], schemas)}[]"
    if kind == "string" and schema.get("contentEncoding"):
        return "string in base64"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'], schemas)}"
    return kind
