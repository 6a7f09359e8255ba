# SPDX-License-Identifier: Apache-2.0
"""Uploads at the door: multipart as it comes from good clients and from bad ones, and what is left of each."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from sqlalchemy import Connection, func, select

from hepmaild.config import DatabaseSettings
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.http.limits import Timeouts
from hepmaild.mail.submission import Draft, Receipt, Submission
from hepmaild.materials import Materials
from hepmaild.storage import uploads
from hepmaild.storage.schema_templates import upload, upload_piece
from hepmaild.storage.store import Store, open_store
from hepmaild.storage.unit import UnitRunner
from tests.http.door import GOOD, IDENTITY, KEY, PATIENCE_S, RECEIPT, Running, make_owner, open_door

MB = 1 << 20
PATH = "/api/v1/email/uploads"
NOW_US = 1_800_000_000_000_000
QUOTA = 40 * MB
KEYED = {"Authorization": f"Bearer {KEY}"}


@dataclass
class Desk:
    """A door with a store behind it."""

    running: Running
    store: Store

    async def post(self, **options: Any) -> httpx.Response:
        headers = {**KEYED, **options.pop("headers", {})}
        async with self.running.client() as client:
            return await client.post(PATH, headers=headers, **options)

    async def raw(self, body: bytes, boundary: str = "b") -> httpx.Response:
        return await self.post(content=body, headers={"Content-Type": f'multipart/form-data; boundary="{boundary}"'})

    async def left(self) -> tuple[int, int]:
        """Rows of files and of pieces."""
        found: tuple[int, int] = await self.store.read(_counts)
        return found


def _counts(conn: Connection) -> tuple[int, int]:
    files, pieces = (
        conn.execute(select(func.count()).select_from(table)).scalar_one() for table in (upload, upload_piece)
    )
    return files, pieces


@asynccontextmanager
async def open_desk(tmp_path: Path, timeouts: Timeouts) -> AsyncIterator[Desk]:
    settings = DatabaseSettings(url="sqlite:///test.db")
    async with open_store(settings, tmp_path, UnitRunner(lambda: NOW_US), exclusive=True) as store:
        await store.upgrade()
        await store.write(make_owner, NOW_US)
        materials = Materials(store, lambda: NOW_US, trio.CapacityLimiter(1), lambda: QUOTA)
        async with open_door(tmp_path, materials=materials, timeouts=timeouts) as running:
            yield Desk(running, store)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path, Timeouts(body_idle_s=1)) as opened:
        yield opened


def part(name: str = "file", filename: str | None = "a.txt", content: bytes = b"hello", extra: str = "") -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n{extra}\r\n'
    return head.encode() + content + b"\r\n"


END = b"--b--\r\n"


async def test_a_file_is_kept_and_used(desk: Desk) -> None:
    content = os.urandom(3 * MB + 17)
    answer = await desk.post(files={"file": ("Plan ü.pdf", content, "application/pdf")})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert answer.json() == {
        "ok": True,
        "data": {"uploadId": data["uploadId"], "filename": "Plan ü.pdf", "size": len(content)},
    }
    assert answer.headers["x-ratelimit-limit"] == "120"
    assert desk.running.intake.calls == 0, "no call of the rate limit"
    assert await desk.left() == (1, 4)
    payload = {"to": "joe@example.com", "text": "x", "attachments": [{"uploadId": data["uploadId"]}]}
    for _ in range(2):
        sent = await desk.running.post(payload)
        assert sent.status_code == 200, sent.text
        source = desk.running.intake.submissions[-1].source
        assert isinstance(source, Draft)
        (file,) = source.attachments
        assert (file.filename, file.content_type, file.content) == ("Plan ü.pdf", "application/pdf", content)


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"--", b"\r\n--bogus\r\n", b"\r\n-" * 50_000, b"x" * MB, b"\r" * 200_000]
)
async def test_octets_come_as_they_are(desk: Desk, content: bytes) -> None:
    answer = await desk.raw(
        b"a preamble\r\n" + part("note", None, b"x") + part(content=content) + part("n", None) + END + b"an epilogue"
    )
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["size"] == len(content)
    assert b"".join(await desk.store.read(uploads.load, data["uploadId"])) == content


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "INVALID_UPLOAD"),
        (END, 400, "INVALID_UPLOAD"),
        (b"garbage", 400, "INVALID_UPLOAD"),
        (part(), 400, "INVALID_UPLOAD"),
        (part()[:-2], 400, "INVALID_UPLOAD"),
        (part(content=b"x" * MB)[: MB // 2], 400, "INVALID_UPLOAD"),
        (part("other") + END, 400, "INVALID_UPLOAD"),
        (part(filename=None) + END, 400, "INVALID_UPLOAD"),
        (part() + part() + END, 400, "INVALID_UPLOAD"),
        (part(filename="") + END, 400, "INVALID_UPLOAD"),
        (part(filename="..") + END, 400, "INVALID_UPLOAD"),
        (part(filename="a/") + END, 400, "INVALID_UPLOAD"),
        (part(filename="x" * 256) + END, 400, "INVALID_UPLOAD"),
        (part(filename="a\x0bb") + END, 400, "INVALID_HEADER_VALUE"),
        (b"--b\r\n\r\nno header\r\n" + END, 400, "INVALID_UPLOAD"),
        (b"--b\r\nContent-Disposition: \xff\xfe\r\n\r\nx\r\n" + END, 400, "INVALID_UPLOAD"),
        (b"--b\r\n" + b"X-A: b\r\n" * 30_000, 400, "INVALID_UPLOAD"),
        (b"x" * 400_000 + b"\r\n" + part() + END, 400, "INVALID_UPLOAD"),
        (part("n", None) * 20 + part() + END, 400, "INVALID_UPLOAD"),
        (part(content=b"x" * (15 * MB + 1)) + END, 413, "REQUEST_TOO_LARGE"),
    ],
    ids=range(20),
)  # fmt: skip
async def test_what_cannot_be_used_leaves_nothing(desk: Desk, body: bytes, status: int, code: str) -> None:
    answer = await desk.raw(body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["ok"] is False
    assert await desk.left() == (0, 0)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\Users\\\\Joe\\\\plan.pdf", "plan.pdf"),
        ("a b.txt", "a b.txt"),
        ("<script>.html", "<script>.html"),
        (".profile", ".profile"),
    ],
)
async def test_the_name_of_a_file_has_no_folders(desk: Desk, given: str, kept: str) -> None:
    answer = await desk.raw(part(filename=given) + END)
    assert answer.json()["data"]["filename"] == kept


async def test_a_type_that_is_none_becomes_the_general_one(desk: Desk) -> None:
    answer = await desk.raw(part(extra="Content-Type: nonsense\r\n") + END)
    found = await desk.store.read(uploads.find, IDENTITY.account_id, [answer.json()["data"]["uploadId"]], NOW_US)
    assert [each.content_type for each in found.values()] == ["application/octet-stream"]


async def test_the_media_type_and_the_boundary_must_be_there(desk: Desk) -> None:
    for content_type in ("application/json", "multipart/mixed; boundary=b", ""):
        answer = await desk.post(content=part() + END, headers={"Content-Type": content_type})
        assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    for boundary in ("", "; boundary=", f"; boundary={'x' * 71}", '; boundary="a\\"b"'):
        answer = await desk.post(content=part() + END, headers={"Content-Type": f"multipart/form-data{boundary}"})
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_UPLOAD"), boundary


async def test_too_large_is_said_before_it_is_read(desk: Desk) -> None:
    stream = await desk.running.connect()
    async with stream:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {16 * MB}\r\n"
        )
        await stream.send_all(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        with trio.fail_after(PATIENCE_S):
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 413 ")
    assert await desk.left() == (0, 0)


async def test_who_goes_away_or_sleeps_leaves_nothing(desk: Desk) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {5 * MB}\r\n"
    for goes_away in (True, False):
        stream = await desk.running.connect()
        async with stream:
            await stream.send_all(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
            await stream.send_all(part(content=b"x" * 2 * MB))
            with trio.fail_after(PATIENCE_S):
                while await desk.left() == (0, 0):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                if not goes_away:
                    assert b"400" in (await stream.receive_some(65536))[:20]
        with trio.fail_after(PATIENCE_S):
            while await desk.left() != (0, 0):  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_the_quota_is_told_and_kept(desk: Desk) -> None:
    for _ in range(2):
        assert (await desk.post(files={"file": ("a", b"x" * (15 * MB))})).status_code == 200
    answer = await desk.post(files={"file": ("a", b"x" * (15 * MB))})
    assert (answer.status_code, answer.json()["code"]) == (429, "UPLOAD_QUOTA_REACHED")
    assert int(answer.headers["Retry-After"]) == 86_400
    assert (await desk.post(files={"file": ("a", b"x" * (9 * MB))})).status_code == 200
    assert (await desk.left())[0] == 3


async def test_who_may_not(desk: Desk) -> None:
    for headers, status, code in (
        ({"Authorization": ""}, 401, "MISSING_KEY"),
        ({"Authorization": "Bearer hyd-mail-x"}, 401, "INVALID_KEY"),
        ({"Authorization": "Basic !"}, 401, "INVALID_KEY"),
    ):
        answer = await desk.post(files={"file": ("a", b"x")}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    async with desk.running.client() as client:
        answer = await client.post(PATH, files={"file": ("a", b"x")})
        assert (answer.status_code, answer.json()["code"]) == (401, "MISSING_KEY")
        answer = await client.get(PATH, headers=KEYED)
        assert (answer.status_code, answer.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
    desk.running.intake.verdict = Refusal(ErrorKind.KEY_DISABLED, "this API key is disabled")
    answer = await desk.post(files={"file": ("a", b"x")})
    assert (answer.status_code, answer.json()["code"]) == (403, "KEY_DISABLED")
    assert await desk.left() == (0, 0)


@pytest.mark.parametrize("how", ["upload", "variables"])
async def test_what_a_large_request_names_needs_room_in_memory(tmp_path: Path, how: str) -> None:
    """300 KB that ask for 15 MB: a second one waits for its room, and is told so when there is none for too long."""
    async with open_desk(tmp_path, Timeouts(gate_s=1)) as desk:
        payload: dict[str, Any] = {"to": "joe@example.com", "text": "x", "padding": "x" * 300_000}
        if how == "upload":
            upload_id = (await desk.post(files={"file": ("a.bin", bytes(15 * MB))})).json()["data"]["uploadId"]
            payload["attachments"] = [{"uploadId": upload_id}]
        else:
            payload |= {"html": "{{a}}" * 1000, "variables": {"a": "x" * 9000}}
        inside, leave = trio.Event(), trio.Event()
        first: list[int] = []

        async def accept(_submission: Submission) -> Receipt:
            if not inside.is_set():
                inside.set()
                await leave.wait()
            return RECEIPT

        async def send_first() -> None:
            first.append((await desk.running.post(payload)).status_code)

        desk.running.intake.accept_by = accept
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_first)
            await inside.wait()
            second = await desk.running.post(payload)
            assert (second.status_code, second.json()["code"]) == (503, "UNAVAILABLE")
            plain = await desk.running.post({**GOOD, "padding": "x" * 300_000})
            assert plain.status_code == 200, "it names nothing, and there is room for it"
            leave.set()
        assert first == [200]
        assert (await desk.running.post(payload)).status_code == 200
