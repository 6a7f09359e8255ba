# SPDX-License-Identifier: Apache-2.0
"""The page of one message: what happened to it, what it is, and its content as long as that is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import trio
from quart.wrappers import Response
from werkzeug.exceptions import NotFound

from hepmaild.config import DAY_US
from hepmaild.http.compat import Stream
from hepmaild.http.dashboard import logs, timeline
from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import HEADERS, Dashboard, Pages, Visit, framed, with_query
from hepmaild.http.dashboard.parts import Parts, disposition, take_apart
from hepmaild.http.dashboard.snippets import curl, place_of
from hepmaild.http.dashboard.words import sentence
from hepmaild.mail.chaos import kind_of
from hepmaild.mail.content import Content
from hepmaild.mail.ids import is_message_id
from hepmaild.storage import live as live_rows
from hepmaild.storage import message_page as rows
from hepmaild.storage.queue import Refused as QueueRefused
from hepmaild.threads import in_thread

# What comes before "sent" among the recipients of a message, which is last.
WORST = ("failed", "expired", "in_doubt", "cancelled", "held", "deferred", "capped", "queued", "leased")
TABS = ("html", "text", "headers", "attachments")
IN_LOOP_OCTETS = 8 << 10
# The HTML of a message: a document of its own that may show itself and pictures it brought, and do nothing.
FRAME_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'"
)


def pages(dashboard: Dashboard) -> Pages:
    """`/logs/ID` and what belongs to it."""
    group = Pages("message", dashboard)
    _mount_page(group, dashboard)
    _mount_content(group, dashboard)
    _mount_deeds(group, dashboard)
    return group


def _mount_page(group: Pages, dashboard: Dashboard) -> None:
    @group.get("/logs/<message_id>")
    async def message(visit: Visit, message_id: str) -> Response:
        seq, found = await visit.store.read(_look, visit.account_id, _id(message_id))
        if found is None:
            return visit.not_found()
        tab = visit.arg("tab")
        parts = None
        if found["has_body"]:
            with suppress(NotFound):  # it may have been delivered since, and its content gone
                parts = await _parts(dashboard, visit, message_id)
        if tab not in TABS:
            tab = "html" if parts and parts.html else "text"
        back = _log_before(visit)
        recipients = worst_first(found["recipient_rows"])
        addresses = {r["n"]: r["address"] for r in found["recipient_rows"]}
        return await visit.render(
            "logs/message.html",
            m=found,
            back_to=back,
            view=urlsplit(back).query,
            seq=seq,
            chaos=kind_of(found["route"]),
            recipients=recipients,
            counts=Counter(r["shown"] for r in recipients),
            groups=timeline.groups(
                found["events"], addresses, is_paid=any(row["amount"] < 0 for row in found["money"])
            ),
            parts=parts,
            tab=tab,
            tabs=TABS,
            curl=_curl(dashboard, found, parts),
        )


def _log_before(visit: Visit) -> str:
    """The log as the visitor left it for the message: so says the browser, or `view`, which the message's own pages
    hand on."""
    try:
        came_from = urlsplit(visit.came_from)
    except ValueError:  # no address
        return logs.view(visit.arg("view"))
    return logs.view(came_from.query if came_from.path == "/logs" else visit.arg("view"))


def worst_first(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The recipients, `shown` being the state of each; what went wrong first: of many only a few are seen at once."""
    found = [{**r, "shown": "in_doubt" if r["doubts"] and r["state"] == "deferred" else r["state"]} for r in rows]
    return sorted(found, key=lambda r: WORST.index(r["shown"]) if r["shown"] in WORST else len(WORST))


def _look(conn: Any, account_id: str, message_id: str) -> tuple[int, dict[str, Any] | None]:
    return live_rows.resume_point(conn), rows.page(conn, account_id, message_id)


def _id(text: str) -> str:
    if not is_message_id(text):
        raise NotFound
    return text


async def _content(visit: Visit, message_id: str) -> Content:
    content = await visit.store.read(rows.content, visit.account_id, _id(message_id))
    if content is None:
        raise NotFound("The content of this message is not kept any more.")
    return content


