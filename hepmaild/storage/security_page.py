# SPDX-License-Identifier: Apache-2.0
"""What the security pages read beside the rows of people: whose session, and the audit log searched and verified."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select

from hepmaild.storage import audit
from hepmaild.storage.audit import Fault
from hepmaild.storage.schema_people import audit as rows
from hepmaild.storage.schema_people import audit_head, login_session, user
from hepmaild.storage.search import contains

PIECE = 2000  # rows that one page looks through for a search: it says so and goes on from there


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows, newest first, `data` decoded.  older: the number to go on before; None: there is nothing older.
    is_cut: the search was ended before the page was full, so that no page takes long."""

    rows: list[dict[str, Any]]
    older: int | None
    is_cut: bool


def session_owner(conn: Connection, account_id: str, session_id: str) -> str | None:
    """The user of this account whose session this is, ended or not; None: it is none of the account's."""
    query = (
        select(user.c.id)
        .join(login_session, login_session.c.user_id == user.c.id)
        .where(login_session.c.id == session_id, user.c.account_id == account_id)
    )
    found: str | None = conn.execute(query).scalar_one_or_none()
    return found


def audit_page(
    conn: Connection, account_id: str, *, before_seq: int | None, kind: str, words: str, most: int
) -> AuditPage:
    """A page of an account's audit log.

    kind: only what concerns one thing ("key").  words: only rows that have this, in any case, in who, what or from
    where.
    """
    newest = conn.execute(select(audit_head.c.seq).where(audit_head.c.account_id == account_id)).scalar_one_or_none()
    top = int(newest or 0) + 1 if before_seq is None else before_seq
    is_search = bool(kind or words)
    floor = max(1, top - PIECE) if is_search else 1
    query = select(rows).where(rows.c.account_id == account_id, rows.c.seq < top, rows.c.seq >= floor)
    if kind:
        query = query.where(rows.c.action.startswith(f"{kind}.", autoescape=True))
    if words:
        columns = (rows.c.actor, rows.c.subject, rows.c.ip, rows.c.action)
        query = query.where(or_(*(contains(column, words) for column in columns)))
    found = conn.execute(query.order_by(rows.c.seq.desc()).limit(most + 1)).mappings().all()
    shown = [{**row, "data": json.loads(row["data"])} for row in found[:most]]
    if len(found) > most:
        return AuditPage(shown, int(shown[-1]["seq"]), is_cut=False)
    return AuditPage(shown, floor if floor > 1 else None, is_cut=floor > 1)


def verify_audit(conn: Connection, account_id: str) -> tuple[int, Fault | None]:
    """How many rows the audit log has, and what is wrong with its chain; None: it holds."""
    fault = audit.verify(conn, account_id)
    newest = conn.execute(select(audit_head.c.seq).where(audit_head.c.account_id == account_id)).scalar_one_or_none()
    return int(newest or 0), fault
