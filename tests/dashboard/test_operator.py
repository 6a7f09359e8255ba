# SPDX-License-Identifier: Apache-2.0
"""The operator's pages through the real daemon, on both engines; the next hop says hostile things."""

from __future__ import annotations

import re
import socketserver
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.dashboard.visitor import Visitor, csrf_of, hidden_of, link_of, open_client, sign_in, words
from tests.peers import postgres
from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_daemon, post
from tests.peers.processes import assert_no_traceback, free_port, wait_until
from tests.peers.sink import CaptureSink, capture_sink
from tests.peers.threaded import serving

OPERATOR = "operator@example.com"
EVIL, BLOCKED = "evil@example.com", "blocked@example.com"
SCRIPT = "<script>alert(1)</script>"
PAGES = ["accounts", "accounts/new", "queue", "queue/waiting", "routes", "health"]
DEEDS = [
    "accounts",
    "queue/pause",
    "queue/resume",
    "queue/retry",
    "queue/release",
    "queue/message",
    "routes/test",
    "health/run",
]


@contextmanager
def evil_hop() -> Iterator[int]:
    """A next hop that greets everybody with a refusal that is a script."""

    class Greet(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(f'421 4.3.2 {SCRIPT} "&amp;\r\n'.encode())

    with serving(Greet) as port:
        yield port


@dataclass(frozen=True, slots=True)
class Desk:
    """operator may everything, owner is somebody's else."""

    daemon: Daemon
    sink: CaptureSink
    key: str
    operator: Visitor
    owner: Visitor

    def account_id(self, email: str = ACCOUNT) -> str:
        return str(self.daemon.json("account", "show", email)["id"])

    def page(self, email: str = ACCOUNT) -> str:
        return f"/operator/accounts/{self.account_id(email)}"

    def grant(self, fields: dict[str, str], page: str = "", *, by: Visitor | None = None) -> httpx.Response:
        """Send the form for credits.  page: on which it stands."""
        page = page or self.operator.get(self.page())
        state = {"last_grant": hidden_of(page, "last_grant")}
        account_id = re.search(r'data-page-id="([^"]+)"', page)
        assert account_id is not None
        path = f"/operator/accounts/{account_id[1]}/credits"
        return (by or self.operator).post(path, {**state, **fields}, token=csrf_of(page))

    def send(self, sender: str, to: str, subject: str = "Hi") -> str:
        """The id of a message that was accepted."""
        status, answer, _ = post(self.daemon, {"from": sender, "to": to, "subject": subject, "text": "x"}, self.key)
        assert status in (200, 202), answer
        return str(answer["data"]["messageId"])

    def actions(self, email: str = ACCOUNT) -> list[str]:
        return [row["action"] for row in self.daemon.json("audit", "list", email)]

    def figures(self, says: str) -> str:
        """The Queue page, once it says so: its figures are counted beside it."""

        def look() -> str:
            page = self.operator.get("/operator/queue")
            return page if re.search(says, words(page)) else ""

        return str(wait_until(look, f"the queue page to say {says}"))


@pytest.fixture(scope="module")
def evil_port() -> Iterator[int]:
    with evil_hop() as port:
        yield port


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def desk(request: pytest.FixtureRequest, evil_port: int) -> Iterator[Desk]:
    with ExitStack() as stack:
        url = "sqlite:///hepmaild.db"
        if request.param == "postgresql":
            server, template = map(request.getfixturevalue, ("postgres_server", "migrated_postgres"))
            url = stack.enter_context(postgres.open_database(server, template))
        sink = stack.enter_context(capture_sink())
        hop = {"kind": "smtp", "host": "127.0.0.1", "tls": "none"}
        changes: dict[str, Any] = {
            "route": [
                {"name": "sink", **hop, "port": sink.port},
                {"name": "evil", **hop, "port": evil_port},
                {"name": "direct", "kind": "mx"},
            ],
            "sender": [
                {"address": SENDER, "route": "sink", "default": True},
                {"address": EVIL, "route": "evil"},
            ],
            "dns": {"servers": [f"127.0.0.1:{free_port()}"], "timeout_s": 0.2, "lifetime_s": 0.4},
            "delivery": {"retry_after_s": [3600]},
        }
        daemon = stack.enter_context(open_daemon(sink_port=sink.port, database_url=url, changes=changes, start=False))
        key = daemon.setup()
        daemon.json("account", "add", OPERATOR, "--operator")
        daemon.start()
        daemon.write_settings()
        operator = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", OPERATOR))))
        owner = stack.enter_context(sign_in(daemon, link_of(daemon.json("account", "link", ACCOUNT))))
        yield Desk(daemon, sink, key, operator, owner)
        log = daemon.log()
        assert_no_traceback(log)


def test_nobody_else_sees_that_there_are_such_pages(desk: Desk) -> None:
    own = desk.account_id()
    for path in [*PAGES, f"accounts/{own}"]:
        desk.owner.get(f"/operator/{path}", status=404)
    for path in [*DEEDS, f"accounts/{own}/credits", f"accounts/{own}/suspend", f"accounts/{own}/senders"]:
        assert desk.owner.post(f"/operator/{path}", {"amount": "5"}).status_code == 404
    assert desk.daemon.json("credits", "show", ACCOUNT)["balance"] > 900_000


def test_a_form_needs_its_token(desk: Desk) -> None:
    for path in [*DEEDS, f"accounts/{desk.account_id()}/credits", f"accounts/{desk.account_id()}/suspend"]:
        assert desk.operator.post(f"/operator/{path}", {"amount": "5"}, token="x").status_code == 403
    assert desk.daemon.json("account", "show", ACCOUNT)["status"] == "active"


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there(desk: Desk, path: str) -> None:
    page = desk.operator.get(f"/operator/{path}")
    assert "<h1>" in page


# Accounts


def test_an_account_is_made_with_a_link_that_is_shown_once(desk: Desk) -> None:
    form = {"email": "new@example.com", "credits": "250", "plan": "standard"}
    response = desk.operator.post("/operator/accounts", form, page="/operator/accounts/new")
    assert response.status_code == 200, words(response.text)
    found = re.search(r'data-copy="(https://[^"]+/link/[^"]+)"', response.text)
    assert found is not None
    with sign_in(desk.daemon, found[1]) as owner:
        assert "250 credits" in words(owner.get("/")) or "250" in owner.get("/credits")
    assert found[1].rpartition("/")[2] not in desk.daemon.log()
    grant = desk.daemon.json("credits", "history", "new@example.com")[0]
    assert (grant["amount"], grant["granted_by"]) == (250, OPERATOR)
    assert "account.add" in desk.actions("new@example.com")
    again = desk.operator.post("/operator/accounts", form, page="/operator/accounts/new")
    assert again.status_code == 422
    assert "There is an account for new@example.com already" in words(again.text)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"email": "nobody"}, "e-mail address must have an @-sign"),
        ({"credits": "many"}, "whole number"),
        ({"credits": "-5"}, "The least is 0"),
        ({"credits": "9" * 16}, "The most is"),
        ({"plan": "golden"}, "one of the plans"),
    ],
)
def test_what_is_typed_wrongly_is_said(desk: Desk, fields: dict[str, str], says: str) -> None:
    form = {"email": "wrong@example.com", "credits": "1", "plan": "standard", **fields}
    response = desk.operator.post("/operator/accounts", form, page="/operator/accounts/new")
    assert response.status_code == 422
    assert says in words(response.text)


