# SPDX-License-Identifier: Apache-2.0
"""`hepmaild demo`: the whole service on unprivileged ports, from nothing, with mail that stays at home."""

from __future__ import annotations

import json
import shlex
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hepmaild.cli import backend
from hepmaild.cli.common import Invocation
from hepmaild.cli.keys import mint
from hepmaild.cli.service import run_daemon
from hepmaild.config import (
    DAY_US,
    DatabaseSettings,
    DeliverySettings,
    HttpSettings,
    RouteKind,
    RouteSettings,
    SenderSettings,
    ServerSettings,
    Settings,
    SmtpSettings,
    format_address,
    parse_address,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hepmaild.daemon import Bound
    from hepmaild.storage.store import Store

ACCOUNT = "demo@example.com"
SENDER = "noreply@example.com"
CREDITS = 1000
KEY_NAME = "demo"
LINK_LIFE_US = 10 * 365 * DAY_US  # while it runs
SETTINGS_NAME = "hepmaild.toml"
_EVERYWHERE = {"::": "::1", "0.0.0.0": "127.0.0.1"}  # noqa: S104  # what to write in a URL for them


class _Address(click.ParamType[str]):
    name = "addr"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_address(value)
        except ValueError as error:
            self.fail(f"{value!r} must be {error}", param, ctx)
        return value


_ADDRESS = _Address()


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("var"), show_default=True,
    help="Database, certificate, key and sandbox.",
)  # fmt: skip
@click.option("--smtp", type=_ADDRESS, default="127.0.0.1:2587", show_default=True, help="SMTP with STARTTLS.")
@click.option("--smtps", type=_ADDRESS, default="127.0.0.1:2465", show_default=True, help="SMTP with implicit TLS.")
@click.option("--https", type=_ADDRESS, default="127.0.0.1:8443", show_default=True, help="The HTTPS API.")
def demo(folder: Path, smtp: str, smtps: str, https: str) -> None:
    """Try everything, with mail that stays at home.

    An embedded database, a self-made certificate, one account with 1,000 credits and one key; every message becomes an
    .eml file in DIR/sandbox.  The demo's key is also kept in DIR/demo.key (mode 0600), so that it is the same after a
    restart; a real service keeps no key anywhere.  Ctrl-C ends it.
    """
    from hepmaild.private_files import write_private

    settings = make_settings(folder, smtp=smtp, smtps=smtps, https=https)

    async def on_ready(bound: Bound, store: Store) -> None:
        # Not before: a demo that runs in this folder has its own there.  And whole or not at all: an empty file would
        # send the other commands to the defaults, a service's database.
        write_private(settings.server.state_dir / SETTINGS_NAME, settings_file(settings).encode())
        click.echo(welcome(settings, bound, *await _prepare(settings, store)))

    run_daemon(Invocation(preset=settings), on_ready, reload=False)


def make_settings(folder: Path, *, smtp: str, smtps: str, https: str) -> Settings:
    """The demo's settings; the environment and settings files are not read."""
    folder = folder.resolve()
    public_url = f"https://{_reachable(https)}" if parse_address(https)[1] else ""
    return Settings(
        server=ServerSettings(hostname="localhost", state_dir=folder, drain_timeout_s=10),
        database=DatabaseSettings(url="sqlite:///demo.db"),
        smtp=SmtpSettings(starttls=(smtp,), implicit_tls=(smtps,)),
        http=HttpSettings(listen=(https,), public_url=public_url),
        delivery=DeliverySettings(body_days=1),
        route=(RouteSettings(name="sandbox", kind=RouteKind.SANDBOX, directory=str(folder / "sandbox")),),
        sender=(SenderSettings(address=SENDER, route="sandbox", default=True),),
    )


def settings_file(settings: Settings) -> str:
    """The demo's settings as a file, so that every other command can be pointed at it."""
    smtp, https, box, sender = settings.smtp, settings.http, settings.route[0], settings.sender[0]

    def text(value: object) -> str:
        listed = list(value) if isinstance(value, tuple) else value
        return json.dumps(listed if isinstance(listed, list) else str(listed), ensure_ascii=False)

    return f"""\
# Written by `hepmaild demo` at every start, for the other commands; the demo itself does not read it.
[server]
hostname = {text(settings.server.hostname)}
state_dir = {text(settings.server.state_dir)}
drain_timeout_s = {settings.server.drain_timeout_s:g}
[database]
url = {text(settings.database.url)}
[smtp]
starttls = {text(smtp.starttls)}
implicit_tls = {text(smtp.implicit_tls)}
[http]
listen = {text(https.listen)}
public_url = {text(https.public_url)}
[delivery]
body_days = {settings.delivery.body_days}
[[route]]
name = {text(box.name)}
kind = {text(box.kind)}
directory = {text(box.directory)}
[[sender]]
address = {text(sender.address)}
route = {text(sender.route)}
default = true
"""


