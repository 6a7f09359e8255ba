# SPDX-License-Identifier: Apache-2.0
"""Every command on a real database: what it prints, what it refuses, with which status."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hepmaild import __version__, config_load
from hepmaild.cli import app
from tests.peers.processes import assert_no_traceback

ME = "me@example.com"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
def account(cli: Any) -> str:
    """An account with 100 credits."""
    made = cli.json("account", "add", ME, "--credits", "100")
    assert set(made) == {"id", "email"}
    return ME


def test_accounts(cli: Any, account: str) -> None:
    (row,) = cli.json("account", "list")
    assert {k: row[k] for k in ("email", "balance", "plan", "status")} == {
        "email": ME,
        "balance": 100,
        "plan": "standard",
        "status": "active",
    }
    assert STAMP.fullmatch(row["created_at"])
    assert cli.json("account", "suspend", ME)["status"] == "suspended"
    assert cli.json("account", "show", "ME@EXAMPLE.COM")["status"] == "suspended"
    assert cli.json("account", "resume", ME)["status"] == "active"
    assert cli.json("account", "plan", ME, "pro")["plan"] == "pro"
    assert ME in cli.ok("account", "list")
    assert "already" in cli.refused("account", "add", ME)
    assert "no account for you@example.com" in cli.refused("account", "show", "you@example.com")
    assert "there is no plan 'gold'; there are free, pro" in cli.refused("account", "plan", ME, "gold", status=2)
    assert "is not an email address" in cli.refused("account", "add", "me", status=2)


def test_passwords(cli: Any, account: str, tmp_path: Path) -> None:
    assert "at least 10 characters" in cli.refused("account", "password", ME, "--password-stdin", stdin="short\n")
    assert "first that anybody" in cli.refused("account", "password", ME, "--password-stdin", stdin="Password123!\n")
    assert "use --password-stdin" in cli.refused("account", "password", ME, status=2)
    cli.ok("account", "password", ME, "--password-stdin", stdin="correct horse battery\n")
    with sqlite3.connect(tmp_path / "state" / "hepmaild.db") as db:
        (kept,) = db.execute("select password_hash from user_account").fetchone()
    db.close()
    assert kept.startswith("$argon2id$")


def test_credits(cli: Any, account: str) -> None:
    assert cli.json("credits", "grant", ME, "50", "--note", "invoice 7") == {"balance": 150}
    assert cli.json("credits", "grant", ME, "-20") == {"balance": 130}
    assert cli.json("credits", "show", ME) == {"balance": 130}
    assert cli.ok("credits", "show", ME) == "130\n"
    rows = cli.json("credits", "history", ME)
    assert [row["amount"] for row in rows] == [-20, 50, 100]
    assert {"at", "amount", "balance_after", "reason", "message_id"} <= set(rows[0])
    assert STAMP.fullmatch(rows[0]["at"])
    assert "cannot go below zero" in cli.refused("credits", "grant", ME, "-131")
    assert cli.json("credits", "verify") == {"ok": True, "accounts": 1, "faults": []}


@pytest.mark.parametrize(
    "damage",
    [
        "update ledger set amount = 1000",
        "update ledger set note = 'x'",
        "update account set balance = 1000",
        "delete from ledger",
    ],
)
def test_a_ledger_that_was_touched_is_found(cli: Any, account: str, tmp_path: Path, damage: str) -> None:
    with sqlite3.connect(tmp_path / "state" / "hepmaild.db") as db:
        db.execute(damage)
    db.close()
    done = cli("credits", "verify", "--json")
    assert done.status == 1
    assert json.loads(done.out)["faults"][0]["email"] == ME
    assert done.err.startswith("hepmaild: 1 of 1 ledger does not hold: me@example.com: ")


def test_keys(cli: Any, account: str) -> None:
    cli.ok("sender", "add", "a@b.example", "--route", "box", "--account", ME)
    made = cli.json(
        *("key", "mint", ME, "--name", "shop", "--permission", "smtp", "--permission", "http"),
        *("--sender", "A@B.example", "--from-ip", "192.0.2.0/24", "--from-ip", "::1", "--expires", "2099-12-31"),
    )
    assert set(made) == {"id", "name", "key"}
    assert re.fullmatch(r"hyd-mail-[A-Za-z0-9]{40}", made["key"])
    (row,) = cli.json("key", "list", ME)
    assert row["last_five"] == made["key"][-5:]
    assert row["permissions"] == ["http", "smtp"]
    assert row["senders"] == ["a@b.example"]
    assert row["addresses"] == ["192.0.2.0/24", "::1/128"]
    assert row["expires_at"] == "2100-01-01T00:00:00.000000Z"
    assert (row["status"], row["last_used_at"]) == ("active", None)
    rotated = cli.json("key", "rotate", made["id"])
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert cli.json("key", "disable", made["id"])["status"] == "disabled"
    assert cli.json("key", "list", ME)[0]["status"] == "disabled"
    cli.ok("key", "enable", made["id"])
    assert made["key"] not in cli.ok("key", "list", ME)
    cli.ok("key", "delete", made["id"])
    assert cli.json("key", "list", ME) == []
    assert "there is no key" in cli.refused("key", "enable", made["id"])


@pytest.mark.parametrize(
    ("options", "said", "status"),
    [
        (("--expires", "2020-01-01"), "lies in the past", 1),
        (("--expires", "tomorrow"), "'tomorrow' is not a date", 2),
        (("--expires", "2099-01-01T00:00:00"), "has no zone", 2),
        (("--from-ip", "192.0.2.1/24"), "host bits", 2),
        (("--permission", "everything"), "'everything' is not one of", 2),
        (("--name", ""), "1 to 100 printable characters", 1),
        (("--name", "x" * 101), "1 to 100 printable characters", 1),
    ],
)
def test_what_a_key_may_not_be(cli: Any, account: str, options: tuple[str, ...], said: str, status: int) -> None:
    assert said in cli.refused("key", "mint", ME, "--name", "n", *options, status=status)


def test_the_plan_limits_keys(cli: Any, account: str) -> None:
    cli.ok("account", "plan", ME, "tiny")
    cli.ok("key", "mint", ME, "--name", "one")
    assert "as many as its plan allows" in cli.refused("key", "mint", ME, "--name", "two")


def test_senders(cli: Any, account: str) -> None:
    made = cli.json("sender", "add", "shop@example.com", "--route", "box", "--account", ME, "--daily-cap", "5")
    assert made == {
        "address": "shop@example.com",
        "account": ME,
        "route": "box",
        "daily_cap": 5,
        "default": False,
    }
    cli.ok("sender", "add", "shop@example.com", "--route", "box", "--account", ME, "--default")
    rows = cli.json("sender", "list")
    assert [(r["address"], r["account"], r["daily_cap"], r["default"], r["from"]) for r in rows] == [
        ("noreply@example.com", None, 0, True, "settings"),
        ("shop@example.com", ME, 0, True, "database"),
    ]
    assert "there is no route 'x' in the settings; there are: box" in cli.refused(
        "sender", "add", "a@example.com", "--route", "x"
    )
    too_much = ("sender", "add", "a@example.com", "--route", "box", "--daily-cap", "1000000001")
    assert "0<=x<=1000000000" in cli.refused(*too_much, status=2)
    assert "is a [[sender]] of the settings" in cli.refused("sender", "remove", "noreply@example.com")
    cli.ok("sender", "remove", "SHOP@example.com", "--account", ME)
    assert "there is no sender" in cli.refused("sender", "remove", "shop@example.com", "--account", ME)


def test_a_sender_of_the_settings_is_overridden_and_comes_back(cli: Any, account: str, tmp_path: Path) -> None:
    address = "noreply@example.com"
    cli.config.write_text(cli.config.read_text().replace("default = true", "default = true\ndaily_cap = 7"))
    database = tmp_path / "state" / "hepmaild.db"
    cli.ok("sender", "add", "NoReply@example.com", "--route", "box", "--daily-cap", "5")
    rows = cli.json("sender", "list")
    assert [(r["address"], r["from"], r["overridden"], r["daily_cap"]) for r in rows] == [
        (address, "settings", True, 7),
        ("NoReply@example.com", "database", False, 5),
    ]
    text = cli.ok("sender", "list").splitlines()
    assert text[1].endswith("settings, overridden")
    assert text[2].endswith("database")
    said = cli.ok("sender", "remove", address)
    assert said == f"{address} is again what the settings say: route box, daily cap 7\n"
    (row,) = cli.json("sender", "list")
    assert (row["from"], row["overridden"]) == ("settings", False)
    with closing(sqlite3.connect(database)) as db:  # what waits behind the cap is told at once, too
        assert db.execute("select daily_cap from cap").fetchall() == [(7,)]
    assert "is a [[sender]] of the settings" in cli.refused("sender", "remove", address)


def test_an_accounts_sender_overrides_no_line_of_the_settings(cli: Any, account: str) -> None:
    cli.ok("sender", "add", "noreply@example.com", "--route", "box", "--account", ME)
    assert [row["overridden"] for row in cli.json("sender", "list")] == [False, False]
    assert "is a [[sender]] of the settings" in cli.refused("sender", "remove", "noreply@example.com")
    cli.ok("sender", "remove", "noreply@example.com", "--account", ME)


def test_routes(cli: Any) -> None:
    (row,) = cli.json("route", "list")
    assert (row["name"], row["kind"], row["senders"]) == ("box", "sandbox", ["noreply@example.com"])
    assert cli.json("route", "test", "box")["ok"]
    assert "there is no route 'x'" in cli.refused("route", "test", "x")


def test_an_empty_queue_and_log(cli: Any) -> None:
    stats = cli.json("queue", "stats")
    assert stats["by_state"] == {"queued": 0, "deferred": 0, "capped": 0, "held": 0}
    assert stats["oldest_at"] is None
    assert stats["by_route"] == stats["by_destination"] == {}
    assert cli.json("queue", "list") == []
    assert cli.ok("log", "tail", "--json") == ""
    for command in (("queue", "show"), ("queue", "retry"), ("queue", "cancel"), ("log", "show")):
        assert "there is no message" in cli.refused(*command, "0123456789abcdef")
        assert "16 hexadecimal characters" in cli.refused(*command, "0123", status=2)


def test_the_schema(cli: Any, tmp_path: Path) -> None:
    assert "not there yet" in cli.refused("db", "check")
    cli.config.write_text(cli.config.read_text() + '[database]\nmigrate = "manual"\n')
    assert "run `hepmaild db upgrade`" in cli.refused("account", "list")
    assert cli.json("db", "upgrade")["upgraded"]
    assert not cli.json("db", "upgrade")["upgraded"]
    assert cli.json("db", "check")["due"] is False
    assert cli.json("account", "list") == []
    with sqlite3.connect(tmp_path / "state" / "hepmaild.db") as db:
        db.execute("update alembic_version set version_num = '9999'")
    db.close()
    assert "upgrade hepmaild" in cli.refused("account", "list")


@pytest.mark.parametrize("command", [("account", "list"), ("db", "check"), ("db", "upgrade"), ("serve",)])
def test_a_database_of_another_program_is_refused(cli: Any, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    with closing(sqlite3.connect(tmp_path / "state" / "hepmaild.db")) as db:
        db.execute("create table account (name)")
    done = cli(*command)
    assert done.status == 1
    assert "another program, which has its own account in it" in done.err
    assert_no_traceback(done.err)
    with closing(sqlite3.connect(tmp_path / "state" / "hepmaild.db")) as db:
        assert db.execute("select name from sqlite_schema").fetchall() == [("account",)]


def test_settings_that_nobody_chose_are_told(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the demo's database, asked for without `-c`: an empty answer would be believed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEPMAILD_CONFIG", raising=False)
    monkeypatch.setattr(config_load, "DEFAULT_FILES", (Path("hepmaild.toml"), Path("etc.toml")))
    cli.config.rename(tmp_path / "elsewhere.toml")
    done = cli("route", "list", "--json", config=False)
    assert (done.status, done.out) == (0, "[]\n")
    assert done.err == (
        "hepmaild: there is no settings file (hepmaild.toml, etc.toml): "
        "this is about /var/lib/hepmaild; -c FILE names another\n"
    )
    failed = cli("route", "test", "up", config=False)
    assert failed.status == 1
    assert failed.err.count("\n") == 1, "a reason is one line"
    assert failed.err.endswith("; " + done.err.removeprefix("hepmaild: "))
    assert "settings file" not in cli("log", "tail", "--limit", "x", config=False).err, (
        "what is typed wrong is wrong for all"
    )
    monkeypatch.setenv("HEPMAILD_SERVER__STATE_DIR", "/srv/mail")
    assert cli("route", "list", config=False).err == ""
    monkeypatch.delenv("HEPMAILD_SERVER__STATE_DIR")
    (tmp_path / "elsewhere.toml").rename(tmp_path / "hepmaild.toml")
    assert cli("route", "list", config=False).err == ""


def test_a_backup_is_a_database(cli: Any, account: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert cli.json("db", "backup", str(copy)) == {"file": str(copy), "octets": copy.stat().st_size}
    with sqlite3.connect(copy) as db:
        assert db.execute("select email from account").fetchall() == [(ME,)]
    db.close()
    nowhere = tmp_path / "none" / "x.db"
    assert cli.refused("db", "backup", str(nowhere)) == f"{nowhere}: No such file or directory"


def test_mistakes_in_the_settings_are_told_with_status_2(cli: Any) -> None:
    cli.config.write_text('[smtp]\nreply = "x"\n[serve]\n')
    done = cli("check-config")
    assert (done.status, done.out) == (2, "")
    assert done.err.count(f"hepmaild: {cli.config}: ") == done.err.count("\n") == 2
    cli.config.unlink()
    assert "cannot be read: No such file" in cli.refused("account", "list", status=2)


def test_check_config_opens_nothing_and_tells_no_secret(cli: Any, tmp_path: Path) -> None:
    text = '[database]\nurl = "postgresql://me:hunter2@nowhere.invalid/x"\n[[route]]\nname = "u"\nkind = "smtp"\n'
    cli.config.write_text(text + 'host = "nowhere.invalid"\nusername = "me"\npassword = "hunter2"\n')
    assert cli.json("check-config")["route"][0]["password"] == "…"
    assert "hunter2" not in cli.ok("check-config")
    assert "nowhere.invalid" in cli.ok("check-config")
    assert list(tmp_path.iterdir()) == [cli.config]


def test_usage(cli: Any) -> None:
    assert "No such command 'accont'" in cli.refused("accont", status=2)
    assert "No such option" in cli.refused("account", "list", "--jsn", status=2)
    assert cli("account").status == 2
    done = cli("--help", config=False)
    assert (done.status, done.err) == (0, "")
    assert cli.ok("--version").strip() == f"hepmaild, version {__version__}"


def commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(app.cli), ids=" ".join)
def test_every_command_has_help(cli: Any, path: tuple[str, ...]) -> None:
    text = cli.ok(*path, "--help")
    assert text.startswith(f"Usage: hepmaild {' '.join(path)} ")
    assert len(text.splitlines()[2].strip()) > 10


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion(cli: Any, shell: str) -> None:
    assert "_HEPMAILD_COMPLETE" in cli.ok("completion", shell)


def test_hostile_text_cannot_move_the_cursor(cli: Any, account: str) -> None:
    cli.ok("credits", "grant", ME, "1", "--note", "\x1b[2J\nfake\u202e")
    text = cli.ok("credits", "history", ME)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text.splitlines()) == 3


def test_a_reader_that_has_enough_is_no_error(cli: Any, account: str) -> None:
    command = f"{sys.executable} -m hepmaild -c {cli.config} account list --json | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_bug_is_one_line(cli: Any) -> None:
    code = "from hepmaild.cli import app, accounts; app.service.check_config.callback = lambda **k: 1 / 0\n"
    code += "from hepmaild.__main__ import main; import sys; sys.argv = ['hepmaild', 'check-config']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'event=crashed error="ZeroDivisionError: division by zero" traceback="Traceback' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("key", "rotate", "a\udcffb"), "'ID'"),
        (("key", "mint", "me@example.com", "--name", "a\udcffb"), "'--name'"),
        (("credits", "grant", "me@example.com", "5", "--note", "a\udcffb"), "'--note'"),
        (("queue", "pause", "--route", "box", "--note", "a\udcffb"), "'--note'"),
        (("queue", "retry", "--route", "a\udcffb"), "'--route'"),
        (("smtp-server", "show", "a\udcffb"), "'ID'"),
        (("suppression", "add", "me@example.com", "a@example.net", "--reason", "a\udcffb"), "'--reason'"),
    ],
)
def test_what_is_no_text_is_wrong_usage(cli: Any, account: str, arguments: tuple[str, ...], named: str) -> None:
    """An octet that is no character of the locale comes as half of a surrogate pair, which neither engine keeps."""
    said = cli.refused(*arguments, status=2)
    assert f"Invalid value for {named}: this is not text in the encoding of this terminal" in said


def test_a_file_may_have_any_name(cli: Any, account: str, tmp_path: Path) -> None:
    copy = tmp_path / "a\udcffb.db"
    cli.json("db", "backup", str(copy))
    assert copy.exists()
