# SPDX-License-Identifier: Apache-2.0
"""What outlives the thing it speaks of names it still, and leads nowhere (api-keys.md: the log keeps a key's name)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hepmaild.delivery.job import Result
from hepmaild.mail.reply import Reply
from hepmaild.storage import credits as money
from hepmaild.storage import keys, prune, suppress
from hepmaild.storage.suppress import Rule
from tests.dashboard.inside import Inside, open_inside
from tests.dashboard.visitor import words
from tests.people.conftest import database_url, opener
from tests.storage.books import HOUR_US, Books, mint_key
from tests.storage.conftest import Opener

__all__ = ["database_url", "opener"]

ACCOUNT_ID = "account-1"
DAY_US = 24 * HOUR_US


@pytest.fixture
async def inside(opener: Opener, tmp_path: Path) -> AsyncIterator[Inside]:
    """Ann, signed in."""
    async with open_inside(opener, tmp_path) as opened:
        await opened.sign_in()
        yield opened


async def links_of(inside: Inside, path: str) -> set[str]:
    """The links in what a page says; every one of them leads somewhere."""
    page = (await inside.browser.get(path)).text
    found = set(re.findall(r'<a [^>]*href="(/[^"#]*)', page[page.index("<main") :]))
    for link in found:
        assert (await inside.browser.get(link)).status_code == 200, f"{path} links to {link}"
    return found


async def refuse_one(inside: Inside) -> str:
    """A message that was refused for good, which suppressed its recipient; its id."""
    store, clock = inside.world.store, inside.world.clock
    secret = keys.new_secret()
    books = Books(store, clock)
    await store.write(money.grant, ACCOUNT_ID, 10, granted_by="a test", note=None, now_us=clock.us)
    await store.write(mint_key, books, books.identity.key_id, secret)
    books.identity = replace(books.identity, last_five=secret[-5:])
    member = books.accept("gone@example.net")
    await store.submit(member)
    report = books.report(member, Result.FAILED)
    outcome = replace(report.attempt.outcomes[0], reply=Reply(550, "5.1.1", "no such user"))
    attempt = replace(report.attempt, outcomes=(outcome,))
    await store.submit(replace(report, attempt=attempt, event="{}"))
    await store.write(suppress.note, attempt, Rule(1, 90 * DAY_US))
    return member.message_id


async def test_a_deleted_keys_name_stays_in_the_log(inside: Inside) -> None:
    path = f"/logs/{await refuse_one(inside)}"
    assert "/keys/key-1" in await links_of(inside, path)
    last_five = re.search(r"Key app …(\S{5})", words((await inside.browser.get(path)).text))
    assert last_five is not None
    answer = await inside.post("/keys/key-1/delete", {"confirm": "app"}, page="/keys/key-1")
    assert answer.status_code == 303, words(answer.text)
    assert "/keys/key-1" not in await links_of(inside, path)
    assert f"Key app …{last_five[1]}, deleted since" in words((await inside.browser.get(path)).text)


async def test_ledger_and_suppressions_outlive_the_log(inside: Inside) -> None:
    message_id = await refuse_one(inside)
    for path in ("/credits", "/suppressions"):
        assert f"/logs/{message_id}" in await links_of(inside, path)
    clock = inside.world.clock
    clock.us += DAY_US
    store = inside.world.store
    await store.write(prune.drop_messages, await store.read(prune.finished_messages, "standard", clock.us))
    for path in ("/credits", "/suppressions"):
        assert f"/logs/{message_id}" not in await links_of(inside, path)
    assert message_id in (await inside.browser.get("/credits")).text
    assert "gone@example.net" in (await inside.browser.get("/suppressions")).text
