# SPDX-License-Identifier: Apache-2.0
"""A posted form, read within limits of size, number of fields and time: anybody may send one to the sign-in page.

The framework would take as much as a send may have, and make millions of fields of it while nothing else is done.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import trio
from quart import request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import BadRequest, RequestTimeout

from hepmaild.threads import in_thread

MAX_FORM_OCTETS = 2 << 20
SMALL_FORM_OCTETS = 64 << 10  # of what is sent before anybody is signed in
MAX_FIELDS = 10_000  # a key may be for any of an account's senders, each a field
FORM_S = 60.0
MEDIA_TYPE = "application/x-www-form-urlencoded"  # that of all our forms

Form = MultiDict[str, str]


async def read_form(limiter: trio.CapacityLimiter | None, most: int = MAX_FORM_OCTETS) -> Form:
    """The fields of the request's form; none where it is no form.

    limiter: for the thread that takes apart what is large.  Raises BadRequest and RequestTimeout.  Cancelled, the
    thread ends by itself and is not waited for.
    """
    if (request.content_length or 0) > most:
        raise BadRequest("This form is too large.")
    octets = await _read(most)
    if request.mimetype != MEDIA_TYPE:
        return MultiDict()
    if octets.count(b"&") >= MAX_FIELDS:
        raise BadRequest("This form has too many fields.")
    if len(octets) <= SMALL_FORM_OCTETS:
        form = _take_apart(octets)
    else:
        form = await in_thread(
            partial(_take_apart, octets), abandon_on_cancel=True, limiter=limiter or trio.CapacityLimiter(1)
        )
    if any("\0" in value for _, value in form.items(multi=True)):
        raise BadRequest("A field of this form holds a character that is none of a text: type it again.")
    return form


async def _read(most: int) -> bytearray:
    body: Any = request.body
    octets = bytearray()
    with trio.move_on_after(FORM_S) as scope:
        async for piece in body:
            octets += piece
            if len(octets) > most:
                raise BadRequest("This form is too large.")
    if scope.cancelled_caught:
        raise RequestTimeout
    return octets


def _take_apart(octets: bytearray) -> Form:
    """Browsers write what is not ASCII in `%XX`; what is no UTF-8 all the same becomes U+FFFD."""
    return MultiDict(parse_qsl(octets.decode("utf-8", "replace"), keep_blank_values=True))