def test_accounts_are_found(desk: Desk) -> None:
    token = csrf_of(desk.operator.get("/operator/accounts/new"))
    for n in range(55):
        form = {"email": f"many{n:02d}@bulk.example", "credits": "0", "plan": "standard"}
        assert desk.operator.post("/operator/accounts", form, token=token).status_code == 200
    first = desk.operator.get("/operator/accounts?q=bulk.example")
    assert first.count("@bulk.example</bdi>") == 50
    onward = re.search(r'rel="next" href="([^"]+)"', first)
    assert onward is not None
    second = desk.operator.get(onward[1].replace("&amp;", "&"))
    assert "many50@bulk.example" in second
    assert second.count("@bulk.example</bdi>") == 5
    back = re.search(r'rel="prev" href="([^"]+)"', second)
    assert back is not None
    assert "many00@bulk.example" in desk.operator.get(back[1].replace("&amp;", "&"))
    assert "No account fits" in words(desk.operator.get("/operator/accounts?q=%25_%5C%3Cb%3E"))
    assert ACCOUNT in desk.operator.get(f"/operator/accounts?q={desk.account_id()}")


def test_credits_are_granted_with_a_note_and_taken_back(desk: Desk) -> None:
    before = desk.daemon.json("credits", "show", ACCOUNT)["balance"]
    note = f"invoice 17 {SCRIPT}"
    shown = desk.operator.get(desk.grant({"amount": "1 500", "note": note}).headers["Location"])
    assert f"{before + 1500:,} " in words(shown).replace(".", " ")
    assert SCRIPT not in shown
    newest = desk.daemon.json("credits", "history", ACCOUNT)[0]
    assert (newest["amount"], newest["granted_by"], newest["note"]) == (1500, OPERATOR, note)
    assert SCRIPT not in desk.owner.get("/credits")
    assert desk.grant({"amount": "-1500"}).status_code == 303
    assert desk.daemon.json("credits", "show", ACCOUNT)["balance"] == before
    too_many = desk.grant({"amount": "-99000000"})
    assert too_many.status_code == 422
    assert "cannot go below zero" in words(too_many.text)
    assert desk.actions().count("credits.grant") == 2
    desk.daemon.cli("credits", "verify")


