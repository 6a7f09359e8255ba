# SPDX-License-Identifier: Apache-2.0
"""The store goes away under load and comes back: temporary errors meanwhile, nothing lost, no help needed."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.conftest import GRANT, OUTAGE_S, open_service
from tests.crash.load import MAILS, Load, check_promises, running_load
from tests.peers import postgres
from tests.peers.daemon import SENDER
from tests.peers.processes import assert_no_traceback, open_folder, wait_until
from tests.peers.programs import missing

# 450: a client that never saw our answer sends again while the first call is still undecided.
TEMPORARY = re.compile(r"(450 4\.3\.0|451 4\.3\.[01]|454 4\.7\.0|421 4\.3\.[02]|503 UNAVAILABLE)")


def pause(seconds: float) -> None:
    """An outage has a length of its own; nothing is waited for."""
    threading.Event().wait(seconds)


def check_refusals(load: Load) -> None:
    for refusal in load.promises.temporary:
        assert TEMPORARY.match(refusal), refusal


@pytest.mark.slow
def test_postgresql_stops_and_starts_again() -> None:
    postgres.require_postgres(own=True)
    with (
        postgres.open_cluster() as cluster,
        postgres.open_database(cluster.server) as url,
        open_service(url) as service,
    ):
        with running_load([service.daemon], service.key) as load:
            load.wait_for(30)
            cluster.stop("immediate")
            load.wait_for_refusals(5)
            pause(OUTAGE_S)
            cluster.start()
            load.wait_for(30)
            cluster.stop("fast")
            load.wait_for_refusals(5)
            cluster.start()
            load.wait_for(30)
        check_refusals(load)
        print(check_promises(service.daemon, service.sink, load.promises, grant=GRANT))


@pytest.mark.slow
def test_postgresql_is_away_for_longer_than_an_attempt_may_last() -> None:
    """Attempts whose end could not be recorded are given up by their own process, not kept until it ends.

    Half of the mail is for somebody whose server takes two seconds to answer the dot, so that at any moment, also when
    the store goes, attempts are under way.
    """
    postgres.require_postgres(own=True)
    impatient = {"delivery": {"final_dot_timeout_s": 4, "attempt_timeout_s": 5}}
    mails = (*MAILS, (SENDER, "slow-someone@example.net"))
    with (
        postgres.open_cluster() as cluster,
        postgres.open_database(cluster.server) as url,
        open_service(url, impatient) as service,
    ):
        with running_load([service.daemon], service.key, mails) as load:
            load.wait_for(30)
            cluster.stop("immediate")
            wait_until(lambda: "event=attempt_forsaken" in service.daemon.log(), "attempts to be given up")
            cluster.start()
            load.wait_for(30)
        check_refusals(load)
        print(check_promises(service.daemon, service.sink, load.promises, grant=GRANT))


@contextlib.contextmanager
def small_disk(mebi: int) -> Iterator[Path]:
    """A file system of so many MiB; the test is skipped where one cannot be mounted."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        missing("only root can mount a small file system (the test with RLIMIT_FSIZE runs all the same)")
    with open_folder("small-disk") as folder:
        done = subprocess.run(
            [str(mount), "-t", "tmpfs", "-o", f"size={mebi}m", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            missing(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all space that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 512)
    return ballast


@pytest.mark.slow
def test_the_disk_is_full_and_has_room_again() -> None:
    with small_disk(64) as disk, open_service("sqlite:///hepmaild.db", {"server": {"state_dir": str(disk)}}) as service:
        with running_load([service.daemon], service.key) as load:
            load.wait_for(30)
            ballast = fill(disk)
            load.wait_for_refusals(10)
            pause(min(OUTAGE_S, 5))
            ballast.unlink()
            load.wait_for(30)
        check_refusals(load)
        assert_no_traceback(service.daemon.log())
        print(check_promises(service.daemon, service.sink, load.promises, grant=GRANT))


@pytest.mark.slow
def test_files_cannot_grow_and_can_again() -> None:
    """RLIMIT_FSIZE, set and lifted from outside: EFBIG instead of ENOSPC, and no root needed."""
    with open_service("sqlite:///hepmaild.db") as service:
        _, hard = resource.prlimit(service.daemon.pid, resource.RLIMIT_FSIZE)
        with running_load([service.daemon], service.key) as load:
            load.wait_for(30)
            resource.prlimit(service.daemon.pid, resource.RLIMIT_FSIZE, (4096, hard))
            load.wait_for_refusals(10)
            resource.prlimit(service.daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
            load.wait_for(30)
        check_refusals(load)
        print(check_promises(service.daemon, service.sink, load.promises, grant=GRANT))
