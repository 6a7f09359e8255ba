# SPDX-License-Identifier: Apache-2.0
"""`GET /metrics` of a real process: compared with what was done to it, and with whoever does not behave."""

from __future__ import annotations

import http.client
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from hepmaild import metrics
from tests.e2e.conftest import UNLIMITED
from tests.e2e.hygiene import assert_secret_is_nowhere, leaves_nothing, still_works
from tests.peers import postgres
from tests.peers.daemon import ACCOUNT, ROOT, SENDER, Daemon, merge, open_daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.processes import assert_no_traceback, wait_until
from tests.peers.sink import CaptureSink

LISTEN = {"metrics": {"listen": ["127.0.0.1:0"]}}
# Whatever is deferred stays so while a test looks.
PATIENT = merge(LISTEN, {"delivery": {"retry_after_s": [3600]}})
Samples = dict[tuple[str, ...], float]


def get(
    daemon: Daemon, *, path: str = "/metrics", method: str = "GET", accept: str = ""
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.ports["metrics"], timeout=30)
    with closing(connection):
        connection.request(method, path, headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.read().decode(), headers


def scrape(daemon: Daemon) -> Samples:
    """Every sample as (name, label value, …) in the order of the labels' names."""
    status, text, _ = get(daemon)
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in read_text(text)
        for sample in family.samples
    }


def wait_for(daemon: Daemon, **wanted: float) -> Samples:
    """Scrape until these are so (a page is kept for a second, a count of the queue for some)."""

    def found() -> Samples:
        samples = scrape(daemon)
        return samples if all(samples.get((name,)) == value for name, value in wanted.items()) else {}

    return wait_until(found, str(wanted))


def sample_of(daemon: Daemon, key: tuple[str, ...], value: float) -> Samples:
    """Scrape until one sample has this value."""
    return samples_of(daemon, {key: value})


def samples_of(daemon: Daemon, wanted: Samples) -> Samples:
    """Scrape until these samples have these values, all at once."""

    def found() -> Samples:
        samples = scrape(daemon)
        return samples if wanted.items() <= samples.items() else {}

    return wait_until(found, str(wanted))


@pytest.fixture(scope="module")
def daemon(sink: CaptureSink) -> Iterator[Daemon]:
    """One with a listener, for what needs no counters of its own."""
    with open_daemon(sink_port=sink.port, changes=LISTEN) as daemon:
        yield daemon
        assert_no_traceback(daemon.log())


def send_smtp(daemon: Daemon, key: str, *recipients: str) -> None:
    session = open_smtp(daemon, key)
    with closing(session), suppress(smtplib.SMTPDataError):
        session.sendmail(SENDER, recipients, plain_message(new_id(), sender=SENDER, to=recipients[0]))


def send_http(daemon: Daemon, key: str | None, *recipients: str, word: str = "", sender: str = SENDER) -> str:
    """The API code of the refusal, or empty."""
    body = {"from": sender, "to": list(recipients), "subject": "x", "text": "x"}
    _, answer, _ = post(daemon, body, key, headers={"Idempotency-Key": word} if word else {})
    return "" if answer["ok"] else str(answer["code"])


def test_what_was_done_is_what_is_shown(sink: CaptureSink) -> None:
    with open_daemon(sink_port=sink.port, start=False, changes=PATIENT) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        send_smtp(daemon, key, "a@example.net", "b@example.net")
        send_smtp(daemon, key, "reject-1@example.net")
        assert send_http(daemon, key, "c@example.net", word="word-0001") == ""
        assert send_http(daemon, key, "c@example.net", word="word-0001") == ""  # its twin
        assert send_http(daemon, key, "defer-1@example.net", "d@example.net") == ""
        assert send_http(daemon, key, "nodot-1@example.net") == "RELAY_FAILED"
        assert send_http(daemon, key, "drop-1@example.net") == ""
        assert send_http(daemon, key, "e@example.net", sender="stranger@example.org") == "SENDER_NOT_ALLOWED"
        assert send_http(daemon, "hyd-mail-" + "x" * 32, "e@example.net") == "INVALID_KEY"
        assert send_http(daemon, None, "e@example.net") == "MISSING_KEY"
        with pytest.raises(smtplib.SMTPAuthenticationError):
            open_smtp(daemon, "hyd-mail-" + "x" * 32)
        # Whose answer has come may still be about to be seen off.
        found = samples_of(
            daemon,
            {("hepmaild_queue_recipients", "sink", "deferred"): 2, ("hepmaild_connections", "smtp"): 0},
        )
        check_doors(found)
        check_delivery(found)
        check_queue(found)
        check_the_rest(found)
        page = get(daemon)[1]
        assert key not in page
        assert "example.net" not in page
        assert_secret_is_nowhere(daemon, key)


