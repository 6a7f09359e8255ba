# SPDX-License-Identifier: Apache-2.0
"""The real daemon, as an own process with generated settings, and its command line."""

from __future__ import annotations

import contextlib
import copy
import http.client
import io
import json
import os
import re
import signal
import smtplib
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import trio

from hepmaild.cli.app import run
from tests.peers.processes import START_TIMEOUT_S, STOP_TIMEOUT_S, Child, HeldPorts, PeerFailed, open_folder

ROOT = Path(__file__).resolve().parent.parent.parent
ACCOUNT = "owner@example.com"
SENDER = "noreply@example.com"

Settings = dict[str, Any]


def to_toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML: tables of plain values, lists of tables, and tables of tables (plans)."""
    lines: list[str] = []
    for name, table in settings.items():
        if isinstance(table, list):
            for entry in table:
                lines += [f"[[{name}]]", *_pairs(entry), ""]
        elif table and all(isinstance(value, dict) for value in table.values()):
            for inner, entry in table.items():
                lines += [f"[{name}.{inner}]", *_pairs(entry), ""]
        else:
            lines += [f"[{name}]", *_pairs(table), ""]
    return "\n".join(lines)


def _pairs(table: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, booleans and arrays are TOML's.
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


def base_settings(folder: Path, *, sink_port: int, database_url: str = "sqlite:///hepmaild.db") -> Settings:
    """Loopback doors on ports of the system's choice, one plain `smtp` route to a next hop, one global sender."""
    return {
        "server": {"hostname": "smtp.test", "state_dir": str(folder / "state"), "drain_timeout_s": 20},
        "database": {"url": database_url},
        "smtp": {"starttls": ["127.0.0.1:0"], "implicit_tls": ["127.0.0.1:0"]},
        "http": {"listen": ["127.0.0.1:0"], "public_url": "https://localhost"},
        "own_smtp": {"allow_private_addresses": True},
        "limits": {"connections_per_ip": 200, "unknown_keys_per_minute": 100_000},
        "delivery": {
            "retry_after_s": [1],
            "final_dot_timeout_s": 60,
            "attempt_timeout_s": 61,
            "lease_s": 3,
            "relay_wait_s": 55,  # the answer is the next hop's, on however slow a machine; below what clients wait
        },
        "route": [{"name": "sink", "kind": "smtp", "host": "127.0.0.1", "port": sink_port, "tls": "none"}],
        "sender": [{"address": SENDER, "route": "sink", "default": True}],
        "plans": {"bench": {"calls_per_minute": 100_000_000}},
    }


