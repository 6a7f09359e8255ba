# SPDX-License-Identifier: Apache-2.0
"""Starting, watching and ending other programs, and waiting for what they do.  Every wait has a deadline."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from trio._core import _thread_cache

T = TypeVar("T")

# Generous: these say "it hangs", never "it is slow".  A loaded two-core machine may take a while to start Postfix.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
LAST_WORDS_OCTETS = 6000


class PeerFailed(Exception):
    """A peer did not start, died, or did not do in time what was waited for; the text ends with its last output."""


def wait_until(
    condition: Callable[[], T],
    what: str,
    *,
    timeout_s: float = START_TIMEOUT_S,
    alive: Callable[[], bool] | None = None,
) -> T:
    """Poll an outside condition until it is true; its value.

    For things of other processes that cannot tell us by themselves.  Raises PeerFailed, naming `what`, at the deadline,
    or as soon as `alive` says that nothing can come any more.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.002
    while True:
        value = condition()
        if value:
            return value
        if alive is not None and not alive():
            value = condition()
            if value:
                return value
            raise PeerFailed(f"the process ended while waiting for {what}")
        if time.monotonic() > deadline:
            raise PeerFailed(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)


def ports_in_turn(worker: int, workers: int) -> Iterator[int]:
    """Ports for one of several test processes, from a random one on: none of the others', none twice until all were."""
    ports = range(16_384 + worker % workers, 32_768, workers)
    first = secrets.randbelow(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


_ports = ports_in_turn(
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
    int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
)


def free_port() -> int:
    """A port on 127.0.0.1 that was free a moment ago, by TCP and UDP (for programs that cannot choose one themselves).

    Not one of those that the system gives to outgoing connections: until the program binds it, any other connection of
    this machine might get it, and the tests of another process have many.  Nor one that was given before, here or in
    the test process beside this one: who got it may not have bound it yet, which takes a PostgreSQL seconds.
    """
    for port in _ports:
        with (
            socket.socket() as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            contextlib.suppress(OSError),
        ):
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            return port
    raise AssertionError  # the ports have no end


class HeldPorts:
    """Ports of a server that is down, kept for it: a program that asks the system for a port does not get one of them.

    Nothing listens there, so connections are refused; a server with SO_REUSEADDR, as ours all have, comes back there.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def hold(self, ports: Iterable[int]) -> None:
        """From now on; once the server's process is gone."""
        for port in ports:
            holder = socket.socket()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:  # it is taken already: the server will say so
                holder.close()
            else:
                self._sockets.append(holder)

    def release(self) -> None:
        """The server is back, or will not come back."""
        while self._sockets:
            self._sockets.pop().close()


def port_answers(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there now."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def greets(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether an SMTP server there sends its banner now: only then it really works."""
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            return connection.recv(4).startswith(b"220")
    except OSError:
        return False


def assert_no_traceback(text: str) -> None:
    """Of what a program printed; fails with the first one, as it reads."""
    at = text.find("Traceback")
    assert at < 0, text[max(0, text.rfind("\n", 0, at)) :][:4000].replace("\\n", "\n")


@contextlib.contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that other users may enter (pytest's own may not be: Postfix drops its privileges).

    What fails inside says what the programs in there printed last.
    """
    path = Path(tempfile.mkdtemp(prefix=f"hepmaild-{prefix}-"))
    path.chmod(0o755)
    _open_folders.append(path)
    try:
        yield path
    except BaseException as error:
        for title, text in _printed_in(path):
            error.add_note(f"{title}:\n{text}")
        raise
    finally:
        _open_folders.remove(path)
        shutil.rmtree(path, ignore_errors=True)


_open_folders: list[Path] = []


def last_words() -> list[tuple[str, str]]:
    """Of every program whose folder is open: the ends of what it printed, each with a title.

    For a test that fails beside them; one that fails inside `open_folder` has them as notes of its exception.
    """
    return [words for folder in _open_folders for words in _printed_in(folder)]


def _printed_in(folder: Path) -> list[tuple[str, str]]:
    files = sorted([*folder.glob("*.out"), *folder.glob("*.err")])
    said = [(path, path.read_bytes()[-LAST_WORDS_OCTETS:].decode("utf-8", "replace")) for path in files]
    return [(f"{path} ends", text) for path, text in said if text]


class Child:
    """One started program, in its own process group, its output in files.

    stdout and stderr go to `<name>.out` and `<name>.err` in `folder`; they are appended to over restarts.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[object],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.out_path = folder / f"{name}.out"
        self.err_path = folder / f"{name}.err"
        with self.out_path.open("ab") as out, self.err_path.open("ab") as err:
            self.process = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=out,
                stderr=err,
                env=None if env is None else {**os.environ, **env},
                preexec_fn=preexec,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        """The end of everything it printed."""
        parts = [path.read_text("utf-8", "replace") for path in (self.out_path, self.err_path) if path.exists()]
        return "\n".join(parts)[-LAST_WORDS_OCTETS:]

    def wait_for(self, condition: Callable[[], T], what: str, *, timeout_s: float = START_TIMEOUT_S) -> T:
        """As wait_until, but ends at once, with its output, when the process dies."""
        try:
            return wait_until(condition, what, timeout_s=timeout_s, alive=self.is_alive)
        except PeerFailed as error:
            raise PeerFailed(f"{self.name}: {error}\n{self.output()}") from None

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive():
            self.process.send_signal(number)

    def wait(self, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit status; raises PeerFailed if it does not end in time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"{self.name} did not end within {timeout_s:.0f} s\n{self.output()}") from None

    def terminate(self, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, and its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s=timeout_s)

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End it whatever state it is in: SIGTERM, then SIGKILL to what is left of its group."""
        if self.is_alive():
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S / 2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


@contextlib.contextmanager
def no_file_beyond(octets: int) -> Iterator[None]:
    """What a full disk is like, without one: no file may grow beyond this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_further_thread() -> Iterator[None]:
    """What a limit of threads is like, without one: none can be started, and none of Trio's is idle."""
    import pytest  # the benchmarks use this module without pytest

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(_thread_cache, "THREAD_CACHE", _thread_cache.ThreadCache())
        yield
