# SPDX-License-Identifier: Apache-2.0
"""A key that a client says where something else belongs: masked in what is recorded of the conversation, and logged.

(contract: api-keys.md, "only the last five characters are visible anywhere, logs included")
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.e2e.conftest import UNLIMITED, Service
from tests.peers.daemon import Daemon, open_daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.sink import CaptureSink

KEY = "hyd-mail-" + "aB3" * 13 + "Z"
MASKED = f"hyd-mail-…{KEY[-5:]}"
TO = f"{KEY}@example.net"


@pytest.fixture(params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, sink: CaptureSink) -> Iterator[Service]:
    if request.param == "sqlite":
        yield request.getfixturevalue("service")
        return
    url = request.getfixturevalue("postgres_database")
    with open_daemon(sink_port=sink.port, database_url=url, start=False) as daemon:
        key = daemon.setup(plan=UNLIMITED)
        daemon.start()
        yield Service(daemon, sink, key)


def shown(daemon: Daemon, message_id: str) -> tuple[str, Any]:
    """The events of a message as text, and its recipients."""
    found = daemon.json("log", "show", message_id)
    return json.dumps(found["events"], ensure_ascii=False), found["recipients"]


def test_by_smtp(served: Service) -> None:
    daemon = served.daemon
    with closing(open_smtp(daemon, served.key)) as session:
        assert session.ehlo(KEY)[0] == 250
        assert session.docmd("NOOP", KEY)[0] == 250
        assert session.docmd("VRFY", KEY)[0] == 252
        assert session.mail(f"{KEY}@example.com")[0] == 250
        assert session.rcpt(TO)[0] == 250
        assert session.rcpt("someone@example.net")[0] == 250
        code, said = session.data(plain_message(new_id(), sender="noreply@example.com", to=TO))
        assert code == 250, said
    said_id = re.search(rb"sent as ([0-9a-f]{16})", said)
    assert said_id is not None, said
    events, recipients = shown(daemon, said_id[1].decode())
    assert KEY not in events
    for line in ("ehlo ", "NOOP ", "VRFY ", "mail FROM:<", "rcpt TO:<"):
        assert f"{line}{MASKED}" in events
    assert f'"helo": "{MASKED}"' in events
    assert recipients[0]["recipient"] == TO, "where the mail goes is no record of what was said"
    assert KEY not in daemon.log()
    content = served.sink.content(served.sink.deliveries()[-1])
    assert content.startswith(b"Received: from unknown\r\n"), "every recipient reads it"


def test_by_http(served: Service) -> None:
    daemon = served.daemon
    headers = {"x-request-id": KEY}
    body = {"to": "someone@example.net", "subject": "x", "text": "x"}
    status, answer, found = post(daemon, body, served.key, headers=headers)
    assert status == 200, answer
    assert found["x-request-id"] == KEY, "the client's own word, back to it alone"
    events, _ = shown(daemon, answer["data"]["messageId"])
    assert f'"session": "{MASKED}"' in events
    assert KEY not in events
    for wrong in ({**body, "to": KEY}, {**body, "templateId": KEY}, {**body, "from": KEY}):
        assert post(daemon, wrong, served.key, headers=headers)[0] in {400, 404, 422}
    assert post(daemon, body, served.key, path=f"/api/v1/{KEY}")[0] == 404
    log = daemon.log()
    assert MASKED in log
    assert KEY not in log
