# SPDX-License-Identifier: Apache-2.0
"""What stands in the code blocks of docs/clients, as it stands there, against a real daemon with a good certificate.

Only host, port, key, recipient and the authority's file are put in.  A client that is not on this machine skips its
test by name, and fails it in CI.
"""

from __future__ import annotations

import email
import email.policy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hepmaild.http.dashboard import snippets
from tests.e2e.conftest import UNLIMITED
from tests.peers.certificates import make_certificate
from tests.peers.daemon import SENDER, Daemon, open_daemon
from tests.peers.messages import new_id
from tests.peers.postfix import configured_client
from tests.peers.processes import open_folder
from tests.peers.programs import (
    CLIENTS_FOLDER,
    missing,
    require,
    require_exim,
    require_nodemailer,
    require_postfix,
)
from tests.peers.sink import CaptureSink
from tests.peers.without_tls import without_tls

PAGES = Path(__file__).resolve().parents[2] / "docs" / "clients"
_BLOCK = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
DEBIAN_PHP = Path("/usr/share/php")
DEBIAN_JAVA = Path("/usr/share/java")


@dataclass
class Place:
    """A daemon, and how it is reached.  authority: the file with the certificate of whoever signed its own."""

    daemon: Daemon
    key: str
    authority: Path


@pytest.fixture(scope="module")
def place(sink: CaptureSink) -> Iterator[Place]:
    with open_folder("snippets-tls") as folder:
        made = make_certificate(folder)
        tls = {"certificate": str(made.certificate), "private_key": str(made.private_key)}
        with open_daemon(sink_port=sink.port, changes={"tls": tls}, start=False) as daemon:
            key = daemon.setup(plan=UNLIMITED)
            daemon.start()
            yield Place(daemon, key, made.certificate)


