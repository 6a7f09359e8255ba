# SPDX-License-Identifier: Apache-2.0
"""Engines that are broken on purpose.  The simulator has to find each of them, or it is not looking."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select, update

from hepmaild.delivery.job import Attempt, Claim, Job, Result
from hepmaild.intake import Intake
from hepmaild.outbox import Outbox
from hepmaild.storage.accept import Accept, Taken
from hepmaild.storage.schema import queue
from hepmaild.storage.unit import Report, UnitRunner
from tests.simulation.process import Variants
from tests.simulation.trace import now_us


class MarksNothing(Variants):
    """The final dot leaves without a committed mark: a death behind it is forgotten."""

    found_as = r"was delivered .* times|never delivered"
    found_from = 4

    class outbox(Outbox):  # noqa: N801
        async def mark_in_doubt(self, job: Job) -> bool:
            return True


class DoubtsNothing(Variants):
    """No answer to the dot is taken for "not delivered"."""

    found_as = r"was delivered .* times"
    found_from = 4

    class outbox(Outbox):  # noqa: N801
        async def report(self, attempt: Attempt) -> bool:
            outcomes = tuple(
                replace(o, result=Result.DEFERRED, retry_at_us=o.retry_at_us or now_us() + 30_000_000)
                if o.result is Result.IN_DOUBT
                else o
                for o in attempt.outcomes
            )
            return await super().report(replace(attempt, outcomes=outcomes))


class BelievesAnyToken(Variants):
    """A process that lost its lease may report all the same."""

    found_as = r"delivered .* times|nothing will ever look|never delivered|refunded|was never finished"
    found_from = 732

    @staticmethod
    def run_unit() -> Callable[[Connection, Sequence[Any]], list[Any]]:
        runner = UnitRunner(now_us)

        def run(conn: Connection, members: Sequence[Any]) -> list[Any]:
            return runner(conn, [_with_any_token(conn, m) if isinstance(m, Report) else m for m in members])

        return run


def _with_any_token(conn: Connection, member: Report) -> Report:
    here = (queue.c.message_id == member.message_id) & (queue.c.destination == member.attempt.job.destination)
    token = conn.execute(select(queue.c.token).where(here)).scalar()
    if token is None:
        return member
    conn.execute(update(queue).where(here, queue.c.owner.is_(None)).values(owner="a thief"))
    job = replace(member.attempt.job, token=token)
    return replace(member, attempt=replace(member.attempt, job=job))


class ReleasesNothing(Variants):
    """What is given back is not given back."""

    found_as = r"orphaned lease|is stuck"
    found_from = 12

    class outbox(Outbox):  # noqa: N801
        async def release(self, *jobs: Job) -> None:
            return

        def forsake(self, job: Job) -> None:
            return


class ForgetsAccepts(Variants):
    """A commit whose answer was lost is taken for one that did not happen."""

    found_as = r"orphaned lease|is stuck"
    found_from = 6

    class outbox(Outbox):  # noqa: N801
        def doubt_accept(self, message_id: str, *_rest: Any) -> None:
            return


class ForgetsClaims(Variants):
    """A claim whose answer was lost is taken for one that did not happen: its leases have no worker."""

    found_as = r"orphaned lease|is stuck"
    found_from = 17

    class outbox(Outbox):  # noqa: N801
        async def _settle_uncertain(self) -> None:
            self._uncertain_claims.clear()
            await super()._settle_uncertain()


class LooksOnce(Variants):
    """A commit that comes after its caller gave up is not looked for again."""

    found_as = r"orphaned lease|is stuck"
    found_from = 884

    class outbox(Outbox):  # noqa: N801
        async def _settle_uncertain(self) -> None:
            await super()._settle_uncertain()
            self._uncertain.clear()
            self._uncertain_claims.clear()


class KnowsNoCaps(Variants):
    """Senders have no caps."""

    found_as = r"\(cap \d+ in"
    found_from = 2

    class intake(Intake):  # noqa: N801
        def _member(self, *args: Any) -> Accept:
            member = super()._member(*args)
            member.cap_key, member.daily_cap = "", 0
            return member


class SpareNobody(Variants):
    """Who is suppressed is tried all the same."""

    found_as = r"suppressed|charged"
    found_from = 110

    class intake(Intake):  # noqa: N801
        def _hand_over(self, member: Accept, prepared: Any, taken: Taken) -> bool:
            return super()._hand_over(member, prepared, replace(taken, suppressed={}))


class RefundsTwice(Variants):
    """Each refund is booked once more."""

    found_as = r"refunded 2 for 1"
    found_from = 9

    @staticmethod
    def run_unit() -> Callable[[Connection, Sequence[Any]], list[Any]]:
        runner = UnitRunner(now_us)

        def run(conn: Connection, members: Sequence[Any]) -> list[Any]:
            results = runner(conn, members)
            for m, result in zip(members, results, strict=True):
                if isinstance(m, Report) and result and m.may_refund:
                    from hepmaild.storage import credits as money

                    purse = money.lock(conn, [m.account_id])[m.account_id]
                    money.save(conn, [purse], [purse.book(1, "refund", now_us(), message_id=m.message_id)])
            return results

        return run


class ChargesNothing(Variants):
    """One recipient of each message is free."""

    found_as = r"ledger of .* does not hold"

    @staticmethod
    def run_unit() -> Callable[[Connection, Sequence[Any]], list[Any]]:
        runner = UnitRunner(now_us)

        def run(conn: Connection, members: Sequence[Any]) -> list[Any]:
            results = runner(conn, members)
            for m in members:
                if isinstance(m, Accept):
                    conn.exec_driver_sql("UPDATE ledger SET amount = amount + 1 WHERE message_id = ?", (m.message_id,))
            return results

        return run


class NeverRests(Variants):
    """There is always something due, now."""

    found_as = r"busy loop"
    found_from = 2

    class outbox(Outbox):  # noqa: N801
        async def claim(self, limit: int, **more: Any) -> Claim:
            return Claim((await super().claim(limit, **more)).jobs, now_us())


class LooksAwayFromOne(Variants):
    """What waits on the first route is never claimed."""

    found_as = r"though all was calm"
    found_from = 7

    class outbox(Outbox):  # noqa: N801
        async def claim(self, limit: int, *, exclude: Collection[str] = (), **more: Any) -> Claim:
            return await super().claim(limit, exclude=(*exclude, "r0"), **more)


class AcceptsTwice(Variants):
    """A caller's word is forgotten at once."""

    found_as = r"was accepted 2 times"
    found_from = 1

    class intake(Intake):  # noqa: N801
        def _word(self, *_args: Any) -> tuple[str | None, int]:
            return None, 0


class SaysSentTooEarly(Variants):
    """What is deferred is reported as delivered."""

    found_as = r"was never delivered"
    found_from = 2

    class outbox(Outbox):  # noqa: N801
        async def report(self, attempt: Attempt) -> bool:
            outcomes = tuple(
                replace(o, result=Result.DELIVERED, retry_at_us=None) if o.result is Result.DEFERRED else o
                for o in attempt.outcomes
            )
            return await super().report(replace(attempt, outcomes=outcomes))


MUTANTS = (
    MarksNothing,
    DoubtsNothing,
    BelievesAnyToken,
    ReleasesNothing,
    ForgetsAccepts,
    ForgetsClaims,
    LooksOnce,
    KnowsNoCaps,
    SpareNobody,
    RefundsTwice,
    ChargesNothing,
    NeverRests,
    LooksAwayFromOne,
    AcceptsTwice,
    SaysSentTooEarly,
)
