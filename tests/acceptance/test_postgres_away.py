"""PostgreSQL goes away during work, and comes back: nothing acknowledged is lost, and everything ends without an operator."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from durable import Durable, Handle, step, task
from durable.core.records import Kind
from durable.errors import RepositoryUnavailableError
from tests.acceptance.outage_work import (
    ENDS_WITHIN,
    RESULT,
    Client,
    app_at,
    at_work,
    blocking,
    executors,
    lingering,
    repeated,
)
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer, children_of
from tests.support.proxy import Proxy

FULL = os.environ.get("DURABLE_FULL") == "1"
SCHEMA, LEASE = "away", 1.5
#: Beyond the lease: the pause before another try, and a busy machine.
SLACK = 3.0


@pytest.fixture(scope="module")
def one_server() -> Iterator[PostgresServer]:
    need_postgres()
    with PostgresServer(tcp=True, durable=True) as server:
        yield server


@pytest.fixture
def server(one_server: PostgresServer) -> PostgresServer:
    """A server that a test may stop, with nothing in it but the user's table."""
    if not one_server.running:
        one_server.start()
    one_server.sql(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    one_server.sql("DROP TABLE IF EXISTS effects")
    one_server.sql("CREATE TABLE effects (run_id text, number int)")
    return one_server


@asynccontextmanager
async def working(url: str, notes: Path, pause: float) -> AsyncIterator[Client]:
    async with at_work(url, SCHEMA, LEASE, notes, pause) as client:
        yield client


async def test_stopped_and_started_again(server: PostgresServer, tmp_path: Path) -> None:
    """Five times in the midst of work; for longer than the lease, or shorter."""
    async with working(server.url, tmp_path / "notes", 0.2) as client:
        for down in (LEASE + 1.0, 0.0, 0.2, 0.5, 1.0) * (8 if FULL else 1):
            await asyncio.sleep(0.7)
            await asyncio.to_thread(server.stop, immediate=True)
            await asyncio.sleep(down)
            await asyncio.to_thread(server.start)
        back = time.monotonic()
    assert client.refused
    assert max(client.refused) < LEASE + SLACK
    print(f"{len(client.started)} runs, {len(client.refused)} starts refused, after at most {max(client.refused):.1f} s; "
          f"all ended {client.latest - back:.1f} s after it was back")  # fmt: skip


async def test_what_is_asked_for_while_it_is_away(server: PostgresServer) -> None:
    """A start is refused in time, by who executes as by who does not; who waits gets the result when it is back."""
    async with (
        app_at(server.url, SCHEMA, LEASE) as executor,
        app_at(server.url, SCHEMA, LEASE, execute=False) as client,
    ):
        handle = await client.start(lingering, 0.5)
        before = asyncio.ensure_future(handle.wait())
        await asyncio.to_thread(server.stop, immediate=True)
        during = asyncio.ensure_future(handle.wait())

        async def refused(app: Durable, key: str | None) -> float:
            begun = time.monotonic()
            with pytest.raises(RepositoryUnavailableError) as caught:
                await app.start(lingering if key is None else lingering.options(key=key), 0.0)
            assert caught.value.retryable
            return time.monotonic() - begun

        # At once, and once the lease has passed.
        for _ in range(2):
            waited = await asyncio.gather(*(refused(app, key) for app in (executor, client) for key in (None, "key")))
            assert max(waited) < LEASE + SLACK
        assert not before.done()
        assert not during.done()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(ENDS_WITHIN):
            assert await asyncio.gather(before, during) == ["lingered", "lingered"]
            assert await (await client.start(lingering, 0.0)).wait() == "lingered"


@pytest.mark.parametrize("frozen", [True, False] if FULL else [False])
async def test_closing_while_it_is_away(server: PostgresServer, frozen: bool) -> None:
    """It takes about a lease, after which others have the runs anyway; and the driver waits for 10 s for a server that hangs."""
    app = app_at(server.url, SCHEMA, LEASE, statement_seconds=0.5)
    await app.open()
    for _ in range(3):
        await app.start(lingering, 60.0)
    await asyncio.sleep(0.2)
    signal_all(server, signal.SIGSTOP) if frozen else await asyncio.to_thread(server.stop, immediate=True)
    try:
        begun = time.monotonic()
        async with asyncio.timeout(ENDS_WITHIN):
            await app.close()
        assert time.monotonic() - begun < LEASE + SLACK + (10.0 if frozen else 0.0)
    finally:
        if frozen:
            signal_all(server, signal.SIGCONT)


#: How to tell the sessions apart, by what they said last.
KINDS = {
    "writer": "query LIKE 'WITH base%%' AND state <> 'idle in transaction'",
    "listener": "query LIKE 'LISTEN%%'",
    "notifier": "query LIKE '%%pg_notify%%'",
    "transaction": "state LIKE 'idle in transaction%%' OR query LIKE 'INSERT INTO effects%%'",
    "pool": "query NOT LIKE 'WITH base%%' AND query NOT LIKE 'LISTEN%%' AND query NOT LIKE '%%pg_notify%%'",
}


async def test_sessions_ended_at_random(server: PostgresServer, tmp_path: Path) -> None:
    """Of every kind, in the executors and in the client."""
    ended = dict.fromkeys(KINDS, 0)
    choose = random.Random(1)
    async with working(server.url, tmp_path / "notes", 0.1) as client:
        over = time.monotonic() + (60 if FULL else 5)
        async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
            while time.monotonic() < over or min(ended.values()) < 3:
                kind = choose.choice(list(KINDS))
                cursor = await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
                    f"WHERE application_name = 'durable' AND pid <> pg_backend_pid() AND ({KINDS[kind]}) "
                    "ORDER BY random() LIMIT 1) AS one".replace("%%", "%")
                )
                ended[kind] += cursor.rowcount
                await asyncio.sleep(0.02 if kind == "transaction" else 0.05)
    print(f"{len(client.started)} runs, {len(client.refused)} starts refused; ended: {ended}")