def test_a_second_click_grants_nothing(desk: Desk) -> None:
    """A form is for what was granted before it: sent twice at once it gives once.  Mail that is paid for is none."""
    before = desk.daemon.json("credits", "show", ACCOUNT)["balance"]
    page = desk.operator.get(desk.page())
    assert post(desk.daemon, {"to": "joe@example.com", "subject": "Hi", "text": "x"}, desk.key)[0] == 200
    fields = {"amount": "700", "note": "one click too many"}
    with open_client(desk.daemon, cookies=dict(desk.operator.client.cookies)) as second_tab:
        clicks = [desk.operator, Visitor(second_tab)]
        with ThreadPoolExecutor(2) as hands:
            answers = list(hands.map(lambda visitor: desk.grant(fields, page, by=visitor), clicks))
    assert sorted(answer.status_code for answer in answers) == [303, 422]
    late = desk.grant(fields, page)
    for refused in (max(answers, key=lambda answer: answer.status_code), late):
        assert refused.status_code == 422
        said = words(refused.text)
        assert "Nothing was done" in said
        assert "+700" in said
        assert 'value="700"' in refused.text
        assert 'value="one click too many"' in refused.text
    assert desk.daemon.json("credits", "show", ACCOUNT)["balance"] == before + 700 - 1
    # Who reads that and means it sends the page that says so.
    assert desk.grant(fields, late.text).status_code == 303
    assert desk.daemon.json("credits", "show", ACCOUNT)["balance"] == before + 1400 - 1
    for nothing in ({"last_grant": ""}, {"last_grant": "x"}, {"last_grant": "9" * 40}):
        assert desk.grant({**fields, **nothing}, page).status_code == 422
    desk.daemon.cli("credits", "verify")


