"""When an answer does not come: what was asked for counts once, whether it was done or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from durable.core.commands import Send
from durable.core.messages import Answer, Message
from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.errors import ConflictError, LeaseLostError, RepositoryUnavailableError
from durable.store import PostgresStore
from durable.testing.samples import NOW, created, ids, record, run_id

from .conftest import Opener
from .parcels import TASK, begun, parcel, step
from .proxy import Proxy


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(postgres_url) as proxy:
        yield proxy


@pytest.fixture
async def distant(open_postgres: Opener, proxy: Proxy) -> PostgresStore:
    """An executor behind the proxy."""
    store = await open_postgres(url=proxy.url)
    await store.enroll(TASK)
    return store


async def test_a_write_whose_answer_was_lost_counts_once(distant: PostgresStore, proxy: Proxy) -> None:
    """It is not known what became of it, until it is handed in again."""
    parcels = [parcel(*begun(1, key="k")), parcel(created(2), messages=[Message(run_id(1), Send("s", None, 9))])]
    proxy.swallow(b'"Send"')
    with pytest.raises(RepositoryUnavailableError):
        await distant.write(parcels)
    await proxy.swallowed.wait()
    assert await distant.find(run_id(1)) is not None
    assert distant.health().state == "degraded"
    assert await distant.write([*parcels, parcel(step(1, 3), epochs={1: 1})]) == [None] * 3
    assert distant.health().state == "ok"
    assert all(record.batch for each in parcels for record in each.records)
    assert len(await distant.mail(TASK, 9)) == 1
    assert len(await distant.history(run_id(1))) == 3


async def test_a_send_whose_answer_was_lost_counts_once_though_it_was_obeyed(
    distant: PostgresStore, store: PostgresStore, proxy: Proxy
) -> None:
    """A message that is gone already is not sent again."""
    await store.write([parcel(created(1))])
    sent = parcel(messages=[Message(run_id(1), Send("s", None, 9))])
    proxy.swallow(b'"Send"')
    with pytest.raises(RepositoryUnavailableError):
        await distant.write([sent])
    (message,) = await store.mail(TASK, 9)
    await store.write([parcel(record(1, 2, Kind.SIGNAL, name="s"), answers=[Answer(message)])])
    assert await distant.write([sent]) == [None]
    assert await store.mail(TASK, 9) == []


async def test_a_commit_of_units_whose_answer_was_lost_counts_once(distant: PostgresStore, proxy: Proxy) -> None:
    """Committed again, its records are there already."""
    proxy.swallow(run_id(2).encode())
    with pytest.raises(RepositoryUnavailableError):
        await distant.commit([[created(1, key="k")], begun(2)])
    assert await distant.find(run_id(2)) is not None
    await distant.commit([[created(1, key="k")], [*begun(2), step(2, 3)]])
    assert [len(await distant.history(run_id(number))) for number in (1, 2)] == [1, 3]


async def test_a_write_that_is_still_at_work_when_it_is_handed_in_again(
    distant: PostgresStore, proxy: Proxy, postgres_url: str, postgres_schema: str
) -> None:
    """The second attempt waits for the first, and finds it written."""
    await distant.write([parcel(*begun(1)), parcel(*begun(2))])
    async with await psycopg.AsyncConnection.connect(postgres_url) as locker:
        await locker.execute(f"SELECT 1 FROM {postgres_schema}.runs WHERE run_id = %s FOR UPDATE", (run_id(1),))
        parcels = [parcel(step(1, 3), epochs={1: 1}), parcel(step(2, 3), epochs={2: 1})]
        first = asyncio.ensure_future(distant.write(parcels))
        await waits(postgres_url, 1)
        proxy.cut()
        with pytest.raises(RepositoryUnavailableError):
            await first
        second = asyncio.ensure_future(distant.write(parcels))
        await waits(postgres_url, 2)
        await locker.rollback()
    assert await second == [None, None]
    assert [len(await distant.history(run_id(number))) for number in (1, 2)] == [3, 3]


async def waits(url: str, count: int) -> None:
    """Wait until so many sessions wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, asyncio.timeout(10):
        while (await (await connection.execute(query)).fetchone()) != (count,):
            await asyncio.sleep(0.01)