def check_doors(found: Samples) -> None:
    assert found["hepmaild_accepted_messages_total", "smtp"] == 2
    assert found["hepmaild_accepted_messages_total", "http"] == 4
    assert found["hepmaild_accepted_recipients_total", "smtp"] == 3
    assert found["hepmaild_accepted_recipients_total", "http"] == 5
    assert found["hepmaild_accepted_bytes_total", "smtp"] > 200
    assert found["hepmaild_replayed_messages_total", "http"] == 1
    assert {key[1:]: value for key, value in found.items() if key[0] == "hepmaild_refusals_total"} == {
        ("RELAY_FAILED", "smtp"): 1,
        ("RELAY_FAILED", "http"): 1,
        ("SENDER_NOT_ALLOWED", "http"): 1,
        ("INVALID_KEY", "http"): 1,
        ("INVALID_KEY", "smtp"): 2,  # smtplib tries PLAIN, then LOGIN
    }
    assert {key[1:]: value for key, value in found.items() if key[0] == "hepmaild_http_responses_total"} == {
        ("", "200"): 2,
        ("", "202"): 2,
        ("RELAY_FAILED", "502"): 1,
        ("SENDER_NOT_ALLOWED", "400"): 1,
        ("INVALID_KEY", "401"): 1,
        ("MISSING_KEY", "401"): 1,
    }
    assert found["hepmaild_accept_seconds_count", "sent", "smtp"] == 1
    assert found["hepmaild_accept_seconds_count", "refused", "smtp"] == 1
    assert found["hepmaild_accept_seconds_count", "sent", "http"] == 2
    assert found["hepmaild_accept_seconds_count", "queued", "http"] == 2
    assert found["hepmaild_accept_seconds_count", "refused", "http"] == 2


def check_delivery(found: Samples) -> None:
    results = {key[1]: value for key, value in found.items() if key[0] == "hepmaild_recipient_results_total"}
    assert results == {"delivered": 4, "failed": 2, "deferred": 1, "in_doubt": 1}
    attempts = {key[1]: value for key, value in found.items() if key[0] == "hepmaild_attempts_total"}
    assert attempts == {"delivered": 2, "failed": 2, "mixed": 1, "in_doubt": 1, "deferred": 0}
    assert found["hepmaild_attempt_seconds_count", "sink"] == 6
    assert found["hepmaild_delivery_seconds_count", "sink"] == 3
    assert found["hepmaild_dot_seconds_count", "sink"] == 5  # no dot left where the only recipient was refused
    assert found["hepmaild_attempts_active", "sink"] == 0
    assert found["hepmaild_ready_messages", "sink"] == 0
    assert found["hepmaild_paused_groups", "sink"] == 0


def check_queue(found: Samples) -> None:
    assert found["hepmaild_queue_entries", "sink", "scheduled"] == 2
    assert found["hepmaild_queue_entries", "sink", "leased"] == 0
    assert found["hepmaild_queue_entries", "sink", "due"] == 0
    assert found["hepmaild_queue_overdue_seconds", "sink"] == 0
    assert found["hepmaild_queue_recipients", "sink", "queued"] == 0
    assert found["hepmaild_queue_recipients", "sink", "held"] == 0
    assert found["hepmaild_queue_in_doubt_recipients", "sink"] == 1
    assert 0 < found["hepmaild_queue_oldest_seconds", "sink"] < 600
    assert found["hepmaild_backlog_messages",] == 2


