# SPDX-License-Identifier: Apache-2.0
"""What answers mean, as tables; when to try again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.delivery.client import Envelope, Failed, Stage, Transaction
from hepmaild.delivery.job import Result
from hepmaild.delivery.outcome import MAX_HINT_S, MIN_HINT_S, Kind, Verdict, classify, deferred, judge, retry_hint_s
from hepmaild.mail.reply import Reply
from hepmaild.mail.schedule import retry_at_us, retry_delay_s

OK = Reply(250, "2.0.0", "ok")
GO = Reply(354, "", "go")
NO = Reply(550, "5.1.1", "no")
LATER = Reply(451, "4.3.0", "later")


def one(
    *,
    mail: Reply | None = OK,
    rcpt: Reply | None = OK,
    data: Reply | None = GO,
    dot: Reply | None = None,
    dot_is_out: bool = True,
    failure: Failed | None = None,
) -> Result:
    transaction = Transaction(Envelope("s@x", ("a@x",), 1), [None], [rcpt], mail, data, dot, dot_is_out)
    return judge(transaction, failure)[0].result


@pytest.mark.parametrize(
    ("dot", "result"),
    [
        (OK, Result.DELIVERED),
        (Reply(251, "", "x"), Result.DELIVERED),
        (LATER, Result.DEFERRED),
        (Reply(421, "", "bye"), Result.DEFERRED),
        (NO, Result.FAILED),
        (Reply(552, "", "quota"), Result.FAILED),
        (Reply(300, "", "?"), Result.IN_DOUBT),
        (Reply(354, "", "more"), Result.IN_DOUBT),
        (Reply(399, "", "?"), Result.IN_DOUBT),
        (Reply(400, "", "later"), Result.DEFERRED),
        (None, Result.IN_DOUBT),
    ],
)
def test_the_answer_to_the_dot(dot: Reply | None, result: Result) -> None:
    """RFC 5321 §4.2.1, §6.1."""
    assert one(dot=dot) is result
    assert one(dot=dot, failure=Failed(Stage.DOT, None, "lost")) is result


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (NO, Result.FAILED),
        (LATER, Result.DEFERRED),
        (Reply(421, "", "bye"), Result.DEFERRED),
        (Reply(530, "5.7.0", "log in"), Result.DEFERRED),
        (Reply(535, "5.7.8", "log in"), Result.DEFERRED),
        (Reply(503, "5.5.1", "AUTH first"), Result.DEFERRED),
        (Reply(354, "", "what"), Result.DEFERRED),
    ],
)
def test_refusals_before_the_dot(reply: Reply, result: Result) -> None:
    """RFC 5321 §4.2.1, §4.3.2."""
    assert one(mail=reply, rcpt=None, data=None, dot_is_out=False) is result
    assert one(rcpt=reply, data=None, dot_is_out=False) is result
    if reply.code != 354:
        assert one(data=reply, dot_is_out=False) is result


def test_each_recipient_has_its_own_result() -> None:
    envelope = Envelope("s@x", ("a@x", "b@x", "c@x", "d@x"), 1)
    transaction = Transaction(envelope, [None, None, None, NO], [OK, NO, LATER, None], OK, GO, OK, True)
    results = [verdict.result for verdict in judge(transaction, None)]
    assert results == [Result.DELIVERED, Result.FAILED, Result.DEFERRED, Result.FAILED]


def test_a_lost_connection_keeps_what_was_answered() -> None:
    envelope = Envelope("s@x", ("a@x", "b@x"), 1)
    transaction = Transaction(envelope, [None, None], [NO, None], OK)
    verdicts = judge(transaction, Failed(Stage.RCPT, None, "the connection was lost"))
    assert [verdict.result for verdict in verdicts] == [Result.FAILED, Result.DEFERRED]
    assert str(verdicts[1].reply) == "451 4.4.2 RCPT: the connection was lost"


def test_what_the_peer_said_when_it_left_counts_for_who_has_no_answer() -> None:
    bye = Reply(421, "4.3.2", "shutting down, try again in 300 seconds")
    transaction = Transaction(Envelope("s@x", ("a@x", "b@x"), 1), [None, None], [NO, None], OK)
    verdicts = judge(transaction, Failed(Stage.RCPT, bye, "the connection was lost"))
    assert (verdicts[0].result, verdicts[0].reply) == (Result.FAILED, NO)
    assert (verdicts[1].result, verdicts[1].reply, verdicts[1].hint_s) == (Result.DEFERRED, bye, 300)
    (early,) = judge(Transaction(Envelope("s@x", ("a@x",), 1), [None], [OK], OK), None)
    assert (early.result, str(early.reply)) == (Result.DEFERRED, "451 4.3.0 the transaction ended early")


MANY = Reply(452, "4.5.3", "too many recipients")
SPLIT = Reply(550, "5.5.3", "too many recipients")


def rest_of(rcpt: list[Reply | None]) -> Verdict:
    """The verdict on the last recipient."""
    envelope = Envelope("s@x", tuple(f"r{n}@x" for n in range(len(rcpt))), 1)
    return judge(Transaction(envelope, [None] * len(rcpt), rcpt, OK, GO, OK, True), None)[-1]


@pytest.mark.parametrize("says_many", [MANY, Reply(451, "4.5.3", "x"), Reply(452, "", "x"), Reply(552, "", "x"), SPLIT])
def test_too_many_recipients_go_next(says_many: Reply) -> None:
    """RFC 5321 §4.5.3.1.10, RFC 3463 §3.6."""
    for first in (OK, NO):
        rest = rest_of([first, says_many])
        assert (rest.result, rest.is_next) == (Result.DEFERRED, True)
    assert classify(Stage.RCPT, Reply(552, "", "too many")) is Kind.LATER
    assert classify(Stage.RCPT, Reply(552, "5.2.2", "mailbox full")) is Kind.NEVER


@pytest.mark.parametrize("reply", [Reply(452, "4.3.1", "disk full"), Reply(451, "", "x"), Reply(421, "4.5.3", "x")])
def test_other_trouble_is_not_tried_again_at_once(reply: Reply) -> None:
    assert not rest_of([OK, reply]).is_next


def test_too_many_is_said_of_recipients_only() -> None:
    """After MAIL or DATA it is about the message: the next transaction would end the same."""
    envelope = Envelope("s@x", ("a@x", "b@x"), 1)
    for mail, data in ((MANY, None), (OK, MANY)):
        transaction = Transaction(envelope, [None, None], [OK, OK], mail, data, None, False)
        assert [v.is_next for v in judge(transaction, None)] == [False, False]


@pytest.mark.parametrize("says_many", [MANY, Reply(452, "", "x"), Reply(552, "", "x"), Reply(552, "5.5.3", "x")])
def test_too_many_recipients_when_nobody_was_taken_wait_as_others_do(says_many: Reply) -> None:
    """RFC 5321 §4.5.3.1.10 means the rest of a transaction.  Where nobody went first, the next would end the same."""
    for others in ([], [says_many], [LATER]):
        rest = rest_of([*others, says_many])
        assert (rest.result, rest.hint_s, rest.is_next) == (Result.DEFERRED, None, False)


def test_one_recipient_that_is_too_many_for_good_has_failed() -> None:
    for others in ([], [SPLIT], [LATER]):
        assert rest_of([*others, SPLIT]).result is Result.FAILED


def test_what_may_mean_something_else_does_not_come_back_at_once() -> None:
    for reply in (Reply(452, "4.2.2", "full"), Reply(421, "4.5.3", "x"), Reply(452, "", "try again in 300 seconds")):
        rest = rest_of([OK, reply])
        assert (rest.result, rest.is_next) == (Result.DEFERRED, False)


@pytest.mark.parametrize("stage", [Stage.GREETING, Stage.EHLO, Stage.STARTTLS, Stage.TLS, Stage.AUTH, Stage.CONNECT])
def test_trouble_with_the_route_never_fails_mail(stage: Stage) -> None:
    assert deferred(Failed(stage, Reply(554, "5.0.0", "go away"), "")).result is Result.DEFERRED
    assert 400 <= deferred(Failed(stage, None, "x")).reply.code < 500


@pytest.mark.parametrize("stage", Stage)
def test_every_code_means_something(stage: Stage) -> None:
    kinds = {code: classify(stage, Reply(code, "", "")) for code in range(200, 600)}
    assert [code for code, kind in kinds.items() if kind is Kind.YES] == list(range(200, 300))
    never = {code for code, kind in kinds.items() if kind is Kind.NEVER}
    if stage in (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.CONTENT, Stage.DOT, Stage.LOCAL):
        route = {503, 530, 534, 535, 538} | ({552} if stage is Stage.RCPT else set())
        assert never == set(range(500, 600)) - route
    else:
        assert not never


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Greylisted, see http://postgrey.example/help/x.html; try again in 300 seconds", 300),
        ("Greylisted for 5 minutes", 300),
        ("greylisting in action, please come back in 00:05:00", 300),
        ("please retry after 30s", 30),
        ("try again in 2 hours", 7200),
        ("wait 0 seconds", MIN_HINT_S),
        ("try again in 999999999 seconds", MAX_HINT_S),
        ("try again later", None),
        ("blocked from 192.0.2.30 s", None),
        ("4.2.0 mailbox busy", None),
        ("", None),
    ],
)
def test_hints(text: str, seconds: int | None) -> None:
    assert retry_hint_s(text) == seconds


@given(st.text())
def test_hints_of_anything(text: str) -> None:
    hint = retry_hint_s("try again in " + text)
    assert hint is None or MIN_HINT_S <= hint <= MAX_HINT_S


def test_schedule() -> None:
    schedule = (60, 300, 900)
    assert [retry_delay_s(schedule, n, 0.5) for n in (1, 2, 3, 4, 99)] == [60, 300, 900, 900, 900]
    assert retry_delay_s(schedule, 1, 0.0) == 54
    assert retry_delay_s(schedule, 1, 0.5, hint_s=200) == 210
    with pytest.raises(ValueError, match="counts from 1"):
        retry_delay_s(schedule, 0, 0.0)


def test_attempts_that_came_early_do_not_use_up_the_schedule() -> None:
    schedule = (60, 300, 900)
    ages_s = (0, 53, 54, 323, 324, 100_000)
    assert [retry_delay_s(schedule, 40, 0.5, age_s=age_s) for age_s in ages_s] == [60, 60, 300, 300, 900, 900]
    assert [retry_delay_s(schedule, n, 0.5, age_s=1e6) for n in (1, 2, 3, 4)] == [60, 300, 900, 900]
    assert [round(retry_delay_s(schedule, 40, 0.0, hint_s=s, age_s=2)) for s in (1, 59, 60, 300)] == [810, 810, 60, 300]


def test_a_short_hint_does_not_hold_for_ever() -> None:
    schedule = (60, 300, 900)
    assert [round(retry_delay_s(schedule, n, 0.5, hint_s=1)) for n in (1, 2, 3, 4)] == [1, 1, 900, 900]
    assert retry_delay_s(schedule, 3, 0.0, hint_s=850) == 850  # never earlier than it said
    assert retry_delay_s(schedule, 3, 0.5, hint_s=2000) == 2100


def test_no_attempt_is_planned_past_the_end() -> None:
    assert retry_at_us(1_000_000, 5, 99_000_000) == 6_000_000
    assert retry_at_us(1_000_000, 500, 99_000_000) == 99_000_000
    assert retry_at_us(100_000_000, 500, 99_000_000) == 100_000_000