async def _parts(dashboard: Dashboard, visit: Visit, message_id: str) -> Parts:
    """Taken apart; in a thread when that takes long.  Cancelled, the thread ends by itself and is not waited for."""
    content = await _content(visit, message_id)
    if not content.is_spooled and content.size <= IN_LOOP_OCTETS:
        return take_apart(content.data)

    def work() -> Parts:
        return take_apart(b"".join(content.chunks()))

    return await in_thread(
        work, abandon_on_cancel=True, limiter=dashboard.extras.get("reading") or trio.CapacityLimiter(1)
    )


def _curl(dashboard: Dashboard, found: dict[str, Any], parts: Parts | None) -> str:
    """The command that sends the same again."""
    to = [r["address"] for r in found["recipient_rows"] if r["kind"] == "to"] or [
        r["address"] for r in found["recipient_rows"]
    ]
    fields: dict[str, Any] = {"to": to if len(to) > 1 else "".join(to), "from": found["sender"]}
    fields |= {"subject": found["subject"], "text": (parts.text if parts else None) or "…"}
    return curl(place_of(dashboard.settings(), dashboard.public_url()), fields)


def _mount_content(group: Pages, dashboard: Dashboard) -> None:
    @group.get("/logs/<message_id>/html")
    async def html(visit: Visit, message_id: str) -> Response:
        parts = await _parts(dashboard, visit, message_id)
        if parts.html is None:
            raise NotFound("This message has no HTML.")
        return framed(parts.html, FRAME_POLICY)

    @group.get("/logs/<message_id>/raw")
    async def raw(visit: Visit, message_id: str) -> Response:
        content = await _content(visit, message_id)
        return _download(Stream(_chunks(content)), f"{message_id}.eml", "message/rfc822")

    @group.get("/logs/<message_id>/attachments/<int:n>")
    async def attachment(visit: Visit, message_id: str, n: int) -> Response:
        parts = await _parts(dashboard, visit, message_id)
        found = next((a for a in parts.attachments if a.n == n), None)
        if found is None:
            raise NotFound("This message has no such attachment.")
        # Never as what it says it is: the browser is to save it, not to show it.
        return _download(Response(found.octets), found.name, "application/octet-stream")


def _download(response: Response, name: str, content_type: str) -> Response:
    response.headers.update(HEADERS)
    response.headers["Content-Type"] = content_type
    response.headers["Content-Disposition"] = disposition(name)
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return response


async def _chunks(content: Content) -> AsyncGenerator[bytes, None]:
    """A spool is read piece by piece, each a matter of the page cache."""
    try:
        for chunk in content.chunks():
            yield chunk
    finally:
        content.close()


def _mount_deeds(group: Pages, dashboard: Dashboard) -> None:
    @group.post("/logs/<message_id>/retry")
    async def retry(visit: Visit, form: Form, message_id: str) -> Response:
        call = {"actor": visit.actor, "now_us": dashboard.now_us()}
        return await _do(visit, form, message_id, "It is tried again now.", rows.retry, call)

    @group.post("/logs/<message_id>/cancel")
    async def cancel(visit: Visit, form: Form, message_id: str) -> Response:
        keep_us = int(dashboard.settings().delivery.body_days * DAY_US)
        call = {"actor": visit.actor, "now_us": dashboard.now_us(), "body_keep_us": keep_us}
        return await _do(
            visit, form, message_id, "Cancelled; what had been paid for it was refunded.", rows.cancel, call
        )


async def _do(visit: Visit, form: Form, message_id: str, notice: str, deed: Any, call: dict[str, Any]) -> Response:
    """A change of the queue: audited in the same unit, told to whoever works on it."""

    def run(conn: Any) -> Any:
        try:
            return deed(conn, visit.account_id, _id(message_id), **call)
        except ValueError as error:
            return error

    done = await visit.store.write(run)
    if done is None:
        return visit.not_found()
    if isinstance(done, ValueError):
        # What a command line would do about it is the operator's.
        notice = sentence(done.sentence if isinstance(done, QueueRefused) else done)
    else:
        if done.get("is_paused"):
            notice = "It is due now, and is tried as soon as the pause is over."
        pool, outbox = (visit.dashboard.extras.get(name) for name in ("pool", "outbox"))
        if pool is not None:
            pool.wake()
        if outbox is not None:
            await outbox.tell_callers()
        await visit.store.announce("queue")
    return visit.redirect(with_query(f"/logs/{message_id}", view=form.get("view", "")), notice)
