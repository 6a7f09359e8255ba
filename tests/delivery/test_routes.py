# SPDX-License-Identifier: Apache-2.0
"""Routes: failover, pace, what is in doubt, expiry, sandboxes that misbehave; on the mock clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from hepmaild.config import DeliverySettings, InDoubt, Misbehaviour, RouteKind, RouteSettings, TlsMode
from hepmaild.delivery.job import Job, JobRecipient, Result
from hepmaild.delivery.pace import Pace
from hepmaild.delivery.route import Route, from_settings
from hepmaild.delivery.sandbox import play
from tests.delivery.peer import Peer, after, hang, hang_up
from tests.delivery.test_pool import EPOCH_US, World, smtp, world

TWO = Route("upstream", RouteKind.SMTP, "first", 25, fallback=(("second", 0), ("third", 2525)))


async def send(w: World, message_id: str) -> None:
    w.pool.offer_nowait(w.queue.add(message_id, leased=True))
    await w.queue.until(lambda: message_id in w.queue.outcomes)


# Failover


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("GREETING", b"421 4.3.2 busy\r\n"),
        ("GREETING", b"554 no\r\n"),
        ("EHLO", b"421 4.3.2 busy\r\n"),
        ("GREETING", hang_up),
    ],
)
async def test_the_next_host_takes_over(autojump_clock: MockClock, verb: str, answer: object) -> None:
    async with world(TWO) as w:
        w.peers["first"].reactions[verb] = answer  # type: ignore[assignment]
        del w.peers["second"]
        await send(w, "m1")
        assert w.queue.results("m1") == [Result.DELIVERED]
        assert w.reported[0].host == "third:2525"
        assert trio.current_time() < 1


@pytest.mark.parametrize(
    ("answer", "result"), [(b"451 4.7.1 later\r\n", Result.DEFERRED), (b"550 no\r\n", Result.FAILED)]
)
async def test_after_mail_a_host_has_the_last_word(autojump_clock: MockClock, answer: bytes, result: Result) -> None:
    async with world(TWO) as w:
        w.peers["first"].reactions["RCPT"] = answer
        await send(w, "m1")
        assert w.queue.results("m1") == [result]
        assert w.peers["second"].connections == 0


async def test_a_host_that_failed_is_avoided_for_a_while_and_tried_by_one(autojump_clock: MockClock) -> None:
    async with world(replace(TWO, messages_per_connection=1)) as w:
        first = w.peers.pop("first")
        for n in range(10):
            await send(w, f"a{n}")
        assert w.network.dials == 11
        await trio.sleep(31)
        w.network.hanging.add("first")
        for n in range(10):
            w.pool.offer_nowait(w.queue.add(f"b{n}", leased=True))
        await trio.sleep(1)
        assert len(w.queue.outcomes) == 19  # one found out, the others did not wait
        await w.queue.until(lambda: len(w.queue.outcomes) == 20)
        w.network.hanging.clear()
        w.peers["first"] = first
        await trio.sleep(300)
        await send(w, "c")
        await send(w, "d")
        assert len(first.received) == 2
        assert {o.result for outcomes in w.queue.outcomes.values() for o in outcomes} == {Result.DELIVERED}


async def test_all_hosts_down_is_one_trouble(autojump_clock: MockClock) -> None:
    async with world(TWO) as w:
        w.peers.clear()
        for n in range(50):
            w.queue.add(f"m{n}")
        w.pool.wake()
        await trio.sleep(60)
        assert len(w.reported) < 40
        assert "third:2525: connection refused" in str(w.reported[0].outcomes[0].reply)


async def test_a_silent_first_host_leaves_time_for_the_second(autojump_clock: MockClock) -> None:
    async with world(TWO) as w:
        w.peers["first"].reactions["GREETING"] = hang
        await send(w, "m1")
        assert w.queue.results("m1") == [Result.DELIVERED]
        assert trio.current_time() == pytest.approx(60, abs=1)


async def test_a_host_that_gave_a_session_has_all_the_time_for_its_answers(autojump_clock: MockClock) -> None:
    async with world(TWO) as w:
        w.peers["first"].reactions["RCPT"] = after(250, b"250 2.1.5 ok\r\n")
        await send(w, "m1")
        assert w.queue.results("m1") == [Result.DELIVERED]
        assert w.reported[0].host == "first:25"


def test_routes_from_settings() -> None:
    made = from_settings(
        RouteSettings("r", RouteKind.SMTP, host="a", fallback_hosts=("b", "c:26", "[::1]:27"), tls=TlsMode.NONE)
    )
    assert [(host.name, host.port) for host in made.hosts] == [("a", 25), ("b", 25), ("c", 26), ("::1", 27)]
    assert from_settings(RouteSettings("r", RouteKind.MX)).port == 25


# Pace


async def test_the_pace_of_a_route_is_kept_and_others_go_on(autojump_clock: MockClock) -> None:
    async with world(smtp("slow", messages_per_second=2), smtp("other")) as w:
        for n in range(40):
            w.queue.add(f"slow{n}", route="slow")
        w.queue.add("other", route="other")
        w.pool.wake()
        times: list[float] = []
        while len(times) < 40:
            before = len(w.peers["slow"].received)
            await w.queue.changed.wait()
            times += [trio.current_time()] * (len(w.peers["slow"].received) - before)
        assert times[-1] == pytest.approx(19.5, abs=0.1)
        assert all(sum(at <= t < at + 1 for t in times) <= 2 for at in times)
        assert w.queue.results("other") == [Result.DELIVERED]


@pytest.mark.parametrize("attempt_timeout_s", [900, 20])
async def test_a_slow_pace_is_used_however_much_waits_and_whoever_has_room(
    autojump_clock: MockClock, attempt_timeout_s: int
) -> None:
    """No more is claimed than leaves in a minute: leases grow old.  What did so all the same takes nobody's turn."""
    settings = DeliverySettings(attempt_timeout_s=attempt_timeout_s, final_dot_timeout_s=10)
    async with world(smtp("slow", messages_per_second=0.1), smtp("other"), settings=settings) as w:
        for n in range(300):
            w.queue.add(f"m{n:03}", route="slow")
        w.pool.wake()
        await trio.sleep(2999)
        sent = [a.job.message_id for a in w.reported]
        assert sorted(sent) == [f"m{n:03}" for n in range(300)]
        if attempt_timeout_s == 900:
            assert sent == sorted(sent)  # the oldest first
            assert not w.queue.released


