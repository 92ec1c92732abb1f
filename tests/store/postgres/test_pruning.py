"""What is over is forgotten while others are at work: with messages, locks, writers and other executors at the same rows."""

from __future__ import annotations

import asyncio

import psycopg

from durable.core.commands import Cancel
from durable.core.messages import Answer, Message
from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.errors import LeaseLostError
from durable.store import PostgresStore
from durable.testing.samples import NOW, created, failed, finished, ids, record, run_id

from .conftest import Opener
from .parcels import parcel

LATER = NOW + 1_000


async def test_a_family_to_which_a_message_is_on_its_way_stays(store: PostgresStore) -> None:
    """Until it is obeyed: who sent it waits for the answer, or waits to be told of an end."""
    await store.commit([finished(1), finished(2, parent=run_id(1)), finished(3)])
    assert await store.write([parcel(messages=[Message(run_id(2), Cancel(), "token")])]) == [None]
    assert await store.prune(LATER, 10) == 1
    (message,) = await store.mail([("task", None)], 10)
    await store.write([parcel(answers=[Answer(message)])])
    assert await store.prune(LATER, 10) == 2
    assert await store.answer("token") is not None


async def test_what_somebody_has_locked_is_passed_over(
    store: PostgresStore, postgres_url: str, postgres_schema: str
) -> None:
    """Nobody waits, and the rest goes; of a family with a locked row nothing does."""
    await store.commit([finished(1), finished(2, parent=run_id(1)), finished(3)])
    async with await psycopg.AsyncConnection.connect(postgres_url) as other:
        await other.execute(f"SELECT 1 FROM {postgres_schema}.runs WHERE run_id = '{run_id(2)}' FOR UPDATE".encode())
        assert await asyncio.wait_for(store.prune(LATER, 10), 10) == 1
        assert ids(await store.query(RunFilter())) == [1, 2]
    assert await store.prune(LATER, 10) == 2


async def test_one_that_goes_on_again_meanwhile_stays_or_its_writer_is_told(
    store: PostgresStore, open_postgres: Opener
) -> None:
    """Many at once: each run either goes on or is gone, never both, and the refused know it."""
    numbers = range(1, 120)
    over = [[created(n), record(n, 2, Kind.STARTED), failed(n, 3), record(n, 4, Kind.DISCARDED)] for n in numbers]
    await store.commit(over)
    other = await open_postgres()

    async def forget() -> int:
        gone = 0
        for _ in numbers:
            gone += await other.prune(LATER, 1)
        return gone

    forgetting = asyncio.ensure_future(forget())
    going: list[int] = []
    for n in reversed(numbers):
        (outcome,) = await store.write([parcel(record(n, 5, Kind.RESUMED), epochs={n: 1})])
        assert outcome is None or isinstance(outcome, LeaseLostError)
        if outcome is None:
            going.append(n)
    gone = await forgetting
    assert ids(await store.query(RunFilter(limit=1_000))) == sorted(going)
    assert gone + len(going) == len(numbers)
    histories = await store.histories([run_id(n) for n in numbers])
    assert {run_id: len(records) for run_id, records in histories.items()} == {run_id(n): 5 for n in going}


async def test_several_forget_at_once(store: PostgresStore, open_postgres: Opener) -> None:
    """Each run once, and families whole."""
    await store.commit([finished(n, **({"parent": run_id(n - n % 4)} if n % 4 else {})) for n in range(400)])
    others = [await open_postgres() for _ in range(3)]

    async def forget(each: PostgresStore) -> int:
        gone = 0
        while await each.count(RunFilter()):
            count = await each.prune(LATER, 8)
            assert count % 4 == 0
            gone += count
        return gone

    assert sum(await asyncio.gather(*(forget(each) for each in (store, *others)))) == 400


async def test_messages_for_runs_that_are_gone_go_too(
    store: PostgresStore, postgres_url: str, postgres_schema: str
) -> None:
    """Once they are old enough that no transaction can still be about to create the run."""
    await store.write([parcel(messages=[Message(run_id(number), Cancel())]) for number in (1, 2)])
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as other:
        table = f"{postgres_schema}.messages"
        await other.execute(
            f"UPDATE {table} SET created_at = created_at - interval '2 hours' WHERE run_id = '{run_id(1)}'".encode()
        )
        await store.prune(LATER, 10)
        rows = await (await other.execute(f"SELECT run_id FROM {table}".encode())).fetchall()
    assert rows == [(run_id(2),)]


async def test_what_is_asked_often_reads_an_index(
    store: PostgresStore, postgres_url: str, postgres_schema: str
) -> None:
    """However many runs there are: dead letters, their age, what is to go."""
    await store.commit([finished(n) for n in range(3_000)])
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as other:
        await other.execute(f"ANALYZE {postgres_schema}.runs".encode())
        for where, index in (
            ("dead", "runs_dead"),
            (f"dead AND ended_at <= {NOW}", "runs_dead"),
            ("status = ANY('{ready,running}'::text[])", "runs_status"),
            (
                f"NOT open AND NOT dead AND parent_id IS NULL AND ended_at < {NOW} AND (ended_at, run_id) > ('-Infinity', '')",
                "runs_closed",
            ),
        ):
            query = f"EXPLAIN SELECT count(*) FROM {postgres_schema}.runs WHERE {where}"
            plan = "\n".join(row for (row,) in await (await other.execute(query.encode())).fetchall())
            assert index in plan and "Seq Scan" not in plan, plan
