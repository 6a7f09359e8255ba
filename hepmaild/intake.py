# SPDX-License-Identifier: Apache-2.0
"""The intake: the only way in for mail, whichever door it came by.

Every method returns a value or a `Refusal`, and raises `StoreUnavailable` when the store does not answer (503 /
451 4.3.0; 454 4.7.0 at AUTH).  The order of the checks is the contract's and lives here and in `policy` only:
key → rate → limits → sender → recipients → idempotency → one commit → first attempt → receipt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import trio

from hepmaild import policy, receipts
from hepmaild.callers import FirstAttempt
from hepmaild.config import (
    DeliverySettings,
    LimitSettings,
    Plan,
    ReplyWhen,
    ReversePath,
    RouteKind,
    RouteSettings,
    Settings,
    SmtpSettings,
)
from hepmaild.counted import counted
from hepmaild.delivery.job import Job, JobRecipient
from hepmaild.directory import Directory
from hepmaild.errors import ErrorKind, NothingCommitted, Refusal, StoreUnavailable
from hepmaild.lifecycle import Lifecycle
from hepmaild.mail import chaos
from hepmaild.mail.address import destination_of
from hepmaild.mail.content import Content
from hepmaild.mail.submission import (
    Door,
    KeyIdentity,
    Permission,
    RateState,
    Receipt,
    Recipient,
    Submission,
    Verified,
)
from hepmaild.metrics import Meter
from hepmaild.outbox import Outbox
from hepmaild.prepare import Prepared, Preparer
from hepmaild.receipts import Vain
from hepmaild.storage import keys, messages, words
from hepmaild.storage.accept import Accept, Taken, Twin, destinations_of
from hepmaild.storage.caps import cap_key_of
from hepmaild.storage.directory import KeyRow
from hepmaild.storage.store import Store
from hepmaild.storage.unit import Answer, Answers, Call, CallAndAccept, Used
from hepmaild.storage.words import BY_CALLER, WORD_LIFE_US
from hepmaild.timers import current_clock
from hepmaild.twins import Twins

T = TypeVar("T")

PIECE_OCTETS = 1 << 20
ONE_HOP = ("",)  # the destinations of a message on a route with one next hop


class Dispatcher(Protocol):
    """The delivery pool as the intake sees it."""

    def capacity_hint(self, route: str, destinations: Sequence[str] = ("",)) -> int:
        """How many more jobs for each of these destinations of the route would be worked on soon."""

    def offer_nowait(self, job: Job) -> bool:
        """Hand a leased job over, one for each destination.  False: no room after all."""

    def left(self, route: str, destinations: Collection[str]) -> Collection[str]:
        """What goes to these was committed without a lease, for want of room; those whose next hop is away for long."""

    def wake(self) -> None:
        """Something in the store became due."""


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """The slices of the settings that the intake obeys; replaced as a whole on reload."""

    smtp: SmtpSettings
    limits: LimitSettings
    delivery: DeliverySettings
    plans: dict[str, Plan]
    routes: dict[str, RouteSettings]

    @classmethod
    def of(cls, settings: Settings) -> IntakeSettings:
        """Of all settings."""
        routes = {route.name: route for route in settings.route}
        return cls(settings.smtp, settings.limits, settings.delivery, settings.plans, routes)


class Intake:
    """See the module.  now_us: the process's clock."""

    def __init__(
        self,
        settings: IntakeSettings,
        *,
        store: Store,
        directory: Directory,
        outbox: Outbox,
        dispatcher: Dispatcher,
        preparer: Preparer,
        lifecycle: Lifecycle,
        now_us: Callable[[], int],
        meter: Meter | None = None,
    ) -> None:
        self.settings = settings
        self._meter = meter or Meter()
        self._store = store
        self._directory = directory
        self._outbox = outbox
        self._dispatcher = dispatcher
        self._preparer = preparer
        self._lifecycle = lifecycle
        self._now_us = now_us
        self._time = current_clock()
        self._failed_keys = policy.FailedKeys(lambda: self.settings.limits.unknown_keys_per_minute, now_us)
        self._twins = Twins(store, outbox, now_us, lambda: self.settings.delivery.relay_wait_s)

    async def authenticate(
        self, secret: str, *, door: Door, peer_ip: str, needs: Permission | None = None
    ) -> Verified | Refusal:
        """Check a key.  needs: which permission instead of the door's.

        Refusals: INVALID_KEY, KEY_DISABLED, KEY_EXPIRED, IP_NOT_ALLOWED, CHANNEL_NOT_ALLOWED, ACCOUNT_SUSPENDED,
        TOO_MANY_FAILED_KEYS (retry_after_s: HTTP's Retry-After; SMTP waits that long, at most 10 s, before its 535).
        Cancel-safe.
        """
        return await self._counted(door, self._authenticate(secret, door, peer_ip, needs))

    async def _counted(self, door: Door, question: Coroutine[Any, Any, T]) -> T:
        """The answer to a question of a door; both doors' refusals are counted here, so that they agree."""
        try:
            answer = await question
        except StoreUnavailable:
            self._meter.refused(door, ErrorKind.UNAVAILABLE)
            raise
        if isinstance(answer, Refusal):
            self._meter.refused(door, answer.kind)
        return answer

    async def _authenticate(
        self, secret: str, door: Door, peer_ip: str, needs: Permission | None
    ) -> Verified | Refusal:
        secret_hash = keys.hash_secret(secret)
        row = await self._directory.key(secret_hash) if keys.looks_like_key(secret) else None
        if row is None:
            wait_s = self._failed_keys.note(peer_ip)
            if wait_s:
                wait = counted(wait_s, "second")
                text = f"too many unknown API keys from your IP address: check the key, try again in {wait}"
                return Refusal(ErrorKind.TOO_MANY_FAILED_KEYS, text, retry_after_s=wait_s)
            return Refusal(ErrorKind.INVALID_KEY, "this is not a valid API key: use one from the API Keys tab")
        return self._judge(row, secret_hash, door, peer_ip, needs)

    def _judge(
        self, row: KeyRow, secret_hash: bytes, door: Door, peer_ip: str, needs: Permission | None = None
    ) -> Verified | Refusal:
        now_us = self._now_us()
        refusal = policy.check_key(row, door, peer_ip, now_us, needs)
        if refusal is not None:
            return refusal
        self._outbox.used(Used(row.key_id, now_us, peer_ip[:45], door.value))
        return Verified(policy.identity_of(row, secret_hash, self.settings.plans))

    async def open_transaction(self, key: KeyIdentity, *, door: Door, peer_ip: str) -> KeyIdentity | Refusal:
        """At every MAIL: is the key still good, is there room in the backlog, are we draining?

        Returns the identity as it is now.  Refusals: those of `authenticate` (535: the session is as before AUTH),
        BACKLOG_FULL, DRAINING.  Cancel-safe.
        """
        return await self._counted(door, self._open_transaction(key, door, peer_ip))

    async def _open_transaction(self, key: KeyIdentity, door: Door, peer_ip: str) -> KeyIdentity | Refusal:
        if self._lifecycle.is_draining:
            return Refusal(ErrorKind.DRAINING, "shutting down: connect again")
        row = await self._directory.key(key.secret_hash)
        if row is None:
            return Refusal(ErrorKind.INVALID_KEY, "this API key was deleted or changed: log in with a valid one")
        judged = self._judge(row, key.secret_hash, door, peer_ip)
        if isinstance(judged, Refusal):
            return judged
        return self.check_backlog() or judged.key

    def check_backlog(self) -> Refusal | None:
        """Whether one more message may wait."""
        if self._outbox.backlog < self.settings.limits.backlog:
            return None
        return Refusal(ErrorKind.BACKLOG_FULL, "too many messages wait already: try again later", retry_after_s=60)

    async def take_call(self, key: KeyIdentity, *, recipients: int = 0, word: str | None = None) -> RateState | Refusal:
        """Count one call in the shared window, durably (committed when this returns).

        HTTP: once per send request with a valid key, before the body is read (recipients=0), with the caller's word:
        what was sent before is not refused for the day.  SMTP: when the content is about to be asked for, with the
        number of distinct recipients, so that missing credits show early.
        Refusals: RATE_LIMITED, DAILY_LIMIT_REACHED (retry_after_s), INSUFFICIENT_CREDITS (extra: required, balance).
        Cancelled before its unit begins it counts nothing.
        """
        state: RateState | Refusal = await self._counted(
            Door.SMTP if recipients else Door.HTTP, self._store.submit(self._call(key, recipients, word))
        )
        return state

    def _call(self, key: KeyIdentity, recipients: int = 0, word: str | None = None) -> Call:
        plan = policy.plan_of(self.settings.plans, key.plan)
        paid = 0 if key.chaos else recipients
        window_us = self.settings.smtp.replay_window_s * 1_000_000
        word = None if word is None else BY_CALLER + word
        return Call(key.key_id, key.account_id, plan.calls_per_minute, plan.messages_per_day, paid, window_us, word)

    async def told_before(self, key: KeyIdentity, word: str, fingerprint: bytes) -> Receipt | Refusal | None:
        """What the very call was told that was accepted before with this word of its caller; None: there was none."""
        return await self._twins.told_before(key.key_id, BY_CALLER + word, fingerprint)

    async def accept(self, submission: Submission) -> Receipt | Refusal:
        """Everything after the call was counted, up to the receipt; one that was not counted yet is counted with it.

        Such a call counts whatever comes of the message, and its refusals (those of `take_call`) go before all others.
        Waits for the first attempt up to `delivery.relay_wait_s` (SMTP with smtp.reply = "on-commit": not at all).
        Cancellation before the commit costs nothing; from the commit on the message is ours whatever the caller does.
        RELAY_FAILED carries the next hop's reply in `reply`.
        """
        door, begun = submission.origin.door, self._time()
        answer = await self._counted(door, self._accept(submission))
        self._meter.answered(door, answer, self._time() - begun)
        return answer

    async def _accept(self, submission: Submission) -> Receipt | Refusal:
        prepared = made = await self._prepare(submission)
        try:
            if isinstance(prepared, Prepared) and (full := self.check_backlog()) is not None:
                prepared = await self._unless_again(submission, prepared, full)
            call = None if submission.is_counted else self._call(submission.key, word=submission.idempotency_word)
            if isinstance(prepared, Prepared) and prepared.content.size <= PIECE_OCTETS:
                return await self._commit(submission, prepared, call)
            state: RateState | Refusal | None = await self._store.submit(call) if call is not None else None
            if isinstance(state, Refusal):
                return state
            if isinstance(prepared, Refusal):
                return _with_rate(prepared, state)
            await self._stage(prepared)
            return _with_rate(await self._commit(submission, prepared, None), state)
        finally:
            if isinstance(made, Prepared):
                made.content.close()  # a spool is ours alone: the pool is handed what is in memory

    async def _unless_again(self, submission: Submission, prepared: Prepared, full: Refusal) -> Prepared | Refusal:
        """There is no room for one more message; one that was accepted before needs none."""
        word, life_us = self._word(submission, prepared, self._fingerprint(submission, prepared))
        since_us = self._now_us() - life_us
        if word is not None and await self._store.read(words.is_stored, submission.key.key_id, word, since_us):
            return prepared
        return full

    async def _prepare(self, submission: Submission) -> Prepared | Refusal:
        book = await self._directory.book(submission.key.account_id)
        return await self._preparer.prepare(submission, book, self.settings)

    async def _stage(self, prepared: Prepared) -> None:
        """Store a large content ahead of its unit, piece by piece; without the unit, the pieces are swept later."""
        for n, piece in enumerate(prepared.content.chunks(octets=PIECE_OCTETS)):
            await self._store.write(messages.stage_piece, prepared.message_id, n, piece, prepared.at_us)
        prepared.content.close()

    async def _commit(self, submission: Submission, prepared: Prepared, call: Call | None) -> Receipt | Refusal:
        """call: to be counted in the same commit."""
        member = self._member(submission, prepared)
        waits = not self._answers_on_commit(submission)
        waiter = self._outbox.expect(member.message_id, member.destinations or ONE_HOP) if waits else None
        pending = self._twins.begin(member.message_id)
        begun = self._time()
        try:
            state, result = await self._submit(member, call)
            while isinstance(result, Twin):
                answer = await self._twins.answer(result)
                if answer is not None:
                    return _with_rate(answer, state)
                _, result = await self._submit(member, None)
            if isinstance(result, Refusal):
                if result.kind is ErrorKind.RELAY_FAILED:
                    self._meter.left_out(submission.origin.door, len(member.recipients))
                return _with_rate(result, state)
            commit_s = self._time() - begun
            left_out = len(result.suppressed)
            recipients = len(member.recipients) - left_out
            self._meter.accepted(submission.origin.door, recipients, member.size, commit_s, left_out)
            taken = self._hand_over(member, prepared, result)
            is_paused = result.turn is None and self._is_paused(member, result)
            receipt = receipts.first_receipt(member, result, is_paused=is_paused)
            if waiter is None:
                pending.answer = receipt
                return _with_rate(receipt, state)
            in_vain = result.turn is not None or is_paused or (self._lifecycle.is_draining and not taken)
            pending.answer = receipt if in_vain else await self._wait(waiter, receipt, member)
            await self._record(member, pending.answer)
            return _with_rate(pending.answer, state)
        finally:
            self._twins.end(member.message_id)
            self._outbox.forget(member.message_id)

    def _answers_on_commit(self, submission: Submission) -> bool:
        return submission.origin.door is Door.SMTP and self.settings.smtp.reply is ReplyWhen.ON_COMMIT

    def _member(self, submission: Submission, prepared: Prepared) -> Accept:
        plan = policy.plan_of(self.settings.plans, submission.key.plan)
        sender, kind = prepared.sender, submission.key.chaos
        route = chaos.route_of(kind) if kind else sender.route
        life_s = self.settings.delivery.expire_after_s
        fingerprint = self._fingerprint(submission, prepared)
        word, life_us = self._word(submission, prepared, fingerprint)
        destinations = self._destinations(route, prepared.recipients)
        left = self._left(route, destinations)
        tell = receipts.answer_on_commit if self._answers_on_commit(submission) else receipts.answer_meanwhile
        member = Accept(
            message_id=prepared.message_id,
            account_id=submission.key.account_id,
            key=submission.key,
            door=submission.origin.door.value,
            sender=prepared.from_address,
            route=route,
            reverse_path=self._reverse_path(submission, prepared, route),
            subject=prepared.subject,
            header_message_id=prepared.header_message_id,
            size=prepared.content.size,
            smtputf8=prepared.smtputf8,
            recipients=prepared.recipients,
            content=prepared.content.data if prepared.content.size <= PIECE_OCTETS else None,
            expires_at_us=prepared.at_us + (min(life_s, chaos.LIFE_S) if kind else life_s) * 1_000_000,
            at_us=prepared.at_us,
            messages_per_day=plan.messages_per_day,
            event=receipts.accepted_event(submission, prepared),
            answer="",
            word=word,
            word_life_us=life_us,
            fingerprint=fingerprint,
            owner=self._outbox.owner,
            destinations=destinations,
            left=left,
            cap_key=cap_key_of(sender.account_id, sender.address_key) if sender.daily_cap and not kind else "",
            daily_cap=0 if kind else sender.daily_cap,
            tell=tell,
        )
        member.answer = tell(member)
        return member

    def _destinations(self, route: str, recipients: Iterable[Recipient]) -> tuple[str, ...]:
        """Of each recipient in turn; none when the route has one next hop."""
        settings = self.settings.routes.get(route)
        if settings is None or settings.kind is not RouteKind.MX:
            return ()
        return tuple([destination_of(r.address, settings.kind) for r in recipients])

    def _left(self, route: str, destinations: Sequence[str]) -> frozenset[str]:
        """The destinations that the pool has no room for now, or that nobody is to work on."""
        return frozenset(
            where
            for where in dict.fromkeys(destinations or ONE_HOP)
            if self._outbox.is_paused(route, where) or not self._dispatcher.capacity_hint(route, (where,))
        )

    def _is_paused(self, member: Accept, taken: Taken) -> bool:
        """Whether nobody is to work on any of it now, as far as this process knows."""
        return all(self._outbox.is_paused(member.route, where) for where in destinations_of(member, taken))

    def _fingerprint(self, submission: Submission, prepared: Prepared) -> bytes:
        """Of a message by SMTP also by the reverse-path, as it would leave: most routes do not use the client's."""
        if submission.origin.door is not Door.SMTP:
            return prepared.fingerprint
        path = self._reverse_path(submission, prepared, prepared.sender.route)
        return hashlib.sha256(prepared.fingerprint + path.encode()).digest()

    def _word(self, submission: Submission, prepared: Prepared, fingerprint: bytes) -> tuple[str | None, int]:
        """The idempotency word with its namespace, and how long it lives."""
        if prepared.word is not None:
            return BY_CALLER + prepared.word, WORD_LIFE_US
        window_us = self.settings.smtp.replay_window_s * 1_000_000
        if submission.origin.door is Door.SMTP and window_us and prepared.has_own_message_id:
            return f"r:{fingerprint.hex()}", window_us
        return None, 0

    def _reverse_path(self, submission: Submission, prepared: Prepared, route: str) -> str:
        """A null path stays null; otherwise the sender's address, or the client's where the route says so."""
        if submission.reverse_path == "":
            return ""
        settings = self.settings.routes.get(route)
        if submission.reverse_path and settings is not None and settings.reverse_path is ReversePath.CLIENT:
            return submission.reverse_path
        return prepared.from_address

    async def _submit(self, member: Accept, call: Call | None) -> tuple[RateState | None, Taken | Twin | Refusal]:
        """The window after the call, where one was counted, and what became of the message."""
        try:
            if call is None:
                return None, await self._store.submit(member)
            state, result = await self._store.submit(CallAndAccept(call, member))
        except StoreUnavailable as problem:
            # It may be committed all the same; then its leases must end, so that it leaves soon.
            for where in () if isinstance(problem, NothingCommitted) else member.leased:
                self._outbox.doubt_accept(member.message_id, where, 1)
            raise
        return (state.rate, state) if isinstance(state, Refusal) else (state, result)

    def _hand_over(self, member: Accept, prepared: Prepared, taken: Taken) -> bool:
        """Give the committed message to the pool, a job for each destination; whether it took any.

        No await in here: between the commit and this call nothing may come.
        """
        wheres = destinations_of(member, taken)
        self._outbox.accepted(len(wheres))
        if taken.turn is not None:
            self._dispatcher.wake()
            return False
        # What is in memory may be shared by several jobs; what is large is read piece by piece.
        content = prepared.content if member.content is not None else None
        took, left = False, []
        for where in dict.fromkeys(member.destinations or ONE_HOP):
            if where not in wheres:
                self._outbox.nobody_there(member.message_id, where)
            elif where in member.left:
                left.append(where)
                if self._outbox.is_paused(member.route, where):  # it has no first attempt that one could wait for
                    self._outbox.nobody_there(member.message_id, where, Vain.PAUSED)
            elif self._dispatcher.offer_nowait(_job(member, where, taken, content)):
                took = True
            else:
                self._outbox.doubt_accept(member.message_id, where, taken.token)
                self._dispatcher.wake()
        for where in self._dispatcher.left(member.route, left) if left else ():
            self._outbox.nobody_there(member.message_id, where, Vain.AWAY)
        return took

    async def _wait(self, waiter: FirstAttempt, receipt: Receipt, member: Accept) -> Receipt | Refusal:
        patience_s = self.settings.delivery.relay_wait_s
        with trio.move_on_after(patience_s) as late:
            await waiter.done.wait()
        why = receipts.why_no_attempt(waiter.vain, is_late=late.cancelled_caught, patience_s=patience_s)
        return receipts.outcome_of_attempt(waiter.outcomes, receipt, member, why)

    async def _record(self, member: Accept, answer: Receipt | Refusal) -> None:
        """Remember what the caller is told.  Before it is told, where that matters to a twin whatever happens to this
        process: for a caller with a word, and when a refusal frees the word; otherwise behind its back."""
        now_us = self._now_us()
        row = Answer(
            member.message_id,
            member.account_id,
            now_us,
            receipts.answer_of(answer, is_final=True),
            free_word=isinstance(answer, Refusal),
        )
        if member.word is None or not (row.free_word or member.word.startswith(BY_CALLER)):
            self._outbox.answer_later(row)
            return
        try:
            await self._store.submit(Answers((row,)))
        except StoreUnavailable:
            self._outbox.answer_later(row)


def _with_rate(answer: Receipt | Refusal, rate: RateState | None) -> Receipt | Refusal:
    return answer if rate is None else replace(answer, rate=rate)


def _job(member: Accept, destination: str, taken: Taken, content: Content | None) -> Job:
    wheres = member.destinations
    recipients = [
        JobRecipient(n, r.address)
        for n, r in enumerate(member.recipients)
        if (not wheres or wheres[n] == destination) and n not in taken.suppressed
    ]
    return Job(
        message_id=member.message_id,
        account_id=member.account_id,
        route=member.route,
        reverse_path=member.reverse_path,
        recipients=tuple(recipients),
        token=taken.token,
        size=member.size,
        smtputf8=member.smtputf8,
        accepted_at_us=member.at_us,
        expires_at_us=member.expires_at_us,
        content=content,
        destination=destination,
    )


__all__ = ["Content", "Dispatcher", "Intake", "IntakeSettings"]
