# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL: a throw-away cluster of our own, or the server that HEPMAILD_TEST_POSTGRES names.

Ours is durable where a test or a benchmark is about crashes or speed.  Elsewhere it does not wait for the disk, and
checks passwords the quick way: the same statements give the same answers, and its own death is no part of the test.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.peers.processes import PeerFailed, free_port, open_folder
from tests.peers.programs import MissingProgram, missing

ENVIRONMENT = "HEPMAILD_TEST_POSTGRES"
COMMAND_TIMEOUT_S = 60


def find_binaries() -> Path:
    """The folder with initdb and pg_ctl, the newest there is; raises MissingProgram."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if folders:
        return folders[-1].parent
    found = shutil.which("initdb")
    if found is None:
        raise MissingProgram("initdb is not installed (Debian package postgresql)")
    return Path(found).resolve().parent


def require_postgres(*, own: bool = False) -> None:
    """Skip (in CI: fail) unless there is a PostgreSQL for tests.  own: one that the test may stop and start."""
    if os.environ.get(ENVIRONMENT) and not own:
        return
    try:
        find_binaries()
        _as_postgres()
    except MissingProgram as error:
        missing(str(error))


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise MissingProgram("there is no user postgres (Debian package postgresql)") from None
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


def _run(command: list[str], *, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        env={**os.environ, **(env or {})},
        cwd=cwd or "/",
        check=False,
    )
    if done.returncode:
        raise PeerFailed(f"{' '.join(command)} failed: {done.stdout[-2000:]}")
    return done.stdout


class Cluster:
    """A cluster of ours: user `postgres` with a password, on a port of 127.0.0.1 and a socket in its folder."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._durable = durable
        self._bin = find_binaries()
        self._folder = folder
        self._data = folder / "data"
        self._as_postgres = _as_postgres()
        self.password = secrets.token_hex(8)
        self.port = free_port()
        self.server = f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}"

    def create(self) -> None:
        """Make the files."""
        word = self._folder / "password"
        word.write_text(self.password)
        word.chmod(0o644)
        if self._as_postgres:
            shutil.chown(self._folder, "postgres", "postgres")
        options = [f"--pwfile={word}", "--username=postgres", "--encoding=UTF8", "--no-locale"]
        # SCRAM costs 4,096 rounds of a hash at every connection, in Python on our side.
        options += ["--auth=scram-sha-256"] if self._durable else ["--auth=md5", "--no-sync"]
        _run([*self._as_postgres, str(self._bin / "initdb"), "-D", str(self._data), *options])
        settings = f"""
listen_addresses = '127.0.0.1'
port = {self.port}
unix_socket_directories = '{self._folder}'
fsync = {"on" if self._durable else "off"}
full_page_writes = {"on" if self._durable else "off"}
synchronous_commit = on
max_connections = 100
shared_buffers = 32MB
"""
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.write(settings)

    def start(self) -> None:
        """Start it; ready when this returns."""
        self._pg_ctl("start", "-w", "-t", "60", "-l", str(self._folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        """Stop it.  mode: "fast" ends all sessions, "immediate" is a crash."""
        self._pg_ctl("stop", "-w", "-t", "30", "-m", mode)

    def become_standby(self) -> None:
        """At its next start: one that is behind nobody, and so has nothing more to come; see `promote`."""
        signal = self._data / "standby.signal"
        signal.touch()
        if self._as_postgres:
            shutil.chown(signal, "postgres", "postgres")

    def promote(self) -> None:
        """A standby can be written again when this returns."""
        self._pg_ctl("promote", "-w", "-t", "60")

    @property
    def postmaster_pid(self) -> int:
        """The process id of the running server."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    @property
    def socket_folder(self) -> Path:
        """Where its Unix socket is."""
        return self._folder

    def log(self) -> str:
        """What the server logged."""
        path = self._folder / "log"
        return path.read_text() if path.exists() else ""

    def _pg_ctl(self, *arguments: str) -> None:
        command = [*self._as_postgres, str(self._bin / "pg_ctl"), "-D", str(self._data), *arguments]
        # pg_ctl hands its output to the server it starts: with a pipe there the call would never end.
        with (self._folder / "pg_ctl").open("wb") as out:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=COMMAND_TIMEOUT_S + 30,
                cwd="/",
                check=False,
            )
        if done.returncode:
            raise PeerFailed(
                f"pg_ctl {arguments[0]} failed: {(self._folder / 'pg_ctl').read_text()}\n{self.log()[-2000:]}"
            )


@contextlib.contextmanager
def open_cluster(*, durable: bool = True) -> Iterator[Cluster]:
    """A running cluster of our own, gone at the end.  Raises MissingProgram, PeerFailed."""
    with open_folder("postgres") as folder:
        cluster = Cluster(folder, durable=durable)
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            with contextlib.suppress(PeerFailed):
                cluster.stop("immediate")


@contextlib.contextmanager
def open_server(*, durable: bool = True) -> Iterator[str]:
    """The URL, without a database, of a server on which databases can be made."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        base, _, _ = named.rpartition("/") if named.count("/") > 2 else (named, "", "")
        yield base
        return
    with open_cluster(durable=durable) as cluster:
        yield cluster.server


@contextlib.contextmanager
def open_database(server: str, template: str = "template1") -> Iterator[str]:
    """The URL of a new database, empty or as the one named is; dropped at the end, whoever still uses it."""
    name = f"hepmaild_test_{secrets.token_hex(6)}"
    sql(f"{server}/postgres", f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield f"{server}/{name}"
    finally:
        sql(f"{server}/postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def sql(url: str, statement: str) -> str:
    """Run one statement outside of everything that is tested; its rows, unaligned."""
    program = shutil.which("psql")
    if program is None:
        program = str(find_binaries() / "psql")
    return _run([program, url, "-XAtqc", statement]).strip()


@contextlib.contextmanager
def open_transaction(url: str, statement: str) -> Iterator[None]:
    """A transaction of somebody else that has run one statement and keeps its locks; rolled back at the end."""
    program = shutil.which("psql") or str(find_binaries() / "psql")
    with subprocess.Popen(
        [program, url, "-XAtq", "-v", "ON_ERROR_STOP=1", "-o", os.devnull],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PGOPTIONS": "-c lock_timeout=60s"},
        cwd="/",
    ) as psql:
        assert psql.stdin is not None
        assert psql.stdout is not None
        psql.stdin.write(f"BEGIN;\n{statement};\n\\echo begun\n")
        psql.stdin.flush()
        try:
            if psql.stdout.readline() != "begun\n":
                raise PeerFailed(f"psql could not do {statement}")
            yield
            psql.communicate("ROLLBACK;\n", timeout=COMMAND_TIMEOUT_S)
        finally:
            psql.kill()


def dump(url: str) -> str:
    """Everything in a database as statements, rows too, whoever will own it."""
    program = shutil.which("pg_dump") or str(find_binaries() / "pg_dump")
    text = _run([program, url, "--inserts", "--no-owner", "--no-privileges"])
    # Newer ones begin and end with a word that psql has to know.
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith(("\\restrict", "\\unrestrict"))
    )


def load(url: str, file: Path) -> None:
    """Run the statements of a file; the first error ends it."""
    program = shutil.which("psql") or str(find_binaries() / "psql")
    _run([program, url, "-Xqo", os.devnull, "-v", "ON_ERROR_STOP=1", "-f", str(file)])
