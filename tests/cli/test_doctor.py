# SPDX-License-Identifier: Apache-2.0
"""`hepmaild doctor`: what it finds on a machine where nothing runs yet, and with peers on loopback."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.rcode
import pytest

from hepmaild.tls import make_self_signed
from tests.cli.conftest import Cli, Done
from tests.peers.processes import free_port
from tests.peers.programs import missing
from tests.peers.sink import capture_sink
from tests.peers.small_dns import SmallDns, small_dns
from tests.project.test_tls import WRONG_PAIRS, wrong_pair

DOMAIN = "example.com"


@pytest.fixture
def server(cli: Cli) -> Iterator[SmallDns]:
    with small_dns() as served:
        add(cli, f'[dns]\nservers = ["127.0.0.1:{served.port}"]\ntimeout_s = 10\nlifetime_s = 30\n')
        add(cli, "[smtp]\nstarttls = []\nimplicit_tls = []\n[http]\nlisten = []\n")
        yield served


def add(cli: Cli, text: str) -> None:
    cli.config.write_text(f"{cli.config.read_text()}\n{text}")


def by_name(done: Done) -> dict[str, dict[str, str]]:
    """The checks of one run; several of the same name: the worst."""
    found: dict[str, dict[str, str]] = {}
    for check in json.loads(done.out):
        assert set(check) == {"name", "state", "found", "todo"}
        assert check["found"]
        assert bool(check["todo"]) == (check["state"] in ("warn", "fail")), check
        found[check["name"]] = check
    return found


def state_of(cli: Cli, name: str) -> str:
    return by_name(cli("doctor", "--json"))[name]["state"]


def test_a_new_machine_has_warnings_and_no_failure(cli: Cli) -> None:
    add(cli, f'[smtp]\nstarttls = ["127.0.0.1:{free_port()}"]\nimplicit_tls = []\n[http]\nlisten = ["127.0.0.1:0"]\n')
    done = cli("doctor", "--json")
    assert done.status == 0, done
    checks = by_name(done)
    assert checks["database"]["state"] == "ok"
    assert checks["schema"]["state"] == "warn"
    assert checks["queue"]["state"] == "skipped"
    assert checks["route box"]["state"] == "ok"
    assert checks["certificate"]["state"] == "skipped"
    assert checks["DNS of example.com"]["state"] == "skipped"
    ports = {name: check for name, check in checks.items() if name.startswith("port ")}
    assert sorted(check["state"] for check in ports.values()) == ["skipped", "warn"]
    cli.ok("db", "upgrade")
    checks = by_name(cli("doctor", "--json"))
    assert (checks["schema"]["state"], checks["queue"]["state"]) == ("ok", "ok")
    text = cli.ok("doctor")
    assert re.search(r"^ok +database: SQLite answers", text, re.MULTILINE)


def test_every_disk_that_fills_is_looked_at(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database, the spool and what a sandbox keeps may each lie on a disk of its own."""
    away = Path("/dev/shm")
    if not os.access(away, os.W_OK) or away.stat().st_dev == tmp_path.stat().st_dev:
        missing("/dev/shm is no file system of its own here")
    monkeypatch.setattr("hepmaild.doctor.machine.DISK_WARN_SHARE", 0)
    with tempfile.TemporaryDirectory(dir=away) as folder:
        add(cli, f'[database]\nurl = "sqlite:///{folder}/mail/hepmaild.db"\n')
        add(cli, f'[[route]]\nname = "kept"\nkind = "sandbox"\ndirectory = "{folder}/kept"\n')
        Path(folder, "mail").mkdir()
        disks = [check for check in json.loads(cli("doctor", "--json").out) if check["name"] == "disk"]
        assert len(disks) == 2
        assert disks[0]["found"].endswith(f"are free in {tmp_path / 'state'}")
        assert disks[1]["found"].endswith(f"are free in {folder}/mail, {folder}/kept")
        monkeypatch.setattr("hepmaild.doctor.machine.DISK_FAIL_OCTETS", 1 << 62)
        disks = [check for check in json.loads(cli("doctor", "--json").out) if check["name"] == "disk"]
        assert [check["state"] for check in disks] == ["fail", "fail"]


