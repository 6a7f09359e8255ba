# SPDX-License-Identifier: Apache-2.0
"""Money with chaos keys mixed in: only ordinary messages are paid for and refunded, whatever becomes of either."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from hepmaild.delivery.job import Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.chaos import KINDS, is_chaos, kind_of, route_of
from hepmaild.mail.reply import Reply
from hepmaild.mail.submission import RateState
from hepmaild.storage import claim, keys, queue, suppress
from hepmaild.storage import credits as money
from hepmaild.storage.accept import Accept, Taken
from tests.storage.books import HOUR_US, Books, mint_key, open_books
from tests.storage.conftest import Opener

GRANTED = 12
ENDS = ("delivered", "failed", "some", "expired", "cancelled", "waits")


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener, credits_granted=GRANTED) as opened:
        yield opened


def test_what_a_chaos_route_is() -> None:
    for kind in KINDS:
        assert kind_of(route_of(kind)) == kind
        assert is_chaos(route_of(kind))
    for route in ("upstream", "chaos", "greylist", ""):
        assert kind_of(route) == ""
        assert not is_chaos(route)
    assert kind_of("chaos:of another version") == ""
    assert is_chaos("chaos:of another version"), "it cost nothing either"


def send(books: Books, kind: str, recipients: int) -> Accept:
    addresses = [f"r{n}@example.net" for n in range(recipients)]
    return books.accept(*addresses, route=route_of(kind) if kind else "up")


async def end(books: Books, member: Accept, how: str) -> int:
    """Bring a message to its end; how many of its recipients got nothing."""
    count = len(member.recipients)
    if how == "cancelled":
        done = await books.store.write(queue.cancel, member.message_id, books.clock.us)
        assert done["cancelled"] == count
        assert done["refunded"] == (0 if is_chaos(member.route) else count)
        return count
    if how in {"delivered", "failed", "some"}:
        worst = Result.DELIVERED if how == "delivered" else Result.FAILED
        results = [worst, *[Result.DELIVERED if how == "some" else worst] * (count - 1)]
        assert await books.store.submit(books.report(member, *results))
        return results.count(Result.FAILED)
    await books.store.submit(books.report(member, *[Result.DEFERRED] * count))
    return 0  # it waits, and may expire later


@pytest.mark.parametrize("seed", range(5))
async def test_books_add_up(books: Books, seed: int) -> None:
    """What a model says is left, whatever was sent by which kind of key, and whatever became of it.

    `test_queue_play` has more of it, for lives that processes, operators and lost leases have a part in.
    """
    dice = random.Random(seed)
    for _ in range(4):
        await live(books, dice)


async def live(books: Books, dice: random.Random) -> None:
    expected, accepted, waiting = await top_up(books), [], []
    for _ in range(dice.randrange(12)):
        kind, recipients, how = dice.choice(["", *KINDS]), dice.randint(1, 4), dice.choice(ENDS)
        member = send(books, kind, recipients)
        if how == "expired":
            member = replace(member, expires_at_us=books.clock.us + HOUR_US // 2)
        taken = await books.store.submit(member)
        if not kind and recipients > expected:
            assert isinstance(taken, Refusal)
            assert taken.kind is ErrorKind.INSUFFICIENT_CREDITS
            continue
        assert isinstance(taken, Taken)
        price = 0 if kind else 1
        accepted.append(member)
        expected -= price * recipients
        assert taken.balance == expected
        expected += price * await end(books, member, how)
        if how in {"expired", "waits"}:
            waiting.append(member)
    books.clock.us += HOUR_US
    await books.store.write(claim.expire, books.clock.us, 0, 1000)
    for member in waiting:
        if member.expires_at_us > books.clock.us:
            await books.store.write(queue.cancel, member.message_id, books.clock.us)
    expected += sum(m.price * len(m.recipients) for m in waiting)
    assert await books.store.read(money.balance, books.account_id) == expected
    assert await books.store.read(money.verify, books.account_id) is None
    booked = {row["message_id"] for row in await books.store.read(money.history, books.account_id)}
    for member in accepted:
        assert (member.message_id in booked) is not is_chaos(member.route)


async def top_up(books: Books) -> int:
    """The account has this again."""
    left = await books.store.read(money.balance, books.account_id)
    if left != GRANTED:
        by: dict[str, Any] = {"granted_by": "a test", "note": None, "now_us": books.clock.us}
        await books.store.write(lambda conn: money.grant(conn, books.account_id, GRANTED - left, **by))
    return GRANTED


async def test_without_a_credit_a_chaos_key_sends(books: Books) -> None:
    identity = replace(books.identity, chaos="5xx")
    for _ in range(GRANTED):
        assert isinstance(await books.store.submit(send(books, "", 1)), Taken)
    assert isinstance(await books.store.submit(books.call(recipients=0)), RateState)
    member = replace(send(books, "5xx", 3), key=identity)
    assert await books.store.submit(member) == Taken(token=1, balance=0)
    refused = await books.store.submit(send(books, "", 1))
    assert isinstance(refused, Refusal)


async def test_it_counts_in_the_day_of_the_plan(books: Books) -> None:
    assert isinstance(await books.store.submit(replace(send(books, "4xx", 1), messages_per_day=1)), Taken)
    refused = await books.store.submit(replace(send(books, "4xx", 1), messages_per_day=1))
    assert isinstance(refused, Refusal)
    assert refused.kind is ErrorKind.DAILY_LIMIT_REACHED


async def test_it_says_nothing_of_an_address(books: Books) -> None:
    """Neither do its refusals suppress, nor its deliveries forget; and whom a real hop refused it may be sent to."""
    rule = suppress.Rule(after=1, for_us=HOUR_US)

    async def report(route: str, result: Result) -> None:
        member = replace(books.accept("a@example.net"), route=route)
        assert isinstance(await books.store.submit(member), Taken)
        made = replace(books.report(member, result), rule=rule)
        gone = Reply(550, "5.1.1", "no such user") if result is Result.FAILED else Reply(250, "2.0.0", "fine")
        outcome = replace(made.attempt.outcomes[0], reply=gone)
        await books.store.submit(replace(made, attempt=replace(made.attempt, outcomes=(outcome,))))

    async def suppressed() -> int:
        return len(await books.store.read(suppress.list_of, books.account_id, books.clock.us))

    await report(route_of("5xx"), Result.FAILED)
    assert await suppressed() == 0
    await report("up", Result.FAILED)
    assert await suppressed() == 1
    await report(route_of("greylist"), Result.DELIVERED)
    assert await suppressed() == 1


async def test_a_chaos_key_stays_one(books: Books) -> None:
    def change(key_id: str, chaos: str | None) -> Any:
        return lambda conn: keys.change(
            conn,
            key_id,
            name=key_id,
            permissions=None,
            senders=None,
            addresses=None,
            expires_at_us=None,
            now_us=books.clock.us,
            chaos=chaos,
        )

    with pytest.raises(keys.Refused, match="no chaos called 'fire'"):
        await books.store.write(mint_key, books, "key-2", chaos="fire")
    await books.store.write(mint_key, books, "key-2", chaos="5xx")
    assert await books.store.write(change("key-2", "greylist")) == {"chaos": ["5xx", "greylist"]}
    assert await books.store.write(change("key-2", None)) == {}, "it stays what it is"
    with pytest.raises(keys.Refused, match="cannot become a chaos key"):
        await books.store.write(change("key-1", "5xx"))
    assert await books.store.read(lambda conn: conn.execute(text("SELECT count(*) FROM api_key")).scalar_one()) == 2
