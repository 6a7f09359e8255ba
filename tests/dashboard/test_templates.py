# SPDX-License-Identifier: Apache-2.0
"""Templates on their pages, without a script; then sent by curl, with an upload, and what arrives."""

from __future__ import annotations

import html
import json
import re
import subprocess
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dashboard.conftest import OTHER, Site
from tests.dashboard.visitor import Visitor, csrf_of, words

HOSTILE = "<script>alert(1)</script>\"'&"
WISH = {
    "name": "Order shipped",
    "key": "",
    "subject": "Order {{order}}",
    "html": '<p>Dear {{name}},</p>\r\n<a href="https://shop.example/?o={{order}}">see it</a>',
    "text": "Dear {{name}},\r\norder {{order}}.",
    "samples": "name = Anna\r\norder = 4711",
}


def make(visitor: Visitor, **changes: str) -> tuple[str, str]:
    """A new template: its id, and its page."""
    page = visitor.follow("/templates", {**WISH, **changes}, page="/templates/new")
    return only(r'data-page-id="([0-9a-f-]{36})"', page), page


def only(pattern: str, page: str) -> str:
    found = re.search(pattern, page)
    assert found is not None, words(page)[:2000]
    return found[1]


def save(visitor: Visitor, template_id: str, base: int, **changes: str) -> httpx.Response:
    fields = {**WISH, "key": "order-shipped", "base": str(base), **changes}
    return visitor.post(f"/templates/{template_id}", fields, page=f"/templates/{template_id}")


@pytest.fixture
def template(site: Site) -> Any:
    """A template that is gone afterwards: its id."""
    template_id, _ = make(site.owner)
    yield template_id
    name = html.unescape(only(r"<h1>([^<]+)</h1>", site.owner.get(f"/templates/{template_id}")))
    site.owner.follow(f"/templates/{template_id}/delete", {"confirm": name}, page=f"/templates/{template_id}")
    assert site.owner.client.get(f"/templates/{template_id}").status_code == 404


def test_empty_then_one_then_saved_compared_and_restored(site: Site) -> None:
    assert "No template yet" in site.owner.get("/templates")
    template_id, page = make(site.owner)
    place = f"/templates/{template_id}"
    assert "The template Order shipped is saved." in page
    assert 'value="order-shipped"' in page, "the key is made of the name"
    assert "4711" in page
    listed = words(site.owner.get("/templates"))
    assert "Order shipped order-shipped Order {{order}}" in listed
    saved = save(site.owner, template_id, 1, html="<p>Dear {{name}},</p>\r\n<b>new</b>")
    assert saved.status_code == 303
    assert "Saved as revision 2." in site.owner.get(place)
    changed = site.owner.get(f"{place}/revisions/2")
    assert re.search(r"diff-new.*?<bdi>&lt;b&gt;new&lt;/b&gt;</bdi>", changed, re.DOTALL)
    assert re.search(r"diff-old.*?see it", changed, re.DOTALL)
    assert "Restore" not in words(changed).replace("Restoring", "")
    old = site.owner.get(f"{place}/revisions/1?with=present")
    assert re.search(r"diff-new.*?new", old, re.DOTALL)
    site.owner.follow(f"{place}/revisions/1/restore", {"base": "2"}, page=f"{place}/revisions/1")
    page = site.owner.get(place)
    assert "see it" in page
    assert "revision 1 again" in words(page)
    conflict = save(site.owner, template_id, 2, text="other words")
    assert conflict.status_code == 422
    assert "was saved while you wrote" in words(conflict.text)
    assert "other words" in conflict.text, "what was typed stays"
    late = site.owner.post(f"{place}/revisions/1/restore", {"base": "2"}, page=f"{place}/revisions/1")
    assert late.status_code == 303
    wrong = site.owner.post(f"{place}/delete", {"confirm": "order shipped"}, page=place)
    assert wrong.status_code == 422
    assert "This is not its name" in wrong.text
    site.owner.follow(f"{place}/delete", {"confirm": "Order shipped"}, page=place)
    assert site.owner.client.get(place).status_code == 404
    audit = words(site.owner.get("/security/audit?kind=template"))
    for action in ("made", "saved", "restored", "deleted"):
        assert f"Template {action}" in audit


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": ""}, "Give the template a name"),
        ({"key": "Not A Key"}, "lower-case letters"),
        ({"html": "", "text": ""}, "Write HTML, plain text, or both."),
        ({"samples": "what is this"}, "Line 1 is not of the form"),
        ({"subject": "x" * 989}, "A subject is one line"),
        ({"html": "x" * (257 << 10)}, "At most 256 kB"),
        ({"key": "order-shipped"}, "already: choose another"),
    ],
)
def test_what_is_wrong_is_said_beside_the_field(site: Site, template: str, change: dict[str, str], says: str) -> None:
    answer = site.owner.post("/templates", {**WISH, "name": "Another", **change}, page="/templates/new")
    assert answer.status_code == 422
    assert says in html.unescape(answer.text)
    assert len(re.findall(r"data-line", site.owner.get("/templates"))) == 1


