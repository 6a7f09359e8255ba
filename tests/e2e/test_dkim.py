# SPDX-License-Identifier: Apache-2.0
"""Mail that passed the whole service is verified by two programs that share no code with it: dkimpy and OpenDKIM."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dkim as dkimpy
import pytest

from tests.e2e.conftest import UNLIMITED
from tests.peers.daemon import SENDER, CommandFailed, Daemon, open_daemon, open_smtp, post
from tests.peers.messages import differences, new_id, plain_message, tricky_message
from tests.peers.opendkim import opendkim_says, require_opendkim
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.sink import CaptureSink, capture_sink
from tests.peers.small_dns import SmallDns, small_dns

TO = "someone@example.net"
DOMAIN = "example.com"


@dataclass
class Signing:
    """A running daemon whose name server is ours, with one active key of each kind: `r1` and `e1`."""

    daemon: Daemon
    sink: CaptureSink
    dns: SmallDns
    key: str
    zone: str = ""

    def add(self, selector: str, algorithm: str) -> str:
        """A pending key whose record is published; its line for a zone file."""
        made = self.daemon.json("dkim", "add", DOMAIN, "--selector", selector, "--algorithm", algorithm)
        self.dns.publish(made["zone"] + "\n")
        self.zone += made["zone"] + "\n"
        return str(made["zone"])

    def send(self, message: bytes) -> str:
        with open_smtp(self.daemon, self.key) as session:
            session.sendmail(SENDER, [TO], message)
        found = re.search(rb"^X-Test-Id: *(\S+)", message, re.MULTILINE)
        assert found is not None
        return found[1].decode()

    def arrived(self, test_id: str) -> bytes:
        return self.sink.content(self.sink.wait_for_id(test_id))

    def find_text(self, name: bytes, timeout: float = 5) -> bytes | None:
        """DNS, for dkimpy."""
        for known, rrset in self.dns.records.items():
            if known.to_text() == name.decode():
                record: Any = rrset[0]
                return b"".join(record.strings)
        return None

    def assert_good(self, content: bytes, count: int = 2) -> None:
        assert signatures(content) == count
        for number in range(count):
            assert dkimpy.DKIM(content).verify(idx=number, dnsfunc=self.find_text)


def signatures(content: bytes) -> int:
    return len(re.findall(rb"^DKIM-Signature:", content.partition(b"\r\n\r\n")[0], re.MULTILINE))


@pytest.fixture(scope="module")
def signing() -> Iterator[Signing]:
    with (
        capture_sink() as sink,
        small_dns() as dns,
        open_daemon(
            sink_port=sink.port,
            changes={"dns": {"servers": [f"127.0.0.1:{dns.port}"], "timeout_s": 10, "lifetime_s": 30}},
            start=False,
        ) as daemon,
    ):
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        found = Signing(daemon, sink, dns, key)
        before = found.send(plain_message(new_id(), sender=SENDER, to=TO, size_octets=500))
        assert signatures(found.arrived(before)) == 0, "without a key nothing is signed"
        for selector, algorithm in (("r1", "rsa"), ("e1", "ed25519")):
            found.add(selector, algorithm)
        pending = found.send(plain_message(new_id(), sender=SENDER, to=TO, size_octets=500))
        assert signatures(found.arrived(pending)) == 0, "nor with a pending one"
        assert {row["state"] for row in daemon.json("dkim", "check")} == {"active"}
        yield found
        assert_no_traceback(daemon.log())


def test_smtp(signing: Signing) -> None:
    message = tricky_message(new_id(), sender=SENDER, to=TO)
    content = signing.arrived(signing.send(message))
    assert sorted(differences(message, content)) == ["+dkim-signature", "+dkim-signature", "+received"]
    assert content.startswith(b"DKIM-Signature: ")
    signing.assert_good(content)


@pytest.mark.parametrize("mebi", [0.4, 1.1, 20])
def test_large_messages(signing: Signing, mebi: float) -> None:
    """Hashed in a thread, in memory and from a file."""
    message = plain_message(new_id(), sender=SENDER, to=TO, size_octets=int(mebi * (1 << 20)))
    signing.assert_good(signing.arrived(signing.send(message)))


def test_http(signing: Signing) -> None:
    test_id = new_id()
    draft = {
        "from": f"Grüße <{SENDER}>",
        "to": [TO],
        "subject": "Ärger  mit   Leerzeichen",
        "text": "Hallo  \n\n\n",
        "html": "<p>Hallo</p>",
        "headers": {"X-Test-Id": test_id},
    }
    status, answer, _ = post(signing.daemon, draft, signing.key)
    assert status == 200, answer
    signing.assert_good(signing.arrived(test_id))


def test_opendkim_agrees(signing: Signing) -> None:
    require_opendkim()
    message = tricky_message(new_id(), sender=SENDER, to=TO)
    content = signing.arrived(signing.send(message))
    assert opendkim_says(content, signing.zone) == ""
    first, second = re.findall(rb"^DKIM-Signature:.*?\r\n(?=[!-~])", content, re.MULTILINE | re.DOTALL)
    assert opendkim_says(content.replace(first, b""), signing.zone) == ""
    assert opendkim_says(content.replace(second, b""), signing.zone) == ""
    assert "Bad signature" in opendkim_says(content.replace(b"Subject: ", b"Subject: Re: "), signing.zone)


def test_keys_come_and_go_while_the_daemon_runs(signing: Signing) -> None:
    """In a session that is open, too: the next message is signed by the keys of then."""
    with open_smtp(signing.daemon, signing.key) as session:

        def send() -> bytes:
            test_id = new_id()
            session.sendmail(SENDER, [TO], plain_message(test_id, sender=SENDER, to=TO, size_octets=500))
            return signing.arrived(test_id)

        signing.assert_good(send(), 2)
        signing.daemon.cli("dkim", "retire", DOMAIN, "e1")
        signing.assert_good(send(), 1)
        signing.daemon.cli("secrets", "rotate")
        signing.daemon.cli("dkim", "activate", DOMAIN, "e1")
        signing.assert_good(send(), 2)


def test_a_message_that_waits_keeps_its_signature(signing: Signing) -> None:
    """Signed at acceptance: the key may be gone when it goes out."""
    signing.sink.stop()
    test_id = signing.send(plain_message(new_id(), sender=SENDER, to=TO, size_octets=500))
    signing.daemon.cli("dkim", "retire", DOMAIN, "e1")
    signing.sink.start()
    signing.assert_good(signing.arrived(test_id), 2)
    signing.daemon.cli("dkim", "activate", DOMAIN, "e1")


def test_a_daemon_with_another_secrets_file_does_not_start(signing: Signing) -> None:
    daemon = signing.daemon
    daemon.terminate()
    path = daemon.state_dir / "secrets.key"
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(CommandFailed) as refused:
        daemon.cli("serve")
    last = refused.value.stderr.splitlines()[-1]
    assert last.startswith(f"hepmaild: {path} is missing: copy it")
    path.write_bytes(kept)
    path.chmod(0o600)
    daemon.start()
    signing.assert_good(signing.arrived(signing.send(plain_message(new_id(), sender=SENDER, to=TO, size_octets=500))))


def test_the_daemon_activates_a_key_by_itself(signing: Signing) -> None:
    """Its first look comes two minutes after the key was made: here the key is made in the past."""
    daemon = signing.daemon
    signing.add("e2", "ed25519")
    daemon.terminate()
    db = sqlite3.connect(daemon.state_dir / "hepmaild.db")
    with db:
        db.execute("update dkim_key set created_at_us = created_at_us - 300000000 where selector = 'e2'")
    db.close()
    daemon.start()

    def is_active() -> bool:
        return any(row["selector"] == "e2" and row["state"] == "active" for row in daemon.json("dkim", "list"))

    wait_until(is_active, "the daemon to activate the key")
    signing.assert_good(
        signing.arrived(signing.send(plain_message(new_id(), sender=SENDER, to=TO, size_octets=500))), 3
    )
