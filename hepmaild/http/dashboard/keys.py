# SPDX-License-Identifier: Apache-2.0
"""API keys: minted, restricted, rotated, disabled, deleted (contract: api-keys.md).

A secret is in one answer only, the one to the form that made it: never in an address, a cookie, the log or a cache.
Every form names the row it was made for (`last`: its last five characters, where a repeated post would do harm), and
what was typed stays when it is refused.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from quart.wrappers import Response

from hepmaild.http.dashboard.forms import Form
from hepmaild.http.dashboard.frame import Dashboard, Pages, Visit, with_query
from hepmaild.http.dashboard.key_form import PERMISSIONS, KeyWish, read_wish, typed_of
from hepmaild.http.dashboard.overview import NO_SENDER, book_of
from hepmaild.http.dashboard.snippets import make_snippets, place_of
from hepmaild.http.dashboard.words import sentence
from hepmaild.mail.chaos import KINDS
from hepmaild.policy import SenderBook, plan_of
from hepmaild.storage import audit, keys
from hepmaild.storage.audit import Actor
from hepmaild.storage.figures import key_uses, windows

if TYPE_CHECKING:
    from sqlalchemy import Connection

ROWS = 100  # of a page
MAX_WORDS = 100
SHOWN = ("curl", "swaks", "nodemailer")  # what a fresh key is filled into


def pages(dashboard: Dashboard) -> Pages:
    """`/keys`, `/keys/new`, `/keys/ID` and what is done to a key."""
    group = Pages("keys", dashboard)
    _mount_list(group)
    _mount_key(group)
    _mount_states(group)
    return group


def _mount_list(group: Pages) -> None:
    @group.get("/keys")
    async def show_list(visit: Visit) -> Response:
        now_us = group.dashboard.now_us()
        rows = await visit.store.read(keys.list_of, visit.account_id)
        words = visit.arg("q").strip()[:MAX_WORDS]
        found = [row for row in rows if words.casefold() in row["name"].casefold() or words == row["last_five"]]
        begin = next((n for n, row in enumerate(found, 1) if row["id"] == visit.arg("behind")), 0)
        page = found[begin : begin + ROWS]
        calls = {row["id"]: row["calls"] for row in await visit.store.read(windows, visit.account_id, now_us)}
        shown = [{**row, "state": state_of(row, now_us), "calls": calls.get(row["id"], 0)} for row in page]
        return await visit.render(
            "keys/list.html",
            rows=shown,
            used=len(rows),
            most=_most(visit),
            words=words,
            is_long=len(rows) > ROWS,
            first=with_query("/keys", q=words) if begin else "",
            further=with_query("/keys", q=words, behind=page[-1]["id"]) if len(found) > begin + ROWS else "",
        )

    @group.get("/keys/new", needs="admin")
    async def show_new(visit: Visit) -> Response:
        return await _new_page(visit, await book_of(visit), typed_of(None), {})

    @group.post("/keys")
    async def mint(visit: Visit, form: Form) -> Response:
        book = await book_of(visit)
        wish, typed, errors = read_wish(form, set(book.by_key))
        if wish is None:
            return await _new_page(visit, book, typed, errors)
        secret = keys.new_secret()
        now_us = group.dashboard.now_us()
        try:
            made = await visit.store.write(
                mint_unit, visit.account_id, visit.actor, wish, str(uuid.uuid4()), secret, _most(visit), now_us
            )
        except keys.Refused as error:
            return await _new_page(visit, book, typed, {error.field: sentence(error)})
        return await _secret_page(visit, book, made["id"], made["name"], wish, secret, is_new=True)


def _mount_key(group: Pages) -> None:
    @group.get("/keys/<key_id>")
    async def show_key(visit: Visit, key_id: str) -> Response:
        row = await _find(visit, key_id)
        return await _key_page(visit, row, typed_of(row), {})

    @group.post("/keys/<key_id>")
    async def change(visit: Visit, form: Form, key_id: str) -> Response:
        row = await _find(visit, key_id)
        book = await book_of(visit)
        wish, typed, errors = read_wish(form, set(book.by_key) | set(row["senders"] or ()))
        if wish is None:
            return await _key_page(visit, row, typed, errors)
        try:
            done = await visit.store.write(
                change_unit, visit.account_id, visit.actor, key_id, wish, group.dashboard.now_us()
            )
        except keys.Refused as error:
            return await _key_page(visit, row, typed, {error.field: sentence(error)})
        if done is None:
            return visit.not_found()
        return visit.redirect(f"/keys/{key_id}", "Saved. It holds from the next call on." if done else "")

    @group.post("/keys/<key_id>/rotate")
    async def rotate(visit: Visit, form: Form, key_id: str) -> Response:
        row = await _find(visit, key_id)
        if form.get("last") != row["last_five"]:
            return visit.redirect(f"/keys/{key_id}", "The key was changed since then. Nothing was done.")
        secret = keys.new_secret()
        now_us = group.dashboard.now_us()
        last = form.get("last", "")
        done = await visit.store.write(rotate_unit, visit.account_id, visit.actor, key_id, last, secret, now_us)
        if done is None:
            return visit.not_found()
        restrictions = (row["permissions"], row["senders"], row["addresses"], row["expires_at_us"])
        wish = KeyWish(row["name"], *restrictions, row["chaos"])
        return await _secret_page(visit, await book_of(visit), key_id, row["name"], wish, secret, is_new=False)


def _mount_states(group: Pages) -> None:
    async def set_status(visit: Visit, key_id: str, status: str, action: str) -> None:
        now_us = group.dashboard.now_us()
        done = await visit.store.write(status_unit, visit.account_id, visit.actor, key_id, status, action, now_us)
        if not done:
            visit.not_found()

    @group.post("/keys/<key_id>/disable")
    async def disable(visit: Visit, _form: Form, key_id: str) -> Response:
        await set_status(visit, key_id, "disabled", "key.disable")
        return visit.redirect(f"/keys/{key_id}", "Disabled. It is refused on both doors from now on.")

    @group.post("/keys/<key_id>/enable")
    async def enable(visit: Visit, _form: Form, key_id: str) -> Response:
        await set_status(visit, key_id, "active", "key.enable")
        return visit.redirect(f"/keys/{key_id}", "Enabled. It works again.")

    @group.post("/keys/<key_id>/delete")
    async def delete(visit: Visit, form: Form, key_id: str) -> Response:
        row = await _find(visit, key_id)
        if form.get("confirm", "").strip() != row["name"]:
            error = f"Type the name of the key, {row['name']}, to delete it. Nothing was deleted."
            return await _key_page(visit, row, typed_of(row), {"confirm": error})
        await set_status(visit, key_id, "deleted", "key.delete")
        return visit.redirect("/keys", f"The key {row['name']} is deleted. The log keeps its name.")


# Pages


async def _new_page(visit: Visit, book: SenderBook, typed: dict[str, Any], errors: dict[str, str]) -> Response:
    used = len(await visit.store.read(keys.list_of, visit.account_id))
    return await visit.render(
        "keys/new.html",
        status=422 if errors else 200,
        typed=typed,
        errors=errors,
        permissions=PERMISSIONS,
        kinds=KINDS,
        senders=_choices(book, typed),
        used=used,
        most=_most(visit),
    )


async def _key_page(visit: Visit, row: dict[str, Any], typed: dict[str, Any], errors: dict[str, str]) -> Response:
    now_us = visit.dashboard.now_us()
    book = await book_of(visit)
    uses, is_more = await visit.store.read(key_uses, visit.account_id, row["id"], now_us)
    calls = {w["id"]: w["calls"] for w in await visit.store.read(windows, visit.account_id, now_us)}
    return await visit.render(
        "keys/key.html",
        status=422 if errors else 200,
        key=row,
        state=state_of(row, now_us),
        typed=typed,
        errors=errors,
        permissions=PERMISSIONS,
        kinds=KINDS,
        senders=_choices(book, typed),
        uses=uses,
        uses_are_more=is_more,
        calls=calls.get(row["id"], 0),
    )


async def _secret_page(
    visit: Visit, book: SenderBook, key_id: str, name: str, wish: KeyWish, secret: str, *, is_new: bool
) -> Response:
    allowed = [row for row in book.by_key.values() if wish.senders is None or row.address_key in wish.senders]
    default = book.default if book.default in allowed else next(iter(allowed), None)
    place = place_of(visit.dashboard.settings(), visit.dashboard.public_url())
    sender = NO_SENDER if default is None else default.address
    doors = {"curl": "http", "swaks": "smtp", "nodemailer": "smtp"}
    snippets = [
        s
        for s in make_snippets(place, sender, secret, visit.viewer.email)
        if s.name in SHOWN and (wish.permissions is None or doors[s.name] in wish.permissions)
    ]
    return await visit.render_once(
        "keys/secret.html",
        key_id=key_id,
        name=name,
        chaos=wish.chaos,
        secret=secret,
        snippets=snippets,
        place=place,
        is_new=is_new,
    )


def state_of(row: dict[str, Any], now_us: int) -> str:
    """active, disabled, or expired: what the doors would say."""
    if row["status"] == "active" and row["expires_at_us"] is not None and row["expires_at_us"] <= now_us:
        return "expired"
    return str(row["status"])


def _choices(book: SenderBook, typed: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Senders to choose from: key, address, and whether the account (still) has it."""
    found = [(row.address_key, row.address, True) for row in book.by_key.values()]
    known = {key for key, _, _ in found}
    return found + [(key, key, False) for key in typed["senders"] if key not in known]


