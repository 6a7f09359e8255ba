# SPDX-License-Identifier: Apache-2.0
"""What is allowed when: the only place that says so.

A submission session moves to the right::

    CONNECTED ──EHLO──► PLAIN ──STARTTLS──► CONNECTED (now under TLS) ──EHLO──► SECURED ──AUTH──► READY
    READY ──MAIL──► MAIL ──RCPT──► RCPT ──DATA──► (content) ──► READY
                                   RCPT ──BDAT──► CHUNKS ──BDAT LAST──► READY

EHLO and RSET lead back from a transaction to where it began; QUIT ends the session anywhere.  The state is not stored:
`SubmissionMachine` derives it from its facts, so the two cannot disagree.  While content is read, an AUTH exchange
runs, or an answer from outside is awaited, no command is looked at.

A cell of the table is the reply that refuses the verb in that state, or None where it may proceed.
"""

from __future__ import annotations

from enum import Enum, auto
from types import MappingProxyType

from hepmaild.smtp import replies as r
from hepmaild.smtp.replies import Line


class State(Enum):
    """Where a session is."""

    CONNECTED = auto()  # no EHLO yet, or none since TLS began
    PLAIN = auto()  # greeted, no TLS
    SECURED = auto()  # greeted under TLS
    READY = auto()  # authenticated, no transaction
    MAIL = auto()  # a reverse-path, no recipient
    RCPT = auto()  # at least one recipient
    CHUNKS = auto()  # at least one BDAT

    __hash__ = object.__hash__  # there is one of each; Enum's own is a function in Python, three times a command


class Verb(Enum):
    """Commands that are known; the value is the word on the wire."""

    EHLO = b"EHLO"
    HELO = b"HELO"
    STARTTLS = b"STARTTLS"
    AUTH = b"AUTH"
    MAIL = b"MAIL"
    RCPT = b"RCPT"
    DATA = b"DATA"
    BDAT = b"BDAT"
    RSET = b"RSET"
    NOOP = b"NOOP"
    QUIT = b"QUIT"
    VRFY = b"VRFY"
    EXPN = b"EXPN"
    HELP = b"HELP"

    __hash__ = object.__hash__


_ANY = (None,) * 7

# fmt: off
_ROWS: dict[Verb, tuple[Line | None, ...]] = {
    # CONNECTED, PLAIN, SECURED, READY, MAIL, RCPT, CHUNKS
    Verb.EHLO: _ANY,
    Verb.HELO: _ANY,
    Verb.STARTTLS:
        (r.EHLO_FIRST, None, r.TLS_TWICE, r.TLS_TWICE, r.TLS_TWICE, r.TLS_TWICE, r.TLS_TWICE),
    Verb.AUTH:
        (r.EHLO_FIRST, r.TLS_FIRST_FOR_AUTH, None, r.AUTH_TWICE, r.AUTH_TOO_LATE, r.AUTH_TOO_LATE, r.AUTH_TOO_LATE),
    Verb.MAIL:
        (r.EHLO_FIRST, r.TLS_FIRST, r.AUTH_FIRST, None, r.MAIL_TWICE, r.MAIL_TWICE, r.CHUNKS_BEGUN),
    Verb.RCPT:
        (r.EHLO_FIRST, r.MAIL_FIRST, r.MAIL_FIRST, r.MAIL_FIRST, None, None, r.CHUNKS_BEGUN),
    Verb.DATA:
        (r.EHLO_FIRST, r.MAIL_FIRST, r.MAIL_FIRST, r.MAIL_FIRST, r.RCPT_FIRST, None, r.CHUNKS_BEGUN),
    Verb.BDAT:
        (r.EHLO_FIRST, r.MAIL_FIRST, r.MAIL_FIRST, r.MAIL_FIRST, r.RCPT_FIRST, None, None),
    Verb.RSET: _ANY,
    Verb.NOOP: _ANY,
    Verb.QUIT: _ANY,
    Verb.VRFY: _ANY,
    Verb.EXPN: (r.NOT_IMPLEMENTED,) * 7,
    Verb.HELP: _ANY,
}
# fmt: on

REFUSALS: MappingProxyType[State, dict[Verb, Line | None]] = MappingProxyType(
    {state: {verb: row[column] for verb, row in _ROWS.items()} for column, state in enumerate(State)}
)

VERBS: MappingProxyType[bytes, Verb] = MappingProxyType({verb.value: verb for verb in Verb})
