# SPDX-License-Identifier: Apache-2.0
"""What a draft only names is looked up in its account and put in: templates and uploads, on both engines."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hepmaild.errors import RefusedError
from hepmaild.mail.submission import Attachment, Draft, Mailbox
from hepmaild.mail.template import Ask, Wording
from hepmaild.materials import Found, Materials
from hepmaild.storage import templates, uploads
from hepmaild.storage.audit import Actor
from hepmaild.template_rules import TemplateWish
from tests.storage.books import Books, open_books
from tests.storage.conftest import Opener

ACTOR = Actor("u1", "ann@example.com", "192.0.2.7", "dashboard")
T1 = "0b7b6ba0-4c5b-4dbb-8e26-0f8a1f0f6c01"
WISH = TemplateWish("Welcome", "welcome", Wording("Hi {{name}}", "<p>{{name}}</p>", "Hi {{name}}."), {})
NOTHING = Ask()
DRAFT = Draft(None, (Mailbox("joe@example.com"),))
MB = 1 << 20


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        await opened.store.write(templates.create, opened.account_id, ACTOR, T1, WISH, opened.clock.us)
        yield opened


@pytest.fixture
def materials(books: Books) -> Materials:
    return Materials(books.store, books.clock.now_us, trio.CapacityLimiter(1))


async def put(books: Books, content: bytes, *, account_id: str = "", piece: int = MB) -> str:
    """An upload as a process that received it leaves it."""
    upload_id = str(uuid.uuid4())
    account_id = account_id or books.account_id
    room = {"at_most": 15 * MB, "quota": 100 * MB, "now_us": books.clock.us}
    assert await books.store.write(uploads.begin, account_id, upload_id, **room) is None
    for n, at in enumerate(range(0, len(content), piece)):
        await books.store.write(uploads.add_piece, upload_id, n, content[at : at + piece])
    found = uploads.Upload(upload_id, "plan.pdf", "application/pdf", len(content))
    assert await books.store.write(uploads.finish, found, None, books.clock.us)
    return upload_id


async def make(materials: Materials, books: Books, draft: Draft, ask: Ask = NOTHING, **key: Any) -> tuple[Draft, Found]:
    found = await materials.find(replace(books.identity, **key), draft, ask)
    return await materials.complete(found), found


async def refusal(
    materials: Materials, books: Books, draft: Draft, ask: Ask = NOTHING, **key: Any
) -> tuple[str, str | None]:
    with pytest.raises(RefusedError) as caught:
        await make(materials, books, draft, ask, **key)
    return caught.value.refusal.kind.api_code, caught.value.refusal.field


def attached(*upload_ids: str, **changes: Any) -> Draft:
    files = tuple(Attachment(changes.get("filename", ""), b"", "", upload_id=each) for each in upload_ids)
    return replace(DRAFT, text="see the file", attachments=files)


async def test_a_template_by_id_by_key_and_by_both(materials: Materials, books: Books) -> None:
    values = {"name": "<Ann>\r\n"}
    for ask in (Ask(T1, None, values), Ask(None, "welcome", values), Ask(T1, "welcome", values)):
        draft, found = await make(materials, books, DRAFT, ask)
        assert draft == replace(DRAFT, subject="Hi <Ann> ", html="<p>&lt;Ann&gt;\r\n</p>", text="Hi <Ann>\r\n.")
        assert found.note == "template welcome (Welcome), revision 1"
    draft, _ = await make(materials, books, DRAFT, Ask(T1))
    assert (draft.subject, draft.html, draft.text) == ("Hi ", "<p></p>", "Hi .")
    draft, _ = await make(materials, books, replace(DRAFT, text="Mine, {{name}}"), Ask(T1, None, {"name": "Bo"}))
    assert (draft.html, draft.text) == ("<p>Bo</p>", "Mine, Bo")
    # Without `variables` one's own words stay as they are.
    draft, _ = await make(materials, books, replace(DRAFT, text="Mine, {{name}}"), Ask(T1))
    assert (draft.subject, draft.html, draft.text) == ("Hi ", "<p></p>", "Mine, {{name}}")


async def test_unknown_templates_are_refused(materials: Materials, books: Books) -> None:
    for ask in (Ask(str(uuid.uuid4())), Ask("x"), Ask(T1.upper()), Ask(T1, "other"), Ask("\0")):
        assert await refusal(materials, books, DRAFT, ask) == ("UNKNOWN_TEMPLATE", "templateId")
    for key in ("other", "Welcome", "x" * 1000, "a\0b"):
        assert await refusal(materials, books, DRAFT, Ask(None, key)) == ("UNKNOWN_TEMPLATE", "templateKey")
    stranger = {"account_id": "somebody else"}
    assert await refusal(materials, books, DRAFT, Ask(T1), **stranger) == ("UNKNOWN_TEMPLATE", "templateId")


async def test_a_key_may_not_use_templates(materials: Materials, books: Books) -> None:
    may_not = {"permissions": frozenset({"http"})}
    assert await refusal(materials, books, DRAFT, Ask(T1), **may_not) == ("CHANNEL_NOT_ALLOWED", "templateId")
    draft, _ = await make(materials, books, replace(DRAFT, text="{{a}}"), Ask(values={"a": "b"}), **may_not)
    assert draft.text == "b", "words of one's own are no template"
    await make(materials, books, DRAFT, Ask(T1), permissions=frozenset({"http", "templates"}))


async def test_own_words_are_filled_only_with_variables(materials: Materials, books: Books) -> None:
    own = replace(DRAFT, subject="{{a}}" + "x" * 2000, html="<p>{{a}}</p>", text="{{a}} {{b}}")
    draft, found = await make(materials, books, own)
    assert (draft, found.octets) == (own, 0)
    draft, found = await make(materials, books, own, Ask(values={"a": "&"}))
    assert (draft.html, draft.text, found.note) == ("<p>&amp;</p>", "& ", "")
    assert draft.subject == "&" + "x" * 987
    draft, _ = await make(materials, books, own, Ask(values={}))
    assert draft.html == "<p></p>"


async def test_nothing_is_left_or_too_much(materials: Materials, books: Books) -> None:
    empty = replace(DRAFT, text="{{a}}")
    assert await refusal(materials, books, empty, Ask(values={})) == ("NO_BODY", "variables")
    bomb = replace(DRAFT, text="{{a}}" * 20_000)
    assert await refusal(materials, books, bomb, Ask(values={"a": "x" * 1000})) == ("BODY_TOO_LARGE", "text")
    # 10 MB are counted in octets.
    much = replace(DRAFT, text="{{a}}")
    assert await refusal(materials, books, much, Ask(values={"a": "ä" * (6 << 20)})) == ("BODY_TOO_LARGE", "text")


async def test_what_is_saved_meanwhile_changes_nothing_half(materials: Materials, books: Books) -> None:
    found = await materials.find(books.identity, DRAFT, Ask(T1, None, {"name": "Ann"}))
    wish = replace(WISH, wording=Wording("New", "<p>new</p>", "new"))
    await books.store.write(templates.save, books.account_id, ACTOR, T1, wish, 1, books.clock.us)
    draft = await materials.complete(found)
    assert (draft.subject, draft.html, draft.text) == ("Hi Ann", "<p>Ann</p>", "Hi Ann.")
    assert found.note.endswith("revision 1")
    again, found = await make(materials, books, DRAFT, Ask(T1))
    assert (again.subject, found.note) == ("New", "template welcome (Welcome), revision 2")


async def test_an_upload_is_put_in_and_may_be_used_again(materials: Materials, books: Books) -> None:
    content = bytes(range(256)) * 9000
    upload_id = await put(books, content)
    for name, expected in (("", "plan.pdf"), ("other.pdf", "other.pdf")):
        draft, found = await make(materials, books, attached(upload_id, filename=name))
        (file,) = draft.attachments
        assert (file.filename, file.content_type, file.upload_id) == (expected, "application/pdf", "")
        assert file.content == content
        assert found.octets == len(content)
    inline = Attachment("", b"", "image/png", "logo", upload_id)
    draft, _ = await make(materials, books, replace(DRAFT, text="x", attachments=(inline,)))
    assert (draft.attachments[0].content_type, draft.attachments[0].content_id) == ("image/png", "logo")
    draft, _ = await make(materials, books, attached(upload_id, upload_id))
    assert [len(each.content) for each in draft.attachments] == [len(content)] * 2


async def test_what_came_in_by_one_process_is_there_for_another(opener: Opener, books: Books) -> None:
    upload_id = await put(books, b"x" * (MB + 1))
    async with opener(exclusive=False) as second:
        elsewhere = Materials(second, books.clock.now_us, trio.CapacityLimiter(1))
        draft, found = await make(elsewhere, books, replace(attached(upload_id), text=None), Ask(T1))
    assert draft.attachments[0].content == b"x" * (MB + 1)
    assert found.note == "template welcome (Welcome), revision 1"


async def test_other_accounts_expired_and_half_uploads_are_unknown(materials: Materials, books: Books) -> None:
    upload_id = await put(books, b"x")
    unknown = ("UNKNOWN_UPLOAD", "attachments[0].uploadId")
    for wrong in (str(uuid.uuid4()), "x", "\0", upload_id.upper(), "'"):
        assert await refusal(materials, books, attached(wrong)) == unknown
    assert await refusal(materials, books, attached(upload_id), account_id="somebody else") == unknown
    assert await refusal(materials, books, attached(upload_id, "x")) == (unknown[0], "attachments[1].uploadId")
    half = str(uuid.uuid4())
    await books.store.write(uploads.begin, books.account_id, half, at_most=1, quota=100 * MB, now_us=books.clock.us)
    assert await refusal(materials, books, attached(half)) == unknown
    found = await materials.find(books.identity, attached(upload_id), Ask())
    books.clock.us += uploads.LIFE_US
    assert await refusal(materials, books, attached(upload_id)) == unknown
    assert await books.store.write(uploads.prune, books.clock.us) == 2
    with pytest.raises(RefusedError, match="24 hours"):
        await materials.complete(found)


async def test_uploads_count_in_the_limits_of_attachments(materials: Materials, books: Books) -> None:
    ten = await put(books, b"x" * (10 * MB))
    assert await refusal(materials, books, attached(ten, ten)) == ("ATTACHMENT_TOO_LARGE", "attachments")
    nine = Attachment("a", b"x" * (9 * MB))
    mixed = replace(attached(ten), attachments=(*attached(ten).attachments, nine))
    assert await refusal(materials, books, mixed) == ("ATTACHMENT_TOO_LARGE", "attachments")
    small = await put(books, b"x")
    assert await refusal(materials, books, attached(*[small] * 11)) == ("TOO_MANY_ATTACHMENTS", "attachments")
    body = replace(attached(ten), text="{{a}}")
    large = Ask(values={"a": "x" * (9 * MB)})
    assert await refusal(materials, books, body, large) == ("ATTACHMENT_TOO_LARGE", "attachments")


async def test_many_placeholders_are_counted_in_a_thread(books: Books) -> None:
    """A request may hold two million of them."""
    threads = trio.CapacityLimiter(1)
    materials = Materials(books.store, books.clock.now_us, threads)
    made: list[Draft] = []

    async def find() -> None:
        made.append((await materials.find(books.identity, replace(DRAFT, html="{{a}}" * 60_000), Ask(values={}))).draft)

    async with trio.open_nursery() as nursery, threads:
        nursery.start_soon(find)
        await wait_all_tasks_blocked()
        assert not made, "it waits for the thread"
    assert made
