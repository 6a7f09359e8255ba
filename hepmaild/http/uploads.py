# SPDX-License-Identifier: Apache-2.0
"""`POST /api/v1/email/uploads`: a file for messages to come (send-api.md, `uploadId`).

multipart/form-data (RFC 7578), read by werkzeug's sans-IO decoder in slices of `SLICE_OCTETS`: what is in memory at
any time is that decoder's buffer (at most `BUFFER_OCTETS`), one slice, and one piece of the file.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import trio
from quart import Blueprint
from quart import request as current_request
from quart.wrappers import Request, Response
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.http.answers import UploadAnswer, UploadData
from hepmaild.http.auth import WINDOW_S, read_credentials
from hepmaild.http.call import Call
from hepmaild.http.dashboard.frame import Dashboard, Visit, finish, open_visit, same_origin
from hepmaild.http.errors import json_response
from hepmaild.http.fields import is_media_type
from hepmaild.http.limits import Timeouts
from hepmaild.http.oauth import read_bearer
from hepmaild.http.shapes import MAX_FILENAME
from hepmaild.intake import Intake
from hepmaild.mail.address import has_control_characters
from hepmaild.mail.sizes import MAX_ATTACHMENT_OCTETS
from hepmaild.mail.submission import Door, Permission, RateState
from hepmaild.storage.uploads import Upload
from hepmaild.uploads import Incoming, Uploads, too_large

PATH = "/api/v1/email/uploads"
FIELD = "file"
CSRF_HEADER = "X-CSRF-Token"
SLICE_OCTETS = 64 << 10
BUFFER_OCTETS = 160 << 10
MAX_PARTS = 8
MAX_AROUND_OCTETS = 64 << 10  # boundaries, headers of parts, other fields
MAX_REQUEST_OCTETS = MAX_ATTACHMENT_OCTETS + MAX_AROUND_OCTETS
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")  # RFC 2046 §5.1.1


@dataclass(slots=True)
class UploadDesk:
    """What the endpoint needs.  dashboard: by whose cookies people are known; None: only keys are."""

    intake: Intake
    uploads: Uploads
    timeouts: Timeouts
    calls_inside: Callable[[str], Any]
    dashboard: Dashboard | None = None

    async def receive(self, request: Request, call: Call) -> Response:
        """Answer one request.  Raises RefusedError and StoreUnavailable.

        Cancelled before the file is complete, nothing of it stays.
        """
        authorization = request.headers.get("Authorization")
        if authorization is None and self.dashboard is not None:
            return await self._for_browser(self.dashboard, request)
        token = read_bearer(authorization) or ""
        if "." in token and self.dashboard is not None:  # an access token; no key has a dot
            return await self._for_program(self.dashboard, request, call, token)
        return answer_of(await self._read(request, await self._for_key(call, authorization)))

    async def _for_key(self, call: Call, authorization: str | None) -> str:
        """The account of a key that may send by either call.  No call is counted: an upload sends nothing."""
        secret = read_credentials(authorization)
        if isinstance(secret, Refusal):
            raise RefusedError(secret)
        peer_ip = str(call.client_ip)
        verified = await self.intake.authenticate(secret, door=Door.HTTP, peer_ip=peer_ip)
        if isinstance(verified, Refusal) and verified.kind is ErrorKind.CHANNEL_NOT_ALLOWED:
            verified = await self.intake.authenticate(
                secret, door=Door.HTTP, peer_ip=peer_ip, needs=Permission.OWN_SMTP
            )
        if isinstance(verified, Refusal):
            raise RefusedError(verified)
        key = verified.key
        call.key_id = key.key_id
        limit = key.calls_per_minute
        call.rate = RateState(limit, 0, int(time.time()) + WINDOW_S)
        calls = await self.calls_inside(key.key_id)
        call.rate = RateState(limit, max(0, limit - calls), int(time.time()) + WINDOW_S)
        return key.account_id

    async def _for_program(self, dashboard: Dashboard, request: Request, call: Call, token: str) -> Response:
        """By the access token of somebody's program (login-api.md)."""
        viewer = await dashboard.people.viewer_of(token)
        if viewer is None:
            raise RefusedError(Refusal(ErrorKind.INVALID_KEY, "This access token is not valid, or its session ended."))
        _check_role(Visit(dashboard, viewer, call))
        return answer_of(await self._read(request, viewer.account_id))

    async def _for_browser(self, dashboard: Dashboard, request: Request) -> Response:
        """By the dashboard's cookies, which a browser also sends with what another site made it ask."""
        visit = await open_visit(dashboard)
        if visit is None:
            how = "An API key is needed, or the cookies of somebody who is signed in."
            raise RefusedError(Refusal(ErrorKind.MISSING_KEY, how))
        token = request.headers.get(CSRF_HEADER, "")
        if not same_origin(dashboard) or not dashboard.people.check_csrf(visit.viewer.session_id, token):
            text = f"Nobody is asked whether a page of ours sent this: its {CSRF_HEADER} is missing or old."
            raise RefusedError(Refusal(ErrorKind.CHANNEL_NOT_ALLOWED, text))
        _check_role(visit)
        return finish(answer_of(await self._read(request, visit.account_id)))

    async def _read(self, request: Request, account_id: str) -> Upload:
        length = request.content_length
        if length is not None and length > MAX_REQUEST_OCTETS:
            raise RefusedError(too_large())
        boundary = _boundary_of(request)
        async with self.uploads.receive(account_id, length) as incoming:
            reader = _Reader(boundary)
            chunks = aiter(request.body)
            total = 0
            deadline = trio.current_time() + self.timeouts.body_s
            while True:
                chunk = await self._next(chunks, deadline)
                if chunk is None:
                    break
                total += len(chunk)
                if total > MAX_REQUEST_OCTETS:
                    raise RefusedError(too_large())
                for at in range(0, len(chunk), SLICE_OCTETS):
                    for data in reader.feed(chunk[at : at + SLICE_OCTETS]):
                        await incoming.write(data)
            for data in reader.feed(None):
                await incoming.write(data)
            return await _finish(incoming, reader)

    async def _next(self, chunks: AsyncIterator[bytes], deadline: float) -> bytes | None:
        """The next octets of a body; None: it has ended.  Raises RefusedError (INVALID_UPLOAD) when it is too slow."""
        with trio.move_on_at(min(deadline, trio.current_time() + self.timeouts.body_idle_s)):
            return await anext(chunks, None)
        raise _invalid("it did not arrive in time; send it again, faster")


