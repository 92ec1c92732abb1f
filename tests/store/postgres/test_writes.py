"""Parcels: whole, once, under their epochs, and each with an outcome of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from durable.core.commands import Cancel, Send
from durable.core.messages import Answer, Message
from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.core.run import fold
from durable.errors import ConfigError, ConflictError, LeaseLostError, StorageError
from durable.store import PostgresStore
from durable.testing.samples import created, finished, ids, record, run_id

from .conftest import Opener
from .parcels import TASK, begun, parcel, step


async def kinds(store: PostgresStore, parcels: list[Any]) -> list[type | None]:
    """The outcomes, by their classes."""
    return [None if outcome is None else type(outcome) for outcome in await store.write(parcels)]


async def test_what_is_at_work_when_it_is_created_is_held_by_its_creator(store: PostgresStore) -> None:
    """Who creates a run and begins it need not claim it; one that waits, and one that is over, is nobody's."""
    assert await kinds(store, [parcel(*begun(1)), parcel(created(2)), parcel(*finished(3))]) == [None] * 3
    held = await store.read([run_id(number) for number in (1, 2, 3, 4)])
    assert {number: held[run_id(number)][1:] for number in (1, 2, 3)} == {
        1: (1, store.executor_id),
        2: (1, None),
        3: (1, None),
    }
    assert run_id(4) not in held
    await store.write([parcel(*finished(1)[2:], epochs={1: 1})])
    assert (await store.read([run_id(1)]))[run_id(1)] == (fold(finished(1)), 1, None)


async def test_a_client_holds_nothing(open_postgres: Opener) -> None:
    """Without having enrolled, nothing that is created is held."""
    client = await open_postgres()
    await client.write([parcel(*begun(1))])
    assert (await client.read([run_id(1)]))[run_id(1)].owner is None


async def test_a_stale_parcel_is_refused_and_its_neighbours_are_written(
    open_postgres: Opener, store: PostgresStore
) -> None:
    """Who has lost a run writes nothing of it, and nothing of what goes with it; all others go on."""
    await store.write([parcel(*begun(number)) for number in range(1, 5)])
    other = await open_postgres()
    await other.enroll(TASK)
    await store.release([(run_id(2), 1)])
    assert [held.epoch for held in await other.take([run_id(2)])] == [3]
    outcomes = await kinds(
        store,
        [
            parcel(step(1, 3), epochs={1: 1}),
            parcel(step(2, 3), created(9), epochs={2: 1}),
            parcel(step(2, 4), epochs={2: 1}),
            parcel(step(3, 3), epochs={3: 1}),
            parcel(step(4, 4), epochs={4: 1}),
            parcel(step(1, 4), epochs={1: 1}),
            parcel(step(9, 2)),
        ],
    )
    lost = LeaseLostError
    assert outcomes == [None, lost, lost, None, lost, None, lost]
    assert [len(await store.history(run_id(number))) for number in (1, 2, 3, 4, 9)] == [4, 2, 3, 2, 0]
    assert await kinds(other, [parcel(step(2, 3), epochs={2: 3})]) == [None]


async def test_a_run_without_an_epoch_is_fenced_by_its_seq(open_postgres: Opener, store: PostgresStore) -> None:
    """Who does not hold a run may write what follows the last record that it has seen."""
    await store.write([parcel(*begun(1))])
    other = await open_postgres()
    assert await kinds(other, [parcel(record(1, 3, Kind.SIGNAL, name="a"))]) == [None]
    assert await kinds(store, [parcel(step(1, 3), epochs={1: 1})]) == [LeaseLostError]
    assert await kinds(store, [parcel(step(1, 4), epochs={1: 1})]) == [None]
    assert await kinds(other, [parcel(record(1, 4, Kind.SIGNAL, name="b"))]) == [LeaseLostError]
    assert await kinds(other, [parcel(record(77, 2, Kind.SIGNAL, name="b"))]) == [LeaseLostError]
    run = await store.find(run_id(1))
    assert run == fold(await store.history(run_id(1)))


async def test_a_parcel_is_written_once(open_postgres: Opener, store: PostgresStore) -> None:
    """Handed in again, by whomever, it counts as written, with the batch that it has; and what builds on it goes on."""
    parcels = [
        parcel(*begun(1), created(2)),
        parcel(step(1, 3), epochs={1: 1}, messages=[Message(run_id(2), Cancel("r"))]),
        parcel(messages=[Message(run_id(2), Send("s", b"1", 9))]),
    ]
    assert await kinds(store, parcels[:1]) == [None]
    assert await kinds(store, parcels) == [None] * 3
    batches = [each.batch for each in await store.history(run_id(1))]
    for again in (store, await open_postgres()):
        assert await kinds(again, [*parcels, parcel(step(1, 4 + (again is not store)), epochs={1: 1})]) == [None] * 4
    assert [each.batch for each in parcels[0].records] == [batches[0]] * 3
    assert [each.batch for each in parcels[1].records] == [batches[2]]
    assert [message.command for message in await store.mail(TASK, 9)] == [Cancel("r"), Send("s", b"1", 9)]
    assert [each.seq for each in await store.history(run_id(1))] == [1, 2, 3, 4, 5]


