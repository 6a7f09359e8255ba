# SPDX-License-Identifier: Apache-2.0
"""Templates: written, previewed, compared, restored, deleted (contract: own-smtp-api.md "Templates").

The preview is a document of its own in a frame without scripts and without network.  It is filled by the function that
fills messages, on what the form holds; without a script a button asks for it, with one it follows the typing.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import partial
from typing import Any

import trio
from quart.wrappers import Response
from werkzeug.exceptions import BadRequest, NotFound

from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, framed, number_of
from hepmaild.http.dashboard.parts import without_links
from hepmaild.http.dashboard.snippets import curl, place_of
from hepmaild.http.dashboard.template_form import (
    Preview,
    Typed,
    names_of,
    preview_of,
    read_typed,
    typed_of,
    wish_of,
)
from hepmaild.storage import templates
from hepmaild.storage.templates import Refused, Sheet
from hepmaild.template_rules import MAX_REVISIONS, MAX_TEMPLATES, difference, read_samples
from hepmaild.threads import in_thread

SHOWN = 20  # revisions on the page of a template
# The frame holds another one with the HTML part: no script, no network, nothing but what it says itself.
PREVIEW_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)


def pages(dashboard: Dashboard) -> Pages:
    """`/templates`, `/templates/new`, `/templates/ID` with its revisions and previews."""
    group = Pages("templates", dashboard)
    _mount_list(group)
    _mount_preview(group)
    _mount_template(group)
    _mount_revisions(group)
    return group


def _mount_list(group: Pages) -> None:
    @group.get("/templates")
    async def show_list(visit: Visit) -> Response:
        rows = await visit.store.read(templates.list_of, visit.account_id)
        return await visit.render("templates/list.html", rows=rows, most=MAX_TEMPLATES)

    @group.get("/templates/new", needs="admin")
    async def show_new(visit: Visit) -> Response:
        return await _new_page(visit, typed_of(None), {})

    @group.post("/templates")
    async def create(visit: Visit, form: Form) -> Response:
        typed = read_typed(form)
        wish, errors = wish_of(typed)
        if errors:
            return await _new_page(visit, typed, errors)
        template_id = str(uuid.uuid4())
        now_us = group.dashboard.now_us()
        try:
            await visit.store.write(templates.create, visit.account_id, visit.actor, template_id, wish, now_us)
        except Refused as error:
            return await _new_page(visit, typed, {error.field: str(error)})
        return visit.redirect(f"/templates/{template_id}", f"The template {wish.name} is saved.")


def _mount_preview(group: Pages) -> None:
    @group.post("/templates/preview", needs="read_only")
    async def preview_typed(visit: Visit, form: Form) -> Response:
        typed = read_typed(form)
        return _frame(visit, preview_of(typed.wording, read_samples(typed.samples)[0]))

    @group.get("/templates/preview")
    async def preview_nothing(visit: Visit) -> Response:
        typed = typed_of(None)
        return _frame(visit, preview_of(typed.wording, read_samples(typed.samples)[0]))

    @group.get("/templates/<template_id>/preview")
    async def preview_saved(visit: Visit, template_id: str) -> Response:
        sheet = await _find(visit, template_id, _revision_of(visit.arg("revision")))
        return _frame(visit, preview_of(sheet.template.wording, sheet.samples))


def _frame(visit: Visit, preview: Preview) -> Response:
    shown = preview if preview.html is None else replace(preview, html=without_links(preview.html))
    html = visit.dashboard.templates.get_template("templates/preview.html").render(p=shown)
    return framed(html, PREVIEW_POLICY)


def _mount_template(group: Pages) -> None:
    @group.get("/templates/<template_id>")
    async def show_template(visit: Visit, template_id: str) -> Response:
        sheet = await _find(visit, template_id)
        return await _template_page(visit, sheet, typed_of(sheet), {})

    @group.post("/templates/<template_id>")
    async def save(visit: Visit, form: Form, template_id: str) -> Response:
        sheet = await _find(visit, template_id)
        typed = read_typed(form)
        base = _base_of(form)
        wish, errors = wish_of(typed)
        if errors:
            return await _template_page(visit, sheet, typed, errors, base)
        now_us = group.dashboard.now_us()
        try:
            done = await visit.store.write(
                templates.save, visit.account_id, visit.actor, template_id, wish, base, now_us
            )
        except Refused as error:
            return await _template_page(visit, sheet, typed, {error.field: str(error)}, base)
        if done is None:
            return visit.not_found()
        what = f"Saved as revision {done}." if done != base else "Saved; the wording is as it was."
        return visit.redirect(f"/templates/{template_id}", what)

    @group.post("/templates/<template_id>/delete")
    async def delete(visit: Visit, form: Form, template_id: str) -> Response:
        sheet = await _find(visit, template_id)
        name = sheet.template.name
        if form.get("confirm", "").strip() != name:
            errors = {"confirm": "This is not its name: type it exactly as it stands above."}
            return await _template_page(visit, sheet, typed_of(sheet), errors)
        now_us = group.dashboard.now_us()
        if not await visit.store.write(templates.remove, visit.account_id, visit.actor, template_id, now_us):
            return visit.not_found()
        return visit.redirect("/templates", f"The template {name} is deleted.")


def _mount_revisions(group: Pages) -> None:
    @group.get("/templates/<template_id>/revisions/<int:revision>")
    async def show_revision(visit: Visit, template_id: str, revision: int) -> Response:
        sheet = await _find(visit, template_id, revision)
        with_present = visit.arg("with") == "present"
        other = sheet.current if with_present else revision - 1
        against = await visit.store.read(templates.sheet, visit.account_id, template_id, other) if other else None
        facts = await visit.store.read(templates.revisions, template_id, before=revision + 1, limit=1)
        return await visit.render(
            "templates/revision.html",
            t=sheet.template,
            current=sheet.current,
            facts=facts[0] if facts else None,
            parts=await _compared(visit, sheet, against, is_later=with_present),
            other=other,
            with_present=with_present,
        )

    @group.post("/templates/<template_id>/revisions/<int:revision>/restore")
    async def restore(visit: Visit, form: Form, template_id: str, revision: int) -> Response:
        await _find(visit, template_id, revision)
        base, now_us = _base_of(form), group.dashboard.now_us()
        try:
            done = await visit.store.write(
                templates.restore, visit.account_id, visit.actor, template_id, revision, base, now_us
            )
        except Refused as error:
            return visit.redirect(f"/templates/{template_id}", str(error))
        if done is None:
            return visit.not_found()
        return visit.redirect(f"/templates/{template_id}", f"Revision {revision} is back, as revision {done}.")


async def _find(visit: Visit, template_id: str, revision: int | None = None) -> Sheet:
    try:
        is_id = str(uuid.UUID(template_id)) == template_id and (revision or 0) <= MAX_REVISIONS
    except ValueError:
        is_id = False
    sheet = None
    if is_id:
        sheet = await visit.store.read(templates.sheet, visit.account_id, template_id, revision)
    if sheet is None:
        raise NotFound
    return sheet


def _revision_of(text: str) -> int | None:
    """The number of a revision that a link or a form names, no larger than the column; None: it names none."""
    return number_of(text) if len(text) <= 7 else None


def _base_of(form: Form) -> int:
    """The revision that was changed.  Raises BadRequest."""
    base = _revision_of(form.get("base", ""))
    if base is None:
        raise BadRequest("The form does not say which revision it is about: load the page again.")
    return base


async def _compared(visit: Visit, sheet: Sheet, against: Sheet | None, *, is_later: bool) -> list[dict[str, Any]]:
    """In a thread, as it may take long.  Cancelled, the thread ends by itself and is not waited for."""
    return await in_thread(
        partial(_compare, sheet, against, is_later=is_later),
        abandon_on_cancel=True,
        limiter=visit.dashboard.extras.get("reading") or trio.CapacityLimiter(1),
    )


def _compare(sheet: Sheet, against: Sheet | None, *, is_later: bool) -> list[dict[str, Any]]:
    """The parts that differ, line by line; against None: there was nothing before."""
    found = []
    now = sheet.template.wording
    before = against.template.wording if against is not None else None
    for title, mine, theirs in (
        ("Subject", now.subject, before.subject if before else ""),
        ("HTML", now.html or "", (before.html or "") if before else ""),
        ("Plain text", now.text or "", (before.text or "") if before else ""),
    ):
        lines = difference(mine, theirs) if is_later else difference(theirs, mine)
        if lines:
            found.append({"title": title, "lines": lines})
    return found


async def _new_page(visit: Visit, typed: Typed, errors: dict[str, str]) -> Response:
    return await visit.render(
        "templates/new.html", status=422 if errors else 200, typed=typed, errors=errors, names=names_of(typed)
    )


async def _template_page(
    visit: Visit, sheet: Sheet, typed: Typed, errors: dict[str, str], base: int | None = None
) -> Response:
    before = _revision_of(visit.arg("before"))
    rows = await visit.store.read(templates.revisions, sheet.template.template_id, before=before, limit=SHOWN)
    return await visit.render(
        "templates/template.html",
        status=422 if errors else 200,
        t=sheet.template,
        sheet=sheet,
        typed=typed,
        errors=errors,
        names=names_of(typed),
        base=sheet.current if base is None else base,
        rows=rows,
        before=before,
        curl=_curl(visit, sheet),
    )


def _curl(visit: Visit, sheet: Sheet) -> str:
    """The call that sends this template."""
    place = place_of(visit.dashboard.settings(), visit.dashboard.public_url())
    fields = {"to": "you@example.com", "templateKey": sheet.template.key, "variables": sheet.samples}
    return curl(place, fields)