@given(st.floats(0.1, 5000), st.lists(st.floats(0, 0.2), max_size=200))
def test_in_no_second_more_leave_than_allowed(rate: float, gaps: list[float]) -> None:
    pace, now, taken = Pace(rate), 0.0, []
    for gap in gaps:
        now += gap
        for _ in range(int(rate)):
            if pace.wait_s(now):
                break
            pace.take()
            taken.append(now)
        if wait_s := pace.wait_s(now):
            now += wait_s
            assert pace.wait_s(now) < 1e-6
    assert all(sum(at <= t < at + 1 for t in taken[n:]) <= rate + 1 for n, at in enumerate(taken[:50]))


@pytest.mark.parametrize("rate", [0.5, 1, 2, 50, 51, 100, 1000])
def test_who_always_has_more_uses_the_pace_up_and_never_goes_beyond(rate: float) -> None:
    pace, now, taken = Pace(rate), 0.0, []
    while now < 5:
        if wait_s := pace.wait_s(now):
            assert wait_s > 1e-6
            now += wait_s
        else:
            pace.take()
            taken.append(now)
    first = 0
    for n, at in enumerate(taken):
        while taken[first] <= at - 1:
            first += 1
        assert n - first + 1 <= max(1, rate)
    assert len(taken) >= int(0.98 * 5 * rate)


