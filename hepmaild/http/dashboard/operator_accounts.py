# SPDX-License-Identifier: Apache-2.0
"""Operator: all accounts, and one page each: state, plan, credits, senders, users."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from quart.wrappers import Response

from hepmaild.audit_words import ACTIONS
from hepmaild.config import MAX_CAP, STANDARD_PLAN, Settings
from hepmaild.counted import counted
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, number_of, with_query
from hepmaild.http.dashboard.snippets import place_of
from hepmaild.http.dashboard.words import no_address, sentence
from hepmaild.mail.address import check_address
from hepmaild.people import link_url
from hepmaild.storage import links
from hepmaild.storage import operator as rows
from hepmaild.storage.credits import MAX_AMOUNT

BASE = "/operator/accounts"
STATUSES = {"": "All", "active": "Active", "suspended": "Suspended"}
MAX_NOTE = 500
KEYS, QUEUE, PEOPLE = "keys", "queue", "people"


def pages(dashboard: Dashboard) -> Pages:
    """`/operator/accounts…`."""
    group = Pages("operator_accounts", dashboard)
    _mount_list(group)
    _mount_account(group)
    _mount_senders(group)
    return group


class Typed(Exception):
    """What was typed is not good.  field: where; the sentence is the argument."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


async def change(visit: Visit, topic: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a unit and tell everybody.  Raises ValueError with a sentence where `fn` says no, and nothing is changed."""
    done = await visit.store.write(fn, *args, **kwargs)
    operations = visit.dashboard.extras.get("operations")
    if topic == QUEUE and operations is not None:
        await operations.changed()
    else:
        await visit.store.announce(topic)
    return done


# The list


def _mount_list(group: Pages) -> None:
    dashboard = group.dashboard

    @group.get(BASE, needs="operator")
    async def show_list(visit: Visit) -> Response:
        search, status = visit.arg("q").strip()[:200], visit.arg("status")
        after, before = visit.arg("after") or None, visit.arg("before") or None
        page = await visit.store.read(
            rows.page, search, status=status if status in STATUSES else "", after=after, before=before
        )

        def link(**place: str) -> str:
            return with_query(BASE, **{"q": search, "status": status, **place})

        return await visit.render(
            "operator/accounts.html",
            page=page,
            search=search,
            chosen_status=status,
            statuses={value: (label, link(status=value)) for value, label in STATUSES.items()},
            newer=None if page.before is None else link(before=page.before),
            older=None if page.after is None else link(after=page.after),
        )

    @group.get(f"{BASE}/new", needs="operator")
    async def show_new(visit: Visit) -> Response:
        return await _new_page(visit, {"plan": STANDARD_PLAN, "credits": "1000"}, {})

    @group.post(BASE, needs="operator")
    async def add(visit: Visit, form: Form) -> Response:
        token, account_id = links.new_token(), str(uuid.uuid4())
        try:
            email = _address("email", form)
            await change(
                visit,
                KEYS,
                rows.add,
                visit.actor,
                account_id=account_id,
                user_id=str(uuid.uuid4()),
                email=email,
                plan=_plan(dashboard.settings(), form),
                granted=_number("credits", form, least=0),
                is_operator=bool(form.get("operator")),
                token=token,
                now_us=dashboard.now_us(),
            )
        except Typed as error:
            return await _new_page(visit, form, {error.field: str(error)})
        except ValueError as error:
            return await _new_page(visit, form, {"email": sentence(error)})
        return await visit.render_once(
            "operator/link.html",
            title="The account is made",
            email=email,
            url=link_url(place_of(dashboard.settings(), dashboard.public_url()).url, token),
            back=f"{BASE}/{account_id}",
        )


async def _new_page(visit: Visit, typed: Any, errors: dict[str, str]) -> Response:
    return await visit.render(
        "operator/account_new.html",
        status=422 if errors else 200,
        typed=typed,
        errors=errors,
        plans=sorted(visit.dashboard.settings().plans),
    )


def _address(name: str, form: Form) -> str:
    text = form.get(name, "").strip()
    try:
        return check_address(text)
    except ValueError as error:
        raise Typed(name, no_address(error)) from None


def _plan(settings: Settings, form: Form) -> str:
    plan = form.get("plan", "")
    if plan not in settings.plans:
        raise Typed("plan", "Choose one of the plans.")
    return plan


def _number(name: str, form: Form, *, least: int, most: int = MAX_AMOUNT) -> int:
    text = form.get(name, "").strip().replace("\u202f", "").replace(" ", "").replace(",", "")
    digits = text.removeprefix("-").removeprefix("\u2212")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 16):
        raise Typed(name, "Give a whole number.")
    value = int(digits) * (1 if text == digits else -1)
    if value < least:
        raise Typed(name, f"The least is {least:,}.")
    if abs(value) > most:
        raise Typed(name, f"The most is {most:,}.")
    return value


def _daily_cap(form: Form) -> int:
    return _number("daily_cap", form, least=0, most=MAX_CAP) if form.get("daily_cap", "").strip() else 0


# One account


async def account_page(
    visit: Visit, account_id: str, *, typed: Any = None, errors: dict[str, str] | None = None
) -> Response:
    """The page; errors: by field, with what was typed."""
    found = await visit.store.read(rows.one, account_id, visit.dashboard.now_us())
    if found is None:
        return visit.not_found()
    settings = visit.dashboard.settings()
    known = {route.name for route in settings.route}
    return await visit.render(
        "operator/account.html",
        status=422 if errors else 200,
        account=found,
        plans=sorted(settings.plans.keys() | {found["plan"]}),
        routes=[route.name for route in settings.route],
        known_routes=known,
        actions=ACTIONS,
        typed=typed or {},
        errors=errors or {},
        is_own=account_id == visit.account_id,
    )


def _mount_account(group: Pages) -> None:
    dashboard = group.dashboard

    @group.get(f"{BASE}/<account_id>", needs="operator")
    async def show_account(visit: Visit, account_id: str) -> Response:
        return await account_page(visit, account_id)

    @group.post(f"{BASE}/<account_id>/<any(suspend, resume):deed>", needs="operator")
    async def set_status(visit: Visit, form: Form, account_id: str, deed: str) -> Response:
        del form
        if account_id == visit.account_id and deed == "suspend":
            return visit.redirect(f"{BASE}/{account_id}", "This is your own account: you would lock yourself out.")
        status = "active" if deed == "resume" else "suspended"
        await _try(visit, KEYS, rows.set_status, visit.actor, account_id, status, dashboard.now_us())
        said = (
            "The account may send again."
            if deed == "resume"
            else ("The account is suspended: its keys are refused from now on, and its users are signed out.")
        )
        return visit.redirect(f"{BASE}/{account_id}", said)

    @group.post(f"{BASE}/<account_id>/plan", needs="operator")
    async def set_plan(visit: Visit, form: Form, account_id: str) -> Response:
        try:
            plan = _plan(dashboard.settings(), form)
        except Typed as error:
            return await account_page(visit, account_id, typed=form, errors={error.field: str(error)})
        await _try(visit, KEYS, rows.set_plan, visit.actor, account_id, plan, dashboard.now_us())
        return visit.redirect(f"{BASE}/{account_id}", f"The account is on the plan {plan}.")

    @group.post(f"{BASE}/<account_id>/credits", needs="operator")
    async def grant(visit: Visit, form: Form, account_id: str) -> Response:
        note = form.get("note", "").strip()
        try:
            amount = _number("amount", form, least=-MAX_AMOUNT)
            if len(note) > MAX_NOTE or not note.isprintable():
                raise Typed("note", f"At most {MAX_NOTE} printable characters.")
            seen = number_of(form.get("last_grant", ""))
            now_us = dashboard.now_us()
            balance = await change(visit, KEYS, rows.grant, visit.actor, account_id, amount, note, seen, now_us)
        except Typed as error:
            return await account_page(visit, account_id, typed=form, errors={error.field: str(error)})
        except ValueError as error:
            return await account_page(visit, account_id, typed=form, errors={"amount": sentence(error)})
        done = "granted" if amount > 0 else "taken back"
        said = f"{counted(abs(amount), 'credit')} {done}; the balance is {balance:,}."
        return visit.redirect(f"{BASE}/{account_id}", said)

    @group.post(f"{BASE}/<account_id>/users/<user_id>/link", needs="operator")
    async def make_link(visit: Visit, form: Form, account_id: str, user_id: str) -> Response:
        found = await visit.store.read(rows.one, account_id, dashboard.now_us())
        user = next((u for u in found["users"] if u["id"] == user_id), None) if found else None
        if user is None:
            return visit.not_found()
        drop = bool(form.get("drop_second_factor"))
        token = await dashboard.people.members.reset_link(visit.viewer, visit.actor, user_id, drop_second_factor=drop)
        await visit.store.announce(PEOPLE)
        return await visit.render_once(
            "operator/link.html",
            title="The link is made",
            email=user["email"],
            url=link_url(place_of(dashboard.settings(), dashboard.public_url()).url, token),
            back=f"{BASE}/{account_id}",
        )


async def _try(visit: Visit, topic: str, fn: Callable[..., Any], *args: Any) -> Any:
    """A change whose only refusal is that the account is gone."""
    try:
        return await change(visit, topic, fn, *args)
    except ValueError:
        return visit.not_found()


def _mount_senders(group: Pages) -> None:
    dashboard = group.dashboard

    @group.post(f"{BASE}/<account_id>/senders", needs="operator")
    async def put_sender(visit: Visit, form: Form, account_id: str) -> Response:
        try:
            address = _address("address", form)
            route = form.get("route", "")
            if route not in {known.name for known in dashboard.settings().route}:
                raise Typed("route", "Choose one of the routes of the settings.")
            await change(
                visit,
                QUEUE,  # with another daily cap something may be due
                rows.put_sender,
                visit.actor,
                account_id,
                address=address,
                route=route,
                daily_cap=_daily_cap(form),
                is_default=bool(form.get("default")),
                now_us=dashboard.now_us(),
            )
        except Typed as error:
            return await account_page(visit, account_id, typed=form, errors={error.field: str(error)})
        except ValueError as error:
            return await account_page(visit, account_id, typed=form, errors={"address": sentence(error)})
        return visit.redirect(f"{BASE}/{account_id}#senders", f"{address} leaves by the route {route}.")

    @group.post(f"{BASE}/<account_id>/senders/remove", needs="operator")
    async def remove_sender(visit: Visit, form: Form, account_id: str) -> Response:
        address = form.get("address", "")
        try:
            await change(visit, KEYS, rows.remove_sender, visit.actor, account_id, address, dashboard.now_us())
        except ValueError as error:
            return visit.redirect(f"{BASE}/{account_id}#senders", sentence(error))
        return visit.redirect(f"{BASE}/{account_id}#senders", f"{address[:200]} may not be used any more.")