def signal_all(server: PostgresServer, number: int) -> None:
    assert server._process is not None
    for pid in (server._process.pid, *children_of(server._process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize("what", ["server", "network"])
async def test_frozen_for_longer_than_the_lease(server: PostgresServer, tmp_path: Path, what: str) -> None:
    """Executors give up before others may take their runs, though nobody answers them."""
    notes = tmp_path / "notes"
    async with Proxy(server.url) as proxy:
        url = server.url if what == "server" else proxy.url
        freeze: Callable[[], None] = proxy.freeze if what == "network" else lambda: signal_all(server, signal.SIGSTOP)
        thaw: Callable[[], None] = proxy.thaw if what == "network" else lambda: signal_all(server, signal.SIGCONT)
        async with working(url, notes, 0.2) as client:
            lingers = [await client.app.start(lingering, 20 * LEASE) for _ in range(4)]
            await until_noted(notes, "X", lingers)
            await asyncio.sleep(0.5)
            frozen = time.monotonic()
            freeze()
            try:
                await until_noted(notes, "C", lingers)
                given_up = time.monotonic() - frozen
                await asyncio.sleep(max(2 * LEASE - given_up, 0.0))
            finally:
                thaw()
            thawed = time.monotonic()
            async with asyncio.timeout(ENDS_WITHIN):
                assert await asyncio.gather(*(each.wait() for each in lingers)) == ["lingered"] * 4
            client.started.update(each.run_id for each in lingers)
            client.results.update((each.run_id, RESULT) for each in lingers)
    assert "lost its lease" in (tmp_path / "executors.log").read_text()
    assert given_up < LEASE + 0.5
    print(f"given up after {given_up:.1f} s, all ended {client.latest - thawed:.1f} s after the thaw")


async def until_noted(notes: Path, kind: str, handles: list[Handle[str]]) -> None:
    wanted = {handle.run_id for handle in handles}
    async with asyncio.timeout(ENDS_WITHIN):
        while not wanted <= {words[2] for line in read(notes) if (words := line.split())[1] == kind}:
            await asyncio.sleep(0.02)


def read(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


async def test_an_event_loop_that_is_blocked_for_longer_than_the_lease(server: PostgresServer, tmp_path: Path) -> None:
    """It loses its lease and says so; what it does after that does not count, and the run goes on elsewhere."""
    notes, count = tmp_path / "notes", 20 if FULL else 1
    async with (
        executors(2, server.url, SCHEMA, tmp_path, LEASE),
        app_at(server.url, SCHEMA, LEASE, execute=False) as app,
    ):
        for number in range(count):
            folder = tmp_path / f"blocked{number}"
            folder.mkdir()
            handle = await app.start(blocking, str(folder), 3 * LEASE)
            assert await handle.wait(ENDS_WITHIN) == 3
            async with asyncio.timeout(ENDS_WITHIN):
                while not any(words.split()[1:3] == ["B", handle.run_id] for words in read(notes)):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)  # what it still does then is what must not count
            records = await app.engine.store.history(handle.run_id)
            assert [record.seq for record in records] == list(range(1, len(records) + 1))
            assert records[-1].kind is Kind.COMPLETED
            assert sum(record.kind is Kind.RECOVERED for record in records) == 1
        assert repeated(notes) == []
    assert (tmp_path / "executors.log").read_text().count("lost its lease") == count


@pytest.mark.parametrize("keyed", [True, False])
async def test_a_start_whose_answer_is_lost(server: PostgresServer, keyed: bool) -> None:
    """It is one run, and the caller gets its handle."""
    async with (
        Proxy(server.url) as proxy,
        app_at(server.url, SCHEMA, LEASE) as executor,
        app_at(proxy.url, SCHEMA, LEASE, execute=False) as client,
    ):
        for number in range(20 if FULL else 3):
            proxy.swallow(f"swallowed{number}".encode())
            chosen = named.options(key=f"key{number}") if keyed else named
            handle = await client.start(chosen, f"swallowed{number}")
            assert proxy.swallowed.is_set()
            assert await handle.wait(ENDS_WITHIN) == f"swallowed{number}"
            if keyed:
                again = await executor.start(chosen, f"swallowed{number}")
                assert again.run_id == handle.run_id
        assert len([info async for info in client.runs()]) == (20 if FULL else 3)


@task(name="outage.named")
async def named(name: str) -> str:
    return name


step_bodies: Counter[str] = Counter()


@step(name="outage.answer")
async def answer(name: str) -> str:
    step_bodies[name] += 1
    return f"the result of {name}"


@task(name="outage.answered")
async def answered(name: str) -> str:
    return await answer(name)


@pytest.mark.parametrize("cut", [True, False])
async def test_a_steps_record_whose_answer_is_lost(server: PostgresServer, cut: bool) -> None:
    """Its body is not run again: it was recorded, whether that was heard or not. `cut` or not: the connection may just hang."""
    async with Proxy(server.url) as proxy, app_at(proxy.url, SCHEMA, LEASE, statement_seconds=0.5) as app:
        for number in range((20 if FULL else 3) if cut else 1):
            name = f"step {number} {cut}"
            proxy.swallow(f"the result of {name}".encode(), cut=cut)
            handle = await app.start(answered, name)
            assert await handle.wait(ENDS_WITHIN) == f"the result of {name}"
            assert proxy.swallowed.is_set()
            assert step_bodies[name] == 1