def _check_role(visit: Visit) -> None:
    if not visit.may("admin"):
        raise RefusedError(Refusal(ErrorKind.CHANNEL_NOT_ALLOWED, "Your role in this account only looks."))


class _Reader:
    """From slices of a multipart body to the octets of its one file."""

    def __init__(self, boundary: bytes) -> None:
        self._decoder = MultipartDecoder(boundary, BUFFER_OCTETS, max_parts=MAX_PARTS)
        self._is_file = False
        self.found: File | None = None

    def feed(self, octets: bytes | None) -> Iterator[bytes]:
        """What of the file is in this slice; None: the body has ended.  Raises RefusedError (INVALID_UPLOAD)."""
        try:
            self._decoder.receive_data(octets)
            while True:
                event = self._decoder.next_event()
                if isinstance(event, NeedData | Epilogue):
                    return
                if isinstance(event, Data):
                    if self._is_file and event.data:
                        yield event.data
                elif isinstance(event, File | Field):
                    self._begin(event)
        except RequestEntityTooLarge:
            raise _invalid("what stands around the file is too large, or in too many parts") from None
        except ValueError:  # the library's words may hold the caller's octets
            raise _invalid("it is broken off, or its parts have no proper header") from None

    def _begin(self, part: File | Field) -> None:
        self._is_file = False
        if part.name != FIELD:
            return
        if not isinstance(part, File):
            raise _invalid(f"the part {FIELD} has no filename, so it is no file")
        if self.found is not None:
            raise _invalid("there are two files in it; send one at a time")
        self.found, self._is_file = part, True


async def _finish(incoming: Incoming, reader: _Reader) -> Upload:
    part = reader.found
    if part is None:
        raise _invalid(f"there is no file in it, in a part named {FIELD}")
    content_type = part.headers.get("content-type", "")
    return await incoming.finish(
        file_name(part.filename), content_type if is_media_type(content_type) else "application/octet-stream"
    )


def file_name(given: str) -> str:
    """The name of a file without the folders it came from (RFC 7578 §4.2), fit for a header and a screen.

    Raises RefusedError: INVALID_HEADER_VALUE, INVALID_UPLOAD.
    """
    if has_control_characters(given):
        text = "The filename holds a line break or another control character; leave it out."
        raise RefusedError(Refusal(ErrorKind.INVALID_HEADER_VALUE, text, field="file.filename"))
    name = re.split(r"[/\\]", given)[-1].strip()
    if not name.strip(".") or len(name) > MAX_FILENAME:
        text = f"The filename must be 1 to {MAX_FILENAME} characters."
        raise RefusedError(Refusal(ErrorKind.INVALID_UPLOAD, text, field="file.filename"))
    return name


def _boundary_of(request: Request) -> bytes:
    """Raises RefusedError: UNSUPPORTED_MEDIA_TYPE, INVALID_UPLOAD."""
    if request.mimetype != "multipart/form-data":
        text = f"Send multipart/form-data with the file in the part {FIELD}."
        raise RefusedError(Refusal(ErrorKind.UNSUPPORTED_MEDIA_TYPE, text))
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RefusedError(Refusal(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "Send the body without Content-Encoding."))
    boundary = request.mimetype_params.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise _invalid("its Content-Type names no good boundary")
    return boundary.encode("ascii")


def _invalid(why: str) -> RefusedError:
    return RefusedError(Refusal(ErrorKind.INVALID_UPLOAD, f"The multipart body cannot be used: {why}.", field=FIELD))


def answer_of(upload: Upload) -> Response:
    """What the caller is told."""
    data = UploadData(upload.upload_id, upload.filename, upload.size)
    return json_response(200, UploadAnswer(ok=True, data=data))


def uploads_blueprint(desk: UploadDesk) -> Blueprint:
    """The route of the endpoint."""
    blueprint = Blueprint("uploads", __name__)

    @blueprint.post(PATH, provide_automatic_options=False)
    async def receive() -> Response:
        request: Any = current_request
        return await desk.receive(request, request.call)

    return blueprint