def merge(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some keys of some tables changed; a list replaces the whole list."""
    merged = copy.deepcopy(settings)
    for name, table in changes.items():
        if isinstance(table, dict):
            merged.setdefault(name, {}).update(table)
        else:
            merged[name] = table
    return merged


@dataclass
class CommandFailed(Exception):
    """A command of the command line ended with another status than 0."""

    arguments: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"hepmaild {' '.join(self.arguments)}: exit {self.status}\n{self.stdout}{self.stderr}"


@dataclass
class Daemon:
    """One daemon: a folder, a settings file, and (while it runs) a process.

    ports: `starttls`, `implicit`, `https`; the same again after a restart.
    """

    folder: Path
    settings: Settings
    name: str = "hepmaild"
    ports: dict[str, int] = field(default_factory=dict)
    child: Child | None = None
    preexec: Callable[[], None] | None = None
    env: dict[str, str] = field(default_factory=dict)
    python_options: tuple[str, ...] = ()
    held: HeldPorts = field(default_factory=HeldPorts)

    @property
    def config_path(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def state_dir(self) -> Path:
        return Path(self.settings["server"]["state_dir"])

    @property
    def pid(self) -> int:
        assert self.child is not None, "the daemon is not running"
        return self.child.pid

    def write_settings(self) -> None:
        self.config_path.write_text(to_toml(self.settings))

    def cli(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """Run a command; its standard output.  Raises CommandFailed.

        In this process, which saves starting Python, where that changes nothing: to the daemon it is another process
        either way.
        """
        words = ("-c", str(self.config_path), *arguments)
        if self.env or threading.current_thread() is not threading.main_thread():
            status, out, err = _run_apart(words, stdin, self.env, timeout_s)
        elif trio.lowlevel.in_trio_run():
            status, out, err = _run_beside(words, stdin)
        else:
            status, out, err = _run_here(words, stdin)
        if status != 0:
            raise CommandFailed(arguments, status, out, err)
        return out

    def json(self, *arguments: str) -> Any:
        """Run a command with --json; the document it printed."""
        return json.loads(self.cli(*arguments, "--json"))

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start `serve` and wait until it says that it is ready."""
        self.write_settings()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{self.name}.err"
        offset = log.stat().st_size if log.exists() else 0
        command = [sys.executable, *self.python_options, "-m", "hepmaild", "-c", self.config_path, "serve"]
        env = {"PYTHONPATH": str(ROOT), **self.env}
        child = Child(self.name, command, self.folder, env=env, preexec=self.preexec)
        self.child = child
        try:
            child.wait_for(
                lambda: re.search(rb"\bevent=\"?ready\b", self._log_bytes(offset)), "event=ready", timeout_s=timeout_s
            )
        except PeerFailed:
            child.close()
            self.child = None
            raise
        self.held.release()
        self._learn_ports(self._log_bytes(offset).decode("utf-8", "replace"))

    def _log_bytes(self, offset: int = 0) -> bytes:
        with (self.folder / f"{self.name}.err").open("rb") as file:
            file.seek(offset)
            return file.read()

    def log(self) -> str:
        """Everything it wrote to standard error, over all starts."""
        return self._log_bytes().decode("utf-8", "replace")

    def _learn_ports(self, text: str) -> None:
        for line in text.splitlines():
            if not re.search(r"\bevent=\"?listening\b", line):
                continue
            door = re.search(r"\bdoor=\"?([\w-]+)", line)
            address = re.search(r"\baddress=\"?(\S+?):(\d+)\b", line)
            if door is None or address is None:
                continue
            name = door.group(1)
            port = int(address.group(2))
            if "starttls" in name:
                self.ports["starttls"] = port
            elif name == "metrics":
                self.ports["metrics"] = port
            elif "http" in name:
                if name == "https":
                    self.ports["https"] = port
            else:
                self.ports["implicit"] = port
        for table, key, door_name in (
            ("smtp", "starttls", "starttls"),
            ("smtp", "implicit_tls", "implicit"),
            ("http", "listen", "https"),
            ("metrics", "listen", "metrics"),
        ):
            if door_name in self.ports:
                self.settings[table][key] = [f"127.0.0.1:{self.ports[door_name]}"]

    def kill(self) -> None:
        """kill -9."""
        assert self.child is not None
        self.child.kill()
        self.child = None
        self.held.hold(self.ports.values())

    def terminate(self, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM; the exit status."""
        assert self.child is not None
        status = self.child.terminate(timeout_s=timeout_s)
        self.child = None
        self.held.hold(self.ports.values())
        return status

    def signal(self, number: signal.Signals) -> None:
        assert self.child is not None
        self.child.signal(number)

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None
        self.held.release()

    def mint(self, *, email: str = ACCOUNT, name: str = "app", options: tuple[str, ...] = ()) -> dict[str, str]:
        """A new key: {"id", "name", "key"}."""
        key: dict[str, str] = self.json("key", "mint", email, "--name", name, *options)
        return key

    def setup(self, *, email: str = ACCOUNT, grant: int = 1_000_000, plan: str = "standard") -> str:
        """An account with credits and one key; the key's secret.

        The store may take its time for that, however little patience the daemon shall have with it.
        """
        self.config_path.write_text(to_toml(merge(self.settings, {"database": {"unit_timeout_s": 60}})))
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.json("account", "add", email, "--credits", str(grant), "--plan", plan)
        key = self.mint(email=email)["key"]
        self.write_settings()
        return key

    def memory(self) -> dict[str, int]:
        """Of its process, in octets: `rss`, `peak` (VmHWM) and `pss`."""
        return memory_of(self.pid)

    def descriptors(self) -> int:
        """How many file descriptors it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


def _run_apart(
    words: tuple[str, ...], stdin: str | None, env: Mapping[str, str], timeout_s: float
) -> tuple[int, str, str]:
    """A command as a process of its own: its status, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "hepmaild", *words],
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _run_here(words: tuple[str, ...], stdin: str | None) -> tuple[int, str, str]:
    """The same in this process, whose own log goes on as it was."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    kept_stdin, kept_log = sys.stdin, structlog.get_config()
    sys.stdin = io.StringIO(stdin or "")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(list(words))
    finally:
        sys.stdin = kept_stdin
        structlog.configure(**kept_log)
    return status, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def _run_beside(words: tuple[str, ...], stdin: str | None) -> tuple[int, str, str]:
    """The same while this thread's loop, in which the caller is, stands still: a thread has one loop only."""
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(_run_here, words, stdin).result()


def memory_of(pid: int) -> dict[str, int]:
    """Resident, peak and proportional memory of a process, in octets."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = {
        "rss": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024,  # type: ignore[index]
        "peak": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024,  # type: ignore[index]
    }
    pss = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    found["pss"] = int(pss[1]) * 1024 if pss else 0
    return found


def reset_peak(pid: int) -> None:
    """Forget the highest memory so far."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def untrusting_context() -> ssl.SSLContext:
    """TLS towards a self-made certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def open_smtp(daemon: Daemon, key: str | None, *, door: str = "starttls", timeout_s: float = 60) -> smtplib.SMTP:
    """An smtplib session under TLS, logged in if a key is given."""
    context = untrusting_context()
    port = daemon.ports[door]
    if door == "implicit":
        session: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", port, "client.test", timeout=timeout_s, context=context)
    else:
        session = smtplib.SMTP("127.0.0.1", port, "client.test", timeout=timeout_s)
    try:
        if door == "starttls":
            session.starttls(context=context)
        if key is not None:
            session.login("api", key)
    except BaseException:
        session.close()
        raise
    return session


def post(
    daemon: Daemon,
    body: Mapping[str, Any] | bytes,
    key: str | None,
    *,
    path: str = "/api/v1/email/send",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> tuple[int, Any, dict[str, str]]:
    """One HTTPS request: status, decoded body, headers in lower case."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", daemon.ports["https"], timeout=timeout_s, context=untrusting_context()
    )
    sent = {"Content-Type": "application/json", **(headers or {})}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), sent)
        response = connection.getresponse()
        raw = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        decoded = json.loads(raw) if found.get("content-type", "").startswith("application/json") else raw
        return response.status, decoded, found
    finally:
        connection.close()


@contextlib.contextmanager
def open_daemon(
    *,
    sink_port: int,
    database_url: str = "sqlite:///hepmaild.db",
    changes: Mapping[str, Any] | None = None,
    name: str = "hepmaild",
    preexec: Callable[[], None] | None = None,
    start: bool = True,
    python_options: tuple[str, ...] = (),
) -> Iterator[Daemon]:
    """A daemon in its own folder; `start=False` leaves it stopped (its command line works all the same)."""
    with open_folder(name) as folder:
        settings = merge(base_settings(folder, sink_port=sink_port, database_url=database_url), changes or {})
        daemon = Daemon(folder, settings, name=name, preexec=preexec, python_options=python_options)
        daemon.state_dir.mkdir(exist_ok=True)
        daemon.write_settings()
        try:
            if start:
                daemon.start()
            yield daemon
        finally:
            daemon.close()
