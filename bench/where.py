# SPDX-License-Identifier: Apache-2.0
"""Where the daemon's time goes: processor time by thread (undisturbed), then by function (cProfile, main thread)."""

from __future__ import annotations

import contextlib
import io
import os
import pstats
import signal
import tempfile
import time
from pathlib import Path

from bench.generator import Load, built_generator
from bench.relay import measure
from bench.report import Table
from bench.servers import open_hepmaild
from tests.peers.certificates import make_certificate
from tests.peers.processes import wait_until

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def _thread_times_ms(pid: int) -> dict[str, float]:
    """Processor time of each thread, by its number and name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            text = (task / "stat").read_text()
            fields = text[text.rindex(")") + 2 :].split()
            name = f"{task.name} {text[text.index('(') + 1 : text.rindex(')')]}"
            found[name] = (int(fields[11]) + int(fields[12])) * 1000 / TICKS_PER_SECOND
    return found


def run(connections: int, messages: int, reply: str, functions: int) -> None:
    """Print both tables."""
    load = Load(connections=connections, messages=messages)
    with contextlib.ExitStack() as stack:
        binary = stack.enter_context(built_generator())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hepmaild-bench-")))
        folder.chmod(0o755)
        certificate = make_certificate(folder)
        with open_hepmaild(certificate, reply=reply) as server:
            measure(binary, server, Load(connections=connections, messages=300))
            before = _thread_times_ms(server.pid)
            run = measure(binary, server, load)
            after = _thread_times_ms(server.pid)
        table = Table(f"{reply}: {run.sink_rate:.0f}/s to the sink, {run.cpu_ms:.2f} CPU-ms", ("thread", "ms/msg"))
        for name, used in sorted(after.items(), key=lambda item: before.get(item[0], 0) - item[1]):
            if used - before.get(name, 0) > 0:
                table.add(name, (used - before.get(name, 0)) / messages)
        table.show()
        output = folder / "daemon.prof"
        options = ("-m", "cProfile", "-o", str(output))
        with open_hepmaild(certificate, reply=reply, python_options=options) as server:
            measure(binary, server, load)
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: output.exists() and output.stat().st_size > 0, "the profile", timeout_s=60)
            time.sleep(0.5)  # it is being written
        text = io.StringIO()
        stats = pstats.Stats(str(output), stream=text)
        stats.strip_dirs().sort_stats("tottime").print_stats(functions)
        print(text.getvalue())
