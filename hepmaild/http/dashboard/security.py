# SPDX-License-Identifier: Apache-2.0
"""What everybody looks after for themselves: password, second factor, sessions.

A change of the password ends every session of the user, this one too, which goes on under fresh tokens.  Secrets and
recovery codes stand in one answer only, never in an address, a cookie or the log; what was typed wrong is never sent
back where it is a secret.
"""

from __future__ import annotations

from typing import Any

import segno
from markupsafe import Markup
from quart import request
from quart.wrappers import Response
from segno import DataOverflowError
from werkzeug.exceptions import Forbidden

from hepmaild.counted import counted
from hepmaild.errors import SecretsUnavailable
from hepmaild.http.dashboard.devices import device_words
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, clear_tokens, keep_tokens, see
from hepmaild.http.dashboard.users import may_change
from hepmaild.http.dashboard.words import sentence
from hepmaild.login import WRONG_OLD_PASSWORD, LoginRefusal
from hepmaild.storage import users
from hepmaild.storage.security_page import session_owner
from hepmaild.storage.users import UserRow

FACTOR = "/security/second-factor"
_NO_SECRETS = "The second factor cannot be read at the moment. Tell the operator: hepmaild doctor says why."
_BAD_PASSWORD = 40003


def pages(dashboard: Dashboard) -> Pages:
    """`/security`, `/security/second-factor` and what is done there; every role may, for itself alone."""
    group = Pages("security", dashboard)
    _mount_password(group)
    _mount_sessions(group)
    _mount_factor(group)
    _mount_factor_changes(group)
    return group


def _mount_password(group: Pages) -> None:
    @group.get("/security")
    async def show(visit: Visit) -> Response:
        return await _page(visit, {})

    @group.post("/security/password", needs="read_only")
    async def change_password(visit: Visit, form: Form) -> Response:
        old, new = form.get("old", ""), form.get("new", "")
        errors: dict[str, str] = {}
        if not old:
            errors["old"] = "Type your present password."
        if new != form.get("again", new):
            errors["again"] = "This is not the same as the new password above."
        if errors:
            return await _page(visit, errors)
        result = await group.dashboard.people.change_password(visit.viewer, old, new, ip=visit.actor.ip, agent=_agent())
        if isinstance(result, LoginRefusal):
            where = {WRONG_OLD_PASSWORD.code: "old", _BAD_PASSWORD: "new"}.get(result.code, "password")
            return _wait(await _page(visit, {where: result.message + "."}, status=_status(result)), result)
        visit.call.renewed = None  # tokens of a session that has just ended
        return keep_tokens(
            visit.redirect("/security", "The password is changed. All other sessions have ended."), result
        )


def _mount_sessions(group: Pages) -> None:
    @group.post("/security/sessions/<session_id>/end", needs="read_only")
    async def end(visit: Visit, _form: Form, session_id: str) -> Response:
        user_id = await visit.store.read(session_owner, visit.account_id, session_id)
        if user_id is None:
            return visit.not_found()
        if session_id == visit.viewer.session_id:
            await group.dashboard.people.members.end_session(visit.viewer, visit.actor, session_id)
            visit.call.renewed = None
            return clear_tokens(see("/sign-in"))
        back = "/security" if user_id == visit.viewer.user_id else f"/security/users/{user_id}"
        if user_id != visit.viewer.user_id:
            whose = await visit.store.read(users.by_id, user_id, visit.account_id)
            if whose is None:
                return visit.not_found()
            if not may_change(visit, scope=whose.scope, is_operator=whose.is_operator):
                raise Forbidden("Your role in this account does not allow that: ask its owner.")
        try:
            await group.dashboard.people.members.end_session(visit.viewer, visit.actor, session_id)
        except ValueError as error:
            return visit.redirect(back, sentence(error))
        return visit.redirect(back, "The session has ended: that device is signed out.")

    @group.post("/security/sessions/end-others", needs="read_only")
    async def end_others(visit: Visit, _form: Form) -> Response:
        ended = await group.dashboard.people.members.end_other_sessions(visit.viewer, visit.actor)
        text = f"{counted(ended, 'session')} ended." if ended else "There was no other session."
        return visit.redirect("/security", f"{text} You are signed in here only.")


def _mount_factor(group: Pages) -> None:
    members = group.dashboard.people.members

    @group.get(FACTOR)
    async def show_factor(visit: Visit) -> Response:
        return await _factor_page(visit, {})

    @group.post(f"{FACTOR}/begin", needs="read_only")
    async def begin(visit: Visit, _form: Form) -> Response:
        try:
            await members.begin_second_factor(visit.viewer)
        except SecretsUnavailable:
            return await _factor_page(visit, {"": _NO_SECRETS})
        except ValueError as error:
            return visit.redirect(FACTOR, sentence(error))
        return visit.redirect(FACTOR)

    @group.post(f"{FACTOR}/confirm", needs="read_only")
    async def confirm(visit: Visit, form: Form) -> Response:
        try:
            codes = await members.confirm_second_factor(visit.viewer, visit.actor, form.get("code", "")[:100])
        except SecretsUnavailable:
            return await _factor_page(visit, {"": _NO_SECRETS})
        except ValueError as error:
            return await _factor_page(visit, {"code": sentence(error)})
        return await visit.render_once("security/codes.html", codes=codes, is_new=True)