def test_a_next_hop_that_is_not_there_fails(cli: Cli) -> None:
    add(cli, f'[[route]]\nname = "up"\nkind = "smtp"\nhost = "127.0.0.1"\nport = {free_port()}\ntls = "none"\n')
    done = cli("doctor", "--json")
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "route up" in done.err
    check = by_name(done)["route up"]
    assert check["state"] == "fail"
    assert "connect" in check["found"]
    assert "hepmaild route test up" in check["todo"]


def test_next_hops_are_logged_in_at(cli: Cli, server: SmallDns) -> None:
    with capture_sink(user="me", password="right") as sink:
        for name, password in (("good", "right"), ("bad", "wrong-word")):
            add(
                cli,
                f'[[route]]\nname = "{name}"\nkind = "smtp"\nhost = "127.0.0.1"\nport = {sink.port}\ntls = "none"\n'
                f'username = "me"\npassword = "{password}"\n',
            )
        done = cli("doctor", "--json")
    checks = by_name(done)
    assert checks["route good"]["state"] == "warn"  # the password goes in clear text
    assert checks["route bad"]["state"] == "fail"
    assert "username and password" in checks["route bad"]["todo"]
    assert "wrong-word" not in done.out + done.err


def test_a_stranger_on_our_port_is_found(cli: Cli) -> None:
    with capture_sink() as plain, capture_sink() as secure:
        listen = f'starttls = ["127.0.0.1:{plain.port}"]\nimplicit_tls = ["127.0.0.1:{secure.port}"]'
        add(cli, f"[smtp]\n{listen}\n")
        checks = by_name(cli("doctor", "--json"))
    stranger = checks[f"port 127.0.0.1:{plain.port}"]
    assert stranger["state"] == "fail"
    assert "another SMTP server" in stranger["found"]
    assert checks[f"port 127.0.0.1:{secure.port}"]["state"] == "fail"


@pytest.mark.parametrize(
    ("days", "hostname", "state", "says"),
    [
        (700, "smtp.example.com", "ok", "days are left"),
        (5, "smtp.example.com", "warn", "days are left"),
        (-1, "smtp.example.com", "fail", "has expired"),
        (700, "mail.example.org", "fail", "not good for smtp.example.com"),
    ],
)
def test_the_certificate(cli: Cli, tmp_path: Path, days: int, hostname: str, state: str, says: str) -> None:
    """RFC 6125 §6.4."""
    made_at = datetime.now(UTC) - timedelta(days=825 - days)
    certificate, key = make_self_signed(hostname, made_at)
    (tmp_path / "c.pem").write_bytes(certificate)
    (tmp_path / "k.pem").write_bytes(key)
    add(cli, f'[tls]\ncertificate = "{tmp_path}/c.pem"\nprivate_key = "{tmp_path}/k.pem"\n')
    check = by_name(cli("doctor", "--json"))["certificate"]
    assert check["state"] == state, check
    assert says in check["found"]


