# SPDX-License-Identifier: Apache-2.0
"""`hepmaild key edit`: what is given changes, what is not given stays, and so does the secret; chaos keys."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

ME = "me@example.com"


def mint(cli: Cli, *options: str) -> str:
    cli.ok("account", "add", ME)
    key_id: str = cli.json("key", "mint", ME, "--name", "shop", *options)["id"]
    return key_id


def test_edit_changes_what_is_given(cli: Cli) -> None:
    key_id = mint(cli, "--permission", "smtp", "--from-ip", "192.0.2.0/24", "--expires", "2199-12-31")
    before = cli.json("key", "list", ME)[0]
    cli.ok("sender", "add", "a@example.com", "--route", "box", "--account", ME)
    changed = cli.json("key", "edit", key_id, "--name", "store", "--permission", "http", "--sender", "A@Example.com")
    assert changed["name"] == "store"
    assert changed["permissions"] == ["http"]
    assert changed["senders"] == ["a@example.com"]
    assert changed["addresses"] == ["192.0.2.0/24"]
    assert changed["expires_at"] == before["expires_at"]
    assert changed["last_five"] == before["last_five"]
    lifted = cli.json(
        *("key", "edit", key_id, "--permission", "all", "--sender", "all", "--from-ip", "all", "--expires", "never")
    )
    restrictions = ("permissions", "senders", "addresses", "expires_at")
    assert [lifted[name] for name in restrictions] == [None] * 4
    actions = [row["action"] for row in cli.json("audit", "list", ME)]
    assert actions.count("key.change") == 2
    cli.ok("key", "edit", key_id, "--name", "store")
    assert [row["action"] for row in cli.json("audit", "list", ME)] == actions, "nothing changed"


@pytest.mark.parametrize(
    ("options", "said", "status"),
    [
        ((), "say what to change", 2),
        (("--permission", "all", "--permission", "smtp"), "stands alone", 2),
        (("--from-ip", "192.0.2.1/24"), "host bits are set", 2),
        (("--sender", "nobody"), "is not an email address", 2),
        (("--expires", "2001-01-01"), "lies in the past", 1),
        (("--expires", "tomorrow"), "is not a date", 2),
        (("--name", ""), "1 to 100 printable characters", 1),
        (("--chaos", "5xx"), "cannot become a chaos key", 1),
    ],
)
def test_edit_refuses(cli: Cli, options: tuple[str, ...], said: str, status: int) -> None:
    key_id = mint(cli)
    before = cli.json("key", "list", ME)
    assert said in cli.refused("key", "edit", key_id, *options, status=status)
    assert cli.json("key", "list", ME) == before


def test_a_key_is_for_senders_of_its_account(cli: Cli) -> None:
    """Global ones, and its own; not those of another account.  What it is for already may stay, once that is gone."""
    cli.ok("account", "add", ME)
    cli.ok("account", "add", "other@example.com")
    add = ("sender", "add", "--route", "box")
    cli.ok(*add, "global@example.com")
    cli.ok(*add, "mine@example.com", "--account", ME)
    cli.ok(*add, "theirs@example.com", "--account", "other@example.com")
    mint_it = ("key", "mint", ME, "--name", "shop")
    said = cli.refused(*mint_it, "--sender", "Theirs@example.com", "--sender", "mine@example.com", status=1)
    assert "theirs@example.com is no sender of the account" in said
    assert cli.json("key", "list", ME) == []
    three = ("noreply@example.com", "global@example.com", "mine@example.com")
    key_id = cli.json(*mint_it, *(word for sender in three for word in ("--sender", sender)))["id"]
    cli.ok("sender", "remove", "mine@example.com", "--account", ME)
    assert "is no sender" in cli.refused("key", "edit", key_id, "--sender", "theirs@example.com", status=1)
    changed = cli.json("key", "edit", key_id, "--sender", "mine@example.com")
    assert changed["senders"] == ["mine@example.com"]


def test_a_chaos_key(cli: Cli) -> None:
    key_id = mint(cli, "--chaos", "greylist")
    assert cli.json("key", "list", ME)[0]["chaos"] == "greylist"
    assert cli.json("key", "edit", key_id, "--chaos", "slow-dot")["chaos"] == "slow-dot"
    assert cli.json("key", "edit", key_id, "--name", "other")["chaos"] == "slow-dot"
    assert "slow-dot" in cli.ok("key", "list", ME)
    assert "is not one of" in cli.refused("key", "edit", key_id, "--chaos", "fire", status=2)


def test_an_expiry_too_far_ahead(cli: Cli, tmp_path: Path) -> None:
    """The instant is in year 10000 (UTC), which no date can say; rows that have such a one are shown all the same."""
    late = "9999-12-31T23:59:59-12:00"
    assert "is too far ahead" in cli.refused("key", "mint", ME, "--name", "n", "--expires", late, status=2)
    key_id = mint(cli, "--expires", "2199-12-31")
    cli.ok("key", "edit", key_id, "--expires", "2199-12-30")
    with closing(sqlite3.connect(tmp_path / "state" / "hepmaild.db")) as db, db:
        db.execute("update api_key set expires_at_us = 253402343999000000")
        db.execute("update audit set data = ? where action = 'key.change'", ('{"expires_at_us": 253402343999000000}',))
    assert cli.json("key", "list", ME)[0]["expires_at"] == "9999-12-31T00:00:00.000000Z"
    assert "9999-12-31" in cli.ok("key", "list", ME)
    assert cli.json("audit", "list", ME)[0]["data"] == {"expires_at": "9999-12-31T00:00:00.000000Z"}