def test_a_suspended_account_is_refused_at_once(desk: Desk) -> None:
    page = desk.page()
    assert "is suspended" in words(desk.operator.follow(f"{page}/suspend", page=page))
    body = {"to": "joe@example.com", "subject": "Hi", "text": "x"}
    assert post(desk.daemon, body, desk.key)[0] == 403
    assert "may send again" in words(desk.operator.follow(f"{page}/resume", page=page))
    assert post(desk.daemon, body, desk.key)[0] == 200
    assert {"account.suspend", "account.resume"} <= set(desk.actions())
    own = desk.page(OPERATOR)
    assert "lock yourself out" in words(desk.operator.follow(f"{own}/suspend", page=own))
    assert desk.operator.get(own)
    # The owner was signed out by the suspension; a link of the operator lets them in again.
    users = desk.operator.get(page)
    made = re.search(r'action="(/operator/accounts/[^"]+/users/[^"]+/link)"', users)
    assert made is not None
    response = desk.operator.post(made[1], page=page)
    assert response.status_code == 200
    link = re.search(r'data-copy="(https://[^"]+/link/[^"]+)"', response.text)
    assert link is not None
    with sign_in(desk.daemon, link[1]) as owner:
        desk.owner.client.cookies = owner.client.cookies


def test_another_plan(desk: Desk) -> None:
    page = desk.page()
    shown = desk.operator.follow(f"{page}/plan", {"plan": "bench"}, page=page)
    assert "on the plan bench" in words(shown)
    assert desk.daemon.json("account", "show", ACCOUNT)["plan"] == "bench"
    assert desk.operator.post(f"{page}/plan", {"plan": "golden"}, page=page).status_code == 422


def test_senders_are_assigned_and_obeyed_at_once(desk: Desk) -> None:
    page = desk.page()
    body = {"from": "shop@example.com", "to": "joe@example.com", "subject": "Hi", "text": "x"}
    assert post(desk.daemon, body, desk.key)[0] == 400
    form = {"address": "shop@example.com", "route": "sink", "daily_cap": "2"}
    assert "shop@example.com" in words(desk.operator.follow(f"{page}/senders", form, page=page))
    assert post(desk.daemon, body, desk.key)[0] == 200
    assert "1 / 2" in words(desk.operator.get(page))
    assert desk.operator.post(f"{page}/senders", {**form, "route": "none"}, page=page).status_code == 422
    assert desk.operator.post(f"{page}/senders", {**form, "address": "x"}, page=page).status_code == 422
    too_much = {**form, "daily_cap": "1,000,000,001"}
    assert desk.operator.post(f"{page}/senders", too_much, page=page).status_code == 422
    desk.operator.follow(f"{page}/senders/remove", {"address": "shop@example.com"}, page=page)
    assert post(desk.daemon, body, desk.key)[0] == 400
    assert {"sender.put", "sender.remove"} <= set(desk.actions())
    assert "no such address" in words(
        desk.operator.follow(f"{page}/senders/remove", {"address": "shop@example.com"}, page=page)
    )


def test_the_sender_of_an_own_server_goes_with_it(desk: Desk) -> None:
    server = ["--name", "Own", "--host", "smtp.example.net", "--address", "me@own.example"]
    made = desk.daemon.json("smtp-server", "add", ACCOUNT, *server)
    page = desk.operator.get(desk.page())
    assert "its SMTP server" in words(page)
    assert "Remove me@own.example" not in page
    gone = desk.operator.follow(f"{desk.page()}/senders/remove", {"address": "me@own.example"}, page=desk.page())
    assert "belongs to its account's SMTP server" in words(gone)
    desk.daemon.json("smtp-server", "remove", made["id"])


def test_what_is_not_there(desk: Desk) -> None:
    for path in ("accounts/nobody", f"accounts/{'0' * 36}", "queue/nothing"):
        desk.operator.get(f"/operator/{path}", status=404)
    assert desk.operator.post("/operator/accounts/nobody/suspend").status_code == 404
    assert desk.operator.post("/operator/routes/test", {"route": "none"}).status_code == 404
    assert desk.operator.post("/operator/queue/message", {"id": "x", "deed": "retry"}).status_code == 404


