# SPDX-License-Identifier: Apache-2.0
"""The body of an API request: read within limits of size and time, large ones into a file, then JSON (RFC 8259).

Only `load_object` holds a whole body in memory; callers let large ones in through the `MemoryGate` first.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import trio
from quart.wrappers import Request

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.http.limits import Timeouts
from hepmaild.http.quick import QuickRequest
from hepmaild.mail.content import Content, ContentBuilder
from hepmaild.threads import in_thread

WRITE_OCTETS = 256 << 10  # so much is written to the spool at a time
# Of JSON outside its strings: commas, brackets, numbers, spaces.  A value takes few of them, and up to a hundred times
# as much memory; what makes good requests large stands in few strings.
MAX_AROUND_OCTETS = 512 << 10


@dataclass(frozen=True, slots=True)
class Received:
    """A body that came completely.  digest: SHA-256 of its octets."""

    content: Content
    digest: bytes


def check_length(request: Request | QuickRequest, limit: int) -> None:
    """Raises RefusedError (REQUEST_TOO_LARGE) when the request says that it is longer than `limit` octets."""
    length = request.content_length
    if length is not None and length > limit:
        raise RefusedError(too_large(limit))


def too_large(limit: int) -> Refusal:
    """The refusal for a request of more than `limit` octets."""
    text = f"The request is larger than {limit} octets; send fewer or smaller attachments."
    return Refusal(ErrorKind.REQUEST_TOO_LARGE, text)


async def read_body(
    request: Request, limit: int, timeouts: Timeouts, spool_dir: Path | None, limiter: trio.CapacityLimiter
) -> Received:
    """All of the body, in a file when it is large.

    Raises RefusedError: REQUEST_TOO_LARGE as soon as it is longer than `limit`; INVALID_JSON when it comes too slowly.
    Cancelled, it leaves nothing behind.
    """
    if request.content_length is not None and request.content_length <= WRITE_OCTETS:
        return await _read_small(request, timeouts)
    builder = ContentBuilder(spool_dir)
    digest = hashlib.sha256()
    pending: list[bytes] = []
    held = total = 0
    chunks = aiter(request.body)
    try:
        with trio.fail_after(timeouts.body_s):
            while True:
                with trio.fail_after(timeouts.body_idle_s):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                total += len(chunk)
                if total > limit:
                    raise RefusedError(too_large(limit))
                digest.update(chunk)
                pending.append(chunk)
                held += len(chunk)
                if held >= WRITE_OCTETS:
                    await _write(builder, pending, limiter)
                    held = 0
        await _write(builder, pending, limiter)
        return Received(builder.finish(), digest.digest())
    except trio.TooSlowError:
        builder.discard()
        raise _too_slow() from None
    except BaseException:
        builder.discard()
        raise


async def _read_small(request: Request, timeouts: Timeouts) -> Received:
    """A body whose length is known and small: no spool, no pieces."""
    body: Any = request.body
    with trio.move_on_after(timeouts.body_idle_s) as scope:
        octets: bytes = await body
    if scope.cancelled_caught:
        raise _too_slow()
    return Received(Content(octets), hashlib.sha256(octets).digest())


def _too_slow() -> RefusedError:
    text = "The request body did not arrive in time; send it again, faster."
    return RefusedError(Refusal(ErrorKind.INVALID_JSON, text))


async def _write(builder: ContentBuilder, pending: list[bytes], limiter: trio.CapacityLimiter) -> None:
    octets = pending[0] if len(pending) == 1 else b"".join(pending)
    pending.clear()
    if builder.size + len(octets) > WRITE_OCTETS:
        try:
            await in_thread(builder.write, octets, limiter=limiter)
        except OSError as error:  # the disk is full
            text = "There is no room for a request of this size now; try again later."
            raise RefusedError(Refusal(ErrorKind.UNAVAILABLE, text, retry_after_s=60)) from error
    elif octets:
        builder.write(octets)


def check_media_type(request: Request | QuickRequest) -> None:
    """Raises RefusedError (UNSUPPORTED_MEDIA_TYPE) for anything but plain `application/json`."""
    if request.mimetype != "application/json":
        raise RefusedError(
            Refusal(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with the header Content-Type: application/json.")
        )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RefusedError(
            Refusal(ErrorKind.UNSUPPORTED_MEDIA_TYPE, "Send the JSON as it is, without Content-Encoding.")
        )


def has_too_many_values(octets: bytes) -> bool:
    """Whether this JSON would become many small objects, by `MAX_AROUND_OCTETS`.  Makes none itself; linear."""
    if len(octets) <= MAX_AROUND_OCTETS:
        return False
    if b"\\" in octets:
        octets = octets.replace(rb"\\", b"").replace(rb"\"", b"")  # what is left of quotes begins or ends a string
    if octets.count(b'"') > 2 * MAX_AROUND_OCTETS:  # between two strings there is something
        return True
    around = at = 0
    is_inside = False
    while (quote := octets.find(b'"', at)) >= 0:
        if not is_inside:
            around += quote - at
        at, is_inside = quote + 1, not is_inside
    return around + (0 if is_inside else len(octets) - at) > MAX_AROUND_OCTETS


def load_object(content: Content) -> dict[str, Any]:
    """The JSON object in `content`, which is closed.  Raises RefusedError (INVALID_JSON).

    Stricter than the library: UTF-8, no member twice (which one counts would depend on the reader), no NaN, and not
    millions of values.
    """
    octets = content.head(content.size)
    content.close()
    if has_too_many_values(octets):
        raise _invalid("it has too many values: what is large may only be text and files")
    if octets.startswith(codecs.BOM_UTF8):  # as some editors on Windows save
        raise _invalid("it begins with a byte order mark: save it as UTF-8 without one (BOM)")
    try:
        text = octets.decode("utf-8")
        del octets
        value = json.loads(text, object_pairs_hook=_members, parse_constant=_constant)
    except RecursionError:
        raise _invalid("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise _invalid("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # some of the library's sentences go on with the place
        raise _invalid(f"{what} at line {error.lineno}, column {error.colno}") from None
    except _NotAllowedError as error:
        raise _invalid(str(error)) from None
    except ValueError:  # the interpreter's limit for int()
        raise _invalid("a number in it has too many digits") from None
    if not isinstance(value, dict):
        raise _invalid("it is no object: put the fields between { and }")
    return value


class _NotAllowedError(ValueError):
    """Something that the library would take."""


def _invalid(why: str) -> RefusedError:
    return RefusedError(Refusal(ErrorKind.INVALID_JSON, f"The body is not a JSON object: {why}."))


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _NotAllowedError("a member stands in it twice")
    return members


def _constant(word: str) -> NoReturn:
    raise _NotAllowedError(f"{word} is no JSON")
