# SPDX-License-Identifier: Apache-2.0
"""What the machine asks its driver to do.  Done in the order given.

After `Verify`, `OpenTransaction`, `TakeCall` and `EndMessage` the machine waits: it consumes no input until the driver
gives the answer (`auth_result`, `mail_result`, `call_result`, `message_result`).  These are always the last of a list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hepmaild.mail.submission import KeyIdentity
from hepmaild.smtp.facts import Envelope


class CloseReason(StrEnum):
    """Why the machine ends a session; for the log."""

    QUIT = "quit"
    EOF = "eof"
    DRAIN = "drain"
    TIMEOUT = "timeout"
    CRASH = "crash"
    PLAINTEXT_BEHIND_STARTTLS = "plaintext-behind-starttls"
    WRONG_COMMANDS = "wrong-commands"
    FAILED_AUTH = "failed-auth"
    ENDLESS_LINE = "endless-line"
    MALFORMED_CONTENT = "malformed-content"
    OVERSIZE = "oversize"
    BAD_CHUNK = "bad-chunk"
    REFUSED = "refused"  # the intake answered 421


@dataclass(slots=True)
class Send:
    """Send these octets."""

    octets: bytes


@dataclass(slots=True)
class StartTls:
    """Do the TLS handshake now; nothing the client sent before it may survive.  Then `tls_established`."""


@dataclass(slots=True)
class Verify:
    """Check this key, then `auth_result`."""

    secret: str = field(repr=False)


@dataclass(slots=True)
class OpenTransaction:
    """Ask the intake whether this key may begin a message, then `mail_result`."""

    key: KeyIdentity


@dataclass(slots=True)
class TakeCall:
    """The content is about to be asked for: count the call, then `call_result`."""

    key: KeyIdentity
    recipients: int


@dataclass(slots=True)
class BeginMessage:
    """Content follows."""


@dataclass(slots=True)
class MessageChunk:
    """Octets of the content."""

    octets: bytes


@dataclass(slots=True)
class AbortMessage:
    """The content will not be completed, or is refused: drop what was kept of it."""


@dataclass(slots=True)
class EndMessage:
    """The content is complete: give it to the intake, then `message_result`."""

    key: KeyIdentity
    envelope: Envelope


@dataclass(slots=True)
class Close:
    """Close the connection, cleanly where the peer lets us."""

    reason: CloseReason


Action = (
    Send
    | StartTls
    | Verify
    | OpenTransaction
    | TakeCall
    | BeginMessage
    | MessageChunk
    | AbortMessage
    | EndMessage
    | Close
)
