# SPDX-License-Identifier: Apache-2.0
"""Keep the schema of a release, with what a daemon had written into it, for the tests of all later migrations.

    python -m tests.storage.release 0.1.0

Done once, when a version is released and from its own commit, before a newer revision is there.  A real daemon on each
engine has accounts, keys, people, senders, DKIM keys, delivered, waiting, capped, held and refused mail, and is killed
in the midst of its work.  What that leaves empty is filled by hand.  The dumps go to tests/storage/released/.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tests.dashboard.visitor import link_of, sign_in
from tests.peers import postgres
from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_daemon, open_smtp, post
from tests.peers.processes import wait_until
from tests.peers.sink import capture_sink

RELEASED = Path(__file__).with_name("released")
OTHER, OPERATOR, READER = "other@elsewhere.example", "operator@example.com", "reader@example.com"
CAPPED, LATE = "capped@example.com", "late@example.com"

_BY_HAND = """
insert into recovery_code (user_id, code_hash, used_at_us)
    select id, {hash}, null from user_account where email_key = 'reader@example.com';
insert into sts_policy (domain, policy_id, policy, fetched_at_us, expires_at_us)
    values ('example.net', '20260101', 'version: STSv1', 1800000000000000, 1900000000000000);
insert into tally (account_id, span_s, at_us, sent, waiting, in_doubt, failed, recount_at_us)
    select id, 60, 1800000000000000, 3, 2, 1, 1, 1800000060000000 from account where email = 'owner@example.com';
insert into process (id, alive_until_us) values ('dead', 1800000000000000) on conflict do nothing;
insert into login_try (id, client, email_hash, counts_client, is_code, at_us)
    values ('00000000-0000-0000-0000-000000000000', '192.0.2.1', {hash}, true, false, 1800000000000000);
"""


def use_everything(daemon: Daemon) -> None:
    """Leave something in as many tables as a daemon writes."""
    key = daemon.setup(grant=100)
    daemon.json("account", "add", OTHER, "--credits", "10")
    daemon.json("account", "add", OPERATOR, "--operator")
    daemon.mint(name="disabled", options=("--from-ip", "192.0.2.0/24", "--permission", "smtp"))
    daemon.cli("key", "disable", daemon.json("key", "list", ACCOUNT)[1]["id"])
    daemon.cli("sender", "add", CAPPED, "--route", "sink", "--account", ACCOUNT, "--daily-cap", "1")
    daemon.cli("sender", "add", LATE, "--route", "away", "--account", ACCOUNT)
    daemon.cli("suppression", "add", ACCOUNT, "gone@example.net")
    daemon.cli("dkim", "add", "example.com")
    daemon.cli("queue", "pause", "--route", "direct", "--destination", "paused.example")
    daemon.start()
    reader = daemon.json("user", "add", ACCOUNT, READER, "--scope", "read_only")
    with sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))) as owner, sign_in(daemon, link_of(reader)):
        owner.get("/")
        daemon.json("account", "link", OPERATOR)
        for number, sender in enumerate((SENDER, SENDER, CAPPED, CAPPED, LATE, LATE)):
            _send(daemon, key, sender, f"someone{number}@example.net", {"Idempotency-Key": f"word {number}"})
        _send(daemon, key, SENDER, "reject-1@example.net", {})
        with open_smtp(daemon, key) as session:
            session.sendmail(SENDER, ["one@example.net", "two@example.org"], "Subject: by SMTP\r\n\r\nHello\r\n")
        waiting = daemon.json("queue", "list")
        daemon.cli("queue", "hold", waiting[0]["message_id"])
        wait_until(lambda: daemon.json("queue", "stats")["by_state"].get("held") == 1, "a message to be held")
        _send(daemon, key, SENDER, "slow-1@example.net", {}, may_wait=True)
    daemon.kill()


def _send(daemon: Daemon, key: str, sender: str, to: str, headers: dict[str, str], *, may_wait: bool = False) -> None:
    body: dict[str, Any] = {"from": sender, "to": to, "subject": "Kept", "text": "Hello"}
    status, answer, _ = post(daemon, body, key, headers=headers)
    assert status in {200, 202, 502}, answer
    assert may_wait or status != 502 or to.startswith("reject"), answer


def _settings(sink_port: int) -> dict[str, Any]:
    hop = {"kind": "smtp", "host": "127.0.0.1", "tls": "none"}
    return {
        "route": [
            {"name": "sink", **hop, "port": sink_port},
            {"name": "away", **hop, "port": 1},
            {"name": "direct", "kind": "mx"},
        ],
        "delivery": {"relay_wait_s": 1, "retry_after_s": [3600]},
    }


def dump_sqlite(target: Path) -> None:
    with capture_sink() as sink, open_daemon(sink_port=sink.port, changes=_settings(sink.port), start=False) as daemon:
        use_everything(daemon)
        with closing(sqlite3.connect(daemon.state_dir / "hepmaild.db")) as database:
            database.executescript(_BY_HAND.format(hash="zeroblob(32)"))
            target.write_text("".join(f"{line}\n" for line in database.iterdump()))


def dump_postgresql(target: Path) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(postgres.open_database(stack.enter_context(postgres.open_server())))
        sink = stack.enter_context(capture_sink())
        changes = _settings(sink.port)
        daemon = stack.enter_context(open_daemon(sink_port=sink.port, database_url=url, changes=changes, start=False))
        use_everything(daemon)
        postgres.sql(url, _BY_HAND.format(hash=r"'\x00'::bytea"))
        target.write_text(postgres.dump(url))


if __name__ == "__main__":
    (version,) = sys.argv[1:]
    dump_sqlite(RELEASED / f"{version}.sqlite.sql")
    dump_postgresql(RELEASED / f"{version}.postgresql.sql")
