# SPDX-License-Identifier: Apache-2.0
"""`hepmaild key …` and `hepmaild sender …`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from hepmaild import key_rules
from hepmaild.cli import backend
from hepmaild.cli.common import EMAIL, json_option, with_settings
from hepmaild.cli.output import CommandFailed, print_hint, print_json, print_pairs, print_table, shown_once
from hepmaild.config import MAX_CAP, STANDARD_PLAN, SenderSettings, Settings
from hepmaild.mail.address import key_of
from hepmaild.mail.chaos import KINDS
from hepmaild.mail.submission import Permission

if TYPE_CHECKING:
    from sqlalchemy import Connection

EVERYTHING = "all"
_SHOWN_ONCE = "This key is shown only now; a lost one can only be rotated."


@click.group()
def key() -> None:
    """API keys: minted, restricted, rotated, disabled, deleted."""


@key.command("mint")
@click.argument("email", type=EMAIL)
@click.option("--name", required=True, help="1 to 100 characters, unique in the account.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice([str(p) for p in Permission]),
    help="What it may do; may be given several times. Default: everything.",
)
@click.option("--sender", "senders", multiple=True, type=EMAIL, help="Only this sender address; several times.")
@click.option("--from-ip", "networks", multiple=True, metavar="CIDR", help="Only from there; several times.")
@click.option("--expires", metavar="DATE", help="A date (the end of that day, UTC) or an instant with its zone.")
@click.option(
    "--chaos",
    type=click.Choice(list(KINDS)),
    help="Its mail never leaves: a sandbox misbehaves so towards it, and it costs nothing.",
)
@json_option
@with_settings
def key_mint(
    settings: Settings,
    email: str,
    name: str,
    permissions: tuple[str, ...],
    senders: tuple[str, ...],
    networks: tuple[str, ...],
    expires: str | None,
    *,
    chaos: str | None,
    as_json: bool,
) -> None:
    """Make a key and show it, this once.

    \b
    hepmaild key mint me@example.com --name shop
    hepmaild key mint me@example.com --name cron --permission smtp --from-ip 192.0.2.0/24 --expires 2027-12-31
    hepmaild key mint me@example.com --name trouble --chaos greylist
    """
    from hepmaild.storage import keys

    expires_at_us = None if expires is None else _expiry(expires)
    addresses = _networks(networks) or None
    secret = keys.new_secret()
    made = backend.write(
        settings,
        backend.KEYS,
        mint,
        settings,
        email,
        secret,
        name=name,
        permissions=sorted(set(permissions)) or None,
        senders=sorted({key_of(sender) for sender in senders}) or None,
        addresses=addresses,
        expires_at_us=expires_at_us,
        chaos=chaos,
    )
    _show_secret({**made, "key": secret}, as_json)


def _expiry(text: str) -> int:
    try:
        return key_rules.parse_expiry(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _networks(texts: Sequence[str]) -> list[str]:
    try:
        return key_rules.parse_networks(texts)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def mint(
    conn: Connection,
    settings: Settings,
    email: str,
    secret: str,
    *,
    name: str,
    permissions: list[str] | None = None,
    senders: list[str] | None = None,
    addresses: list[str] | None = None,
    expires_at_us: int | None = None,
    chaos: str | None = None,
) -> dict[str, Any]:
    """Store a key for the account of this address, within its plan.  Refusals are ValueErrors."""
    from hepmaild.storage import accounts, keys

    found = accounts.find(conn, email)
    _refuse_strangers(conn, settings, found["id"], senders)
    plan = settings.plans.get(found["plan"]) or settings.plans[STANDARD_PLAN]
    made = keys.mint(
        conn,
        account_id=found["id"],
        key_id=str(uuid.uuid4()),
        name=name,
        secret=secret,
        limit=plan.api_keys,
        permissions=permissions,
        senders=senders,
        addresses=addresses,
        expires_at_us=expires_at_us,
        chaos=chaos,
        now_us=backend.now_us(),
    )
    data = {"key": made["id"], "permissions": permissions, "senders": senders, "addresses": addresses, "chaos": chaos}
    backend.note(conn, found["id"], "key.mint", made["name"], {**data, "expires_at_us": expires_at_us})
    return made


def _refuse_strangers(
    conn: Connection, settings: Settings, account_id: str, senders: list[str] | None, has: Sequence[str] = ()
) -> None:
    """A key is for some of its account's senders.  has: those that it was for before may stay, as on its page."""
    from hepmaild.storage.directory import senders_of

    known = {
        *has,
        *(key_of(s.address) for s in settings.sender),
        *(s.address_key for s in senders_of(conn, account_id)),
    }
    strangers = [address for address in senders or () if address not in known]
    if strangers:
        those = f"{', '.join(strangers)} {'is no sender' if len(strangers) == 1 else 'are no senders'} of the account"
        raise ValueError(f"{those}; `hepmaild sender list` shows all, `hepmaild sender add` makes one")