def test_the_preview_is_what_a_message_would_be(site: Site, template: str) -> None:
    fields = {**WISH, "samples": f"name = {HOSTILE}", "text": "{{name}} {{missing}}"}
    answer = site.owner.post("/templates/preview", fields)
    assert answer.status_code == 200
    policy_text = answer.headers["Content-Security-Policy"]
    assert policy_text.startswith("sandbox; default-src 'none'")
    assert "script" not in policy_text
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    inner = html.unescape(only(r'srcdoc="([^"]*)"', answer.text))
    assert inner.splitlines() == [
        "<p>Dear &lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;,</p>",
        '<a href="https://shop.example/?o=">see it</a>',
    ]
    assert "<script" not in answer.text
    assert "No sample value for order, missing" in answer.text
    assert HOSTILE in html.unescape(only(r"<pre><bdi>(.*?)</bdi>", answer.text))
    calling = site.owner.post("/templates/preview", {**WISH, "html": "<LINK rel=preconnect href='//a.example'>"})
    assert "<link" not in html.unescape(only(r'srcdoc="([^"]*)"', calling.text)).lower()
    large = site.owner.post("/templates/preview", {**WISH, "html": "<i>{{name}}</i>" * 20_000})
    assert "More than 256 kB" in large.text
    assert "srcdoc" not in large.text
    saved = site.reader.client.get(f"/templates/{template}/preview?revision=1")
    assert "Order 4711" in saved.text
    for wrong in ("0", "9", "x", "9" * 20):
        status = site.owner.client.get(f"/templates/{template}/preview?revision={wrong}").status_code
        assert status == (200 if wrong in ("x", "9" * 20) else 404)


def test_names_and_words_are_only_text(site: Site) -> None:
    name = "<img src=x onerror=alert(1)>"
    template_id, page = make(
        site.owner, name=name, key="hostile", subject=HOSTILE, text=HOSTILE, samples=f"a = {HOSTILE}"
    )
    place = f"/templates/{template_id}"
    for shown in (page, site.owner.get("/templates"), site.owner.get(f"{place}/revisions/1"), site.reader.get(place)):
        assert "<img src=x" not in shown
        assert "<script>alert" not in shown
        assert "&lt;img" in shown
    site.owner.follow(f"{place}/delete", {"confirm": name}, page=place)


def test_who_only_looks_and_who_is_somebody_else(site: Site, template: str) -> None:
    place = f"/templates/{template}"
    page = site.reader.get(place)
    assert "Dear {{name}}" in page
    assert "<textarea" not in page
    assert "New template" not in site.reader.get("/templates")
    token = csrf_of(site.reader.get("/"))
    for path in ("/templates", place, f"{place}/delete", f"{place}/revisions/1/restore"):
        assert site.reader.post(path, WISH, token=token).status_code == 403
    assert site.reader.post("/templates/preview", WISH, token=token).status_code == 200
    assert "Order shipped" not in site.other.get("/templates")
    for path in (place, f"{place}/preview", f"{place}/revisions/1"):
        assert site.other.client.get(path).status_code == 404
    for path in (place, f"{place}/delete", f"{place}/revisions/1/restore"):
        fields = {**WISH, "base": "1", "confirm": "Order shipped"}
        assert site.other.post(path, fields).status_code == 404
    assert site.owner.post("/templates/preview", WISH, token="x" * 43).status_code == 403
    assert save(site.owner, template, 1).status_code == 303
    assert site.owner.post(place, {**WISH, "base": "x"}, page=place).status_code == 400


