# SPDX-License-Identifier: Apache-2.0
"""What schemathesis has to be told, since no schema can say it: which servers and senders there are.

Loaded by the schemathesis process.  CONTRACT_VALUES is JSON: by the name of a format, values that are good.
CONTRACT_ANSWERS names a file: every answer goes there, a line of JSON each.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st

_CALLS = itertools.count()
_LOCK = threading.Lock()

_LOCAL = st.from_regex(r"\A[a-z0-9]{1,12}(\.[a-z0-9+_-]{1,8})?\Z")
_DOMAIN = st.sampled_from(["example.net", "example.com", "mail.test", "xn--bcher-kva.example"])
ADDRESS = st.builds("{}@{}".format, _LOCAL, _DOMAIN)
MAILBOX = ADDRESS | st.builds("{} <{}>".format, st.sampled_from(["Joe", '"Doe, Joe"', "Jürgen"]), ADDRESS)

schemathesis.openapi.format("mailbox", MAILBOX)
for _name, _values in json.loads(os.environ["CONTRACT_VALUES"]).items():
    schemathesis.openapi.format(_name, st.sampled_from(_values))


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """A password grant reads no body, so a bad one is no reason to refuse it: a schema cannot say "not there"."""
    if case.operation.path != "/oauth/token" or case.meta is None or not case.meta.generation.mode.is_negative:
        return True
    return bool((case.query or {}).get("grant_type") != "password")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Two of three words for idempotency are new: with the example of the document nearly all would be a mismatch."""
    if case.headers and case.meta is not None and case.meta.generation.mode.is_positive:
        word = case.headers.get("Idempotency-Key")
        number = next(_CALLS)
        if word and number % 3:
            case.headers["Idempotency-Key"] = f"{word[:200]}-{number}"


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Write down what was answered, for whoever counts money and calls."""
    line = {
        "began": time.monotonic() - response.elapsed,
        "at": time.monotonic(),
        "method": response.request.method,
        "path": case.operation.path,
        "status": response.status_code,
        "word": dict(response.request.headers).get("Idempotency-Key"),
        "replayed": "idempotency-replayed" in response.headers,
        "limit": (response.headers.get("x-ratelimit-limit") or [None])[0],
        "body": response.text if case.operation.path in ("/api/v1/email/send", "/v1/emails") else "",
    }
    with _LOCK, Path(os.environ["CONTRACT_ANSWERS"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
