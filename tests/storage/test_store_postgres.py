# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL goes away, freezes, cuts connections, and finds deadlocks: what callers see, and that service returns."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from hepmaild.errors import NothingCommitted, StoreUnavailable
from hepmaild.storage import announce, migrate
from hepmaild.storage import postgres as backend
from hepmaild.storage.store import Store
from tests.peers import postgres
from tests.storage.conftest import (
    PATIENCE_S,
    Opener,
    debit,
    keep,
    make_opener,
    open_impatient,
    until_it_works,
    words,
)

DEADLINE_S = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    postgres.require_postgres(own=True)
    with postgres.open_cluster() as opened:
        yield opened


@pytest.fixture
def url(cluster: postgres.Cluster) -> Iterator[str]:
    with postgres.open_database(cluster.server) as opened:
        yield opened


@pytest.fixture
def opener(url: str, tmp_path: Path) -> Opener:
    return make_opener(url, tmp_path)


async def submit_until_it_works(store: Store, word: str) -> None:
    await until_it_works(partial(store.submit, word))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_stopped_and_started_again(opener: Opener, cluster: postgres.Cluster, mode: str) -> None:
    acknowledged: set[str] = set()
    stop = False

    async def load(store: Store, name: int) -> None:
        n = 0
        while not stop:
            n += 1
            try:
                await store.submit(f"{name} {n}")
            except StoreUnavailable:
                await trio.sleep(0.01)
            else:
                acknowledged.add(f"{name} {n}")

    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store, store.announcements() as heard:
            async with trio.open_nursery() as nursery:
                for name in range(8):
                    nursery.start_soon(load, store, name)
                await trio.sleep(0.3)
                await trio.to_thread.run_sync(cluster.stop, mode)
                with trio.fail_after(PATIENCE_S / 3):  # at once: nobody waits for as long as a unit may take
                    for call in (store.submit("x"), store.write(keep, "x"), store.read(words), store.check()):
                        with pytest.raises(StoreUnavailable):
                            await call
                await trio.to_thread.run_sync(cluster.start)
                await submit_until_it_works(store, "back")
                stop = True
            kept = await store.read(words)
            assert acknowledged <= kept
            assert "back" in kept
            await store.check()
            # The listener is back as well.
            assert await anext(heard) == announce.RESYNC
            async with opener(exclusive=False) as other:
                topic = ""
                while topic != "keys":
                    await other.announce("keys")
                    with trio.move_on_after(0.2):
                        topic = await anext(heard)