async def test_a_route_without_a_limit_any_more_goes_on_at_once(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", messages_per_second=0.01)) as w:
        for n in range(5):
            w.queue.add(f"m{n}")
        w.pool.wake()
        await trio.sleep(1)
        assert len(w.reported) == 1
        w.pool.replace_routes([smtp("upstream")])
        await w.queue.until(lambda: len(w.reported) == 5)
        assert trio.current_time() < 2


# In doubt, expiry, settings, schedule


async def test_whose_turn_came_late_has_the_whole_schedule_before_him(autojump_clock: MockClock) -> None:
    """A next hop that takes one recipient at a time, and greylists the last one."""

    async def one_at_a_time(peer: Peer, line: bytes) -> bytes:
        since_mail = peer.lines[::-1].index(next(x for x in reversed(peer.lines) if x.startswith(b"MAIL")))
        if since_mail > 1:
            return b"452 4.5.3 too many recipients\r\n"
        return b"451 4.7.1 greylisted\r\n" if b"r9@" in line else b"250 ok\r\n"

    async with world() as w:
        w.peer.reactions["RCPT"] = one_at_a_time
        w.pool.offer_nowait(w.queue.add("m1", [f"r{n}@x.example" for n in range(10)], leased=True))
        await w.queue.until(lambda: len(w.reported) == 10)
        assert w.queue.results("m1").count(Result.DELIVERED) == 9
        (last,) = w.reported[-1].outcomes
        assert last.reply is not None
        assert last.reply.enhanced == "4.7.1"
        assert last.retry_at_us == w.reported[-1].ended_at_us + 60_000_000


async def test_in_doubt_is_held_where_the_settings_say_so(autojump_clock: MockClock) -> None:
    async with world(settings=DeliverySettings(in_doubt=InDoubt.HOLD)) as w:
        w.peer.reactions["DOT"] = hang_up
        await send(w, "m1")
        w.peer.reactions.clear()
        await trio.sleep(80_000)
        assert w.queue.results("m1") == [Result.IN_DOUBT]
        assert len(w.peer.received) == 1
        w.pool.take_settings(DeliverySettings())
        w.peer.reactions["DOT"] = hang_up
        await send(w, "m2")
        w.peer.reactions.clear()
        await w.queue.until(lambda: w.queue.messages["m2"].done)
        assert w.queue.results("m2") == [Result.IN_DOUBT, Result.DELIVERED]


async def test_nothing_is_begun_past_its_expiry(autojump_clock: MockClock) -> None:
    async with world(smtp("upstream", connections=1)) as w:
        w.peer.reactions["DOT"] = after(10, b"250 ok\r\n")
        w.pool.offer_nowait(w.queue.add("m1", leased=True))
        w.pool.offer_nowait(w.queue.add("m2", leased=True, life_s=5))
        await w.queue.until(lambda: bool(w.queue.expired))
        assert w.queue.expired == ["m2"]
        assert len(w.peer.received) == 1
        assert trio.current_time() < 12


async def test_workers_that_wait_for_a_slow_dot_are_replaced_and_go_again(autojump_clock: MockClock) -> None:
    async with world(smtp("slow", connections=20), smtp("quick"), settings=DeliverySettings(workers=4)) as w:
        w.peers["slow"].reactions["DOT"] = after(30, b"250 ok\r\n")
        for n in range(20):
            w.queue.add(f"s{n}", route="slow")
        w.pool.wake()
        await trio.sleep(12)
        w.queue.add("q", route="quick")
        w.pool.wake()
        await w.queue.until(lambda: "q" in w.queue.outcomes)
        assert trio.current_time() < 13
        await w.queue.until(lambda: len(w.reported) == 21)
        await trio.sleep(1)
        assert w.pool.active == w.pool.stalled == 0
        assert w.pool._parked.statistics().tasks_waiting == 4
        assert w.pool.figures()["slow"][:2] == (0, 0)


async def test_attempts_that_stalled_and_ended_leave_room_for_others_to_stall(autojump_clock: MockClock) -> None:
    """A slow route keeps the only worker from nobody, however often it was slow before."""
    async with world(smtp("slow"), smtp("other"), settings=DeliverySettings(workers=1)) as w:
        w.peers["slow"].reactions["MAIL"] = after(10, b"250 ok\r\n")
        for n in range(10):
            begun = trio.current_time()
            w.pool.offer_nowait(w.queue.add(f"slow{n}", route="slow", leased=True))
            await trio.sleep(0.5)
            w.pool.offer_nowait(w.queue.add(f"other{n}", route="other", leased=True))
            await w.queue.until(lambda n=n: f"other{n}" in w.queue.outcomes)  # type: ignore[misc]
            assert trio.current_time() - begun < 4
            await w.queue.until(lambda n=n: f"slow{n}" in w.queue.outcomes)  # type: ignore[misc]


async def test_what_ended_quickly_never_counts_as_stalled(autojump_clock: MockClock) -> None:
    async with world() as w:
        for n in range(20):
            await send(w, f"m{n}")
        await trio.sleep(10)
        assert (w.pool.active, w.pool.stalled) == (0, 0)
        w.peer.reactions["MAIL"] = after(1, b"250 ok\r\n")
        await send(w, "last")
        assert w.pool.stalled == 0


async def test_an_idle_pool_sleeps(autojump_clock: MockClock) -> None:
    async with world() as w:
        await send(w, "m1")
        await trio.sleep(100)
        claims = w.queue.claims
        ticks = 0

        class Count(trio.abc.Instrument):
            def task_scheduled(self, task: trio.lowlevel.Task) -> None:
                nonlocal ticks
                ticks += 1

        trio.lowlevel.add_instrument(count := Count())
        await trio.sleep(600)
        trio.lowlevel.remove_instrument(count)
        assert w.queue.claims - claims <= 11
        assert ticks < 100


# The sandbox misbehaves


def sandbox(tmp_path: Path, manner: Misbehaviour, seconds: float = 30) -> Route:
    return Route("sandbox", RouteKind.SANDBOX, directory=str(tmp_path), misbehave=manner, misbehave_s=seconds)


@pytest.mark.parametrize(
    ("manner", "result", "code"),
    [
        (Misbehaviour.TEMPORARY, Result.DEFERRED, 451),
        (Misbehaviour.PERMANENT, Result.FAILED, 550),
        (Misbehaviour.GREYLIST, Result.DEFERRED, 451),
        (Misbehaviour.DROP_AFTER_DOT, Result.IN_DOUBT, 451),
        (Misbehaviour.SLOW_DOT, Result.DELIVERED, 250),
        (Misbehaviour.NONE, Result.DELIVERED, 250),
    ],
)
async def test_sandbox_misbehaves(tmp_path: Path, manner: Misbehaviour, result: Result, code: int) -> None:
    async with world(sandbox(tmp_path, manner, 0.05), state_dir=tmp_path) as w:
        marked: list[Job] = []
        w.queue.on_mark = marked.append
        with trio.fail_after(60):
            w.pool.offer_nowait(w.queue.add("m1", ["a@x.example", "b@x.example"], route="sandbox", leased=True))
            await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [result] * 2
        assert w.reported[0].outcomes[0].reply is not None
        assert w.reported[0].outcomes[0].reply.code == code
        kept = result in {Result.DELIVERED, Result.IN_DOUBT}
        assert (tmp_path / "m1.eml").exists() == kept
        assert bool(marked) == (manner in {Misbehaviour.SLOW_DOT, Misbehaviour.DROP_AFTER_DOT})


async def test_a_dot_that_is_too_slow_is_in_doubt(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with world(sandbox(tmp_path, Misbehaviour.SLOW_DOT, 700), state_dir=tmp_path) as w:
        w.pool.offer_nowait(w.queue.add("m1", route="sandbox", leased=True))
        await w.queue.until(lambda: bool(w.reported))
        assert w.queue.results("m1") == [Result.IN_DOUBT]
        assert trio.current_time() == pytest.approx(600, abs=1)


async def test_a_drain_does_not_wait_for_a_slow_sandbox(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with world(sandbox(tmp_path, Misbehaviour.SLOW_DOT, 500), state_dir=tmp_path) as w:
        w.pool.offer_nowait(w.queue.add("m1", route="sandbox", leased=True))
        await trio.sleep(1)
        w.lifecycle.draining.set()
        await w.done.wait()
        assert w.queue.results("m1") == [Result.IN_DOUBT]
        assert trio.current_time() < 31


def test_greylisting_refuses_who_comes_first_or_too_early() -> None:
    def job(attempts: int) -> Job:
        return Job("m", "a", "r", "", (JobRecipient(0, "a@b.example", attempts),), 1, 1, False, EPOCH_US, EPOCH_US * 2)

    def wait_s(attempts: int, age_s: float) -> int | None:
        part = play(Misbehaviour.GREYLIST, 30, job(attempts), EPOCH_US + int(age_s * 1e6))
        return None if part.refusals is None else part.refusals[0].hint_s

    assert wait_s(0, 0.5) == 30
    assert wait_s(0, 100) == 1
    assert wait_s(1, 20) == 10
    assert wait_s(1, 30) is None


async def test_greylisted_mail_comes_again_when_it_was_told_to(tmp_path: Path) -> None:
    async with world(sandbox(tmp_path, Misbehaviour.GREYLIST, 1), state_dir=tmp_path) as w:
        with trio.fail_after(60):
            w.pool.offer_nowait(w.queue.add("m1", route="sandbox", leased=True))
            await w.queue.until(lambda: w.queue.messages["m1"].done)
        assert w.queue.results("m1") == [Result.DEFERRED, Result.DELIVERED]
        first, second = w.reported
        assert second.started_at_us - first.job.accepted_at_us >= 1_000_000
