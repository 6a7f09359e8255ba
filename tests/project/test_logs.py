# SPDX-License-Identifier: Apache-2.0
"""The log keeps its form whatever is logged, and tells no secret."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hepmaild import logs
from hepmaild.masking import mask_keys
from tests.peers.processes import no_file_beyond

KEY = "hyd-mail-" + "aB3" * 13 + "Z"


@pytest.fixture
def lines() -> io.StringIO:
    stream = io.StringIO()
    logs.configure(stream=stream)
    return stream


def test_a_line_is_what_the_contract_shows(lines: io.StringIO) -> None:
    structlog.get_logger().info("listening", door="smtp-starttls", address="127.0.0.1:40123")
    line = lines.getvalue()
    assert re.fullmatch(
        r"at=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info "
        r"event=listening door=smtp-starttls address=127\.0\.0\.1:40123\n",
        line,
    )


def test_hostile_text_stays_in_its_pair(lines: io.StringIO) -> None:
    structlog.get_logger().info("seen", helo='x" level=error event="y\r\nevent=ready\x00\x1b[2J\u2028', n=3, none=None)
    text = lines.getvalue()
    assert text.count("\n") == 1
    assert r'helo="x\" level=error event=\"y\r\nevent=ready\x00\x1b[2J\u2028" n=3 none=-' in text


@given(st.text())
def test_any_text_is_one_readable_value(text: str) -> None:
    shown = logs.format_value(text)
    assert shown.isprintable()
    assert len(shlex.split(shown)) == 1


def test_keys_and_passwords_are_masked_everywhere(lines: io.StringIO) -> None:
    log = structlog.get_logger()
    log.info("a", text=f"got {KEY}, and {KEY}", key=KEY, password="hunter2", url="postgresql://me:hunter2@h/x")
    log.info("b", line="AUTH PLAIN AGh1bnRlcjI=", header="Authorization: Bearer abcdefgh.x")
    try:
        raise RuntimeError(KEY)
    except RuntimeError:
        log.exception("c")
    text = lines.getvalue()
    assert KEY not in text
    assert "hunter2" not in text
    assert "AGh1" not in text
    assert "abcdefgh" not in text
    assert text.count("hyd-mail-…" + KEY[-5:]) >= 4
    assert text.count("\n") == 3
    assert 'traceback="Traceback (most recent call last):\\n' in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("at postgresql://me:hunt@er2@h/x", "at postgresql://me:…@h/x"),
        (
            "postgresql://me@h/x?sslmode=require&password=hunter2&port=1",
            "postgresql://me@h/x?sslmode=require&password=…&port=1",
        ),
        ('write "postgresql://USER:PASSWORD@HOST/NAME"', 'write "postgresql://USER:PASSWORD@HOST/NAME"'),
        ("https://h:443/a@b, smtp://me@h", "https://h:443/a@b, smtp://me@h"),
    ],
)
def test_passwords_in_addresses_are_masked(text: str, masked: str) -> None:
    assert logs.redact(text) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"EHLO {KEY}", f"EHLO hyd-mail-…{KEY[-5:]}"),
        (f"<{KEY}@{KEY.lower()}>", f"<hyd-mail-…{KEY[-5:]}@hyd-mail-…{KEY[-5:].lower()}>"),
        (f"x{KEY}y, {KEY}…", "xhyd-mail-…aB3Zy, hyd-mail-…"),  # cut off: those are not its last five
        (f"{KEY[:12]}…", "hyd-mail-…"),
        ("hyd-mail-…12345, hyd-mail- and 40 characters", "hyd-mail-…12345, hyd-mail- and 40 characters"),
    ],
)
def test_keys_are_masked_wherever_they_stand(text: str, masked: str) -> None:
    assert mask_keys(text) == masked
    assert mask_keys(masked) == masked


def test_libraries_are_heard(lines: io.StringIO) -> None:
    logging.getLogger("some.library").warning("careful with %s", KEY)
    assert 'level=warning event=library logger=some.library text="careful with hyd-mail-…' in lines.getvalue()


def test_a_reader_that_went_away_ends_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    logs.configure(stream=stream)
    structlog.get_logger().info("anything")


def test_the_level_decides(lines: io.StringIO) -> None:
    logs.configure(level="warning", stream=lines)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert "quiet" not in lines.getvalue()
    assert "loud" in lines.getvalue()


def test_a_reader_that_stopped_stops_nobody() -> None:
    """As a journal whose disk hangs.  Afterwards the log says how much it lacks, and every line is whole."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream:
        logs.configure(stream=stream)
        log = structlog.get_logger()
        for number in range(3000):
            log.info("said", number=number, text="x" * 300)
        log.info("long", text="y" * 1900, other="y" * 1900, third="y" * 1900)
        os.set_blocking(reading, False)
        held = reader.read()
        log.info("after")
        log.info("last")
        lines = (held + reader.read()).decode().splitlines()
    numbers = [int(found[1]) for line in lines if (found := re.search(r"event=said number=(\d+) text=x{300}$", line))]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < 3000
    *torn, lost, after, last = lines[len(numbers) :]
    assert len(torn) <= 1
    assert re.search(rf"^at=\S+ level=warning event=log_lines_lost lines={3001 - len(numbers)}$", lost)
    assert after.endswith("event=after")
    assert last.endswith("event=last")


def test_a_log_on_a_full_disk_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        logs.configure(stream=stream)
        log = structlog.get_logger()
        log.info("before")
        with no_file_beyond(path.stat().st_size + 20):
            for _ in range(5):
                log.info("in vain")
        log.info("after")
    before, torn, lost, after = path.read_text().splitlines()
    assert before.endswith("event=before")
    assert torn.startswith("at=")
    assert lost.endswith("event=log_lines_lost lines=5")
    assert after.endswith("event=after")
