# SPDX-License-Identifier: Apache-2.0
"""`hepmaild suppression …`: addresses that an account does not send to for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hepmaild.cli import backend
from hepmaild.cli.common import EMAIL, NumberRange, json_option, with_settings
from hepmaild.cli.output import instant, print_json, print_table
from hepmaild.config import DAY_US, Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

MAX_DAYS = 3650


@click.group()
def suppression() -> None:
    """Addresses that were refused for good too often, and are not tried for a while."""


@suppression.command("list")
@click.argument("email", type=EMAIL)
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
@json_option
@with_settings
def suppression_list(settings: Settings, email: str, limit: int, as_json: bool) -> None:
    """The suppressed addresses of the account EMAIL, the newest refusal first."""
    rows = backend.read(settings, _list, email, limit)
    if as_json:
        print_json(rows)
    else:
        columns = ("address", "suppressed_until_at", "refusals", "last_reply", "message_id")
        print_table(rows, columns, empty="no address is suppressed")


def _list(conn: Connection, email: str, limit: int) -> list[dict[str, Any]]:
    from hepmaild.storage import suppress

    return suppress.list_of(conn, _account_id(conn, email), backend.now_us(), limit)


@suppression.command("lift")
@click.argument("email", type=EMAIL)
@click.argument("address", type=EMAIL)
@json_option
@with_settings
def suppression_lift(settings: Settings, email: str, address: str, as_json: bool) -> None:
    """Let the account EMAIL send to ADDRESS again."""
    done = backend.write(settings, backend.KEYS, _lift, email, address)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{email} may send to {address} again")


def _lift(conn: Connection, email: str, address: str) -> dict[str, Any]:
    from hepmaild.storage import suppress

    account_id = _account_id(conn, email)
    done = suppress.lift(conn, account_id, address, backend.now_us())
    backend.note(conn, account_id, "suppression.lift", address)
    return done


@suppression.command("add")
@click.argument("email", type=EMAIL)
@click.argument("address", type=EMAIL)
@click.option("--days", type=NumberRange(0, MAX_DAYS, min_open=True), help="Default: delivery.suppress_days.")
@click.option("--reason", default="an operator said so", help="Shown to whoever sends to it.")
@json_option
@with_settings
def suppression_add(
    settings: Settings, email: str, address: str, days: float | None, reason: str, as_json: bool
) -> None:
    """Have the account EMAIL not send to ADDRESS for a while.

    \b
    hepmaild suppression add me@example.com gone@example.net --days 30 --reason "asked to be left alone"
    """
    for_us = int((settings.delivery.suppress_days if days is None else days) * DAY_US)
    done = backend.write(settings, backend.KEYS, _add, email, address, for_us, reason)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{address} is suppressed for {email} until {instant(done['suppressed_until_at'])}")


def _add(conn: Connection, email: str, address: str, for_us: int, reason: str) -> dict[str, Any]:
    from hepmaild.storage import suppress

    now_us = backend.now_us()
    account_id = _account_id(conn, email)
    done = suppress.add(conn, account_id, address, until_us=now_us + for_us, reason=reason, now_us=now_us)
    backend.note(conn, account_id, "suppression.add", address, {"reason": reason, "until_us": now_us + for_us})
    return done


def _account_id(conn: Connection, email: str) -> str:
    from hepmaild.storage import accounts

    return str(accounts.find(conn, email)["id"])
