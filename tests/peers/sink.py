# SPDX-License-Identifier: Apache-2.0
"""Next hops: `capture_sink` writes down what it got (tests), `smtp_sink` only counts, very cheaply (benchmarks)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.peers.certificates import Certificate
from tests.peers.processes import START_TIMEOUT_S, Child, HeldPorts, free_port, greets, open_folder, wait_until
from tests.peers.programs import find_program

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class CaptureSink:
    """A running capture server (tests.peers.capture_server) and what it has written down."""

    folder: Path
    port: int
    child: Child | None
    command: list[str]
    held: HeldPorts = field(default_factory=HeldPorts)

    def deliveries(self) -> list[dict[str, Any]]:
        """One entry for each message past its dot, in order: id, message_id, recipients, file, reply, …"""
        path = self.folder / "sink.jsonl"
        if not path.exists():
            return []
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]  # the last line may be on its way
        return [json.loads(line) for line in whole.splitlines()]

    def ids(self) -> Counter[str]:
        """How often each X-Test-Id was taken with a 250 (or would have been, had the reply not been cut)."""
        return Counter(
            entry["id"]
            for entry in self.deliveries()
            if entry["id"] is not None and (entry["reply"] is None or entry["reply"].startswith("250"))
        )

    def content(self, entry: dict[str, Any]) -> bytes:
        """The octets of one delivery, dots removed, line ends as they came."""
        return (self.folder / "content" / str(entry["file"])).read_bytes()

    def wait_for(self, count: int, *, timeout_s: float = START_TIMEOUT_S) -> list[dict[str, Any]]:
        """Wait until so many deliveries were written down; all of them."""

        def enough() -> list[dict[str, Any]]:
            found = self.deliveries()
            return found if len(found) >= count else []

        return wait_until(enough, f"{count} deliveries at the sink", timeout_s=timeout_s)

    def wait_for_id(self, test_id: str, *, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """Wait for the delivery of one message."""

        def found() -> dict[str, Any] | None:
            return next((entry for entry in self.deliveries() if entry["id"] == test_id), None)

        entry = wait_until(found, f"delivery of {test_id}", timeout_s=timeout_s)
        assert entry is not None
        return entry

    def stop(self) -> None:
        """The next hop goes down; what it had written stays."""
        if self.child is not None:
            self.child.close()
            self.child = None
            self.held.hold([self.port])

    def start(self) -> None:
        """The next hop comes (back) up, on the same port."""
        if self.child is None:
            self.child = _start_capture(self.command, self.folder, self.port)[0]
            self.held.release()


def _start_capture(command: list[str], folder: Path, port: int) -> tuple[Child, int]:
    (folder / "sink.out").unlink(missing_ok=True)
    child = Child("sink", [*command, "--port", str(port)], folder, env={"PYTHONPATH": str(ROOT)})

    def listening() -> int:
        found = re.search(r"^listening (\d+)$", child.out_path.read_text(), re.MULTILINE)
        return 0 if found is None else int(found.group(1))

    return child, child.wait_for(listening, "the capture server to listen")


@contextlib.contextmanager
def capture_sink(
    *,
    content: bool = True,
    tls: Certificate | None = None,
    implicit: bool = False,
    user: str = "",
    password: str = "",
    delay_ms: float = 0,
    treat: Sequence[str] = (),
) -> Iterator[CaptureSink]:
    """Start a capture server on a port of its own choice."""
    with open_folder("sink") as folder:
        command = [sys.executable, "-m", "tests.peers.capture_server", "--log", str(folder / "sink.jsonl")]
        if content:
            (folder / "content").mkdir()
            command += ["--content", str(folder / "content")]
        if tls is not None:
            command += ["--certificate", str(tls.certificate), "--private-key", str(tls.private_key)]
        if implicit:
            command.append("--implicit")
        if user:
            command += ["--user", user, "--password", password]
        if delay_ms:
            command += ["--delay-ms", str(delay_ms)]
        for one in treat:
            command += ["--treat", one]
        child, port = _start_capture(command, folder, 0)
        sink = CaptureSink(folder, port, child, command)
        try:
            yield sink
        finally:
            sink.stop()
            sink.held.release()


@dataclass
class SmtpSink:
    """A running smtp-sink (Postfix's own): costs next to nothing and counts."""

    port: int
    child: Child
    dump_folder: Path | None

    @property
    def pid(self) -> int:
        return self.child.pid

    def count(self) -> int:
        """Messages taken since it (first) started."""
        with self.child.out_path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 200))
            found = re.findall(rb"mesg=(\d+)", file.read())
        return int(found[-1]) if found else 0

    def messages(self) -> list[bytes]:
        """With dump=True: every message as it was written, each with smtp-sink's X- lines before it."""
        if self.dump_folder is None:
            return []
        return [path.read_bytes() for path in sorted(self.dump_folder.iterdir())]

    def wait_for(self, count: int, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until it has taken so many."""
        self.child.wait_for(lambda: self.count() >= count, f"{count} messages at smtp-sink", timeout_s=timeout_s)

    def stop(self) -> None:
        """The next hop goes down."""
        self.child.kill()

    def start(self) -> None:
        """The next hop comes back up, on the same port; it counts from 0 again."""
        out = self.child.out_path
        out.write_bytes(b"")
        self.child = Child(self.child.name, self.child.command, out.parent)
        self.child.wait_for(lambda: greets(self.port), "smtp-sink to answer")


@contextlib.contextmanager
def smtp_sink(*, dump: bool = False, options: Sequence[str] = ()) -> Iterator[SmtpSink]:
    """Start smtp-sink; dump: one file for each message, for comparing contents.  options: more of smtp-sink's own."""
    with open_folder("smtp-sink") as folder:
        dump_folder = None
        port = free_port()
        command = [find_program("smtp-sink"), "-c", *options]
        if dump:
            dump_folder = folder / "dump"
            dump_folder.mkdir(mode=0o777)
            dump_folder.chmod(0o777)
            command += ["-d", f"{dump_folder}/%M."]
        if os.geteuid() == 0:
            command += ["-u", "nobody"]
        child = Child("smtp-sink", [*command, f"127.0.0.1:{port}", "1000"], folder)
        sink = SmtpSink(port, child, dump_folder)
        try:
            child.wait_for(lambda: greets(port), "smtp-sink to answer")
            yield sink
        finally:
            sink.child.close()