def curl(site: Site, path: str, *options: str, key: str = "") -> tuple[int, dict[str, Any]]:
    url = f"https://127.0.0.1:{site.daemon.ports['https']}{path}"
    command = ["curl", "-sS", "--insecure", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {key or site.key}"]
    done = subprocess.run([*command, *options, url], capture_output=True, text=True, check=True, timeout=60)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def send(site: Site, key: str = "", **fields: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"to": "joe@example.net", **fields})
    return curl(site, "/api/v1/email/send", "-H", "Content-Type: application/json", "-d", body, key=key)


def test_curl_sends_a_template_with_an_upload(site: Site, template: str, tmp_path: Path) -> None:
    octets = bytes(range(256)) * 5000
    file = tmp_path / "plan.pdf"
    file.write_bytes(octets)
    status, answer = curl(site, "/api/v1/email/uploads", "-F", f"file=@{file};type=application/pdf")
    assert (status, answer["ok"], answer["data"]["filename"], answer["data"]["size"]) == (
        200,
        True,
        "plan.pdf",
        len(octets),
    )
    upload = {"uploadId": answer["data"]["uploadId"]}
    values = {"name": "<b>Ann</b>\r\nBcc: x@example.com", "order": 4711.0}
    status, sent = send(
        site, templateKey="order-shipped", variables=values, attachments=[upload, {**upload, "filename": "b.pdf"}]
    )
    assert status == 200, sent
    found = site.sink.deliveries()[-1]
    message = message_from_bytes(site.sink.content(found), policy=policy.default)
    assert message["Subject"] == "Order 4711"
    assert message["Bcc"] is None
    text = message.get_body(("plain",))
    page = message.get_body(("html",))
    assert text is not None
    assert page is not None
    assert text.get_content().splitlines() == ["Dear <b>Ann</b>", "Bcc: x@example.com,", "order 4711."]
    assert page.get_content().splitlines()[:2] == ["<p>Dear &lt;b&gt;Ann&lt;/b&gt;", "Bcc: x@example.com,</p>"]
    assert [(a.get_filename(), a.get_content_type(), a.get_content()) for a in message.iter_attachments()] == [
        ("plan.pdf", "application/pdf", octets),
        ("b.pdf", "application/pdf", octets),
    ]
    assert "Template order-shipped (Order shipped), revision 1" in site.owner.get(f"/logs/{sent['data']['messageId']}")
    status, sent = send(site, templateId=template, variables={"order": True})
    assert status == 200, sent

    assert send(site, templateKey="nothing")[1]["code"] == "UNKNOWN_TEMPLATE"
    assert send(site, templateId=template, html="<p>x</p>")[1] | {"error": ""} == {
        "ok": False, "error": "", "code": "INVALID_FIELD", "field": "html",
    }  # fmt: skip
    refused = send(site, text="x", variables={"a": {"b": 1}})[1]
    assert (refused["code"], refused["field"]) == ("INVALID_FIELD", "variables.a")
    narrow = site.daemon.mint(name="no templates", options=("--permission", "http"))["key"]
    status, refused = send(site, key=narrow, templateId=template)
    assert (status, refused["code"]) == (403, "CHANNEL_NOT_ALLOWED")
    other = site.daemon.mint(email=OTHER, name="theirs")["key"]
    assert send(site, key=other, text="x", attachments=[upload])[1]["code"] == "UNKNOWN_UPLOAD"
    assert send(site, key=other, templateId=template)[1]["code"] == "UNKNOWN_TEMPLATE"


