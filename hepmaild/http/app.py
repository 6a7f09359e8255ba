# SPDX-License-Identifier: Apache-2.0
"""The Quart-Trio application: the boundary around every request, and what is mounted in it.

`build_app` is the only place that knows the parts; the API, health and people's pages are blueprints.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import structlog
import trio
from quart import Blueprint
from quart.wrappers import Request as QuartRequest
from quart.wrappers import Response, Websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.exceptions import NotFound as NoSuchPage
from werkzeug.routing import WebsocketMismatch

from hepmaild.counted import counted
from hepmaild.errors import ErrorKind, Refusal, RefusedError, StoreUnavailable
from hepmaild.http.answers import Healthy, Ready
from hepmaild.http.body import too_large
from hepmaild.http.call import Call, open_call
from hepmaild.http.compat import HttpConnection, Request
from hepmaild.http.dashboard.frame import Dashboard, keep_tokens, plain_page
from hepmaild.http.dashboard.mount import mount
from hepmaild.http.docs_page import PATH as DOCS_PATH
from hepmaild.http.docs_page import docs_blueprint
from hepmaild.http.errors import finish, json_response, refuse
from hepmaild.http.limits import ConnectionCounter, Timeouts, TrustedProxies
from hepmaild.http.oauth import LoginDesk, oauth_blueprint
from hepmaild.http.openapi import openapi_blueprint
from hepmaild.http.own_smtp import own_blueprint
from hepmaild.http.quick import QuickRequest
from hepmaild.http.send import SEND_ENDPOINT, SendDesk, send_blueprint
from hepmaild.http.uploads import UploadDesk, uploads_blueprint
from hepmaild.lifecycle import Lifecycle
from hepmaild.metrics import Meter
from hepmaild.own_servers import OwnServers
from hepmaild.threads import NoThread

log = structlog.get_logger()

Readiness = Callable[[], Awaitable[list[str]]]
READINESS_TIMEOUT_S = 5.0
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
WORTH_WAITING_OCTETS = 64 << 10  # so much of a body is waited for to keep the connection
_ONLY_HTTPS = Refusal(ErrorKind.HTTPS_REQUIRED, "Use https:// instead of http://.")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the boundary needs.

    public_url: without a slash at its end; empty: whatever name the client used, at https_port.  max_request: octets.
    """

    lifecycle: Lifecycle
    proxies: TrustedProxies
    counter: ConnectionCounter
    public_url: str
    https_port: int
    max_request: int
    timeouts: Timeouts
    meter: Meter


