# SPDX-License-Identifier: Apache-2.0
"""A private Postfix: own configuration, queue and data folders, loopback only, no system log.

Three roles: `submission_server` (TLS, SASL; relays everything to one next hop: the benchmark's peer),
`smarthost_client` (takes mail from `sendmail` and relays it by an authenticated TLS session, as countless machines do),
and `mail_server` (a next hop that keeps what it gets).  master(8) has to be started by root; its daemons run as the
user postfix.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.certificates import make_certificate
from tests.peers.processes import Child, free_port, greets, open_folder, port_answers
from tests.peers.programs import find_program

DAEMON_DIRECTORIES = ("/usr/lib/postfix/sbin", "/usr/libexec/postfix", "/usr/lib/postfix")

# Services every Postfix needs (Debian's master.cf without its chroots and without what nobody here uses).
MASTER_CF = """\
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       n       1000?   1       tlsmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
verify    unix  -       -       n       -       1       verify
flush     unix  n       -       n       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       n       -       -       smtp
relay     unix  -       -       n       -       -       smtp
showq     unix  n       -       n       -       -       showq
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
local     unix  -       n       n       -       -       local
virtual   unix  -       n       n       -       -       virtual
lmtp      unix  -       -       n       -       -       lmtp
anvil     unix  -       -       n       -       1       anvil
scache    unix  -       -       n       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""


