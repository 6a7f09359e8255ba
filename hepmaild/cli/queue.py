# SPDX-License-Identifier: Apache-2.0
"""`hepmaild queue …` and `hepmaild log …`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from hepmaild.cli import backend
from hepmaild.cli.common import EMAIL, MESSAGE_ID, json_option, with_settings
from hepmaild.cli.output import clean, instant, print_json, print_pairs, print_table, public
from hepmaild.config import DAY_S, Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection


@click.group()
def queue() -> None:
    """What waits to be delivered."""


@queue.command("stats")
@json_option
@with_settings
def queue_stats(settings: Settings, as_json: bool) -> None:
    """Waiting recipients by state, route and destination, and since when the oldest waits."""
    from hepmaild.storage import queue as rows

    stats = backend.read(settings, rows.stats)
    if as_json:
        print_json(stats)
        return
    print_pairs({"oldest_at": stats["oldest_at"], "leased": stats["leased"], "in_doubt": stats["in_doubt"]})
    for name in ("by_state", "by_route", "by_destination"):
        counted = sorted(stats[name].items(), key=lambda pair: (-pair[1], pair[0]))
        click.echo(f"\n{name.replace('_', ' ')}")
        for label, count in counted[:30]:
            click.echo(f"  {count:>9,}  {clean(label)}")
        if len(counted) > 30:
            click.echo(f"  and {len(counted) - 30:,} more (--json has all)")


@queue.command("list")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
@json_option
@with_settings
def queue_list(settings: Settings, limit: int, as_json: bool) -> None:
    """Waiting recipients, the next due first."""
    from hepmaild.storage import queue as rows

    waiting = backend.read(settings, rows.list_waiting, limit)
    if as_json:
        print_json(waiting)
    else:
        columns = ("message_id", "recipient", "state", "attempts", "next_attempt_at", "last_reply")
        print_table(waiting, columns, empty="nothing waits")


@queue.command("show")
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@json_option
@with_settings
def queue_show(settings: Settings, message_id: str, as_json: bool) -> None:
    """A message with its recipients."""
    from hepmaild.storage import queue as rows

    shown = backend.read(settings, rows.show, message_id)
    if as_json:
        print_json(shown)
    else:
        _print_head(shown)


def _print_head(shown: Mapping[str, Any]) -> None:
    print_pairs({name: value for name, value in shown.items() if name not in {"recipients", "events", "ledger"}})
    click.echo()
    columns = ("recipient", "kind", "state", "attempts", "next_attempt_at", "last_reply")
    print_table(shown["recipients"], columns, empty="no recipients")


@queue.command("retry")
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@json_option
@with_settings
def queue_retry(settings: Settings, message_id: str, as_json: bool) -> None:
    """Try everything of a message that still waits, now."""
    from hepmaild.storage import queue as rows

    done = backend.write(settings, backend.QUEUE, rows.retry, message_id, backend.now_us())
    if as_json:
        print_json(done)
    else:
        click.echo(f"{message_id} is due now")


@queue.command("cancel")
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@json_option
@with_settings
def queue_cancel(settings: Settings, message_id: str, as_json: bool) -> None:
    """Give up everything of a message that still waits, and refund it."""
    from hepmaild.storage import queue as rows

    keep_us = settings.delivery.body_days * DAY_S * 1_000_000
    done = backend.write(settings, backend.QUEUE, rows.cancel, message_id, backend.now_us(), keep_us)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{message_id}: {done['cancelled']} recipients cancelled, {done['refunded']} credits refunded")


@click.group()
def log() -> None:
    """What was sent, and what happened to it."""


@log.command("tail")
@click.option("--account", "email", type=EMAIL, help="Only this account's.")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@json_option
@with_settings
def log_tail(settings: Settings, email: str | None, limit: int, as_json: bool) -> None:
    """The newest messages, the newest last; with --json one object a line."""
    rows = backend.read(settings, _tail, email, limit)
    if as_json:
        for row in rows:
            print_json(row)
    else:
        columns = ("at", "message_id", "state", "door", "sender", "recipients", "subject", "ms")
        print_table(rows, columns, empty="nothing was sent yet")


def _tail(conn: Connection, email: str | None, limit: int) -> list[dict[str, Any]]:
    from hepmaild.storage import accounts
    from hepmaild.storage import log as rows

    account_id = None if email is None else str(accounts.find(conn, email)["id"])
    return rows.tail(conn, account_id, limit)[::-1]


@log.command("show")
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@json_option
@with_settings
def log_show(settings: Settings, message_id: str, as_json: bool) -> None:
    """One message: recipients, every attempt, what was said on both legs, and the money."""
    from hepmaild.storage import log as rows

    shown = backend.read(settings, rows.show, message_id)
    if as_json:
        print_json(shown)
        return
    _print_head(shown)
    for event in shown["events"]:
        _print_event(event)
    click.echo("\nledger")
    print_table(shown["ledger"], ("at", "amount", "balance_after", "reason"), empty="nothing was booked")


def _print_event(event: Mapping[str, Any]) -> None:
    """An event: its facts, then its steps with the milliseconds since the step before."""
    data = event["data"]
    facts = {name: value for name, value in data.items() if name != "steps" and value not in (None, "", [], {})}
    described = "  ".join(f"{name}={_fact(name, value)}" for name, value in facts.items())
    click.echo(f"\n{instant(event['at'])}  {event['kind']}  {described}".rstrip())
    before = None
    for at_us, who, text in data.get("steps", []):
        waited_ms = 0.0 if before is None else (at_us - before) / 1000
        before = at_us
        arrow = {"peer": "<", "us": ">"}.get(who, "·")
        click.echo(f"  {waited_ms:>9.1f} ms  {arrow} {clean(text)}")


def _fact(name: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; ".join(" ".join(clean(v) for v in public(member).values()) for member in value)
    return clean(public({name: value})[name]) if not isinstance(value, dict) else clean(public(value))