class App(QuartTrio):
    """The application with our boundary: whatever a request provokes is answered and ends here."""

    asgi_http_class = HttpConnection
    request_class = Request

    def __init__(self, surroundings: Surroundings, dashboard: Dashboard | None = None) -> None:
        super().__init__("hepmaild.http", static_folder=None)
        self.surroundings = surroundings
        self._lasting_tls = lasting_tls(surroundings.public_url)
        self.dashboard = dashboard
        self.config["PROPAGATE_EXCEPTIONS"] = True  # to the boundary below
        self.config["MAX_CONTENT_LENGTH"] = surroundings.max_request
        self.url_map.strict_slashes = True
        self.url_map.merge_slashes = False

    async def handle_request(self, request: QuartRequest) -> Any:
        """Answer a request; cancelled when the client goes away."""
        call = open_call(request, self.surroundings.proxies)
        request.call = call  # type: ignore[attr-defined]
        return await self._handle(request, call, partial(super().handle_request, request))

    async def handle_quickly(self, request: QuickRequest, desk: SendDesk) -> Response:
        """Answer a send request that came the quick way; not cancelled when the client goes away."""
        call = open_call(request, self.surroundings.proxies)
        response: Response = await self._handle(request, call, partial(desk.send_quickly, request, call, SEND_ENDPOINT))
        return response

    async def _handle(
        self, request: QuartRequest | QuickRequest, call: Call, dispatch: Callable[[], Awaitable[Any]]
    ) -> Any:
        started = trio.current_time()
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        response = await self._answer(request, call, dispatch)
        finish(response, call, closes=self._closes(request, call))
        if call.renewed is not None:
            keep_tokens(response, call.renewed)
        if self._lasting_tls and call.is_https:
            response.headers["Strict-Transport-Security"] = self._lasting_tls
        self.surroundings.meter.responded(response.status_code, call.code)
        # What went well is told by the intake; at 1,000 requests a second a second line costs a tenth of all.
        note = log.debug if response.status_code < 400 else log.info
        note(
            "http_request",
            method=request.method[:16],
            path=_loggable(request.path),
            status=response.status_code,
            code=call.code or None,
            peer=str(call.client_ip),
            key_id=call.key_id or None,
            ms=round((trio.current_time() - started) * 1000, 1),
        )
        return response

    def _closes(self, request: QuartRequest | QuickRequest, call: Call) -> bool:
        """Whether the connection ends behind this answer.  HTTP/2 has its own way of saying so."""
        if not request.http_version.startswith("1"):
            return False
        body: Any = request.body
        much_to_come = not body.is_complete and (request.content_length or 0) > WORTH_WAITING_OCTETS
        # A proxy that went by the other one takes what stands behind for a part of this body (RFC 9112 §6.1).
        lengths = request.headers.get("transfer-encoding", ""), request.headers.get("content-length", "")
        is_last = call.connection.over_limit or self.surroundings.lifecycle.is_draining
        return much_to_come or all(lengths) or is_last

    async def _answer(
        self, request: QuartRequest | QuickRequest, call: Call, dispatch: Callable[[], Awaitable[Any]]
    ) -> Any:
        if not call.by_proxy:
            return await self._answer_counted(request, call, dispatch, is_over=call.connection.over_limit)
        counter = self.surroundings.counter
        try:
            is_over = counter.enter(call.client) > counter.limit
            return await self._answer_counted(request, call, dispatch, is_over=is_over)
        finally:
            counter.leave(call.client)

    async def _answer_counted(
        self, request: QuartRequest | QuickRequest, call: Call, dispatch: Callable[[], Awaitable[Any]], *, is_over: bool
    ) -> Any:
        try:
            if not call.is_https:
                return self._to_https(request, call)
            if is_over:
                open_now = counted(self.surroundings.counter.limit, "connection")
                text = f"Your IP address has {open_now} open; close some first."
                return refuse(Refusal(ErrorKind.TOO_MANY_CONNECTIONS, text, retry_after_s=1), call)
            return await dispatch()
        except RefusedError as error:
            return self._refuse(error.refusal, call)
        except StoreUnavailable:
            text = "The service cannot store anything at the moment; try again soon. Nothing was charged."
            return self._refuse(Refusal(ErrorKind.UNAVAILABLE, text, retry_after_s=5), call)
        except NoThread:
            text = "The service has no room for this at the moment; try again soon. Nothing was charged."
            return self._refuse(Refusal(ErrorKind.UNAVAILABLE, text, retry_after_s=5), call)
        except HTTPException as error:
            if self.dashboard is not None and not call.is_api and not isinstance(error, RequestEntityTooLarge):
                return _problem_page(self.dashboard, error, call)
            return _http_error(error, call, self.surroundings.max_request)
        except Exception:  # the HTTP boundary (design.md section 8)
            log.exception("http_request_crashed", method=request.method[:16], path=_loggable(request.path))
            text = f"Something went wrong on our side; nothing was charged. Name request {call.request_id} to support."
            return self._refuse(Refusal(ErrorKind.INTERNAL, text), call)

    def _refuse(self, refusal: Refusal, call: Call) -> Any:
        """In JSON for programs, as a page for people."""
        response = refuse(refusal, call)
        if self.dashboard is None or call.is_api:
            return response
        text, status = refusal.message[:1].upper() + refusal.message[1:], response.status_code
        title = "Try again soon" if status in (429, 503) else "That did not work"
        page = plain_page(
            self.dashboard, "problem.html", status=status, title=title, text=text, request_id=call.request_id
        )
        if "Retry-After" in response.headers:
            page.headers["Retry-After"] = response.headers["Retry-After"]
        return page

    async def handle_http_exception(self, error: Any) -> Any:
        """Leave it to the boundary."""
        raise error

    async def handle_websocket(self, websocket: Websocket) -> Any:
        """Serve a websocket; what it provokes ends here too.  Programs that ask for one are answered as to anything."""
        call = open_call(websocket, self.surroundings.proxies)
        response = Response("", status=403)
        try:
            if call.is_https:
                return await super().handle_websocket(websocket)
            if call.is_api:
                response = refuse(_ONLY_HTTPS, call)
        except HTTPException as error:
            if call.is_api:
                response = _http_error(error, call, self.surroundings.max_request)
            else:
                response = Response("", status=error.code or 400)
        except (StoreUnavailable, NoThread):  # pages try again by themselves, and each would be told as a crash
            response = Response("", status=503, headers={"Retry-After": "5"})
        except Exception:  # the HTTP boundary (design.md section 8)
            log.exception("websocket_crashed", path=_loggable(websocket.path))
            response = Response("", status=500)
        if call.is_api:
            finish(response, call, closes=False)
        return response

    def _to_https(self, request: QuartRequest | QuickRequest, call: Call) -> Any:
        base = self.surroundings.public_url or _named_by(request.headers.get("Host", ""), self.surroundings.https_port)
        is_page = not call.is_api or (request.path == DOCS_PATH and request.method in {"GET", "HEAD"})
        if not is_page or not base.startswith("https://"):
            return refuse(_ONLY_HTTPS, call)
        target = base + quote(request.path, safe="/~!$&'()*+,;=:@-._")
        if request.query_string:
            target += "?" + quote(request.query_string, safe="/?~!$&'()*+,;=:@-._%")
        return Response("", status=308, headers={"Location": target})


