# SPDX-License-Identifier: Apache-2.0
"""`hepmaild queue …` and `hepmaild log …`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from hepmaild.cli import backend
from hepmaild.cli.common import EMAIL, MESSAGE_ID, json_option, with_settings
from hepmaild.cli.output import CommandFailed, clean, instant, print_json, print_pairs, print_table, public, span
from hepmaild.config import DAY_US, RouteKind, Settings
from hepmaild.counted import are, counted
from hepmaild.mail.address import check_address, domain_of
from hepmaild.own_routes import ALL

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.storage.queue import Step
    from hepmaild.storage.store import Store


class _Domain(click.ParamType[str]):
    name = "domain"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return domain_of(check_address(f"x@{value}"))
        except ValueError:
            self.fail(f"{value!r} is not a domain, as in example.com", param, ctx)


ROUTE = click.option("--route", metavar="NAME", help="Only this route's.")
DESTINATION = click.option("--destination", metavar="DOMAIN", type=_Domain(), help="Only what goes to this domain.")


def _check_route(settings: Settings, route: str | None) -> None:
    """A name that is no route's: refused, unless something waits on it from before it was taken away."""
    from hepmaild.storage import queue as rows

    known = sorted(r.name for r in settings.route)
    if route is not None and route not in known and not backend.read(settings, rows.has_waiting, route):
        raise CommandFailed(f"there is no route {route!r}, and nothing waits on it; there are {', '.join(known)}")


@click.group()
def queue() -> None:
    """What waits to be delivered."""


@queue.command("stats")
@json_option
@with_settings
def queue_stats(settings: Settings, as_json: bool) -> None:
    """Waiting recipients by state, route and destination: how many, since when, why, and how fast they go."""
    from hepmaild.storage import stats as figures

    now_us = backend.now_us()
    stats = backend.read(settings, figures.stats, now_us)
    if as_json:
        print_json(stats)
        return
    columns = ("route", "destination", *_FIGURES, "why")
    print_table(_stats_table(stats, now_us), columns, empty="nothing waits", figures=_FIGURES)
    more = len(stats["by_destination"]) - len(stats["destinations"])
    if more > 0:
        click.echo(f"and {counted(more, 'more destination')} (--json counts all)")
    click.echo(f"\nunder way: {stats['leased']:,}")
    if stats["paused"]:
        click.echo("\npaused")
        print_table(stats["paused"], ("route", "destination", "since_at", "note"), empty="")
    if stats["own_paused"]:
        several = counted(stats["own_paused"], "SMTP server")
        click.echo(f"\n{several} of accounts {are(stats['own_paused'])} paused (`hepmaild smtp-server list`)")


_ALL = "(all)"
_COUNTS = ("waiting", "queued", "deferred", "capped", "held", "in_doubt")
_FIGURES = (*_COUNTS, "oldest", "p50", "p95", "tried/min", "sent/min")


def _stats_table(stats: Mapping[str, Any], now_us: int) -> Iterator[dict[str, Any]]:
    """Each route with its destinations below it, and all routes at the end; the times are how long something waits."""
    for route in stats["routes"]:
        yield _stats_line(route, now_us, destination=_ALL)
        for row in stats["destinations"]:
            if row["route"] == route["route"]:
                yield _stats_line(row, now_us)
    if stats["routes"]:
        total = {**stats["by_state"], "waiting": sum(stats["by_state"].values()), "in_doubt": stats["in_doubt"]}
        yield _stats_line({**total, "oldest_at": stats["oldest_at"]}, now_us, route=_ALL, destination=_ALL)


def _stats_line(row: Mapping[str, Any], now_us: int, **names: str) -> dict[str, Any]:
    oldest_s = None if row["oldest_at"] is None else (now_us - row["oldest_at"]) / 1e6
    ages = {"oldest": oldest_s, "p50": row.get("wait_p50_s"), "p95": row.get("wait_p95_s")}
    rates = {"tried/min": row.get("attempted_per_minute"), "sent/min": row.get("delivered_per_minute")}
    why = [text for text in ("paused" if row.get("paused") else "", row.get("last_error")) if text]
    return {
        **{name: row.get(name) for name in ("route", "destination")},
        **names,
        **{name: f"{row[name]:,}" for name in _COUNTS},
        **{name: None if age_s is None else span(age_s) for name, age_s in ages.items()},
        **{name: None if rate is None else f"{rate:,.0f}" for name, rate in rates.items()},
        "why": "; ".join(why),
    }


