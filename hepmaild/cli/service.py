# SPDX-License-Identifier: Apache-2.0
"""`serve`, `check-config`, `db …`, `route …`, `completion`."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import trio

from hepmaild import memory
from hepmaild.cli import backend
from hepmaild.cli.common import Invocation, json_option, with_settings
from hepmaild.cli.output import CommandFailed, clean, print_json, print_pairs, print_table
from hepmaild.config import RouteKind, Settings

if TYPE_CHECKING:
    from hepmaild.daemon import Bound
    from hepmaild.storage.store import Store


@click.command()
@click.pass_obj
def serve(invocation: Invocation) -> None:
    """The daemon, in the foreground.

    It is ready when it logs event=ready and, under systemd, sends READY=1.  SIGTERM or SIGINT drains and ends it with
    exit status 0; SIGHUP reads certificate and settings again.
    """
    invocation.settings  # noqa: B018  # mistakes in them are told before anything is loaded
    run_daemon(invocation)


def run_daemon(
    invocation: Invocation, on_ready: Callable[[Bound, Store], Awaitable[None]] | None = None, *, reload: bool = True
) -> None:
    """Run the daemon until a signal ends it.  A schema that does not fit is a refusal."""
    from hepmaild import daemon
    from hepmaild.storage.migrate import SchemaUnfit

    async def main() -> None:
        await daemon.serve(invocation.settings, reload=invocation.load if reload else None, on_ready=on_ready)

    memory.give_back_large_blocks(os.environ)
    try:
        trio.run(main)
    except (daemon.SchemaDue, SchemaUnfit) as error:
        raise CommandFailed(str(error)) from None


@click.command("check-config")
@json_option
@click.pass_obj
def check_config(invocation: Invocation, as_json: bool) -> None:
    """Read the settings, open nothing, and print what was understood.

    Every mistake is told on standard error with its file, its key and what is allowed; exit status 2.
    """
    from hepmaild.config_docs import effective

    shown = effective(invocation.settings)
    if as_json:
        print_json(shown)
        return
    for section, value in shown.items():
        members = value if isinstance(value, list) else [value]
        for number, member in enumerate(members):
            title = f"[[{section}]] {number}" if isinstance(value, list) else f"[{section}]"
            click.echo(title)
            for key, setting in member.items():
                click.echo(f"  {key} = {clean(_flat(setting))}")


def _flat(value: Any) -> Any:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value


@click.group()
def db() -> None:
    """The database: its schema and a copy of it."""


@db.command("upgrade")
@json_option
@with_settings
def db_upgrade(settings: Settings, as_json: bool) -> None:
    """Bring the schema to this version; nothing to do is fine."""

    async def upgrade(store: Store) -> dict[str, Any]:
        from hepmaild.storage import migrate

        before = await store.read(migrate.current)
        due = await store.schema_is_due()
        if due:
            click.echo("upgrading the schema …", err=True)
            await store.upgrade()
        return {"before": before, "now": await store.read(migrate.current), "upgraded": due}

    done = backend.with_store(settings, upgrade, upgrade=False)
    if as_json:
        print_json(done)
    else:
        click.echo(f"the schema is {done['now']}" + ("" if done["upgraded"] else ": nothing to do"))


@db.command("check")
@json_option
@with_settings
def db_check(settings: Settings, as_json: bool) -> None:
    """Whether the schema is this version's; exit status 1 when an upgrade is due."""

    async def check(store: Store) -> dict[str, Any]:
        from hepmaild.storage import migrate

        due = await store.schema_is_due()
        return {"current": await store.read(migrate.current), "needed": migrate.head(), "due": due}

    found = backend.with_store(settings, check, upgrade=False)
    if as_json:
        print_json(found)
    elif not found["due"]:
        click.echo(f"the schema is {found['current']}, as needed")
    if found["due"]:
        raise CommandFailed(
            f"the schema is {found['current'] or 'not there yet'}, this version needs {found['needed']}: "
            "run `hepmaild db upgrade`"
        )