def _mount_factor_changes(group: Pages) -> None:
    members = group.dashboard.people.members

    @group.post(f"{FACTOR}/codes", needs="read_only")
    async def new_codes(visit: Visit, form: Form) -> Response:
        try:
            codes = await members.new_recovery_codes(visit.viewer, visit.actor, form.get("code", "")[:100])
        except SecretsUnavailable:
            return await _factor_page(visit, {"": _NO_SECRETS})
        except ValueError as error:
            return await _factor_page(visit, {"codes": sentence(error)})
        return await visit.render_once("security/codes.html", codes=codes, is_new=False)

    @group.post(f"{FACTOR}/off", needs="read_only")
    async def turn_off(visit: Visit, form: Form) -> Response:
        """A code needs the secret, and so the vault; the password is the way when both are lost."""
        code, password = form.get("code", "").strip()[:100], form.get("password", "")
        if not code and not password:
            return await _factor_page(visit, {"off": "Type a code, or your password."})
        if code:
            try:
                await members.disable_second_factor(visit.viewer, visit.actor, code)
            except SecretsUnavailable:
                return await _factor_page(visit, {"": _NO_SECRETS})
            except ValueError as error:
                return await _factor_page(visit, {"off": sentence(error)})
        else:
            refused = await group.dashboard.people.drop_second_factor(visit.viewer, visit.actor, password)
            if refused is not None:
                where = "off_password" if refused.code == WRONG_OLD_PASSWORD.code else "off"
                page = await _factor_page(visit, {where: refused.message + "."}, status=_status(refused))
                return _wait(page, refused)
        return visit.redirect("/security", "The second factor is off. The password alone signs you in now.")


# Pages


async def _page(visit: Visit, errors: dict[str, str], *, status: int = 0) -> Response:
    user, codes_left = await visit.store.read(_read_user, visit.viewer.user_id, visit.account_id)
    if user is None:
        return visit.not_found()
    rows = await visit.dashboard.people.members.sessions(visit.viewer)
    return await visit.render(
        "security/security.html",
        status=status or (422 if errors else 200),
        user=user,
        codes_left=codes_left,
        sessions=[show_session(row, visit) for row in rows],
        errors=errors,
    )


async def _factor_page(visit: Visit, errors: dict[str, str], *, status: int = 0) -> Response:
    found: dict[str, Any] = {"since_us": None, "codes_left": 0, "pending": None}
    user, _ = await visit.store.read(_read_user, visit.viewer.user_id, visit.account_id)
    if user is None:
        return visit.not_found()
    is_readable = True
    try:
        found = await visit.dashboard.people.members.second_factor(visit.viewer)
    except SecretsUnavailable:
        is_readable = False
        errors = {"": _NO_SECRETS, **errors}
    pending = found["pending"]
    return await visit.render_once(
        "security/second_factor.html",
        status=status or (422 if errors and is_readable else 503 if errors else 200),
        since_us=found["since_us"],
        codes_left=found["codes_left"],
        secret="" if pending is None else _in_fours(pending.secret),
        plain_secret="" if pending is None else pending.secret,
        uri="" if pending is None else pending.uri,
        code=None if pending is None else draw_code(pending.uri),
        errors=errors,
    )


def _read_user(conn: Any, user_id: str, account_id: str) -> tuple[UserRow | None, int]:
    return users.by_id(conn, user_id, account_id), users.recovery_codes_left(conn, user_id)


def show_session(row: dict[str, Any], visit: Visit) -> dict[str, Any]:
    """A session with the words for its device, and whether it is the one that looks."""
    return {**row, "device": device_words(row["agent"]), "is_this": row["id"] == visit.viewer.session_id}


def draw_code(text: str) -> Markup | None:
    """A QR code as SVG, dark on light whatever the theme; None: the text is too long for one that can be scanned."""
    try:
        code = segno.make_qr(text, error="m")
    except DataOverflowError:
        return None
    # Its own light ground and quiet zone: scanners do not read light on dark.  Only presentation attributes.
    return Markup(code.svg_inline(omitsize=True, border=4, svgclass="qr", lineclass=None, dark="#000", light="#fff"))  # noqa: S704


def _in_fours(secret: str) -> str:
    return " ".join(secret[n : n + 4] for n in range(0, len(secret), 4))


def _status(refused: LoginRefusal) -> int:
    return refused.http_status if refused.http_status in {429, 503} else 422


def _wait(page: Response, refused: LoginRefusal) -> Response:
    if refused.retry_after_s:
        page.headers["Retry-After"] = str(refused.retry_after_s)
    return page


def _agent() -> str:
    return request.headers.get("User-Agent", "")[:200]
