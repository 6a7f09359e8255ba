# SPDX-License-Identifier: Apache-2.0
"""What every page stands in: who is signed in, forms that cannot be forged, templates, headers.

A group of pages is a `Pages`; its handlers get a `Visit`, and those that change something a `Form` whose token was
checked.  Whoever is not signed in is sent to the sign-in page and comes back; whoever may not do a thing is told so.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urlencode, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from quart import Blueprint, current_app, request
from quart.wrappers import Response
from werkzeug.exceptions import Forbidden, HTTPException, NotFound

from hepmaild.config import Settings
from hepmaild.http.call import Call
from hepmaild.http.dashboard.assets import Assets
from hepmaild.http.dashboard.forms import read_form
from hepmaild.http.dashboard.words import FILTERS
from hepmaild.people import LoginRefusal, People, TokenSet, Viewer
from hepmaild.policy import plan_of
from hepmaild.storage.audit import Actor
from hepmaild.storage.figures import top_line
from hepmaild.storage.store import Store

ACCESS_COOKIE = "__Host-hepmaild-access"
REFRESH_COOKIE = "__Host-hepmaild-refresh"
NOTICE_COOKIE = "__Host-hepmaild-notice"
COOKIE_DAYS = 30
SCOPES = ("read_only", "admin", "owner")
TOO_LATE = "You were not signed in any more, so nothing was changed. Sign in, and send the form again."

# No inline script or style; nothing from elsewhere; nobody may frame us.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}
_LOCAL_PATH = re.compile(r"/(?![/\\])[^\x00-\x20\\]*")


@dataclass(slots=True)
class Dashboard:
    """What pages need.  extras: parts that single groups of pages know (live hub, pool, vault …), by name."""

    store: Store
    people: People
    settings: Callable[[], Settings]
    now_us: Callable[[], int]
    public_url: Callable[[], str]
    extras: dict[str, Any] = field(default_factory=dict)
    assets: Assets = field(default_factory=Assets)
    templates: Environment = field(init=False)

    def __post_init__(self) -> None:
        self.templates = Environment(
            loader=PackageLoader("hepmaild.http", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters.update(FILTERS)
        self.templates.globals["asset"] = self.assets.url


Handler = Callable[..., Awaitable[Response]]


@dataclass(slots=True)
class Visit:
    """One request for a page by somebody who is signed in."""

    dashboard: Dashboard
    viewer: Viewer
    call: Call

    @property
    def store(self) -> Store:
        """The store."""
        return self.dashboard.store

    @property
    def account_id(self) -> str:
        """Whose rows this visit may see."""
        return self.viewer.account_id

    @property
    def actor(self) -> Actor:
        """For the audit log."""
        return Actor(self.viewer.user_id, self.viewer.email, str(self.call.client_ip), "dashboard")

    def may(self, needs: str) -> bool:
        """Whether the viewer has this scope."""
        if needs == "operator":
            return self.viewer.is_operator
        return SCOPES.index(self.viewer.scope) >= SCOPES.index(needs)

    def arg(self, name: str, default: str = "") -> str:
        """A value of the query string, without NUL, which PostgreSQL does not take."""
        return request.args.get(name, default).replace("\0", "")

    @property
    def came_from(self) -> str:
        """The page that the browser says it came from (Referer); "" unless it says so.  Anybody may say anything."""
        return request.referrer or ""

    async def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page."""
        frame = await self.dashboard.store.read(top_line, self.account_id, self.dashboard.now_us())
        html = self.dashboard.templates.get_template(template).render(
            visit=self,
            viewer=self.viewer,
            frame=frame,
            limit_per_minute=plan_of(self.dashboard.settings().plans, self.viewer.plan).calls_per_minute,
            csrf=self.dashboard.people.csrf_token(self.viewer.session_id),
            path=request.path,
            query=request.args,
            notice=take_notice(),
            now_us=self.dashboard.now_us(),
            **values,
        )
        response = html_response(html, status)
        if request.cookies.get(NOTICE_COOKIE):
            drop_cookie(response, NOTICE_COOKIE)
        return response

    async def render_once(self, template: str, **values: Any) -> Response:
        """A page with a secret on it.  Templates leave cycles, in which the collector would let it live for long."""
        response = await self.render(template, **values)
        gc.collect(1)
        return response

    def redirect(self, path: str, notice: str = "") -> Response:
        """See another page of ours after a change; `notice` stands above it, once."""
        response = see(path)
        if notice:
            set_cookie(response, NOTICE_COOKIE, quote(notice[:500]), max_age=60)
        return response

    def not_found(self) -> NoReturn:
        """There is no such thing, or it is somebody else's: both look the same.  Raises NotFound."""
        raise NotFound


