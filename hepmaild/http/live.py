# SPDX-License-Identifier: Apache-2.0
"""The websocket `/live`: what happens to messages, told to the pages and to `log tail --follow`.

    /live?q=SEARCH&since=SEQ        lines of the log as HTML, for the Logs page
    /live?message=ID&since=SEQ      that something happened to one message, for its page
    /live?format=json&since=SEQ     lines as JSON, for the command line (with a pass)

Every frame is a JSON object; `seq` in it is where to go on after a lost connection.  `resync` says that some was missed
and the page is to be read anew.  Lines are made by the page's own template, once for all who look at the same.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import trio
from quart import Blueprint, websocket
from werkzeug.exceptions import BadRequest, Forbidden, TooManyRequests, Unauthorized

from hepmaild.errors import StoreUnavailable
from hepmaild.http.call import STATE_KEY, ConnectionFacts
from hepmaild.http.dashboard.frame import ACCESS_COOKIE, Dashboard, is_ours, number_of
from hepmaild.http.dashboard.words import span, state
from hepmaild.lifecycle import Lifecycle
from hepmaild.live import Batch, Feed, LiveHub, Resync
from hepmaild.live_pass import check_pass
from hepmaild.mail.ids import is_message_id
from hepmaild.search_words import Search, SearchProblem, parse
from hepmaild.storage import search as rows

BEAT_S = 20.0  # a frame at least so often, so that both sides know that the line is good
SEND_S = 30.0  # a browser that takes no frame for so long is left
CLOSE_S = 2.0
WHOLE_LINES = 50  # in one frame; of the rest only the state
KEPT_FRAMES = 64
GOING_AWAY, POLICY, TRY_LATER, SIGNED_OUT = 1001, 1008, 1013, 4401


@dataclass(frozen=True, slots=True)
class View:
    """What one websocket looks at.  account_id None: all accounts.  session_id "": the command line."""

    account_id: str | None
    session_id: str
    search: Search
    message_id: str = ""
    as_json: bool = False


class Frames:
    """Frames that several readers want are made once.  All that look at the same get the same batches."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        self._made: OrderedDict[tuple[Any, ...], str | None] = OrderedDict()
        self._lock = trio.Lock()

    async def of(self, view: View, batch: Batch) -> str | None:
        """The frame; None: nothing of the batch is seen there.  Raises `StoreUnavailable`."""
        if view.message_id:
            seen = view.message_id in batch.ids
            return _json({"seq": batch.seq, "message": view.message_id}) if seen else None
        # The search, not its words: what `after:2h` means depends on when it was said.
        key = (view.account_id, view.search, view.as_json, batch.number)
        async with self._lock:
            if key not in self._made:
                self._made[key] = await (self._rows(view, batch) if view.as_json else self._lines(view, batch))
                while len(self._made) > KEPT_FRAMES:
                    self._made.popitem(last=False)
            return self._made[key]

    async def _rows(self, view: View, batch: Batch) -> str | None:
        lines = await self._dashboard.store.read(rows.matching, view.account_id, view.search, batch.ids)
        return _json({"seq": batch.seq, "messages": lines[::-1]}) if lines else None

    async def _lines(self, view: View, batch: Batch) -> str | None:
        lines, others = await self._dashboard.store.read(_lines_of, view.account_id, view.search, batch.ids)
        if not lines and not others:
            return None
        render = self._dashboard.templates.get_template("logs/line.html").module.line  # type: ignore[attr-defined]
        whole = [
            {"id": line["message_id"], "at": line["at"], "state": line["state"], "html": str(render(line))}
            for line in lines[:WHOLE_LINES]
        ]
        changed = [
            [line["message_id"], line["state"], str(state(line["state"])), _ms(line)]
            for line in [*lines[WHOLE_LINES:], *others]
        ]
        frame = {"seq": batch.seq, "lines": whole, "changed": changed, "more": max(0, len(lines) - WHOLE_LINES)}
        return _json(frame)


def _lines_of(conn: Any, account_id: str | None, search: Search, ids: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """The lines that fit the search; and the others, which may have fitted before."""
    lines = rows.matching(conn, account_id, search, ids)
    if not search.terms:
        return lines, []
    others = set(ids) - {line["message_id"] for line in lines}
    return lines, rows.matching(conn, account_id, Search(), others) if others else []


def _ms(line: dict[str, Any]) -> str:
    return "" if line["ms"] is None else span(line["ms"] / 1000)


def _json(frame: dict[str, Any]) -> str:
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":"))


