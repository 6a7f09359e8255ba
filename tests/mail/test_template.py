# SPDX-License-Identifier: Apache-2.0
"""Templates: what is a placeholder, how values are written, and that no value is more than text."""

from __future__ import annotations

import html
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.errors import ErrorKind, RefusedError
from hepmaild.mail.address import has_control_characters
from hepmaild.mail.template import (
    MAX_SUBJECT,
    Wording,
    fill,
    fill_html,
    fill_subject,
    fill_text,
    one_line,
    read_variables,
)
from tests.mail.markup import seen_in

PLENTY = 10 << 20
NAMES = ("a", "b", "c")

# Values that mean something to somebody.
WORDS = st.sampled_from(
    ["<script>", "</p>", '" onclick="x', "' onclick='x", " onclick=x ", "-->", "--", "-", "--!>", ">", "<", "<!--", "&",
     "{{a}}", "{{b}}", "{{", "}}", "\r\n", "\n", "\x0b", "\x85", "\u2028", "\x00", "/", "=", "`", "é", "x", "&#60;",
     "]]>"]
)  # fmt: skip
VALUES = st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=4).map("".join)
VALUE_SETS = st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES))

PLACEHOLDERS = st.sampled_from(["{{a}}", "{{ b }}", "{{c}}", "{{\tmissing }}"])
# Whatever stands before a placeholder, in pieces, so that every state of a reader of HTML is reached.
SOUP = st.lists(
    st.one_of(
        PLACEHOLDERS,
        st.sampled_from(
            ["<", "</", "<p", "<a ", "href", "=", '"', "'", ">", "/>", " ", "/", "<!--", "--", "-", "!", ">", "-->",
            "<!", "<?",
             "<style>", "</style>", "<title>", "</title>", "</ti", "tle>", "<script", "text", "{", "}", "&", "&#",
             "<svg>", "`",
             "\n", "<textarea>", "<b title='", '<i class="', "[CDATA[", "é"]
        ),
    ),
    max_size=14,
).map("".join)  # fmt: skip
# Markup as people write it: every placeholder stands in text, in quotes or in a comment.
GOOD_PIECES = st.one_of(
    PLACEHOLDERS.flatmap(
        lambda p: st.sampled_from(
            [p, f"<p>{p}</p>", f'<a href="https://x/?q={p}">', f"<b title='{p}'>", f'<img alt="{p}" src=x.png />',
             f"<!-- {p} -->", f'<!--[if mso]><v:rect href="{p}"><![endif]-->', f"<title>{p}</title>", f"1 < 2 {p}",
             f"<style>p {{ color: {p} }}</style>", f'<td width="{p}"\n bgcolor=#ffffff nowrap>']
        )
    ),
    st.sampled_from(["<!doctype html>", "<br>", "</div>", "a > b", "<p class=x>", '<?xml version="1.0"?>',
    "<![if x]>"]),
)  # fmt: skip
GOOD = st.lists(GOOD_PIECES, max_size=8).map("".join)


def shape(markup: str) -> list[tuple[str, ...]]:
    """What a reader sees; names that are made of what values became are all alike."""
    return [tuple(re.sub(r"(?:&#\d+;|[^\x00-\x7f])+", "*", part) for part in each) for each in seen_in(markup)]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("Dear {{name}},", "Dear Anna,"),
        ("{{ name }}{{\tname\t}}{{name }}", "AnnaAnnaAnna"),
        ("{{missing}}|", "|"),
        ("{{größe}} {{n_1}}", "42 one"),
        ("{{{name}}}", "{Anna}"),
        ("{{{{name}}}}", "{{Anna}}"),
        ("{{}} {{ }} {name} {{a b}} {{a-b}} {{name} } {{#if}} {{name",
         "{{}} {{ }} {name} {{a b}} {{a-b}} {{name} } {{#if}} {{name"),
        ("{{\nname}}", "{{\nname}}"),
        ("{{twice}}", "{{name}}"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_is_a_placeholder(text: str, filled: str) -> None:
    values = {"name": "Anna", "größe": "42", "n_1": "one", "twice": "{{name}}"}
    assert fill_text(text, values, PLENTY) == filled
    assert fill_html(text, values, PLENTY) == filled
    assert fill_subject(text, values) == one_line(filled)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", ""), ("a\r\nb", "a\r\nb"), (True, "true"), (False, "false"), (0, "0"), (-7, "-7"), (10**30,
        "1" + "0" * 30),
        (9.90, "9.9"), (3.0, "3"), (-0.0, "0"), (1e-7, "0.0000001"), (1e21, "1" + "0" * 21), (-2.50, "-2.5"), (0.1,
        "0.1"),
        (1e300, "1" + "0" * 300),
    ],
)  # fmt: skip
def test_how_values_are_written(value: Any, written: str) -> None:
    assert read_variables({"x": value}) == {"x": written}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_as_itself(number: float) -> None:
    written = (read_variables({"x": number}) or {})["x"]
    assert float(written) == number
    assert re.fullmatch(r"-?(?:0|[1-9]\d*)(?:\.\d*[1-9])?", written)


