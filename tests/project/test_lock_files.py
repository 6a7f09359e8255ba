# SPDX-License-Identifier: Apache-2.0
"""What is installed is pinned, hashed, allowed by pyproject.toml, and fetched from wherever the machine says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[2]
PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    return {canonical(name): version for name, version in found}


def wanted(*extras: str) -> set[str]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonical(NAME.match(line)[0]) for line in lines}  # type: ignore[index]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ("postgresql", "build")),
        ("requirements-test.lock", ("postgresql", "build", "test")),
    ],
)
def test_everything_is_pinned_with_hashes(lock: str, extras: tuple[str, ...]) -> None:
    text = (ROOT / lock).read_text()
    assert wanted(*extras) <= pins(lock).keys(), "run `make lock`"
    requirements = [line for line in text.splitlines() if re.match(r"[a-z0-9]", line)]
    assert all(line.endswith(" \\") for line in requirements), "a requirement without hashes"
    assert not re.search(r"https?:|--(extra-)?index-url|--find-links|--trusted-host|^-", text, re.MULTILINE)


def test_both_agree() -> None:
    both = pins("requirements.lock")
    tests = pins("requirements-test.lock")
    assert {name: tests.get(name) for name in both} == both


def test_the_npm_lock_names_no_host() -> None:
    lock = json.loads((ROOT / "tests" / "clients" / "package-lock.json").read_text())
    for name, package in lock["packages"].items():
        assert "resolved" not in package
        assert not name or package["integrity"].startswith("sha512-")