# Queue


def test_what_waits_is_shown_and_changed(desk: Desk) -> None:
    waiting = "/operator/queue/waiting"
    message_id = desk.send(EVIL, "joe@first.example", SCRIPT)
    page = desk.operator.get(f"{waiting}?route=evil&destination=first.example")
    assert message_id in page
    assert SCRIPT not in page
    assert SCRIPT in words(page)  # what the next hop said stands there, and does nothing
    deed = {"id": message_id, "back": f"{waiting}?route=evil"}

    def do(name: str) -> str:
        return words(desk.operator.follow("/operator/queue/message", {**deed, "deed": name}, page=waiting))

    assert "held until somebody releases it" in do("hold")
    assert message_id in desk.operator.get(f"{waiting}?state=held")
    assert message_id not in desk.operator.get(f"{waiting}?state=deferred")
    assert "is held already" in do("hold")
    assert "released" in do("release")
    assert "was refunded" in do("cancel")
    assert "is final" in do("retry")
    assert desk.daemon.json("queue", "show", message_id)["state"] == "cancelled"
    assert {"message.hold", "message.release", "message.cancel"} <= set(desk.actions())
    assert "no domain" in words(desk.operator.get(f"{waiting}?destination=%3Cb%3E"))


def test_the_figures_and_the_bulk_changes(desk: Desk) -> None:
    ids = [desk.send(EVIL, f"joe{n}@second.example") for n in range(3)]
    page = desk.figures(r"second\.example")
    assert SCRIPT not in page
    assert SCRIPT in words(page)
    for message_id in ids:
        desk.daemon.json("queue", "hold", message_id)
    form = {"route": "evil", "destination": "second.example"}
    said = words(desk.operator.follow("/operator/queue/release", form, page="/operator/queue"))
    assert "3 recipients of 3 messages are released" in said
    wait_until(
        lambda: all(desk.daemon.json("queue", "show", m)["recipients"][0]["attempts"] >= 2 for m in ids),
        "another attempt of each",
    )
    said = words(desk.operator.follow("/operator/queue/retry", form, page="/operator/queue"))
    assert "messages are due now" in said
    alone = {"route": "evil", "destination": "alone.example"}
    desk.daemon.json("queue", "hold", desk.send(EVIL, "joe@alone.example"))
    said = words(desk.operator.follow("/operator/queue/release", alone, page="/operator/queue"))
    assert "1 recipient of 1 message is released" in said
    assert "Name a route" in words(desk.operator.follow("/operator/queue/retry", {}, page="/operator/queue"))


def test_a_pause_stops_a_route(desk: Desk) -> None:
    queue = "/operator/queue"
    form = {"route": "sink", "note": SCRIPT}
    shown = desk.operator.follow(f"{queue}/pause", form, page=queue)
    assert "Route sink is paused" in words(shown)
    assert SCRIPT not in desk.figures("Paused")
    message_id = desk.send(SENDER, "joe@third.example")
    assert desk.daemon.json("queue", "show", message_id)["state"] == "queued"
    assert "Route sink goes on" in words(desk.operator.follow(f"{queue}/resume", form, page=queue))
    wait_until(lambda: desk.daemon.json("queue", "show", message_id)["state"] == "sent", "the message to be sent")
    assert "is not paused" in words(desk.operator.follow(f"{queue}/resume", form, page=queue))
    one_hop = desk.operator.follow(f"{queue}/pause", {"route": "sink", "destination": "a.example"}, page=queue)
    assert "pause the whole route" in words(one_hop)
    no_route = desk.operator.follow(f"{queue}/pause", {"route": "none"}, page=queue)
    assert "There is no such route" in words(no_route)


