# SPDX-License-Identifier: Apache-2.0
"""What a door hands to the intake, and what it gets back.

Both doors fill the same `Submission`; only the source differs: SMTP brings a finished message, HTTP a draft that is
composed once its sender is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from hepmaild.mail.reply import Reply

if TYPE_CHECKING:
    from hepmaild.events import Step
    from hepmaild.mail.content import Content


class Door(StrEnum):
    """The two ways in."""

    SMTP = "smtp"
    HTTP = "http"


class Kind(StrEnum):
    """How a recipient shows in Logs."""

    TO = "to"
    CC = "cc"
    BCC = "bcc"


class Permission(StrEnum):
    """What a key may do (api-keys.md)."""

    SMTP = "smtp"
    HTTP = "http"
    TEMPLATES = "templates"
    OWN_SMTP = "own_smtp"


@dataclass(frozen=True, slots=True)
class KeyIdentity:
    """An authenticated key, as it was when it was last checked.

    secret_hash: by which it is looked up again.  senders: the only sender addresses (as compared) it may use, or None.
    chaos: how the sandbox misbehaves that its mail goes to (`chaos.KINDS`); "": it is an ordinary key.
    permissions: what it may do, or None: everything.
    """

    key_id: str
    key_name: str
    last_five: str
    account_id: str
    account_email: str
    plan: str
    calls_per_minute: int
    secret_hash: bytes = field(default=b"", repr=False)
    senders: frozenset[str] | None = None
    chaos: str = ""
    permissions: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Recipient:
    """One distinct recipient.  `address` is as given (normalised domain); compared case-insensitively as a whole."""

    address: str
    kind: Kind = Kind.TO


@dataclass(frozen=True, slots=True)
class Attachment:
    """A decoded attachment.  `content_id` set: shown inline by the HTML part (`cid:`).

    upload_id: the content is still to be put in (`materials`), and with it a name and a type that are "" here.
    """

    filename: str
    content: bytes
    content_type: str = "application/octet-stream"
    content_id: str | None = None
    upload_id: str = ""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address with an optional display name, both free of control characters."""

    address: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that is still to be composed (send-api.md).  All values are already validated."""

    sender: Mailbox | None
    to: tuple[Mailbox, ...]
    cc: tuple[Mailbox, ...] = ()
    reply_to: tuple[Mailbox, ...] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    from_name: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """How a submission came.  Goes into the trace header field and the event record; holds no secret."""

    door: Door
    peer_ip: str
    session_id: str
    tls_version: str = ""
    tls_cipher: str = ""
    helo: str = ""


@dataclass(slots=True)  # not frozen: its many fields would cost five times as much to set
class Submission:
    """One message on its way in.

    recipients: distinct, in the order given, at least one.  reverse_path: MAIL FROM on SMTP ("" for the null path),
    None on HTTP.  source: the finished message (`Content`) or a `Draft`.  idempotency_word: the caller's word, or None;
    fingerprint: SHA-256 over what must be equal for "the same call" (HTTP: the request body; on SMTP the intake makes
    it).  steps: the inbound leg so far.  is_counted: its call was let through already; False: by the same commit.
    """

    key: KeyIdentity
    origin: Origin
    recipients: tuple[Recipient, ...]
    source: Content | Draft
    reverse_path: str | None = None
    idempotency_word: str | None = None
    fingerprint: bytes = b""
    smtputf8: bool = False
    steps: tuple[Step, ...] = ()
    is_counted: bool = True


@dataclass(frozen=True, slots=True)
class Rejected:
    """A recipient that the next hop refused for good; its credit was refunded."""

    address: str
    reply: Reply


class Status(StrEnum):
    """What a receipt says: every remaining recipient is with the next hop, or some still wait."""

    SENT = "sent"
    QUEUED = "queued"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an accepted submission, equal on both doors.

    message_id: ours, 16 hex.  header_message_id: `<…@domain>`.  sender: the address in From.  recipients: distinct.
    credits_charged: without refunded ones.  retry_hint: why it waits and until when; with QUEUED only.
    is_capped: it stands behind its sender's daily cap, and the hint says so: SMTP adds it to its reply.
    replayed: the first answer to an idempotent twin, given again.  rate: the window after the call, when it was counted
    with the message.
    """

    message_id: str
    header_message_id: str
    status: Status
    sender: str
    recipients: int
    credits_charged: int
    rejected: tuple[Rejected, ...] = ()
    retry_hint: str = ""
    replayed: bool = False
    is_capped: bool = False
    rate: RateState | None = None


@dataclass(frozen=True, slots=True)
class RateState:
    """The shared window after a call: for `x-ratelimit-*`.  reset_at: Unix seconds when the window is empty again."""

    limit: int
    remaining: int
    reset_at: int


@dataclass(frozen=True, slots=True)
class Verified:
    """A key that was checked just now."""

    key: KeyIdentity
