# SPDX-License-Identifier: Apache-2.0
"""An export of more messages than are read at once has every one of them, once."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from sqlalchemy import insert

from hepmaild.http.dashboard.export import AT_ONCE
from hepmaild.storage.schema import message
from tests.dashboard.inside import open_inside
from tests.people.conftest import database_url, opener
from tests.storage.conftest import Opener
from tests.storage.test_tally import message_row

__all__ = ["database_url", "opener"]


async def test_all_of_it_newest_first(opener: Opener, tmp_path: Path) -> None:
    async with open_inside(opener, tmp_path) as inside:
        # Three of each instant: what is read next begins in the middle of one.
        rows = [message_row(n, "account-1", inside.world.clock.us + n // 3, "sent") for n in range(2 * AT_ONCE + 1)]
        await inside.world.store.write(lambda conn: conn.execute(insert(message), rows).rowcount)
        await inside.sign_in()
        wanted = [row["id"] for row in sorted(rows, key=lambda row: (row["accepted_at_us"], row["id"]), reverse=True)]
        lines = (await inside.browser.get("/logs/export.jsonl")).text.splitlines()
        assert [json.loads(line)["message_id"] for line in lines] == wanted
        table = (await inside.browser.get("/logs/export.csv")).text.removeprefix("\ufeff")
        assert [row["message_id"] for row in csv.DictReader(io.StringIO(table))] == wanted