def test_a_template_that_was_deleted_since_does_not_make_a_repeated_call_a_refused_one(site: Site) -> None:
    template_id, _ = make(site.owner, name="For once")
    body = json.dumps({"to": "joe@example.net", "templateKey": "for-once", "variables": {"order": "1"}})
    call = ("-H", "Content-Type: application/json", "-H", "Idempotency-Key: for once", "-d", body)
    first = curl(site, "/api/v1/email/send", *call)
    assert first[0] == 200, first
    sent = len(site.sink.deliveries())
    site.owner.follow(f"/templates/{template_id}/delete", {"confirm": "For once"}, page=f"/templates/{template_id}")
    assert curl(site, "/api/v1/email/send", *call) == first
    assert len(site.sink.deliveries()) == sent
    assert send(site, templateKey="for-once")[1]["code"] == "UNKNOWN_TEMPLATE"


def test_a_signed_in_browser_uploads_with_its_token_only(site: Site) -> None:
    def put(visitor: Visitor, **headers: str) -> tuple[int, dict[str, Any]]:
        answer = visitor.client.post("/api/v1/email/uploads", files={"file": ("a.txt", b"x")}, headers=headers)
        return answer.status_code, answer.json()

    token = csrf_of(site.owner.get("/"))
    status, answer = put(site.owner, **{"X-CSRF-Token": token})
    assert (status, answer["data"]["size"]) == (200, 1)
    assert send(site, text="x", attachments=[{"uploadId": answer["data"]["uploadId"]}])[0] == 200
    assert put(site.owner)[0] == 403
    assert put(site.owner, **{"X-CSRF-Token": csrf_of(site.other.get("/"))})[0] == 403
    assert put(site.owner, **{"X-CSRF-Token": token, "Sec-Fetch-Site": "cross-site"})[0] == 403
    assert put(site.owner, **{"X-CSRF-Token": token, "Origin": "https://evil.example"})[0] == 403
    assert put(site.reader, **{"X-CSRF-Token": csrf_of(site.reader.get("/"))})[0] == 403
    status, answer = put(site.owner, **{"X-CSRF-Token": token, "Authorization": "Bearer a.b.c"})
    assert (status, answer["code"]) == (401, "INVALID_KEY")


def test_an_own_server_sends_templates_too(site: Site, template: str) -> None:
    server = {
        "name": "mine",
        "host": "127.0.0.1",
        "port": str(site.sink.port),
        "tls": "none",
        "address": "me@own.example",
    }
    place = site.owner.post("/smtp-servers", server, page="/smtp-servers/new").headers["Location"]

    def call(**fields: Any) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"from": "me@own.example", "to": "joe@example.net", **fields})
        return curl(site, "/v1/emails", "-H", "Content-Type: application/json", "-d", body)

    status, answer = call(templateKey="order-shipped", variables={"name": "<i>", "order": 1})
    assert (status, answer["success"]) == (200, True)
    message = message_from_bytes(site.sink.content(site.sink.deliveries()[-1]), policy=policy.default)
    assert (message["Subject"], message["Message-ID"]) == ("Order 1", answer["messageId"])
    page = message.get_body(("html",))
    assert page is not None
    assert page.get_content().startswith("<p>Dear &lt;i&gt;,</p>")
    status, answer = call(subject="Raw {{a}}", html="<p>{{a}}</p>", variables={"a": "&"})
    assert status == 200, answer
    message = message_from_bytes(site.sink.content(site.sink.deliveries()[-1]), policy=policy.default)
    page = message.get_body(("html",))
    assert page is not None
    assert (message["Subject"], page.get_content().strip()) == ("Raw &", "<p>&amp;</p>")
    for fields, expected in (
        ({"templateId": template, "html": "<p>x</p>"}, (400, "conflicting_content")),
        ({"templateKey": "nothing"}, (404, "template_not_found")),
        ({"templateId": template, "variables": {"a": []}}, (400, "invalid_request")),
    ):
        status, answer = call(**fields)
        assert (status, answer["code"]) == expected
    site.owner.follow(f"{place}/delete", {"confirm": "mine"}, page=place)
