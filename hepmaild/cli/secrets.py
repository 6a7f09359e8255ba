# SPDX-License-Identifier: Apache-2.0
"""`hepmaild secrets …`: the keys that open what is sealed in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hepmaild.cli import backend
from hepmaild.cli.common import json_option, mark_changed, with_settings
from hepmaild.cli.output import CommandFailed, print_json, print_table
from hepmaild.config import Settings
from hepmaild.counted import are, counted

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.storage.store import Store
    from hepmaild.vault import SealingKey, Vault

UNIT = 50  # secrets that are sealed anew at once: a tenth of a second


@click.group()
def secrets() -> None:
    """The keys in `secrets.key`, under which secrets are sealed in the database.

    Every process on the same database needs the same file, and a backup of the database needs it too.
    """


def _vault(settings: Settings) -> Vault:
    from hepmaild.vault import Vault

    return Vault(settings.server.state_dir)


def _used(settings: Settings) -> dict[bytes, int]:
    """How many secrets each key has sealed, by its id."""
    from hepmaild.storage import sealed
    from hepmaild.vault import HEAD_OCTETS, VERSION

    heads = backend.read(settings, sealed.heads, HEAD_OCTETS)
    return {head[len(VERSION) :]: count for head, count in heads.items()}


def _read(vault: Vault, used: dict[bytes, int]) -> tuple[SealingKey, ...]:
    """The keys in the file.  Raises CommandFailed where nothing was sealed yet: no backup has what never was."""
    if not used and not vault.path.exists():
        raise CommandFailed(f"no secret was sealed yet: {vault.path} is made with the first, such as a DKIM key")
    return vault.read()


@secrets.command("list")
@json_option
@with_settings
def secrets_list(settings: Settings, as_json: bool) -> None:
    """The keys in the file and how many secrets each has sealed; also those that secrets need and the file has not."""
    used = _used(settings)
    vault = _vault(settings)
    keys = vault.read() if used or vault.path.exists() else ()
    rows = [_row(key, used.get(key.id, 0)) for key in keys]
    here = {key.id for key in keys}
    rows += [{"id": id_.hex(), "state": "missing", "secrets": n} for id_, n in used.items() if id_ not in here]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("id", "state", "made_at", "secrets"), empty="no secret was sealed yet")
    if any(row["state"] == "missing" for row in rows):
        raise CommandFailed(f"{vault.path} is not the file of this database: copy it from where the secrets were made")


def _row(key: SealingKey, count: int) -> dict[str, Any]:
    return {"id": key.id.hex(), "state": "next" if key.staged else "here", "made_at": key.made_at, "secrets": count}


@secrets.command("stage")
@json_option
@with_settings
def secrets_stage(settings: Settings, as_json: bool) -> None:
    """Put the next key into the file without using it, so that the file can be copied to every machine first."""
    from hepmaild.vault import new_key

    vault = _vault(settings)
    with vault.holding(alone=True):
        keys = _read(vault, _used(settings))
        staged = next((key for key in keys if key.staged), None)
        if staged is None:
            staged = new_key(staged=True)
            vault.replace((*keys, staged))
    if as_json:
        print_json(_row(staged, 0))
    else:
        click.echo(
            f"{staged.id.hex()} is in {vault.path}: copy the file to every machine, then `hepmaild secrets rotate`"
        )


@secrets.command("rotate")
@click.option(
    "--keep-old", is_flag=True, help="Leave the old keys in the file, for machines that still seal with them."
)
@json_option
@with_settings
def secrets_rotate(settings: Settings, keep_old: bool, as_json: bool) -> None:
    """Seal every secret anew under the next key (the staged one, else a fresh one), and drop the old ones.

    The daemon goes on meanwhile.  A backup of the database from before needs the file from before.
    """
    from hepmaild.vault import VERSION, SealingKey, new_key

    vault = _vault(settings)
    with vault.holding(alone=True):
        used = _used(settings)
        keys = _read(vault, used)
        vault.check([VERSION + id_ for id_ in used])
        staged = next((key for key in keys if key.staged), None) or new_key()
        newest = SealingKey(staged.id, staged.made_at, staged.secret)
        old = [key for key in keys if key.id != newest.id]
        vault.replace((*old, newest))  # before the first value that needs it
        count = backend.with_store(settings, lambda store: _reseal(store, vault, newest))
        mark_changed()
        if not keep_old:
            vault.replace((newest,))
    if as_json:
        print_json({"id": newest.id.hex(), "secrets": count, "dropped": [] if keep_old else [k.id.hex() for k in old]})
    else:
        click.echo(
            f"{counted(count, 'secret')} {are(count)} sealed under {newest.id.hex()}; keep a new copy of {vault.path}"
        )


async def _reseal(store: Store, vault: Vault, newest: SealingKey) -> int:
    """Everything that is not sealed under the newest key, unit by unit: the daemon's come in between.  How many it was.

    Broken off, it leaves some under the old keys and some under the new one; the file has both.
    """
    from hepmaild.storage import audit, sealed
    from hepmaild.storage.directory import bump
    from hepmaild.vault import VERSION, Place

    def anew(table: str, column: str, row: tuple[str, ...], value: bytes) -> bytes:
        place = Place(table, column, row)
        return vault.seal(place, vault.open(place, value))

    def some(conn: Connection) -> int:
        done = sealed.reseal_some(conn, VERSION + newest.id, anew, UNIT)
        if done:
            bump(conn)
        return done

    count = 0
    while done := await store.write(backend.refusing(some)):
        count += done
    await store.write(backend.note, audit.SERVICE, "secrets.rotate", newest.id.hex(), {"secrets": count})
    await backend.tell(store, backend.KEYS)
    return count
