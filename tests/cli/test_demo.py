# SPDX-License-Identifier: Apache-2.0
"""The demo as a person meets it: from nothing to mail in the sandbox by the lines it prints, and to a clean end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hepmaild.cli.demo import make_settings, settings_file
from hepmaild.config import format_address, parse_address
from hepmaild.config_load import load
from tests.peers.processes import assert_no_traceback
from tests.peers.programs import require

ANY = ("--smtp", "127.0.0.1:0", "--smtps", "127.0.0.1:0", "--https", "127.0.0.1:0")
DEADLINE_S = 120


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running demo and what it printed when it was ready."""
    command = [sys.executable, "-m", "hepmaild", "demo", "--dir", str(folder), *(options or ANY)]
    log = folder.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith("Ctrl-C"):
                break
        assert "is ready" in printed, log.read_text()
        yield process, printed
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line_of(printed: str, word: str) -> str:
    (line,) = re.findall(rf"^  ((?:\S*/)?{word} .*)$", printed, re.MULTILINE)
    return str(line)


def run(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_the_printed_lines_work_and_the_key_stays(tmp_path: Path) -> None:
    require("curl", "swaks")
    folder = tmp_path / "var"
    with demo(folder) as (process, printed):
        sent = run(line_of(printed, "curl"))
        assert sent.returncode == 0, sent.stderr
        first = json.loads(sent.stdout)["data"]
        assert first["status"] == "sent"
        said = run(line_of(printed, "swaks"))
        assert said.returncode == 0, said.stdout + said.stderr
        second = re.findall(r"250 2\.0\.0 sent as ([0-9a-f]{16})", said.stdout)[0]
        assert {path.stem for path in (folder / "sandbox").glob("*.eml")} == {first["messageId"], second}
        tail = run(line_of(printed, ".* -m hepmaild -c") + " --json")
        assert tail.returncode == 0, tail.stderr
        assert [json.loads(line)["message_id"] for line in tail.stdout.splitlines()] == [first["messageId"], second]
        shown = run(line_of(printed, ".* -m hepmaild -c").replace("log tail", f"log show {second}"))
        assert f"\n                = you@example.net: delivered 250 2.0.0 kept as {second}.eml\n" in shown.stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    log = folder.with_suffix(".log").read_text()
    key = re.findall(r"hyd-mail-\w{40}", printed)[0]
    assert key not in log
    assert "level=error" not in log
    assert (folder / "demo.key").stat().st_mode & 0o777 == 0o600
    with demo(folder) as (process, again):
        assert key in again
        (folder / "demo.key").unlink()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    with demo(folder) as (process, anew):
        other = re.findall(r"hyd-mail-\w{40}", anew)[0]
        assert other != key
        assert json.loads(run(line_of(anew, "curl")).stdout)["ok"]


def test_the_printed_link_signs_in_once_and_is_fresh_at_every_start(tmp_path: Path) -> None:
    require("curl")
    folder = tmp_path / "var"
    curl = f"curl -sS -o /dev/null --cacert {folder}/self-made-certificate.pem -w '%{{http_code}}'"
    links = []
    for password in ("correct horse battery", "another horse battery"):
        with demo(folder) as (process, printed):
            ((link, base, token),) = re.findall(r"((https://\S+)/link/([\w-]{43}))$", printed, re.MULTILINE)
            assert run(f"{curl} {link}").stdout == "200"
            answer = run(f"{curl} {base}/link --data-urlencode token={token} --data-urlencode 'password={password}'")
            assert answer.stdout == "303"
            assert run(f"{curl} {link}").stdout == "410"
            grant = f"{base}/oauth/token?grant_type=password"
            assert run(f"{curl} -X POST -u 'demo@example.com:{password}' '{grant}'").stdout == "200"
            if links:
                assert run(f"{curl} -X POST -u 'demo@example.com:correct horse battery' '{grant}'").stdout == "403"
            links.append(token)
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0
        log = folder.with_suffix(".log").read_text()
        assert token not in log
        assert password not in log
    assert len(set(links)) == 2


def test_addresses_are_written_as_urls_want_them(tmp_path: Path) -> None:
    options = ("--smtp", "[::1]:0", "--smtps", "[::1]:0", "--https", "[::]:0")
    with demo(tmp_path / "var", *options) as (_process, printed):
        assert re.search(r"https://\[::1\]:\d+/api/v1/email/send", printed)
        assert re.search(r"swaks --server ::1 --port \d+ ", printed)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with demo(tmp_path / "one") as (_process, printed):
        taken = re.findall(r"SMTP +(\S+) \(STARTTLS\)", printed)[0]
        command = [sys.executable, "-m", "hepmaild", "demo", "--dir", str(tmp_path / "two"), *ANY, "--smtp", taken]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == 1
        assert f"hepmaild: cannot listen on {taken}: Address already in use\n" in done.stderr
        assert_no_traceback(done.stderr)
        written = (tmp_path / "one" / "hepmaild.toml").read_text()
        command = [sys.executable, "-m", "hepmaild", "demo", "--dir", str(tmp_path / "one"), *ANY, "--smtp", taken]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == 1
        assert re.search(r"^hepmaild: another hepmaild \(process \d+\) serves ", done.stderr, re.MULTILINE)
        assert (tmp_path / "one" / "hepmaild.toml").read_text() == written  # of the demo that runs


def test_the_written_settings_are_the_demos(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "ümläut 'x\" \\", smtp="127.0.0.1:1", smtps="[::1]:2", https="127.0.0.1:3")
    file = tmp_path / "demo.toml"
    file.write_text(settings_file(settings))
    assert load(file, {}) == settings


@pytest.mark.parametrize("option", ["--smtp", "--smtps", "--https"])
def test_a_wrong_address_is_wrong_usage(cli: Any, option: str) -> None:
    assert 'must be "host:port"' in cli.refused("demo", option, "nowhere", status=2)


def test_format_of_addresses() -> None:
    assert format_address(*parse_address("*:1")) == "[::]:1"
