# SPDX-License-Identifier: Apache-2.0
"""`hepmaild account …` and `hepmaild credits …`."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Any

import click

from hepmaild.cli import backend
from hepmaild.cli.common import EMAIL, PLAN, json_option, read_line, with_settings
from hepmaild.cli.output import CommandFailed, print_hint, print_json, print_pairs, print_table, shown_once
from hepmaild.config import STANDARD_PLAN, Settings, dashboard_url
from hepmaild.counted import counted, do

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.storage.store import Store

_ANOTHER_LINK = "`hepmaild account link {}` makes a link to sign in by"
_COLUMNS = ("email", "balance", "plan", "status", "created_at", "id")


@click.group()
def account() -> None:
    """Accounts: who may send, on which plan."""


@account.command("add")
@click.argument("email", type=EMAIL)
@click.option("--password-stdin", is_flag=True, help="Read the owner's password from standard input.")
@click.option("--credits", "granted", type=click.IntRange(min=0), default=0, help="Credits to begin with.")
@click.option("--plan", type=PLAN, default=STANDARD_PLAN, show_default=True)
@click.option("--operator", is_flag=True, help="The owner is an operator of this service.")
@json_option
@with_settings
def account_add(
    settings: Settings, email: str, password_stdin: bool, granted: int, plan: str, operator: bool, as_json: bool
) -> None:
    """Make an account.

    \b
    hepmaild account add me@example.com --credits 1000
    """
    made, token = backend.write(
        settings,
        backend.KEYS,
        _add,
        email,
        plan,
        _read_password(email, from_stdin=True) if password_stdin else None,
        operator,
        granted,
        wants_link=not password_stdin and not as_json,
    )
    with shown_once(f"the account is there, but it could not be printed: {_ANOTHER_LINK.format(email)}"):
        _show(made, as_json)
        if token is not None:
            _show_link(settings, email, token)


def _add(
    conn: Connection,
    email: str,
    plan: str,
    password_hash: str | None,
    is_operator: bool,
    granted: int,
    *,
    wants_link: bool,
) -> tuple[dict[str, Any], str | None]:
    from hepmaild.storage import accounts, links

    user_id = str(uuid.uuid4())
    made = accounts.create(
        conn,
        account_id=str(uuid.uuid4()),
        user_id=user_id,
        email=email,
        plan=plan,
        password_hash=password_hash,
        is_operator=is_operator,
        credits_granted=granted,
        granted_by=backend.operator_name(),
        now_us=backend.now_us(),
    )
    token = None
    if wants_link:
        token = links.new_token()
        links.make(conn, token=token, user_id=user_id, purpose=links.SIGN_IN, now_us=backend.now_us())
    data = {"plan": plan, "credits": granted, "operator": is_operator}
    backend.note(conn, made["id"], "account.add", email, data)
    return made, token


def _show_link(settings: Settings, email: str, token: str) -> None:
    from hepmaild.people import link_url

    click.echo(f"\n{email} signs in once, within 24 hours, and chooses a password, at\n")
    click.echo(f"  {link_url(dashboard_url(settings), token)}\n")
    print_hint("Give it to nobody else.")


@account.command("link")
@click.argument("email", type=EMAIL)
@click.option("--drop-second-factor", is_flag=True, help="Also turn the second factor off: its device is lost.")
@json_option
@with_settings
def account_link(settings: Settings, email: str, drop_second_factor: bool, as_json: bool) -> None:
    """Make a link by which the user EMAIL signs in once and chooses a new password.

    The password there is stays good until the link is used; a link made before stops working.

    \b
    hepmaild account link me@example.com
    """
    from hepmaild.people import link_url

    token = backend.write(settings, backend.PEOPLE, _link, email, drop_second_factor)
    with shown_once(f"the link could not be printed, and those before it are void: {_ANOTHER_LINK.format(email)}"):
        if as_json:
            print_json({"email": email, "link": link_url(dashboard_url(settings), token)})
        else:
            _show_link(settings, email, token)


def _link(conn: Connection, email: str, drop_second_factor: bool) -> str:
    from hepmaild.members import reset_by_link
    from hepmaild.storage import links, users

    token = links.new_token()
    user = users.find(conn, email)
    reset_by_link(conn, backend.actor(), user.user_id, token, drop_second_factor, backend.now_us())
    return token


@account.command("list")
@json_option
@with_settings
def account_list(settings: Settings, as_json: bool) -> None:
    """All accounts, oldest first."""
    from hepmaild.storage import accounts

    rows = backend.read(settings, accounts.list_all)
    if as_json:
        print_json(rows)
    else:
        print_table(rows, _COLUMNS, empty="no account yet: hepmaild account add EMAIL --credits 1000")


@account.command("show")
@click.argument("email", type=EMAIL)
@json_option
@with_settings
def account_show(settings: Settings, email: str, as_json: bool) -> None:
    """One account."""
    from hepmaild.storage import accounts

    _show(backend.read(settings, accounts.find, email), as_json)


@account.command("suspend")
@click.argument("email", type=EMAIL)
@json_option
@with_settings
def account_suspend(settings: Settings, email: str, as_json: bool) -> None:
    """Refuse everything from this account from now on, on both doors."""
    _show(backend.write(settings, backend.KEYS, _set_status, email, "suspended"), as_json)


@account.command("resume")
@click.argument("email", type=EMAIL)
@json_option
@with_settings
def account_resume(settings: Settings, email: str, as_json: bool) -> None:
    """Let a suspended account send again."""
    _show(backend.write(settings, backend.KEYS, _set_status, email, "active"), as_json)


def _set_status(conn: Connection, email: str, status: str) -> dict[str, Any]:
    from hepmaild.storage import accounts

    changed = accounts.set_status(conn, email, status, backend.now_us())
    backend.note(conn, changed["id"], "account.resume" if status == "active" else "account.suspend", email)
    return changed


@account.command("password")
@click.argument("email", type=EMAIL)
@click.option("--password-stdin", is_flag=True, help="Read the new password from standard input.")
@json_option
@with_settings
def account_password(settings: Settings, email: str, password_stdin: bool, as_json: bool) -> None:
    """Give a user, such as the account's owner, another password; that signs them out everywhere.

    \b
    hepmaild account password me@example.com
    pass show hepmaild | hepmaild account password me@example.com --password-stdin
    """
    from hepmaild.storage import users

    backend.read(settings, users.find, email)
    kept = _read_password(email, from_stdin=password_stdin)
    _show(backend.write(settings, backend.PEOPLE, _set_password, email, kept), as_json)


def _set_password(conn: Connection, email: str, password_hash: str) -> dict[str, Any]:
    from hepmaild.storage import accounts

    found = accounts.set_password(conn, email, password_hash, backend.now_us())
    backend.note(conn, found["id"], "user.password", email, {"by": "operator"})
    return found


@account.command("plan")
@click.argument("email", type=EMAIL)
@click.argument("plan", type=PLAN)
@json_option
@with_settings
def account_plan(settings: Settings, email: str, plan: str, as_json: bool) -> None:
    """Put the account on another plan."""
    _show(backend.write(settings, backend.KEYS, _set_plan, email, plan), as_json)


def _set_plan(conn: Connection, email: str, plan: str) -> dict[str, Any]:
    from hepmaild.storage import accounts

    before = accounts.find(conn, email)
    changed = accounts.set_plan(conn, email, plan)
    backend.note(conn, changed["id"], "account.plan", email, {"from": before["plan"], "to": plan})
    return changed


def _show(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        print_pairs(row)


def _read_password(email: str, *, from_stdin: bool) -> str:
    """A good password, hashed; asked for on the terminal unless it comes from standard input."""
    from hepmaild import passwords

    if from_stdin:
        password = read_line(passwords.MAX_LENGTH)
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        raise click.UsageError("there is no terminal to ask for the password on: use --password-stdin")
    try:
        passwords.check_password(password, email=email)
    except ValueError as error:
        raise CommandFailed(str(error)) from None
    return passwords.hash_password(password)


@click.group()
def credits() -> None:  # noqa: A001  # the command's name
    """Credits: what accounts pay with, one a recipient."""


@credits.command("grant", context_settings={"ignore_unknown_options": True})
@click.argument("email", type=EMAIL)
@click.argument("amount", metavar="N", type=int)
@click.option("--note", help="Why; kept in the ledger.")
@json_option
@with_settings
def credits_grant(settings: Settings, email: str, amount: int, note: str | None, as_json: bool) -> None:
    """Add N credits to an account; a negative N takes some back, never below zero.

    \b
    hepmaild credits grant me@example.com 5000 --note "invoice 17"
    """
    balance = backend.write(settings, backend.KEYS, _grant, email, amount, note)
    if as_json:
        print_json({"balance": balance})
    else:
        click.echo(f"{email} has {counted(balance, 'credit')}")


def _grant(conn: Connection, email: str, amount: int, note: str | None) -> int:
    from hepmaild.storage import accounts
    from hepmaild.storage import credits as money

    found = accounts.find(conn, email)
    balance = money.grant(
        conn, found["id"], amount, granted_by=backend.operator_name(), note=note, now_us=backend.now_us()
    )
    backend.note(conn, found["id"], "credits.grant", email, {"amount": amount, "note": note, "balance": balance})
    return balance


@credits.command("show")
@click.argument("email", type=EMAIL)
@json_option
@with_settings
def credits_show(settings: Settings, email: str, as_json: bool) -> None:
    """The account's balance."""
    from hepmaild.storage import accounts

    balance = backend.read(settings, accounts.find, email)["balance"]
    if as_json:
        print_json({"balance": balance})
    else:
        click.echo(f"{balance:,}")


