# SPDX-License-Identifier: Apache-2.0
"""Which programs are there, and what happens when one is not: skipped by name; a failure when CI=true."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

SYSTEM_PATH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/lib/postfix/sbin"


class MissingProgram(Exception):
    """A program that a peer needs is not on this machine; the text names it and the package that has it."""


PACKAGES = {
    "postfix": "postfix",
    "smtp-sink": "postfix",
    "sendmail": "postfix",
    "saslpasswd2": "sasl2-bin",
    "swaks": "swaks",
    "curl": "curl",
    "msmtp": "msmtp",
    "node": "nodejs",
    "npm": "npm",
    "cc": "gcc",
    "opendkim-testmsg": "opendkim-tools",
    "unshare": "util-linux",
    "mount": "mount",
    "knotd": "knot",
    "unbound": "unbound",
    "php": "php-cli",
    "ruby": "ruby",
    "go": "golang-go",
    "java": "default-jdk-headless",
    "keytool": "default-jdk-headless",
}


def find_program(name: str) -> str:
    """The path of a program; raises MissingProgram."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + SYSTEM_PATH)
    if path is None:
        raise MissingProgram(f"{name} is not installed (Debian package {PACKAGES.get(name, name)})")
    return path


def in_ci() -> bool:
    """Whether a missing peer is a failure."""
    return os.environ.get("CI", "").lower() in {"true", "1", "yes"}


def missing(reason: str) -> None:
    """Skip the running test for this reason; fail it in CI."""
    import pytest  # the benchmarks use this module without pytest

    if in_ci():
        pytest.fail(f"needed in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def require(*names: str) -> None:
    """Skip the running test, naming the program, unless every one of these is there; fail it in CI."""
    for name in names:
        try:
            find_program(name)
        except MissingProgram as error:
            missing(str(error))


def require_root(what: str) -> None:
    """Skip (in CI: fail) unless this is root: some programs cannot be started by anybody else."""
    if os.geteuid() != 0:
        missing(f"{what} can be started by root only")


def require_postfix() -> None:
    """Skip (in CI: fail) unless a private Postfix can be started here."""
    require("postfix", "saslpasswd2")
    require_root("postfix")


def require_exim() -> str:
    """Skip (in CI: fail) unless an exim4 is installed, or unpacked by .ci/run; its path."""
    unpacked = CLIENTS_FOLDER / "exim" / "usr" / "sbin" / "exim4"
    try:
        pwd.getpwnam("Debian-exim")
        program = str(unpacked) if unpacked.exists() else find_program("exim4")
    except (KeyError, MissingProgram):
        missing("exim4 is not installed (Debian package exim4-daemon-light; .ci/run unpacks it beside Postfix)")
        raise AssertionError from None
    require_root("exim4 with settings of the test's own")
    return program


CLIENTS_FOLDER = Path(__file__).resolve().parent.parent / "clients"


def require_nodemailer() -> None:
    """Skip (in CI: fail) unless node is there and `npm ci` was run in tests/clients."""
    require("node")
    if not (CLIENTS_FOLDER / "node_modules" / "nodemailer").is_dir():
        missing("nodemailer is not installed (run `npm ci` in tests/clients)")
