# SPDX-License-Identifier: Apache-2.0
"""Mail clients that people really use, each sending one message as it is, octet for octet.

`SMTP_CLIENTS` maps a name to a function `send(daemon, key, message, sender, recipients)`.  A client that is not on this
machine skips the test by name (see `programs`).  Raises ClientFailed with what the client said when the server refused.
"""

from __future__ import annotations

import base64
import functools
import json
import smtplib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.peers import postfix
from tests.peers.daemon import Daemon, open_smtp
from tests.peers.processes import wait_until
from tests.peers.programs import CLIENTS_FOLDER, find_program, require, require_nodemailer, require_postfix

Send = Callable[[Daemon, str, bytes, str, Sequence[str]], str]
TIMEOUT_S = 120


class ClientFailed(Exception):
    """A client did not get its mail through; the text is what it said."""


def dot_stuffed(message: bytes) -> bytes:
    """The octets that follow DATA: dots doubled, the final dot there (RFC 5321 §4.5.2)."""
    stuffed = message.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    return stuffed + (b"" if stuffed.endswith(b"\r\n") else b"\r\n") + b".\r\n"


def _run(command: Sequence[object], *, data: bytes = b"") -> str:
    done = subprocess.run(
        [str(part) for part in command], input=data, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode != 0:
        raise ClientFailed(f"exit {done.returncode}: {said}")
    return said


def send_swaks(
    daemon: Daemon,
    key: str,
    message: bytes,
    sender: str,
    recipients: Sequence[str],
    *,
    door: str = "starttls",
    mechanism: str = "PLAIN",
) -> str:
    """swaks, told not to touch the data."""
    require("swaks")
    with tempfile.NamedTemporaryFile(suffix=".eml") as file:
        file.write(dot_stuffed(message))
        file.flush()
        command: list[object] = [find_program("swaks"), "--server", "127.0.0.1", "--port", daemon.ports[door]]
        command += ["--tls" if door == "starttls" else "--tls-on-connect", "--helo", "swaks.test"]
        command += ["--auth", mechanism, "--auth-user", "api", "--auth-password", key]
        command += ["--from", sender, "--to", ",".join(recipients), "--no-data-fixup", "--data", f"@{file.name}"]
        return _run(command)


def send_curl(
    daemon: Daemon,
    key: str,
    message: bytes,
    sender: str,
    recipients: Sequence[str],
    *,
    door: str = "starttls",
    mechanism: str = "PLAIN",
) -> str:
    """curl smtp:// --ssl-reqd, or smtps://; the key goes in by standard input, not by the command line."""
    require("curl")
    scheme = "smtp" if door == "starttls" else "smtps"
    with tempfile.NamedTemporaryFile(suffix=".eml") as file:
        file.write(message)
        file.flush()
        command: list[object] = [find_program("curl"), "-sS", "-v", "--ssl-reqd", "--insecure", "--config", "-"]
        command += [f"{scheme}://127.0.0.1:{daemon.ports[door]}/curl.test", "--mail-from", sender]
        command += ["--login-options", f"AUTH={mechanism}", "--upload-file", file.name]
        for recipient in recipients:
            command += ["--mail-rcpt", recipient]
        return _run(command, data=f'user = "api:{key}"\n'.encode())


def send_smtplib(
    daemon: Daemon, key: str, message: bytes, sender: str, recipients: Sequence[str], *, door: str = "starttls"
) -> str:
    """Python's own."""
    session = open_smtp(daemon, key, door=door)
    try:
        refused = session.sendmail(sender, list(recipients), message)
        if refused:
            raise ClientFailed(f"refused: {refused}")
    except smtplib.SMTPException as error:
        raise ClientFailed(str(error)) from None
    finally:
        session.close()
    return "sent"


def nodemailer(
    daemon: Daemon,
    key: str,
    messages: Sequence[tuple[str, Sequence[str], bytes]],
    *,
    door: str = "starttls",
    pool: bool = False,
) -> list[dict[str, Any]]:
    """Send messages (sender, recipients, content) by one nodemailer transport; its word about each."""
    require_nodemailer()
    document = {
        "port": daemon.ports[door],
        "secure": door == "implicit",
        "user": "api",
        "password": key,
        "pool": pool,
        "messages": [
            {"from": sender, "to": list(to), "raw": base64.b64encode(raw).decode()} for sender, to, raw in messages
        ],
    }
    script = CLIENTS_FOLDER / "nodemailer.mjs"
    said = _run([find_program("node"), script], data=json.dumps(document).encode())
    results: list[dict[str, Any]] = json.loads(said)
    return results


def send_nodemailer(
    daemon: Daemon,
    key: str,
    message: bytes,
    sender: str,
    recipients: Sequence[str],
    *,
    door: str = "starttls",
    pool: bool = False,
) -> str:
    """nodemailer, single or pooled."""
    (result,) = nodemailer(daemon, key, [(sender, recipients, message)], door=door, pool=pool)
    if not result["ok"]:
        raise ClientFailed(json.dumps(result))
    return str(result["response"])


def send_msmtp(
    daemon: Daemon,
    key: str,
    message: bytes,
    sender: str,
    recipients: Sequence[str],
    *,
    door: str = "starttls",
    mechanism: str = "plain",
) -> str:
    """msmtp, which takes mail with Unix line ends."""
    require("msmtp")
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "msmtprc"
        settings.write_text(
            "account default\nhost 127.0.0.1\nport {port}\ntls on\ntls_starttls {starttls}\ntls_certcheck off\n"
            "auth {mechanism}\nuser api\npassword {key}\nfrom {sender}\ndomain msmtp.test\n".format(
                port=daemon.ports[door],
                starttls="on" if door == "starttls" else "off",
                mechanism=mechanism,
                key=key,
                sender=sender,
            )
        )
        settings.chmod(0o600)
        command = [find_program("msmtp"), "-C", settings, "--", *recipients]
        return _run(command, data=message.replace(b"\r\n", b"\n"))


def send_postfix(
    daemon: Daemon, key: str, message: bytes, sender: str, recipients: Sequence[str], *, door: str = "starttls"
) -> str:
    """A Postfix with `relayhost` and the key as its SASL password, fed by its `sendmail` command."""
    require_postfix()
    with postfix.smarthost_client(relay_port=daemon.ports[door], key=key, implicit_tls=door == "implicit") as client:
        client.sendmail(message.replace(b"\r\n", b"\n"), sender=sender, recipients=list(recipients))
        done = lambda: " status=" in client.log()  # noqa: E731
        wait_until(done, "postfix to try its delivery", timeout_s=TIMEOUT_S)
        log = client.log()
        if " status=sent " not in log:
            raise ClientFailed(log)
        return log


SMTP_CLIENTS: dict[str, Send] = {
    "swaks-587-plain": send_swaks,
    "swaks-587-login": functools.partial(send_swaks, mechanism="LOGIN"),
    "swaks-465-plain": functools.partial(send_swaks, door="implicit"),
    "swaks-465-login": functools.partial(send_swaks, door="implicit", mechanism="LOGIN"),
    "curl-587": send_curl,
    "curl-465-login": functools.partial(send_curl, door="implicit", mechanism="LOGIN"),
    "smtplib-587": send_smtplib,
    "smtplib-465": functools.partial(send_smtplib, door="implicit"),
    "nodemailer-587": send_nodemailer,
    "nodemailer-465-pooled": functools.partial(send_nodemailer, door="implicit", pool=True),
    "msmtp-587": send_msmtp,
    "msmtp-465-login": functools.partial(send_msmtp, door="implicit", mechanism="login"),
    "postfix-587": send_postfix,
    "postfix-465": functools.partial(send_postfix, door="implicit"),
}
