# SPDX-License-Identifier: Apache-2.0
"""Signing in and out, and the one-time link that asks for a password.

The sign-in form is sent before there is a session, so its token is bound to a cookie of its own: nobody can sign a
visitor in to an account that is not theirs (login CSRF).  Who has a second factor is asked for the code alone, once the
password was right: the page carries a ticket that says so to this visitor for some minutes, and no password.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from quart import Blueprint, request
from quart.wrappers import Response
from werkzeug.exceptions import Forbidden

from hepmaild.http.call import Call
from hepmaild.http.dashboard.forms import SMALL_FORM_OCTETS, Form, read_form
from hepmaild.http.dashboard.frame import (
    NOTICE_COOKIE,
    Dashboard,
    Pages,
    Visit,
    clear_tokens,
    drop_cookie,
    keep_tokens,
    local_path,
    open_visit,
    plain_page,
    same_origin,
    see,
    set_cookie,
    take_notice,
)
from hepmaild.login import NEEDS_CODE, OLD_TICKET, LoginRefusal

VISITOR_COOKIE = "__Host-hepmaild-visitor"
_VISITOR_OCTETS = 24
_VISITOR = re.compile(r"[A-Za-z0-9_-]{32}")  # what so many random octets look like


def pages(dashboard: Dashboard) -> Blueprint:
    """`/sign-in`, `/sign-out`, `/link/TOKEN`."""
    group = Pages("sign_in", dashboard)
    _mount_form(group.blueprint, dashboard)
    _mount_link(group.blueprint, dashboard)

    @group.post("/sign-out", needs="read_only")
    async def sign_out(visit: Visit, _form: Any) -> Response:
        await dashboard.people.sign_out(visit.viewer.session_id)
        visit.call.renewed = None
        return clear_tokens(see("/sign-in"))

    return group.blueprint


def _mount_form(blueprint: Blueprint, dashboard: Dashboard) -> None:
    @blueprint.get("/sign-in")
    async def show() -> Response:
        if await open_visit(dashboard) is not None:
            return see(local_path(request.args.get("next", "/")))
        return clear_tokens(_sign_in_page(dashboard, back=request.args.get("next", "/")))

    @blueprint.post("/sign-in")
    async def sign_in() -> Response:
        form = await read_form(None, SMALL_FORM_OCTETS)
        visitor, token = _visitor(), form.get("csrf", "")
        if not visitor or not same_origin(dashboard) or not dashboard.people.check_visitor(visitor, token):
            email, error = form.get("email", "").strip(), "The form was too old: try once more."
            return _sign_in_page(dashboard, error=error, email=email, back=form.get("next", "/"), status=400)
        otp, ticket = form.get("otp", "").strip() or None, form.get("ticket", "")
        if ticket:
            result = await dashboard.people.code_grant(ticket, otp, visitor=visitor, ip=_ip(), agent=_agent())
        else:
            email, password = form.get("email", "").strip(), form.get("password", "")
            result = await dashboard.people.password_grant(
                email, password, otp=otp, ip=_ip(), agent=_agent(), kind="browser", visitor=visitor
            )
        if isinstance(result, LoginRefusal):
            return _refused(dashboard, form, result)
        await _end_former(dashboard)
        response = keep_tokens(see(local_path(form.get("next", "/"))), result)
        drop_cookie(response, VISITOR_COOKIE)
        return response


def _refused(dashboard: Dashboard, form: Form, refusal: LoginRefusal) -> Response:
    """The form once more: for the code alone where the password was right, else from the beginning."""
    ticket, error = form.get("ticket", ""), refusal.message
    if refusal.code == NEEDS_CODE.code and not form.get("otp", "").strip():
        error = "Type the code." if ticket else ""  # nobody could have given it with the password
    response = _sign_in_page(
        dashboard,
        error=error,
        email=form.get("email", "").strip(),
        ticket=refusal.ticket or ("" if refusal is OLD_TICKET else ticket),
        back=form.get("next", "/"),
        status=429 if refusal.http_status == 429 else 401,
    )
    if refusal.retry_after_s:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    return response


def _mount_link(blueprint: Blueprint, dashboard: Dashboard) -> None:
    @blueprint.get("/link/<token>")
    async def open_link(token: str) -> Response:
        link = await dashboard.people.open_link(token)
        if link is None:
            return _dead_link(dashboard)
        return plain_page(
            dashboard, "link.html", token=token, email=link.email, error="", ask_otp=link.needs_otp, wrong=""
        )

    @blueprint.post("/link")
    async def use_link() -> Response:
        form = await read_form(None, SMALL_FORM_OCTETS)
        if not same_origin(dashboard):
            raise Forbidden("This form did not come from here: open the link again.")
        token = form.get("token", "")
        link = await dashboard.people.open_link(token)
        if link is None:
            return _dead_link(dashboard)
        otp = form.get("otp", "").strip()[:100] or None
        result = await dashboard.people.set_password_by_link(
            token, form.get("password", ""), ip=_ip(), agent=_agent(), kind="browser", otp=otp
        )
        if isinstance(result, LoginRefusal):
            wrong = result.code == NEEDS_CODE.code
            text = "Type the code of your second factor too." if wrong and otp is None else result.message + "."
            return plain_page(
                dashboard,
                "link.html",
                token=token,
                email=link.email,
                error="" if wrong else text,
                wrong=text if wrong else "",
                ask_otp=link.needs_otp or wrong,
                status=result.http_status,
            )
        # Whoever was signed in here before is not any more: a link never continues somebody else's session.
        await _end_former(dashboard)
        return keep_tokens(see("/"), result)


async def _end_former(dashboard: Dashboard) -> None:
    """Its cookies are about to be replaced: the session that this browser had would only lie about, alive."""
    former = await open_visit(dashboard)
    if former is not None:
        await dashboard.people.sign_out(former.viewer.session_id)
        former.call.renewed = None


def _sign_in_page(
    dashboard: Dashboard,
    *,
    error: str = "",
    email: str = "",
    ticket: str = "",
    back: str = "/",
    status: int = 200,
) -> Response:
    visitor = _visitor() or secrets.token_urlsafe(_VISITOR_OCTETS)
    response = plain_page(
        dashboard,
        "sign_in.html",
        status=status,
        error=error,
        notice=take_notice(),
        email=email,
        ticket=ticket,
        next=local_path(back),
        csrf=dashboard.people.visitor_token(visitor),
    )
    set_cookie(response, VISITOR_COOKIE, visitor, max_age=86_400)
    if request.cookies.get(NOTICE_COOKIE):
        drop_cookie(response, NOTICE_COOKIE)
    return response


def _visitor() -> str:
    """What this browser is known by; "": nothing that we could have given it."""
    found = request.cookies.get(VISITOR_COOKIE, "")
    return found if _VISITOR.fullmatch(found) else ""


def _dead_link(dashboard: Dashboard) -> Response:
    text = "It was used already, or it is too old. The operator makes another with: hepmaild account link EMAIL"
    return plain_page(
        dashboard, "problem.html", status=410, title="This link works no more", text=text, request_id=_call().request_id
    )


def _call() -> Call:
    asked: Any = request
    call: Call = asked.call
    return call


def _ip() -> str:
    return str(_call().client_ip)


def _agent() -> str:
    return request.headers.get("User-Agent", "")[:200]
