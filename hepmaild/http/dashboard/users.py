# SPDX-License-Identifier: Apache-2.0
"""The users of an account: invited, given another role, suspended, removed.  For owners, and for admins below them.

What may be done is decided in the unit that does it (`hepmaild.members`); what is shown follows the same rules.
"""

from __future__ import annotations

from typing import Any

from quart.wrappers import Response
from werkzeug.exceptions import Forbidden

from hepmaild.http.dashboard.devices import device_words
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit
from hepmaild.http.dashboard.snippets import place_of
from hepmaild.http.dashboard.words import sentence
from hepmaild.people import link_url
from hepmaild.storage import sessions
from hepmaild.storage.users import OWNER

ROLES: dict[str, tuple[str, str]] = {
    "read_only": (
        "Read only",
        "Sees the log, keys, credits and addresses. Changes nothing but the own password, second factor and sessions.",
    ),
    "admin": ("Admin", "Everything but owners and closing the account."),
    OWNER: ("Owner", "Everything, and makes or removes other owners."),
}


def pages(dashboard: Dashboard) -> Pages:
    """`/security/users`, `/security/users/new`, `/security/users/ID` and what is done to a user."""
    group = Pages("users", dashboard)
    _mount_list(group)
    _mount_user(group)
    _mount_changes(group)
    return group


def _mount_list(group: Pages) -> None:
    members = group.dashboard.people.members

    @group.get("/security/users", needs="admin")
    async def show_list(visit: Visit) -> Response:
        rows = [{**row, "state": state_of(row)} for row in await members.users(visit.viewer)]
        return await visit.render("security/users.html", rows=rows, roles=ROLES)

    @group.get("/security/users/new", needs="admin")
    async def show_new(visit: Visit) -> Response:
        return await _new_page(visit, {"email": "", "scope": "read_only"}, {})

    @group.post("/security/users", needs="admin")
    async def invite(visit: Visit, form: Form) -> Response:
        typed = {"email": form.get("email", "").strip()[:2000], "scope": form.get("scope", "")[:20]}
        if typed["scope"] not in given_by(visit):
            return await _new_page(visit, typed, {"scope": "Choose a role that you may give."})
        if not typed["email"]:
            return await _new_page(visit, typed, {"email": "Give the e-mail address they will sign in with."})
        try:
            token = await members.invite(visit.viewer, visit.actor, typed["email"], typed["scope"])
        except ValueError as error:
            return await _new_page(visit, typed, {"email": sentence(error)})
        return await _link_page(visit, typed["email"], token, is_first=True)


def _mount_user(group: Pages) -> None:
    @group.get("/security/users/<user_id>", needs="admin")
    async def show_user(visit: Visit, user_id: str) -> Response:
        return await _user_page(visit, await _find(visit, user_id), {})

    @group.post("/security/users/<user_id>/link", needs="admin")
    async def invite_again(visit: Visit, _form: Form, user_id: str) -> Response:
        row = await _find_to_change(visit, user_id)
        try:
            token = await group.dashboard.people.members.invite_again(visit.viewer, visit.actor, user_id)
        except ValueError as error:
            return await _user_page(visit, row, {"": sentence(error)})
        return await _link_page(visit, row["email"], token, is_first=False)

    @group.post("/security/users/<user_id>/remove", needs="admin")
    async def remove(visit: Visit, form: Form, user_id: str) -> Response:
        row = await _find_to_change(visit, user_id)
        typed = form.get("confirm", "").strip()
        if typed.casefold() != row["email"].casefold():
            error = f"Type the e-mail address, {row['email']}, to remove the user. Nobody was removed."
            return await _user_page(visit, row, {"confirm": error}, confirm=typed[:2000])
        try:
            await group.dashboard.people.members.remove(visit.viewer, visit.actor, user_id)
        except ValueError as error:
            return await _user_page(visit, row, {"confirm": sentence(error)}, confirm=typed[:2000])
        return visit.redirect(
            "/security/users", f"{row['email']} is removed and signed out. The audit log keeps the name."
        )


