# SPDX-License-Identifier: Apache-2.0
"""Suppressions: addresses that are not tried for a while, found, lifted and added."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quart.wrappers import Response

from hepmaild.config import DAY_US
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, number_of, with_query
from hepmaild.http.dashboard.words import no_address
from hepmaild.mail.address import check_address
from hepmaild.storage import audit, suppress
from hepmaild.storage.audit import Actor
from hepmaild.storage.message_page import still_there

if TYPE_CHECKING:
    from sqlalchemy import Connection

PATH = "/suppressions"
ROWS = 50
MAX_DAYS = 3650
MAX_WORDS = 200


def pages(dashboard: Dashboard) -> Pages:
    """`/suppressions`, lifting and adding."""
    group = Pages("suppressions", dashboard)

    @group.get(PATH)
    async def show(visit: Visit) -> Response:
        return await _page(visit, {}, {})

    @group.post(PATH)
    async def add(visit: Visit, form: Form) -> Response:
        typed = {name: form.get(name, "").strip()[:2000] for name in ("address", "days", "reason")}
        errors: dict[str, str] = {}
        address = _address(typed["address"], errors)
        days = _days(typed["days"], dashboard.settings().delivery.suppress_days, errors)
        if errors:
            return await _page(visit, typed, errors)
        now_us = dashboard.now_us()
        until_us = now_us + round(days * DAY_US)
        reason = typed["reason"] or f"{visit.viewer.email} said so"
        await visit.store.write(add_unit, visit.account_id, visit.actor, address, until_us, reason, now_us)
        return visit.redirect(PATH, f"{address} is not sent to any more.")

    @group.post(f"{PATH}/lift")
    async def lift(visit: Visit, form: Form) -> Response:
        address = form.get("address", "")
        try:
            await visit.store.write(lift_unit, visit.account_id, visit.actor, address, dashboard.now_us())
        except ValueError:
            return visit.redirect(PATH, "That address is not suppressed any more. Nothing was changed.")
        return visit.redirect(PATH, f"{address} can be sent to again.")

    return group


def _address(text: str, errors: dict[str, str]) -> str:
    try:
        return check_address(text)
    except ValueError as error:
        errors["address"] = no_address(error)
        return ""


def _days(text: str, default: float, errors: dict[str, str]) -> float:
    if not text:
        return default
    try:
        days = float(text.replace(",", "."))
    except ValueError:
        days = math.nan
    if not 0 < days <= MAX_DAYS:
        errors["days"] = f"Give a number of days, at most {MAX_DAYS}."
    return days


async def _page(visit: Visit, typed: dict[str, str], errors: dict[str, str]) -> Response:
    words = visit.arg("q").strip()[:MAX_WORDS]
    behind = _behind(visit.arg("behind"))
    rows = await visit.store.read(
        suppress.page, visit.account_id, visit.dashboard.now_us(), words=words, behind=behind, most=ROWS + 1
    )
    shown = rows[:ROWS]
    last = shown[-1] if len(rows) > ROWS else None
    older = "" if last is None else with_query(PATH, q=words, behind=f"{last['refused_at']}:{last['key']}")
    logged = await visit.store.read(still_there, visit.account_id, {row["message_id"] for row in shown} - {None})
    return await visit.render(
        "suppressions/list.html",
        status=422 if errors else 200,
        rows=shown,
        logged=logged,
        words=words,
        first="" if behind is None else with_query(PATH, q=words),
        older=older,
        typed={"address": "", "days": "", "reason": "", **typed},
        errors=errors,
        default_days=visit.dashboard.settings().delivery.suppress_days,
    )


def _behind(text: str) -> tuple[int, str] | None:
    before, _, key = text.partition(":")
    at = number_of(before)
    return (at, key) if key and at is not None else None


def add_unit(
    conn: Connection, account_id: str, actor: Actor, address: str, until_us: int, reason: str, now_us: int
) -> None:
    """Suppress an address until then."""
    suppress.add(conn, account_id, address, until_us=until_us, reason=reason, now_us=now_us)
    data = {"until_us": until_us, "reason": reason}
    audit.note(
        conn, account_id=account_id, actor=actor, action="suppression.add", subject=address, data=data, now_us=now_us
    )


def lift_unit(conn: Connection, account_id: str, actor: Actor, address: str, now_us: int) -> None:
    """Let the account send to it again.  ValueError: it is not suppressed."""
    suppress.lift(conn, account_id, address, now_us)
    audit.note(
        conn, account_id=account_id, actor=actor, action="suppression.lift", subject=address, data={}, now_us=now_us
    )
