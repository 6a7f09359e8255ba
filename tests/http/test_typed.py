# SPDX-License-Identifier: Apache-2.0
"""Reading JSON into types: the quick way and the thorough way never disagree."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hepmaild.errors import ErrorKind, RefusedError
from hepmaild.http.body import load_object
from hepmaild.http.fields import Wanted, read_fields, read_request
from hepmaild.http.shapes import REFRESH, SEND, SendRequest
from hepmaild.mail.content import Content


def document(**members: Any) -> bytes:
    return json.dumps({"to": "a@b.c", "text": "x", **members}).encode()


PLAIN = [
    document(),
    document(text='"quoted" \\ and\nmore \u00e9 \U0001f600', html='<a href="x">\'</a>'),
    document(
        headers={"X-A": "1", 'X-"': '"'}, cc=["a@b.c", "d@e.f"], variables={"a": 1, "b": True, "c": 1.5, "d": "e"}
    ),
    document(attachments=[{"filename": "a", "content": "QQ=="}, {"filename": "b", "content": "", "contentId": "x"}]),
    b' {\n"to" : ["a@b.c"] ,\t"text":"\\/\\b"}\r\n',
    '{"to":"a@b.c","text":"Grüße"}'.encode(),
]
CLOSELY = [
    b'{"to":"a@b.c","text":"x","text":"x"}',
    b'{"to":"a@b.c","headers":{"X":"","X":""}}',
    b'{"to":"a@b.c","text":"\\u0022","text":""}',
    b'{"to":"a@b.c","text":"x","t\\u0065xt":"y"}',
    b'{"to":"a@b.c","text":"\\u0022\\u0022","attachments":[{"filename":"a","filename":""}]}',
    document(cc=None),
    document(more=1),
    document(attachments=[{"filename": "a", "content": "Q Q=\r\n="}]),
    document(subject=5),
    document(text="\ud800"),
    b'{"to":"a@b.c","text":"\xff"}',
    b'{"to":"a@b.c","variables":{"x":1e999}}',
    b"[]",
    b"",
    b"[" * 100_000,
]


MANY = 1 << 20
VALUES = {
    "strings": b'{"to":[' + b'"",' * MANY + b'""]}',
    "objects": b'{"to":"a@b.c","text":"x","attachments":[' + b"{}," * MANY + b"{}]}",
    "unknown": b'{"to":"a@b.c","text":"x","x":[' + b'{"\\"":0},' * MANY + b"0]}",
    "names": b'{"to":"a@b.c","text":"x","variables":{' + b",".join(b'"%x":0' % n for n in range(MANY)) + b"}}",
    "digits": b'{"to":"a@b.c","text":"x","variables":{"a":0.' + b"1" * MANY + b"}}",
    "spaces": document() + b" " * MANY,
    "never closed": b'{"to":"a@b.c"' + b"," * MANY + b'"',
}
FEW = {
    "a text": document(text='"\\,[]{}\\\\' * MANY),
    "escapes": b'{"to":"a@b.c","text":"' + rb"\\\"\n" * MANY + b'"}',
    "a file": document(attachments=[{"filename": "a", "content": "QUJD" * MANY}]),
    "variables": document(text="x" * MANY, variables={f"name {n}": "," * 9 for n in range(50_000)}),
}


@pytest.mark.parametrize("octets", VALUES.values(), ids=list(VALUES))
def test_many_values_are_not_made(octets: bytes) -> None:
    """25 MB of them took 1.2 GB of memory, and seconds in which nothing else was done."""
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="too many values") as caught:
            read_request(Content(octets), 100)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(octets)
    finally:
        tracemalloc.stop()
    assert caught.value.refusal.kind is ErrorKind.INVALID_JSON


@pytest.mark.parametrize("octets", FEW.values(), ids=list(FEW))
def test_large_values_are(octets: bytes) -> None:
    assert read_request(Content(octets), 100).recipients


@pytest.mark.parametrize("octets", PLAIN)
def test_what_is_read_at_once(octets: bytes) -> None:
    request = SEND.decode(Content(octets))
    assert request == SEND.load(Content(octets))
    payload = json.loads(octets)
    again = read_fields(payload, 100)
    assert read_request(Content(octets), 100) == again
    assert not payload, "large strings must not stay behind"


@pytest.mark.parametrize("octets", CLOSELY)
def test_what_is_looked_at_closely(octets: bytes) -> None:
    assert SEND.decode(Content(octets)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": 5}, "to must be a string or an array."),
        ({"cc": ["a@b.c", {}]}, "cc[1] must be a string."),
        ({"headers": {"X-A": "x", "X-B": 1, "X-C": {}}}, "headers.X-B must be a string."),
        ({"headers": {"X\n": None}}, "headers.X? must be a string."),
        ({"variables": {"a": [1]}}, "variables.a must be true or false or a whole number or a number or a string."),
        ({"attachments": [{}, {"content": 5}]}, "attachments[1].content must be a string in base64."),
        ({"attachments": [{"\ud800": 5}]}, "A name in the JSON holds half of a surrogate pair, which is no character."),
        ({"\ud800": 5, "from": 5}, "from must be a string."),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        SEND.load(Content(document(**change)))
    refusal = caught.value.refusal
    assert (refusal.kind.name, refusal.message) == ("INVALID_FIELD", message)
    assert refusal.field is None or message.startswith(refusal.field)


def test_a_missing_one_is_the_callers_business() -> None:
    with pytest.raises(RefusedError):
        REFRESH.load(Content(b"{}"))
    assert REFRESH.load(Content(b'{"refresh_token":"x","more":[]}')).refresh_token == "x"


WORDS = st.sampled_from(["", "a@b.c", '"', "\\", "\\u0022", "QQ==", "\u00e9", "\ud800", "x\r\ny"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*SendRequest.__struct_encode_fields__, "other"])
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=6)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(PAIRS, st.booleans(), st.booleans())
def test_both_ways_say_the_same(pairs: list[tuple[str, Any]], to: bool, escaped: bool) -> None:
    """Whatever stands in a document, in whatever spelling: read at once it is what the thorough reader makes of it."""
    pairs = [*pairs, ("text", "x")] if not to else [("to", "a@b.c"), ("text", "x"), *pairs]
    text = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs) + "}"
    octets = (text.replace('\\"', "\\u0022") if escaped else text).encode()
    assert _outcome(lambda: read_request(Content(octets), 3)) == _outcome(
        lambda: read_fields(load_object(Content(octets)), 3)
    )


def _outcome(read: Any) -> Wanted | tuple[Any, ...]:
    try:
        found: Wanted = read()
    except RefusedError as error:
        return (error.refusal.kind, error.refusal.message, error.refusal.field)
    return found
