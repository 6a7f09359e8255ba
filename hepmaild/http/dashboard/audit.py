# SPDX-License-Identifier: Apache-2.0
"""The audit log of an account: who changed what, when, from where; searched, paged, its chain of hashes verified."""

from __future__ import annotations

import trio
from quart.wrappers import Response

from hepmaild.audit_words import in_words
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, number_of, with_query
from hepmaild.storage.audit import Fault
from hepmaild.storage.security_page import audit_page, verify_audit

PATH = "/security/audit"
ROWS = 50
MAX_WORDS = 200
KINDS = {
    "": "Everything",
    "key": "API keys",
    "user": "Users",
    "session": "Sessions",
    "second_factor": "Second factor",
    "sender": "Senders",
    "smtp_server": "SMTP servers",
    "template": "Templates",
    "message": "Messages",
    "suppression": "Suppressions",
    "credits": "Credits",
    "account": "Account",
}


def pages(dashboard: Dashboard) -> Pages:
    """`/security/audit` and its verification.  One chain is verified at a time: it is work for a whole core."""
    group = Pages("audit", dashboard)
    turns = trio.CapacityLimiter(1)

    @group.get(PATH, needs="admin")
    async def show(visit: Visit) -> Response:
        return await _page(visit, None)

    @group.post(f"{PATH}/verify", needs="admin")
    async def verify(visit: Visit, _form: Form) -> Response:
        async with turns:
            checked = await visit.store.read(verify_audit, visit.account_id)
        return await _page(visit, checked)

    return group


async def _page(visit: Visit, checked: tuple[int, Fault | None] | None) -> Response:
    kind = visit.arg("kind") if visit.arg("kind") in KINDS else ""
    words = visit.arg("q").strip()[:MAX_WORDS]
    before = number_of(visit.arg("before"))
    found = await visit.store.read(audit_page, visit.account_id, before_seq=before, kind=kind, words=words, most=ROWS)
    return await visit.render(
        "security/audit.html",
        rows=[in_words(row) for row in found.rows],
        kind=kind,
        kinds=KINDS,
        words=words,
        is_cut=found.is_cut,
        first="" if before is None else with_query(PATH, kind=kind, q=words),
        older="" if found.older is None else with_query(PATH, kind=kind, q=words, before=found.older),
        checked=None if checked is None else checked[0],
        fault=None if checked is None else checked[1],
    )