def _mount_changes(group: Pages) -> None:
    members = group.dashboard.people.members

    @group.post("/security/users/<user_id>/scope", needs="admin")
    async def set_scope(visit: Visit, form: Form, user_id: str) -> Response:
        row = await _find_to_change(visit, user_id)
        scope = form.get("scope", "")
        if scope not in given_by(visit):
            return await _user_page(visit, row, {"scope": "Choose a role that you may give."})
        try:
            await members.set_scope(visit.viewer, visit.actor, user_id, scope)
        except ValueError as error:
            return await _user_page(visit, row, {"scope": sentence(error)}, scope=scope)
        back = f"/security/users/{user_id}"
        if user_id == visit.viewer.user_id and scope == "read_only":
            back = "/security"  # whoever took the right from themselves does not see the users any more
        return visit.redirect(back, f"{row['email']} is {ROLES[scope][0].lower()} now. It counts at once.")

    async def set_status(visit: Visit, user_id: str, status: str, said: str) -> Response:
        row = await _find_to_change(visit, user_id)
        try:
            await members.set_status(visit.viewer, visit.actor, user_id, status)
        except ValueError as error:
            return await _user_page(visit, row, {"status": sentence(error)})
        return visit.redirect(f"/security/users/{user_id}", f"{row['email']} {said}")

    @group.post("/security/users/<user_id>/suspend", needs="admin")
    async def suspend(visit: Visit, _form: Form, user_id: str) -> Response:
        return await set_status(visit, user_id, "suspended", "is suspended and signed out everywhere.")

    @group.post("/security/users/<user_id>/resume", needs="admin")
    async def resume(visit: Visit, _form: Form, user_id: str) -> Response:
        return await set_status(visit, user_id, "active", "may sign in again.")


# Pages


async def _new_page(visit: Visit, typed: dict[str, str], errors: dict[str, str]) -> Response:
    return await visit.render(
        "security/invite.html",
        status=422 if errors else 200,
        typed=typed,
        errors=errors,
        roles={scope: ROLES[scope] for scope in given_by(visit)},
    )


async def _link_page(visit: Visit, email: str, token: str, *, is_first: bool) -> Response:
    base = place_of(visit.dashboard.settings(), visit.dashboard.public_url()).url
    return await visit.render_once("security/invited.html", email=email, link=link_url(base, token), is_first=is_first)


async def _user_page(
    visit: Visit, row: dict[str, Any], errors: dict[str, str], *, scope: str = "", confirm: str = ""
) -> Response:
    theirs = await visit.store.read(sessions.list_of, visit.account_id, visit.dashboard.now_us(), user_id=row["id"])
    return await visit.render(
        "security/user.html",
        status=422 if errors else 200,
        user=row,
        state=state_of(row),
        scope=scope or row["scope"],
        confirm=confirm,
        errors=errors,
        roles=ROLES,
        given={name: ROLES[name] for name in given_by(visit)},
        is_mine=may_change(visit, scope=row["scope"], is_operator=row["is_operator"]),
        is_me=row["id"] == visit.viewer.user_id,
        sessions=[
            {**each, "device": device_words(each["agent"]), "is_this": each["id"] == visit.viewer.session_id}
            for each in theirs
        ],
    )


async def _find(visit: Visit, user_id: str) -> dict[str, Any]:
    """A user of the viewer's account; anybody else is not found."""
    rows = await visit.dashboard.people.members.users(visit.viewer)
    row = next((row for row in rows if row["id"] == user_id), None)
    if row is None:
        visit.not_found()
    return row


async def _find_to_change(visit: Visit, user_id: str) -> dict[str, Any]:
    row = await _find(visit, user_id)
    if not may_change(visit, scope=row["scope"], is_operator=row["is_operator"]):
        raise Forbidden(why_not(row))
    return row


def may_change(visit: Visit, *, scope: str, is_operator: bool) -> bool:
    """Whether the viewer may change a user of the account who has this role."""
    if not visit.may("admin") or (scope == OWNER and not visit.may(OWNER)):
        return False
    return visit.viewer.is_operator or not is_operator


def why_not(row: dict[str, Any]) -> str:
    """Why somebody who manages users may not change this one."""
    who = "an operator of the service" if row["is_operator"] else "an owner"
    return f"Only {who} can change {who}."


def given_by(visit: Visit) -> list[str]:
    """The roles that the viewer may give."""
    return [scope for scope in ROLES if scope != OWNER or visit.may(OWNER)]


def state_of(row: dict[str, Any]) -> str:
    """active, suspended, or pending: no password was chosen yet."""
    if row["status"] != "active":
        return str(row["status"])
    return "active" if row["has_password"] else "pending"