def _show_secret(row: dict[str, Any], as_json: bool) -> None:
    lost = f"the key has a secret that could not be printed: `hepmaild key rotate {row['id']}` gives it another"
    with shown_once(lost):
        if as_json:
            print_json({name: row[name] for name in ("id", "name", "key")})
        else:
            print_pairs(row, ("id", "name", "key"))
    if not as_json:
        print_hint(_SHOWN_ONCE)


@key.command("list")
@click.argument("email", type=EMAIL)
@json_option
@with_settings
def key_list(settings: Settings, email: str, as_json: bool) -> None:
    """An account's keys, oldest first."""
    rows = backend.read(settings, _list, email)
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "last_five", "status", "permissions", "expires_at", "last_used_at", "chaos", "id")
        print_table(rows, columns, empty=f"no key yet: hepmaild key mint {email} --name NAME")


def _list(conn: Connection, email: str) -> list[dict[str, Any]]:
    from hepmaild.storage import accounts, keys

    now_us = backend.now_us()
    rows = []
    for row in keys.list_of(conn, accounts.find(conn, email)["id"]):
        expires = row["expires_at_us"]
        if row["status"] == "active" and expires is not None and expires <= now_us:
            row["status"] = "expired"
        rows.append(row)
    return rows


@key.command("edit")
@click.argument("key_id", metavar="ID")
@click.option("--name", help="1 to 100 characters, unique in the account.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice([str(p) for p in Permission] + [EVERYTHING]),
    help="What it may do, in place of what it may now; several times, or `all`.",
)
@click.option(
    "--sender", "senders", multiple=True, metavar="ADDRESS", help="Only this sender address; several times, or `all`."
)
@click.option("--from-ip", "networks", multiple=True, metavar="CIDR", help="Only from there; several times, or `all`.")
@click.option("--expires", metavar="DATE", help="A date (to its end, UTC), an instant with its zone, or `never`.")
@click.option("--chaos", type=click.Choice(list(KINDS)), help="How the sandbox of a chaos key misbehaves from now on.")
@json_option
@with_settings
def key_edit(settings: Settings, key_id: str, as_json: bool, **wished: Any) -> None:
    """Change a key's name or restrictions; its secret stays.  What is not given stays as it is.

    \b
    hepmaild key edit ID --permission smtp --from-ip 192.0.2.0/24
    hepmaild key edit ID --from-ip all --expires never
    """
    wish = _read_changes(**wished)
    if not wish:
        raise click.UsageError("say what to change: --name, --permission, --sender, --from-ip, --expires or --chaos")
    row = backend.write(settings, backend.KEYS, _edit, settings, key_id, wish)
    if as_json:
        print_json(row)
    else:
        print_pairs(row, ("id", "name", "permissions", "senders", "addresses", "expires_at", "chaos"))


def _read_changes(
    name: str | None,
    permissions: Sequence[str],
    senders: Sequence[str],
    networks: Sequence[str],
    expires: str | None,
    chaos: str | None,
) -> dict[str, Any]:
    """What was given, by the names of the columns."""
    wish: dict[str, Any] = {}
    if name is not None:
        wish["name"] = name
    if permissions:
        wish["permissions"] = _restriction(permissions, lambda values: sorted(set(values)))
    if senders:
        wish["senders"] = _restriction(senders, lambda values: sorted({key_of(EMAIL(value)) for value in values}))
    if networks:
        wish["addresses"] = _restriction(networks, _networks)
    if expires is not None:
        wish["expires_at_us"] = None if expires == "never" else _expiry(expires)
    if chaos is not None:
        wish["chaos"] = chaos
    return wish


