# SPDX-License-Identifier: Apache-2.0
"""The same message by every client, through the real daemon, to a real next hop: only what is documented changes."""

from __future__ import annotations

import email
import email.policy
import json
import re
import smtplib
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import UNLIMITED, Service
from tests.peers.clients import SMTP_CLIENTS, ClientFailed, nodemailer, send_smtplib
from tests.peers.daemon import SENDER, open_daemon
from tests.peers.messages import differences, new_id, plain_message, split, tricky_message
from tests.peers.postfix import Postfix, mail_server
from tests.peers.processes import wait_until
from tests.peers.programs import find_program, require, require_postfix
from tests.peers.sink import smtp_sink

TO, CC, HIDDEN = "someone@example.net", "other@example.net", "hidden@example.net"
# These take Bcc out themselves, and Postfix leaves its own trace.
OWN_CHANGES = {"postfix": ["+received"]}


def expected_changes(client: str) -> Counter[str]:
    """The daemon's documented changes, and what the client itself is known to do."""
    return Counter(["+received", "-bcc", *OWN_CHANGES.get(client.partition("-")[0], [])])


@pytest.mark.parametrize("client", sorted(SMTP_CLIENTS))
def test_mail_of_every_client_arrives_intact(service: Service, client: str) -> None:
    test_id = new_id()
    message = tricky_message(test_id, sender=SENDER, to=TO, bcc=HIDDEN)
    SMTP_CLIENTS[client](service.daemon, service.key, message, SENDER, [TO, CC, HIDDEN])
    entry = service.sink.wait_for_id(test_id)
    assert sorted(entry["recipients"]) == sorted([TO, CC, HIDDEN])
    assert entry["mail_from"] == SENDER
    content = service.sink.content(entry)
    assert Counter(differences(message, content)) == expected_changes(client)
    assert HIDDEN.encode() not in content
    trace = split(content).fields[0].decode()
    assert trace.startswith("Received:"), "our trace comes first"
    assert "ESMTPSA" in trace
    assert "127.0.0.1" not in trace.partition("by ")[0], "the client's address is not told"


# Postfix would keep the mail and try again for days.
@pytest.mark.parametrize("client", sorted(name for name in SMTP_CLIENTS if not name.startswith("postfix")))
def test_a_wrong_key_is_told_to_every_client(service: Service, client: str) -> None:
    wrong = "hyd-mail-" + "x" * 40
    with pytest.raises((ClientFailed, smtplib.SMTPAuthenticationError), match=r"535\D+5\.7\.8"):
        SMTP_CLIENTS[client](service.daemon, wrong, tricky_message(new_id(), sender=SENDER, to=TO), SENDER, [TO])


def test_missing_fields_are_added(service: Service) -> None:
    test_id = new_id()
    message = tricky_message(test_id, sender=SENDER, to=TO, leave_out=("From", "Date", "Message-ID"))
    send_smtplib(service.daemon, service.key, message, SENDER, [TO])
    content = service.sink.content(service.sink.wait_for_id(test_id))
    assert Counter(differences(message, content)) == Counter(["+received", "+from", "+date", "+message-id"])
    parsed = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert parsed["From"].addresses[0].addr_spec == SENDER
    assert parsed["Message-ID"].strip().endswith("@example.com>"), "the right-hand side is the sender's domain"
    assert parsed["Date"].datetime is not None


@pytest.mark.parametrize("mebi", [0.9, 1.1, 20])
def test_large_messages_arrive_intact(service: Service, mebi: float) -> None:
    """On both sides of the size from which content is kept in a file."""
    test_id = new_id()
    message = plain_message(test_id, sender=SENDER, to=TO, size_octets=int(mebi * 1024 * 1024))
    send_smtplib(service.daemon, service.key, message, SENDER, [TO])
    content = service.sink.content(service.sink.wait_for_id(test_id))
    assert differences(message, content) == ["+received"]
    wait_until(lambda: not list((service.daemon.state_dir / "spool").iterdir()), "the spool to be empty")


def test_many_messages_over_a_pool(service: Service) -> None:
    ids = [new_id() for _ in range(12)]
    messages = [(SENDER, [TO], tricky_message(test_id, sender=SENDER, to=TO)) for test_id in ids]
    results = nodemailer(service.daemon, service.key, messages, pool=True)
    assert all(result["ok"] for result in results), results
    for (_, _, message), test_id in zip(messages, ids, strict=True):
        content = service.sink.content(service.sink.wait_for_id(test_id))
        assert differences(message, content) == ["+received"]
    for result in results:
        assert re.fullmatch(r"250 2\.0\.0 (sent|queued) as [0-9a-f]{16}", result["response"])


