# SPDX-License-Identifier: Apache-2.0
"""The HTTP door beside an empty route on the same server: what our part of a call costs."""

from __future__ import annotations

import contextlib
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.cpu import tree_cpu_ms
from bench.generator import BenchFailed, Load, built_generator, open_generator
from bench.report import Table, save
from bench.servers import open_hepmaild
from tests.peers.certificates import Certificate, make_certificate
from tests.peers.processes import Child, open_folder, port_answers

SEND = "/api/v1/email/send"


@contextlib.contextmanager
def open_empty(certificate: Certificate) -> Iterator[tuple[int, int]]:
    """The empty route: its pid and port."""
    with open_folder("empty") as folder:
        command = [sys.executable, "-m", "bench.empty_route", certificate.certificate, certificate.private_key]
        child = Child("empty", command, folder)

        def port() -> int:
            found = re.search(r"^listening (\d+)$", child.out_path.read_text(), re.MULTILINE)
            return int(found[1]) if found and port_answers(int(found[1])) else 0

        try:
            yield child.pid, child.wait_for(port, "the empty route to listen")
        finally:
            child.kill()


def _measure(binary: Path, pid: int, port: int, path: str, key: str, load: Load, prefix: str) -> dict[str, float]:
    with open_generator(
        binary, port, load, user="", password=key, prefix=prefix, implicit=True, http_path=path
    ) as generator:
        before = tree_cpu_ms(pid)
        generator.go()
        result: dict[str, Any] = generator.result()
        if result["accepted"] != load.messages:
            raise BenchFailed(f"{path}: not every call succeeded: {result}")
        return {
            "rate": load.messages / result["elapsed_s"],
            "cpu_ms": (tree_cpu_ms(pid) - before) / load.messages,
            "p50_ms": result["dot_p50_ms"],
            "p99_ms": result["dot_p99_ms"],
            "generator_cpu_ms": result["cpu_ms"] / load.messages,
        }


def run(connections: int, messages: int, rounds: int) -> dict[str, Any]:
    """Interleaved runs of both; prints a table and the ratio of the rates."""
    load = Load(connections=connections, messages=messages)
    warm_up = Load(connections=connections, messages=300)
    runs: dict[str, list[dict[str, float]]] = {"empty route": [], "HTTP door": []}
    with contextlib.ExitStack() as stack:
        binary = stack.enter_context(built_generator())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hepmaild-bench-")))
        folder.chmod(0o755)
        certificate = make_certificate(folder)
        empty_pid, empty_port = stack.enter_context(open_empty(certificate))
        server = stack.enter_context(open_hepmaild(certificate))
        targets = {
            "empty route": (empty_pid, empty_port, "/empty", "none"),
            "HTTP door": (server.pid, server.https_port, SEND, server.password),
        }
        for number in range(-1, rounds):
            for name, (pid, port, path, key) in targets.items():
                found = _measure(binary, pid, port, path, key, warm_up if number < 0 else load, f"http{number}")
                if number >= 0:
                    runs[name].append(found)
    fields = ("rate", "cpu_ms", "p50_ms", "p99_ms", "generator_cpu_ms")
    table = Table(
        f"POST over {connections} kept TLS connections",
        ("", "calls/s", "CPU-ms/call", "p50 ms", "p99 ms", "(generator CPU-ms)"),
    )
    for name, found_runs in runs.items():
        table.add(name, *(statistics.median(entry[field] for entry in found_runs) for field in fields))
    pairs = list(zip(runs["HTTP door"], runs["empty route"], strict=True))
    table.add(
        "HTTP door ÷ empty route",
        *(statistics.median(ours[field] / theirs[field] for ours, theirs in pairs) for field in fields[:4]),
        "",
    )
    table.show()
    save("http", runs)
    return runs