def check_the_rest(found: Samples) -> None:
    assert found["hepmaild_store_up",] == 1
    assert found["hepmaild_store_waiting",] == 0
    assert found["hepmaild_commit_seconds_count",] == 6
    assert found["hepmaild_unit_members_count",] == found["hepmaild_unit_seconds_count",] > 6
    assert found["hepmaild_unit_members_sum",] >= 6 + 6 + 5  # messages, reports, marks
    assert found["hepmaild_draining",] == 0
    assert found["process_open_fds",] > 5
    assert found["process_resident_memory_bytes",] > 1 << 20
    assert any(key[0] == "hepmaild_build_info" for key in found)


def test_whom_a_suppression_leaves_out_is_counted_also_where_it_is_everybody(sink: CaptureSink) -> None:
    with open_daemon(sink_port=sink.port, start=False, changes=PATIENT) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.cli("suppression", "add", ACCOUNT, "gone@example.net")
        daemon.start()
        assert send_http(daemon, key, "gone@example.net", "here@example.net") == ""
        assert send_http(daemon, key, "gone@example.net") == "RELAY_FAILED"
        send_smtp(daemon, key, "gone@example.net")
        found = sample_of(daemon, ("hepmaild_suppressed_recipients_total", "http"), 2)
        assert found["hepmaild_suppressed_recipients_total", "smtp"] == 1
        assert found["hepmaild_accepted_messages_total", "http"] == 1
        assert found["hepmaild_accepted_messages_total", "smtp"] == 0


def test_every_family_is_on_the_page_and_no_other(daemon: Daemon) -> None:
    _, text, headers = get(daemon)
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f"{each.name}_total" if each.type == "counter" else each.name: each for each in read_text(text)}
    ours = {family.name: family for section in metrics.SECTIONS.values() for family in section}
    assert {name for name in families if name.startswith("hepmaild_")} == set(ours)
    for name, family in ours.items():
        assert families[name].type == family.kind
        assert families[name].documentation == family.doc
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == set(family.labels)


def test_openmetrics_for_those_who_accept_it(daemon: Daemon) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    _, text, headers = get(daemon, accept=accept)
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in read_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert "hepmaild_accepted_messages" in names
    assert "process_cpu_seconds" in names


@pytest.mark.parametrize("accept", ["", "*/*", "text/html", "application/openmetrics-text;version=x", "\xff;;,,=\t"])
def test_any_accept_is_answered(daemon: Daemon, accept: str) -> None:
    status, text, _ = get(daemon, accept=accept)
    assert status == 200
    assert "hepmaild_store_up 1.0" in text


