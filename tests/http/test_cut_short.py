# SPDX-License-Identifier: Apache-2.0
"""A send request that is cancelled at any step: it keeps no room in memory, no thread and no file."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from quart import Quart

from hepmaild.http.call import Call
from hepmaild.http.limits import parse_ip
from hepmaild.http.quick import Fields
from hepmaild.http.send import GATE_OCTETS, SEND_ENDPOINT, THREAD_OCTETS, SendDesk
from hepmaild.materials import Materials
from hepmaild.storage.unit import UnitRunner
from tests.http.door import GOOD, IDENTITY, KEY, ScriptedIntake, make_owner
from tests.peers.cancelling import Cut, at_each_cut
from tests.storage.books import Clock
from tests.storage.conftest import database_url, make_opener

__all__ = ["database_url"]

LARGE = 2 * THREAD_OCTETS


class Slow:
    """A request whose body comes in pieces, without a length."""

    def __init__(self, payload: dict[str, Any]) -> None:
        self._octets = json.dumps(payload).encode()
        self.content_length = None
        self.mimetype = "application/json"
        self.path, self.http_version = "/api/v1/email/send", "1.1"
        self.headers = Fields({"authorization": f"Bearer {KEY}", "idempotency-key": "w"})

    @property
    def body(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._octets), 100_000):
            await trio.lowlevel.checkpoint()
            yield self._octets[at : at + 100_000]


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("names_upload", [False, True])
async def test_a_send_that_is_cut_short_keeps_nothing(
    database_url: str, tmp_path: Path, is_large: bool, names_upload: bool
) -> None:
    clock = Clock()
    async with make_opener(database_url, tmp_path)(UnitRunner(clock.now_us)) as store, Quart("x").app_context():
        await store.write(make_owner, clock.us)
        materials = Materials(store, clock.now_us, trio.CapacityLimiter(1), lambda: 1 << 30)
        assert materials.uploads is not None
        payload: dict[str, Any] = dict(GOOD)
        if is_large:
            content = base64.b64encode(bytes(LARGE * 2)).decode()
            payload["attachments"] = [{"filename": "a.bin", "content": content}]
        if names_upload:
            async with materials.uploads.receive(IDENTITY.account_id, None) as incoming:
                await incoming.write(bytes(LARGE))
                found = await incoming.finish("b.bin", "application/octet-stream")
            payload.setdefault("attachments", []).append({"uploadId": found.upload_id})
        intake = ScriptedIntake()
        desk = SendDesk(intake, 40 << 20, 100, tmp_path, materials)
        address = parse_ip("192.0.2.1")
        assert address is not None

        async def send() -> None:
            call = Call("r", address, True, True, False, SimpleNamespace(tls=lambda: ("", "")))
            await desk.send(Slow(payload), call, SEND_ENDPOINT)

        async def check(_cut: Cut) -> None:
            assert desk.gate.held == desk.beside.held == 0
            assert desk.threads.borrowed_tokens == desk.files.borrowed_tokens == 0

        await at_each_cut(send, check)
        assert intake.submissions
        async with desk.gate.admit(GATE_OCTETS):
            pass
