# SPDX-License-Identifier: Apache-2.0
"""A daemon in which everything that anybody can name, say or send is an attack on whoever looks at it.

`SOURCES` are the texts, by where they were put: each must be seen on some page, as text.  Something new that people
name is put in by `_fill`, and gets a line there.
"""

from __future__ import annotations

import contextlib
import email.message
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tests.dashboard.visitor import PASSWORD, Visitor, csrf_of, hidden_of, link_of, open_client, sign_in, words
from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_daemon, open_smtp, post
from tests.peers.hostile_hop import hostile_hop
from tests.peers.processes import assert_no_traceback, wait_until

OPERATOR = "operator@service.example"
# Out of an attribute and out of a text, a script at once and one behind a picture that cannot be loaded; a template.
EVIL = "'\"><img src=x onerror=evil=1><x-evil onclick=1></title></script><script>evil=1</script>{{9**9}}"
WORKED_OUT = str(9**9)  # too long for the random characters of a page to be it
# What an address or a name of a host may hold.
TICKS = "a'onfocus='evil=1'x"
SOURCES = {
    "subject": EVIL + "s",
    "key": EVIL + "k",
    "reply": EVIL + "r",
    "reason": EVIL + "p",
    "note": EVIL + "n",
    "pause": EVIL + "q",
    "agent": EVIL + "a",
    "header": EVIL + "h",
    "plain": EVIL + "t",
    "file": "'x-evil onclick=1{{7&7}}.html",
    "template": EVIL + "m",
    "server": EVIL + "v",
    "recipient": f"no{TICKS}@example.net",
    "user": f"user{TICKS}@example.com",
    "sender": f"sender{TICKS}@example.com",
    "helo": "<img/src=x/onerror=evil=1>",
}
FILE_NAME = "../'><x-evil onclick=1>{{7&7}}.html"  # of which the above is left
HTML = """<!doctype html><html><head><title>x</title><meta http-equiv="refresh" content="0;url=CANARY/refresh">
<base href="CANARY/"><LINK rel="preconnect" href="CANARY"><link rel="dns-prefetch" href="CANARY">
<link rel="stylesheet" href="CANARY/style.css"><script src="CANARY/script.js"></script>
<style>@import url("CANARY/import.css"); body { background: url("CANARY/background.png") }</style></head>
<body onload="evil=1;parent.evil=1"><script>evil=1;parent.evil=1;top.evil=1</script><p id="letter">The letter</p>
<img src="CANARY/picture.png" onerror="evil=1"><iframe src="CANARY/frame"></iframe>
<object data="CANARY/object"></object>
<form action="CANARY/form" method="post"><input name="a" value="1"></form><script>document.forms[0].submit()</script>
<a href="javascript:evil=1" id="a">a</a><svg onload="evil=1"></svg><video src="CANARY/video"></video>
<a href="CANARY/ping" ping="CANARY/ping" target="_top" id="top">top</a></body></html>"""


@dataclass(frozen=True, slots=True)
class HostileSite:
    """message_id: of one with hostile content; failed_id, deferred_id: of those that the next hop spoke about."""

    daemon: Daemon
    key: str
    owner: Visitor
    operator: Visitor
    message_id: str
    failed_id: str
    deferred_id: str
    values: dict[str, str]

    def send(self, **fields: Any) -> str:
        """A message by the API; its id."""
        return _send(self.daemon, self.key, **fields)


def _send(daemon: Daemon, key: str, **fields: Any) -> str:
    body = {"to": "anna@example.net", "subject": SOURCES["subject"], "text": SOURCES["plain"], **fields}
    status, answer, _ = post(daemon, body, key)
    if status == 502:
        return str(re.findall(r"[0-9a-f]{16}", str(answer))[0]) if re.findall(r"[0-9a-f]{16}", str(answer)) else ""
    assert status in (200, 202), answer
    return str(answer["data"]["messageId"])


@contextlib.contextmanager
def open_hostile_site(canary: str = "http://127.0.0.1:9") -> Iterator[HostileSite]:
    """canary: where nothing may ask for anything."""
    with ExitStack() as stack:
        port = stack.enter_context(hostile_hop(SOURCES["reply"]))
        changes: dict[str, Any] = {
            "delivery": {"body_days": 7, "retry_after_s": [3600]},
            "route": [
                {"name": "evil", "kind": "smtp", "host": "127.0.0.1", "port": port, "tls": "none"},
                {"name": "direct", "kind": "mx"},
            ],
            "sender": [{"address": SENDER, "route": "evil", "default": True}],
        }
        daemon = stack.enter_context(open_daemon(sink_port=port, changes=changes, start=False))
        key = daemon.setup()
        daemon.json("account", "add", OPERATOR, "--operator")
        daemon.json("sender", "add", SOURCES["sender"], "--route", "evil", "--account", ACCOUNT)
        daemon.start()
        daemon.write_settings()
        owner = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))))
        operator = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", OPERATOR))))
        yield _fill(daemon, key, owner, operator, canary)
        log = daemon.log()
        assert_no_traceback(log)