def test_only_get_and_head_of_one_path(daemon: Daemon) -> None:
    assert get(daemon, path="/metrics?name[]=x")[0] == 200
    status, text, headers = get(daemon, method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["content-length"]) > 1000
    for path in ("/", "/metrics/", "/metrics%00", "/healthz", "/api/v1/email/send", "/" + "x" * 4000):
        assert get(daemon, path=path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, _, headers = get(daemon, method=method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_many_scrapes_on_one_connection(daemon: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.ports["metrics"], timeout=30)
    with closing(connection):
        connection.connect()
        ours = connection.sock
        for path in ("/metrics", "/nothing") * 5:
            connection.request("GET", path)
            assert connection.getresponse().read()
        assert connection.sock is ours


@pytest.mark.parametrize(
    "octets",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",  # no Host
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 200_000,
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"EHLO x\r\n",
    ],
)
def test_whatever_comes_the_connection_ends_in_order(daemon: Daemon, octets: bytes) -> None:
    with leaves_nothing(daemon, connections=1, lines_each=0):
        connection = socket.create_connection(("127.0.0.1", daemon.ports["metrics"]), timeout=30)
        with connection, suppress(ConnectionError):
            connection.sendall(octets)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
            assert answer.startswith(b"HTTP/1.1 ")
        assert get(daemon)[0] == 200


def test_silent_clients_do_not_keep_the_place(daemon: Daemon) -> None:
    """More silent and half-open connections than there are places: the next scrape is answered all the same."""
    with leaves_nothing(daemon, connections=40, lines_each=0):
        idle = [socket.create_connection(("127.0.0.1", daemon.ports["metrics"]), timeout=30) for _ in range(40)]
        try:
            for _ in range(20):
                assert get(daemon)[0] == 200
        finally:
            for each in idle:
                each.close()


@pytest.mark.slow
def test_slow_clients_are_cut_off_and_the_next_one_is_served(daemon: Daemon) -> None:
    """All places are taken by requests that never end: that lasts for `request_s` only."""
    with leaves_nothing(daemon, connections=8, lines_each=0):
        slow = [socket.create_connection(("127.0.0.1", daemon.ports["metrics"]), timeout=60) for _ in range(8)]
        try:
            for each in slow:
                each.sendall(b"GET /metrics HT")
            for each in slow:
                with suppress(ConnectionError):
                    assert each.recv(100) == b""  # ended by the daemon
            assert get(daemon)[0] == 200
        finally:
            for each in slow:
                each.close()


def test_mail_goes_on_while_somebody_scrapes_all_the_time(sink: CaptureSink) -> None:
    with open_daemon(sink_port=sink.port, start=False, changes=LISTEN) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        for _ in range(50):
            assert get(daemon)[0] == 200
            still_works(daemon, key)
        sample_of(daemon, ("hepmaild_accepted_messages_total", "http"), 50)


def test_without_the_setting_nothing_listens(sink: CaptureSink) -> None:
    with open_daemon(sink_port=sink.port) as daemon:
        assert "metrics" not in daemon.ports
        assert "door=metrics" not in daemon.log()
        assert _listening_ports(daemon) == set(daemon.ports.values())


def _listening_ports(daemon: Daemon) -> set[int]:
    """Of its process, as the kernel has them."""
    sockets = set()
    for link in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(OSError):
            name = link.readlink().name
            if name.startswith("socket:["):
                sockets.add(name[8:-1])
    rows = [line.split() for line in Path(f"/proc/{daemon.pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in sockets}


def test_a_port_that_is_taken_is_named(sink: CaptureSink) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with open_daemon(sink_port=sink.port, start=False, changes={"metrics": {"listen": [address]}}) as daemon:
            done = subprocess.run(
                [sys.executable, "-m", "hepmaild", "-c", str(daemon.config_path), "serve"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            )
    assert done.returncode != 0
    assert f"cannot listen on {address}" in done.stderr
    assert_no_traceback(done.stderr)


def test_the_store_goes_away_and_the_page_stays(sink: CaptureSink) -> None:
    postgres.require_postgres(own=True)
    with postgres.open_cluster() as cluster, postgres.open_database(cluster.server) as url:
        changes = merge(LISTEN, {"database": {"url": url}})
        with open_daemon(sink_port=sink.port, start=False, changes=changes) as daemon:
            key = daemon.setup(plan=UNLIMITED)
            daemon.start()
            assert send_http(daemon, key, "a@example.net") == ""
            found = wait_for(daemon, hepmaild_store_up=1)
            assert ("hepmaild_queue_entries", "sink", "due") in found
            cluster.stop("immediate")
            found = wait_for(daemon, hepmaild_store_up=0)
            assert not any(key[0].startswith("hepmaild_queue_") for key in found)
            assert found["hepmaild_accepted_messages_total", "http"] == 1
            assert send_http(daemon, key, "b@example.net") == "UNAVAILABLE"
            sample_of(daemon, ("hepmaild_refusals_total", "UNAVAILABLE", "http"), 1)
            cluster.start()
            wait_for(daemon, hepmaild_store_up=1)
            found = sample_of(daemon, ("hepmaild_queue_recipients", "sink", "queued"), 0)
            assert ("hepmaild_queue_entries", "sink", "due") in found
