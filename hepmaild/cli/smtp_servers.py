# SPDX-License-Identifier: Apache-2.0
"""`hepmaild smtp-server …`: the SMTP servers that accounts bring along (contract: own-smtp-api.md)."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import trio

from hepmaild.cli import backend
from hepmaild.cli.common import EMAIL, json_option, read_line, with_settings
from hepmaild.cli.output import CommandFailed, print_json, print_pairs, print_table
from hepmaild.cli.service import show_test
from hepmaild.config import Settings
from hepmaild.server_rules import MAX_PASSWORD, TLS_MODES, ServerWish, check_password, leads_elsewhere, read_server

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.storage.store import Store

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS = ("id", "account", "name", "host", "port", "tls", "username", "address", "daily_cap", "default", "paused")
_FIELDS = ("name", "host", "port", "tls", "username", "address", "from_name", "daily_cap")


@click.group("smtp-server")
def smtp_server() -> None:
    """SMTP servers of accounts: POST /v1/emails, and whatever has their address in From, leaves by them.

    Passwords are sealed in the database and shown to nobody.  All changes hold from the next attempt on.
    """


def _options(command: F) -> F:
    """What a server is.  All optional here; what must be there is said by the rules."""
    for option in reversed(
        (
            click.option("--name", metavar="TEXT", help="What people call it; unique in the account."),
            click.option("--host", metavar="HOST", help="Its name or IP address."),
            click.option("--port", metavar="N", help="Its port; default: 587, 465 or 25, by --tls."),
            click.option("--tls", type=click.Choice(list(TLS_MODES)), help="TLS towards it; default: starttls."),
            click.option("--username", metavar="TEXT", help="Log in with this name; without it there is no login."),
            click.option("--address", metavar="EMAIL", help="The address for From, where the user name is none."),
            click.option("--from-name", metavar="TEXT", help="The display name for From."),
            click.option("--daily-cap", metavar="N", help="Messages in any rolling 24 hours; 0: no limit."),
            click.option("--password-stdin", is_flag=True, help="Read the password from standard input."),
            json_option,
        )
    ):
        command = option(command)
    return command


@smtp_server.command("add")
@click.argument("email", type=EMAIL)
@_options
@with_settings
def server_add(settings: Settings, email: str, password_stdin: bool, as_json: bool, **typed: str | None) -> None:
    """Add a server to an account, as many as its plan allows.

    \b
    hepmaild smtp-server add me@example.com --name shop --host smtp.example.com --username shop@example.com
    pass show shop | hepmaild smtp-server add me@example.com --name shop … --password-stdin
    """
    from hepmaild.policy import plan_of
    from hepmaild.storage import accounts
    from hepmaild.storage import smtp_server_units as units

    wish = _read(typed, has_password=True)
    password = _read_password(from_stdin=password_stdin) if wish.username else None
    server_id = str(uuid.uuid4())

    def add(conn: Connection, sealed: bytes | None) -> dict[str, Any]:
        owner = accounts.find(conn, email)
        limit = plan_of(settings.plans, owner["plan"]).smtp_servers
        return units.add(conn, backend.actor(), owner["id"], server_id, wish, sealed, limit, backend.now_us())

    _show(_write_sealed(settings, server_id, password, add), as_json)


@smtp_server.command("edit")
@click.argument("server_id", metavar="ID")
@_options
@with_settings
def server_edit(settings: Settings, server_id: str, password_stdin: bool, as_json: bool, **typed: str | None) -> None:
    """Change a server; what is not given stays.  Another host, port, user name or TLS needs the password again.

    What waits for it is tried again at once.
    """
    from hepmaild.storage import smtp_server_units as units
    from hepmaild.storage import smtp_servers as rows

    before = backend.read(settings, rows.find, None, server_id)
    given = {name: value for name, value in typed.items() if value is not None}
    kept = {name: str(before[name]) for name in _FIELDS}
    if "tls" in given and "port" not in given:
        kept["port"] = ""
    if "username" in given and "address" not in given:
        kept["address"] = ""
    wish = _read({**kept, **given}, has_password=True)
    needs = bool(wish.username) and (not before["has_password"] or leads_elsewhere(before, wish))
    password = _read_password(from_stdin=password_stdin) if password_stdin or needs else None

    def change(conn: Connection, sealed: bytes | None) -> dict[str, Any]:
        units.change(conn, backend.actor(), None, server_id, wish, sealed, backend.now_us())
        return rows.find(conn, None, server_id)

    made = _write_sealed(settings, server_id, password, change)
    _hurry(settings, server_id)
    _show(made, as_json)


@smtp_server.command("list")
@click.argument("email", type=EMAIL, required=False)
@json_option
@with_settings
def server_list(settings: Settings, email: str | None, as_json: bool) -> None:
    """All servers, or those of one account."""
    from hepmaild.storage import accounts
    from hepmaild.storage import smtp_servers as rows

    def find(conn: Connection) -> list[dict[str, Any]]:
        owner = None if email is None else accounts.find(conn, email)["id"]
        return rows.list_of(conn, owner)

    found = [_shown(row) for row in backend.read(settings, find)]
    if as_json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, empty="no SMTP server yet: hepmaild smtp-server add EMAIL --name N --host HOST")


@smtp_server.command("show")
@click.argument("server_id", metavar="ID")
@json_option
@with_settings
def server_show(settings: Settings, server_id: str, as_json: bool) -> None:
    """One server, without its password."""
    from hepmaild.storage import smtp_servers as rows

    _show(backend.read(settings, rows.find, None, server_id), as_json)


@smtp_server.command("test")
@click.argument("server_id", metavar="ID")
@json_option
@with_settings
def server_test(settings: Settings, server_id: str, as_json: bool) -> None:
    """Connect, start TLS, log in, say goodbye; print what was said.

    Exit status 1 when one of them fails.  Sends no mail.
    """
    from hepmaild.own_servers import open_credentials, route_from
    from hepmaild.route_test import try_server
    from hepmaild.storage import smtp_servers as rows
    from hepmaild.vault import Vault

    row = backend.read(settings, rows.sealed_row, server_id)
    if row is None:
        raise CommandFailed(f"there is no SMTP server {server_id}")
    route = route_from(row, settings.own_smtp)
    credentials = open_credentials(Vault(settings.server.state_dir), route)
    show_test(trio.run(try_server, settings, route, credentials, backend.now_us), f"server {row.name}", as_json)


@smtp_server.command("default")
@click.argument("server_id", metavar="ID")
@json_option
@with_settings
def server_default(settings: Settings, server_id: str, as_json: bool) -> None:
    """Have calls that name no server use this one."""
    from hepmaild.storage import smtp_server_units as units

    made = backend.write(settings, backend.KEYS, units.make_default, backend.actor(), None, server_id, backend.now_us())
    _show(made, as_json)


@smtp_server.command("pause")
@click.argument("server_id", metavar="ID")
@click.option("--note", default="paused by the operator", show_default=True, help="Why.")
@json_option
@with_settings
def server_pause(settings: Settings, server_id: str, note: str, as_json: bool) -> None:
    """Keep mail from leaving by a server.  Mail is accepted and waits, up to its expiry.

    Its account sees it, and can neither end it nor remove the server.
    """
    from hepmaild.storage import smtp_server_units as units

    arguments = (backend.actor(), None, server_id, backend.now_us(), note[:500])
    _show(backend.write(settings, backend.QUEUE, units.pause, *arguments), as_json)


@smtp_server.command("resume")
@click.argument("server_id", metavar="ID")
@json_option
@with_settings
def server_resume(settings: Settings, server_id: str, as_json: bool) -> None:
    """End a pause, whoever made it."""
    from hepmaild.storage import smtp_server_units as units

    made = backend.write(settings, backend.QUEUE, units.resume, backend.actor(), None, server_id, backend.now_us())
    _show(made, as_json)


@smtp_server.command("remove")
@click.argument("server_id", metavar="ID")
@json_option
@with_settings
def server_remove(settings: Settings, server_id: str, as_json: bool) -> None:
    """Take a server and its sender away.  What waits for it fails, and is refunded."""
    from hepmaild.storage import smtp_server_units as units

    gone = backend.write(settings, backend.QUEUE, units.remove, backend.actor(), None, server_id, backend.now_us())
    _hurry(settings, server_id)
    if as_json:
        print_json({"id": server_id, "name": gone["name"], "removed": True})
    else:
        click.echo(f"{gone['name']} is removed, and {gone['address']} is no sender any more")


def _read(typed: dict[str, str | None], *, has_password: bool) -> ServerWish:
    wish, errors = read_server({name: value or "" for name, value in typed.items()}, has_password=has_password)
    if wish is None:
        raise CommandFailed(" ".join(f"{name.replace('_', '-')}: {text}" for name, text in errors.items()))
    return wish


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        password = read_line(MAX_PASSWORD)
    elif sys.stdin.isatty():
        password = click.prompt("Password of the SMTP server", hide_input=True)
    else:
        raise click.UsageError("there is no terminal to ask for the password on: use --password-stdin")
    wrong = check_password(password) if password else "a login needs a password"
    if wrong:
        raise CommandFailed(wrong)
    return str(password)


def _write_sealed(
    settings: Settings, server_id: str, password: str | None, fn: Callable[[Connection, bytes | None], dict[str, Any]]
) -> dict[str, Any]:
    """Run `fn` as a unit with the sealed password.  The keys are not rotated meanwhile."""
    from hepmaild.own_servers import place_of
    from hepmaild.storage import sealed as sealed_rows
    from hepmaild.vault import HEAD_OCTETS, Vault

    if password is None:
        return backend.write(settings, backend.KEYS, fn, None)
    settings.server.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    vault = Vault(settings.server.state_dir)

    async def write(store: Store) -> dict[str, Any]:
        heads = await store.read(sealed_rows.heads, HEAD_OCTETS)
        if not heads:
            vault.make()
        vault.check(heads)
        made: dict[str, Any] = await store.write(
            backend.refusing(fn), vault.seal(place_of(server_id), password.encode("utf-8"))
        )
        await backend.tell(store, backend.KEYS)
        return made

    with vault.holding():
        return backend.with_store(settings, write)


def _hurry(settings: Settings, server_id: str) -> None:
    """What waits for its next attempt by a server is due now: it was mended, or is gone."""
    from hepmaild.own_routes import route_of
    from hepmaild.storage.queue import Where, retry_some

    async def run(store: Store) -> None:
        after: str | None = ""
        while after is not None:
            step = await store.write(retry_some, Where(route_of(server_id)), backend.now_us(), after)
            after = step.after
        await backend.tell(store, backend.QUEUE)

    backend.with_store(settings, run)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    hidden = ("account_id", "address_key", "is_default", "is_paused")
    shown = {name: value for name, value in row.items() if name not in hidden}
    return {**shown, "default": row["is_default"], "paused": row["is_paused"]}


def _show(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(_shown(row))
    else:
        print_pairs(_shown(row))
