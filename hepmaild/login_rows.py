# SPDX-License-Identifier: Apache-2.0
"""What the store says of those who log in: a session's viewer, a one-time link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hepmaild.login import Link, Viewer
from hepmaild.storage import links, sessions, users

if TYPE_CHECKING:
    from sqlalchemy import Connection


def read_viewer(conn: Connection, session_id: str, now_us: int) -> tuple[Viewer, int] | None:
    """Who is logged in by this session, and when it ends; None: it has ended."""
    session = sessions.live(conn, session_id, now_us)
    user = None if session is None else users.by_id(conn, session.user_id)
    if session is None or user is None or not user.may_log_in:
        return None
    viewer = Viewer(
        user.user_id,
        user.account_id,
        user.email,
        user.name,
        user.scope,
        user.is_operator,
        session_id,
        user.plan,
        user.account_status,
    )
    return viewer, session.ends_at_us


def read_link(conn: Connection, token: str, now_us: int) -> Link | None:
    """What a link is for; None: it does not work (any more)."""
    found = links.find(conn, token, now_us)
    user = None if found is None else users.by_id(conn, found[0])
    if found is None or user is None:
        return None
    return Link(found[1], user.user_id, user.email, user.totp_since_us is not None)
