# SPDX-License-Identifier: Apache-2.0
"""Commands as processes: standard streams that are closed, and those that cannot say every character."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ME = "me@example.com"
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def hepmaild(cli: Any) -> Run:
    """Run a command as a process.  closed: these of its descriptors.  The others are pipes, in `encoding`.

    full: the one that takes nothing.
    """

    def run(
        *arguments: str, closed: tuple[int, ...] = (), encoding: str = "utf-8", stdin: bytes = b"", full: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        def close() -> None:
            for descriptor in closed:
                os.close(descriptor)
            if full:
                os.dup2(os.open("/dev/full", os.O_WRONLY), full)

        return subprocess.run(
            [sys.executable, "-m", "hepmaild", "-c", str(cli.config), *arguments],
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            preexec_fn=close,
        )

    cli.ok("account", "add", ME)
    return run


def test_a_key_is_shown_also_where_its_name_cannot_be(hepmaild: Run) -> None:
    made = hepmaild("key", "mint", ME, "--name", "shop \u2192 x", encoding="latin-1")
    assert made.returncode == 0, made
    assert b"hyd-mail-" in made.stdout
    assert b"shop \\u2192 x" in made.stdout
    listed = hepmaild("key", "list", ME, encoding="latin-1")
    assert (listed.returncode, b"shop \\u2192 x" in listed.stdout) == (0, True)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_change_nothing(hepmaild: Run, cli: Any, closed: tuple[int, ...]) -> None:
    done = hepmaild("credits", "verify", closed=closed)
    assert done.returncode == 0, done
    assert (b"hold" in done.stdout) is (1 not in closed)
    granted = hepmaild("credits", "grant", ME, "5", closed=closed)
    assert granted.returncode == 0, granted
    assert cli.json("credits", "show", ME) == {"balance": 5}
    assert cli.json("credits", "verify")["ok"]


def test_a_password_that_does_not_come_is_one_line(hepmaild: Run) -> None:
    for arguments, status in ((("--password-stdin",), 1), ((), 2)):
        done = hepmaild("account", "password", ME, *arguments, closed=(0,))
        assert (done.returncode, done.stderr.count(b"\n"), b"crashed" in done.stderr) == (status, 1, False), done


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8:surrogateescape"])
def test_a_password_that_is_no_text_is_refused(hepmaild: Run, encoding: str) -> None:
    """Nobody could type it again: neither door takes such octets."""
    done = hepmaild(
        "account", "password", ME, "--password-stdin", encoding=encoding, stdin=b"correct h\xf6rse battery\n"
    )
    assert done.returncode == 1, done
    assert done.stderr.count(b"\n") == 1
    assert b"is not text in the encoding of this terminal" in done.stderr
    fine = hepmaild(
        "account", "password", ME, "--password-stdin", encoding="latin-1", stdin=b"correct h\xf6rse battery\n"
    )
    assert fine.returncode == 0, fine


def _in_vain(hepmaild: Run, *arguments: str) -> str:
    """Run it where nothing can be written: the one line on standard error."""
    done = hepmaild(*arguments, full=1)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done
    return done.stderr.decode().removeprefix("hepmaild: ").strip()


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_key_that_could_not_be_shown_says_how_to_come_by_another(
    hepmaild: Run, cli: Any, as_json: tuple[str, ...]
) -> None:
    said = _in_vain(hepmaild, "key", "mint", ME, "--name", "shop", *as_json)
    (key,) = cli.json("key", "list", ME)
    todo = f"hepmaild key rotate {key['id']}"
    assert said == (
        f"the key has a secret that could not be printed: `{todo}` gives it another (No space left on device)"
    )
    again = _in_vain(hepmaild, "key", "rotate", key["id"], *as_json)
    assert again == said
    made = hepmaild(*todo.split()[1:])
    assert b"hyd-mail-" in made.stdout
    assert made.returncode == 0


def test_a_link_that_could_not_be_shown_says_how_to_come_by_another(hepmaild: Run, cli: Any) -> None:
    you, colleague = "you@example.com", "colleague@example.com"
    said = [
        _in_vain(hepmaild, "account", "add", you),
        _in_vain(hepmaild, "user", "add", you, colleague),
        _in_vain(hepmaild, "account", "link", colleague),
    ]
    for sentence, email in zip(said, (you, colleague, colleague), strict=True):
        command = sentence.split("`")[1].split()
        assert command == ["hepmaild", "account", "link", email]
        assert "/link/" in cli.ok(*command[1:])


def test_a_change_that_could_not_be_told_is_said_to_be_done(hepmaild: Run, cli: Any) -> None:
    """Whoever takes the failure for a refusal grants twice."""
    said = _in_vain(hepmaild, "credits", "grant", ME, "5")
    assert said == "done, but it could not be printed: No space left on device"
    assert cli.json("credits", "show", ME) == {"balance": 5}
    assert _in_vain(hepmaild, "credits", "show", ME) == "No space left on device"


def test_a_hint_that_could_not_be_shown_is_no_failure(hepmaild: Run) -> None:
    made = hepmaild("key", "mint", ME, "--name", "shop", full=2)
    assert made.returncode == 0, made
    assert b"hyd-mail-" in made.stdout