async def test_many_parcels_of_one_run_in_one_call(store: PostgresStore) -> None:
    """They are folded: each in its batch, and the run as the last of them leaves it."""
    records = [*begun(1), *(step(1, seq) for seq in range(3, 40)), record(1, 40, Kind.COMPLETED, payload=b"42")]
    assert await kinds(store, [parcel(each, epochs={1: 1}) for each in records]) == [None] * 40
    assert await store.find(run_id(1)) == fold(records)
    batches = [each.batch for each in await store.history(run_id(1))]
    assert batches == sorted(set(batches))


async def test_large_and_empty_results_stay(store: PostgresStore) -> None:
    """What a run has returned is stored with the record that says it, and left alone by those that do not."""
    large = bytes(range(256)) * 400
    waiting = [*begun(1), record(1, 3, Kind.CHILDREN_STARTED, payload=large, children=2)]
    await store.write([parcel(*waiting)])
    for seq in (4, 5):
        waiting.append(record(1, seq, Kind.CHILD_ENDED, child=run_id(9), status="completed"))
        await store.write([parcel(waiting[-1], epochs={1: 1})])
        assert await store.find(run_id(1)) == fold(waiting)
    waiting.append(record(1, 6, Kind.COMPLETED, payload=b""))
    await store.write([parcel(waiting[-1], epochs={1: 1})])
    assert await store.find(run_id(1)) == fold(waiting)


async def test_a_key_that_has_a_run_is_refused_alone(open_postgres: Opener, store: PostgresStore) -> None:
    """The others are created; in one call, the first has it."""
    other = await open_postgres()
    await other.write([parcel(created(1, key="k", user="u"))])
    parcels = [
        parcel(created(2)),
        parcel(*begun(3, key="k", user="u")),
        parcel(created(4, key="k")),
        parcel(created(5, key="k")),
        parcel(step(3, 3)),
    ]
    outcomes = await store.write(parcels)
    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        ConflictError,
        type(None),
        ConflictError,
        LeaseLostError,
    ]
    assert isinstance(outcomes[1], ConflictError) and outcomes[1].key == "k"
    assert ids(await store.query(RunFilter())) == [1, 2, 4]


async def test_one_key_started_many_times_at_once_is_one_run(open_postgres: Opener) -> None:
    """From several processes, each with many starts on the way."""
    stores = [await open_postgres() for _ in range(3)]
    for turn in range(10):
        numbers = iter(range(turn * 100, turn * 100 + 48))
        calls = [each.write([parcel(created(next(numbers), key=f"k{turn}"))]) for each in stores for _ in range(16)]
        outcomes = [outcome for (outcome,) in await asyncio.gather(*calls)]
        assert outcomes.count(None) == 1
        assert {type(outcome) for outcome in outcomes} == {type(None), ConflictError}
        assert len(await stores[0].query(RunFilter(key=f"k{turn}"))) == 1


async def test_messages_are_gone_with_the_records_that_obey_them(open_postgres: Opener, store: PostgresStore) -> None:
    """A message counts once, whoever reads it first; who asked for an answer gets it."""
    other = await open_postgres()
    await store.write([parcel(*begun(1)), parcel(created(2))])
    sent = [Message(run_id(1), Send("s\ud800", b"\x00\xff", 9), "token\x00"), Message(run_id(2), Cancel("no \\ \x00"))]
    assert await kinds(other, [parcel(messages=sent)]) == [None]
    one, two = await store.mail(TASK, 10)
    assert [(each.run_id, each.command, each.answer_to) for each in (one, two)] == [
        (each.run_id, each.command, each.answer_to) for each in sent
    ]
    assert await other.mail([], 10) == []
    assert await store.mail(TASK, 1) == [one]
    assert await other.answer("token\x00") is None
    obeyed = parcel(record(1, 3, Kind.SIGNAL, name="s"), epochs={1: 1}, answers=[Answer(one)])
    refused = parcel(answers=[Answer(two, "transition", "text \x00\ud800")])
    assert await kinds(store, [obeyed, refused]) == [None, None]
    assert await kinds(store, [obeyed, refused]) == [None, None]
    assert await store.mail(TASK, 10) == []
    answer = await other.answer("token\x00")
    assert answer is not None and (answer.code, answer.message.run_id) == ("", run_id(1))
    again = parcel(record(1, 4, Kind.SIGNAL, name="s"), epochs={1: 1}, answers=[Answer(one)])
    assert await kinds(store, [again, parcel(step(1, 4), epochs={1: 1})]) == [LeaseLostError, None]


async def test_what_contradicts_itself_within_a_call_is_refused(store: PostgresStore) -> None:
    """A message obeyed twice, and a key given twice in one parcel: the first counts, or the parcel does not."""
    await store.write([parcel(*begun(1)), parcel(messages=[Message(run_id(1), Send("s", None, 9))])])
    (message,) = await store.mail(TASK, 9)
    outcomes = await kinds(
        store,
        [
            parcel(record(1, 3, Kind.SIGNAL, name="s"), epochs={1: 1}, answers=[Answer(message)]),
            parcel(record(1, 4, Kind.SIGNAL, name="s"), epochs={1: 1}, answers=[Answer(message)]),
            parcel(created(2, key="k"), created(3, key="k")),
            parcel(created(4, key="k")),
        ],
    )
    assert outcomes == [None, LeaseLostError, ConflictError, None]
    assert ids(await store.query(RunFilter())) == [1, 4]


