"""Sessions: set up as durable needs them, shared, and never with an older state of the store than was seen."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from durable.config import PostgresSettings
from durable.errors import RepositoryUnavailableError, StorageError, StoreMismatchError
from durable.store.postgres.migrations import migrate
from durable.store.postgres.session import Session, Sessions
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer, url_of_all, wait_until

Opener = Callable[..., Awaitable[Sessions]]


@pytest.fixture
async def open_sessions() -> AsyncIterator[Opener]:
    """Open `Sessions`, closed after the test."""
    opened: list[Sessions] = []

    async def opener(url: str, **settings: Any) -> Sessions:
        sessions = Sessions(url, PostgresSettings(**settings))
        opened.append(sessions)
        await sessions.open()
        return sessions

    yield opener
    for sessions in opened:
        await sessions.close()


@pytest.fixture
async def bound(open_sessions: Opener) -> Opener:
    """Open `Sessions` with a store of its own schema, whose tables are there."""

    async def opener(url: str, schema: str = "durable_store", **settings: Any) -> Sessions:
        sessions = await open_sessions(url, schema=schema, **settings)
        async with sessions.connection() as session:
            await migrate(session, schema)
        await sessions.bind()
        return sessions

    return opener


@contextmanager
def primary_and_standby() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    need_postgres()
    with PostgresServer(tcp=True) as primary:
        standby = primary.standby()
        try:
            yield primary, standby
        finally:
            standby.remove()


def with_options(url: str, options: str) -> str:
    return psycopg.conninfo.make_conninfo(url, options=options)


async def one(session: Session, query: str) -> Any:
    row = await (await session.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


async def port_of(sessions: Sessions) -> int:
    async with sessions.connection() as session:
        return session.info.port


# -- what each session is like


async def test_each_session_has_the_settings(open_sessions: Opener, postgres_url: str) -> None:
    url = with_options(
        postgres_url, "-c default_transaction_isolation=serializable -c TimeZone=Asia/Tokyo -c client_encoding=LATIN1"
    )
    sessions = await open_sessions(url, statement_seconds=7.5, idle_seconds=11)
    dedicated = await sessions.dedicated()
    try:
        async with sessions.connection() as pooled:
            for session in (pooled, dedicated):
                assert session.autocommit
                wanted = {
                    "statement_timeout": "7500ms",
                    "lock_timeout": "7500ms",
                    "idle_in_transaction_session_timeout": "11s",
                    "TimeZone": "UTC",
                    "client_encoding": "UTF8",
                    "transaction_isolation": "read committed",
                    "application_name": "durable",
                }
                assert {name: await one(session, f"SHOW {name}") for name in wanted} == wanted
                given = session.info.get_parameters()
                assert (given["keepalives_idle"], given["tcp_user_timeout"]) == ("10", "25000")
    finally:
        await dedicated.close()


@pytest.mark.parametrize(
    ("given", "used"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply")],
)
async def test_a_commit_waits_at_least_for_the_disks(
    open_sessions: Opener, postgres_url: str, given: str, used: str
) -> None:
    sessions = await open_sessions(with_options(postgres_url, f"-c synchronous_commit={given}"))
    async with sessions.connection() as session:
        assert await one(session, "SHOW synchronous_commit") == used


async def test_what_the_address_says_comes_first(open_sessions: Opener, postgres_url: str) -> None:
    url = psycopg.conninfo.make_conninfo(postgres_url, application_name="mine", keepalives_idle=3)
    sessions = await open_sessions(url)
    async with sessions.connection() as session:
        assert await one(session, "SHOW application_name") == "mine"
        assert session.info.get_parameters()["keepalives_idle"] == "3"


# -- sharing them


async def test_no_more_connections_than_allowed(open_sessions: Opener, postgres_url: str) -> None:
    sessions = await open_sessions(postgres_url, connections_max=2, connect_seconds=0.2)
    pids = set()

    async def use() -> None:
        async with sessions.connection() as session:
            pids.add(await one(session, "SELECT pg_backend_pid()"))

    await asyncio.gather(*(use() for _ in range(20)))
    assert len(pids) <= 2
    async with sessions.connection(), sessions.connection():
        with pytest.raises(RepositoryUnavailableError, match=r"all 2 connections .* raise postgres.connections_max"):
            async with sessions.connection():
                pass
    await use()


async def test_a_transaction_left_open_is_rolled_back(
    open_sessions: Opener, postgres_url: str, postgres_schema: str
) -> None:
    sessions = await open_sessions(postgres_url, connections_max=1)
    async with sessions.connection() as session:
        await session.execute(b"BEGIN")
        await session.execute(f"CREATE SCHEMA {postgres_schema}".encode())
    async with sessions.connection() as session:
        assert session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        query = f"SELECT count(*) FROM pg_namespace WHERE nspname = '{postgres_schema}'"
        assert await one(session, query) == 0


async def test_a_cancelled_query_does_no_harm_to_the_next(open_sessions: Opener, postgres_url: str) -> None:
    sessions = await open_sessions(postgres_url, connections_max=1)

    async def long() -> None:
        async with sessions.connection() as session:
            await session.execute(b"SELECT pg_sleep(60)")

    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await long()
        async with sessions.connection() as session:
            assert await one(session, "SELECT 42") == 42


async def test_sessions_that_ended_meanwhile_are_not_given_out(open_sessions: Opener) -> None:
    """After a restart of the server the next call works, though all that was idle is gone."""
    need_postgres()
    with PostgresServer() as server:
        sessions = await open_sessions(server.url, connections_max=3)
        async with sessions.connection(), sessions.connection(), sessions.connection():
            pass
        server.stop(immediate=True)
        server.start()
        for _ in range(3):
            async with sessions.connection() as session:
                assert await one(session, "SELECT 1") == 1


async def test_a_server_that_is_away_is_said_to_be_at_once(open_sessions: Opener) -> None:
    need_postgres()
    with PostgresServer(tcp=True) as server:
        sessions = await open_sessions(server.url)
        server.stop()
        with pytest.raises(RepositoryUnavailableError, match=f"port {server.port}.*nothing listens there"):
            await sessions.dedicated()
        server.start()
        await (await sessions.dedicated()).close()


async def test_closed_is_closed(open_sessions: Opener, postgres_url: str) -> None:
    sessions = await open_sessions(postgres_url)
    async with sessions.connection() as session:
        await sessions.close()
        assert await one(session, "SELECT 1") == 1
    assert session.closed
    with pytest.raises(StorageError, match="not open"):
        async with sessions.connection():
            pass


async def test_errors_of_the_server_become_ours(open_sessions: Opener, postgres_url: str) -> None:
    sessions = await open_sessions(postgres_url, statement_seconds=0.05)
    async with sessions.connection() as session:
        with pytest.raises(RepositoryUnavailableError, match=r"postgres\.statement_seconds"), sessions.translated():
            await session.execute(b"SELECT pg_sleep(60)")
        with pytest.raises(StorageError, match="SQLSTATE 22012") as caught, sessions.translated():
            await session.execute(b"SELECT 1 / 0")
        assert caught.value.__cause__ is None
        with pytest.raises(RepositoryUnavailableError, match="ended the session"), sessions.translated():
            await session.execute(b"SELECT pg_terminate_backend(pg_backend_pid())")


# -- never back to an older state


async def test_after_a_failover_the_old_primary_is_passed_over(bound: Opener) -> None:
    """Both are up and take writes; the old one comes first in the address. New sessions go to the new one."""
    with primary_and_standby() as (old, new):
        sessions = await bound(url_of_all(old, new))
        before = await sessions.dedicated()
        assert before.info.port == old.port
        old.kill()
        new.promote()
        assert await port_of(sessions) == new.port
        old.start()
        old.reload(synchronous_standby_names="")
        for _ in range(3):
            session = await sessions.dedicated()
            assert session.info.port == new.port
            sessions.check(session)
            await session.close()
        with pytest.raises(StoreMismatchError, match="old primary"):
            sessions.check(before)
        await before.close()
        new.stop()
        with pytest.raises(RepositoryUnavailableError, match=r"nothing listens.*old primary"):
            await sessions.dedicated()
        new.start()
        assert await port_of(sessions) == new.port


async def test_an_old_primary_in_the_place_of_the_new_one_is_refused(bound: Opener) -> None:
    """One address: the old primary comes up behind it, as after a wrong switch of a proxy."""
    with primary_and_standby() as (old, new):
        sessions = await bound(url_of_all(old, new))
        old.kill()
        new.promote()
        assert await port_of(sessions) == new.port
        new.stop()
        old.port = new.port
        old.configure(port=new.port, synchronous_standby_names="")
        old.start()
        only = Sessions(old.url, PostgresSettings())
        await only.open()  # a process that has seen nothing cannot know
        await only.close()
        with pytest.raises(
            (StoreMismatchError, RepositoryUnavailableError), match="timeline 1, but timeline 2 was seen"
        ):
            await sessions.dedicated()


async def test_a_process_that_starts_after_the_failover_finds_the_new_primary(open_sessions: Opener) -> None:
    with primary_and_standby() as (old, new):
        old.kill()
        new.promote()
        old.start()
        old.reload(synchronous_standby_names="")
        sessions = await open_sessions(url_of_all(old, new))
        assert await port_of(sessions) == new.port


async def test_idle_sessions_with_the_old_primary_are_not_used_again(bound: Opener) -> None:
    """The old primary never went down: what was idle leads to it still."""
    with primary_and_standby() as (old, new):
        sessions = await bound(url_of_all(old, new))
        async with sessions.connection(), sessions.connection():
            pass
        old.reload(synchronous_standby_names="")
        new.promote()
        other = await Sessions(url_of_all(new, old), PostgresSettings()).dedicated()
        await other.close()
        old.stop()
        assert await port_of(sessions) == new.port


async def test_another_system_or_store_is_refused(bound: Opener, postgres_url: str) -> None:
    need_postgres()
    with PostgresServer(tcp=True) as first, PostgresServer(tcp=True) as second:
        sessions = await bound(first.url)
        first.stop()
        second.stop()
        second.port = first.port
        second.configure(port=first.port)
        second.start()
        with pytest.raises(StoreMismatchError, match="another PostgreSQL system"):
            await sessions.dedicated()


async def test_another_store_in_the_same_schema_is_refused(
    bound: Opener, postgres_url: str, postgres_schema: str
) -> None:
    sessions = await bound(postgres_url, postgres_schema)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"UPDATE {postgres_schema}.meta SET value = 'other' WHERE key = 'store_id'".encode())
    with pytest.raises(StoreMismatchError, match="another store"):
        await sessions.dedicated()


async def test_an_older_copy_is_refused_by_its_generation(
    bound: Opener, postgres_url: str, postgres_schema: str
) -> None:
    """Where a timeline may not be looked at, and for a backup that was restored."""
    sessions = await bound(postgres_url, postgres_schema)
    await bound(postgres_url, postgres_schema)
    await (await sessions.dedicated()).close()  # sees that it was opened again
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            f"UPDATE {postgres_schema}.meta SET value = (value::int - 1)::text WHERE key = 'generation'".encode()
        )
    with pytest.raises(StoreMismatchError, match="older copy"):
        await sessions.dedicated()


async def test_opening_at_once_is_no_older_copy(bound: Opener, postgres_url: str, postgres_schema: str) -> None:
    """Generations rise while others begin their sessions."""
    sessions = await bound(postgres_url, postgres_schema)

    async def begin() -> None:
        await (await sessions.dedicated()).close()

    await asyncio.gather(*(begin() for _ in range(20)), *(bound(postgres_url, postgres_schema) for _ in range(5)))


# -- a commit without its standby


@pytest.mark.parametrize("prepare", [True, False])
@pytest.mark.parametrize("ended_by", ["cancel", "time-out"])
async def test_a_commit_that_did_not_wait_for_its_standby_is_no_answer(
    bound: Opener, ended_by: str, prepare: bool
) -> None:
    with primary_and_standby() as (primary, standby):
        sessions = await bound(primary.url, statement_seconds=30.0 if ended_by == "cancel" else 0.2)
        async with sessions.connection() as session:

            async def insert() -> None:
                async with session.answered():
                    await session.execute(b"INSERT INTO there VALUES (1)", prepare=prepare)

            await session.execute(b"CREATE TABLE there (i int)")
            await insert()
            standby.stop()
            inserting = asyncio.create_task(insert())
            if ended_by == "cancel":
                waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                await asyncio.to_thread(wait_until, lambda: primary.sql(waits) == [(1,)], "the wait for the standby")
                primary.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            with pytest.raises(RepositoryUnavailableError, match="what became of it is not known"):
                await inserting
            assert not session.doubted()
            assert await one(session, "SELECT count(*) FROM there") == 2
            standby.start()
            await insert()


async def test_a_server_that_hangs_is_not_waited_for(open_sessions: Opener) -> None:
    need_postgres()
    with PostgresServer(tcp=True) as server:
        sessions = await open_sessions(server.url, statement_seconds=0.1)
        async with sessions.connection() as session:
            os.kill(pid := session.info.backend_pid, signal.SIGSTOP)
            with pytest.raises(RepositoryUnavailableError, match="what became of it is not known"):
                async with session.answered():
                    await session.execute(b"SELECT 1")
            assert session.closed
        os.kill(pid, signal.SIGCONT)
        async with sessions.connection() as session:
            assert await one(session, "SELECT 1") == 1