def test_two_transactions_to_one_message_are_two_messages(service: Service) -> None:
    """As relays do that split a message: the envelope decides, nobody gets it twice."""
    test_id = new_id()
    message = tricky_message(test_id, sender=SENDER, to=TO)
    send_smtplib(service.daemon, service.key, message, SENDER, [TO])
    send_smtplib(service.daemon, service.key, message, SENDER, [CC])
    service.sink.wait_for_id(test_id)
    got = [entry["recipients"] for entry in service.sink.deliveries() if entry["id"] == test_id]
    assert sorted(got) == sorted([[TO], [CC]])


def test_curl_by_https(service: Service) -> None:
    require("curl")
    test_id = new_id()
    body = {
        "to": [TO],
        "cc": CC,
        "bcc": HIDDEN,
        "subject": "Grüße",
        "text": "line\n.\nFrom here",
        "html": "<p>Grüße</p>",
        "headers": {"X-Test-Id": test_id},
    }
    command = [find_program("curl"), "-sS", "--insecure", "--config", "-", "--data-binary", json.dumps(body)]
    command += ["-H", "Content-Type: application/json"]
    command.append(f"https://127.0.0.1:{service.daemon.ports['https']}/api/v1/email/send")
    secret = f'header = "Authorization: Bearer {service.key}"\n'
    done = subprocess.run(command, input=secret, capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    assert answer["ok"], answer
    assert answer["data"]["status"] == "sent"
    assert answer["data"]["recipients"] == answer["data"]["creditsCharged"] == 3
    entry = service.sink.wait_for_id(test_id)
    assert sorted(entry["recipients"]) == sorted([TO, CC, HIDDEN])
    content = service.sink.content(entry)
    parsed = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert parsed["Subject"] == "Grüße"
    assert parsed["Bcc"] is None
    assert HIDDEN.encode() not in content
    assert entry["message_id"] == answer["data"]["smtpMessageId"]
    text = parsed.get_body(("plain",))
    assert text is not None
    assert text.get_content().splitlines() == str(body["text"]).splitlines()
    html = parsed.get_body(("html",))
    assert html is not None
    assert html.get_content().splitlines() == [body["html"]]


@pytest.fixture(scope="module")
def postfix_hop() -> Iterator[Postfix]:
    require_postfix()
    with mail_server() as hop:
        yield hop


@pytest.fixture(scope="module")
def before_postfix(postfix_hop: Postfix) -> Iterator[Service]:
    """A daemon whose next hop is a Postfix, by STARTTLS with a checked certificate."""
    route = {"name": "sink", "kind": "smtp", "host": "localhost", "port": postfix_hop.ports["smtp"], "tls": "starttls"}
    route["tls_ca"] = str(postfix_hop.folder / "localhost.crt")
    with open_daemon(sink_port=0, changes={"route": [route]}, start=False) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        yield Service(daemon, None, key)  # type: ignore[arg-type]


@pytest.mark.parametrize("client", ["swaks-587-plain", "curl-465-login", "nodemailer-465-pooled", "postfix-587"])
def test_to_a_real_postfix(before_postfix: Service, postfix_hop: Postfix, client: str) -> None:
    test_id = new_id()
    message = tricky_message(test_id, sender=SENDER, to=TO, bcc=HIDDEN)
    SMTP_CLIENTS[client](before_postfix.daemon, before_postfix.key, message, SENDER, [TO])

    def arrived() -> list[bytes]:
        return [kept for kept in postfix_hop.messages() if test_id.encode() in kept]

    postfix_hop.child.wait_for(arrived, f"the message at Postfix\n{postfix_hop.log()[-2000:]}")
    (kept,) = arrived()
    expected = expected_changes(client) + Counter(["+return-path", "+x-original-to", "+delivered-to", "+received"])
    assert Counter(differences(message, kept.replace(b"\n", b"\r\n"))) == expected


def test_to_smtp_sink() -> None:
    require("smtp-sink")
    with (
        smtp_sink(dump=True) as sink,
        open_daemon(sink_port=sink.port, start=False) as daemon,
    ):
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        message = tricky_message(new_id(), sender=SENDER, to=TO)
        send_smtplib(daemon, key, message, SENDER, [TO])
        sink.wait_for(1)
        sink.child.wait_for(lambda: [kept for kept in sink.messages() if kept.endswith(b"\n\n")], "the dump")
        (kept,) = sink.messages()
    header, _, body = kept.partition(b"\n\n")
    assert b"X-Rcpt-Args: <someone@example.net>" in header
    # smtp-sink ends each message with an empty line of its own.
    assert body.rstrip(b"\n") == split(message).body.replace(b"\r\n", b"\n").rstrip(b"\n")