async def test_a_commit_that_was_not_answered_is_looked_for(
    distant: PostgresStore, proxy: Proxy, postgres_schema: str
) -> None:
    """The caller's rows and the record are there together, and the outcome says so."""
    await distant.write([parcel(*begun(1))])
    async with distant.borrow() as connection:
        await connection.execute(f"CREATE TABLE {postgres_schema}.mine (n int)")
        proxy.swallow(b"COMMIT")
        apart = parcel(step(1, 3), epochs={1: 1}, connection=connection)
        assert await distant.write([apart]) == [None]
        assert proxy.swallowed.is_set()
    assert await distant.write([apart, parcel(step(1, 4), epochs={1: 1})]) == [None, None]
    async with distant.borrow() as connection:
        assert await (await connection.execute(f"SELECT * FROM {postgres_schema}.mine")).fetchall() == []


async def test_a_claim_that_was_not_answered_holds_nothing(
    distant: PostgresStore, store: PostgresStore, proxy: Proxy
) -> None:
    """Nobody would go on with what was taken and not told: the next renewal lets go of it, and of nothing else."""
    await distant.write([parcel(*begun(1)), parcel(created(2)), parcel(created(3)), parcel(created(4))])
    assert len((await distant.claim(TASK, 1, NOW)).held) == 1
    proxy.swallow()
    with pytest.raises(RepositoryUnavailableError):
        await distant.claim(TASK, 2, NOW)
    await proxy.swallowed.wait()
    assert (await store.claim(TASK, 9, NOW)).held == []
    await distant.renew(TASK)
    held = (await store.claim(TASK, 9, NOW)).held
    assert len(held) == 2
    assert {each.epoch for each in held} == {4}
    owners = [each.owner for each in (await store.read([run_id(number) for number in range(1, 5)])).values()]
    assert sorted(owners) == sorted([distant.executor_id] * 2 + [store.executor_id] * 2)


async def test_a_key_in_somebodys_open_transaction_holds_up_nobody_else(
    store: PostgresStore, postgres_url: str
) -> None:
    """Whether the key is taken is not known until that transaction ends; only who wants it is told to try again."""
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await store.create_on(connection, parcel(created(1, key="k")))
        outcomes = await store.write([parcel(created(2)), parcel(created(3, key="k")), parcel(created(4))])
        assert [type(outcome) for outcome in outcomes] == [type(None), RepositoryUnavailableError, type(None)]
        await connection.commit()
    (outcome,) = await store.write([parcel(created(3, key="k"))])
    assert isinstance(outcome, ConflictError)
    assert ids(await store.query(RunFilter())) == [1, 2, 4]


async def test_what_was_known_of_a_run_may_be_old(open_postgres: Opener, store: PostgresStore) -> None:
    """A store that has last seen a run long ago finds out how it is now, and refuses only what does not fit."""
    await store.write([parcel(*begun(1))])
    other = await open_postgres()
    await other.write([parcel(step(1, 3), epochs={1: 1})])
    assert await store.write([parcel(step(1, 4), epochs={1: 1})]) == [None]
    await other.commit([[step(1, 5)]])
    with pytest.raises(ValueError, match="record 7"):
        await store.commit([[step(1, 7)]])
    await store.commit([[step(1, 5), step(1, 6)]])
    await store.enroll(TASK)
    with pytest.raises(LeaseLostError):
        await store.commit([[step(1, 7)]])
    await store.commit([[step(1, 7)]])
    assert [each.seq for each in await other.history(run_id(1))] == [1, 2, 3, 4, 5, 6, 7]
