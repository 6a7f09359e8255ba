# SPDX-License-Identifier: Apache-2.0
"""`hepmaild smtp-server …`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hepmaild.own_servers import open_credentials, route_from
from hepmaild.storage import smtp_servers as rows
from hepmaild.vault import Vault
from tests.cli.conftest import Cli

OWNER = "me@example.com"
SECRET = "correct horse battery"
ADD = ("smtp-server", "add", OWNER, "--name", "shop", "--host", "localhost", "--username", "shop@example.com")


@pytest.fixture
def account(cli: Cli) -> Cli:
    cli.ok("account", "add", OWNER, "--plan", "free", "--json")
    return cli


def add(cli: Cli, *more: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(cli.ok(*ADD, "--password-stdin", "--json", *more, stdin=f"{SECRET}\n"))
    return made


def test_the_life_of_a_server(account: Cli) -> None:
    cli = account
    made = add(cli, "--from-name", "The shop", "--daily-cap", "5")
    server_id = made["id"]
    assert {name: made[name] for name in ("port", "tls", "address", "default", "paused", "has_password")} == {
        "port": 587,
        "tls": "starttls",
        "address": "shop@example.com",
        "default": True,
        "paused": False,
        "has_password": True,
    }
    assert [row["route"] for row in cli.json("sender", "list") if row["account"] == OWNER] == [f"own:{server_id}"]
    assert cli("sender", "remove", "shop@example.com", "--account", OWNER).status == 1
    refused = cli(*ADD[:4], "two", *ADD[5:], "--password-stdin", stdin=SECRET)
    assert (refused.status, "as many as its plan allows" in refused.err) == (1, True)
    edited = cli.json("smtp-server", "edit", server_id, "--name", "store", "--daily-cap", "0")
    assert (edited["name"], edited["daily_cap"], edited["from_name"]) == ("store", 0, "The shop")
    refused = cli("smtp-server", "edit", server_id, "--host", "127.0.0.2")
    assert (refused.status, "--password-stdin" in refused.err) == (2, True)
    other = json.loads(
        cli.ok("smtp-server", "edit", server_id, "--tls", "implicit", "--password-stdin", "--json", stdin="other\n")
    )
    assert (other["tls"], other["port"]) == ("implicit", 465)
    assert cli.json("smtp-server", "pause", server_id)["paused"]
    assert not cli.json("smtp-server", "resume", server_id)["paused"]
    assert cli.json("smtp-server", "default", server_id)["default"]
    assert [row["account"] for row in cli.json("smtp-server", "list")] == [OWNER]
    assert cli.json("smtp-server", "list", OWNER)[0]["id"] == server_id
    assert cli.json("smtp-server", "show", server_id)["name"] == "store"
    assert cli.json("smtp-server", "remove", server_id) == {"id": server_id, "name": "store", "removed": True}
    assert cli.json("smtp-server", "list") == []
    assert cli("smtp-server", "show", server_id).status == 1
    actions = [row["action"] for row in cli.json("audit", "list", OWNER)]
    assert sorted(action for action in actions if action.startswith("smtp_server.")) == sorted(
        ["smtp_server.add", *["smtp_server.change"] * 2]
        + [f"smtp_server.{deed}" for deed in ("pause", "resume", "default", "remove")]
    )


def test_the_password_is_sealed_shown_nowhere_and_sealed_anew(account: Cli) -> None:
    cli = account
    made = add(cli)
    state = cli.config.parent / "state"
    assert (state / "secrets.key").stat().st_mode & 0o777 == 0o600

    def opened() -> str:
        from hepmaild.cli import backend
        from hepmaild.cli.common import Invocation

        settings = Invocation(str(cli.config)).settings
        row = backend.read(settings, rows.sealed_row, made["id"])
        assert row is not None
        credentials = open_credentials(Vault(state), route_from(row, settings.own_smtp))
        assert credentials is not None
        return credentials.password

    assert opened() == SECRET
    assert cli.json("secrets", "rotate")["secrets"] == 1
    assert opened() == SECRET
    said = [cli.ok("smtp-server", "list"), cli.ok("smtp-server", "show", made["id"]), cli.ok("audit", "list", OWNER)]
    assert not any(SECRET in text for text in said)
    octets = b"".join(path.read_bytes() for path in state.iterdir() if path.is_file())
    assert SECRET.encode() not in octets


def test_what_is_wrong_is_said(account: Cli) -> None:
    cli = account
    for more, said in (
        (("--port", "99999"), "port: A port is a number"),
        (("--tls", "none"), "never sent in clear text"),
        (("--address", "other@example.com"), "From must be the user name"),
        (("--daily-cap", "x"), "daily-cap:"),
    ):
        done = cli(*ADD, *more, "--password-stdin", stdin=SECRET)
        assert (done.status, said in done.err) == (1, True), done
    done = cli(*ADD, "--password-stdin", stdin="\n")
    assert (done.status, "a login needs a password" in done.err) == (1, True)
    assert cli(*ADD).status == 2
    assert cli("smtp-server", "add", "nobody@example.com", *ADD[3:], "--password-stdin", stdin=SECRET).status == 1
    assert cli.json("smtp-server", "list") == []


def test_a_test_says_each_step_and_obeys_the_policy(account: Cli) -> None:
    cli = account
    made = add(cli)
    done = cli("smtp-server", "test", made["id"], "--json")
    assert done.status == 1
    report = json.loads(done.out)
    assert "no address of the public Internet" in report["error"]
    assert report["next_hop"] == "localhost:587"
    assert SECRET not in done.out + done.err
    assert cli("smtp-server", "test", "nobody").status == 1
