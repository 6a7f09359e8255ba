# SPDX-License-Identifier: Apache-2.0
"""What a session knows, and what a transaction knows: two objects, so that one can be dropped whole.

RSET, EHLO, end of data and TLS drop the transaction; TLS drops what the client said before it (RFC 3207 §4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hepmaild.events import Step, Transcript, Who
from hepmaild.mail.submission import KeyIdentity

_PRELUDE_STEPS = 60


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """A finished handshake, in the words of the trace header field: `TLSv1.3`, `TLS_AES_256_GCM_SHA384`."""

    version: str
    cipher: str


@dataclass(slots=True)
class SessionFacts:
    """True until the connection ends, except where TLS begins.

    helo: what the client calls itself, "" before EHLO.  messages, failed_auth, wrong: counters.
    prelude: steps outside transactions since the last message: greeting, TLS, AUTH.
    """

    tls: TlsInfo | None = None
    helo: str = ""
    key: KeyIdentity | None = None
    messages: int = 0
    commands: int = 0
    failed_auth: int = 0
    wrong: int = 0
    refused: int = 0
    prelude: Transcript = field(default_factory=Transcript)

    def note_prelude(self, at_us: int, who: Who, text: str) -> None:
        """Keep a step that belongs to no transaction, while there is room."""
        if len(self.prelude.steps) < _PRELUDE_STEPS:
            self.prelude.add(at_us, who, text)


@dataclass(slots=True)
class TransactionFacts:
    """From MAIL until the message is answered.

    recipients: distinct, as normalised, by their `key_of`.  refused_recipient: a RCPT was refused, so that a pipelined
    DATA behind it is no wrong command.  content_lost: it could not be kept.
    """

    reverse_path: str
    smtputf8: bool
    recipients: dict[str, str] = field(default_factory=dict)
    refused_recipient: bool = False
    chunked: bool = False
    content_lost: bool = False
    steps: Transcript = field(default_factory=Transcript)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A complete message's envelope.  size: content octets.  steps: the inbound leg up to the end of the content."""

    reverse_path: str
    recipients: tuple[str, ...]
    smtputf8: bool
    size: int
    steps: tuple[Step, ...]