def test_null_is_as_if_it_were_not_there() -> None:
    assert read_variables(None) is None
    assert read_variables({}) == {}
    assert read_variables({"x": None}) == {}


@pytest.mark.parametrize(
    ("variables", "field"),
    [
        ([], "variables"),
        ("x", "variables"),
        (1, "variables"),
        ({"x": []}, "variables.x"),
        ({"ok": 1, "y": {"z": 1}}, "variables.y"),
        ({"x": float("inf")}, "variables.x"),
        ({"x": float("nan")}, "variables.x"),
        ({"x": 10**400}, "variables.x"),
        ({"x": "a\ud800"}, "variables.x"),
        ({"a\nb": []}, "variables.a?b"),
        ({"n" * 200: []}, f"variables.{'n' * 80}..."),
    ],
)
def test_a_wrong_type_is_named_by_its_path(variables: Any, field: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_variables(variables)
    assert caught.value.refusal.kind is ErrorKind.INVALID_FIELD
    assert caught.value.refusal.field == field
    assert caught.value.refusal.message.startswith(field)


def test_each_part_is_filled_in_its_own_way() -> None:
    wording = Wording("To {{x}}", '<a href="{{x}}">{{x}}</a>', "{{x}}")
    assert fill(wording, {"x": "<\r\nBcc: \"a\" & 'b'>"}, PLENTY) == Wording(
        "To < Bcc: \"a\" & 'b'>",
        '<a href="&lt;\r\nBcc: &quot;a&quot; &amp; &#x27;b&#x27;&gt;">'
        "&lt;\r\nBcc: &quot;a&quot; &amp; &#x27;b&#x27;&gt;</a>",
        "<\r\nBcc: \"a\" & 'b'>",
    )
    assert fill(Wording("{{x}}"), {}, PLENTY) == Wording("", None, None)


@pytest.mark.parametrize(
    "markup",
    ["<a href={{x}}>", "<{{x}}", "</{{x}}>", "<p {{x}}>", "<h{{x}}>", "<!--{{x}}>", "<!-- {{x}}",
    '<a title="a>b" href={{x}}>',
     "<a href= {{x}} title='>'>", "<b title='{{x}}", "<svg><style><a b={{x}}></style>"],
)  # fmt: skip
def test_where_escaping_does_not_help_a_value_is_written_in_references(markup: str) -> None:
    value = "x onclick=alert(1)"
    written = fill_html(markup, {"x": value}, PLENTY)
    assert written == markup.replace("{{x}}", "".join(f"&#{ord(each)};" for each in value))
    assert html.unescape(written) == markup.replace("{{x}}", value)


@pytest.mark.parametrize(
    "markup",
    ["<!--[if mso]><v:rect href={{x}}><![endif]-->", "<p>ok</p><!--[if gte mso 9]><td {{x}}><![endif]-->",
     "<!--[if mso]><b><![endif]--><!--[IF mso]><{{x}}><![endif]-->"],
)  # fmt: skip
def test_what_outlook_reads_in_comments_is_markup(markup: str) -> None:
    value = "x onclick=alert(1)"
    assert fill_html(markup, {"x": value}, PLENTY) == markup.replace("{{x}}", "".join(f"&#{ord(c)};" for c in value))
    before = '<!--[if mso]><v:rect href="{{x}}">{{x}}<![endif]-->'
    assert fill_html(before + markup, {"x": value}, PLENTY).startswith(before.replace("{{x}}", value))


@given(SOUP, VALUE_SETS)
def test_no_value_opens_a_tag_in_what_outlook_reads(markup: str, values: dict[str, str]) -> None:
    markup = f"<!--[if mso]>{markup}<![endif]-->"
    harmless = {name: "v" if value else "" for name, value in values.items()}
    shapes = [
        shape(fill_html(markup, each, PLENTY).removeprefix("<!--[if mso]>").partition("-->")[0])
        for each in (values, harmless)
    ]
    assert shapes[0] == shapes[1]


@given(SOUP, VALUE_SETS)
def test_no_value_opens_a_tag_an_attribute_or_a_comment(markup: str, values: dict[str, str]) -> None:
    harmless = {name: "v" if value else "" for name, value in values.items()}
    hostile = fill_html(markup, values, PLENTY)
    assert shape(hostile) == shape(fill_html(markup, harmless, PLENTY))


@given(GOOD, VALUE_SETS)
def test_good_markup_is_the_same_whatever_the_values(markup: str, values: dict[str, str]) -> None:
    expected = shape(fill_html(markup, dict.fromkeys(NAMES, ""), PLENTY))
    filled = fill_html(markup, values, PLENTY)
    assert shape(filled) == expected
    assert fill_html(markup, {"a": "a b", "b": "a b", "c": "a b"}, PLENTY).count("&#") == 0, "readable, where it can be"


@given(SOUP, VALUE_SETS)
def test_what_is_seen_is_the_value(markup: str, values: dict[str, str]) -> None:
    """Escaping loses nothing: whoever reads references reads the text as it was given."""
    values = {name: re.sub(r"[\x00-\x08\r\x0b\x0e-\x1f\x7f-\x9f]", "", value) for name, value in values.items()}
    if "&" in markup:
        return
    assert html.unescape(fill_html(markup, values, PLENTY)) == html.unescape(
        fill_text(markup, {name: html.escape(value) for name, value in values.items()}, PLENTY)
    )


@given(SOUP, VALUE_SETS)
def test_no_value_reaches_another_placeholder(text: str, values: dict[str, str]) -> None:
    """One pass, as if the placeholders were cut out first and the values laid between afterwards."""
    pieces = re.split(r"\{\{[ \t]*(\w+)[ \t]*\}\}", text)
    pieces[1::2] = [values.get(name, "") for name in pieces[1::2]]
    assert fill_text(text, values, PLENTY) == "".join(pieces)


@given(SOUP, VALUE_SETS)
def test_a_subject_stays_one_line(text: str, values: dict[str, str]) -> None:
    subject = fill_subject(text, values)
    assert not has_control_characters(subject)
    assert len(subject.splitlines()) <= 1
    assert len(subject) <= MAX_SUBJECT


@given(st.text().filter(lambda text: "{{" not in text), VALUE_SETS)
def test_what_has_no_placeholder_stays_as_it_is(text: str, values: dict[str, str]) -> None:
    assert fill_text(text, values, PLENTY) == text
    assert fill_html(text, values, PLENTY) == text
    clean = one_line(text)
    assert fill_subject(clean, values) == clean


@given(SOUP)
def test_filling_with_plain_words_twice_changes_nothing(text: str) -> None:
    """Only for texts in which filling makes no new placeholder out of braces that stood around it."""
    values = dict.fromkeys(NAMES, "word")
    once = fill_text(text, values, PLENTY)
    if "{{word" not in once and not re.search(r"\{\{[ \t]*\w+[ \t]*\}\}", once):
        assert fill_text(once, values, PLENTY) == once


def test_a_few_placeholders_cannot_ask_for_gigabytes() -> None:
    bomb = "{{x}}" * 10_000
    values = {"x": "y" * 10_000}
    for field, filler in (("html", fill_html), ("text", fill_text)):
        with pytest.raises(RefusedError) as caught:
            filler(bomb, values, PLENTY)
        assert caught.value.refusal.kind is ErrorKind.BODY_TOO_LARGE
        assert caught.value.refusal.field == field
    assert len(fill_subject(bomb, values)) == MAX_SUBJECT
    with pytest.raises(RefusedError):
        fill_html("{{x}}", {"x": "y" * 20}, 10)
    with pytest.raises(RefusedError):
        fill_html("no placeholder, but long", {}, 10)


HOSTILE = [
    "{{" * 50_000, "{{ " * 50_000, "{{" + " " * 100_000, "{{" + "a" * 100_000, "{{a " * 30_000, "{" * 100_000,
    "{{a}" * 30_000,
    "{{a}}" * 20_000, "<" * 100_000, "<a " * 30_000, '<a b="' * 20_000, "<!--" * 30_000, "<!-- -" * 20_000,
    "<a/" * 30_000,
    "<a b= " * 20_000, "<title>" * 20_000, "<title>{{a}}" * 10_000, "<a b='{{a}}" * 10_000, "<a " + "b " * 50_000,
    "<a b=" + "c" * 100_000, "<!" * 50_000, "</a" * 30_000, "<a\n" + "\n" * 100_000, "<p>{{a}}</p>" * 10_000,
    "<p>{{a}} {{" * 9_000, "<!--[if a]>{{a}}" * 6_000, "<!--[if a]>{{a}}-->" * 5_000, '<a b="<!--[{{a}}">' * 5_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8].strip())
def test_hostile_text_takes_time_in_proportion(text: str) -> None:
    """A hundred kilobytes take some milliseconds; what grows with their square would take minutes."""
    begun = time.thread_time()
    fill(Wording(text, text, text), {"a": "-" * 20 + "\r\n" * 20}, PLENTY)
    assert time.thread_time() - begun < 2.5
