# SPDX-License-Identifier: Apache-2.0
"""`/api/openapi.json` is OpenAPI 3.1, says what the code does, and leaves nothing out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import trio
from schemathesis.specs.openapi.definitions import OPENAPI_31

from hepmaild.errors import ErrorKind
from hepmaild.http.examples import BY_KIND, REFUSALS, SMTP_ONLY, UPLOAD_ONLY
from hepmaild.http.openapi import build
from hepmaild.http.openapi_table import OPERATIONS
from tests.http.door import GOOD, Running, read_all


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(json.dumps(build()))  # type: ignore[no-any-return]


def test_a_stranger_takes_it_for_openapi(document: dict[str, Any]) -> None:
    """Against the specification's own schema, and each schema in it against JSON Schema's."""
    jsonschema_rs.validate(OPENAPI_31, document)
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    names = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in _references(document):
        at = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_refusal_has_an_example(kind: ErrorKind) -> None:
    """Who adds a kind says what it looks like."""
    if kind in SMTP_ONLY:
        return
    assert kind in BY_KIND, f"{kind.name} needs an example in hepmaild/http/examples.py"
    assert kind.name in {each.name for operation in OPERATIONS for each in operation.denials} or kind in UPLOAD_ONLY
    assert len(REFUSALS) == len(BY_KIND)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_every_example_is_valid(operation: Any, document: dict[str, Any]) -> None:
    described = document["paths"][operation.path][operation.method]
    contents = [*described.get("requestBody", {}).get("content", {}).values()]
    for response in described["responses"].values():
        assert "x-request-id" in response["headers"]
        contents += response.get("content", {}).values()
    for content in contents:
        whole = {**content["schema"], "components": document["components"]}
        for name, example in content.get("examples", {}).items():
            jsonschema_rs.validate(whole, example["value"]), name


async def test_it_is_served_to_everybody_and_kept(door: Running) -> None:
    async with door.client() as client:
        answer = await client.get("/api/openapi.json")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json()["paths"]["/api/v1/email/send"]["post"]["operationId"] == "send"
        again = await client.get("/api/openapi.json", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["x-request-id"]
        assert (await client.get("/api/openapi.json", headers={"If-None-Match": '"x"'})).status_code == 200
        assert (await client.post("/api/openapi.json")).status_code == 405
    assert door.intake.calls == 0


async def test_what_it_says_of_an_accepted_message(door: Running, document: dict[str, Any]) -> None:
    answer = await door.post(GOOD)
    described = document["paths"]["/api/v1/email/send"]["post"]["responses"]["200"]
    schema = described["content"]["application/json"]["schema"]
    jsonschema_rs.validate({**schema, "components": document["components"]}, answer.json())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
@pytest.mark.parametrize("field", [{"X-Large": "x" * 70_000}, {"Transfer-Encoding": "gzip"}, {"Host": "two words"}])
async def test_what_is_answered_to_a_header_that_cannot_be_read(
    door: Running, document: dict[str, Any], operation: Any, field: dict[str, str]
) -> None:
    """Also those answers are declared, at every path."""
    lines = [f"{operation.method.upper()} {operation.path} HTTP/1.1", "Host: localhost", *map(": ".join, field.items())]
    stream = await door.connect()
    await stream.send_all("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    head, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
    await trio.aclose_forcefully(stream)
    described = document["paths"][operation.path][operation.method]["responses"][head.split()[1].decode()]
    schema = described["content"]["application/json"]["schema"]
    told = json.loads(body)
    assert told["code"] == "MALFORMED_REQUEST"
    if head.split()[1] != b"400":  # the form is that of the first call, as the description says
        jsonschema_rs.validate({**schema, "components": document["components"]}, told)
    for name, header in described["headers"].items():
        required = document["components"]["headers"][header["$ref"].rpartition("/")[2]]["required"]
        assert not required or name.encode() in head.lower()


async def test_only_what_is_declared_is_served(door: Running, document: dict[str, Any]) -> None:
    async with door.client() as client:
        for path in ("/healthz", "/readyz"):
            answer = await client.options(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
            assert str(answer.status_code) in document["paths"][path]["get"]["responses"]
