# SPDX-License-Identifier: Apache-2.0
"""The Logs page: every message of the account, newest first, searched by one box.  The address holds the whole view."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from quart.wrappers import Response

from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, with_query
from hepmaild.http.dashboard.overview import NO_SENDER, book_of
from hepmaild.http.dashboard.snippets import Snippet, make_snippets, place_of
from hepmaild.search_words import DOORS, FIELDS, STATES, Search, SearchProblem, parse
from hepmaild.storage import live as live_rows
from hepmaild.storage import search as rows
from hepmaild.storage.search import Found, Place


def pages(dashboard: Dashboard) -> Pages:
    """`/logs`, and `/live/session`, by which a page that lost its connection renews its cookies."""
    group = Pages("logs", dashboard)

    @group.get("/logs")
    async def logs(visit: Visit) -> Response:
        text = visit.arg("q").strip()
        found, search, problem, seq = Found([], None, None), Search(), "", 0
        before, after = Place.parse(visit.arg("before")), Place.parse(visit.arg("after"))
        try:
            search = parse(text, dashboard.now_us())
        except SearchProblem as error:
            problem = str(error)
        else:
            seq, found = await visit.store.read(_look, visit.account_id, search, before, after)
        return await visit.render(
            "logs/list.html",
            status=400 if problem else 200,
            text=text,
            problem=problem,
            found=found,
            seq=seq,
            chips=[(str(term), url(search.without(n))) for n, term in enumerate(search.terms)],
            older=url(text, before=found.older) if found.older else "",
            newer=url(text, after=found.newer) if found.newer else "",
            first=url(text),
            is_newest=before is None and after is None,
            export=url(text, path="/logs/export"),
            fields=FIELDS,
            states=STATES,
            doors=DOORS,
            snippets=await _snippets(visit) if not text and not found.lines else (),
        )

    @group.get("/live/session")
    async def session(visit: Visit) -> Response:
        del visit
        return Response("", status=204)

    return group


async def _snippets(visit: Visit) -> list[Snippet]:
    """curl and swaks, for an account that has not sent anything."""
    sender = (await book_of(visit)).default
    place = place_of(visit.dashboard.settings(), visit.dashboard.public_url())
    return make_snippets(place, NO_SENDER if sender is None else sender.address)[:2]


def _look(conn: Any, account_id: str, search: Search, before: Place | None, after: Place | None) -> tuple[int, Found]:
    return live_rows.resume_point(conn), rows.find(conn, account_id, search, before=before, after=after)


def url(text: str, *, before: Place | None = None, after: Place | None = None, path: str = "/logs") -> str:
    """The address of a view."""
    return with_query(path, q=text, before=before, after=after)


def view(query: str) -> str:
    """The address of the view that a query string asks for; what else is in it is left out."""
    asked = dict(parse_qsl(query))
    before, after = (Place.parse(asked.get(name, "")) for name in ("before", "after"))
    return url(asked.get("q", ""), before=before, after=after)