def _most(visit: Visit) -> int:
    return plan_of(visit.dashboard.settings().plans, visit.viewer.plan).api_keys


async def _find(visit: Visit, key_id: str) -> dict[str, Any]:
    row = await visit.store.read(keys.of_account, visit.account_id, key_id)
    if row is None:
        visit.not_found()
    return row


# Units


def mint_unit(
    conn: Connection,
    account_id: str,
    actor: Actor,
    wish: KeyWish,
    key_id: str,
    secret: str,
    limit: int,
    now_us: int,
) -> dict[str, Any]:
    """A new key of the account.  Raises `keys.Refused`."""
    made = keys.mint(
        conn, account_id=account_id, key_id=key_id, secret=secret, limit=limit, now_us=now_us, **wish.values()
    )
    _note(conn, account_id, actor, "key.mint", made["name"], {"key_id": key_id, **wish.values()}, now_us)
    return made


def change_unit(
    conn: Connection, account_id: str, actor: Actor, key_id: str, wish: KeyWish, now_us: int
) -> dict[str, list[Any]] | None:
    """What changed; None: the account has no such key.  Raises `keys.Refused`."""
    if keys.of_account(conn, account_id, key_id, is_to_change=True) is None:
        return None
    changed = keys.change(conn, key_id, now_us=now_us, **wish.values())
    if changed:
        _note(conn, account_id, actor, "key.change", wish.name, {"key_id": key_id, **changed}, now_us)
    return changed


