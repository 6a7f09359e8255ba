# SPDX-License-Identifier: Apache-2.0
"""`hepmaild dkim` and `hepmaild secrets` on a real database, with a name server on loopback."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.peers.small_dns import SmallDns, small_dns

DOMAIN = "example.com"


@pytest.fixture
def server(cli: Any) -> Iterator[SmallDns]:
    """The name server that the settings name."""
    with small_dns() as served:
        text = cli.config.read_text()
        cli.config.write_text(
            f'{text}\n[dns]\nservers = ["127.0.0.1:{served.port}"]\ntimeout_s = 10\nlifetime_s = 30\n'
        )
        yield served


def states(cli: Any) -> dict[str, str]:
    return {row["selector"]: row["state"] for row in cli.json("dkim", "list")}


def sealed_keys(tmp_path: Path) -> dict[str, bytes]:
    db = sqlite3.connect(tmp_path / "state" / "hepmaild.db")
    with db:
        found = dict(db.execute("select selector, sealed_key from dkim_key").fetchall())
    db.close()
    return found


def test_a_key_is_made_and_shown(cli: Any) -> None:
    made = cli.json("dkim", "add", "Example.COM")
    assert re.fullmatch(r"rsa\d{8}", made["selector"])
    assert {key: made[key] for key in ("domain", "algorithm", "state", "type")} == {
        "domain": DOMAIN,
        "algorithm": "rsa-sha256",
        "state": "pending",
        "type": "TXT",
    }
    assert made["name"] == f"{made['selector']}._domainkey.example.com"
    assert made["value"] == f"v=DKIM1; k=rsa; p={made['public_key']}"
    key: Any = load_der_public_key(base64.b64decode(made["public_key"]))
    assert key.key_size == 2048
    assert "sealed_key" not in made
    again = cli.json("dkim", "add", DOMAIN)
    assert again["selector"] == made["selector"] + "-2"
    assert again["public_key"] != made["public_key"]
    assert [row["selector"] for row in cli.json("dkim", "list")] == [made["selector"], again["selector"]]
    assert [row["value"] for row in cli.json("dkim", "show", DOMAIN)] == [made["value"], again["value"]]


def test_what_people_see(cli: Any) -> None:
    out = cli.ok("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", "E1")
    assert "name       e1._domainkey.example.com" in out
    assert re.search(
        r'^e1\._domainkey\.example\.com\. IN TXT "v=DKIM1; k=ed25519; p=[A-Za-z0-9+/]{43}="$', out, re.MULTILINE
    )
    assert "e1._domainkey" in cli.ok("dkim", "show", DOMAIN)
    assert "ed25519-sha256" in cli.ok("dkim", "list")


def test_refusals(cli: Any) -> None:
    assert cli.json("dkim", "list") == []
    assert "no key yet" in cli.refused("dkim", "show", DOMAIN)
    assert "no key to check" in cli.refused("dkim", "check")
    cli.ok("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", "s")
    assert "choose another selector" in cli.refused("dkim", "add", DOMAIN, "--selector", "S")
    assert "is no selector" in cli.refused("dkim", "add", DOMAIN, "--selector", "a_b", status=2)
    assert "is no domain" in cli.refused("dkim", "add", "a b", status=2)
    assert "has no key with the selector x" in cli.refused("dkim", "activate", DOMAIN, "x")
    cli.ok("dkim", "activate", DOMAIN, "s")
    assert "dkim retire example.com s" in cli.refused("dkim", "remove", DOMAIN, "s")


def test_by_hand(cli: Any) -> None:
    cli.ok("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", "s")
    assert cli.json("dkim", "activate", DOMAIN, "s")["state"] == "active"
    assert cli.json("dkim", "retire", DOMAIN, "s")["state"] == "retired"
    assert cli.json("dkim", "activate", DOMAIN, "s")["state"] == "active", "back again"
    cli.ok("dkim", "retire", DOMAIN, "s")
    assert cli.json("dkim", "remove", DOMAIN, "s") == {"domain": DOMAIN, "selector": "s", "removed": True}
    assert cli.json("dkim", "list") == []


def test_a_key_is_used_once_dns_shows_it(cli: Any, server: SmallDns) -> None:
    made = cli.json("dkim", "add", DOMAIN, "--selector", "one")
    done = cli("dkim", "check", DOMAIN, "--json")
    assert done.status == 1
    assert "one._domainkey.example.com: there is no TXT record" in done.err
    (row,) = json.loads(done.out)
    assert (row["ok"], row["state"], row["activated"]) == (False, "pending", False)
    assert row["checked_at"] is not None
    server.publish(made["zone"] + "\n")
    (row,) = cli.json("dkim", "check")
    assert (row["ok"], row["state"], row["activated"]) == (True, "active", True)
    (row,) = cli.json("dkim", "check")
    assert (row["ok"], row["state"], row["activated"]) == (True, "active", False)


def test_a_rotation(cli: Any, server: SmallDns, tmp_path: Path) -> None:
    for selector, algorithm in (("r1", "rsa"), ("e1", "ed25519")):
        server.publish(cli.json("dkim", "add", DOMAIN, "--selector", selector, "--algorithm", algorithm)["zone"] + "\n")
    assert "Keep the old record" in cli("dkim", "check").err
    server.publish(cli.json("dkim", "add", DOMAIN, "--selector", "r2")["zone"] + "\n")
    assert states(cli) == {"r1": "active", "e1": "active", "r2": "pending"}
    cli.ok("dkim", "check")
    assert states(cli) == {"r1": "active", "e1": "active", "r2": "active"}, "both sign for a while"
    db = sqlite3.connect(tmp_path / "state" / "hepmaild.db")
    with db:
        db.execute("update dkim_key set changed_at_us = changed_at_us - 3600000000")
    db.close()
    cli.ok("dkim", "check")
    assert states(cli) == {"r1": "retired", "e1": "active", "r2": "active"}


def test_wrong_records_and_silent_servers_activate_nothing(cli: Any, server: SmallDns) -> None:
    made = cli.json("dkim", "add", DOMAIN, "--selector", "one")
    other = cli.json("dkim", "add", DOMAIN, "--selector", "two")
    server.publish(other["zone"].replace("two.", "one.") + "\n")
    server.publish('two._domainkey.example.com. IN TXT "v=DKIM1; k=rsa; p="\n')
    done = cli("dkim", "check")
    assert done.status == 1
    assert "the record has another key" in done.out
    assert "revoked" in done.out
    server.publish(made["zone"] + "\n")
    assert "there are 2 TXT records" in cli("dkim", "check").out
    server.rcode = dns.rcode.SERVFAIL
    assert "not known: " in cli("dkim", "check").out
    assert set(states(cli).values()) == {"pending"}


def test_no_private_key_is_kept_in_clear(cli: Any, tmp_path: Path) -> None:
    """Everything in the state folder is searched for what the opened keys hold."""
    from hepmaild.dkim_keys import place_of
    from hepmaild.vault import Vault

    printed = ""
    for algorithm in ("rsa", "ed25519"):
        printed += cli.ok("dkim", "add", DOMAIN, "--algorithm", algorithm, "--selector", algorithm)
    vault = Vault(tmp_path / "state")
    for selector, sealed in sealed_keys(tmp_path).items():
        private = vault.open(place_of(DOMAIN, selector), sealed)
        secret = private[-32:]  # the seed of Ed25519; the last number of RSA
        needles = [secret, base64.b64encode(private)[-40:], secret.hex().encode()]
        for path in (tmp_path / "state").iterdir():
            octets = path.read_bytes() if path.is_file() else b""
            assert not any(needle in octets for needle in needles), path
        assert base64.b64encode(private)[-40:].decode() not in printed
    assert b"PRIVATE KEY" not in b"".join(p.read_bytes() for p in (tmp_path / "state").iterdir() if p.is_file())
    assert (tmp_path / "state" / "secrets.key").stat().st_mode & 0o777 == 0o600


def test_sealing_keys_are_rotated(cli: Any, tmp_path: Path) -> None:
    assert cli.json("secrets", "list") == []
    for command in ("rotate", "stage"):
        assert "no secret was sealed yet" in cli.refused("secrets", command)
    assert not (tmp_path / "state" / "secrets.key").exists()
    for selector in ("a", "b"):
        cli.ok("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", selector)
    before = sealed_keys(tmp_path)
    (first,) = cli.json("secrets", "list")
    assert (first["state"], first["secrets"]) == ("here", 2)
    staged = cli.json("secrets", "stage")
    assert cli.json("secrets", "stage")["id"] == staged["id"]
    assert [(row["state"], row["secrets"]) for row in cli.json("secrets", "list")] == [("here", 2), ("next", 0)]
    rotated = cli.json("secrets", "rotate", "--keep-old")
    assert (rotated["id"], rotated["secrets"], rotated["dropped"]) == (staged["id"], 2, [])
    assert [(row["state"], row["secrets"]) for row in cli.json("secrets", "list")] == [("here", 0), ("here", 2)]
    last = cli.json("secrets", "rotate")
    assert set(last["dropped"]) == {first["id"], staged["id"]}
    ((_, after),) = {(row["id"], row["secrets"]) for row in cli.json("secrets", "list")}
    assert after == 2
    assert all(before[name] != sealed for name, sealed in sealed_keys(tmp_path).items())
    cli.ok("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", "c")


def test_a_wrong_or_missing_file_is_told(cli: Any, tmp_path: Path) -> None:
    cli.ok("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", "a")
    path = tmp_path / "state" / "secrets.key"
    path.unlink()
    said = cli.refused("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", "b")
    assert "secrets.key is missing: copy it" in said
    assert "secrets.key is missing: copy it" in cli.refused("secrets", "stage")
    assert not path.exists(), "no new one, which would open nothing"
    from hepmaild.vault import Vault

    Vault(tmp_path / "state").make()
    assert "has not the key" in cli.refused("dkim", "add", DOMAIN, "--algorithm", "ed25519", "--selector", "b")
    assert "has not the key" in cli.refused("secrets", "rotate")
    done = cli("serve")
    assert (done.status, "has not the key" in done.err.splitlines()[-1]) == (1, True)
    done = cli("secrets", "list")
    assert (done.status, "missing" in done.out) == (1, True)
    assert [row["selector"] for row in cli.json("dkim", "list")] == ["a"], "what needs no secret works"


def test_what_the_command_line_does_to_keys_is_written_down(cli: Any) -> None:
    made = cli.json("dkim", "add", DOMAIN, "--selector", "one")
    for deed in ("activate", "retire", "remove"):
        cli.ok("dkim", deed, DOMAIN, "one")
    rotated = cli.json("secrets", "rotate")
    rows = cli.json("audit", "list")[::-1]
    assert [(row["action"], row["subject"], row["data"]) for row in rows] == [
        *((f"dkim.{deed}", DOMAIN, {"selector": "one"}) for deed in ("add", "activate", "retire", "remove")),
        ("secrets.rotate", rotated["id"], {"secrets": 0}),
    ]
    assert {row["via"] for row in rows} == {"cli"}
    assert made["public_key"] not in str(rows)