def _loggable(path: str) -> str:
    """A path without what signs somebody in."""
    before, link, _ = path.partition("/link/")  # wherever it stands: a proxy may have put something before it
    return f"{before[:200]}{link}…" if link else path[:200]


def lasting_tls(public_url: str) -> str:
    """What browsers are told to keep to (RFC 6797); nothing where the name is no name of ours alone."""
    found = urlsplit(public_url)
    host = found.hostname or ""
    is_name = "." in host and ":" not in host and not host.replace(".", "").isdigit()
    return "max-age=31536000" if found.scheme == "https" and is_name else ""


def _named_by(host: str, port: int) -> str:
    """Our address by the name that the client used, when no other is configured."""
    name = _HOST.match(host)
    if name is None:
        return ""
    return f"https://{name[0]}" if port == 443 else f"https://{name[0]}:{port}"


def _http_error(error: HTTPException, call: Call, max_request: int) -> Any:
    """What the framework found: no such path, no such method, a body that is too long."""
    if isinstance(error, RequestEntityTooLarge):
        return refuse(too_large(max_request), call)
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(set(error.valid_methods or ()) - {"OPTIONS"}))
        response = refuse(Refusal(ErrorKind.METHOD_NOT_ALLOWED, f"Use {allowed} here."), call)
        response.headers["Allow"] = allowed
        return response
    if not isinstance(error, NoSuchPage | WebsocketMismatch):  # a Host that can be nobody's
        text = "This is not a proper HTTP request; its Host can be the name of no server."
        return refuse(Refusal(ErrorKind.MALFORMED_REQUEST, text), call)
    if call.is_api:
        return refuse(
            Refusal(ErrorKind.NOT_FOUND, "There is nothing at this path; mail is sent by POST /api/v1/email/send."),
            call,
        )
    call.code = "NOT_FOUND"
    return Response("There is no such page.\n", status=404, content_type="text/plain; charset=utf-8")


_PROBLEMS = {
    403: ("You may not do that", "Your role in this account does not allow it."),
    404: ("There is no such page", "It may have been deleted, or the address is not quite right."),
    405: ("That does not work here", "This address is not for that kind of request."),
}


def _problem_page(dashboard: Dashboard, error: HTTPException, call: Call) -> Any:
    """What the framework or a page found, for people.  A page's own words are shown; the framework's are not."""
    status = error.code or 400
    title, text = _PROBLEMS.get(status, ("That did not work", "The browser sent something that we do not understand."))
    said = error.description or ""
    if said and said != type(error).description:
        text = said
    call.code = error.name.upper().replace(" ", "_")
    page = plain_page(dashboard, "problem.html", status=status, title=title, text=text, request_id=call.request_id)
    if isinstance(error, MethodNotAllowed):
        page.headers["Allow"] = ", ".join(sorted(set(error.valid_methods or ()) - {"OPTIONS"}))
    return page


def health_blueprint(readiness: Readiness) -> Blueprint:
    """`/healthz`: the process answers.  `/readyz`: it can take mail; 503 with the reasons when it cannot."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/healthz", provide_automatic_options=False)
    async def healthz() -> Response:
        return json_response(200, Healthy(ok=True))

    @blueprint.get("/readyz", provide_automatic_options=False)
    async def readyz() -> Response:
        problems = ["the checks did not end in time"]
        with trio.move_on_after(READINESS_TIMEOUT_S):
            problems = await readiness()
        return json_response(503 if problems else 200, Ready(ok=not problems, problems=problems))

    return blueprint


def build_app(
    surroundings: Surroundings,
    desk: SendDesk,
    readiness: Readiness,
    login: LoginDesk | None = None,
    dashboard: Dashboard | None = None,
    own_servers: OwnServers | None = None,
) -> App:
    """The application, complete.  login: where programs can log in.  dashboard: what pages need; None: no pages.
    own_servers: of accounts; None: there are none.
    """
    app = App(surroundings, dashboard)
    app.register_blueprint(send_blueprint(desk))
    if own_servers is not None:
        app.register_blueprint(own_blueprint(desk, own_servers))
    if desk.materials.uploads is not None:
        materials = desk.materials
        door = UploadDesk(desk.intake, desk.materials.uploads, desk.timeouts, materials.calls_inside, dashboard)
        app.register_blueprint(uploads_blueprint(door))
    app.register_blueprint(health_blueprint(readiness))
    app.register_blueprint(openapi_blueprint())
    if login is not None:
        app.register_blueprint(oauth_blueprint(login))
    if dashboard is not None:
        app.register_blueprint(docs_blueprint(dashboard))
        mount(app, dashboard)
    return app
