# SPDX-License-Identifier: Apache-2.0
"""The field rules of the send request, on the bare function."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.errors import Refusal, RefusedError
from hepmaild.http.fields import Wanted, read_fields, read_idempotency_word
from hepmaild.mail.address import has_control_characters

GOOD: dict[str, Any] = {"to": "a@b.c", "text": "x"}


def refusal(**change: Any) -> tuple[str, str | None]:
    with pytest.raises(RefusedError) as caught:
        read_fields({**GOOD, **change}, 100)
    return caught.value.refusal.kind.api_code, caught.value.refusal.field


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"to": None}, "NO_RECIPIENTS", "to"),
        ({"to": ""}, "NO_RECIPIENTS", "to"),
        ({"to": [], "cc": "a@b.c"}, "NO_RECIPIENTS", "to"),
        ({"to": 1}, "INVALID_FIELD", "to"),
        ({"to": {"email": "a@b.c"}}, "INVALID_FIELD", "to"),
        ({"to": False}, "INVALID_FIELD", "to"),
        ({"to": ["a@b.c", None]}, "INVALID_FIELD", "to[1]"),
        ({"to": [""]}, "INVALID_ADDRESS", "to[0]"),
        ({"to": "a@b.c, d@e.f"}, "INVALID_ADDRESS", "to"),
        ({"to": "a@b.c\r\n"}, "INVALID_ADDRESS", "to"),
        ({"bcc": "a@[127.0.0.1]"}, "INVALID_ADDRESS", "bcc"),
        ({"cc": ['"A\nB" <a@b.c>']}, "INVALID_ADDRESS", "cc[0]"),
        ({"cc": [f"u{n}@x.test" for n in range(60)], "bcc": [f"v{n}@x.test" for n in range(60)]},
         "TOO_MANY_RECIPIENTS", "bcc[39]"),
        ({"text": None}, "NO_BODY", "html"),
        ({"text": 1}, "INVALID_FIELD", "text"),
        ({"html": ["x"]}, "INVALID_FIELD", "html"),
        ({"html": "\ud800"}, "INVALID_FIELD", "html"),
        ({"subject": "a\u2028b"}, "INVALID_HEADER_VALUE", "subject"),
        ({"subject": "a\x00b"}, "INVALID_HEADER_VALUE", "subject"),
        ({"subject": "\udc00"}, "INVALID_HEADER_VALUE", "subject"),
        ({"fromName": "a\rb"}, "INVALID_HEADER_VALUE", "fromName"),
        ({"from": ""}, "INVALID_ADDRESS", "from"),
        ({"from": "A\n <a@b.c>"}, "INVALID_ADDRESS", "from"),
        ({"from": ["a@b.c"]}, "INVALID_FIELD", "from"),
        ({"replyTo": "nope"}, "INVALID_ADDRESS", "replyTo"),
        ({"replyTo": 5}, "INVALID_FIELD", "replyTo"),
        ({"headers": []}, "INVALID_FIELD", "headers"),
        ({"headers": {"X-A": 1}}, "INVALID_FIELD", "headers.X-A"),
        ({"headers": {"X-A": "a\r\nBcc: x"}}, "INVALID_HEADER_VALUE", "headers.X-A"),
        ({"headers": {"X-A: b\r\nBcc": "x"}}, "INVALID_HEADER_VALUE", "headers.X-A: b??Bcc"),
        ({"headers": {"": "x"}}, "INVALID_HEADER_VALUE", "headers."),
        ({"headers": {"X-Ä": "x"}}, "INVALID_HEADER_VALUE", "headers.X-Ä"),
        ({"headers": {"X-A": "x" * 9000}}, "INVALID_HEADER_VALUE", "headers.X-A"),
        ({"headers": {f"X-{n}": "" for n in range(101)}}, "INVALID_FIELD", "headers"),
        *(({"headers": {name: "x"}}, "HEADER_NOT_ALLOWED", f"headers.{name}") for name in (
            "From", "TO", "cc", "Bcc", "Date", "Message-ID", "DKIM-Signature", "Received", "MIME-Version",
            "Content-Type", "content-transfer-encoding", "Resent-Bcc", "Return-Path", "Sender")),
        ({"attachments": {}}, "INVALID_FIELD", "attachments"),
        ({"attachments": ["x"]}, "INVALID_FIELD", "attachments[0]"),
        ({"attachments": [{"content": "QQ=="}]}, "INVALID_ATTACHMENT", "attachments[0].filename"),
        ({"attachments": [{"filename": "x" * 256, "content": ""}]}, "INVALID_ATTACHMENT", "attachments[0].filename"),
        ({"attachments": [{"filename": "a\r\nb", "content": ""}]}, "INVALID_HEADER_VALUE", "attachments[0].filename"),
        ({"attachments": [{"filename": "a"}]}, "INVALID_ATTACHMENT", "attachments[0].content"),
        ({"attachments": [{"filename": "a", "content": 5}]}, "INVALID_FIELD", "attachments[0].content"),
        ({"attachments": [{"filename": "a", "content": "QQ"}]}, "INVALID_ATTACHMENT", "attachments[0].content"),
        ({"attachments": [{"filename": "a", "content": "Q-_="}]}, "INVALID_ATTACHMENT", "attachments[0].content"),
        ({"attachments": [{"filename": "a", "content": "é"}]}, "INVALID_ATTACHMENT", "attachments[0].content"),
        ({"attachments": [{"filename": "a", "content": "", "contentType": "x"}]},
         "INVALID_ATTACHMENT", "attachments[0].contentType"),
        *(({"attachments": [{"filename": "a", "content": "", "contentType": value}]},
           "INVALID_ATTACHMENT", "attachments[0].contentType")
          # A line too long for a header; and not a step for each way to share out the spaces.
          for value in ("a/b" + " " * 1000 + ";c=d", "a/b;" + " " * (1 << 20) + "é")),
        ({"attachments": [{"filename": "a", "content": "", "contentType": "a/b\r\nX: y"}]},
         "INVALID_HEADER_VALUE", "attachments[0].contentType"),
        ({"attachments": [{"filename": "a", "content": "", "contentId": "a b"}]},
         "INVALID_ATTACHMENT", "attachments[0].contentId"),
        ({"attachments": [{"uploadId": 5}]}, "INVALID_FIELD", "attachments[0].uploadId"),
        ({"templateKey": "welcome", "subject": "x"}, "INVALID_FIELD", "subject"),
        ({"templateId": "t", "subject": "", "html": "<p>"}, "INVALID_FIELD", "html"),
        ({"variables": []}, "INVALID_FIELD", "variables"),
        ({"variables": {"a": 1, "b": []}}, "INVALID_FIELD", "variables.b"),
        ({"variables": {"a": {"b": 1}}}, "INVALID_FIELD", "variables.a"),
        ({"attachments": [{"uploadId": ""}]}, "UNKNOWN_UPLOAD", "attachments[0].uploadId"),
        ({"attachments": [{"uploadId": "u", "content": "AA=="}]}, "INVALID_ATTACHMENT", "attachments[0]"),
        ({"templateId": 5}, "INVALID_FIELD", "templateId"),
        ({"variables": "x"}, "INVALID_FIELD", "variables"),
        # 400 comes before 413
        ({"html": "x" * (11 << 20), "replyTo": "nope"}, "INVALID_ADDRESS", "replyTo"),
    ],
)  # fmt: skip
def test_refused(change: dict[str, Any], code: str, field: str) -> None:
    assert refusal(**change) == (code, field)


def test_what_is_let_pass() -> None:
    wanted = read_fields(
        {**GOOD, "cc": None, "bcc": [], "subject": None, "replyTo": "x" * 321, "fromName": "", "headers": None,
         "attachments": None, "html": "", "variables": {}, "unknown": object()},
        100,
    )  # fmt: skip
    assert len(wanted.recipients) == 1
    assert wanted.draft.reply_to == ()
    assert wanted.draft.from_name is None
    assert wanted.draft.html is None


def test_a_hundred_recipients_and_repetitions() -> None:
    many = [f"u{n}@x.test" for n in range(100)] * 3
    assert len(read_fields({**GOOD, "to": many, "cc": many}, 100).recipients) == 100


def test_repetitions_are_not_counted_but_for_endless_spellings() -> None:
    """A millisecond for each: a request of 25 MB would keep its thread for minutes."""
    name = "ä" * 12
    ways = ["".join(letters) + "@x.test" for letters in itertools.islice(itertools.product("äÄ", repeat=12), 301)]
    assert len(read_fields({**GOOD, "to": ways[:300] * 5, "cc": name + "@x.test"}, 100).recipients) == 1
    assert refusal(to=ways[:200], bcc=ways[100:]) == ("TOO_MANY_RECIPIENTS", "bcc[200]")
    plain = ["".join(letters) + "@x.test" for letters in itertools.product("aA", repeat=10)]
    assert len(read_fields({**GOOD, "to": plain * 5}, 100).recipients) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["a@b.c", "x\r\ny", "QQ=="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["to", "cc", "bcc", "subject", "html", "text", "from", "fromName", "replyTo", "headers", "attachments",
          "templateId", "variables"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_a_draft_or_a_refusal(payload: dict[str, Any]) -> None:
    outcome: Wanted | Refusal
    try:
        outcome = read_fields(payload, 100)
    except RefusedError as error:
        outcome = error.refusal
    if isinstance(outcome, Refusal):
        assert outcome.kind.answer.http_status in (400, 413)
        assert not has_control_characters(outcome.field or "")
        return
    wanted = outcome
    assert wanted.recipients
    assert wanted.draft.text or wanted.draft.html
    for value in (wanted.draft.subject, wanted.draft.from_name or "", *(v for _, v in wanted.draft.headers)):
        assert not has_control_characters(value)


def test_words() -> None:
    assert read_idempotency_word([]) is None
    assert read_idempotency_word([" abc "]) == "abc"
    assert read_idempotency_word(["a", "a"]) == "a"
    for bad in (["a", "b"], [""], ["x" * 257], ["a\x7fb"]):
        with pytest.raises(RefusedError):
            read_idempotency_word(bad)
