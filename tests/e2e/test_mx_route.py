# SPDX-License-Identifier: Apache-2.0
"""A route of kind `mx` from end to end: the daemon, Unbound and Knot, and a Postfix as the MX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.peers.daemon import SENDER, Daemon, open_daemon, post
from tests.peers.messages import new_id
from tests.peers.nameservers import open_nameservers, require_nameservers
from tests.peers.postfix import Postfix, mail_server
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.programs import require_postfix

PLAIN = """\
v4 MX 10 mx
mx A 127.0.0.1
v6-first MX 10 mx-both
mx-both AAAA 2001:db8::1
mx-both AAAA ::1
mx-both A 127.0.0.1
own-host A 127.0.0.1
second MX 5 mx-down
second MX 10 mx
mx-down A 127.0.0.9
null MX 0 .
"""
SIGNED = """\
dane MX 10 mx-good
mx-good A 127.0.0.1
_{port}._tcp.mx-good TLSA 3 1 1 {digest}
forged MX 10 mx-bad
mx-bad A 127.0.0.1
_{port}._tcp.mx-bad TLSA 3 1 1 {other}
"""


@dataclass(frozen=True, slots=True)
class Service:
    daemon: Daemon
    postfix: Postfix
    key: str

    def send(self, *recipients: str) -> tuple[str, int, Any]:
        """The test's id, and the answer."""
        test_id = new_id()
        body = {"to": list(recipients), "subject": "x", "text": "x", "headers": {"X-Test-Id": test_id}}
        status, answer, _ = post(self.daemon, body, self.key)
        return test_id, status, answer

    def delivered(self, test_id: str) -> int:
        return sum(test_id.encode() in message for message in self.postfix.messages())


def digest_of(postfix: Postfix) -> str:
    certificate = x509.load_pem_x509_certificate((postfix.folder / "localhost.crt").read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    require_postfix()
    require_nameservers()
    with mail_server() as postfix:
        port = postfix.ports["smtp"]
        signed = SIGNED.format(port=port, digest=digest_of(postfix), other="ab" * 32)
        with open_nameservers({"plain.test": PLAIN, "signed.test": signed}) as names:
            changes = {
                "dns": {"servers": [f"127.0.0.1:{names.resolver}"], "trust_ad": True},
                "route": [{"name": "direct", "kind": "mx", "port": port}],
                "sender": [{"address": SENDER, "route": "direct", "default": True}],
                "delivery": {"retry_after_s": [600]},
            }
            with open_daemon(sink_port=9, changes=changes, start=False) as daemon:
                key = daemon.setup(plan="bench")
                daemon.start()
                yield Service(daemon, postfix, key)
                assert_no_traceback(daemon.log())


@pytest.mark.parametrize("name", ["v4.plain.test", "v6-first.plain.test", "own-host.plain.test", "second.plain.test"])
def test_delivered(service: Service, name: str) -> None:
    test_id, status, answer = service.send(f"someone@{name}")
    assert status == 200, answer
    wait_until(lambda: service.delivered(test_id) == 1, "the message in the maildir")


def test_delivered_with_dane(service: Service) -> None:
    test_id, status, answer = service.send("someone@dane.signed.test")
    assert status == 200, answer
    wait_until(lambda: service.delivered(test_id) == 1, "the message in the maildir")
    shown = json.dumps(service.daemon.json("log", "show", answer["data"]["messageId"]))
    assert "TLS dane (TLSA 3 1 1)" in shown


def test_a_certificate_that_does_not_fit_gets_no_mail(service: Service) -> None:
    test_id, status, answer = service.send("someone@forged.signed.test")
    assert status == 202, answer
    shown = json.dumps(service.daemon.json("log", "show", answer["data"]["messageId"]))
    assert "fits no TLSA record" in shown
    assert service.delivered(test_id) == 0


@pytest.mark.parametrize(("name", "reply"), [("null.plain.test", "556 5.1.10"), ("nothing.plain.test", "550 5.1.2")])
def test_refused_at_once(service: Service, name: str, reply: str) -> None:
    _, status, answer = service.send(f"someone@{name}")
    assert status == 502, answer
    assert reply in json.dumps(answer)


def test_a_dns_failure_is_retried(service: Service) -> None:
    _, status, answer = service.send("someone@lame.test")
    assert status == 202, answer
    shown = json.dumps(service.daemon.json("log", "show", answer["data"]["messageId"]))
    assert "451 4.4.3" in shown


def test_several_destinations_of_one_message(service: Service) -> None:
    test_id, status, answer = service.send(
        "one@v4.plain.test", "two@v6-first.plain.test", "three@dane.signed.test", "none@null.plain.test"
    )
    assert status == 200, answer
    wait_until(lambda: service.delivered(test_id) == 3, "three messages in the maildir")