def _program() -> str:
    """How to call this program again from here."""
    called = Path(sys.argv[0])
    return f"{sys.executable} -m hepmaild" if called.name == "__main__.py" else shlex.quote(str(called))


def _reachable(address: str) -> str:
    host, port = parse_address(address)
    return format_address(_EVERYWHERE.get(host, host), port)


async def _prepare(settings: Settings, store: Store) -> tuple[str, str]:
    """Make the account and the key where they are missing; the key, and the token of a fresh sign-in link."""
    from hepmaild.private_files import write_private
    from hepmaild.storage import keys, links

    file = settings.server.state_dir / "demo.key"
    kept = file.read_text().strip() if file.exists() else ""
    secret = kept if keys.looks_like_key(kept) else keys.new_secret()
    if secret != kept:
        # Written first: were it written last, a crash in between would leave a key that nobody knows.
        write_private(file, f"{secret}\n".encode())
    await store.write(_make_account_and_key, settings, secret)
    token = links.new_token()
    await store.write(_make_link, token)
    return secret, token


def _make_link(conn: Connection, token: str) -> None:
    """A link that works until the next start makes another one."""
    from hepmaild.members import reset_by_link
    from hepmaild.storage import users

    user = users.find(conn, ACCOUNT)
    reset_by_link(conn, backend.actor(), user.user_id, token, False, backend.now_us(), life_us=LINK_LIFE_US)


def _make_account_and_key(conn: Connection, settings: Settings, secret: str) -> None:
    from hepmaild.storage import accounts, directory, keys

    if not any(row["email"] == ACCOUNT for row in accounts.list_all(conn)):
        accounts.create(
            conn,
            account_id=str(uuid.uuid4()),
            user_id=str(uuid.uuid4()),
            email=ACCOUNT,
            plan="standard",
            password_hash=None,
            is_operator=True,
            credits_granted=CREDITS,
            granted_by="demo",
            now_us=backend.now_us(),
        )
    if directory.key_by_hash(conn, keys.hash_secret(secret)) is not None:
        return
    account_id = accounts.find(conn, ACCOUNT)["id"]
    lost = next((row for row in keys.list_of(conn, account_id) if row["name"] == KEY_NAME), None)
    if lost is None:
        mint(conn, settings, ACCOUNT, secret, name=KEY_NAME)
    else:
        keys.rotate(conn, lost["id"], secret)


def welcome(settings: Settings, bound: Bound, key: str, link_token: str) -> str:
    """What to do now, with lines that work as they are when pasted."""
    from hepmaild.people import link_url

    https, smtp = _reachable(bound.https[0]), _reachable(bound.starttls[0])
    smtps = _reachable(bound.implicit_tls[0])
    api = f"https://{https}/api/v1/email/send"
    certificate = settings.server.state_dir / "self-made-certificate.pem"
    host, port = parse_address(smtp)
    message: dict[str, Any] = {"to": "you@example.net", "subject": "Hello", "text": "Sent over HTTPS."}
    curl = f"curl -sS --cacert {shlex.quote(str(certificate))} {api} -H 'Authorization: Bearer {key}'"
    curl += f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(message))}"
    swaks = f"swaks --server {host} --port {port} --tls --auth PLAIN --auth-user demo --auth-password {key}"
    swaks += f" --from {SENDER} --to you@example.net --header 'Subject: Hello'"
    return f"""
hepmaild demo is ready.  No mail leaves: every message becomes a file in {settings.server.state_dir / "sandbox"}

  dashboard  {link_url(f"https://{https}", link_token)}
             (signs you in once, as {ACCOUNT}, and asks for a password; afterwards https://{https}/)
  API        {api}
  SMTP       {smtp} (STARTTLS), {smtps} (TLS)
  key        {key}

Send by HTTPS:

  {curl}

Send by SMTP:

  {swaks}

See what happened to them (`log show ID` has every step):

  {_program()} -c {shlex.quote(str(settings.server.state_dir / SETTINGS_NAME))} log tail

Ctrl-C ends it.
"""
