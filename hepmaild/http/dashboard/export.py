# SPDX-License-Identifier: Apache-2.0
"""The current search as a file: CSV for spreadsheets, JSON lines for programs.  A page at a time, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

from quart.wrappers import Response
from werkzeug.exceptions import BadRequest, NotFound

from hepmaild.http.compat import Stream
from hepmaild.http.dashboard.frame import HEADERS, Dashboard, Pages, Visit
from hepmaild.http.dashboard.words import instant
from hepmaild.search_words import Search, SearchProblem, parse
from hepmaild.storage import search as rows
from hepmaild.storage.store import Store

AT_ONCE = 500
SHOWN = 1_000  # recipients of one message
COLUMNS = (
    "at",
    "message_id",
    "state",
    "door",
    "sender",
    "recipients",
    "more_recipients",
    "failed",
    "subject",
    "key",
    "size",
    "route",
    "ms",
    "chaos",
)
_ACTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # also as East Asian spreadsheets read them
# Where the comma is in numbers, a spreadsheet ends a cell at each semicolon, and knows no quotes but those in front.
_NEXT_CELL = re.compile(rf';(?=[ \u00a0"]*[{re.escape("".join(_ACTS))}])')


def pages(dashboard: Dashboard) -> Pages:
    """`/logs/export.csv` and `/logs/export.jsonl`."""
    group = Pages("export", dashboard)
    kinds: dict[str, tuple[str, str, Callable[[list[dict[str, Any]]], bytes]]] = {
        "csv": ("text/csv; charset=utf-8", csv_head(), csv_rows),
        "jsonl": ("application/jsonl; charset=utf-8", "", json_rows),
    }

    @group.get("/logs/export.<kind>")
    async def export(visit: Visit, kind: str) -> Response:
        if kind not in kinds:
            raise NotFound
        try:
            search = parse(visit.arg("q").strip(), dashboard.now_us())
        except SearchProblem as error:
            raise BadRequest(str(error)) from None
        content_type, head, write = kinds[kind]
        response = Stream(_pieces(visit.store, visit.account_id, search, head, write), content_type=content_type)
        response.headers.update(HEADERS)
        day = instant(dashboard.now_us()).strftime("%Y-%m-%d")
        response.headers["Content-Disposition"] = f'attachment; filename="hepmaild-logs-{day}.{kind}"'
        return response

    return group


async def _pieces(
    store: Store, account_id: str, search: Search, head: str, write: Callable[[list[dict[str, Any]]], bytes]
) -> AsyncGenerator[bytes, None]:
    """The whole search.  What is accepted meanwhile is not in it: it only goes back in time."""
    if head:
        yield head.encode()
    before = None
    while True:
        found = await store.read(rows.find, account_id, search, before=before, limit=AT_ONCE, shown=SHOWN)
        if found.lines:
            yield write([_row(line) for line in found.lines])
        if found.older is None:
            return
        before = found.older


def _row(line: dict[str, Any]) -> dict[str, Any]:
    at = instant(line["at"]).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {**{name: line.get(name) for name in COLUMNS}, "at": at, "more_recipients": line["more"]}


def json_rows(lines: list[dict[str, Any]]) -> bytes:
    """An object a line."""
    return "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines).encode("ascii")


def csv_head() -> str:
    """The names of the columns, behind the mark by which spreadsheets know UTF-8."""
    return "\ufeff" + ",".join(COLUMNS) + "\r\n"


def csv_rows(lines: list[dict[str, Any]]) -> bytes:
    """Rows in which nothing is a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    for line in lines:
        writer.writerow([harmless(line[name]) for name in COLUMNS])
    return text.getvalue().encode("utf-8", "replace")


def harmless(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula."""
    text = "" if value is None else " ".join(value) if isinstance(value, list) else str(value)
    text = _NEXT_CELL.sub(";'", text.replace("\x00", ""))
    return f"'{text}" if text.lstrip(" \u00a0").startswith(_ACTS) and not isinstance(value, int) else text
