# SPDX-License-Identifier: Apache-2.0
"""Every group of pages, mounted.  A group is a module with `pages(dashboard)`; a new one adds its line here."""

from __future__ import annotations

from typing import Any

from hepmaild.http.dashboard import (
    addresses,
    audit,
    export,
    keys,
    logs,
    message,
    operator_accounts,
    operator_health,
    operator_queue,
    operator_routes,
    overview,
    security,
    sign_in,
    smtp_servers,
    suppressions,
    templates,
    users,
)
from hepmaild.http.dashboard import credits as credit
from hepmaild.http.dashboard.frame import Dashboard
from hepmaild.http.live import LiveDoor

GROUPS: tuple[Any, ...] = (
    overview,
    keys,
    addresses,
    smtp_servers,
    credit,
    suppressions,
    templates,
    logs,
    message,
    export,
    security,
    users,
    audit,
    operator_accounts,
    operator_queue,
    operator_routes,
    operator_health,
)


def mount(app: Any, dashboard: Dashboard) -> None:
    """Register what the dashboard consists of."""
    app.register_blueprint(dashboard.assets.blueprint())
    app.register_blueprint(sign_in.pages(dashboard))
    for group in GROUPS:
        app.register_blueprint(group.pages(dashboard).blueprint)
    hub, lifecycle = dashboard.extras.get("live"), dashboard.extras.get("lifecycle")
    if hub is not None and lifecycle is not None:
        app.register_blueprint(LiveDoor(dashboard, hub, lifecycle).blueprint())