def rotate_unit(
    conn: Connection, account_id: str, actor: Actor, key_id: str, last: str, secret: str, now_us: int
) -> dict[str, Any] | None:
    """None: the account has no such key that ends with `last`."""
    row = keys.of_account(conn, account_id, key_id, is_to_change=True)
    if row is None or row["last_five"] != last:
        return None
    done = keys.rotate(conn, key_id, secret)
    _note(conn, account_id, actor, "key.rotate", row["name"], {"key_id": key_id, "before": last}, now_us)
    return done


def status_unit(
    conn: Connection, account_id: str, actor: Actor, key_id: str, status: str, action: str, now_us: int
) -> bool:
    """False: the account has no such key.  One that has this status already stays as it is."""
    row = keys.of_account(conn, account_id, key_id, is_to_change=True)
    if row is None:
        return False
    if row["status"] != status:
        keys.set_status(conn, key_id, status)
        _note(conn, account_id, actor, action, row["name"], {"key_id": key_id, "last_five": row["last_five"]}, now_us)
    return True


def _note(
    conn: Connection, account_id: str, actor: Actor, action: str, subject: str, data: dict[str, Any], now_us: int
) -> None:
    audit.note(conn, account_id=account_id, actor=actor, action=action, subject=subject, data=data, now_us=now_us)
