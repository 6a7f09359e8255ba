# SPDX-License-Identifier: Apache-2.0
"""`hepmaild user …`: who may log in to an account, and `hepmaild audit …`: who changed what."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import click

from hepmaild.audit_words import in_words
from hepmaild.cli import backend
from hepmaild.cli.common import EMAIL, json_option, with_settings
from hepmaild.cli.output import CommandFailed, print_json, print_table, shown_once
from hepmaild.config import Settings, dashboard_url
from hepmaild.counted import counted, do

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.storage.store import Store

_ROLES = click.Choice(["owner", "admin", "read_only"])
_COLUMNS = ("email", "scope", "status", "has_password", "second_factor", "seen_at", "id")


@click.group()
def user() -> None:
    """The people of an account.  EMAIL is always the user's own, ACCOUNT that of the account."""


@user.command("list")
@click.argument("account", type=EMAIL)
@json_option
@with_settings
def user_list(settings: Settings, account: str, as_json: bool) -> None:
    """An account's users, oldest first."""
    rows = backend.read(settings, _list, account)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, _COLUMNS, empty="no user")


def _list(conn: Connection, account: str) -> list[dict[str, Any]]:
    from hepmaild.storage import accounts, users

    rows = users.list_of(conn, accounts.find(conn, account)["id"])
    return [{"second_factor": row.pop("totp_since_us") is not None, **row} for row in rows]


@user.command("add")
@click.argument("account", type=EMAIL)
@click.argument("email", type=EMAIL)
@click.option("--scope", type=_ROLES, default="read_only", show_default=True, help="What the user may do.")
@json_option
@with_settings
def user_add(settings: Settings, account: str, email: str, scope: str, as_json: bool) -> None:
    """Add a user, and make the link by which they choose a password.

    \b
    hepmaild user add me@example.com colleague@example.com --scope admin
    """
    from hepmaild.people import link_url

    user_id, token = backend.write(settings, backend.PEOPLE, _add, account, email, scope)
    link = link_url(dashboard_url(settings), token)
    lost = f"the user is there, but the link could not be printed: `hepmaild account link {email}` makes another"
    with shown_once(lost):
        if as_json:
            print_json({"id": user_id, "email": email, "scope": scope, "link": link})
        else:
            click.echo(f"{email} signs in once, within 24 hours, and chooses a password, at\n\n  {link}")


def _add(conn: Connection, account: str, email: str, scope: str) -> tuple[str, str]:
    from hepmaild.storage import accounts, links, users

    account_id, user_id, token = accounts.find(conn, account)["id"], str(uuid.uuid4()), links.new_token()
    now_us = backend.now_us()
    users.add(conn, account_id=account_id, user_id=user_id, email=email, scope=scope, now_us=now_us)
    links.make(conn, token=token, user_id=user_id, purpose=links.INVITE, now_us=now_us)
    backend.note(conn, account_id, "user.invite", email, {"scope": scope})
    return user_id, token


@user.command("scope")
@click.argument("email", type=EMAIL)
@click.argument("scope", type=_ROLES)
@json_option
@with_settings
def user_scope(settings: Settings, email: str, scope: str, as_json: bool) -> None:
    """Give a user another role; it counts at once."""
    backend.write(settings, backend.PEOPLE, _scope, email, scope)
    _tell(as_json, {"email": email, "scope": scope}, f"{email} is {scope} now")


def _scope(conn: Connection, email: str, scope: str) -> None:
    from hepmaild.storage import users

    found = users.find(conn, email)
    users.set_scope(conn, found.account_id, found.user_id, scope, backend.now_us())
    backend.note(conn, found.account_id, "user.scope", found.email, {"from": found.scope, "to": scope})


@user.command("operator")
@click.argument("email", type=EMAIL)
@click.argument("switch", type=click.Choice(["on", "off"]))
@json_option
@with_settings
def user_operator(settings: Settings, email: str, switch: str, as_json: bool) -> None:
    """Make a user an operator of this service, or no longer."""
    backend.write(settings, backend.PEOPLE, _operator, email, switch == "on")
    _tell(as_json, {"email": email, "operator": switch == "on"}, f"{email}: operator {switch}")


def _operator(conn: Connection, email: str, is_operator: bool) -> None:
    from hepmaild.storage import users

    found = users.find(conn, email)
    users.set_operator(conn, found.user_id, is_operator, backend.now_us())
    backend.note(conn, found.account_id, "user.operator", found.email, {"operator": is_operator})


@user.command("remove")
@click.argument("email", type=EMAIL)
@json_option
@with_settings
def user_remove(settings: Settings, email: str, as_json: bool) -> None:
    """Take a user out of their account; signed out at once.  The last owner stays."""
    backend.write(settings, backend.PEOPLE, _remove, email)
    _tell(as_json, {"email": email, "removed": True}, f"{email} is no user any more")


def _remove(conn: Connection, email: str) -> None:
    from hepmaild.storage import users

    found = users.find(conn, email)
    users.remove(conn, found.account_id, found.user_id)
    backend.note(conn, found.account_id, "user.remove", found.email, {"scope": found.scope})


def _tell(as_json: bool, row: dict[str, Any], sentence: str) -> None:
    if as_json:
        print_json(row)
    else:
        click.echo(sentence)


@click.group()
def audit() -> None:
    """Who changed what, from where: the audit log of an account, or of the service itself."""


@audit.command("list")
@click.argument("account", type=EMAIL, required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many rows.")
@json_option
@with_settings
def audit_list(settings: Settings, account: str | None, limit: int, as_json: bool) -> None:
    """The newest changes first; without ACCOUNT those that concern no single account."""
    rows = backend.read(settings, _history, account, limit)
    if as_json:
        print_json(rows)
        return
    shown = [in_words(row) for row in rows]
    for row in shown:
        row["details"] = "; ".join(f"{each.label}: {each.text}" for each in row["details"] if each.text)
    columns = ("at", "actor", "ip", "via", "what", "subject", "details")
    print_table(shown, columns, empty="nothing was changed yet", whole="details")


def _history(conn: Connection, account: str | None, limit: int) -> list[dict[str, Any]]:
    from hepmaild.storage import accounts
    from hepmaild.storage import audit as rows

    account_id = rows.SERVICE if account is None else accounts.find(conn, account)["id"]
    return rows.history(conn, account_id, limit=limit)


@audit.command("verify")
@json_option
@with_settings
def audit_verify(settings: Settings, as_json: bool) -> None:
    """Check that the chain of hashes of every audit log is whole.  Exit status 1 when one is not."""

    async def check_all(store: Store) -> tuple[int, list[dict[str, Any]]]:
        from hepmaild.storage import audit as rows

        chains = await store.read(rows.chains)
        faults = [await store.read(rows.verify, account_id) for account_id in chains]
        found = [{"account_id": f.account_id, "seq": f.seq, "why": f.why} for f in faults if f is not None]
        return len(chains), found

    checked, faults = backend.with_store(settings, check_all, patience_s=backend.LOOK_S)
    if as_json:
        print_json({"ok": not faults, "logs": checked, "faults": faults})
    elif not faults:
        click.echo(f"{counted(checked, 'audit log')} hold{'s' if checked == 1 else ''}")
    if faults:
        named = "; ".join(f"{fault['account_id'] or 'the service'}: {fault['why']}" for fault in faults[:5])
        raise CommandFailed(f"{len(faults):,} of {counted(checked, 'audit log')} {do(len(faults))} not hold: {named}")
