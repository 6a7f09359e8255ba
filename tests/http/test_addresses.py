# SPDX-License-Identifier: Apache-2.0
"""Where the HTTPS door listens: every address that the settings take is one that it can listen on, and none at all."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from trio.testing import wait_all_tasks_blocked

from hepmaild.config import HttpSettings, parse_address
from tests.http.door import open_door


async def test_a_service_may_do_without_the_door(tmp_path: Path) -> None:
    async with open_door(tmp_path, settings=HttpSettings(listen=())) as running:
        assert (running.bound.https, running.bound.plain) == ([], [])
        await wait_all_tasks_blocked()
        assert running.door.connections == 0


@pytest.mark.parametrize("address", ["[::]:0", "*:0", ":0"])
@pytest.mark.parametrize("has_ipv6", [True, False])
async def test_all_addresses_means_ipv4_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, has_ipv6: bool
) -> None:
    if not has_ipv6:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    async with open_door(tmp_path, settings=HttpSettings(listen=(address,))) as running:
        host, _ = parse_address(running.bound.https[0])
        assert host == ("::" if has_ipv6 and socket.has_dualstack_ipv6() else "0.0.0.0")
        assert (await running.post()).status_code == 200


async def test_a_connection_that_ended_while_it_waited_does_not_end_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept(2) says of it what became of it; a firewall or a security module may forbid it, too."""
    ends = [errno.ECONNABORTED, errno.EPERM, errno.EACCES, errno.EPROTO, errno.EHOSTUNREACH]
    accept = socket.socket.accept

    def ended(listening: socket.socket) -> tuple[socket.socket, Any]:
        if ends:
            number = ends.pop()
            raise OSError(number, os.strerror(number))
        return accept(listening)

    async with open_door(tmp_path) as running:
        monkeypatch.setattr(socket.socket, "accept", ended)
        assert (await running.post()).status_code == 200
        assert not ends