@dataclass
class Postfix:
    """A running instance."""

    folder: Path
    child: Child
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "etc"

    @property
    def maildir(self) -> Path:
        return self.folder / "mail"

    @property
    def pid(self) -> int:
        """The process at the root of its tree."""
        return self.child.pid

    def log(self) -> str:
        path = self.folder / "postfix.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def messages(self) -> list[bytes]:
        """Every message it delivered into its maildir, oldest first, line ends as Unix has them."""
        new = self.maildir / "new"
        if not new.is_dir():
            return []
        return [path.read_bytes() for path in sorted(new.iterdir(), key=lambda path: path.stat().st_mtime_ns)]

    def sendmail(self, message: bytes, *, sender: str, recipients: list[str]) -> None:
        """Hand a message to its `sendmail` command; raises CalledProcessError."""
        command = [find_program("sendmail"), "-C", str(self.config), "-i", "-f", sender, "--", *recipients]
        subprocess.run(command, input=message, check=True, capture_output=True, timeout=60)

    def flush(self) -> None:
        """Try the whole queue again now."""
        command = [find_program("postqueue"), "-c", str(self.config), "-f"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def daemon_directory() -> str:
    """Where master(8) and its daemons are."""
    for name in DAEMON_DIRECTORIES:
        if (Path(name) / "master").exists():
            return name
    find_program("master")
    return DAEMON_DIRECTORIES[0]


def _write_folder(folder: Path, settings: Mapping[str, str], services: str) -> None:
    config = folder / "etc"
    config.mkdir(exist_ok=True)
    for name, owner in (("spool", None), ("data", "postfix")):
        (folder / name).mkdir()
        if owner is not None:
            shutil.chown(folder / name, owner)
    shutil.copy("/etc/postfix/postfix-files", config)
    base = {
        "compatibility_level": "3.6",
        "queue_directory": str(folder / "spool"),
        "data_directory": str(folder / "data"),
        "command_directory": str(Path(find_program("postfix")).parent),
        "daemon_directory": daemon_directory(),
        "mail_owner": "postfix",
        "setgid_group": "postdrop",
        "myhostname": "postfix.test",
        "mydestination": "",
        "mynetworks": "",
        "inet_interfaces": "127.0.0.1",
        "inet_protocols": "ipv4",
        "maillog_file": str(folder / "postfix.log"),
        "maillog_file_prefixes": str(folder),
        "alias_maps": "",
        "alias_database": "",
        "biff": "no",
        "append_dot_mydomain": "no",
        "disable_dns_lookups": "yes",
        "message_size_limit": "30000000",
        # One client is the whole benchmark: the limits for strangers would only measure themselves.
        "smtpd_client_connection_count_limit": "0",
        "smtpd_client_event_limit_exceptions": "127.0.0.0/8",
        "default_process_limit": "300",
    }
    merged = {**base, **settings}
    text = "".join(f"{key} = {value}\n" for key, value in merged.items())
    (config / "main.cf").write_text(text)
    (config / "master.cf").write_text(services + MASTER_CF)


@contextlib.contextmanager
def _running(folder: Path, settings: Mapping[str, str], services: str, ports: Mapping[str, int]) -> Iterator[Postfix]:
    _write_folder(folder, settings, services)
    child = Child("postfix", [find_program("postfix"), "-c", folder / "etc", "start-fg"], folder)
    postfix = Postfix(folder, child, dict(ports))
    try:
        for name, port in ports.items():
            answers = port_answers if name == "implicit" else greets
            child.wait_for(functools.partial(answers, port), f"postfix to answer for {name}")
        child.wait_for(lambda: (folder / "spool/public/pickup").exists(), "postfix's pickup service")
        yield postfix
    finally:
        child.close()
        _end_stragglers(folder)


def _end_stragglers(folder: Path) -> None:
    """Daemons of a master that was killed notice by themselves only later; end those that use this very folder."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(folder / "spool"):
                os.kill(int(entry.name), 9)


def _add_sasl(folder: Path, user: str, password: str) -> dict[str, str]:
    """A sasldb with one user, readable by the daemons; the settings that use it."""
    sasl = folder / "etc" / "sasl"  # where Debian's Postfix looks, whatever cyrus_sasl_config_path says
    sasl.mkdir(parents=True)
    database = sasl / "sasldb2"
    subprocess.run(
        [find_program("saslpasswd2"), "-p", "-c", "-f", str(database), "-u", "postfix.test", user],
        input=password.encode(),
        check=True,
        capture_output=True,
    )
    shutil.chown(database, "root", pwd.getpwnam("postfix").pw_gid)
    database.chmod(0o640)
    (sasl / "smtpd.conf").write_text(
        f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\nsasldb_path: {database}\n"
    )
    return {
        "cyrus_sasl_config_path": str(sasl),
        "smtpd_sasl_path": "smtpd",
        "smtpd_sasl_local_domain": "postfix.test",
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_tls_auth_only": "yes",
    }


@contextlib.contextmanager
def submission_server(
    *,
    next_hop: int,
    user: str = "bench",
    password: str = "secret",
    certificate: Path | None = None,
    private_key: Path | None = None,
    hold: bool = False,
    answers: Mapping[str, str] | None = None,
) -> Iterator[Postfix]:
    """TLS and SASL on ports `starttls` and `implicit`; relays everything to 127.0.0.1:next_hop.

    hold: keep accepted mail in the hold queue instead, so that only the acceptance is at work.  answers: what is said
    to single recipients instead of yes (access(5)).
    """
    with open_folder("postfix") as folder:
        if certificate is None or private_key is None:
            made = make_certificate(folder)
            certificate, private_key = made.certificate, made.private_key
        settings = _add_sasl(folder, user, password) | {
            "smtpd_tls_cert_file": str(certificate),
            "smtpd_tls_key_file": str(private_key),
            "smtpd_tls_loglevel": "0",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
            "smtpd_recipient_restrictions": _inline(answers)
            + ("check_client_access static:HOLD, " if hold else "")
            + "permit_sasl_authenticated, reject",
            "relayhost": f"[127.0.0.1]:{next_hop}",
            "smtp_tls_security_level": "none",
            # Postfix's own brake on senders that are faster than its deliveries would only make it slower.
            "in_flow_delay": "0",
        }
        ports = {"starttls": free_port(), "implicit": free_port()}
        services = (
            f"127.0.0.1:{ports['starttls']} inet n - n - - smtpd -o smtpd_tls_security_level=encrypt\n"
            f"127.0.0.1:{ports['implicit']} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes\n"
        )
        with _running(folder, settings, services, ports) as postfix:
            yield postfix


def _inline(answers: Mapping[str, str] | None) -> str:
    if not answers:
        return ""
    pairs = ", ".join(f"{{ {address} = {answer} }}" for address, answer in answers.items())
    return f"check_recipient_access inline:{{ {pairs} }}, "


@contextlib.contextmanager
def smarthost_client(*, relay_port: int, key: str, user: str = "api", implicit_tls: bool = False) -> Iterator[Postfix]:
    """Relays what `sendmail` gives it to 127.0.0.1:relay_port, by TLS, with the key as password."""
    with open_folder("postfix") as folder:
        nexthop = f"[127.0.0.1]:{relay_port}"
        passwords = folder / "passwords"
        passwords.write_text(f"{nexthop} {user}:{key}\n")
        passwords.chmod(0o600)
        settings = {
            "relayhost": nexthop,
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_password_maps": f"texthash:{passwords}",
            "smtp_sasl_security_options": "noanonymous",
            "smtp_tls_security_level": "encrypt",
            "smtp_tls_wrappermode": "yes" if implicit_tls else "no",
        }
        with _running(folder, settings, "", {}) as postfix:
            yield postfix


@contextlib.contextmanager
def configured_client(make: Callable[[Path], Mapping[str, str]]) -> Iterator[Postfix]:
    """One with these lines in its main.cf.  make: gets its folder."""
    with open_folder("postfix") as folder:
        (folder / "etc").mkdir()
        with _running(folder, make(folder), "", {}) as postfix:
            yield postfix


@contextlib.contextmanager
def mail_server(*, starttls: bool = True) -> Iterator[Postfix]:
    """A next hop on port `smtp` that takes any recipient and keeps the mail in one maildir."""
    with open_folder("postfix") as folder:
        maildir = folder / "mail"
        for part in ("", "new", "cur", "tmp"):
            (maildir / part).mkdir()
            shutil.chown(maildir / part, "postfix", "postfix")
        user = pwd.getpwnam("postfix")
        made = make_certificate(folder)
        settings = {
            "smtpd_tls_security_level": "may" if starttls else "none",
            "smtpd_tls_cert_file": str(made.certificate),
            "smtpd_tls_key_file": str(made.private_key),
            "mynetworks": "127.0.0.0/8",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "default_transport": "virtual",
            "virtual_transport": "virtual",
            "virtual_mailbox_domains": "static:all",
            "virtual_mailbox_maps": "static:mail/",
            "virtual_mailbox_base": str(folder),
            "virtual_mailbox_limit": "0",
            "virtual_minimum_uid": "1",
            "virtual_uid_maps": f"static:{user.pw_uid}",
            "virtual_gid_maps": f"static:{user.pw_gid}",
        }
        ports = {"smtp": free_port()}
        services = f"127.0.0.1:{ports['smtp']} inet n - n - - smtpd\n"
        with _running(folder, settings, services, ports) as postfix:
            yield postfix