def test_the_page_of_a_message_says_what_keeps_it(desk: Desk) -> None:
    """An attempt is offered only where one can be made, and nobody is sent to a command line they do not have."""
    held, capped = desk.send(EVIL, "joe@fourth.example"), "capped@example.com"
    desk.daemon.json("queue", "hold", held)
    desk.daemon.json("sender", "add", capped, "--route", "sink", "--account", ACCOUNT, "--daily-cap", "1")
    desk.send(capped, "joe@fourth.example")
    behind = desk.send(capped, "joe@fourth.example")
    for message_id, why in ((held, "is held"), (behind, "waits for the daily cap")):
        page = desk.owner.get(f"/logs/{message_id}")
        assert "Retry now" not in page
        assert f'action="/logs/{message_id}/cancel"' in page
        said = words(desk.owner.follow(f"/logs/{message_id}/retry"))
        assert f"Message {message_id} {why}" in said
        assert "`" not in said
    desk.daemon.json("queue", "release", held)
    assert "Retry now" in desk.owner.get(f"/logs/{held}")


def test_the_page_of_a_message_says_that_its_destination_is_paused(desk: Desk) -> None:
    queue, form = "/operator/queue", {"route": "direct", "destination": "paused.example", "note": SCRIPT}
    desk.daemon.json("sender", "add", "me@direct.example", "--route", "direct", "--account", ACCOUNT)
    desk.operator.follow(f"{queue}/pause", form, page=queue)
    message_id = desk.send("me@direct.example", "joe@paused.example")
    page = desk.owner.get(f"/logs/{message_id}")
    assert SCRIPT not in page
    assert f"What is for paused.example waits: mail for it is paused ( {SCRIPT} )" in words(page)
    assert "It is tried as soon as the pause is over" in words(page)
    assert "Next attempt" not in page
    said = words(desk.owner.follow(f"/logs/{message_id}/retry"))
    assert "It is due now, and is tried as soon as the pause is over." in said
    desk.operator.follow(f"{queue}/resume", form, page=queue)
    assert "mail for it is paused" not in desk.owner.get(f"/logs/{message_id}")


def test_only_the_last_attempt_says_when_the_next_one_is_due(desk: Desk) -> None:
    message_id = desk.send(SENDER, "defer-it@fifth.example")
    due = "The next attempt is due"
    assert words(desk.owner.get(f"/logs/{message_id}")).count(due) == 1
    desk.owner.follow(f"/logs/{message_id}/retry")
    show = lambda: desk.daemon.json("queue", "show", message_id)["recipients"][0]  # noqa: E731
    wait_until(lambda: show()["attempts"] >= 2, "another attempt")
    page = words(desk.owner.get(f"/logs/{message_id}"))
    assert page.count(due) == 1
    assert re.search(r"The next attempt was to be \d+ min later\.", page)


# Routes and health


def test_a_route_is_tested_step_by_step(desk: Desk) -> None:
    page = desk.operator.post("/operator/routes/test", {"route": "sink"}, page="/operator/routes")
    assert page.status_code == 200
    said = words(page.text)
    assert "It works" in said
    assert "EHLO smtp.test" in said
    bad = desk.operator.post("/operator/routes/test", {"route": "evil"}, page="/operator/routes")
    assert "It does not work" in words(bad.text)
    assert SCRIPT not in bad.text
    assert SCRIPT in words(bad.text)


def test_the_checks_run_when_somebody_asks(desk: Desk) -> None:
    health = "/operator/health"
    said = words(desk.operator.follow(f"{health}/run", page=health))
    assert "route evil" in said
    assert SCRIPT not in desk.operator.get(health)
    assert re.search(r"fails route evil .* What to do:", said)
    assert "answers as smtp.test" in said
    assert re.search(r"fine database \w+ answers and can be written", said)
    assert "fine uploads none is kept; accounts may have at most 105 MB each" in said
    assert "SMTP sessions" in said
    assert "took" in words(desk.operator.get(health))
