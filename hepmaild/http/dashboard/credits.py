# SPDX-License-Identifier: Apache-2.0
"""Credits: the ledger, page by page, and whether it holds."""

from __future__ import annotations

import trio
from quart.wrappers import Response

from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, number_of, with_query
from hepmaild.storage import credits as ledger
from hepmaild.storage.credits import Checked, Fault
from hepmaild.storage.message_page import still_there

ROWS = 50
REASONS = {"": "All", "debit": "Debits", "refund": "Refunds", "grant": "Grants"}
PIECE = 10_000  # rows that are checked on one snapshot


def pages(dashboard: Dashboard) -> Pages:
    """`/credits` and its verification.  One ledger is verified at a time: it is work for a whole core."""
    group = Pages("credits", dashboard)
    turns = trio.CapacityLimiter(1)

    @group.get("/credits")
    async def show(visit: Visit) -> Response:
        return await _page(visit, None)

    @group.post("/credits/verify", needs="read_only")
    async def verify(visit: Visit, _form: Form) -> Response:
        async with turns:
            return await _page(visit, await _verify(visit))

    return group


async def _verify(visit: Visit) -> Checked | Fault:
    """A piece at a time, so that no snapshot is held long and nothing else waits behind it.  Cancel-safe."""
    found: Checked | Fault = Checked()
    while isinstance(found, Checked) and not found.is_all:
        found = await visit.store.read(ledger.verify_on, visit.account_id, found, PIECE)
    return found


async def _page(visit: Visit, verified: Checked | Fault | None) -> Response:
    reason = visit.arg("reason")
    reason = reason if reason in REASONS else ""
    before = number_of(visit.arg("before"))
    rows = await visit.store.read(ledger.history, visit.account_id, limit=ROWS + 1, before_seq=before, reason=reason)
    shown = rows[:ROWS]
    logged = await visit.store.read(still_there, visit.account_id, {row["message_id"] for row in shown} - {None})
    return await visit.render(
        "credits/list.html",
        rows=shown,
        logged=logged,
        reason=reason,
        reasons=REASONS,
        first="" if before is None else with_query("/credits", reason=reason),
        older=with_query("/credits", reason=reason, before=shown[-1]["seq"]) if len(rows) > ROWS else "",
        verified=verified,
        fault=verified if isinstance(verified, Fault) else None,
    )
