# SPDX-License-Identifier: Apache-2.0
"""schemathesis makes requests out of the served document and checks every answer against it; money stays right.

CONTRACT_EXAMPLES says how many random requests each operation gets; CI takes few.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from hepmaild.mail.template import Wording
from hepmaild.storage import templates
from hepmaild.storage.audit import Actor
from hepmaild.storage.schema import account
from hepmaild.template_rules import TemplateWish
from tests.peers.daemon import ACCOUNT, ROOT, Daemon, open_daemon, post, to_toml, untrusting_context
from tests.peers.processes import assert_no_traceback
from tests.peers.sink import CaptureSink, capture_sink

EXAMPLES = os.environ.get("CONTRACT_EXAMPLES", "4")
SEED = "20261126"
PASSWORD = "a long enough pass phrase"
SENDER = "noreply@hep.gg"  # as in the document's own examples
OWN = "you@example.com"
TEMPLATE = TemplateWish("Welcome", "welcome", Wording("Hi {{name}}", "<p>{{name}}</p>", "Hi {{name}}."), {})
UPLOADS = "/api/v1/email/uploads"
SENDING = ("/api/v1/email/send", "/v1/emails")


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon with everything that the document's examples name.  values: by format."""

    daemon: Daemon
    sink: CaptureSink
    values: dict[str, list[str]]
    access_token: str


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    changes = {
        "sender": [{"address": SENDER, "route": "sink", "default": True}],
        "own_smtp": {"allow_private_addresses": True},
    }
    with capture_sink() as sink, open_daemon(sink_port=sink.port, start=False, changes=changes) as daemon:
        key = daemon.setup(plan="bench")
        for email in ("in@example.com", "out@example.com"):
            daemon.cli("account", "add", email, "--password-stdin", stdin=f"{PASSWORD}\n")
        options = ("--host", "127.0.0.1", "--port", str(sink.port), "--tls", "none", "--address", OWN)
        server = daemon.json("smtp-server", "add", ACCOUNT, "--name", "mine", *options)
        template_id = make_template(daemon)
        daemon.start()
        yield Place(
            daemon,
            sink,
            {
                "sender": [SENDER, f"Acme <{SENDER}>"],
                "smtp-server-id": [server["id"]],
                "server-address": [OWN],
                "template-id": [template_id],
                "template-key": [TEMPLATE.key],
                "upload-id": [upload(daemon, key)],
            },
            log_in(daemon, "out@example.com"),
        )
        assert_no_traceback(daemon.log())


def make_template(daemon: Daemon) -> str:
    """Its id."""
    template_id = str(uuid.uuid4())
    engine = sa.create_engine(f"sqlite:///{daemon.state_dir / 'hepmaild.db'}")
    with engine.begin() as conn:
        account_id = conn.execute(sa.select(account.c.id).where(account.c.email == ACCOUNT)).scalar_one()
        actor = Actor("u1", ACCOUNT, "192.0.2.7", "dashboard")
        templates.create(conn, account_id, actor, template_id, TEMPLATE, time.time_ns() // 1000)
    engine.dispose()
    return template_id


def upload(daemon: Daemon, key: str) -> str:
    """The id of a file."""
    with httpx.Client(verify=untrusting_context()) as client:
        url = f"https://127.0.0.1:{daemon.ports['https']}/api/v1/email/uploads"
        bearer = {"Authorization": f"Bearer {key}"}
        answer = client.post(url, headers=bearer, files={"file": ("plan.pdf", b"hello", "application/pdf")})
        return str(answer.json()["data"]["uploadId"])


def log_in(daemon: Daemon, email: str) -> str:
    basic = base64.b64encode(f"{email}:{PASSWORD}".encode()).decode()
    status, tokens, _ = post(
        daemon, {}, None, path="/oauth/token?grant_type=password", headers={"Authorization": f"Basic {basic}"}
    )
    assert status == 200, tokens
    return str(tokens["access_token"])


def run_schemathesis(place: Place, key: str, folder: Path, *options: str) -> list[dict[str, Any]]:
    """All checks on; every answer it got.  A failure shows what it said."""
    auth = {
        "auth.openapi": {
            "bearerKey": {"bearer": key},
            "basicKey": {"username": key, "password": ""},
            "accessToken": {"bearer": place.access_token},
            "login": {"username": "in@example.com", "password": PASSWORD},
        }
    }
    config, answers = folder / "schemathesis.toml", folder / "answers"
    config.write_text(to_toml(auth))
    url = f"https://127.0.0.1:{place.daemon.ports['https']}/api/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", url, "--checks", "all"]
    command += ["--tls-verify", "false", "--seed", SEED, "--continue-on-failure", "--suppress-health-check", "all"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.contracts.hooks",
        "CONTRACT_VALUES": json.dumps(place.values),
        "CONTRACT_ANSWERS": str(answers),
    }
    done = subprocess.run(
        [*command, *options], env=env, cwd=folder, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in answers.read_text().splitlines()]


def test_every_operation(place: Place, tmp_path: Path) -> None:
    """No check fails, and what was accepted was charged, delivered and written down, once."""
    key = place.daemon.mint(name="stranger")["key"]
    before = place.daemon.json("credits", "show", ACCOUNT)["balance"]
    answers = run_schemathesis(place, key, tmp_path, "-n", EXAMPLES)
    accepted = [each for each in answers if each["path"] in SENDING and each["status"] in (200, 202)]
    new = [each for each in accepted if not each["replayed"]]
    assert len(new) > 20
    for path, status in (
        ("/oauth/token", 200),
        ("/oauth/me", 200),
        ("/v1/emails", 200),
        (SENDING[0], 409),
        (UPLOADS, 200),
    ):
        assert [each for each in answers if (each["path"], each["status"]) == (path, status)], f"never {status}: {path}"
    deliveries = place.sink.wait_for(len(new))
    assert len(deliveries) == len(new)
    spent = before - place.daemon.json("credits", "show", ACCOUNT)["balance"]
    assert spent == sum(len(each["recipients"]) for each in deliveries)
    told = [json.loads(each["body"])["data"]["creditsCharged"] for each in new if each["path"] == SENDING[0]]
    assert sum(told) <= spent
    place.daemon.cli("credits", "verify")  # or it fails


def test_the_window_holds_meanwhile(place: Place, tmp_path: Path) -> None:
    """A key of the plan `standard`: no 121st call in a minute is let through."""
    place.daemon.json("account", "plan", ACCOUNT, "standard")
    key = place.daemon.mint(name="limited")["key"]
    paths = [option for path in SENDING for option in ("--include-path", path)]
    answers = run_schemathesis(place, key, tmp_path, "-n", "1", "--phases", "examples,coverage", *paths)
    let_through = [each for each in answers if each["limit"] == "120" and each["status"] != 429]
    assert [each for each in answers if each["limit"] == "120" and each["status"] == 429]
    assert len(let_through) >= 120
    for first, last in zip(let_through, let_through[120:], strict=False):
        assert last["at"] - first["began"] >= 60, "a 121st call was let through"
