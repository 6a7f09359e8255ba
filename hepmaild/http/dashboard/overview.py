# SPDX-License-Identifier: Apache-2.0
"""The first page: money, today's mail, the chart, the rate window, and first steps while nothing was sent."""

from __future__ import annotations

from quart.wrappers import Response

from hepmaild.config import DAY_US
from hepmaild.http.dashboard.charts import VIEWS, make_chart, sum_since
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit
from hepmaild.http.dashboard.snippets import make_snippets, place_of
from hepmaild.mail.address import key_of
from hepmaild.policy import SenderBook, make_book
from hepmaild.storage.directory import SenderRow, senders_of
from hepmaild.storage.figures import overview

NO_SENDER = "you@your-domain.example"


def pages(dashboard: Dashboard) -> Pages:
    """`/`."""
    group = Pages("overview", dashboard)

    @group.get("/")
    async def show(visit: Visit) -> Response:
        now_us = dashboard.now_us()
        view = VIEWS.get(visit.arg("show"), VIEWS["day"])
        today_us = now_us - now_us % DAY_US
        found = await visit.store.read(
            overview, visit.account_id, from_us=view.from_us(now_us), today_us=today_us, now_us=now_us
        )
        counts = found["counts"]
        snippets = []
        if found["is_new"]:
            book = await book_of(visit)
            sender = NO_SENDER if book.default is None else book.default.address
            snippets = make_snippets(place_of(dashboard.settings(), dashboard.public_url()), sender)
        return await visit.render(
            "overview/overview.html",
            chart=make_chart(view, counts.parts, now_us),
            views=VIEWS,
            today=sum_since(counts.parts, today_us),
            uncounted_before_us=counts.since_us,
            windows=found["windows"],
            is_new=found["is_new"],
            snippets=snippets,
        )

    return group


async def book_of(visit: Visit) -> SenderBook:
    """The senders that the visitor's account may use."""
    shipped = visit.dashboard.settings().sender
    from_settings = [SenderRow("", s.address, key_of(s.address), s.route, s.daily_cap, s.default) for s in shipped]
    return make_book(await visit.store.read(senders_of, visit.account_id), from_settings)
