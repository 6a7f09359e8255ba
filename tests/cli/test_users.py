# SPDX-License-Identifier: Apache-2.0
"""Users, one-time links and the audit log, by the command line."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ME, COLLEAGUE = "me@example.com", "colleague@example.com"
LINK = re.compile(r"^  (https://smtp\.example\.com/link/([\w-]{43}))$", re.MULTILINE)


@pytest.fixture
def account(cli: Any) -> str:
    cli.ok("account", "add", ME, "--credits", "100")
    return ME


def test_an_account_without_a_password_gets_a_link(cli: Any, tmp_path: Path) -> None:
    shown = cli.ok("account", "add", ME)
    found = LINK.search(shown)
    assert found is not None
    for file in (tmp_path / "state").iterdir():
        if file.is_file():
            assert found[2].encode() not in file.read_bytes(), f"{file} has the link in clear"
    assert LINK.search(cli.ok("account", "add", "you@example.com", "--password-stdin", stdin="correct horse\n")) is None
    made = cli.json("account", "link", ME)
    assert made["email"] == ME
    assert made["link"] != found[1]
    with closing(sqlite3.connect(tmp_path / "state" / "hepmaild.db")) as db:
        assert db.execute("select count(*) from one_time_link").fetchone() == (1,), "the newest takes the others' place"
    assert "no user nobody@example.com" in cli.refused("account", "link", "nobody@example.com")


def test_links_name_the_public_address(cli: Any) -> None:
    cli.config.write_text(cli.config.read_text() + '[http]\npublic_url = "https://mail.example.org:8443/"\n')
    assert "  https://mail.example.org:8443/link/" in cli.ok("account", "add", ME)


def test_users(cli: Any, account: str) -> None:
    made = cli.json("user", "add", ME, COLLEAGUE, "--scope", "admin")
    assert made["scope"] == "admin"
    assert "/link/" in made["link"]
    assert [(row["email"], row["scope"]) for row in cli.json("user", "list", ME)] == [
        (ME, "owner"),
        (COLLEAGUE, "admin"),
    ]
    assert COLLEAGUE in cli.ok("user", "list", ME)
    assert "already" in cli.refused("user", "add", ME, COLLEAGUE)
    assert "at least one owner" in cli.refused("user", "scope", ME, "admin")
    assert "at least one owner" in cli.refused("user", "remove", ME)
    cli.ok("user", "scope", COLLEAGUE, "owner")
    cli.ok("user", "operator", COLLEAGUE, "on")
    assert cli.json("user", "scope", ME, "read_only") == {"email": ME, "scope": "read_only"}
    assert cli.json("user", "remove", ME) == {"email": ME, "removed": True}
    cli.ok("account", "password", COLLEAGUE, "--password-stdin", stdin="correct horse battery\n")
    (row,) = cli.json("user", "list", ME)
    assert (row["email"], row["scope"], row["is_operator"], row["has_password"]) == (COLLEAGUE, "owner", True, True)
    assert "password_hash" not in row
    assert not any("totp" in name or name.endswith("_us") for name in row)
    assert row["second_factor"] is False
    assert "no role" not in cli.refused("user", "scope", COLLEAGUE, "king", status=2)


def test_what_the_command_line_changes_is_written_down(cli: Any, account: str) -> None:
    key = cli.json("key", "mint", ME, "--name", "shop")
    cli.ok("key", "disable", key["id"])
    cli.ok("key", "rotate", key["id"])
    cli.ok("key", "delete", key["id"])
    cli.ok("credits", "grant", ME, "50", "--note", "invoice 7")
    cli.ok("account", "suspend", ME)
    cli.ok("account", "resume", ME)
    cli.ok("account", "plan", ME, "pro")
    cli.ok("sender", "add", "shop@example.com", "--route", "box", "--account", ME)
    cli.ok("sender", "remove", "shop@example.com", "--account", ME)
    cli.ok("account", "password", ME, "--password-stdin", stdin="correct horse battery\n")
    cli.ok("sender", "add", "all@example.com", "--route", "box")
    rows = cli.json("audit", "list", ME)
    assert [row["action"] for row in reversed(rows)] == [
        "account.add",
        "key.mint",
        "key.disable",
        "key.rotate",
        "key.delete",
        "credits.grant",
        "account.suspend",
        "account.resume",
        "account.plan",
        "sender.put",
        "sender.remove",
        "user.password",
    ]
    assert {row["via"] for row in rows} == {"cli"}
    assert all(row["actor"].startswith("command line") for row in rows)
    assert rows[6]["data"] == {"amount": 50, "balance": 150, "note": "invoice 7"}
    assert key["key"] not in str(rows)
    assert [row["action"] for row in cli.json("audit", "list")] == ["sender.put"]
    assert "Credits granted" in cli.ok("audit", "list", ME)
    assert cli.json("audit", "verify") == {"ok": True, "logs": 2, "faults": []}


def test_the_audit_log_is_in_words(cli: Any, account: str) -> None:
    """As on its page; `--json` has what is stored."""
    key_id = cli.json("key", "mint", ME, "--name", "shop", "--from-ip", "192.0.2.0/24", "--expires", "2099-12-31")["id"]
    cli.ok("key", "edit", key_id, "--name", "store", "--from-ip", "all", "--expires", "never")
    change, made, *_ = cli.ok("audit", "list", ME).splitlines()[1:]
    assert re.search(r"  command line  Key made +shop  ", made)
    assert f"addresses: 192.0.2.0/24; expires at: 2100-01-01 00:00 UTC; key: {key_id}" in made
    assert re.search(r"  command line  Key changed +store  ", change)
    assert "addresses: 192.0.2.0/24 → none; expires at: 2100-01-01 00:00 UTC → none; " in change
    assert change.endswith("; name: shop → store")
    cli.ok("dkim", "add", "example.com")
    cli.ok("queue", "pause", "--route", "box", "--note", "holidays")
    pause, dkim = cli.ok("audit", "list").splitlines()[1:]
    assert re.search(r"  Paused +box +note: holidays$", pause)
    assert re.search(r"  DKIM key made +example\.com +selector: \S+$", dkim)
    assert [row["action"] for row in cli.json("audit", "list")] == ["queue.pause", "dkim.add"]


@pytest.mark.parametrize(
    "damage",
    [
        "update audit set actor = 'nobody' where seq = 2",
        "update audit set data = '{}' where seq = 2",
        "update audit set at_us = at_us + 1 where seq = 1",
        "delete from audit where seq = 1",
        "delete from audit where seq = 2",
        "delete from audit",
        "delete from audit_head",
        "update audit_head set seq = 1",
    ],
)
def test_a_changed_audit_log_is_found(cli: Any, account: str, tmp_path: Path, damage: str) -> None:
    cli.ok("credits", "grant", ME, "50")
    with closing(sqlite3.connect(tmp_path / "state" / "hepmaild.db")) as db:
        db.execute(damage)
        db.commit()
    assert "1 of 1 audit log does not hold" in cli.refused("audit", "verify")
