# SPDX-License-Identifier: Apache-2.0
"""`hepmaild dkim …`: keys that sign the mail of a domain, and what to publish for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from hepmaild.cli import backend
from hepmaild.cli.common import json_option, with_settings
from hepmaild.cli.output import CommandFailed, print_json, print_pairs, print_table
from hepmaild.config import Settings
from hepmaild.counted import are, counted
from hepmaild.mail import dkim_record
from hepmaild.mail.dkim import ED25519, RSA

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.storage.store import Store

Change = Callable[..., dict[str, Any]]
_ALGORITHMS = {"rsa": RSA, "ed25519": ED25519}
_COLUMNS = ("domain", "selector", "algorithm", "state", "created_at", "checked_at", "changed_at")
_KEEP_OLD = "Keep the old record in DNS for some days: mail that is on its way was signed with its key."


class _Checked(click.ParamType[str]):
    """A value that a function of `dkim_record` judges."""

    def __init__(self, name: str, check: Any) -> None:
        self.name = name
        self._check = check

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            checked: str = self._check(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return checked


DOMAIN = _Checked("domain", dkim_record.check_domain)
SELECTOR = _Checked("selector", dkim_record.check_selector)


@click.group()
def dkim() -> None:
    """Keys that sign the mail of a domain (DKIM).

    \b
    hepmaild dkim add example.com                      makes a key and shows the DNS record to publish
    hepmaild dkim check example.com                    is the record there? then the key is used

    The daemon looks by itself, too: the check only makes it quicker.
    """


@dkim.command("add")
@click.argument("domain", type=DOMAIN)
@click.option("--algorithm", type=click.Choice(list(_ALGORITHMS)), default="rsa", show_default=True, help="Its kind.")
@click.option("--selector", type=SELECTOR, help="Its name in DNS; default: one made of kind and date.")
@json_option
@with_settings
def dkim_add(settings: Settings, domain: str, algorithm: str, selector: str | None, as_json: bool) -> None:
    """Make a key and show the DNS record to publish.  It signs once DNS shows the record.

    \b
    hepmaild dkim add example.com                          RSA, which every receiver understands
    hepmaild dkim add example.com --algorithm ed25519      beside it: a second, shorter signature
    """
    from hepmaild.dkim_keys import make_pair, place_of
    from hepmaild.storage import dkim as rows
    from hepmaild.storage import sealed
    from hepmaild.vault import HEAD_OCTETS, Vault

    pair = make_pair(_ALGORITHMS[algorithm])
    vault = Vault(settings.server.state_dir)

    async def add(store: Store) -> dict[str, Any]:
        heads = await store.read(sealed.heads, HEAD_OCTETS)
        if not heads:
            vault.make()
        vault.check(heads)
        taken = {row["selector"] for row in await store.read(rows.list_of, domain)}
        name = selector or _free_selector(algorithm, taken)
        if name in taken:
            raise CommandFailed(f"{domain} has a key with the selector {name} already: choose another selector")
        made = await store.write(
            backend.refusing(_noted("add", rows.add)),
            domain=domain,
            selector=name,
            algorithm=pair.algorithm,
            sealed_key=vault.seal(place_of(domain, name), pair.private_key),
            public_key=pair.public_key,
            now_us=backend.now_us(),
        )
        await backend.tell(store, backend.KEYS)
        return made

    settings.server.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with vault.holding():
        made = backend.with_store(settings, add)
    if as_json:
        print_json(_with_record(made))
        return
    _print_record(made)
    click.echo(f"\nThe key signs once DNS shows this record: `hepmaild dkim check {domain}`, or wait.", err=True)


def _free_selector(algorithm: str, taken: set[str]) -> str:
    """Such as rsa20270131, rsa20270131-2."""
    stem = algorithm + datetime.now(UTC).strftime("%Y%m%d")
    number = 1
    while (name := stem if number == 1 else f"{stem}-{number}") in taken:
        number += 1
    return name


def _with_record(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key with its DNS record: name, type, value as one string, and the line for a zone file."""
    name = dkim_record.record_name(key["domain"], key["selector"])
    value = dkim_record.record_value(key["algorithm"], key["public_key"])
    return {**key, "name": name, "type": "TXT", "value": value, "zone": dkim_record.zone_line(name, value)}


def _print_record(key: Mapping[str, Any]) -> None:
    shown = _with_record(key)
    print_pairs(shown, ("domain", "selector", "algorithm", "state", "name", "type", "value"))
    click.echo(f"\nfor a zone file\n{shown['zone']}")


@dkim.command("list")
@json_option
@with_settings
def dkim_list(settings: Settings, as_json: bool) -> None:
    """All keys, by domain and age."""
    from hepmaild.storage import dkim as rows

    found = backend.read(settings, rows.list_of)
    if as_json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, empty="no key yet: hepmaild dkim add DOMAIN")


@dkim.command("show")
@click.argument("domain", type=DOMAIN)
@json_option
@with_settings
def dkim_show(settings: Settings, domain: str, as_json: bool) -> None:
    """A domain's keys with their DNS records."""
    found = _keys_of(settings, domain)
    if as_json:
        print_json([_with_record(key) for key in found])
        return
    for number, key in enumerate(found):
        if number:
            click.echo()
        _print_record(key)


