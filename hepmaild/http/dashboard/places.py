# SPDX-License-Identifier: Apache-2.0
"""The places of what is not there yet: pages that say so, and what can be done meanwhile."""

from __future__ import annotations

from quart.wrappers import Response

from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit


def pages(dashboard: Dashboard) -> Pages:
    """`/templates`."""
    group = Pages("places", dashboard)

    @group.get("/templates")
    async def templates(visit: Visit) -> Response:
        return await visit.render("places/templates.html")

    return group
