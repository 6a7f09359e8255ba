# SPDX-License-Identifier: Apache-2.0
"""Where secrets are once they were used: in the database as their stored form only, in no log, held by no object.

(Issue "The whole API", acceptance 4.)
"""

from __future__ import annotations

import base64
import html
import platform
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from hepmaild import totp
from hepmaild.cli import backend
from hepmaild.config_load import load
from hepmaild.dkim_keys import place_of
from hepmaild.storage import dkim
from hepmaild.vault import Vault
from tests.dashboard.visitor import PASSWORD, Visitor, csrf_of, link_of, open_client, sign_in, words
from tests.peers import postgres
from tests.peers.certificates import make_certificate
from tests.peers.daemon import ACCOUNT, ROOT, SENDER, Daemon, open_daemon, open_smtp, post
from tests.peers.memory import count_in_memory
from tests.peers.messages import new_id, plain_message
from tests.peers.processes import PeerFailed, open_folder, wait_until
from tests.peers.sink import CaptureSink, capture_sink

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the wiping is glibc's")

TO = "someone@example.net"
OWN_PASSWORD = "own-server-password-Qx7vT2"
DOMAIN = "example.com"
FACTOR = "/security/second-factor"
CONTROL = b"smtp.test"  # the host name, which the process has for good


def environment_of_unit() -> dict[str, str]:
    """What the service is started with: an allocator that overwrites what is freed, among it (decision 0120)."""
    unit = (ROOT / "systemd" / "hepmaild.service").read_text()
    return dict(re.findall(r"^Environment=(\w+)=(\S+)$", unit, re.MULTILINE))


@dataclass
class Used:
    """A service whose secrets were all used, and those secrets by what they are."""

    daemon: Daemon
    database_url: str
    secrets: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(params=["sqlite", "postgresql"])
def used(request: pytest.FixtureRequest) -> Iterator[Used]:
    with ExitStack() as stack:
        url = "sqlite:///hepmaild.db"
        if request.param == "postgresql":
            url = request.getfixturevalue("postgres_database")
        folder = stack.enter_context(open_folder("hop-tls"))
        certificate = make_certificate(folder)
        sink = stack.enter_context(capture_sink())
        own = stack.enter_context(capture_sink(tls=certificate, user="own@own.example", password=OWN_PASSWORD))
        changes = {"own_smtp": {"allow_private_addresses": True, "tls_ca": str(certificate.certificate)}}
        daemon = stack.enter_context(open_daemon(sink_port=sink.port, database_url=url, changes=changes, start=False))
        made = Used(daemon, url)
        daemon.env.update(environment_of_unit())
        made.secrets["a minted key"] = daemon.setup()
        daemon.start()
        use_everything(made, own)
        yield made


def use_everything(made: Used, own: CaptureSink) -> None:
    daemon, secrets = made.daemon, made.secrets
    link = link_of(daemon.json("account", "link", ACCOUNT))
    secrets["a one-time link"] = link.rpartition("/")[2]
    with sign_in(daemon, link) as visitor:
        secrets["a password"] = PASSWORD
        use_pages(visitor, secrets)
        use_keys(daemon, secrets)
        use_tokens(daemon, secrets)
    send_by_own_server(daemon, own)
    secrets["the password of an own server"] = OWN_PASSWORD
    secrets["a DKIM key"] = sign(daemon, secrets["a minted key"])