def _restriction(values: Sequence[str], read: Callable[[Sequence[str]], list[str]]) -> list[str] | None:
    if EVERYTHING not in values:
        return read(values)
    if len(values) > 1:
        raise click.UsageError(f"`{EVERYTHING}` lifts a restriction, and stands alone")
    return None


def _edit(conn: Connection, settings: Settings, key_id: str, wish: dict[str, Any]) -> dict[str, Any]:
    from hepmaild.storage import keys

    account_id = keys.account_of(conn, key_id)
    before = keys.of_account(conn, account_id, key_id, is_to_change=True)
    assert before is not None
    _refuse_strangers(conn, settings, account_id, wish.get("senders"), before["senders"] or ())
    columns = ("name", "permissions", "senders", "addresses", "expires_at_us")
    values = {column: before[column] for column in columns}
    changed = keys.change(conn, key_id, now_us=backend.now_us(), **{**values, **wish})
    after = keys.of_account(conn, account_id, key_id)
    assert after is not None
    if changed:
        backend.note(conn, account_id, "key.change", after["name"], {"key": key_id, **changed})
    return after


@key.command("rotate")
@click.argument("key_id", metavar="ID")
@json_option
@with_settings
def key_rotate(settings: Settings, key_id: str, as_json: bool) -> None:
    """Give a key a new secret; the old one stops at once, on both doors."""
    from hepmaild.storage import keys

    secret = keys.new_secret()
    made = backend.write(settings, backend.KEYS, _rotate, key_id, secret)
    _show_secret({**made, "key": secret}, as_json)


def _rotate(conn: Connection, key_id: str, secret: str) -> dict[str, Any]:
    from hepmaild.storage import keys

    made = keys.rotate(conn, key_id, secret)
    backend.note(conn, keys.account_of(conn, key_id), "key.rotate", made["name"], {"key": key_id})
    return made


_VERBS = {"active": "enable", "disabled": "disable", "deleted": "delete"}


def _change_status(conn: Connection, key_id: str, status: str) -> dict[str, Any]:
    from hepmaild.storage import keys

    account_id = keys.account_of(conn, key_id)
    changed = keys.set_status(conn, key_id, status)
    backend.note(conn, account_id, f"key.{_VERBS[status]}", changed["name"], {"key": key_id})
    return changed


def _set_status(settings: Settings, key_id: str, status: str, as_json: bool) -> None:
    changed = backend.write(settings, backend.KEYS, _change_status, key_id, status)
    if as_json:
        print_json(changed)
    else:
        print_pairs(changed)


@key.command("disable")
@click.argument("key_id", metavar="ID")
@json_option
@with_settings
def key_disable(settings: Settings, key_id: str, as_json: bool) -> None:
    """Refuse a key from now on, also in open sessions."""
    _set_status(settings, key_id, "disabled", as_json)


@key.command("enable")
@click.argument("key_id", metavar="ID")
@json_option
@with_settings
def key_enable(settings: Settings, key_id: str, as_json: bool) -> None:
    """Let a disabled key work again."""
    _set_status(settings, key_id, "active", as_json)


@key.command("delete")
@click.argument("key_id", metavar="ID")
@json_option
@with_settings
def key_delete(settings: Settings, key_id: str, as_json: bool) -> None:
    """Delete a key for good; the log keeps its name and last five characters."""
    _set_status(settings, key_id, "deleted", as_json)


@click.group()
def sender() -> None:
    """Sender addresses: what may stand in From, and the way its mail leaves."""