class LiveDoor:
    """Serves `/live`."""

    def __init__(self, dashboard: Dashboard, hub: LiveHub, lifecycle: Lifecycle) -> None:
        self._dashboard = dashboard
        self._hub = hub
        self._lifecycle = lifecycle
        self._frames = Frames(dashboard)

    def blueprint(self) -> Blueprint:
        """To be mounted."""
        blueprint = Blueprint("live", __name__)
        blueprint.add_websocket("/live", "live", self._serve)
        return blueprint

    async def _serve(self) -> None:
        view = await self._admit()
        since = websocket.args.get("since", "")
        code = GOING_AWAY
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drop_words)
            nursery.start_soon(self._end_with_daemon, nursery.cancel_scope)
            try:
                async with self._hub.listen(view.account_id, number_of(since)) as (feed, seq):
                    await _send(_json({"seq": seq, "hello": True}))
                    code = await self._tell(view, feed)
            except StoreUnavailable:
                code = TRY_LATER
            nursery.cancel_scope.cancel()
        with trio.move_on_after(CLOSE_S):
            await websocket.close(code)

    async def _end_with_daemon(self, scope: trio.CancelScope) -> None:
        await self._lifecycle.draining.wait()
        scope.cancel()

    async def _tell(self, view: View, feed: Feed) -> int:
        """Send until the reader may not read any more, or does not; the code to close with."""
        beat_at = trio.current_time() + BEAT_S
        while True:
            item: Batch | Resync | None = None
            with trio.move_on_at(beat_at):
                item = await feed.take()
            is_beat = trio.current_time() >= beat_at  # also where there is always something to take
            is_due = feed.must_recheck or is_beat
            feed.must_recheck = False  # before the question: what changes while it is answered is asked about again
            if is_due and not await self._may_read(view):
                return SIGNED_OUT
            if is_beat:
                beat_at = trio.current_time() + BEAT_S
            if item is None:
                frame: str | None = _json({"beat": True}) if is_beat else None
            elif isinstance(item, Resync):
                frame = _json({"seq": item.seq, "resync": True})
            else:
                frame = await self._frames.of(view, item)
            if frame is not None and not await _send(frame):
                return POLICY

    async def _may_read(self, view: View) -> bool:
        if not view.session_id:
            return True
        viewer = await self._dashboard.people.viewer_in(view.session_id)
        return viewer is not None and viewer.account_id == view.account_id

    async def _admit(self) -> View:
        """Who asks for what; an HTTP error instead of a websocket for whoever must not."""
        facts: ConnectionFacts = websocket.scope["state"][STATE_KEY]
        if facts.over_limit:
            raise TooManyRequests
        arguments = websocket.args
        try:
            search = parse(arguments.get("q", ""), self._dashboard.now_us())
        except SearchProblem:
            raise BadRequest from None
        message_id = arguments.get("message", "")
        if message_id and not is_message_id(message_id):
            raise BadRequest
        scheme, _, token = websocket.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            opened = await check_pass(self._dashboard.store, token.strip(), self._dashboard.now_us)
            if opened is None:
                raise Unauthorized
            return View(opened.account_id, "", search, message_id, as_json=True)
        # Browsers send cookies wherever a page asks them to: only a page of ours may.
        origin = websocket.headers.get("Origin", "")
        if not is_ours(self._dashboard, origin, websocket.headers.get("Host", "")):
            raise Forbidden
        access = websocket.cookies.get(ACCESS_COOKIE, "")
        viewer = await self._dashboard.people.viewer_of(access) if access else None
        if viewer is None:
            raise Unauthorized
        return View(viewer.account_id, viewer.session_id, search, message_id)


async def _send(frame: str) -> bool:
    """Whether it was taken in time."""
    with trio.move_on_after(SEND_S) as sending:
        await websocket.send(frame)
    return not sending.cancelled_caught


async def _drop_words() -> None:
    """Pages have nothing to say; what they say all the same is read, so that their leaving is seen."""
    while True:
        await websocket.receive()
