# SPDX-License-Identifier: Apache-2.0
"""Commands on a SQLite database in which a value is not what its column holds: one line says where, and what to do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ME, YOU = "me@example.com", "you@example.com"


@pytest.fixture
def damage(cli: Any, tmp_path: Path) -> Any:
    """Run a statement on the database of two accounts, one of which has a key."""
    for email in (ME, YOU):
        cli.ok("account", "add", email, "--credits", "5")
    cli.ok("key", "mint", ME, "--name", "shop", "--from-ip", "192.0.2.0/24", "--expires", "2037-01-01")

    def run(statement: str) -> None:
        with closing(sqlite3.connect(tmp_path / "state" / "hepmaild.db")) as database, database:
            assert database.execute(statement).rowcount == 1

    return run


@pytest.mark.parametrize(
    ("statement", "command", "where"),
    [
        (
            "UPDATE api_key SET expires_at_us = x'ff'",
            ("key", "list", ME),
            "in row 1 of the table api_key, expires_at_us is not a whole number",
        ),
        ("UPDATE api_key SET name = CAST(x'ff' AS TEXT)", ("key", "list", ME), ", name is not text"),
        ("UPDATE api_key SET addresses = x'ff'", ("key", "list", ME), ", addresses is not text"),
        (
            "UPDATE account SET created_at_us = x'00' WHERE id IN (SELECT id FROM account LIMIT 1)",
            ("account", "list", "--json"),
            "of the table account, created_at_us is not a whole number",
        ),
        (
            "UPDATE audit_head SET account_id = x'ff' WHERE account_id IN (SELECT max(account_id) FROM audit_head)",
            ("audit", "verify"),
            "of the table audit_head, account_id is not text",
        ),
    ],
)
def test_a_damaged_row_is_named(cli: Any, damage: Any, statement: str, command: tuple[str, ...], where: str) -> None:
    damage(statement)
    said = cli.refused(*command)
    assert said.startswith("the database is damaged: "), said
    assert where in said
    assert "hepmaild db backup" in said


@pytest.mark.parametrize("value", ["'x'", "x'ff'", "1.5"])
def test_a_damaged_amount_is_a_fault_of_its_ledger(cli: Any, damage: Any, value: str) -> None:
    """The other ledgers are looked at all the same."""
    damage(f"UPDATE ledger SET amount = {value} WHERE account_id = (SELECT id FROM account WHERE email = '{ME}')")
    done = cli("credits", "verify")
    assert (done.status, done.err) == (
        1,
        f"hepmaild: 1 of 2 ledgers does not hold: {ME}: row 1 was changed: its amount is no number\n",
    )


def test_a_damaged_end_of_an_audit_log_is_a_fault_of_it(cli: Any, damage: Any) -> None:
    damage(
        "UPDATE audit_head SET seq = 'x' WHERE account_id IN (SELECT id FROM account WHERE email = 'me@example.com')"
    )
    assert "the chain should end at row x, and ends at row 2" in cli.refused("audit", "verify")


def test_what_no_damage_explains_is_a_bug(cli: Any, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepmaild.cli.accounts.print_table", None)
    with pytest.raises(TypeError):
        cli("account", "list")