class Cutter:
    """A way to the server that breaks in the middle of a question, as one whose host came back without its memory."""

    def __init__(self, port: int, listener: trio.SocketListener) -> None:
        self.port = listener.socket.getsockname()[1]
        self._server = port
        self._listener = listener
        self.at = b""  # what a connection must not say
        self.after = b"LISTEN"  # if it has said this before
        self.cut = trio.Event()

    async def run(self) -> None:
        await trio.serve_listeners(self._pass_on, [self._listener])

    async def _pass_on(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", self._server)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, server, client, nursery.cancel_scope)
            said = b""
            with suppress(trio.BrokenResourceError):
                async for octets in client:
                    said += octets
                    if self.at and self.at in octets and self.after in said:
                        self.at = b""
                        self.cut.set()
                        break
                    await server.send_all(octets)
            nursery.cancel_scope.cancel()

    @staticmethod
    async def _answer(server: trio.SocketStream, client: trio.SocketStream, whole: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            async for octets in server:
                await client.send_all(octets)
        whole.cancel()


@pytest.mark.parametrize("word", [b"LISTEN", b"SELECT 1"])
async def test_the_listener_outlives_a_connection_that_breaks_while_it_asks(
    cluster: postgres.Cluster, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: bytes
) -> None:
    monkeypatch.setattr(backend, "LISTEN_PING_S", 0.05)
    async with trio.open_nursery() as nursery:
        (socket,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        cutter = Cutter(cluster.port, socket)
        nursery.start_soon(cutter.run)
        cutter.at = word
        with trio.fail_after(DEADLINE_S):
            by_cutter = url.replace(f":{cluster.port}/", f":{cutter.port}/")
            async with make_opener(by_cutter, tmp_path)(tables=True) as store, store.announcements() as heard:
                await cutter.cut.wait()
                topic = ""
                while topic != "keys":
                    async with make_opener(url, tmp_path)(exclusive=False) as other:
                        await other.announce("keys")
                    with trio.move_on_after(0.2):
                        topic = await anext(heard)
        nursery.cancel_scope.cancel()


async def test_a_commit_without_an_answer_may_have_been_one(
    cluster: postgres.Cluster, url: str, tmp_path: Path
) -> None:
    """Who reads that, at a command line, is not to grant credits twice."""
    async with trio.open_nursery() as nursery:
        (socket,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        cutter = Cutter(cluster.port, socket)
        nursery.start_soon(cutter.run)
        with trio.fail_after(DEADLINE_S):
            by_cutter = url.replace(f":{cluster.port}/", f":{cutter.port}/")
            async with make_opener(by_cutter, tmp_path)(tables=True, exclusive=False) as store:
                cutter.after, cutter.at = b"INSERT", b"COMMIT;"
                with pytest.raises(StoreUnavailable, match="may have been committed all the same") as perhaps:
                    await store.write(keep, "perhaps")
                assert not isinstance(perhaps.value, NothingCommitted)
                assert cutter.cut.is_set()
                cutter.after, cutter.at = b"BEGIN", b"INSERT"
                assert await store.write(keep, "certainly") == "certainly", "tried again, since nothing was committed"
                assert await store.read(words) == {"certainly"}
                cutter.after, cutter.at = b"SELECT", b"COMMIT;"
                with pytest.raises(StoreUnavailable) as caught:
                    await store.read(words)
                assert "committed" not in str(caught.value), "a read leaves nothing to look for"
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_a_standby_for_a_while(opener: Opener, cluster: postgres.Cluster) -> None:
    """There is nothing to hear on one, and nothing to write; reads go on, and all returns when it is promoted."""
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store, store.announcements() as heard:
            await store.submit("before")
            await trio.to_thread.run_sync(cluster.stop)
            cluster.become_standby()
            await trio.to_thread.run_sync(cluster.start)
            try:
                while "LISTEN during recovery" not in cluster.log():  # noqa: ASYNC110
                    await trio.sleep(0.05)
                with pytest.raises(StoreUnavailable, match="25006"):
                    await store.submit("meanwhile")
                assert await store.read(words) == {"before"}
            finally:
                await trio.to_thread.run_sync(cluster.promote)
            await submit_until_it_works(store, "after")
            while await anext(heard) != announce.RESYNC:
                pass
            assert await store.read(words) == {"before", "after"}


async def test_a_frozen_server_is_cut_off_in_time(opener: Opener, cluster: postgres.Cluster) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True):
            pass
        async with open_impatient(opener) as store:
            with pytest.raises(ValueError, match="poison"):  # by the group writer's connection, and no commit
                await until_it_works(partial(store.submit, "poison"))
            ours = (
                "select pid from pg_stat_activity"
                " where datname = current_database() and backend_type = 'client backend'"  # autovacuum comes and goes
            )
            pids = await until_it_works(lambda: store.read(lambda conn: conn.execute(text(ours)).scalars().all()))
            frozen = [cluster.postmaster_pid, *pids]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                with trio.fail_after(30):
                    async with trio.open_nursery() as nursery:
                        for call in (store.submit, store.check, store.read, store.write):
                            nursery.start_soon(expect_unavailable, call)
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            assert await until_it_works(partial(store.submit, "refuse")) == ("refused", "refuse")
            assert await until_it_works(partial(store.read, words)) == set()


async def expect_unavailable(call: object) -> None:
    arguments = {"submit": ("x",), "check": (), "read": (words,), "write": (keep, "y")}
    with pytest.raises(StoreUnavailable):
        await call(*arguments[call.__name__])  # type: ignore[operator, attr-defined]


async def test_a_connection_cut_while_idle_is_not_noticed(opener: Opener, url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            await store.submit("a")
            await trio.to_thread.run_sync(
                postgres.sql,
                url,
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and pid <> pg_backend_pid()",
            )
            assert await store.submit("b") == ("kept", "b")
            assert await store.write(debit, 1) == 99
            assert await store.read(words) == {"a", "b"}


async def test_a_connection_cut_in_a_unit_loses_nothing(opener: Opener) -> None:
    def suicide(conn: Connection) -> None:
        keep(conn, "gone")
        conn.execute(text("select pg_terminate_backend(pg_backend_pid())"))

    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            with pytest.raises(StoreUnavailable):
                await store.write(suicide)
            assert await store.read(words) == set()
            assert await store.write(keep, "next") == "next"


async def test_a_deadlock_is_tried_again(opener: Opener, url: str) -> None:
    async with opener(tables=True) as store:
        await store.write(lambda conn: conn.execute(text("insert into t_purse values (2, 100)")))
        postgres.sql(url, "create sequence t_begun")  # no transaction holds back what it counts
        runs: list[tuple[int, int]] = []

        def cross(conn: Connection, first: int, second: int) -> None:
            runs.append((first, second))
            take = text("update t_purse set credits = credits - 1 where id = :id")
            conn.execute(take, {"id": first})
            conn.execute(text("select nextval('t_begun')"))
            while conn.execute(text("select last_value from t_begun")).scalar_one() < 2:
                pass
            conn.execute(take, {"id": second})

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.write, cross, 1, 2)
                nursery.start_soon(store.write, cross, 2, 1)
        left = await store.read(lambda conn: conn.execute(text("select credits from t_purse")).scalars().all())
        assert left == [98, 98]
        assert len(runs) > 2


async def test_a_waiting_lock_ends_before_the_caller_gives_up(opener: Opener, url: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True, unit_timeout_s=5) as store:
            hold = postgres.open_transaction(url, "select credits from t_purse for update")
            with hold, pytest.raises(StoreUnavailable, match="PostgreSQL"):
                await store.write(debit, 1)
            assert await store.write(debit, 1) == 99


async def test_a_server_that_gives_no_more_connections_is_not_down(opener: Opener, url: str, tmp_path: Path) -> None:
    """It refuses one more (53300): those that there are serve all, and the group writer's own is not touched."""
    few = f"few_{url.rpartition('/')[2]}"
    async with opener(tables=True):
        pass
    await trio.to_thread.run_sync(
        postgres.sql,
        url,
        f"create role {few} login password 'x' connection limit 3; grant all on all tables in schema public to {few}",
    )
    place = url.rpartition("@")[2]
    with trio.fail_after(DEADLINE_S):
        async with make_opener(f"postgresql://{few}:x@{place}", tmp_path)(exclusive=False) as store:
            await store.submit("first")

            def slow(conn: Connection) -> None:
                conn.execute(text("select pg_sleep(0.05)"))

            reading = 4  # as many as the pool would have; the server gives it two

            async def read_often() -> None:
                nonlocal reading
                for _ in range(10):
                    await store.read(slow)
                reading -= 1

            async with trio.open_nursery() as nursery:
                for _ in range(reading):
                    nursery.start_soon(read_often)
                words_kept = 0
                while reading:
                    assert await store.submit(f"word {words_kept}") == ("kept", f"word {words_kept}")
                    words_kept += 1


@pytest.fixture
def admin(cluster: postgres.Cluster, url: str) -> Callable[[str], str]:
    """Statements of who administers the server, from another database; `{name}` is the one that is tested."""
    name = url.rpartition("/")[2]
    return lambda statement: postgres.sql(f"{cluster.server}/postgres", statement.format(name=name))


CUT_ALL = "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"


# As a server behaves whose queue of notifications (8 GB, of all its databases) is full: NOTIFY fails at its commit.
NO_MORE_NOTIFICATIONS = """
CREATE TABLE t_told (payload text);
CREATE FUNCTION t_full() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000';
END$$;
CREATE CONSTRAINT TRIGGER t_full AFTER INSERT ON t_told DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION t_full();
CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'INSERT INTO public.t_told VALUES ($2)'
"""


async def test_no_room_for_notifications_fails_nobodys_change(
    opener: Opener, url: str, admin: Callable[[str], str], log_events: Any
) -> None:
    """The live hub announces behind every commit: it ended the daemon, and pages said that what was done had failed."""
    postgres.sql(url, NO_MORE_NOTIFICATIONS)
    admin('alter database "{name}" set search_path = public, pg_catalog')
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store, opener(exclusive=False) as other:
            async with store.announcements() as heard:
                await store.write(keep, "a change")
                for _ in range(3):
                    await other.announce("keys")
                postgres.sql(url, "DROP FUNCTION public.pg_notify(text, text)")
                await other.announce("queue")
                topic = ""
                while topic != "queue":
                    topic = await anext(heard)
                    assert topic != "keys"
            assert await store.read(words) == {"a change"}
    (event,) = log_events.named("change_not_announced")
    assert event["topic"] == "keys"
    assert "a session that listens does not end its transaction (54000)" in event["reason"]


async def test_a_database_that_lets_nobody_in_for_a_while(opener: Opener, admin: Callable[[str], str]) -> None:
    """As administrators do for some kinds of work on it."""
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            await store.submit("before")
            admin('alter database "{name}" allow_connections false')
            admin(CUT_ALL)
            for call in (store.submit("x"), store.write(keep, "x"), store.read(words), store.check(), store.upgrade()):
                with pytest.raises(StoreUnavailable, match="55000"):
                    await call
            admin('alter database "{name}" allow_connections true')
            await submit_until_it_works(store, "after")
            await store.announce("keys")
            assert await store.read(words) == {"before", "after"}


async def test_a_database_that_is_read_only_for_a_while(opener: Opener, admin: Callable[[str], str]) -> None:
    """A session is what the database was when it began: those that began meanwhile must not stay for ever."""
    with trio.fail_after(DEADLINE_S):
        async with opener(tables=True) as store:
            await store.submit("before")
            admin('alter database "{name}" set default_transaction_read_only = on')
            admin(CUT_ALL)
            for call in (store.submit("x"), store.write(keep, "x"), store.check()):
                with pytest.raises(NothingCommitted, match="25006"):
                    await call
            assert await store.read(words) == {"before"}
            admin('alter database "{name}" reset default_transaction_read_only')
            await submit_until_it_works(store, "after")
            for n in range(4):  # all that the pool has
                await until_it_works(partial(store.write, keep, str(n)))
            await store.check()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_must_be_able_to_hold_every_text(
    cluster: postgres.Cluster, tmp_path: Path, encoding: str
) -> None:
    """A reply of a next hop that could not be written would leave its message leased, and sent again."""
    name = f"encoded_{encoding.lower()}"
    postgres.sql(
        f"{cluster.server}/postgres",
        f"create database {name} encoding '{encoding}' template template0 lc_collate 'C' lc_ctype 'C'",
    )
    encoded = make_opener(f"{cluster.server}/{name}", tmp_path)
    if encoding == "LATIN1":
        with pytest.raises(StoreUnavailable, match="encoding LATIN1"):
            async with encoded():
                pass
        return
    async with encoded(tables=True) as store:
        assert await store.submit("принято") == ("kept", "принято")
        assert await store.read(words) == {"принято"}


async def test_a_migration_that_waits_for_a_table_has_nobody_wait_behind_it(
    opener: Opener, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads all tables for long, as pg_dump does; a daemon of the version before serves meanwhile."""
    monkeypatch.setattr(backend, "MIGRATION_LOCK_S", 0.2)
    is_done = trio.Event()

    async def upgrade(store: Store) -> None:
        await store.upgrade()
        is_done.set()

    with trio.fail_after(DEADLINE_S):
        async with opener() as before, opener(exclusive=False) as newer:
            await before.write(migrate.upgrade, "0003")
            async with trio.open_nursery() as nursery:
                with postgres.open_transaction(url, "select count(*) from api_key"):
                    nursery.start_soon(upgrade, newer)
                    waits = "select count(*) from pg_locks where not granted"
                    while await trio.to_thread.run_sync(postgres.sql, url, waits) == "0":
                        pass
                    for _ in range(3):
                        await before.read(lambda conn: conn.execute(text("select count(*) from api_key")).scalar())
                    assert not is_done.is_set()
            assert is_done.is_set()
            assert not await before.schema_is_due()


async def test_a_wrong_password_is_unavailable_and_not_shown(cluster: postgres.Cluster, tmp_path: Path) -> None:
    url = f"postgresql://postgres:hidden-word@127.0.0.1:{cluster.port}/postgres"
    with pytest.raises(StoreUnavailable) as caught:
        async with make_opener(url, tmp_path)():
            pass
    error: BaseException | None = caught.value
    while error is not None:
        assert "hidden-word" not in str(error)
        error = error.__cause__


async def test_by_unix_socket(cluster: postgres.Cluster, tmp_path: Path) -> None:
    url = f"postgresql://postgres:{cluster.password}@/postgres?host={cluster.socket_folder}&port={cluster.port}"
    async with make_opener(url, tmp_path)() as store:
        where = await store.read(lambda conn: conn.execute(text("select inet_server_addr()")).scalar())
        assert where is None


async def test_the_session_is_set_as_it_must_be(opener: Opener) -> None:
    names = (
        "synchronous_commit",
        "statement_timeout",
        "lock_timeout",
        "TimeZone",
        "idle_in_transaction_session_timeout",
    )
    async with opener(unit_timeout_s=10) as store:
        shown = await store.read(lambda conn: [conn.execute(text(f"show {name}")).scalar() for name in names])
    assert shown == ["on", "8s", "7s", "UTC", "10s"]


async def test_time_limits_of_the_server_are_its_failure(opener: Opener) -> None:
    """Whichever an administrator has set ends a session or a statement of ours: no fault of the statement."""
    async with opener(tables=True) as store:
        for state in ("57014", "25P03", "25P04", "57P05"):
            told = text(f"DO $$BEGIN RAISE 'too long' USING ERRCODE = '{state}'; END$$")
            with pytest.raises(StoreUnavailable, match=state):
                await store.write(lambda conn, told=told: conn.execute(told).close())


async def test_parameters_are_not_in_errors(opener: Opener) -> None:
    async with opener(tables=True) as store:
        await store.write(keep, "a secret")
        with pytest.raises(DBAPIError) as caught:
            await store.write(keep, "a secret")
        assert "a secret" not in str(caught.value).replace(str(caught.value.orig), "")


async def test_no_thread_is_left(opener: Opener) -> None:
    before = set(threading.enumerate())
    async with opener():
        pass
    # Trio's idle ones of earlier tests may have ended meanwhile.
    assert set(threading.enumerate()) <= before
