# SPDX-License-Identifier: Apache-2.0
"""The log: one line an event, on standard error, as `key=value` pairs (`at`, `level`, `event`, then the rest).

Whatever a value holds, it stays within its line and its pair: control characters and line ends are escaped.  Keys and
passwords are masked on the way out, wherever they stand; nobody should log them, but a traceback might.
"""

from __future__ import annotations

import logging
import math
import os
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TextIO

import structlog

from hepmaild.masking import mask_keys

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Order within a line: what a reader looks for first, then as given.
_FIRST = ("at", "level", "event")
_MAX_VALUE = 2000
_MAX_TRACE = 8000
PATIENCE_MS = 200  # for a reader of the log that has stopped
PATIENT_AGAIN_S = 60.0  # since the last line that was lost

_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)|secret|authorization|credential_value|private_key_pem|(access|refresh|bearer|csrf|session)_token"
)
# Up to the last "@": who forgot to write one of the password's as %40 has it all the same.  Our own words say PASSWORD.
_URL_PASSWORD = re.compile(r"(\w://[^\s:@/]*:)(?!PASSWORD@)[^\s/]*@")
_URL_OPTION = re.compile(r"([?&]password=)[^\s&#]+")
_AUTH_LINE = re.compile(r"\b(AUTH\s+(?:PLAIN|LOGIN)\s+|(?:Basic|Bearer)\s+)[A-Za-z0-9+/=_.~-]{4,}", re.IGNORECASE)
_BARE = re.compile(r"[!#-&(-<>-\[\]-~]+")  # printable ASCII without space, quotes, backslash and equals sign
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def redact(text: str) -> str:
    """`text` with every key cut to `hyd-mail-…LAST5`, and passwords in URLs, AUTH lines and headers masked."""
    text = mask_keys(text)
    if "://" in text:
        text = _URL_OPTION.sub(r"\1…", _URL_PASSWORD.sub(r"\1…@", text))
    return _AUTH_LINE.sub(r"\1…", text)


def escape(text: str) -> str:
    """`text` on one line, with everything that is not printable written as an escape."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_ESCAPES.get(ch) or (ch if ch.isprintable() else _code(ch)) for ch in text)


def _code(ch: str) -> str:
    number = ord(ch)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def format_value(value: Any) -> str:
    """A value as it stands behind `key=`: bare when that is unambiguous, else in double quotes."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        value = value.isoformat()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = redact(value if isinstance(value, str) else str(value))
    if len(text) > _MAX_VALUE:
        text = text[: _MAX_VALUE - 1] + "…"
    if _BARE.fullmatch(text):
        return text
    return f'"{escape(text)}"'


def render(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """The last processor of structlog: one event as one line."""
    names = [*(name for name in _FIRST if name in event), *(name for name in event if name not in _FIRST)]
    return " ".join(f"{_name(name)}={_pair(name, event[name])}" for name in names)


def _name(name: str) -> str:
    return name if name.isidentifier() else re.sub(r"\W", "_", name)


def _pair(name: str, value: Any) -> str:
    if value and _SECRET_NAME.search(name.lower()) and not name.lower().endswith(("_file", "_at", "_id")):
        return "…"
    return f'"{escape(redact(value))}"' if name == "traceback" else format_value(value)


def _stamp(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.setdefault("at", datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"))
    event.setdefault("level", {"warn": "warning", "exception": "error"}.get(method, method))
    return event


def _trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`exc_info` as `error`, one line, and `traceback`, escaped; a group's members are all in it."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exception()
    if isinstance(info, tuple):
        info = info[1]
    if isinstance(info, BaseException):
        event.setdefault("error", f"{type(info).__name__}: {info}")
        text = "".join(traceback.format_exception(info)).strip()
        if len(text) > _MAX_TRACE:  # the end says what happened, the beginning where it was called from
            text = text[: _MAX_TRACE // 3] + "\n…\n" + text[-2 * _MAX_TRACE // 3 :]
        event["traceback"] = text
    return event


class _Forward(logging.Handler):
    """Lines that libraries write with the standard library's `logging`, as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record; an error in formatting it must not end anything."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        log = structlog.get_logger()
        getattr(log, level)("library", logger=record.name, text=text, exc_info=record.exc_info)


class Writer:
    """Writes finished lines.  A reader that went away (closed pipe) must not end the daemon, so errors are dropped.

    One that reads no more (a journal whose disk hangs) must not stop it either: the loop writes here.  It is waited for
    a moment, once a minute; else lines are left out until it reads again, and are told by their number.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._lost = 0  # lines since the last one that was written
        self._lost_at = -math.inf  # of time.monotonic
        self._is_torn = False  # the last one that was written ends in its middle

    def msg(self, line: str) -> None:
        """Write one line, at once.  Without a stream of its own it looks up `sys.stderr` each time."""
        stream = self._stream or sys.stderr
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError):
                stream.write(line + "\n")
                stream.flush()
            return
        encoding = stream.encoding or "utf-8"
        with self._lock:
            if self._lost:
                told = _stamp(None, "warning", {"event": "log_lines_lost", "lines": self._lost})
                if self._write(descriptor, render(None, "", told), encoding):
                    self._lost = 0
            if self._lost or not self._write(descriptor, line, encoding):
                self._lost += 1
                self._lost_at = time.monotonic()

    def _write(self, descriptor: int, line: str, encoding: str) -> bool:
        """All of it, or False when there is no room, or nobody who reads."""
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        begin = "\n" if self._is_torn else ""
        octets = f"{begin}{line}\n".encode(encoding, "backslashreplace")
        at = 0
        try:
            while at < len(octets):
                is_patient = time.monotonic() - self._lost_at >= PATIENT_AGAIN_S
                if not poll.poll(0) and not (is_patient and poll.poll(PATIENCE_MS)):
                    return False
                # So much finds room in a pipe or a socket that has any.
                at += os.write(descriptor, octets[at : at + select.PIPE_BUF])
        except OSError:
            return False
        finally:
            if at:
                self._is_torn = at < len(octets)
        return True

    debug = info = warning = warn = error = exception = critical = fatal = log = msg


def configure(
    *, level: str = "info", stream: TextIO | None = None, extra: Callable[[Mapping[str, Any]], None] | None = None
) -> None:
    """Set structlog up for this process.  May be called again (tests, SIGHUP).

    level: the lowest one that is written (`LEVELS`).  stream: instead of standard error.  extra: sees every event that
    is written, before it is made a line; for tests.
    """

    def watch(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if extra is not None:
            extra(dict(event))
        return event

    writer = Writer(stream)  # of all loggers, since it knows what was lost
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _stamp, watch, _trace, render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_args: writer,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward())
    root.setLevel(logging.WARNING)
