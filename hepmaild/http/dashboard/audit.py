# SPDX-License-Identifier: Apache-2.0
"""The audit log of an account: who changed what, when, from where; searched, paged, its chain of hashes verified."""

from __future__ import annotations

from typing import Any

import trio
from quart.wrappers import Response

from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, number_of, with_query
from hepmaild.http.dashboard.words import instant
from hepmaild.storage.audit import Fault
from hepmaild.storage.security_page import audit_page, verify_audit

PATH = "/security/audit"
ROWS = 50
MAX_WORDS = 200
MAX_DETAIL = 300
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
ACTIONS = {
    "account.add": "Account made",
    "account.plan": "Plan changed",
    "account.resume": "Account let in again",
    "account.suspend": "Account suspended",
    "credits.grant": "Credits granted",
    "key.change": "Key changed",
    "key.delete": "Key deleted",
    "key.disable": "Key disabled",
    "key.enable": "Key enabled",
    "key.mint": "Key made",
    "key.rotate": "Key rotated",
    "message.cancel": "Message cancelled",
    "message.hold": "Message held",
    "message.release": "Message released",
    "message.retry": "Message tried again",
    "second_factor.codes": "New recovery codes",
    "second_factor.off": "Second factor off",
    "second_factor.on": "Second factor on",
    "sender.put": "Sender set",
    "sender.remove": "Sender removed",
    "session.end": "Session ended",
    "session.theft": "Stolen token came back",
    "smtp_server.add": "SMTP server added",
    "smtp_server.change": "SMTP server changed",
    "smtp_server.default": "SMTP server made the default",
    "smtp_server.pause": "SMTP server paused",
    "smtp_server.remove": "SMTP server deleted",
    "smtp_server.resume": "SMTP server resumed",
    "suppression.add": "Address suppressed",
    "suppression.lift": "Suppression lifted",
    "template.delete": "Template deleted",
    "template.make": "Template made",
    "template.restore": "Template restored",
    "template.save": "Template saved",
    "user.invite": "User invited",
    "user.link": "One-time link made",
    "user.name": "Name changed",
    "user.operator": "Operator switched",
    "user.password": "Password set",
    "user.remove": "User removed",
    "user.resume": "User let in again",
    "user.scope": "Role changed",
    "user.suspend": "User suspended",
}
VIA = {"dashboard": "dashboard", "api": "API", "cli": "command line"}


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
        rows=[show_row(row) for row in found.rows],
        kind=kind,
        kinds=KINDS,
        words=words,
        is_cut=found.is_cut,
        first="" if before is None else with_query(PATH, kind=kind, q=words),
        older="" if found.older is None else with_query(PATH, kind=kind, q=words, before=found.older),
        checked=None if checked is None else checked[0],
        fault=None if checked is None else checked[1],
    )


def show_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the words of people, and its details in pieces: name, text, or an instant instead."""
    return {
        **row,
        "what": ACTIONS.get(row["action"], row["action"]),
        "via": VIA.get(row["via"], row["via"]),
        "details": [_detail(row["action"], name, value) for name, value in row["data"].items() if value is not None],
    }


def _detail(action: str, name: str, value: Any) -> tuple[str, str, int | None]:
    is_time = name.endswith("_us")
    label = name.removesuffix("_us").replace("_", " ")
    if is_time and isinstance(value, int):
        return label, "", value
    if action.endswith(".change") and isinstance(value, list) and len(value) == 2:
        return label, " → ".join(_say(each, is_time=is_time) for each in value), None
    return label, _say(value), None


def _say(value: Any, *, is_time: bool = False) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_time and isinstance(value, int):
        return instant(value).strftime("%Y-%m-%d %H:%M UTC")
    if isinstance(value, list):
        return ", ".join(_say(each) for each in value)[:MAX_DETAIL] or "none"
    return str(value)[:MAX_DETAIL]