def _keys_of(settings: Settings, domain: str | None) -> list[dict[str, Any]]:
    from hepmaild.storage import dkim as rows

    found = backend.read(settings, rows.list_of, domain)
    if not found:
        raise CommandFailed(f"no key yet: hepmaild dkim add {domain or 'DOMAIN'}")
    return found


@dkim.command("check")
@click.argument("domain", type=DOMAIN, required=False)
@json_option
@with_settings
def dkim_check(settings: Settings, domain: str | None, as_json: bool) -> None:
    """Ask DNS for the records of pending and active keys; a pending key whose record is right signs from now on.

    The older key of the same kind signs beside it for an hour and is retired then.  Exit status 1 when a record is
    not right.
    """
    rows = backend.with_store(settings, lambda store: _check(settings, store, domain))
    if not rows:
        raise CommandFailed(f"no key to check: hepmaild dkim add {domain or 'DOMAIN'}")
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("domain", "selector", "algorithm", "state", "dns"), empty="")
    if any(row["activated"] for row in rows) and not as_json:
        click.echo(_KEEP_OLD, err=True)
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise CommandFailed(
            f"{len(wrong):,} of {counted(len(rows), 'record')} {are(len(wrong))} not right: "
            + _some(f"{dkim_record.record_name(row['domain'], row['selector'])}: {row['dns']}" for row in wrong)
        )


async def _check(settings: Settings, store: Store, domain: str | None) -> list[dict[str, Any]]:
    """Each key with what DNS says of it: `ok`, `dns` (a sentence), `activated` (just now)."""
    from hepmaild.delivery.answers import Failed
    from hepmaild.delivery.lookups import Lookups
    from hepmaild.dkim_watch import look
    from hepmaild.storage import dkim as rows

    lookups = Lookups(settings.dns)
    found = []
    for key in await store.read(rows.list_of, domain, states=(rows.PENDING, rows.ACTIVE)):
        problem = await look(lookups.lookup_txt, key)
        where = (key["domain"], key["selector"])
        activated = False
        if problem is None:
            activated = await store.write(rows.activate_seen, *where, backend.now_us())
        else:
            await store.write(rows.note_check, *where, backend.now_us())
        said = f"not known: {problem.why}" if isinstance(problem, Failed) else problem or "right"
        now = await store.read(backend.refusing(rows.find), *where)
        found.append({**now, "ok": problem is None, "dns": said, "activated": activated})
    await store.write(rows.retire_overlapped, backend.now_us())
    await store.announce(backend.KEYS)
    return found


def _some(lines: Iterable[str], most: int = 3) -> str:
    listed = list(lines)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return "; ".join(listed[:most]) + rest


@dkim.command("activate")
@click.argument("domain", type=DOMAIN)
@click.argument("selector", type=SELECTOR)
@json_option
@with_settings
def dkim_activate(settings: Settings, domain: str, selector: str, as_json: bool) -> None:
    """Sign with a key from now on, without asking DNS.

    For a record that is right but cannot be seen from here, and to go back to a retired key.
    """
    from hepmaild.storage import dkim as rows

    changed = backend.write(
        settings, backend.KEYS, _noted("activate", rows.activate), domain, selector, backend.now_us()
    )
    _print_change(changed, as_json, _KEEP_OLD)


@dkim.command("retire")
@click.argument("domain", type=DOMAIN)
@click.argument("selector", type=SELECTOR)
@json_option
@with_settings
def dkim_retire(settings: Settings, domain: str, selector: str, as_json: bool) -> None:
    """Stop signing with a key, at once.  Keep its record for some days."""
    from hepmaild.storage import dkim as rows

    changed = backend.write(settings, backend.KEYS, _noted("retire", rows.retire), domain, selector, backend.now_us())
    _print_change(changed, as_json, _KEEP_OLD)


@dkim.command("remove")
@click.argument("domain", type=DOMAIN)
@click.argument("selector", type=SELECTOR)
@json_option
@with_settings
def dkim_remove(settings: Settings, domain: str, selector: str, as_json: bool) -> None:
    """Delete a pending or retired key for good."""
    from hepmaild.storage import dkim as rows

    changed = backend.write(settings, backend.KEYS, _noted("remove", rows.remove), domain, selector)
    _print_change(changed, as_json, _KEEP_OLD)


def _noted(deed: str, change: Change) -> Change:
    """A change of one key, and its row in the service's audit log."""
    from hepmaild.storage import audit

    def run(conn: Connection, *args: Any, **kwargs: Any) -> dict[str, Any]:
        changed = change(conn, *args, **kwargs)
        backend.note(conn, audit.SERVICE, f"dkim.{deed}", changed["domain"], {"selector": changed["selector"]})
        return changed

    return run


def _print_change(changed: Mapping[str, Any], as_json: bool, hint: str) -> None:
    if as_json:
        print_json(changed)
    else:
        print_pairs(changed, ("domain", "selector", "algorithm", "state", "removed"))
        click.echo(hint, err=True)
