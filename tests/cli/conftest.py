# SPDX-License-Identifier: Apache-2.0
"""The command line in this process, on a database of its own."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hepmaild.cli.app import run

SETTINGS = """
[server]
hostname = "smtp.example.com"
state_dir = "state"
[[route]]
name = "box"
kind = "sandbox"
[[sender]]
address = "noreply@example.com"
route = "box"
default = true
[plans.tiny]
api_keys = 1
"""


@dataclass
class Done:
    """What a command left."""

    status: int
    out: str
    err: str


class Cli:
    """Runs commands in this process."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = config
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str, stdin: str = "", config: bool = True) -> Done:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self._capsys.readouterr()
        status = run([*(["-c", str(self.config)] if config else []), *arguments])
        captured = self._capsys.readouterr()
        return Done(status, captured.out, captured.err)

    def ok(self, *arguments: str, stdin: str = "") -> str:
        done = self(*arguments, stdin=stdin)
        assert done.status == 0, done
        return done.out

    def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self.ok(*arguments, "--json", stdin=stdin))

    def refused(self, *arguments: str, stdin: str = "", status: int = 1) -> str:
        """The one line on standard error."""
        done = self(*arguments, stdin=stdin)
        assert done.status == status, done
        assert done.err.count("\n") == 1, done
        return done.err.removeprefix("hepmaild: ").strip()


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with settings that are good."""
    config = tmp_path / "hepmaild.toml"
    config.write_text(SETTINGS)
    return Cli(config, capsys, monkeypatch)
