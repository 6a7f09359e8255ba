# SPDX-License-Identifier: Apache-2.0
"""From what a door brought to what is stored: sender picked, message composed or completed, recipients distinct."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog
import trio

from hepmaild.config import LimitSettings, RecipientsFrom, SmtpSettings
from hepmaild.errors import ErrorKind, Refusal, SecretsUnavailable, StoreUnavailable
from hepmaild.mail import compose, dkim, ids
from hepmaild.mail.address import domain_of, key_of
from hepmaild.mail.content import Content, ContentBuilder
from hepmaild.mail.dkim import Signer
from hepmaild.mail.headers import format_date, normalised
from hepmaild.mail.message import Inspected, inspect, received_field, rewrite
from hepmaild.mail.submission import Draft, Kind, Mailbox, Recipient, Submission
from hepmaild.own_routes import is_own
from hepmaild.policy import SenderBook, distinct, pick_sender
from hepmaild.signing import NotLoaded, SigningKeys
from hepmaild.storage.directory import SenderRow
from hepmaild.threads import NoThread, in_thread

log = structlog.get_logger()

THREAD_OCTETS = 256 << 10  # above this, work on content moves to a thread
LOADS = 10  # of signing keys, which may change while they are read


class PrepareSettings(Protocol):
    """What preparing obeys of the settings."""

    @property
    def smtp(self) -> SmtpSettings: ...
    @property
    def limits(self) -> LimitSettings: ...


@dataclass(slots=True)
class Prepared:
    """A message that passed every check but those that need the store.

    from_address: shown in From and used as reverse-path.  word: the caller's idempotency word.  fingerprint: equal for
    equal calls.  has_own_message_id: the client wrote a Message-ID, so that a replay can be known.
    """

    message_id: str
    header_message_id: str
    sender: SenderRow
    from_address: str
    recipients: tuple[Recipient, ...]
    content: Content
    subject: str
    smtputf8: bool
    at_us: int
    word: str | None
    fingerprint: bytes
    has_own_message_id: bool


class Preparer:
    """hostname: for the trace field.  spool_dir: where large content goes.  limiter: for its own threads.

    signing: the DKIM keys; None: nothing is signed.
    """

    def __init__(
        self,
        *,
        hostname: str,
        spool_dir: Path | None,
        limiter: trio.CapacityLimiter,
        now_us: Callable[[], int],
        signing: SigningKeys | None = None,
    ) -> None:
        self._hostname = hostname
        self._spool_dir = spool_dir
        self._limiter = limiter
        self._now_us = now_us
        self._signing = signing

    async def prepare(self, submission: Submission, book: SenderBook, settings: PrepareSettings) -> Prepared | Refusal:
        """Pick the sender and make the message, signed if its domain has a key.

        Refusals: MALFORMED_MESSAGE, SENDER_NOT_ALLOWED, TOO_MANY_RECIPIENTS; UNAVAILABLE when there is a key that
        cannot be used.  Raises `StoreUnavailable`.  Large content is worked on in a thread, which cancellation waits
        for.
        """
        for _ in range(LOADS):
            try:
                return await self._work(submission, book, settings)
            except NotLoaded as missing:  # nothing was done yet
                assert self._signing is not None
                try:
                    await self._signing.load(missing.domain)
                except SecretsUnavailable:
                    return Refusal(ErrorKind.UNAVAILABLE, "the message cannot be signed now: try again later")
        raise StoreUnavailable("the signing keys change too often to be read")

    async def _work(self, submission: Submission, book: SenderBook, settings: PrepareSettings) -> Prepared | Refusal:
        source = submission.source
        work = self._from_draft if isinstance(source, Draft) else self._from_message
        if _octets(source) <= THREAD_OCTETS:
            return work(submission, book, settings)
        try:
            return await in_thread(work, submission, book, settings, limiter=self._limiter)
        except NoThread as problem:
            raise StoreUnavailable(f"the message could not be prepared: {problem.strerror}") from problem

    def _from_draft(self, submission: Submission, book: SenderBook, settings: PrepareSettings) -> Prepared | Refusal:
        del settings
        draft = submission.source
        assert isinstance(draft, Draft)
        wanted = (draft.sender.address,) if draft.sender is not None else ()
        row = pick_sender(book, wanted, submission.key.senders)
        if isinstance(row, Refusal):
            return row
        address = draft.sender.address if draft.sender is not None else row.address
        signers = self._signers(address, row)
        name = draft.from_name or (draft.sender.name if draft.sender is not None else "")
        at_us = self._now_us()
        header_id = ids.header_message_id(random_octets(ids.HEADER_ID_ENTROPY_OCTETS), address)
        octets = compose.compose(
            draft,
            Mailbox(address, name),
            message_id=header_id,
            date=datetime.fromtimestamp(at_us // 1_000_000, UTC),
            entropy=random_octets(compose.BOUNDARY_ENTROPY_OCTETS),
        )
        if signers:
            octets = _signatures(octets, Content(octets), octets.index(b"\r\n\r\n") + 4, signers, at_us) + octets
        recipients = distinct(submission.recipients)
        return Prepared(
            message_id=ids.message_id(random_octets(ids.MESSAGE_ID_ENTROPY_OCTETS), self._now_us()),
            header_message_id=header_id,
            sender=row,
            from_address=address,
            recipients=recipients,
            content=Content(octets),
            subject=draft.subject[:500],
            smtputf8=compose.needs_smtputf8(draft, Mailbox(address, name), recipients),
            at_us=at_us,
            word=submission.idempotency_word,
            fingerprint=submission.fingerprint,
            has_own_message_id=False,
        )

    def _from_message(self, submission: Submission, book: SenderBook, settings: PrepareSettings) -> Prepared | Refusal:
        source = submission.source
        assert isinstance(source, Content)
        found = inspect(source.head())
        if found.problem is not None:
            return Refusal(ErrorKind.MALFORMED_MESSAGE, found.problem)
        wanted = found.from_addresses
        if not found.from_count and submission.reverse_path:
            wanted = (normalised(submission.reverse_path),)
        row = pick_sender(book, wanted, submission.key.senders)
        if isinstance(row, Refusal):
            return row
        recipients = _recipients(submission, found, settings)
        if isinstance(recipients, Refusal):
            return recipients
        address = wanted[0] if wanted else row.address
        signers = self._signers(address, row)
        message_id = ids.message_id(random_octets(ids.MESSAGE_ID_ENTROPY_OCTETS), self._now_us())
        at_us = self._now_us()
        date = format_date(datetime.fromtimestamp(at_us // 1_000_000, UTC))
        header_id = found.message_id
        if header_id is None:
            header_id = ids.header_message_id(random_octets(ids.HEADER_ID_ENTROPY_OCTETS), address)
        head = rewrite(
            source.head(),
            found,
            received=received_field(
                submission.origin,
                self._hostname,
                message_id,
                date,
                with_address=settings.smtp.trace_client_address,
            ),
            sender=None if found.from_count else Mailbox(address),
            date=None if found.has_date else date,
            message_id=None if found.message_id is not None else header_id,
        )
        if signers:
            head = _signatures(head, source, found.header_end, signers, at_us) + head
        fingerprint = _fingerprint(source, recipients)  # before `_join`, which closes a spooled source
        return Prepared(
            message_id=message_id,
            header_message_id=header_id,
            sender=row,
            from_address=address,
            recipients=recipients,
            content=self._join(head, source, found.header_end),
            subject=found.subject,
            smtputf8=submission.smtputf8,
            at_us=at_us,
            word=found.idempotency_word,
            fingerprint=fingerprint,
            has_own_message_id=found.message_id is not None,
        )

    def _signers(self, address: str, sender: SenderRow) -> Sequence[Signer]:
        """Who signs for the domain of the author, and only for that one.  Raises `NotLoaded`.

        Nobody where it leaves by an account's own server: anybody may call one a@DOMAIN, and would get signed mail.
        """
        if self._signing is None or is_own(sender.route):
            return ()
        return self._signing.of(domain_of(address))

    def _join(self, head: bytes, source: Content, body_at: int) -> Content:
        if not source.is_spooled:
            return Content(head + source.data[body_at:])
        builder = ContentBuilder(self._spool_dir)
        try:
            builder.write(head)
            for piece in source.chunks(body_at):
                builder.write(piece)
        except OSError as problem:  # the disk is full, or there is no descriptor left
            builder.discard()
            log.warning("spool_failed", error=str(problem))
            raise StoreUnavailable(f"the message could not be written to the spool: {problem}") from problem
        source.close()
        return builder.finish()


_DRAWN = 4096
_BLOCK = 32
_blocks: list[bytes] = []


def random_octets(count: int) -> bytes:
    """Up to 32 random octets.  The system is asked for a page at a time: each call gives up the interpreter, 5 µs.

    Several threads may draw at once: a list's `pop` gives no block to two of them.
    """
    assert count <= _BLOCK
    try:
        block = _blocks.pop()
    except IndexError:
        page = os.urandom(_DRAWN)
        block, *rest = (page[start : start + _BLOCK] for start in range(0, _DRAWN, _BLOCK))
        _blocks.extend(rest)
    return block[:count]


def _signatures(head: bytes, content: Content, body_at: int, signers: Sequence[Signer], at_us: int) -> bytes:
    """DKIM-Signature fields for the finished `head` and the body that begins at `body_at` of `content`."""
    hashed = dkim.body_hash(content.chunks(body_at))
    return dkim.sign(head, hashed, signers, at_s=at_us // 1_000_000)


def _octets(source: Content | Draft) -> int:
    """How much there is to work on, roughly."""
    if isinstance(source, Content):
        return source.size
    texts = [source.text or "", source.html or "", *(value for _, value in source.headers)]
    return sum(map(len, texts)) + sum(len(a.content) for a in source.attachments)


def _recipients(submission: Submission, found: Inspected, settings: PrepareSettings) -> tuple[Recipient, ...] | Refusal:
    """The envelope's recipients, shown as the header has them; with `envelope+headers` the header's own too."""
    envelope = submission.recipients
    with_headers = settings.smtp.recipients is RecipientsFrom.ENVELOPE_AND_HEADERS
    if not with_headers and len(envelope) == 1 and len(found.to) == 1 and envelope[0].address == found.to[0]:
        return envelope
    shown = [replace(r, kind=found.kind_of(r.address)) for r in envelope]
    if with_headers:
        if found.has_more:  # and nobody is left out without a word
            text = "To, Cc and Bcc name more addresses than are looked at: split the message"
            return Refusal(ErrorKind.TOO_MANY_RECIPIENTS, text)
        for kind, listed in ((Kind.TO, found.to), (Kind.CC, found.cc), (Kind.BCC, found.bcc)):
            shown += [Recipient(address, kind) for address in listed]
    recipients = distinct(shown)
    limit = settings.limits.recipients_per_message
    if len(recipients) > limit:
        text = f"the message has {len(recipients)} recipients, {limit} are allowed: split it"
        return Refusal(ErrorKind.TOO_MANY_RECIPIENTS, text)
    return recipients


def _fingerprint(source: Content, recipients: tuple[Recipient, ...]) -> bytes:
    """Equal for the same content and recipients, whichever order these are in."""
    envelope = sorted(key_of(r.address) for r in recipients)
    digest = hashlib.sha256("\n".join(["smtp", *envelope, ""]).encode())
    if source.is_spooled:
        for piece in source.chunks():
            digest.update(piece)
    else:
        digest.update(source.data)
    return digest.digest()
