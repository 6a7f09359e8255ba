# SPDX-License-Identifier: Apache-2.0
"""Suppression: what counts, until when, and that a send to a suppressed address says so and costs nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from hepmaild.delivery.job import Attempt, Job, JobRecipient, Outcome, Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.mail.reply import Reply
from hepmaild.storage import credits as money
from hepmaild.storage import log, queue, suppress
from hepmaild.storage.accept import Accept, Taken, Twin
from hepmaild.storage.suppress import Rule
from hepmaild.storage.unit import Report, UnitRunner
from tests.storage.books import HOUR_US, START_US, Books, open_books
from tests.storage.conftest import Opener

DAY_US = 24 * HOUR_US
RULE = Rule(after=2, for_us=10 * DAY_US)
BAD, GOOD = "Bad@Example.net", "good@example.net"


@pytest.fixture
async def books(opener: Opener) -> AsyncIterator[Books]:
    async with open_books(opener) as opened:
        yield opened


def unknown() -> Reply:
    return Reply(550, "5.1.1", "no such user")


async def send(books: Books, *addresses: str) -> Accept:
    member = books.accept(*addresses)
    assert isinstance(await books.store.submit(member), Taken)
    return member


async def report(books: Books, member: Accept, *replies: Reply | None, rule: Rule = RULE) -> None:
    """What the next hop said to each recipient; None: delivered."""
    to = tuple(JobRecipient(n, r.address) for n, r in enumerate(member.recipients))
    outcomes = tuple(
        Outcome(n, Result.DELIVERED if reply is None else Result.FAILED, reply) for n, reply in enumerate(replies)
    )
    job = Job(member.message_id, member.account_id, "up", "x", to, 1, 1, False, member.at_us, member.expires_at_us)
    attempt = Attempt(job, books.clock.us, books.clock.us, "", "", "", (), outcomes)
    assert await books.store.submit(Report(attempt, "", member.account_id, "{}", 0, rule))


async def refuse(books: Books, times: int, reply: Reply | None = None, address: str = BAD) -> None:
    for _ in range(times):
        await report(books, await send(books, address), reply or unknown())


async def listed(books: Books) -> list[dict[str, Any]]:
    return await books.store.read(suppress.list_of, books.account_id, books.clock.us)


async def test_an_address_refused_twice_is_suppressed_until_a_visible_date(books: Books) -> None:
    await refuse(books, 1)
    assert await listed(books) == []
    await refuse(books, 1)
    (row,) = await listed(books)
    assert (row["address"], row["refusals"], row["suppressed_until_at"]) == (BAD, 2, START_US + 10 * DAY_US)
    assert row["last_reply"] == "550 5.1.1 no such user"


async def test_a_purse_says_whether_anything_may_be_suppressed(books: Books) -> None:
    async def purse() -> money.Purse:
        purses: dict[str, money.Purse] = await books.store.write(money.lock, [books.account_id])
        return purses[books.account_id]

    assert (await purse()).suppresses is False  # SQLite would say 0
    await refuse(books, 2)
    assert (await purse()).suppresses is True


async def test_a_send_to_it_says_so_and_costs_nothing(books: Books) -> None:
    await refuse(books, 2)
    before = await books.store.read(money.balance, books.account_id)
    rows = len(await books.store.read(money.history, books.account_id))
    member = books.accept("bad@example.NET", word="w:again", word_life_us=DAY_US, fingerprint=b"f" * 32)
    for _ in range(2):  # its idempotency word is free again
        member = replace(member, message_id=f"{_:016x}")
        result = await books.store.submit(member)
        assert isinstance(result, Refusal)
        assert result.kind is ErrorKind.RELAY_FAILED
        assert result.to_reply() == Reply(
            550, "5.1.1", "suppressed until 2027-01-25T08:00:00Z: refused 2 times; last: 550 5.1.1 no such user"
        )
        assert "Nothing was charged" in result.message
    assert await books.store.read(money.balance, books.account_id) == before == 100
    assert len(await books.store.read(money.history, books.account_id)) == rows
    shown = await books.store.read(log.show, member.message_id)
    assert shown["state"] == "failed"
    assert shown["ledger"] == []
    assert [event["kind"] for event in shown["events"]] == ["suppressed"]
    (recipient,) = shown["recipients"]
    assert recipient["state"] == "failed"
    assert "suppressed until" in recipient["last_reply"]
    with pytest.raises(ValueError, match="is final"):
        await books.store.write(queue.cancel, member.message_id, books.clock.us)


async def test_the_other_recipients_go_on_and_are_paid_for(books: Books) -> None:
    await refuse(books, 2)
    member = books.accept(BAD, GOOD)
    taken = await books.store.submit(member)
    assert isinstance(taken, Taken)
    assert list(taken.suppressed) == [0]
    assert taken.balance == 99
    to = (JobRecipient(1, GOOD),)
    job = Job(member.message_id, member.account_id, "up", "x", to, 1, 1, False, member.at_us, member.expires_at_us)
    outcome = Outcome(1, Result.DELIVERED, Reply(250, "2.0.0", "fine"))
    attempt = Attempt(job, books.clock.us, books.clock.us, "", "", "", (), (outcome,))
    assert await books.store.submit(Report(attempt, "", member.account_id, "{}", 0, RULE))
    shown = await books.store.read(log.show, member.message_id)
    assert shown["state"] == "failed"
    assert shown["finished_at"] is not None
    assert [r["state"] for r in shown["recipients"]] == ["failed", "sent"]
    assert await books.store.read(money.balance, books.account_id) == 99
    assert await books.store.read(money.verify, books.account_id) is None


async def test_in_one_unit_everybody_gets_what_is_his(books: Books) -> None:
    """Refused, suppressed in part, behind a cap, a twin of one of them or nothing of it: all in one commit."""
    await refuse(books, 2)
    before = await books.store.read(money.balance, books.account_id)

    def tell(member: Accept, taken: Taken) -> str:
        return f"{member.message_id} {sorted(taken.suppressed)} {taken.turn is not None}"

    def with_word(member: Accept, word: str) -> Accept:
        return replace(member, word=word, word_life_us=DAY_US, fingerprint=b"f" * 32, tell=tell)

    capped: dict[str, Any] = {"cap_key": "|app@example.com", "daily_cap": 1}
    nobody, dear, plain = books.accept(BAD), books.accept(*[f"r{n}@x.example" for n in range(101)]), books.accept()
    partly, first = with_word(books.accept(BAD, GOOD), "w:1"), with_word(books.accept(**capped), "w:2")
    second, last = with_word(books.accept(GOOD, BAD, **capped), "w:3"), books.accept()
    twins = [with_word(books.accept(), f"w:{n}") for n in (1, 2, 3)]
    run = UnitRunner(books.clock.now_us)
    members = [nobody, plain, partly, dear, first, twins[0], second, twins[1], twins[2], last]
    results = await books.store.write(run, members)
    kinds = [r.kind if isinstance(r, Refusal) else type(r) for r in results]
    poor = ErrorKind.INSUFFICIENT_CREDITS
    assert kinds == [ErrorKind.RELAY_FAILED, Taken, Taken, poor, Taken, Twin, Taken, Twin, Twin, Taken]
    taken = {
        m.message_id: (sorted(r.suppressed), r.turn is not None)
        for m, r in zip(members, results, strict=True)
        if isinstance(r, Taken)
    }
    states = {}
    for member in (plain, partly, first, second, last):
        shown = await books.store.read(queue.show, member.message_id)
        states[member.message_id] = [r["state"] for r in shown["recipients"]]
    assert [(taken[m.message_id], states[m.message_id]) for m in (plain, partly, first, second, last)] == [
        (([], False), ["queued"]),
        (([0], False), ["failed", "queued"]),
        (([], False), ["queued"]),
        (([1], True), ["capped", "failed"]),
        (([], False), ["queued"]),
    ]
    assert await books.store.read(money.balance, books.account_id) == before - 5
    # Whoever asks again is told the same, in this commit and ever after.
    told = [f"{partly.message_id} [0] False", first.answer, f"{second.message_id} [1] True"]
    later = [await books.store.submit(twin) for twin in twins]
    assert [r.answer for r in (results[5], results[7], results[8], *later)] == told * 2


async def test_what_goes_to_suppressed_recipients_only_is_not_queued(books: Books) -> None:
    await refuse(books, 2)
    member = books.accept(BAD, "a@x.test", destinations=("example.net", "x.test"))
    assert isinstance(await books.store.submit(member), Taken)
    assert await books.store.read(queue.count_waiting) == 1


async def test_the_balance_is_only_asked_for_what_is_charged(books: Books) -> None:
    await refuse(books, 2)
    await books.store.write(money.grant, books.account_id, -99, granted_by="x", note=None, now_us=books.clock.us)
    call = await books.store.submit(books.call(recipients=2))
    assert not isinstance(call, Refusal)
    refused = await books.store.submit(books.accept("a@x.test", "b@x.test"))
    assert isinstance(refused, Refusal)
    assert refused.kind is ErrorKind.INSUFFICIENT_CREDITS
    assert isinstance(await books.store.submit(books.accept(BAD, GOOD)), Taken)


async def test_one_success_forgets_the_count(books: Books) -> None:
    await refuse(books, 1)
    await report(books, await send(books, BAD), None)
    await refuse(books, 1)
    assert await listed(books) == []


async def test_it_ends_by_itself_and_counts_anew(books: Books) -> None:
    await refuse(books, 2)
    books.clock.us += 10 * DAY_US
    assert await listed(books) == []
    await refuse(books, 1)
    assert await listed(books) == []
    await refuse(books, 1)
    assert len(await listed(books)) == 1


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        (unknown(), True),
        (Reply(550, "5.1.3", "bad syntax"), True),
        (Reply(551, "5.1.6", "moved"), True),
        (Reply(556, "5.1.10", "null MX"), True),
        (Reply(550, "5.1.10", "recipient not found"), True),
        (Reply(550, "5.1.2", "no such domain"), False),
        (Reply(550, "5.7.1", "spam"), False),
        (Reply(550, "", "no"), False),
        (Reply(552, "5.2.2", "mailbox full"), False),
    ],
)
async def test_only_what_speaks_about_the_address_counts(books: Books, reply: Reply, counts: bool) -> None:
    """RFC 3463 §3.2, RFC 7505."""
    await refuse(books, 2, reply)
    assert bool(await listed(books)) is counts


@pytest.mark.parametrize("at_the_dot", [unknown(), Reply(550, "5.1.10", "recipient not found")])
async def test_one_answer_for_several_says_nothing_about_one(books: Books, at_the_dot: Reply) -> None:
    for _ in range(3):
        await report(books, await send(books, BAD, GOOD), at_the_dot, at_the_dot)
    assert await listed(books) == []


async def test_a_domain_without_mail_says_it_of_every_address(books: Books) -> None:
    """RFC 7505."""
    null_mx = Reply(556, "5.1.10", "takes no mail")
    for _ in range(2):
        await report(books, await send(books, "a@null.example", "b@null.example"), null_mx, null_mx)
    assert {row["address"] for row in await listed(books)} == {"a@null.example", "b@null.example"}


async def test_zero_refusals_never_suppress(books: Books) -> None:
    for _ in range(4):
        await report(books, await send(books, BAD), unknown(), rule=Rule(0, DAY_US))
    assert await listed(books) == []


async def test_it_is_lifted_and_added_by_hand(books: Books) -> None:
    await refuse(books, 2)
    assert (await books.store.write(suppress.lift, books.account_id, "BAD@example.net", books.clock.us))["lifted"]
    await send(books, BAD)
    with pytest.raises(ValueError, match="is not suppressed"):
        await books.store.write(suppress.lift, books.account_id, BAD, books.clock.us)
    until_us = books.clock.us + DAY_US
    arguments = {"until_us": until_us, "reason": "asked to be left alone", "now_us": books.clock.us}
    await books.store.write(suppress.add, books.account_id, GOOD, **arguments)
    await books.store.write(suppress.add, books.account_id, GOOD, **arguments)
    result = await books.store.submit(books.accept(GOOD))
    assert isinstance(result, Refusal)
    assert result.to_reply().text == "suppressed until 2027-01-16T08:00:00Z: asked to be left alone"


async def test_another_account_sends_to_it(books: Books) -> None:
    await refuse(books, 2)
    assert await books.store.read(suppress.find, "account-2", [BAD.casefold()], books.clock.us) == {}


async def test_what_is_over_is_pruned(books: Books) -> None:
    await refuse(books, 2)
    await refuse(books, 1, address=GOOD)
    assert await books.store.write(suppress.prune, books.clock.us + 10 * DAY_US - 1) == 0
    assert await books.store.write(suppress.prune, books.clock.us + 10 * DAY_US) == 2