class Pages:
    """A group of pages."""

    def __init__(self, name: str, dashboard: Dashboard) -> None:
        self.blueprint = Blueprint(name, __name__)
        self.dashboard = dashboard

    def get(self, rule: str, *, needs: str = "read_only") -> Callable[[Handler], Handler]:
        """Serve `handler(visit, **parameters of the rule)` at `rule`."""

        def mount(handler: Handler) -> Handler:
            async def serve(**parameters: Any) -> Response:
                visit = await self._visit(needs, parameters)
                if isinstance(visit, Response):
                    return visit
                return finish(await handler(visit, **parameters))

            self.blueprint.add_url_rule(rule, f"get {handler.__name__}", serve, methods=["GET"])
            return handler

        return mount

    def post(self, rule: str, *, needs: str = "admin") -> Callable[[Handler], Handler]:
        """Serve `handler(visit, form, **parameters)`; the form's token is checked before."""

        def mount(handler: Handler) -> Handler:
            async def serve(**parameters: Any) -> Response:
                visit = await self._visit(needs, parameters)
                if isinstance(visit, Response):
                    return visit
                form = await read_form(self.dashboard.extras.get("reading"))
                visit = await self._look_again(visit, needs)
                if isinstance(visit, Response):
                    return visit
                if not same_origin(self.dashboard) or not self.dashboard.people.check_csrf(
                    visit.viewer.session_id, form.get("csrf", "")
                ):
                    raise Forbidden("This form is too old, or did not come from here: load the page again.")
                return finish(await handler(visit, form, **parameters))

            self.blueprint.add_url_rule(rule, f"post {handler.__name__}", serve, methods=["POST"])
            return handler

        return mount

    async def _visit(self, needs: str, parameters: dict[str, Any]) -> Visit | Response:
        visit = self._admit(await open_visit(self.dashboard), needs)
        if isinstance(visit, Visit) and any("\0" in str(value) for value in parameters.values()):
            visit.not_found()
        return visit

    async def _look_again(self, visit: Visit, needs: str) -> Visit | Response:
        """A form comes as slowly as its sender likes: they may have been signed out meanwhile, or have another role."""
        viewer = await self.dashboard.people.viewer_in(visit.viewer.session_id)
        if viewer is None:
            visit.call.renewed = None
            return self._admit(None, needs)
        return self._admit(Visit(self.dashboard, viewer, visit.call), needs)

    def _admit(self, visit: Visit | None, needs: str) -> Visit | Response:
        if visit is None:
            return self._to_sign_in()
        if not visit.may(needs):
            if needs == "operator":
                visit.not_found()
            raise Forbidden("Your role in this account does not allow that: ask its owner.")
        return visit

    def _to_sign_in(self) -> Response:
        """Whoever sent a form of ours is told that it came too late, and comes back to the page it stands on."""
        is_form = request.method == "POST" and same_origin(self.dashboard)
        back = request.full_path.rstrip("?") if request.method == "GET" else _page_before() if is_form else "/"
        response = clear_tokens(see(with_query("/sign-in", next="" if back == "/" else back)))
        if is_form:
            set_cookie(response, NOTICE_COOKIE, quote(TOO_LATE), max_age=60)
        return response


def _page_before() -> str:
    """The page of ours that a form stands on, as far as the browser says it and it can be loaded again; else `/`."""
    try:
        parts = urlsplit(request.headers.get("Referer", ""))
        current_app.url_map.bind("").match(parts.path, "GET")
    except (HTTPException, ValueError):  # not there, only the answer to a form, or no address
        return "/"
    return local_path(parts.path + (f"?{parts.query}" if parts.query else ""))