@db.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@with_settings
def db_backup(settings: Settings, file: Path, as_json: bool) -> None:
    """Copy a SQLite database to FILE, also while the daemon runs.

    FILE is replaced at the end, if it is an older copy, or empty.
    """
    _check_source(settings)

    async def copy(store: Store) -> None:
        from hepmaild.storage import migrate

        if store.is_sqlite and await store.read(migrate.current) is None:
            raise CommandFailed(f"the database is empty: there is nothing to copy; {_WHICH_DATABASE}")
        try:
            await store.backup(file, _show_progress if sys.stderr.isatty() else None)
        except ValueError as error:
            raise CommandFailed(str(error)) from None

    backend.with_store(settings, copy, upgrade=False)
    octets = file.stat().st_size
    if as_json:
        print_json({"file": str(file), "octets": octets})
    else:
        click.echo(f"copied {octets:,} octets to {file}")


_WHICH_DATABASE = "server.state_dir and database.url say which one is meant (`hepmaild check-config` shows them)"


def _check_source(settings: Settings) -> None:
    """Opening makes what is not there: a copy of that would look like a backup."""
    from hepmaild.storage.store import parse_url

    url = parse_url(settings.database.url)
    path = settings.server.state_dir / (url.database or "")
    if url.get_backend_name() == "sqlite" and not path.exists():
        raise CommandFailed(f"there is no database {path} to copy: {_WHICH_DATABASE}")


def _show_progress(left: int, total: int) -> None:
    done = 100 * (total - left) // max(total, 1)
    click.echo(f"\r{done} %\x1b[K\r", nl=False, err=True)


@click.group()
def route() -> None:
    """Routes: the ways out that the settings name."""


@route.command("list")
@json_option
@with_settings
def route_list(settings: Settings, as_json: bool) -> None:
    """All routes, and who uses them."""
    from hepmaild.route_test import next_hop

    rows = [
        {
            "name": r.name,
            "kind": str(r.kind),
            "next_hop": next_hop(r),
            "tls": str(r.tls) if r.kind is RouteKind.SMTP else None,
            "username": r.username or None,
            "connections": r.connections,
            "senders": [s.address for s in settings.sender if s.route == r.name],
        }
        for r in settings.route
    ]
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "kind", "next_hop", "tls", "username", "connections", "senders")
        print_table(rows, columns, empty="no route: add a [[route]] to the settings")


@route.command("test")
@click.argument("name")
@json_option
@with_settings
def route_test(settings: Settings, name: str, as_json: bool) -> None:
    """Connect to a route's next hop, start TLS, log in, say goodbye; print what was said.

    Exit status 1 when one of them fails.  Sends no mail.
    """
    from hepmaild.route_test import try_route

    chosen = next((r for r in settings.route if r.name == name), None)
    if chosen is None:
        known = ", ".join(r.name for r in settings.route) or "none"
        raise CommandFailed(f"there is no route {name!r} in the settings; there are: {known}")
    report = trio.run(try_route, settings, chosen, backend.now_us)
    show_test(report, f"route {name}", as_json)


def show_test(report: dict[str, Any], name: str, as_json: bool) -> None:
    """What `route_test` found, step by step.  Raises `CommandFailed` when one failed."""
    if as_json:
        print_json(report)
    else:
        before = None
        for at_us, who, text in report["steps"]:
            waited_ms = 0.0 if before is None else (at_us - before) / 1000
            before = at_us
            click.echo(f"{waited_ms:>9.1f} ms  {({'peer': '<', 'us': '>'}).get(who, '·')} {clean(text)}")
        print_pairs({name: value for name, value in report.items() if name != "steps"})
    if not report["ok"]:
        raise CommandFailed(f"{name}: {clean(report['error'])}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    hepmaild completion bash > /etc/bash_completion.d/hepmaild
    hepmaild completion zsh > ~/.zfunc/_hepmaild
    hepmaild completion fish > ~/.config/fish/completions/hepmaild.fish
    """
    from click.shell_completion import get_completion_class

    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(ctx.find_root().command, {}, "hepmaild", "_HEPMAILD_COMPLETE").source())