@queue.command("list")
@ROUTE
@DESTINATION
@click.option("--state", type=click.Choice(("queued", "deferred", "capped", "held")), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
@json_option
@with_settings
def queue_list(
    settings: Settings, route: str | None, destination: str | None, state: str | None, limit: int, as_json: bool
) -> None:
    """Waiting recipients, the next due first, those under way last."""
    from hepmaild.storage import queue as rows

    _check_route(settings, route)
    waiting = backend.read(settings, rows.list_waiting, limit, rows.Where(route, destination, state))
    if as_json:
        print_json(waiting)
    else:
        columns = ("message_id", "recipient", "route", "state", "attempts", "in_doubt", "next_attempt_at", "last_reply")
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
    columns = ("recipient", "kind", "state", "attempts", "in_doubt", "next_attempt_at", "last_reply")
    print_table(shown["recipients"], columns, empty="no recipients")


@queue.command("retry")
@click.argument("message_id", metavar="[ID]", type=MESSAGE_ID, required=False)
@ROUTE
@DESTINATION
@json_option
@with_settings
def queue_retry(
    settings: Settings, message_id: str | None, route: str | None, destination: str | None, as_json: bool
) -> None:
    """Try what waits for its next attempt, now: of one message, or all of a route or destination."""
    if message_id is None:
        _in_steps(settings, "retry", "due now", route, destination, as_json)
        return
    _one_or_many(route, destination)
    done = _change_message(settings, "retry", message_id)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{message_id} is due now" if done["recipients"] else f"{message_id} is being tried right now")


@queue.command("release")
@click.argument("message_id", metavar="[ID]", type=MESSAGE_ID, required=False)
@ROUTE
@DESTINATION
@json_option
@with_settings
def queue_release(
    settings: Settings, message_id: str | None, route: str | None, destination: str | None, as_json: bool
) -> None:
    """Let go what is held: of one message, or all of a route or destination."""
    if message_id is None:
        _in_steps(settings, "release", "released", route, destination, as_json)
        return
    _one_or_many(route, destination)
    done = _change_message(settings, "release", message_id)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{message_id}: {counted(done['released'], 'recipient')} released")


def _change_message(settings: Settings, deed: str, message_id: str) -> dict[str, Any]:
    from hepmaild.storage import queue_page

    keep_us = settings.delivery.body_days * DAY_US
    arguments = (backend.actor(), deed, message_id, backend.now_us(), keep_us)
    return backend.write(settings, backend.QUEUE, queue_page.change_message, *arguments)


def _change_route(settings: Settings, deed: str, route: str, destination: str, note: str = "") -> dict[str, Any]:
    from hepmaild.storage import queue_page

    arguments = (backend.actor(), deed, route, destination, note, backend.now_us())
    return backend.write(settings, backend.QUEUE, queue_page.change_route, *arguments)


def _one_or_many(*filters: str | None) -> None:
    if any(value is not None for value in filters):
        raise click.UsageError("give either an ID or --route and --destination, not both")


def _in_steps(
    settings: Settings, deed: str, what: str, route: str | None, destination: str | None, as_json: bool
) -> None:
    """Change many messages, a few hundred in each unit; the daemon begins with the first ones at once."""
    from hepmaild.storage import queue as rows
    from hepmaild.storage import queue_page
    from hepmaild.storage.queue import Where

    if route is None and destination is None:
        raise click.UsageError("give an ID, or --route or --destination for many")
    _check_route(settings, route)

    async def run(store: Store) -> dict[str, int]:
        done = {"messages": 0, "recipients": 0}
        after: str | None = ""
        while after is not None:
            made: Step = await store.write(rows.STEPS[deed], Where(route, destination), backend.now_us(), after)
            done["messages"] += made.messages
            done["recipients"] += made.recipients
            after = made.after
            if made.messages:
                await backend.tell(store, backend.QUEUE)
        named = (route or "", destination or "")
        await store.write(queue_page.note_bulk, backend.actor(), deed, *named, done, backend.now_us())
        return done

    done = backend.with_store(settings, run)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{what}: {counted(done['recipients'], 'recipient')} of {counted(done['messages'], 'message')}")


@queue.command("cancel")
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@json_option
@with_settings
def queue_cancel(settings: Settings, message_id: str, as_json: bool) -> None:
    """Give up everything of a message that still waits, and refund it."""
    done = _change_message(settings, "cancel", message_id)
    if as_json:
        print_json(done)
    else:
        refunded = counted(done["refunded"], "credit")
        click.echo(f"{message_id}: {counted(done['cancelled'], 'recipient')} cancelled, {refunded} refunded")


@queue.command("hold")
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@json_option
@with_settings
def queue_hold(settings: Settings, message_id: str, as_json: bool) -> None:
    """Keep everything of a message that still waits, until it is released or expires."""
    done = _change_message(settings, "hold", message_id)
    if as_json:
        print_json(done)
    else:
        click.echo(
            f"{message_id}: {counted(done['held'], 'recipient')} held until {instant(done['expires_at'])} at the latest"
        )


@queue.command("pause")
@click.option("--route", metavar="NAME", required=True, help="The route.")
@click.option("--destination", metavar="DOMAIN", type=_Domain(), help="Only this domain (routes of kind mx).")
@click.option("--note", default="", metavar="TEXT", help="Why, for whoever looks.")
@json_option
@with_settings
def queue_pause(settings: Settings, route: str, destination: str | None, note: str, as_json: bool) -> None:
    """Have nobody work on a route, or on one destination of it, until `resume`.

    Mail is accepted and waits; what expires meanwhile is refunded.  An attempt under way stops before its final dot.
    """
    if route == ALL:
        raise CommandFailed("servers of accounts are paused one by one: `hepmaild smtp-server pause ID`")
    _check_route(settings, route)
    kind = next((r.kind for r in settings.route if r.name == route), RouteKind.MX)
    if destination is not None and kind is not RouteKind.MX:
        raise CommandFailed(f"route {route!r} has one next hop for all destinations: pause the whole route")
    where = destination or ""
    done = _change_route(settings, "pause", route, where, note[:500])
    if as_json:
        print_json(done)
    else:
        click.echo(f"{_named(route, where)} is paused; `hepmaild queue resume` with the same options ends it")


@queue.command("resume")
@click.option("--route", metavar="NAME", required=True, help="The route.")
@click.option("--destination", metavar="DOMAIN", type=_Domain(), help="Only this domain.")
@json_option
@with_settings
def queue_resume(settings: Settings, route: str, destination: str | None, as_json: bool) -> None:
    """End a pause."""
    done = _change_route(settings, "resume", route, destination or "")
    if as_json:
        print_json(done)
        return
    click.echo(f"{_named(route, destination or '')} goes on")
    for rest in done["still_paused"]:
        click.echo(f"{_named(rest['route'], rest['destination'])} is still paused")


def _named(route: str, destination: str) -> str:
    return f"destination {clean(destination)} of route {clean(route)}" if destination else f"route {clean(route)}"


@click.group()
def log() -> None:
    """What was sent, and what happened to it."""


@log.command("tail")
@click.option("--account", "email", type=EMAIL, help="Only this account's.")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@click.option("--follow", "-f", "follows", is_flag=True, help="Go on with what happens, until interrupted.")
@json_option
@with_settings
def log_tail(settings: Settings, email: str | None, limit: int, follows: bool, as_json: bool) -> None:
    """The newest messages, the newest last; with --json one object a line.

    With --follow a new line for every new message and every change of one, as the running daemon tells them.
    """
    if follows:
        from hepmaild.cli.follow import follow

        follow(settings, email, limit, print_json if as_json else _print_line)
        return
    rows = backend.read(settings, _tail, email, limit)
    if as_json:
        for row in rows:
            print_json(row)
    else:
        columns = ("at", "message_id", "state", "door", "sender", "recipients", "subject", "ms")
        marks = ("chaos",) if any(row["chaos"] for row in rows) else ()
        print_table(rows, (*columns, *marks), empty="nothing was sent yet")


def _print_line(row: Mapping[str, Any]) -> None:
    """A line of `--follow`: what comes next is not known, so columns have fixed places."""
    more = f" +{row['more']}" if row["more"] else ""
    chaos = f"  (chaos: {row['chaos']})" if row["chaos"] else ""
    at = instant(row["at"])[:19].replace("T", " ")
    click.echo(
        f"{at}  {row['message_id']}  {clean(row['state']):<9}  {row['door']:<4}  "
        f"{clean(row['sender'])}  {clean(row['recipients'])}{more}  {clean(row['subject'])}{chaos}"
    )


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
    addresses = [row["recipient"] for row in shown["recipients"]]
    for event in shown["events"]:
        _print_event(event, addresses)
    click.echo("\nledger")
    print_table(shown["ledger"], ("at", "amount", "balance_after", "reason"), empty="nothing was booked")


def _print_event(event: Mapping[str, Any], addresses: Sequence[str]) -> None:
    """An event: its facts, its steps with the milliseconds since the step before, what an attempt came to.

    addresses: of the recipients, by their number.
    """
    data = event["data"]
    below = {"steps", "outcomes"}
    facts = {name: value for name, value in data.items() if name not in below and value not in (None, "", [], {})}
    described = "  ".join(f"{name}={_fact(name, value)}" for name, value in facts.items())
    click.echo(f"\n{instant(event['at'])}  {event['kind']}  {described}".rstrip())
    before = None
    for at_us, who, text in data.get("steps", []):
        waited_ms = 0.0 if before is None else (at_us - before) / 1000
        before = at_us
        arrow = {"peer": "<", "us": ">"}.get(who, "·")
        click.echo(f"  {waited_ms:>9.1f} ms  {arrow} {clean(text)}")
    for outcome in data.get("outcomes", []):
        reply = f" {clean(outcome['reply'])}" if outcome["reply"] else ""
        again = f", next attempt at {instant(outcome['retry_at'])}" if outcome["retry_at"] else ""
        click.echo(f"                = {clean(addresses[outcome['recipient']])}: {outcome['result']}{reply}{again}")


def _fact(name: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "; ".join(" ".join(clean(v) for v in public(member).values()) for member in value)
    return clean(public({name: value})[name]) if not isinstance(value, dict) else clean(public(value))