def _fill(daemon: Daemon, key: str, owner: Visitor, operator: Visitor, canary: str) -> HostileSite:
    made = owner.post("/keys", {"name": SOURCES["key"], "permission": ["smtp", "http"]}, page="/keys/new")
    assert made.status_code == 200, words(made.text)
    evil_key = re.search(r"hyd-mail-[A-Za-z0-9]{40}", made.text)
    assert evil_key is not None
    key_id = re.search(r'/keys/([0-9a-f-]{36})"', made.text)
    assert key_id is not None
    reason = {"address": "suppressed@example.net", "days": "9", "reason": SOURCES["reason"]}
    owner.follow("/suppressions", reason, page="/suppressions")
    invited = owner.post("/security/users", {"email": SOURCES["user"], "scope": "admin"}, page="/security/users/new")
    assert invited.status_code == 200, words(invited.text)
    template = {"name": SOURCES["template"], "subject": SOURCES["template"], "html": SOURCES["template"], "text": ""}
    template_page = owner.follow("/templates", template, page="/templates/new")
    template_id = re.search(r'data-page-id="([0-9a-f-]{36})"', template_page)
    assert template_id is not None
    server = {
        "name": SOURCES["server"],
        "host": "127.0.0.1",
        "port": "2525",
        "tls": "none",
        "address": "me@own.example",
    }
    server["from_name"] = SOURCES["server"]
    added = owner.post("/smtp-servers", server, page="/smtp-servers/new")
    assert added.status_code == 303, words(added.text)
    account_id = daemon.json("account", "show", ACCOUNT)["id"]
    account_page = f"/operator/accounts/{account_id}"
    note = {"amount": "5", "note": SOURCES["note"], "last_grant": hidden_of(operator.get(account_page), "last_grant")}
    operator.follow(f"{account_page}/credits", note, page=account_page)
    operator.follow("/operator/queue/pause", {"route": "direct", "note": SOURCES["pause"]}, page="/operator/queue")
    _sign_in_with(daemon, SOURCES["agent"])
    secret = evil_key[0]
    message_id = _submit(daemon, secret, owner, canary)
    _send(daemon, secret, to=SOURCES["recipient"], **{"from": SOURCES["sender"]})
    deferred_id = _send(daemon, secret, to=f"later{TICKS}@example.net")
    failed_id = _id_of(owner, f"to:no{TICKS}@example.net")
    users = daemon.json("user", "list", ACCOUNT)
    values = {
        "account_id": account_id,
        "key_id": key_id[1],
        "template_id": template_id[1],
        "revision": "1",
        "server_id": added.headers["Location"].rpartition("/")[2],
        "message_id": message_id,
        "n": "4",
        "session_id": "none",
        "user_id": next(u["id"] for u in users if u["email"] == SOURCES["user"]),
        "kind": "csv",
        "token": "A" * 43,
        "version": "x",
        "name": "app.css",
    }
    return HostileSite(daemon, secret, owner, operator, message_id, failed_id, deferred_id, values)


def _sign_in_with(daemon: Daemon, agent: str) -> None:
    """A session whose browser calls itself something."""
    with open_client(daemon, headers={"User-Agent": agent}) as client:
        fields = {"csrf": csrf_of(client.get("/sign-in").text), "email": ACCOUNT, "password": PASSWORD}
        assert client.post("/sign-in", data=fields).status_code == 303


def _submit(daemon: Daemon, key: str, owner: Visitor, canary: str) -> str:
    """By SMTP, where everything in a message is the client's."""
    mail = email.message.EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = SENDER, "letter@example.net", SOURCES["subject"]
    mail["X-Evil"] = SOURCES["header"]
    mail.set_content(SOURCES["plain"])
    mail.add_alternative(HTML.replace("CANARY", canary), subtype="html")
    mail.add_attachment(b"<script>evil=1</script>", "text", "html", filename=FILE_NAME)
    with open_smtp(daemon, key) as session:
        session.ehlo(SOURCES["helo"])
        session.sendmail(
            SENDER, ["letter@example.net"], mail.as_bytes(policy=mail.policy.clone(linesep="\r\n", max_line_length=900))
        )
    return _id_of(owner, "to:letter@example.net")


def _id_of(owner: Visitor, text: str) -> str:
    def look() -> str:
        page = owner.client.get("/logs", params={"q": text}).text
        found = re.search(r'<tr data-line data-id="([0-9a-f]{16})" data-at="\d+" data-state="(sent|failed)"', page)
        return found[1] if found else ""

    return str(wait_until(look, f"the log to show {text}"))