@dataclass
class Desk:
    """A folder with the blocks of a page in it, filled in."""

    place: Place
    folder: Path
    to: str
    blocks: dict[str, str]

    def run(self, *command: object, **environment: str) -> None:
        trust = {name: str(self.place.authority) for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env={**os.environ, "HOME": str(self.folder), **trust, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"

    def php(self, script: object) -> None:
        require("php")
        self.run("php", "-d", f"openssl.cafile={self.place.authority}", script, self.to)


def open_desk(place: Place, page: str, folder: Path, ports: Mapping[str, int] | None = None) -> Desk:
    """ports: where the blocks lead to instead of the daemon."""
    found = dict(_BLOCK.findall((PAGES / page).read_text()))
    assert found, page
    to = f"you.{new_id()}@example.net"
    ports = ports or place.daemon.ports
    real = {
        "https://smtp.example.com": f"https://localhost:{ports['https']}",
        "smtp.example.com": "localhost",
        "587": str(ports["starttls"]),
        "465": str(ports["implicit"]),
        "YOUR-API-KEY": place.key,
        "you@example.net": to,
        AUTHORITIES: str(place.authority),
    }
    for name, text in found.items():
        found[name] = fill(text, real)
        (folder / name).write_text(found[name])
        (folder / name).chmod(0o600)
    return Desk(place, folder, to, found)


def fill(text: str, real: Mapping[str, str]) -> str:
    """In one pass: what was put in is not searched again, or port 34651 would be taken for one with 465 to replace."""
    return re.sub("|".join(map(re.escape, real)), lambda written: real[written[0]], text)


def shell(*names: str, script: str) -> Callable[[Desk], None]:
    def run(desk: Desk) -> None:
        require(*names)
        desk.run("sh", script)

    return run


def msmtp(desk: Desk) -> None:
    require("msmtp")
    (desk.folder / "msmtprc").rename(desk.folder / ".msmtprc")
    desk.run("sh", "send.sh")


def python(script: str) -> Callable[[Desk], None]:
    return lambda desk: desk.run(sys.executable, script)


def django(desk: Desk) -> None:
    start = "import django, runpy; django.setup(); runpy.run_path('send.py')"
    desk.run(sys.executable, "-c", start, DJANGO_SETTINGS_MODULE="settings", PYTHONPATH=str(desk.folder))


def node(script: str, *, mailer: bool = False) -> Callable[[Desk], None]:
    def run(desk: Desk) -> None:
        require("node")
        if mailer:
            require_nodemailer()
            (desk.folder / "node_modules").symlink_to(CLIENTS_FOLDER / "node_modules")
        desk.run("node", script)

    return run


def phpmailer(desk: Desk) -> None:
    _require_file(DEBIAN_PHP / "libphp-phpmailer" / "autoload.php", "libphp-phpmailer")
    vendor = desk.folder / "vendor"
    vendor.mkdir()
    (vendor / "autoload.php").write_text(f'<?php require "{DEBIAN_PHP}/libphp-phpmailer/autoload.php";\n')
    desk.php("send.php")


def wordpress(desk: Desk) -> None:
    _require_file(DEBIAN_PHP / "libphp-phpmailer" / "autoload.php", "libphp-phpmailer")
    desk.php(CLIENTS_FOLDER / "wordpress.php")


def laravel(desk: Desk) -> None:
    _require_file(DEBIAN_PHP / "Symfony/Component/Mailer/autoload.php", "php-symfony-mailer")
    desk.php(CLIENTS_FOLDER / "laravel.php")


def rails(desk: Desk) -> None:
    require("ruby")
    _require_file(Path("/usr/lib/ruby/vendor_ruby/mail.rb"), "ruby-mail")
    desk.run("ruby", CLIENTS_FOLDER / "rails.rb", desk.to)


def go(script: str) -> Callable[[Desk], None]:
    def run(desk: Desk) -> None:
        require("go")
        desk.run("go", "run", script, GOCACHE=str(desk.folder / "cache"), GOPROXY="off", GO111MODULE="off")

    return run


def java(desk: Desk) -> None:
    require("java", "keytool")
    jars = [DEBIAN_JAVA / name for name in ("jakarta-mail.jar", "jakarta-activation.jar")]
    _require_file(jars[0], "libjakarta-mail-java")
    trust = ("-keystore", "trust", "-storepass", "changeit")
    desk.run("keytool", "-importcert", "-noprompt", "-alias", "test", "-file", desk.place.authority, *trust)
    options = ("-Djavax.net.ssl.trustStore=trust", "-Djavax.net.ssl.trustStorePassword=changeit")
    desk.run("java", *options, "-cp", ":".join(map(str, jars)), "Send.java")


def postfix(desk: Desk) -> None:
    require_postfix()

    def settings(folder: Path) -> dict[str, str]:
        text = desk.blocks["main.cf"]
        if "sasl_passwd" in desk.blocks:
            passwords = shutil.copy(desk.folder / "sasl_passwd", folder)
            text = text.replace("/etc/postfix/sasl_passwd", str(passwords))
        return dict(line.split(" = ", 1) for line in text.splitlines())

    with configured_client(settings) as client:
        client.sendmail(_message(desk.to), sender=SENDER, recipients=[desk.to])
        client.child.wait_for(lambda: " status=" in client.log(), "postfix to try its delivery")
        assert " status=sent " in client.log(), client.log()


EXIM = """\
exim_path = {program}
keep_environment =
spool_directory = {folder}/spool
log_file_path = {folder}/log-%s
primary_hostname = exim.test
disable_ipv6 = true
trusted_users = root
never_users =
domainlist local_domains = exim.test
begin routers
{router}
begin transports
{transport}
begin authenticators
{authenticator}
begin retry
* * F,1h,1m
"""


def exim(desk: Desk) -> None:
    """Where the service is on the same machine, `self` must say that this is meant."""
    program = require_exim()
    blocks = {**desk.blocks, "router": desk.blocks["router"].rstrip() + "\n  self = send\n"}
    with open_folder("exim") as folder:
        (folder / "spool").mkdir()
        for path in (folder, folder / "spool"):
            shutil.chown(path, "Debian-exim")
        authority = shutil.copy(desk.place.authority, folder / "authority.crt")
        text = EXIM.format(folder=folder, program=program, **blocks).replace(str(desk.place.authority), str(authority))
        (folder / "exim.conf").write_text(text)
        command = [program, "-C", str(folder / "exim.conf"), "-odf", "-f", SENDER, desk.to]
        done = subprocess.run(command, input=_message(desk.to), capture_output=True, timeout=60, check=False)
        log = "".join(path.read_text() for path in folder.glob("log-*"))
        assert done.returncode == 0, (done, log)
        assert f"=> {desk.to}" in log, log


def _message(to: str) -> bytes:
    return f"From: {SENDER}\nTo: {to}\nSubject: Hello\n\nIt works.\n".encode()


def _require_file(path: Path, package: str) -> None:
    if not path.exists():
        missing(f"{path.name} is not there (Debian package {package})")


RUNS: dict[str, tuple[str, Callable[[Desk], None]]] = {
    "curl, HTTPS": ("curl.md", shell("curl", script="send.sh")),
    "curl, SMTP": ("curl.md", shell("curl", script="smtp.sh")),
    "swaks": ("swaks.md", shell("swaks", script="send.sh")),
    "msmtp": ("msmtp.md", msmtp),
    "httpx": ("python.md", python("send_http.py")),
    "smtplib": ("python.md", python("send_smtp.py")),
    "Django": ("django.md", django),
    "fetch": ("node.md", node("http.mjs")),
    "nodemailer": ("node.md", node("smtp.mjs", mailer=True)),
    "PHPMailer": ("phpmailer.md", phpmailer),
    "Laravel": ("laravel.md", laravel),
    "WordPress": ("wordpress.md", wordpress),
    "Rails": ("rails.md", rails),
    "Go, HTTPS": ("go.md", go("main.go")),
    "Go, SMTP": ("go.md", go("smtp.go")),
    "Java": ("java.md", java),
    "Postfix": ("postfix.md", postfix),
    "Exim": ("exim.md", exim),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_page_is_true(place: Place, sink: CaptureSink, tmp_path: Path, name: str) -> None:
    page, run = RUNS[name]
    desk = open_desk(place, page, tmp_path)
    run(desk)
    arrived = [entry for entry in sink.deliveries() if desk.to in entry["recipients"]]
    assert len(arrived) == 1, arrived
    assert arrived[0]["mail_from"] == SENDER
    message = email.message_from_bytes(sink.content(arrived[0]), policy=email.policy.default)
    assert message["From"].addresses[0].addr_spec == SENDER
    assert message["Subject"] == "Hello"
    assert message["To"].addresses[0].addr_spec == desk.to
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().strip() == "It works."


# Go's PlainAuth would give the key to localhost, where this test has its server, and to nobody else without TLS.
BY_SMTP = sorted(RUNS.keys() - {"curl, HTTPS", "httpx", "fetch", "Go, HTTPS", "Go, SMTP"})


@pytest.mark.parametrize("name", BY_SMTP)
def test_nobody_in_between_hears_a_key(place: Place, tmp_path: Path, name: str) -> None:
    """Where STARTTLS is left out of the answer to EHLO, a client gives up before AUTH and MAIL."""
    page, run = RUNS[name]
    with without_tls() as (port, told):
        desk = open_desk(place, page, tmp_path, {**place.daemon.ports, "starttls": port, "implicit": port})
        with pytest.raises(AssertionError) as failed:
            run(desk)
    assert told, failed.value
    assert not [line for line in told if line[:4].upper() in (b"AUTH", b"MAIL")]


@pytest.mark.parametrize("name", ["swaks", "Laravel", "Postfix"])
@pytest.mark.parametrize("who", ["we", "a stranger", "somebody in between"])
def test_what_a_key_s_page_has_to_paste(place: Place, sink: CaptureSink, tmp_path: Path, name: str, who: str) -> None:
    """Of a service with a good certificate: it sends by nobody else.  who: answers at the port."""
    to = f"you.{new_id()}@example.net"
    run = {"swaks": shell("swaks", script="send.sh"), "Laravel": laravel, "Postfix": postfix}[name]
    other = make_certificate(tmp_path).certificate if who == "a stranger" else place.authority
    with without_tls() as (port, told):
        ports = place.daemon.ports if who != "somebody in between" else {"starttls": port, "implicit": port}
        at = snippets.Place("", "localhost", ports["starttls"], ports["implicit"], is_self_made=False)
        found = next(each for each in snippets.make_snippets(at, SENDER, place.key, to) if each.name == name)
        text = found.text.replace(AUTHORITIES, str(other))
        desk = Desk(replace(place, authority=other), tmp_path, to, {found.where: text})
        (tmp_path / (found.where or "send.sh")).write_text(text)
        with nullcontext() if who == "we" else pytest.raises(AssertionError):
            run(desk)
    assert len([entry for entry in sink.deliveries() if to in entry["recipients"]]) == (who == "we")
    assert bool(told) == (who == "somebody in between")
    assert not [line for line in told if line[:4].upper() in (b"AUTH", b"MAIL")]


def test_what_was_put_into_a_block_is_not_searched_again() -> None:
    assert fill("host:587, host:465", {"587": "34651", "465": "45872"}) == "host:34651, host:45872"


def test_every_page_is_run_and_linked() -> None:
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    assert {page for page, _ in RUNS.values()} == pages
    assert set(re.findall(r"\((\w+\.md)\)", (PAGES / "README.md").read_text())) == pages