async def open_visit(dashboard: Dashboard) -> Visit | None:
    """Who asks, by the cookies; None: nobody who is signed in.  Tokens that have run out are renewed on the way.

    The new ones are the call's at once: whatever this ends with, the answer has to bring them to the browser, whose own
    would be a thief's the next time.
    """
    asked: Any = request
    call: Call = asked.call
    access = request.cookies.get(ACCESS_COOKIE, "")
    viewer = await dashboard.people.viewer_of(access) if access else None
    if viewer is not None:
        return Visit(dashboard, viewer, call)
    refresh = request.cookies.get(REFRESH_COOKIE, "")
    tokens = await dashboard.people.refresh(refresh, ip=str(call.client_ip)) if refresh else None
    if tokens is None or isinstance(tokens, LoginRefusal):
        return None
    call.renewed = tokens
    viewer = await dashboard.people.viewer_of(tokens.access_token)
    if viewer is None:
        call.renewed = None
        return None
    return Visit(dashboard, viewer, call)


def number_of(text: str) -> int | None:
    """A number that a link or a form of ours may hold, of a row or an instant; None: it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def same_origin(dashboard: Dashboard) -> bool:
    """Whether a form came from us, by all that the browser says; one that says nothing is judged by its token alone."""
    site, origin = request.headers.get("Sec-Fetch-Site", ""), request.headers.get("Origin", "")
    if site not in ("", "same-origin"):
        return False
    return not origin or is_ours(dashboard, origin, request.headers.get("Host", ""))


def is_ours(dashboard: Dashboard, origin: str, host: str) -> bool:
    """Whether a page of this origin is one of ours.  host: by which name we were asked; a proxy may change that."""
    places = {urlsplit(dashboard.public_url()).netloc, host} - {""}
    return origin in {f"https://{place}" for place in places}


def local_path(text: str, default: str = "/") -> str:
    """`text` if it is a path of ours, else `default`: nobody is sent elsewhere by a link to us."""
    return text if _LOCAL_PATH.fullmatch(text) else default


def html_response(html: str, status: int = 200) -> Response:
    """A page with the headers that browsers honour."""
    response = Response(html, status=status, content_type="text/html; charset=utf-8")
    response.headers.update(HEADERS)
    return response


def framed(html: str, policy: str) -> Response:
    """A document of its own for a frame on a page of ours.  It may do what `policy` allows, and call nobody."""
    response = html_response(html)
    response.headers["Content-Security-Policy"] = policy
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-DNS-Prefetch-Control"] = "off"
    return response


def with_query(path: str, **query: object) -> str:
    """The address of a page: `path` with what of `query` is not empty."""
    kept = {name: value for name, value in query.items() if value}
    return path + ("?" + urlencode(kept) if kept else "")


def see(path: str) -> Response:
    """303 to a path of ours."""
    response = Response("", status=303, headers={"Location": local_path(path)})
    response.headers.update(HEADERS)
    return response


def finish(response: Response) -> Response:
    """Headers that a handler did not set are ours."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def keep_tokens(response: Response, tokens: TokenSet) -> Response:
    """The browser is signed in."""
    set_cookie(response, ACCESS_COOKIE, tokens.access_token, max_age=COOKIE_DAYS * 86_400)
    set_cookie(response, REFRESH_COOKIE, tokens.refresh_token, max_age=COOKIE_DAYS * 86_400)
    return response


def clear_tokens(response: Response) -> Response:
    """The browser is signed out."""
    for name in (ACCESS_COOKIE, REFRESH_COOKIE):
        if request.cookies.get(name):
            drop_cookie(response, name)
    return response


def set_cookie(response: Response, name: str, value: str, *, max_age: int) -> None:
    """A cookie that scripts cannot read and other sites do not send."""
    response.set_cookie(name, value, max_age=max_age, secure=True, httponly=True, samesite="Strict", path="/")


def drop_cookie(response: Response, name: str) -> None:
    """Have the browser forget it."""
    response.delete_cookie(name, secure=True, httponly=True, samesite="Strict", path="/")


def take_notice() -> str:
    """What the last change said."""
    return unquote(request.cookies.get(NOTICE_COOKIE, ""))[:500]


def plain_page(dashboard: Dashboard, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page for somebody who is not signed in."""
    return html_response(dashboard.templates.get_template(template).render(**values), status)