def use_pages(visitor: Visitor, secrets: dict[str, Any]) -> None:
    """A key of the page, a second factor, cookies."""
    answer = visitor.post("/keys", {"name": "page", "permission": ["smtp", "http"]}, page="/keys/new")
    found = re.search(r"hyd-mail-[A-Za-z0-9]{40}", answer.text)
    assert found is not None, words(answer.text)
    secrets["a key of the page"] = found[0]
    page = visitor.follow(f"{FACTOR}/begin", page=FACTOR)
    shown = re.search(r"secret=([A-Z2-7]+)", html.unescape(page))
    assert shown is not None, words(page)
    secrets["a TOTP secret"] = shown[1]
    raw = base64.b32decode(shown[1] + "=" * (-len(shown[1]) % 8))
    code = totp.code(raw, totp.step_of(time.time_ns() // 1000))
    answer = visitor.post(f"{FACTOR}/confirm", {"code": code}, page=FACTOR)
    codes = re.search(r'aria-label="Recovery codes">([A-Z2-7\n-]+)</pre>', answer.text)
    assert codes is not None, words(answer.text)
    unused, once = codes[1].split()[:2]
    secrets["a recovery code"], secrets["a used recovery code"] = unused, once
    with httpx.Client(base_url=visitor.client.base_url, verify=False, timeout=60) as other:
        token = csrf_of(other.get("/sign-in").text)
        fields = {"csrf": token, "email": ACCOUNT, "password": PASSWORD, "otp": once, "next": "/"}
        assert other.post("/sign-in", data=fields).status_code == 303
        for name, value in other.cookies.items():
            if name.startswith("__Host-"):
                secrets[f"the cookie {name}"] = value
    assert any(name.startswith("the cookie") for name in secrets)


def use_keys(daemon: Daemon, secrets: dict[str, Any]) -> None:
    body = {"to": TO, "text": "x"}
    for name in ("a minted key", "a key of the page"):
        key = secrets[name]
        assert post(daemon, body, key)[0] == 200
        basic = base64.b64encode(f"{key}:".encode()).decode()
        assert post(daemon, body, None, headers={"Authorization": f"Basic {basic}"})[0] == 200
        for mechanism in ("auth_plain", "auth_login"):
            with open_smtp(daemon, None) as session:
                session.user, session.password = "api", key
                session.ehlo()
                session.auth(mechanism.removeprefix("auth_"), getattr(session, mechanism))
                session.sendmail(SENDER, [TO], plain_message(new_id(), sender=SENDER, to=TO))


def use_tokens(daemon: Daemon, secrets: dict[str, Any]) -> None:
    """As a program logs in: with the password and a recovery code there would be nothing left to do; so no factor."""
    daemon.json("user", "add", ACCOUNT, "program@example.com", "--scope", "admin")
    link = link_of(daemon.json("account", "link", "program@example.com"))
    with sign_in(daemon, link):
        secrets["another one-time link"] = link.rpartition("/")[2]
    with open_client(daemon) as client:
        credentials = base64.b64encode(f"program@example.com:{PASSWORD}".encode()).decode()
        answer = client.post("/oauth/token?grant_type=password", headers={"Authorization": f"Basic {credentials}"})
        assert answer.status_code == 200, answer.text
        tokens = answer.json()
        secrets["an access token"], secrets["a refresh token"] = tokens["access_token"], tokens["refresh_token"]
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert client.get("/oauth/me", headers=headers).status_code == 200


def send_by_own_server(daemon: Daemon, own: CaptureSink) -> None:
    """By a server of the account's, which the daemon logs in at."""
    command = ("smtp-server", "add", ACCOUNT, "--name", "own", "--host", "localhost", "--port", str(own.port))
    daemon.cli(*command, "--username", "own@own.example", "--password-stdin", stdin=OWN_PASSWORD + "\n")
    key = daemon.mint(name="for own")["key"]
    status, answer, _ = post(daemon, {"to": TO, "from": "own@own.example", "text": "x"}, key)
    assert status == 200, answer


def sign(daemon: Daemon, key: str) -> bytes:
    """Mail that is signed; the private key (DER)."""
    daemon.cli("dkim", "add", DOMAIN, "--selector", "s1", "--algorithm", "rsa")
    daemon.cli("dkim", "activate", DOMAIN, "s1")
    assert post(daemon, {"to": TO, "text": "x"}, key)[0] == 200
    (stored,) = backend.read(load(daemon.config_path, {}), dkim.active_of, DOMAIN)
    return Vault(daemon.state_dir).open(place_of(DOMAIN, "s1"), stored.sealed)


def forms(secret: str | bytes) -> dict[str, bytes]:
    """How it may be written."""
    if isinstance(secret, bytes):
        return {"as it is": secret, "as PEM": base64.b64encode(secret)[:64]}
    found = {"as it is": secret.encode()}
    for name, text in (("Basic", f"{secret}:"), ("PLAIN", f"\0api\0{secret}"), ("LOGIN", secret)):
        found[f"in {name}"] = base64.b64encode(text.encode())
    if re.fullmatch(r"[A-Z2-7]{32}", secret):
        found["its octets"] = base64.b32decode(secret)
    return found


def everything_stored(used: Used) -> bytes:
    """All that the database holds; on SQLite with what was deleted and is not yet overwritten."""
    if used.database_url.startswith("sqlite"):
        return b"".join(path.read_bytes() for path in sorted(used.daemon.state_dir.glob("hepmaild.db*")))
    return postgres.dump(used.database_url).encode()


def test_where_secrets_are(used: Used) -> None:
    stored, logged = everything_stored(used), used.daemon.log().encode()
    needles = {
        octets: f"{what} ({form})" for what, secret in used.secrets.items() for form, octets in forms(secret).items()
    }
    for octets, what in needles.items():
        assert octets not in stored, f"{what} is in the database"
        assert octets.hex().encode() not in stored.lower(), f"{what}, in hexadecimal, is in the database"
        assert octets not in logged, f"{what} is in the log"
    assert re.search(r"event=ready .*wipes_memory=true", used.daemon.log()), used.daemon.log()
    found: dict[str, int] = {}

    def is_clean() -> bool:  # connections that were left may be ending just now
        counts = count_in_memory(used.daemon.pid, [*needles, CONTROL])
        assert counts.pop(CONTROL), "what is in the memory is found there"
        found.clear()
        found.update({needles[octets]: n for octets, n in counts.items() if n})
        return not found

    try:
        wait_until(is_clean, "no secret in memory")
    except PeerFailed:
        assert found == {}
