# SPDX-License-Identifier: Apache-2.0
"""The units are what systemd understands without a word, and leave the service little to break."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hepmaild.memory import is_overwritten
from tests.peers.programs import require

UNITS = Path(__file__).parents[2] / "systemd"
# 0 is the safest of systemd's scale of 0 to 100: "exposure level" times ten.
MOST_EXPOSURE = 20


def copy_units(folder: Path) -> None:
    """The units, with a program that exists on this machine."""
    for unit in UNITS.glob("*.service"):
        text = unit.read_text().replace("/opt/hepmaild/bin/hepmaild", str(Path(sys.executable).resolve()))
        (folder / unit.name).write_text(text)


@pytest.mark.parametrize("name", ["hepmaild.service", "hepmaild@.service"])
def test_the_unit_is_understood(tmp_path: Path, name: str) -> None:
    require("systemd-analyze")
    copy_units(tmp_path)
    chosen = tmp_path / name
    if "@" in name:
        chosen = chosen.rename(tmp_path / "hepmaild@one.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(chosen)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_is_confined(tmp_path: Path) -> None:
    require("systemd-analyze")
    copy_units(tmp_path)
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSURE}"]
    done = subprocess.run(
        [*command, str(tmp_path / "hepmaild.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_both_units_are_confined_alike() -> None:
    def lines(name: str) -> set[str]:
        text = (UNITS / name).read_text()
        return {line for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}

    different = {line.split("=")[0] for line in lines("hepmaild.service") ^ lines("hepmaild@.service")}
    assert different == {"Description", "Documentation", "ExecStart", "StateDirectory"}


@pytest.mark.parametrize("name", ["hepmaild.service", "hepmaild@.service"])
def test_the_service_is_started_again_however_often_it_fails(name: str) -> None:
    """It ends at once when PostgreSQL cannot be reached at its start, and systemd's default is to give up on what
    failed five times in ten seconds."""
    text = (UNITS / name).read_text()
    assert "\nRestart=on-failure\n" in text
    unit = text[text.index("[Unit]") : text.index("[Service]")]  # systemd ignores it elsewhere
    assert "\nStartLimitIntervalSec=0\n" in unit


@pytest.mark.parametrize("name", ["hepmaild.service", "hepmaild@.service"])
def test_its_documentation_is_there(name: str) -> None:
    """The settings are: a wheel has no other documents."""
    text = (UNITS / name).read_text()
    (named,) = re.findall(r"^Documentation=file://(\S+)$", text, re.MULTILINE)
    (settings,) = re.findall(r"^ExecStart=\S+ -c (\S+) serve$", text, re.MULTILINE)
    assert named == settings


@pytest.mark.parametrize("name", ["hepmaild.service", "hepmaild@.service"])
def test_the_service_overwrites_what_is_freed(name: str) -> None:
    """That it does is shown by `tests/e2e/test_secrets.py`; here, that neither variable alone would do."""
    shipped = dict(re.findall(r"^Environment=(\w+)=(\S+)$", (UNITS / name).read_text(), re.MULTILINE))
    assert is_overwritten(shipped)
    assert not is_overwritten({})
    for variable in ("PYTHONMALLOC", "GLIBC_TUNABLES"):
        assert not is_overwritten({**shipped, variable: "default"})
    for tunable in ("glibc.malloc.perturb=165", "glibc.malloc.tcache_count=0"):
        without = shipped["GLIBC_TUNABLES"].replace(tunable, "glibc.malloc.check=0")
        assert not is_overwritten({**shipped, "GLIBC_TUNABLES": without})
