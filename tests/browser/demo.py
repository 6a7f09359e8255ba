# SPDX-License-Identifier: Apache-2.0
"""`hepmaild demo`, as somebody starts it who has just cloned the repository."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.peers.daemon import ROOT
from tests.peers.processes import Child, assert_no_traceback, free_port, open_folder


@dataclass
class Demo:
    """It runs.  link: what it printed for the first sign-in; url: where the dashboard is afterwards."""

    folder: Path
    link: str

    @property
    def url(self) -> str:
        return self.link[: self.link.index("/link/")]


@contextlib.contextmanager
def open_demo() -> Iterator[Demo]:
    """On ports that were free a moment ago."""
    with open_folder("demo") as folder:
        doors = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        options = ["--dir", folder / "var", "--smtp", doors[0], "--smtps", doors[1], "--https", doors[2]]
        command = [sys.executable, "-m", "hepmaild", "demo", *options]
        child = Child("demo", command, folder, env={"PYTHONPATH": str(ROOT)})
        try:
            said = lambda: re.search(r"dashboard +(https://\S+/link/\S+)", child.out_path.read_text())  # noqa: E731
            found = child.wait_for(said, "the demo's sign-in link")
            assert found is not None
            yield Demo(folder, found[1])
            assert child.terminate() == 0
            assert_no_traceback(child.err_path.read_text())
        finally:
            child.close()


def paste(line: str) -> str:
    """What a line from a page prints when somebody pastes it into a shell."""
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr
