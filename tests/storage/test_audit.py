# SPDX-License-Identifier: Apache-2.0
"""The audit log's chain: whatever is changed afterwards is found; notes at once make one chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from hepmaild.storage import audit, security_page
from hepmaild.storage.audit import Actor
from hepmaild.storage.store import Store
from tests.storage.conftest import Opener, outside

ACTOR = Actor("u1", "ann@example.com", "192.0.2.7", "dashboard")


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[Store]:
    async with opener() as opened:
        await opened.upgrade()
        yield opened


async def note(store: Store, subject: str = "shop", account_id: str = "a", **data: Any) -> int:
    return await store.write(
        audit.note,
        account_id=account_id,
        actor=ACTOR,
        action="key.mint",
        subject=subject,
        data=data,
        now_us=1_800_000_000_000_000,
    )


async def test_rows_are_numbered_and_read_backwards(store: Store) -> None:
    assert [await note(store, f"key {n}", n=n) for n in range(5)] == [1, 2, 3, 4, 5]
    assert await note(store, account_id="b") == 1
    rows = await store.read(audit.history, "a", limit=2)
    assert [(row["seq"], row["subject"], row["data"]) for row in rows] == [
        (5, "key 4", {"n": 4}),
        (4, "key 3", {"n": 3}),
    ]
    rows = await store.read(audit.history, "a", before_seq=2)
    assert [row["seq"] for row in rows] == [1]
    assert (rows[0]["actor"], rows[0]["ip"], rows[0]["via"]) == ("ann@example.com", "192.0.2.7", "dashboard")
    assert len(await store.read(audit.history, "a", action="key")) == 5
    assert len(await store.read(audit.history, "a", action="key.mint")) == 5
    assert await store.read(audit.history, "a", action="ke") == []
    assert await store.read(audit.chains) == ["a", "b"]
    assert await store.read(audit.verify, "a") is await store.read(audit.verify, "nobody") is None


@pytest.mark.parametrize(
    "words", ["MÜLLER & söhne", "müller", "Müller", "MÜLLER", "ÖH", "ann@EXAMPLE", "key.M", "192.0"]
)
async def test_words_are_found_in_any_case(store: Store, words: str) -> None:
    await note(store, "Müller & Söhne")
    await note(store, "MÜLLER & SÖHNE")
    found = await store.read(security_page.audit_page, "a", before_seq=None, kind="key", words=words, most=9)
    assert [row["seq"] for row in found.rows] == [2, 1]
    nothing = await store.read(security_page.audit_page, "a", before_seq=None, kind="", words="m_ller", most=9)
    assert nothing.rows == []


async def test_notes_at_once_make_one_chain(opener: Opener, store: Store) -> None:
    async with opener(exclusive=False) as second, trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(note, (store, second)[n % 2], f"key {n}")
    assert await store.read(audit.verify, "a") is None
    assert len(await store.read(audit.history, "a")) == 20


@pytest.mark.parametrize("text", ["", "\0", "\ud800", "x" * 5000, "👩‍👩‍👧 \u202e", "'; drop table audit; --"])
async def test_text_from_outside(store: Store, text: str) -> None:
    await note(store, text, word=text, nested={"a": [1, None, text]})
    (row,) = await store.read(audit.history, "a")
    assert len(row["subject"]) <= audit.MAX_TEXT
    assert row["data"]["word"] == text
    assert await store.read(audit.verify, "a") is None


@pytest.mark.parametrize(
    "damage",
    [
        *(f"update audit set {column} = 'x' where seq = 2" for column in ("actor", "ip", "via", "action", "subject")),
        "update audit set data = '{}' where seq = 2",
        "update audit set user_id = null where seq = 2",
        "update audit set at_us = 1 where seq = 3",
        "update audit set hash = (select hash from audit where seq = 1) where seq = 2",
        "update audit set account_id = 'b' where seq = 3",
        "delete from audit where seq = 1",
        "delete from audit where seq = 2",
        "delete from audit where seq = 3",
        "delete from audit",
        "delete from audit_head",
        "update audit_head set seq = 2",
    ],
)
async def test_what_was_changed_is_found(store: Store, database_url: str, tmp_path: Path, damage: str) -> None:
    for n in range(3):
        await note(store, f"key {n}", n=n)
    outside(database_url, tmp_path, damage)
    fault = await store.read(audit.verify, "a")
    assert fault is not None
    assert fault.account_id == "a"
