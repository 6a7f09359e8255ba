# SPDX-License-Identifier: Apache-2.0
"""Templates and their revisions (contract: own-smtp-api.md "Templates").

A revision is never changed: a save that changes the wording appends one, and so does a restore.  A send reads its
template in one statement, so what it uses is one revision as a whole, whatever is saved meanwhile.  Every change takes
the account's row first, so that two at once do not both find a key free.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from hepmaild.mail.template import Wording
from hepmaild.storage import audit
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema import account
from hepmaild.storage.schema_templates import template, template_revision
from hepmaild.template_rules import MAX_REVISIONS, MAX_TEMPLATES, TemplateWish


class Refused(ValueError):
    """A change that cannot be; field: which input it is about ("": none of them)."""

    def __init__(self, text: str, field: str = "") -> None:
        super().__init__(text)
        self.field = field


@dataclass(frozen=True, slots=True)
class Template:
    """A template with one of its revisions."""

    template_id: str
    key: str
    name: str
    revision: int
    wording: Wording


@dataclass(frozen=True, slots=True)
class Sheet:
    """What the editor shows.  current: the number of the present revision, which need not be the one in `template`."""

    template: Template
    current: int
    samples: dict[str, str]
    created_at_us: int
    modified_at_us: int


_FOUND = select(
    template.c.id,
    template.c.key,
    template.c.name,
    template.c.samples,
    template.c.revision,
    template.c.created_at_us,
    template.c.modified_at_us,
    template_revision.c.n,
    template_revision.c.subject,
    template_revision.c.html,
    template_revision.c.text,
).join(template_revision, template_revision.c.template_id == template.c.id)
_PRESENT = template_revision.c.n == template.c.revision


def find(conn: Connection, account_id: str, template_id: str | None, key: str | None) -> Template | None:
    """The account's template with this id and this key (None: any) as it is now; None: there is none."""
    query = _FOUND.where(_PRESENT, template.c.account_id == account_id)
    if template_id is not None:
        query = query.where(template.c.id == template_id)
    if key is not None:
        query = query.where(template.c.key == key)
    row = conn.execute(query.limit(1)).one_or_none()
    return None if row is None else _template(row)


def _template(row: Any) -> Template:
    return Template(row.id, row.key, row.name, row.n, Wording(row.subject, row.html, row.text))


def sheet(conn: Connection, account_id: str, template_id: str, revision: int | None = None) -> Sheet | None:
    """A template of the account with this revision (None: the present one); None: there is none."""
    mine = (template.c.account_id == account_id) & (template.c.id == template_id)
    which = _PRESENT if revision is None else template_revision.c.n == revision
    row = conn.execute(_FOUND.where(mine, which)).one_or_none()
    if row is None:
        return None
    return Sheet(_template(row), row.revision, json.loads(row.samples), row.created_at_us, row.modified_at_us)


def list_of(conn: Connection, account_id: str) -> list[dict[str, Any]]:
    """The account's templates by name: id, key, name, revision, subject, modified_at_us."""
    query = (
        select(
            template.c.id,
            template.c.key,
            template.c.name,
            template.c.revision,
            template.c.modified_at_us,
            template_revision.c.subject,
        )
        .join(template_revision, (template_revision.c.template_id == template.c.id) & _PRESENT)
        .where(template.c.account_id == account_id)
        .order_by(func.lower(template.c.name), template.c.id)
    )
    return [dict(row) for row in conn.execute(query).mappings()]


def revisions(
    conn: Connection, template_id: str, *, before: int | None = None, limit: int = 20
) -> list[dict[str, Any]]:
    """Revisions of a template, newest first: n, saved_by, at_us, restored_from; `before` pages on."""
    columns = (
        template_revision.c.n,
        template_revision.c.saved_by,
        template_revision.c.at_us,
        template_revision.c.restored_from,
    )
    query = select(*columns).where(template_revision.c.template_id == template_id)
    if before is not None:
        query = query.where(template_revision.c.n < before)
    return [dict(row) for row in conn.execute(query.order_by(template_revision.c.n.desc()).limit(limit)).mappings()]


def create(conn: Connection, account_id: str, actor: Actor, template_id: str, wish: TemplateWish, now_us: int) -> None:
    """A new template with its first revision.  Raises `Refused`.  wish: checked (`template_rules.check`)."""
    _lock(conn, account_id)
    mine = template.c.account_id == account_id
    if conn.execute(select(func.count()).select_from(template).where(mine)).scalar_one() >= MAX_TEMPLATES:
        raise Refused(f"The account has {MAX_TEMPLATES} templates, as many as it may: delete one first.")
    _check_free(conn, account_id, wish.key)
    conn.execute(
        insert(template).values(
            id=template_id,
            account_id=account_id,
            key=wish.key,
            name=wish.name,
            revision=1,
            samples=_json(wish),
            created_at_us=now_us,
            modified_at_us=now_us,
        )
    )
    _append(conn, template_id, 1, wish.wording, actor, now_us)
    data = {"template_id": template_id, "key": wish.key}
    audit.note(
        conn, account_id=account_id, actor=actor, action="template.make", subject=wish.name, data=data, now_us=now_us
    )