@sender.command("add")
@click.argument("address", type=EMAIL)
@click.option("--route", required=True, help="A route of the settings.")
@click.option("--account", "email", type=EMAIL, help="Only for this account; default: for every account.")
@click.option(
    "--daily-cap",
    type=click.IntRange(0, MAX_CAP),
    default=0,
    help="Messages in any rolling 24 hours, more wait for their turn; 0: no cap.",
)
@click.option("--default", "is_default", is_flag=True, help="Used when a message has no From.")
@json_option
@with_settings
def sender_add(
    settings: Settings, address: str, route: str, email: str | None, daily_cap: int, is_default: bool, as_json: bool
) -> None:
    """Add a sender, or change the one that is there; another daily cap also holds for what waits behind the old one.

    \b
    hepmaild sender add shop@example.com --route upstream --account me@example.com --default
    """
    known = [known_route.name for known_route in settings.route]
    if route not in known:
        raise CommandFailed(f"there is no route {route!r} in the settings; there are: {', '.join(known) or 'none'}")
    # With another daily cap something may be due.
    row = backend.write(settings, backend.QUEUE, _put, address, email, route, daily_cap, is_default)
    row = {**row, "account": email}
    if as_json:
        print_json(row)
    else:
        print_pairs(row)


def _put(
    conn: Connection, address: str, email: str | None, route: str, daily_cap: int, is_default: bool
) -> dict[str, Any]:
    from hepmaild.storage import senders

    owner = _owner(conn, email)
    row = senders.put(conn, address=address, account_id=owner, route=route, daily_cap=daily_cap, is_default=is_default)
    backend.note(conn, owner, "sender.put", address, {"route": route, "daily_cap": daily_cap, "default": is_default})
    return row


def _owner(conn: Connection, email: str | None) -> str:
    from hepmaild.storage import accounts

    return "" if email is None else str(accounts.find(conn, email)["id"])


@sender.command("list")
@json_option
@with_settings
def sender_list(settings: Settings, as_json: bool) -> None:
    """All senders: global ones of the settings, and those in the database, which win where the address is the same."""
    from hepmaild.storage import senders

    stored = backend.read(settings, senders.list_all)
    winning = {key_of(row["address"]) for row in stored if row["account"] is None}
    rows = [
        {
            "address": s.address,
            "account": None,
            "route": s.route,
            "daily_cap": s.daily_cap,
            "default": s.default,
            "from": "settings",
            "overridden": key_of(s.address) in winning,
        }
        for s in settings.sender
    ]
    rows += [{**row, "from": "database", "overridden": False} for row in stored]
    if as_json:
        print_json(rows)
    else:
        columns = ("address", "account", "route", "daily_cap", "default", "from")
        shown = [{**row, "from": f"{row['from']}, overridden" if row["overridden"] else row["from"]} for row in rows]
        print_table(shown, columns, empty="no sender yet: hepmaild sender add ADDRESS --route ROUTE")


@sender.command("remove")
@click.argument("address", type=EMAIL)
@click.option("--account", "email", type=EMAIL, help="The account's own; default: the global one.")
@json_option
@with_settings
def sender_remove(settings: Settings, address: str, email: str | None, as_json: bool) -> None:
    """Take a sender away.  Those of the settings file are changed there; what overrides such a one is taken away."""
    shipped = None
    if email is None:
        shipped = next((s for s in settings.sender if key_of(s.address) == key_of(address)), None)
    # With the settings' daily cap something may be due.
    backend.write(settings, backend.KEYS if shipped is None else backend.QUEUE, _remove, address, email, shipped)
    if as_json:
        print_json({"address": address, "account": email, "removed": True})
    elif shipped is None:
        click.echo(f"{address} is no sender any more")
    else:
        click.echo(f"{address} is again what the settings say: route {shipped.route}, daily cap {shipped.daily_cap}")


def _remove(conn: Connection, address: str, email: str | None, shipped: SenderSettings | None) -> None:
    """shipped: the sender of the settings that has this address, and stays."""
    from hepmaild.storage import caps, senders

    owner = _owner(conn, email)
    try:
        senders.remove(conn, address=address, account_id=owner)
    except ValueError:
        if shipped is None:
            raise
        raise ValueError(f"{address} is a [[sender]] of the settings: take it out of the file and reload") from None
    if shipped is not None:
        caps.set_cap(conn, caps.cap_key_of(owner, key_of(address)), shipped.daily_cap)
    backend.note(conn, owner, "sender.remove", address)
