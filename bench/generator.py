# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the load generator (loadgen.c), and says in one sentence what is missing when it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.programs import find_program

SOURCE = Path(__file__).resolve().parent / "loadgen.c"


class BenchFailed(Exception):
    """A benchmark cannot be run, or its numbers would be worth nothing; the text says why."""


@contextlib.contextmanager
def built_generator() -> Iterator[Path]:
    """Compile the generator into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="hepmaild-bench-") as folder:
        binary = Path(folder) / "loadgen"
        command = [find_program("cc"), "-O2", "-o", str(binary), str(SOURCE), "-lssl", "-lcrypto"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchFailed(f"cannot build the load generator (Debian: gcc, libssl-dev):\n{done.stderr[:2000]}")
        yield binary


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.  rate: messages a second whatever the server does; 0: as fast as replies come.

    targets: a file with a sender and a recipient on each line, taken in turn; empty: all from and to the same.
    """

    connections: int = 20
    messages: int = 2000
    size_octets: int = 2048
    rate: float = 0
    pipelining: bool = False
    sender: str = "noreply@example.com"
    recipient: str = "someone@example.net"
    deadline_s: int = 300
    targets: str = ""


class Generator:
    """One started generator; its connections are open and authenticated once `wait_ready` returns."""

    def __init__(
        self,
        binary: Path,
        port: int,
        load: Load,
        *,
        user: str,
        password: str,
        prefix: str,
        implicit: bool = False,
        http_path: str = "",
        hold_only: bool = False,
    ) -> None:
        command = [str(binary), "--port", str(port), "--connections", str(load.connections)]
        command += ["--messages", str(load.messages), "--size", str(load.size_octets), "--user", user]
        command += ["--sender", load.sender, "--recipient", load.recipient, "--prefix", prefix]
        command += ["--deadline-s", str(load.deadline_s), "--rate", str(load.rate)]
        command += ["--targets", load.targets] if load.targets else []
        command += ["--implicit"] if implicit else []
        command += ["--pipelining"] if load.pipelining else []
        command += ["--http", http_path] if http_path else []
        command += ["--hold"] if hold_only else []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LOADGEN_PASSWORD": password},
        )

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise BenchFailed(self.process.stderr.read().strip() or "the load generator ended without a word")
        return line

    def wait_ready(self) -> None:
        """Wait for all connections."""
        if self._line().strip() != "READY":
            raise BenchFailed("the load generator is confused")

    def go(self) -> None:
        """Start sending."""
        assert self.process.stdin is not None
        self.process.stdin.write("GO\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for the end; what it measured.  Its connections stay open."""
        found: dict[str, Any] = json.loads(self._line())
        return found

    def close(self) -> None:
        """Close the connections."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def open_generator(binary: Path, port: int, load: Load, **options: Any) -> Iterator[Generator]:
    """A generator whose connections are ready; they close at the end."""
    generator = Generator(binary, port, load, **options)
    try:
        generator.wait_ready()
        yield generator
    finally:
        generator.close()