@credits.command("history")
@click.argument("email", type=EMAIL)
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many rows.")
@json_option
@with_settings
def credits_history(settings: Settings, email: str, limit: int, as_json: bool) -> None:
    """The account's ledger, newest first."""
    rows = backend.read(settings, _history, email, limit)
    if as_json:
        print_json(rows)
    else:
        print_table(
            rows,
            ("at", "amount", "balance_after", "reason", "message_id", "granted_by", "note"),
            empty="nothing yet: hepmaild credits grant EMAIL N",
        )


def _history(conn: Connection, email: str, limit: int) -> list[dict[str, Any]]:
    from hepmaild.storage import accounts
    from hepmaild.storage import credits as money

    return money.history(conn, accounts.find(conn, email)["id"], limit=limit)


@credits.command("verify")
@json_option
@with_settings
def credits_verify(settings: Settings, as_json: bool) -> None:
    """Check that every account's ledger adds up to its balance and that its chain of hashes is whole.

    Exit status 1 when one does not.
    """

    async def check_all(store: Store) -> tuple[int, list[dict[str, Any]]]:
        from hepmaild.storage import accounts
        from hepmaild.storage import credits as money

        rows = await store.read(accounts.list_all)
        faults = []
        for number, row in enumerate(rows, 1):
            fault = await store.read(money.verify, row["id"])
            if fault is not None:
                faults.append(
                    {"account_id": fault.account_id, "email": row["email"], "seq": fault.seq, "why": fault.why}
                )
            _progress(f"{number} of {len(rows)} accounts")
        return len(rows), faults

    accounts_checked, faults = backend.with_store(settings, check_all, patience_s=backend.LOOK_S)
    if as_json:
        print_json({"ok": not faults, "accounts": accounts_checked, "faults": faults})
    elif not faults:
        several = accounts_checked != 1
        ledgers = "the ledgers of" if several else "the ledger of"
        click.echo(f"{ledgers} {counted(accounts_checked, 'account')} hold{'' if several else 's'}")
    if faults:
        named = "; ".join(f"{fault['email']}: {fault['why']}" for fault in faults[:5])
        raise CommandFailed(
            f"{len(faults):,} of {counted(accounts_checked, 'ledger')} {do(len(faults))} not hold: {named}"
        )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{text}\x1b[K\r", nl=False, err=True)
