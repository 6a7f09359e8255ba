# SPDX-License-Identifier: Apache-2.0
"""opendkim-testmsg, a verifier in C.  It asks the system's name server, so it gets a network of its own with ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.peers.processes import open_folder
from tests.peers.programs import find_program, missing, require

ROOT = Path(__file__).resolve().parent.parent.parent
DNS_PORT = 53

# Network and mounts are this script's own, and gone with it.  `ip` is not needed: an ioctl brings loopback up.
_SCRIPT = """
import fcntl, socket, struct, subprocess, sys
with socket.socket() as link:
    fcntl.ioctl(link, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
resolv_conf, *command = sys.argv[1:]
subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
sys.exit(subprocess.run(command).returncode)
"""


def require_opendkim() -> None:
    """Skip (in CI: fail) unless opendkim-testmsg is there and may be given a network of its own."""
    require("opendkim-testmsg", "unshare", "mount")
    done = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        missing(f"no network namespace for opendkim-testmsg: {done.stderr.strip()}")


def _unshare() -> list[str]:
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [find_program("unshare"), "--net", "--mount", *as_root]


def opendkim_says(message: bytes, zone_text: str) -> str:
    """What it has against the message, "" when the signature is good.  zone_text: the records that DNS has."""
    with open_folder("opendkim") as folder:
        records, resolv_conf = folder / "records.zone", folder / "resolv.conf"
        records.write_text(zone_text)
        resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:5 attempts:2\n")
        server = [sys.executable, "-m", "tests.peers.small_dns", str(DNS_PORT), records]
        done = subprocess.run(
            [*_unshare(), sys.executable, "-c", _SCRIPT, resolv_conf, *server, find_program("opendkim-testmsg")],
            input=message,
            capture_output=True,
            timeout=60,
            cwd=ROOT,
            check=False,
        )
    said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
    return said or (f"exit status {done.returncode}" if done.returncode else "")
