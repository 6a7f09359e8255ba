# SPDX-License-Identifier: Apache-2.0
"""A `serve` by root, as to try something out, leaves nothing behind that the service's own user cannot use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hepmaild.config import TlsSettings
from hepmaild.delivery.job import Job, JobRecipient
from hepmaild.delivery.sandbox import Sandbox
from hepmaild.mail.content import Content
from hepmaild.storage.messages import make_spool
from hepmaild.tls import ServerTls

SERVICE = 65_534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Of the service; pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, SERVICE, SERVICE)
        yield Path(name)


def owners(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_uid for path in folder.iterdir()}


async def test_what_a_daemon_of_root_makes_belongs_to_the_owner_of_the_folder(state_dir: Path) -> None:
    make_spool(state_dir)
    ServerTls(TlsSettings(), state_dir=state_dir, hostname="smtp.example.com")
    to = (JobRecipient(0, "b@example.net", 0),)
    job = Job("0" * 16, "me", "box", "a@example.com", to, 1, 3, False, 0, 1)
    await Sandbox(state_dir).keep("box", job, Content(b"x\r\n"))
    found = owners(state_dir)
    assert found.keys() == {"spool", "self-made-certificate.pem", "self-made-key.pem", "box"}
    assert set(found.values()) == {SERVICE}


def test_a_spool_of_somebody_else_is_refused(state_dir: Path) -> None:
    spool = state_dir / "spool"
    spool.mkdir(mode=0o700)
    os.seteuid(SERVICE)
    try:
        with pytest.raises(PermissionError, match="cannot write here: make it the owner") as caught:
            make_spool(state_dir)
    finally:
        os.seteuid(0)
    assert caught.value.filename == str(spool)
    make_spool(state_dir)
    assert owners(state_dir) == {"spool": SERVICE}
