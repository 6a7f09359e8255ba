# SPDX-License-Identifier: Apache-2.0
"""SMTP servers of the account: added, changed, tried, paused, taken away (contract: own-smtp-api.md).

A password comes by the form that sets it and goes into the vault: no page, cookie or answer ever has it.  What was
typed otherwise stays when it is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import structlog
from quart.wrappers import Response

from hepmaild.errors import SecretsUnavailable
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit
from hepmaild.http.dashboard.operator_routes import with_waits
from hepmaild.http.dashboard.words import sentence
from hepmaild.own_routes import route_of
from hepmaild.own_servers import OwnServers, route_from
from hepmaild.policy import plan_of
from hepmaild.server_rules import TLS_MODES, ServerWish, check_password, leads_elsewhere, read_server
from hepmaild.storage import smtp_server_units as units
from hepmaild.storage import smtp_servers as rows
from hepmaild.storage.keys import Refused

log = structlog.get_logger()

BASE = "/smtp-servers"
FIELDS = ("name", "host", "port", "tls", "username", "address", "from_name", "daily_cap")
MAX_TEXT = 2000
Typed = dict[str, str]
Errors = dict[str, str]


def pages(dashboard: Dashboard) -> Pages:
    """`/smtp-servers…`.  extras: "own_servers"; "operations", which tries servers and tells of changes."""
    group = Pages("smtp_servers", dashboard)
    _mount_list(group)
    _mount_server(group)
    _mount_test(group)
    _mount_states(group)
    return group


def _mount_list(group: Pages) -> None:
    @group.get(BASE)
    async def show_list(visit: Visit) -> Response:
        found = await visit.store.read(rows.list_of, visit.account_id)
        waits = {row["id"]: await visit.store.read(rows.waiting, row["id"]) for row in found}
        return await visit.render("smtp_servers/list.html", rows=found, waits=waits, most=_most(visit))

    @group.get(f"{BASE}/new", needs="admin")
    async def show_new(visit: Visit) -> Response:
        return await _new_page(visit, _typed_of(None), {})

    @group.post(BASE)
    async def add(visit: Visit, form: Form) -> Response:
        typed, password = _read_form(form)
        wish, errors = read_server(typed, has_password=bool(password))
        errors |= _check_password(password)
        if wish is None or errors:
            return await _new_page(visit, typed, errors)
        server_id = str(uuid.uuid4())
        limit, now_us = _most(visit), visit.dashboard.now_us()

        def run(sealed: bytes | None) -> tuple[Any, ...]:
            return (units.add, visit.actor, visit.account_id, server_id, wish, sealed, limit, now_us)

        errors = await _write_sealed(visit, server_id, password if wish.username else "", run)
        if errors:
            return await _new_page(visit, typed, errors)
        await _changed(visit)
        return visit.redirect(f"{BASE}/{server_id}", "The server is added. Test it before you send by it.")


def _mount_server(group: Pages) -> None:
    @group.get(f"{BASE}/<server_id>")
    async def show_server(visit: Visit, server_id: str) -> Response:
        row = await _find(visit, server_id)
        return await _server_page(visit, row, _typed_of(row), {})

    @group.post(f"{BASE}/<server_id>")
    async def change(visit: Visit, form: Form, server_id: str) -> Response:
        row = await _find(visit, server_id)
        typed, password = _read_form(form)
        wish, errors = read_server(typed, has_password=bool(password) or row["has_password"])
        errors |= _check_password(password) or _needs_password(row, wish, password)
        if wish is None or errors:
            return await _server_page(visit, row, typed, errors)
        now_us = visit.dashboard.now_us()

        def run(sealed: bytes | None) -> tuple[Any, ...]:
            return (units.change, visit.actor, visit.account_id, server_id, wish, sealed, now_us)

        errors = await _write_sealed(visit, server_id, password if wish.username else "", run)
        if errors:
            return await _server_page(visit, row, typed, errors)
        await _own(visit).hurry(server_id, now_us)
        await _changed(visit)
        return visit.redirect(f"{BASE}/{server_id}", "Saved. It holds from the next attempt on.")


def _mount_test(group: Pages) -> None:
    busy: set[str] = set()

    @group.post(f"{BASE}/<server_id>/test")
    async def test(visit: Visit, _form: Form, server_id: str) -> Response:
        row = await _find(visit, server_id)
        sealed = await visit.store.read(rows.sealed_row, server_id)
        if sealed is None or sealed.account_id != visit.account_id:
            return visit.not_found()
        if visit.account_id in busy:
            return visit.redirect(f"{BASE}/{server_id}", "A test runs already: wait until it has ended.")
        busy.add(visit.account_id)
        try:
            route = route_from(sealed, visit.dashboard.settings().own_smtp)
            credentials = _own(visit).open(route)
            operations: Any = visit.dashboard.extras["operations"]
            found = await operations.test_server(route, credentials)
        except SecretsUnavailable as error:
            log.error("smtp_server_unusable", route=route_of(server_id), reason=str(error))
            found = {"ok": False, "error": _UNREADABLE, "tls": None, "steps": []}
        finally:
            busy.discard(visit.account_id)
        return await _server_page(visit, row, _typed_of(row), {}, tested=with_waits(found))


def _mount_states(group: Pages) -> None:
    async def do(visit: Visit, server_id: str, deed: Callable[..., Any], *, hurries: bool = False) -> str:
        """What is wrong; "": it is done.  hurries: what waits for the server is due now."""
        await _find(visit, server_id)
        now_us = visit.dashboard.now_us()
        done = await _write(visit, deed, visit.actor, visit.account_id, server_id, now_us)
        if isinstance(done, Refused):
            return sentence(done)
        if hurries:
            await _own(visit).hurry(server_id, now_us)
        await _changed(visit)
        return ""

    @group.post(f"{BASE}/<server_id>/default")
    async def make_default(visit: Visit, _form: Form, server_id: str) -> Response:
        wrong = await do(visit, server_id, units.make_default)
        return visit.redirect(f"{BASE}/{server_id}", wrong or "Calls that name no server use this one now.")

    @group.post(f"{BASE}/<server_id>/pause")
    async def pause(visit: Visit, _form: Form, server_id: str) -> Response:
        wrong = await do(visit, server_id, units.pause)
        return visit.redirect(f"{BASE}/{server_id}", wrong or "Paused. Mail is accepted and waits.")

    @group.post(f"{BASE}/<server_id>/resume")
    async def resume(visit: Visit, _form: Form, server_id: str) -> Response:
        wrong = await do(visit, server_id, units.resume)
        return visit.redirect(f"{BASE}/{server_id}", wrong or "It goes on, with what waited.")

    @group.post(f"{BASE}/<server_id>/delete")
    async def delete(visit: Visit, form: Form, server_id: str) -> Response:
        row = await _find(visit, server_id)
        if form.get("confirm", "").strip() != row["name"]:
            error = f"Type the name of the server, {row['name']}, to delete it. Nothing was deleted."
            return await _server_page(visit, row, _typed_of(row), {"confirm": error})
        wrong = await do(visit, server_id, units.remove, hurries=True)
        return visit.redirect(BASE, wrong or f"The server {row['name']} is deleted.")


# Pages


async def _new_page(visit: Visit, typed: Typed, errors: Errors) -> Response:
    used = len(await visit.store.read(rows.list_of, visit.account_id))
    return await visit.render(
        "smtp_servers/new.html",
        status=422 if errors else 200,
        typed=typed,
        errors=errors,
        modes=TLS_MODES,
        used=used,
        most=_most(visit),
    )


async def _server_page(
    visit: Visit, row: dict[str, Any], typed: Typed, errors: Errors, *, tested: dict[str, Any] | None = None
) -> Response:
    pause_note = await visit.store.read(rows.pause_note, row["id"]) if row["is_paused"] else ""
    return await visit.render(
        "smtp_servers/server.html",
        status=422 if errors else 200,
        server=row,
        typed=typed,
        errors=errors,
        modes=TLS_MODES,
        waits=await visit.store.read(rows.waiting, row["id"]),
        pause_note=pause_note,
        is_own_pause=pause_note == rows.PAUSE_NOTE,
        tested=tested,
    )


# Forms

_UNREADABLE = "The password cannot be read on this machine: enter it again, or ask the operator."
_NO_SECRETS = "No password can be kept on this machine at the moment: ask the operator. Nothing was changed."


def _typed_of(row: dict[str, Any] | None) -> Typed:
    """The form as it stands before anybody types: of a server, or (None) of a new one."""
    if row is None:
        return dict.fromkeys(FIELDS, "") | {"tls": "starttls"}
    typed = {name: str(row[name]) for name in FIELDS}
    if "@" in row["username"]:
        typed["address"] = ""
    return typed | ({} if row["daily_cap"] else {"daily_cap": ""})


def _read_form(form: Form) -> tuple[Typed, str]:
    """What was typed, and the password apart from it, as it is."""
    return {name: form.get(name, "")[:MAX_TEXT].strip() for name in FIELDS}, form.get("password", "")[:MAX_TEXT]


def _check_password(password: str) -> Errors:
    wrong = check_password(password)
    return {"password": wrong} if wrong else {}


def _needs_password(row: dict[str, Any], wish: ServerWish | None, password: str) -> Errors:
    if wish is None or not wish.username or password:
        return {}
    if row["has_password"] and not leads_elsewhere(row, wish):
        return {}
    text = "Enter the password again: with another host, port, TLS or user name, somebody else would get to see it."
    return {"password": text}


# The store


async def _write_sealed(
    visit: Visit, server_id: str, password: str, run: Callable[[bytes | None], tuple[Any, ...]]
) -> Errors:
    """Run the unit that `run` names for the sealed password; what is wrong, by field."""
    try:
        if not password:
            done = await _write(visit, *run(None))
        else:
            async with _own(visit).sealing() as seal:
                done = await _write(visit, *run(seal(server_id, password)))
    except SecretsUnavailable as error:
        log.error("smtp_server_not_sealed", reason=str(error))
        return {"": _NO_SECRETS}
    return {done.field: sentence(done)} if isinstance(done, Refused) else {}


async def _write(visit: Visit, fn: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a unit, or the `Refused` with which it said no."""

    def run(conn: Any) -> Any:
        try:
            return fn(conn, *arguments)
        except Refused as error:
            return error

    return await visit.store.write(run)


async def _changed(visit: Visit) -> None:
    """Everybody is to know at once."""
    await _own(visit).learn()
    await visit.store.announce("keys")
    await visit.dashboard.extras["operations"].changed()


async def _find(visit: Visit, server_id: str) -> dict[str, Any]:
    try:
        return await visit.store.read(rows.find, visit.account_id, server_id)
    except Refused:
        visit.not_found()


def _own(visit: Visit) -> OwnServers:
    own: OwnServers = visit.dashboard.extras["own_servers"]
    return own


def _most(visit: Visit) -> int:
    return plan_of(visit.dashboard.settings().plans, visit.viewer.plan).smtp_servers
