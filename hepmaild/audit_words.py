# SPDX-License-Identifier: Apache-2.0
"""Rows of the audit log in the words of people, for its page and for `hepmaild audit list`.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from hepmaild.key_rules import LATEST_US

MAX_DETAIL = 300
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
# What concerns the service, not one account: the command line shows it.
SERVICE_ACTIONS = {
    "dkim.activate": "DKIM key in use",
    "dkim.add": "DKIM key made",
    "dkim.remove": "DKIM key deleted",
    "dkim.retire": "DKIM key retired",
    "queue.pause": "Paused",
    "queue.release": "Mail released",
    "queue.resume": "Resumed",
    "queue.retry": "Mail tried again",
    "secrets.rotate": "Secrets sealed anew",
}
VIA = {"dashboard": "dashboard", "api": "API", "cli": "command line"}


class Detail(NamedTuple):
    """One of a row's details.  at_us: an instant (Unix µs), which `text` says in UTC; None: it is none."""

    label: str
    text: str
    at_us: int | None


def in_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `storage.audit` with `what`, `via` and `details` (a list of `Detail`) for people."""
    action = row["action"]
    return {
        **row,
        "what": ACTIONS.get(action) or SERVICE_ACTIONS.get(action, action),
        "via": VIA.get(row["via"], row["via"]),
        "details": [_detail(action, name, value) for name, value in row["data"].items() if value is not None],
    }


def _detail(action: str, name: str, value: Any) -> Detail:
    is_time = name.endswith("_us")
    label = name.removesuffix("_us").replace("_", " ")
    if is_time and isinstance(value, int):
        return Detail(label, _say(value, is_time=True), value)
    if action.endswith(".change") and isinstance(value, list) and len(value) == 2:
        return Detail(label, " → ".join(_say(each, is_time=is_time) for each in value), None)
    return Detail(label, _say(value), None)


def _say(value: Any, *, is_time: bool = False) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_time and isinstance(value, int):
        return datetime.fromtimestamp(min(value, LATEST_US) / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if isinstance(value, list):
        return ", ".join(_say(each) for each in value)[:MAX_DETAIL] or "none"
    return str(value)[:MAX_DETAIL]
