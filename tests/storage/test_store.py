# SPDX-License-Identifier: Apache-2.0
"""The store on both engines: what is promised to its callers."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from hepmaild.errors import StoreUnavailable
from hepmaild.storage import announce
from hepmaild.storage.store import Store, StoreLocked, parse_url
from tests.peers.cancelling import Cut, at_each_cut
from tests.storage.conftest import Journal, Opener, debit, keep, open_impatient, outside, until_it_works, words

DEADLINE_S = 120


async def test_writes_are_read(store: Store) -> None:
    assert await store.write(debit, 30) == 70
    assert await store.write(debit, 80) is None
    assert await store.read(lambda conn: conn.execute(text("select credits from t_purse")).scalar_one()) == 70


async def test_reads_cannot_write(store: Store) -> None:
    with pytest.raises((DBAPIError, StoreUnavailable)):
        await store.read(keep, "no")
    assert await store.read(words) == set()


async def test_a_read_sees_one_snapshot(store: Store, database_url: str, tmp_path: Path) -> None:
    def look(conn: Connection) -> tuple[set[str], set[str]]:
        before = words(conn)
        outside(database_url, tmp_path, "insert into t_note values ('between', 0)")
        return before, words(conn)

    before, after = await store.read(look)
    assert before == after == set()
    assert await store.read(words) == {"between"}


async def test_what_fn_raises_rolls_back_and_arrives(store: Store) -> None:
    def fail(conn: Connection) -> None:
        keep(conn, "gone")
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await store.write(fail)
    assert await store.read(words) == set()


async def test_a_constraint_is_no_store_failure(store: Store) -> None:
    await store.write(keep, "once")
    with pytest.raises(IntegrityError):
        await store.write(keep, "once")
    assert await store.write(keep, "twice") == "twice"


async def test_members_that_arrive_together_are_committed_together(store: Store, journal: Journal) -> None:
    results: list[object] = []

    async def one(n: int) -> None:
        results.append(await store.submit(f"word {n}"))

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for n in range(500):
                nursery.start_soon(one, n)
    assert Counter(results) == Counter(("kept", f"word {n}") for n in range(500))
    assert await store.read(words) == {f"word {n}" for n in range(500)}
    assert len(journal.units) < 20
    assert max(map(len, journal.units)) <= 200
    assert store.members == 500
    assert store.waiting == 0


async def test_refusal_and_poison_fail_alone(store: Store) -> None:
    results: dict[str, object] = {}

    async def one(word: str) -> None:
        try:
            results[word] = await store.submit(word)
        except ValueError as error:
            results[word] = error

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for word in ("a", "refuse me", "poison", "b", "poison too", "c"):
                nursery.start_soon(one, word)
    assert isinstance(results["poison"], ValueError)
    assert isinstance(results["poison too"], ValueError)
    assert results["refuse me"] == ("refused", "refuse me")
    assert await store.read(words) == {"a", "b", "c"}


async def test_a_wrong_number_of_results_commits_nothing(opener: Opener) -> None:
    def careless(conn: Connection, members: list[str]) -> list[str]:
        keep(conn, members[0])
        return []

    async with opener(careless, tables=True) as store:
        with pytest.raises(RuntimeError, match="0 results for 1 members"):
            await store.submit("a")
        assert await store.read(words) == set()


@pytest.mark.parametrize("how", ["submit", "write", "write_soon", "write_idly"])
async def test_cancelled_at_any_moment_python_knows_what_was_committed(store: Store, how: str) -> None:
    """Saw a result <=> committed; no third thing (t6 and t17b showed it without a shield)."""
    seen: set[str] = set()
    number = 0

    async def one() -> None:
        word = f"{how} {number}"
        if how == "submit":
            await store.submit(word)
        else:
            await {"write": store.write, "write_soon": store.write_soon, "write_idly": store.write_idly}[how](
                keep, word
            )
        seen.add(word)

    async def check(cut: Cut) -> None:
        nonlocal number
        number += 1
        assert await store.read(words) == seen
        assert store.waiting == 0

    await at_each_cut(one, check, everybody=True)
    assert 0 < len(seen) < number
    assert await store.submit("still works")


async def test_concurrent_debits_never_go_below_zero(store: Store) -> None:
    balances: list[int | None] = []

    async def one() -> None:
        balances.append(await store.write(debit, 7))

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(one)
    assert sorted(b for b in balances if b is not None) == list(range(2, 100, 7))


async def test_a_cancelled_read_leaves_the_store_whole(store: Store) -> None:
    slow = (
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000000) select max(i) from n"
        if store.is_sqlite
        else "select pg_sleep(30)"
    )
    with trio.fail_after(DEADLINE_S):
        for _ in range(12):
            with trio.move_on_after(0.02) as scope:
                await store.read(lambda conn: conn.execute(text(slow)).all())
            assert scope.cancelled_caught
        assert await store.read(words) == set()


async def test_a_read_that_is_cancelled_at_any_moment_keeps_no_connection(store: Store) -> None:
    async def check(cut: Cut) -> None:
        assert cut.result == (set() if cut.is_whole else None)

    with trio.fail_after(DEADLINE_S):
        await at_each_cut(lambda: store.read(words), check, everybody=True)
        async with trio.open_nursery() as nursery:
            for _ in range(20):  # more than there are connections, or threads that read
                nursery.start_soon(store.read, words)


async def test_too_slow_is_unavailable_and_passes(opener: Opener) -> None:
    async with opener(tables=True):
        pass
    with trio.fail_after(DEADLINE_S):
        async with open_impatient(opener) as store:
            slow = (
                "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
                if store.is_sqlite
                else "select pg_sleep(30)"
            )
            with pytest.raises(StoreUnavailable):
                await store.write(lambda conn: conn.execute(text(slow)).all())
            with pytest.raises(StoreUnavailable):
                await store.read(lambda conn: conn.execute(text(slow)).all())
            assert await until_it_works(partial(store.write, debit, 0)) == 100
            assert await until_it_works(partial(store.submit, "refuse")) == ("refused", "refuse")


async def test_check_commits(store: Store) -> None:
    await store.check()


async def test_announcements_reach_other_processes_only(opener: Opener) -> None:
    async with opener(exclusive=True) as daemon, daemon.announcements() as heard, opener(exclusive=False) as command:
        with trio.fail_after(DEADLINE_S):
            if not daemon.is_sqlite:
                assert await anext(heard) == announce.RESYNC  # listening from here on
            await daemon.announce("own")
            await command.announce("keys")
            assert await anext(heard) == "keys"
        with pytest.raises(ValueError, match="no topic"):
            await command.announce("two words")


async def test_a_second_opener_writes_while_the_daemon_serves(opener: Opener) -> None:
    async with opener(tables=True) as daemon, opener(exclusive=False) as command:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for n in range(20):
                    nursery.start_soon(daemon.submit, f"daemon {n}")
                    nursery.start_soon(command.write, keep, f"command {n}")
        assert len(await daemon.read(words)) == 40


async def test_what_the_block_raises_comes_out_as_it_was(opener: Opener) -> None:
    with pytest.raises(KeyError):
        async with opener():
            raise KeyError("mine")


async def test_everything_is_there_after_reopening(opener: Opener) -> None:
    async with opener(tables=True) as store:
        await store.submit("a")
        await store.write(debit, 1)
    async with opener() as store:
        assert await store.read(words) == {"a"}
        assert await store.write(debit, 0) == 99


async def test_a_closed_store_says_so(opener: Opener) -> None:
    async with opener(tables=True) as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.submit("late")


async def test_two_daemons_never_serve_one_sqlite(opener: Opener, database_url: str) -> None:
    async with opener():
        if database_url.startswith("sqlite"):
            with pytest.raises(StoreLocked, match="another hepmaild"):
                async with opener():
                    pass
        else:
            async with opener():
                pass


@pytest.mark.parametrize("url", ["nonsense", "mysql://a/b", "sqlite://", "sqlite:///:memory:", "://u:secret@h"])
def test_bad_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError, match=r"database\.url") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_a_topic_is_a_word() -> None:
    assert announce.check_topic("message:0123456789abcdef") == "message:0123456789abcdef"
    for bad in ("", "a b", "a\n", "ä", "x" * 201, "*"):
        with pytest.raises(ValueError, match="no topic"):
            announce.check_topic(bad)


async def test_an_inbox_merges_and_is_bounded() -> None:
    inbox = announce.Inbox()
    for topic in ("a", "b", "a"):
        inbox.put(topic)
    assert [await anext(inbox), await anext(inbox)] == ["a", "b"]
    for n in range(announce.MAX_PENDING + 5):
        inbox.put(f"t{n}")
    assert await anext(inbox) == announce.RESYNC


async def test_a_long_folder_name_still_has_its_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    hub = announce.Hub()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery, hub.listen() as heard:
            await nursery.start(announce.serve_datagrams, folder, hub)
            assert (folder / announce.SOCKET_NAME).stat().st_mode & 0o777 == 0o600
            announce.send_datagram(folder, "queue")
            assert await anext(heard) == "queue"
            nursery.cancel_scope.cancel()
    announce.send_datagram(folder, "nobody")
