# SPDX-License-Identifier: Apache-2.0
"""Logging in over HTTPS, for programs (contract: login-api.md): `/oauth/token`, `revoke`, `me`, `validate`.

What people's browsers do is in `dashboard`; both ask the same `People`.  API keys are worth nothing here.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

import trio
from quart import Blueprint
from quart import request as current_request
from quart.wrappers import Request, Response

from hepmaild.errors import ErrorKind, RefusedError, StoreUnavailable
from hepmaild.http.answers import LoginError, Tokens, User
from hepmaild.http.body import check_length, check_media_type, read_body
from hepmaild.http.call import Call
from hepmaild.http.errors import json_response
from hepmaild.http.limits import Timeouts
from hepmaild.http.shapes import REFRESH
from hepmaild.login import (
    BAD_REFRESH_TOKEN,
    BAD_REVOKED_TOKEN,
    NEEDS_CODE,
    WRONG_PASSWORD,
    LoginRefusal,
    TokenSet,
    Viewer,
)
from hepmaild.people import People
from hepmaild.storage.users import OWNER, UserRow

MAX_BODY_OCTETS = 16 << 10
MAX_AGENT = 200
GRANT_TYPES = ("password", "refresh_token")
BAD_ACCESS_TOKEN = LoginRefusal(40101, 401, "Access token is missing, invalid or expired")
UNKNOWN_GRANT = LoginRefusal(40001, 400, f"Unknown grant_type: use one of {', '.join(GRANT_TYPES)}, once, in the query")
STORE_DOWN = LoginRefusal(50301, 503, "The service cannot answer at the moment: try again soon", 5)


@dataclass(slots=True)
class LoginDesk:
    """What the endpoints need.  gravatar: whether `/oauth/me` names a picture at a third party."""

    people: People
    files: trio.CapacityLimiter
    timeouts: Timeouts = Timeouts()
    gravatar: bool = False

    async def token(self, request: Request, call: Call) -> Response:
        """A token set, by password or by refresh token."""
        wanted = request.args.getlist("grant_type")
        if wanted == ["password"]:
            return answer(await self._by_password(request, call), call)
        if wanted == ["refresh_token"]:
            token = await self._token_of_body(request)
            refused: TokenSet | LoginRefusal = BAD_REFRESH_TOKEN
            if token is not None:
                refused = await self.people.refresh(token, ip=str(call.client_ip))
            return answer(refused, call)
        return login_refusal(UNKNOWN_GRANT, call)

    async def _by_password(self, request: Request, call: Call) -> TokenSet | LoginRefusal:
        pair = read_basic(request.headers.get("Authorization"))
        if pair is None:
            return WRONG_PASSWORD
        return await self.people.password_grant(
            *pair,
            otp=request.headers.get("X-OTP", "").strip()[:64] or None,
            ip=str(call.client_ip),
            agent=request.headers.get("User-Agent", "")[:MAX_AGENT],
            kind="program",
        )

    async def revoke(self, request: Request, call: Call) -> Response:
        """End the session of a refresh token; it may be another one than the asking one, of the same user."""
        viewer = await self._viewer(request)
        if viewer is None:
            return login_refusal(BAD_ACCESS_TOKEN, call)
        token = await self._token_of_body(request)
        refused: LoginRefusal | None = BAD_REVOKED_TOKEN
        if token is not None:
            refused = await self.people.revoke(viewer, token, ip=str(call.client_ip))
        return json_response(200, {}) if refused is None else login_refusal(refused, call)

    async def me(self, request: Request, call: Call) -> Response:
        """The user."""
        viewer = await self._viewer(request)
        user = None if viewer is None else await self.people.user_of(viewer)
        if user is None:
            return login_refusal(BAD_ACCESS_TOKEN, call)
        return json_response(200, self._describe(user))

    async def validate(self, request: Request, call: Call) -> Response:
        """200 while the access token holds."""
        if await self._viewer(request) is None:
            return login_refusal(BAD_ACCESS_TOKEN, call)
        return json_response(200, {})

    async def _viewer(self, request: Request) -> Viewer | None:
        token = read_bearer(request.headers.get("Authorization"))
        return None if token is None else await self.people.viewer_of(token)

    async def _token_of_body(self, request: Request) -> str | None:
        """`refresh_token` of the JSON body; None: there is none.  Raises RefusedError."""
        check_length(request, MAX_BODY_OCTETS)
        body = await read_body(request, MAX_BODY_OCTETS, self.timeouts, None, self.files)
        try:
            if not body.content.size and not request.mimetype:  # no body at all
                return None
            check_media_type(request)
            return REFRESH.load(body.content).refresh_token or None
        except RefusedError as error:
            if error.refusal.kind is ErrorKind.INVALID_FIELD:
                return None
            raise
        finally:
            body.content.close()

    def _describe(self, user: UserRow) -> User:
        return User(
            id=user.user_id,
            account_id=user.account_id,
            email_address=user.email,
            first_name=user.first_name,
            surname=user.surname,
            gravatar_url=gravatar_url(user.email) if self.gravatar else "",
            is_owner=user.scope == OWNER,
            is_verified=user.is_verified,
            created_at_utc=user.created_at_us // 1000,
            modified_at_utc=user.modified_at_us // 1000,
        )


def read_basic(authorization: str | None) -> tuple[str, str] | None:
    """E-mail address and password of HTTP Basic (RFC 7617); None: there are none."""
    scheme, _, rest = (authorization or "").strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:
        return None
    return (user, password) if colon and user else None


def read_bearer(authorization: str | None) -> str | None:
    """The token of a Bearer header (RFC 6750); None: there is none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def gravatar_url(email: str) -> str:
    """Where a third party keeps pictures, by the SHA-256 of e-mail addresses."""
    return f"https://gravatar.com/avatar/{hashlib.sha256(email.strip().lower().encode()).hexdigest()}"


def answer(result: TokenSet | LoginRefusal, call: Call) -> Response:
    """A token set, or why there is none."""
    if isinstance(result, LoginRefusal):
        return login_refusal(result, call)
    tokens = Tokens("bearer", result.access_token, result.expires_at_ms, list(result.scope), result.refresh_token)
    return json_response(200, tokens)


def login_refusal(refusal: LoginRefusal, call: Call) -> Response:
    """`{"code", "message"}`."""
    call.code = str(refusal.code)
    response = json_response(refusal.http_status, LoginError(refusal.code, refusal.message))
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.http_status == 401:  # RFC 9110 §15.5.2
        scheme = "Basic" if refusal.code == NEEDS_CODE.code else "Bearer"
        response.headers["WWW-Authenticate"] = f'{scheme} realm="hepmaild"'
    return response


def oauth_blueprint(desk: LoginDesk) -> Blueprint:
    """The routes of the endpoints."""
    blueprint = Blueprint("oauth", __name__)
    for method, path, handler in (
        ("POST", "/oauth/token", desk.token),
        ("POST", "/oauth/revoke", desk.revoke),
        ("GET", "/oauth/me", desk.me),
        ("GET", "/oauth/validate", desk.validate),
    ):

        async def serve(handler: Any = handler) -> Response:
            request: Any = current_request
            try:
                response: Response = await handler(request, request.call)
            except StoreUnavailable:
                return login_refusal(STORE_DOWN, request.call)
            return response

        blueprint.add_url_rule(path, path, serve, methods=[method], provide_automatic_options=False)
    return blueprint
