# SPDX-License-Identifier: Apache-2.0
"""Operator: the doctor's checks with what to do about each red one, and live figures of the process.

The checks run when somebody presses the button, never by looking at the page.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape
from quart.wrappers import Response

from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit

BASE = "/operator/health"
OLD_S = 60.0
ORDER = ("fail", "warn", "ok", "skipped")


def pages(dashboard: Dashboard) -> Pages:
    """`/operator/health…`.  extras["operations"]: `operations.Operations`."""
    group = Pages("operator_health", dashboard)

    @group.get(BASE, needs="operator")
    async def show(visit: Visit) -> Response:
        operations: Any = dashboard.extras["operations"]
        report = operations.report
        checks = [] if report is None else sorted(report.checks, key=lambda check: ORDER.index(check.state))
        age_s = None if report is None else (dashboard.now_us() - report.began_at_us) / 1e6
        return await visit.render(
            "operator/health.html",
            report=report,
            checks=checks,
            ticked=ticked,
            counts={state: sum(check.state == state for check in checks) for state in ORDER},
            is_old=age_s is not None and age_s > OLD_S,
            vitals=await operations.vitals(),
        )

    @group.post(f"{BASE}/run", needs="operator")
    async def run(visit: Visit, form: Form) -> Response:
        del form
        operations: Any = dashboard.extras["operations"]
        report = await operations.examine()
        if report is None:
            return visit.redirect(BASE, "The checks still run: load this page again in a moment.")
        return visit.redirect(BASE)

    return group


def ticked(text: str) -> Markup:
    """A sentence in which `commands` stand between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    wrapped = (Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in enumerate(parts))
    return Markup("").join(wrapped)