async def test_a_parcel_that_the_database_does_not_take_fails_alone(store: PostgresStore) -> None:
    """A key that no index can hold is told so; the neighbours are written."""
    outcomes = await store.write(
        [parcel(created(1)), parcel(created(2, key="".join(map(chr, range(200, 9000))))), parcel(created(3))]
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), StorageError, type(None)]
    assert ids(await store.query(RunFilter())) == [1, 3]


async def test_a_call_larger_than_a_statement(store: PostgresStore) -> None:
    """What has no room in one statement goes into several, in order."""
    payload = bytes(6 * 1024 * 1024)
    parcels = [parcel(*begun(1)), *(parcel(step(1, seq, payload), epochs={1: 1}) for seq in range(3, 10))]
    assert await kinds(store, parcels) == [None] * len(parcels)
    assert len(await store.history(run_id(1))) == 9


# -- in the transaction of another connection


async def test_a_parcel_is_committed_with_what_is_written_beside_it(store: PostgresStore, postgres_schema: str) -> None:
    """The rows of the caller and the records are there together."""
    await store.write([parcel(*begun(1))])
    async with store.borrow() as connection:
        await connection.execute(f"CREATE TABLE {postgres_schema}.mine (n int)")
        assert await kinds(store, [parcel(step(1, 3), epochs={1: 1}, connection=connection)]) == [None]
    assert await kinds(store, [parcel(step(1, 4), epochs={1: 1})]) == [None]
    async with store.borrow() as connection:
        await connection.execute(f"INSERT INTO {postgres_schema}.mine VALUES (1)")
        late = parcel(step(1, 5), epochs={1: 7}, connection=connection)
        assert await kinds(store, [late, parcel(created(2))]) == [LeaseLostError, None]
    async with store.borrow() as connection:
        assert await (await connection.execute(f"SELECT * FROM {postgres_schema}.mine")).fetchall() == []
    assert len(await store.history(run_id(1))) == 4


async def test_what_follows_a_parcel_with_a_connection_in_one_call(store: PostgresStore) -> None:
    """Order holds within a run, wherever its parcels are written."""
    await store.write([parcel(*begun(1))])
    async with store.borrow() as connection:
        parcels = [
            parcel(step(1, 3), epochs={1: 1}),
            parcel(step(1, 4), epochs={1: 1}, connection=connection),
            parcel(created(2)),
            parcel(step(1, 5), epochs={1: 1}),
        ]
        assert await kinds(store, parcels) == [None] * 4
    assert [each.seq for each in await store.history(run_id(1))] == [1, 2, 3, 4, 5]
    assert await kinds(store, parcels) == [None] * 4  # handed in again when its transaction is long over


async def test_a_transaction_that_is_lost_before_its_commit_wrote_nothing(
    store: PostgresStore, postgres_url: str
) -> None:
    """The outcome is known, so it is told, and the run is free to go on."""
    await store.write([parcel(*begun(1))])
    async with store.borrow() as connection:
        with psycopg.connect(postgres_url, autocommit=True) as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        (outcome,) = await store.write([parcel(step(1, 3), epochs={1: 1}, connection=connection)])
        assert isinstance(outcome, StorageError) and outcome.retryable
    assert await kinds(store, [parcel(step(1, 3), epochs={1: 1})]) == [None]


async def test_a_run_is_created_in_the_callers_transaction(store: PostgresStore, postgres_url: str) -> None:
    """It is there when the caller commits; a refusal leaves the transaction as it was."""
    await store.write([parcel(created(1, key="k"))])
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await store.create_on(connection, parcel(created(2)))
        with pytest.raises(ConflictError):
            await store.create_on(connection, parcel(created(3, key="k")))
        await store.create_on(connection, parcel(created(4, key="new")))
        with pytest.raises(ConflictError):
            await store.create_on(connection, parcel(created(5, key="new")))
        assert await store.find(run_id(2)) is None
        await connection.commit()
        await store.create_on(connection, parcel(created(6)))
        await connection.rollback()
    assert ids(await store.query(RunFilter())) == [1, 2, 4]


async def test_a_connection_that_leads_elsewhere_is_refused(
    store: PostgresStore, open_postgres: Opener, postgres_url: str
) -> None:
    """What is written there would not be committed with the run."""
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("SET LOCAL ROLE pg_read_all_stats")
        with pytest.raises(ConfigError, match="does not lead"):
            await store.create_on(connection, parcel(created(1)))
        assert (await (await connection.execute("SELECT 1")).fetchone()) == (1,)
        with pytest.raises(ConfigError, match="AsyncConnection"):
            await store.create_on(object(), parcel(created(1)))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        with pytest.raises(ConfigError, match="autocommit"):
            await store.create_on(connection, parcel(created(1)))
