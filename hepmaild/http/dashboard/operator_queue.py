# SPDX-License-Identifier: Apache-2.0
"""Operator: the queue in figures, by route and destination; what waits, message by message; pauses and bulk changes."""

from __future__ import annotations

from typing import Any

from quart.wrappers import Response

from hepmaild.config import DAY_US, RouteKind
from hepmaild.counted import counted
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, with_query
from hepmaild.http.dashboard.words import sentence
from hepmaild.mail.dkim_record import check_domain
from hepmaild.mail.ids import is_message_id
from hepmaild.own_routes import ALL
from hepmaild.storage import queue_page
from hepmaild.storage.queue import Where

BASE = "/operator/queue"
WAITING = f"{BASE}/waiting"
MAX_NOTE = 500
DEEDS = {
    "retry": "It is due now.",
    "hold": "It is held until somebody releases it, or it expires.",
    "release": "It is released, and due now.",
    "cancel": "It is cancelled; what had not left was refunded.",
}
STATES = {
    "": "All",
    "queued": "Queued",
    "deferred": "Deferred",
    "capped": "Capped",
    "held": "Held",
    queue_page.UNDER_WAY: "Under way",
}


def pages(dashboard: Dashboard) -> Pages:
    """`/operator/queue…`.  extras["operations"]: `operations.Operations`."""
    group = Pages("operator_queue", dashboard)
    _mount_figures(group)
    _mount_waiting(group)
    _mount_message(group)
    _mount_pauses(group)
    _mount_many(group)
    return group


def waiting_url(**filters: str) -> str:
    """The list of what waits, filtered."""
    return with_query(WAITING, **filters)


def _mount_figures(group: Pages) -> None:
    @group.get(BASE, needs="operator")
    async def show(visit: Visit) -> Response:
        operations: Any = group.dashboard.extras["operations"]
        stats = await operations.stats()
        lanes = operations.lanes()
        known = {route.name: route for route in group.dashboard.settings().route}
        return await visit.render(
            "operator/queue.html",
            stats=stats,
            lanes=lanes,
            known=known,
            paused_at={(p["route"], p["destination"]) for p in (stats or {}).get("paused", ())},
            changes=list(operations.changes),
            waiting_url=waiting_url,
        )


def _mount_waiting(group: Pages) -> None:
    dashboard = group.dashboard

    @group.get(WAITING, needs="operator")
    async def show_waiting(visit: Visit) -> Response:
        route, state = visit.arg("route")[:100], visit.arg("state")
        state = state if state in STATES else ""
        typed = visit.arg("destination").strip()[:300]
        destination, error = _domain(typed)
        settings = [known.name for known in dashboard.settings().route]
        routes = tuple(dict.fromkeys([*settings, *await visit.store.read(queue_page.waiting_routes)]))
        after = queue_page.read_cursor(visit.arg("after"))
        wish = queue_page.Wish(routes, route if route in routes else "", destination, state)
        found = await visit.store.read(queue_page.page, wish, after)
        filters = {"route": wish.route, "destination": destination, "state": state}
        return await visit.render(
            "operator/waiting.html",
            found=found,
            wish=wish,
            routes=routes,
            states={value: (label, waiting_url(**{**filters, "state": value})) for value, label in STATES.items()},
            typed=typed,
            error=error,
            first=waiting_url(**filters) if after is not None else None,
            older=None if found.after is None else waiting_url(**filters, after=str(found.after)),
            here=waiting_url(**filters, after=visit.arg("after") if after is not None else ""),
        )


def _domain(text: str) -> tuple[str, str]:
    """A domain and why it is none."""
    try:
        return (check_domain(text) if text else ""), ""
    except ValueError as error:
        return "", sentence(error)


def _mount_message(group: Pages) -> None:
    dashboard = group.dashboard

    @group.post(f"{BASE}/message", needs="operator")
    async def change_message(visit: Visit, form: Form) -> Response:
        message_id, deed, back = form.get("id", ""), form.get("deed", ""), form.get("back", "")
        if not is_message_id(message_id) or deed not in DEEDS:
            return visit.not_found()
        keep_us = int(dashboard.settings().delivery.body_days * DAY_US)
        done = await _write(
            visit, queue_page.change_message, visit.actor, deed, message_id, dashboard.now_us(), keep_us
        )
        said = sentence(done) if isinstance(done, ValueError) else f"Message {message_id}: {DEEDS[deed].lower()}"
        return visit.redirect(back if back.startswith(WAITING) else WAITING, said.replace("`", ""))


def _mount_pauses(group: Pages) -> None:
    dashboard = group.dashboard

    @group.post(f"{BASE}/<any(pause, resume):deed>", needs="operator")
    async def change_route(visit: Visit, form: Form, deed: str) -> Response:
        route, note = form.get("route", "")[:100], form.get("note", "").strip()[:MAX_NOTE]
        destination, error = _domain(form.get("destination", "").strip()[:300])
        settings = {known.name: known for known in dashboard.settings().route}
        if deed == "pause" and not error:
            if route == ALL:
                error = "Servers of accounts are paused one by one: hepmaild smtp-server pause ID."
            elif route not in settings and route not in await visit.store.read(queue_page.waiting_routes):
                error = "There is no such route, and nothing waits on one."
            elif destination and route in settings and settings[route].kind is not RouteKind.MX:
                error = "This route has one next hop for all destinations: pause the whole route."
        if error:
            return visit.redirect(BASE, error)
        done = await _write(
            visit, queue_page.change_route, visit.actor, deed, route, destination, note, dashboard.now_us()
        )
        if isinstance(done, ValueError):
            return visit.redirect(BASE, sentence(done).replace("`", ""))
        what = f"{destination} of route {route}" if destination else f"Route {route}"
        if deed == "pause":
            return visit.redirect(BASE, f"{what} is paused. Mail is accepted and waits.")
        rest = ", ".join(p["destination"] or "the whole route" for p in done["still_paused"])
        return visit.redirect(BASE, f"{what} goes on." + (f" Still paused: {rest}." if rest else ""))


def _mount_many(group: Pages) -> None:
    dashboard = group.dashboard

    @group.post(f"{BASE}/<any(retry, release):deed>", needs="operator")
    async def change_many(visit: Visit, form: Form, deed: str) -> Response:
        route = form.get("route", "")[:100] or None
        destination, error = _domain(form.get("destination", "").strip()[:300])
        if error or (route is None and not destination):
            return visit.redirect(BASE, error or "Name a route or a destination.")
        operations: Any = dashboard.extras["operations"]
        change = await operations.change_many(deed, Where(route, destination or None), visit.actor)
        which = f"{counted(change.recipients, 'recipient')} of {counted(change.messages, 'message')}"
        what = f"{'is' if change.recipients == 1 else 'are'} {'due now' if deed == 'retry' else 'released'}"
        if change.error:
            return visit.redirect(BASE, f"It ended early: {change.error}.")
        if not change.is_done:
            return visit.redirect(BASE, "There are many: it goes on beside this page, which says how far it is.")
        return visit.redirect(BASE, f"{which} {what}.")


async def _write(visit: Visit, fn: Any, *args: Any) -> Any:
    """The result of a unit, told to everybody; or the ValueError with which it said no."""

    def run(conn: Any) -> Any:
        try:
            return fn(conn, *args)
        except ValueError as error:
            return error

    done = await visit.store.write(run)
    if not isinstance(done, ValueError):
        await visit.dashboard.extras["operations"].changed()
    return done