def save(
    conn: Connection, account_id: str, actor: Actor, template_id: str, wish: TemplateWish, base: int, now_us: int
) -> int | None:
    """Change a template; the number of its present revision, or None: the account has no such template.

    base: the revision that was edited.  Another wording is a new revision; the rest has none.  Raises `Refused`, also
    when somebody has saved one since: nobody's words are lost unseen.
    """
    before = _to_change(conn, account_id, template_id)
    if before is None:
        return None
    present = before.template
    if base != before.current and wish.wording != present.wording:
        text = f"Revision {before.current} was saved while you wrote. Copy what you need, and load the page again."
        raise Refused(text)
    if wish.key != present.key:
        _check_free(conn, account_id, wish.key)
    revision = present.revision
    if wish.wording != present.wording:
        revision += 1
        _check_room(revision)
        _append(conn, template_id, revision, wish.wording, actor, now_us)
    values = {"key": wish.key, "name": wish.name, "samples": _json(wish), "revision": revision}
    now = {"key": present.key, "name": present.name, "samples": before.samples, "revision": present.revision}
    changed = sorted(name for name, value in (values | {"samples": dict(wish.samples)}).items() if value != now[name])
    if changed:
        conn.execute(update(template).where(template.c.id == template_id).values(modified_at_us=now_us, **values))
        data = {"template_id": template_id, "key": wish.key, "revision": revision, "changed": changed}
        audit.note(
            conn,
            account_id=account_id,
            actor=actor,
            action="template.save",
            subject=wish.name,
            data=data,
            now_us=now_us,
        )
    return revision


def restore(
    conn: Connection, account_id: str, actor: Actor, template_id: str, old: int, base: int, now_us: int
) -> int | None:
    """Append a revision with the wording of an old one; its number, or None: there is no such revision.

    base: the present one, as whoever asks knows it.  Raises `Refused`.
    """
    before = _to_change(conn, account_id, template_id)
    wanted = sheet(conn, account_id, template_id, old)
    if before is None or wanted is None:
        return None
    if base != before.current:
        raise Refused(f"Revision {before.current} was saved meanwhile: look at it first.")
    if wanted.template.wording == before.template.wording:
        return before.current
    revision = before.current + 1
    _check_room(revision)
    _append(conn, template_id, revision, wanted.template.wording, actor, now_us, restored_from=old)
    conn.execute(update(template).where(template.c.id == template_id).values(revision=revision, modified_at_us=now_us))
    name = before.template.name
    data = {"template_id": template_id, "key": before.template.key, "revision": revision, "restored": old}
    audit.note(
        conn, account_id=account_id, actor=actor, action="template.restore", subject=name, data=data, now_us=now_us
    )
    return revision


def remove(conn: Connection, account_id: str, actor: Actor, template_id: str, now_us: int) -> bool:
    """Delete a template with its revisions; False: there is none."""
    before = _to_change(conn, account_id, template_id)
    if before is None:
        return False
    conn.execute(delete(template_revision).where(template_revision.c.template_id == template_id))
    conn.execute(delete(template).where(template.c.id == template_id))
    name = before.template.name
    data = {"template_id": template_id, "key": before.template.key, "revisions": before.current}
    audit.note(
        conn, account_id=account_id, actor=actor, action="template.delete", subject=name, data=data, now_us=now_us
    )
    return True


def _lock(conn: Connection, account_id: str) -> None:
    conn.execute(select(account.c.id).where(account.c.id == account_id).with_for_update(key_share=True)).one()


def _to_change(conn: Connection, account_id: str, template_id: str) -> Sheet | None:
    """The template as it is, and stays until the unit ends."""
    _lock(conn, account_id)
    return sheet(conn, account_id, template_id)


def _check_free(conn: Connection, account_id: str, key: str) -> None:
    if conn.execute(select(template.c.id).where(template.c.account_id == account_id, template.c.key == key)).first():
        raise Refused(f"The account has a template with the key {key} already: choose another.", "key")


def _check_room(revision: int) -> None:
    if revision > MAX_REVISIONS:
        raise Refused(f"The template has {MAX_REVISIONS} revisions, as many as it may: go on with a new template.")


def _append(
    conn: Connection,
    template_id: str,
    n: int,
    wording: Wording,
    actor: Actor,
    now_us: int,
    restored_from: int | None = None,
) -> None:
    conn.execute(
        insert(template_revision).values(
            template_id=template_id,
            n=n,
            subject=wording.subject,
            html=wording.html,
            text=wording.text,
            saved_by=actor.email,
            at_us=now_us,
            restored_from=restored_from,
        )
    )


def _json(wish: TemplateWish) -> str:
    return json.dumps(dict(wish.samples), ensure_ascii=False, separators=(",", ":"))