def test_a_key_of_another_certificate(cli: Cli, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    (tmp_path / "c.pem").write_bytes(make_self_signed("smtp.example.com", now)[0])
    (tmp_path / "k.pem").write_bytes(make_self_signed("smtp.example.com", now)[1])
    add(cli, f'[tls]\ncertificate = "{tmp_path}/c.pem"\nprivate_key = "{tmp_path}/k.pem"\n')
    check = by_name(cli("doctor", "--json"))["certificate"]
    assert check["state"] == "fail"
    assert "do not fit together" in check["found"]


@pytest.mark.parametrize("case", list(WRONG_PAIRS))
def test_a_pair_that_cannot_be_used(cli: Cli, tmp_path: Path, case: str) -> None:
    """`doctor` says what to do about the files, and `serve` ends with one line and no traceback."""
    tls, why = wrong_pair(tmp_path, case)
    add(cli, f'[tls]\ncertificate = "{tls.certificate}"\nprivate_key = "{tls.private_key}"\n')
    check = by_name(cli("doctor", "--json"))["certificate"]
    assert check["state"] == "fail"
    assert why in check["found"]
    assert check["todo"].startswith("put a good certificate and its key at ")
    said = cli.refused("serve")
    assert why in said
    assert "tls.certificate and tls.private_key must name PEM files" in said


def test_secrets_that_others_may_read(cli: Cli, server: SmallDns, tmp_path: Path) -> None:
    cli.ok("dkim", "add", DOMAIN)
    path = tmp_path / "state" / "secrets.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert state_of(cli, "secrets") == "ok"
    path.chmod(0o644)
    check = by_name(cli("doctor", "--json"))["secrets"]
    assert check["state"] == "fail"
    assert "chmod 600" in check["found"]
    path.unlink()
    assert state_of(cli, "secrets") == "fail"


def test_the_dns_of_senders(cli: Cli, server: SmallDns) -> None:
    """RFC 1912 §2.1, RFC 7208 §4, RFC 7489 §6.6.3."""
    add(cli, '[[route]]\nname = "direct"\nkind = "mx"\n')
    cli.config.write_text(cli.config.read_text().replace('route = "box"', 'route = "direct"'))
    server.publish("smtp.example.com. IN A 203.0.113.7\n")
    checks = by_name(cli("doctor", "--json"))
    assert checks["route direct"]["state"] == "ok"
    assert checks["SPF of example.com"]["state"] == "fail"
    assert checks["SPF of example.com"]["todo"].startswith("publish at example.com: v=spf1")
    assert checks["DMARC of example.com"]["state"] == "warn"
    made: Any = cli.json("dkim", "add", DOMAIN)
    assert state_of(cli, "DKIM of example.com") == "warn"
    server.publish('example.com. IN TXT "v=spf1 include:other.example -all"\n')
    server.publish('other.example. IN TXT "v=spf1 ip4:192.0.2.0/24 -all"\n')
    server.publish('_dmarc.example.com. IN TXT "v=DMARC1; p=quarantine"\n')
    value = made["value"]
    strings = " ".join(f'"{value[at : at + 200]}"' for at in range(0, len(value), 200))
    server.publish(f"{made['name']}. IN TXT {strings}\n")
    checks = by_name(cli("doctor", "--json"))
    assert checks["DMARC of example.com"]["state"] == "ok"
    assert checks["DKIM of example.com"]["state"] == "ok"


def test_name_servers_that_fail_are_no_crash(cli: Cli, server: SmallDns) -> None:
    server.rcode = dns.rcode.SERVFAIL
    add(cli, '[[route]]\nname = "direct"\nkind = "mx"\n')
    cli.config.write_text(cli.config.read_text().replace('route = "box"', 'route = "direct"'))
    checks = by_name(cli("doctor", "--json"))
    assert checks["route direct"]["state"] == "fail"
    assert checks["SPF of example.com"]["state"] == "warn"
    assert "SERVFAIL" in checks["SPF of example.com"]["found"]


def test_a_database_that_cannot_be_opened_hides_nothing_else(cli: Cli, server: SmallDns) -> None:
    add(cli, f'[database]\nurl = "postgresql://nobody:secret-word@127.0.0.1:{free_port()}/none"\nunit_timeout_s = 2\n')
    done = cli("doctor", "--json")
    assert done.status == 1
    checks = by_name(done)
    assert checks["database"]["state"] == "fail"
    assert checks["queue"]["state"] == "skipped"
    assert checks["route box"]["state"] == "ok"
    assert "secret-word" not in done.out + done.err
