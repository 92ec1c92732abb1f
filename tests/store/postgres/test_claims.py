"""Holding runs: who gets which, and what becomes of those whose executor is gone."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from durable.core.records import Kind
from durable.core.run import fold
from durable.errors import LeaseLostError
from durable.store import PostgresStore
from durable.store.shared import Held, Parcel
from durable.testing.samples import NOW, asleep, created, failed, finished, number_of, record, run_id

from .conftest import Opener
from .parcels import TASK, begun, parcel, step

LATER = NOW + 1000


def numbers(held: list[Held]) -> list[int]:
    """Which runs these are."""
    return [number_of(each.run.run_id) for each in held]


async def waiting(store: PostgresStore, *parcels: Parcel) -> None:
    """Write what then waits for an executor."""
    assert await store.write(parcels) == [None] * len(parcels)


async def expire(url: str, schema: str, executor_id: str) -> None:
    """Let a lease have passed."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        done = await connection.execute(
            f"UPDATE {schema}.executors SET expires_at = clock_timestamp() - interval '1 s' WHERE executor_id = %s",
            (executor_id,),
        )
        assert done.rowcount == 1


async def test_claims_go_by_standing(open_postgres: Opener, store: PostgresStore) -> None:
    """Priority first, then age; of children that come together each has the next place, so that others get their turn."""
    client = await open_postgres()
    await waiting(
        client,
        parcel(*(created(number, parent=run_id(99)) for number in (1, 2, 3))),
        parcel(created(4, priority=5)),
        parcel(created(5)),
        parcel(created(6, priority=-5)),
    )
    first = await store.claim(TASK, 2, NOW)
    assert numbers(first.held)[0] == 4 and first.more
    assert first.held[0] == (fold([created(4, priority=5)]), 2, store.executor_id)
    rest = await store.claim(TASK, 10, NOW)
    assert numbers(first.held + rest.held) in ([4, 1, 5, 2, 3, 6], [4, 5, 1, 2, 3, 6])
    assert not rest.more
    assert (await store.claim(TASK, 10, NOW)).held == []


async def test_only_what_is_known_and_due_is_claimed(open_postgres: Opener, store: PostgresStore) -> None:
    """Tasks, versions and times are those that the executor says."""
    client = await open_postgres()
    await waiting(
        client,
        parcel(created(1, version="1")),
        parcel(created(2, version="2")),
        parcel(created(3)),
        parcel(created(4, task="other")),
        parcel(created(5, not_before=NOW + 5)),
        parcel(*asleep(6, NOW + 7)),
        parcel(*asleep(7)),
        parcel(*finished(8)),
        parcel(created(9, task="other", not_before=NOW + 1)),
        parcel(created(10, version="1", not_before=NOW + 2)),
        parcel(created(11), record(11, 2, Kind.SUSPENDED, reason="r")),
    )
    assert (await store.claim([], 10, NOW)) == ([], False, None)
    claimed = await store.claim([("task", "2")], 10, NOW)
    assert (sorted(numbers(claimed.held)), claimed.next_due) == ([2, 3], NOW + 5)
    claimed = await store.claim([("task", None), ("nothing", "1")], 10, NOW + 2)
    assert (sorted(numbers(claimed.held)), claimed.next_due) == ([1, 10], NOW + 5)
    claimed = await store.claim([("task", "7"), ("other", "x")], 10, NOW + 7)
    assert (sorted(numbers(claimed.held)), claimed.next_due) == ([4, 5, 6, 9], None)


async def test_a_child_whose_parent_has_just_ended_is_left_to_it(open_postgres: Opener, store: PostgresStore) -> None:
    """It would be about to cancel it; once it is closed, what it left is anybody's."""
    client = await open_postgres()
    returned = record(1, 3, Kind.CHILDREN_STARTED, payload=b"[]", children=1)
    await waiting(client, parcel(*begun(1), returned, created(2, parent=run_id(1)), created(3)), parcel(failed(1, 4)))
    assert numbers((await store.claim(TASK, 10, NOW)).held) == [1, 3]
    await waiting(client, parcel(record(1, 5, Kind.CLOSED)))
    assert numbers((await store.claim(TASK, 10, NOW)).held) == [2]


async def test_who_is_no_executor_claims_nothing(
    open_postgres: Opener, store: PostgresStore, postgres_url: str, postgres_schema: str
) -> None:
    """Nor does one whose lease has passed, though nobody has swept it yet; nor can it renew."""
    client = await open_postgres()
    await waiting(client, parcel(created(1)))
    assert (await client.claim(TASK, 1, NOW)).held == []
    assert await client.take([run_id(1)]) == []
    with pytest.raises(LeaseLostError):
        await client.renew(TASK)
    assert client.lease_left <= 0
    await expire(postgres_url, postgres_schema, store.executor_id)
    assert (await store.claim(TASK, 1, NOW)).held == []
    assert await store.take([run_id(1)]) == []
    with pytest.raises(LeaseLostError):
        await store.renew(TASK)
    assert store.lease_left <= 0


async def test_many_claim_at_once_and_each_run_is_held_once(open_postgres: Opener) -> None:
    """Those that compete share what there is, without waiting for one another."""
    client = await open_postgres()
    await waiting(client, *(parcel(created(number, task=f"t{number % 3}")) for number in range(300)))
    stores = [await open_postgres() for _ in range(4)]
    known = [(f"t{number}", None) for number in range(3)]
    for each in stores:
        await each.enroll(known)

    async def worker(each: PostgresStore) -> list[int]:
        mine: list[int] = []
        while held := (await each.claim(known, 7, NOW)).held:
            mine += numbers(held)
        return mine

    shares = await asyncio.gather(*map(worker, stores))
    assert sorted(number for share in shares for number in share) == list(range(300))
    assert all(shares)


async def test_the_runs_of_a_lost_executor_are_swept(
    open_postgres: Opener, store: PostgresStore, postgres_url: str, postgres_schema: str
) -> None:
    """They count as held by nobody at once, are let go by any other's sweep, and their old holder writes nothing of them."""
    await waiting(store, parcel(*begun(1)), parcel(*begun(2)))
    other = await open_postgres()
    await other.enroll(TASK)
    await waiting(other, parcel(*begun(3)))
    assert await other.sweep() == 0
    await expire(postgres_url, postgres_schema, store.executor_id)
    assert (await other.read([run_id(1)]))[run_id(1)].owner is None
    assert numbers(await other.take([run_id(2), run_id(3)])) == [2]
    assert await other.sweep() == 1
    held = await other.read([run_id(number) for number in (1, 2, 3)])
    assert [held[run_id(number)][1:] for number in (1, 2, 3)] == [
        (2, None),
        (2, other.executor_id),
        (1, other.executor_id),
    ]
    outcomes = await store.write([parcel(step(1, 3), epochs={1: 1}), parcel(step(2, 3), epochs={2: 1})])
    assert [type(outcome) for outcome in outcomes] == [LeaseLostError] * 2
    assert numbers((await other.claim(TASK, 9, NOW)).held) == [1]


async def test_an_orphan_is_swept(
    open_postgres: Opener, store: PostgresStore, postgres_url: str, postgres_schema: str
) -> None:
    """What an executor created after its row was deleted is let go, too."""
    await expire(postgres_url, postgres_schema, store.executor_id)
    other = await open_postgres()
    assert await other.sweep() == 0
    await waiting(store, parcel(*begun(1)))
    assert await other.sweep() == 1
    assert (await other.read([run_id(1)]))[run_id(1)][1:] == (2, None)


async def test_who_leaves_or_enrolls_anew_lets_go(open_postgres: Opener, store: PostgresStore) -> None:
    """Others may go on at once, and nothing of the old life is written."""
    other = await open_postgres()
    await other.enroll(TASK)
    await waiting(store, parcel(*begun(1)))
    before = store.executor_id
    await store.enroll(TASK)
    assert store.executor_id not in ("", before)
    assert numbers(await other.take([run_id(1)])) == [1]
    await waiting(store, parcel(*begun(2)))
    await store.leave()
    assert numbers((await other.claim(TASK, 9, NOW)).held) == [2]
    outcomes = await store.write([parcel(step(2, 3), epochs={2: 1})])
    assert [type(outcome) for outcome in outcomes] == [LeaseLostError]
    await store.leave()


async def test_release_lets_go_of_what_is_still_held(open_postgres: Opener, store: PostgresStore) -> None:
    """One that has changed hands since is left alone. What was decided before does not count any more."""
    other = await open_postgres()
    await other.enroll(TASK)
    await waiting(store, parcel(*begun(1)), parcel(*begun(2)))
    await store.release([(run_id(1), 1), (run_id(2), 7)])
    outcomes = await store.write([parcel(step(1, 3), epochs={1: 1}), parcel(step(2, 3), epochs={2: 1})])
    assert [type(outcome) for outcome in outcomes] == [LeaseLostError, type(None)]
    assert await store.take([run_id(2)]) == []
    assert numbers(await other.take([run_id(1), run_id(2)])) == [1]
    await store.release([(run_id(1), 1), (run_id(1), 2)])
    assert (await other.read([run_id(1)]))[run_id(1)][1:] == (3, other.executor_id)


async def test_a_lease_is_renewed(open_postgres: Opener) -> None:
    """It lasts as long as it is renewed, and this process counts with less than the database."""
    store = await open_postgres(lease_seconds=2.0)
    await store.enroll(TASK)
    assert store.lease_seconds == 2.0
    for _ in range(3):
        before = store.lease_left
        assert 0 < before <= 2.0
        await store.renew(TASK)
        assert store.lease_left > before
        await waiting(store, parcel(*begun(int(before * 1e9))))
    assert await store.sweep() == 0


async def test_placement_tells_where_a_run_is(open_postgres: Opener, store: PostgresStore) -> None:
    """Who holds it, for how long, and how many could."""
    other = await open_postgres()
    await other.enroll([("other", None), ("task", "2")])
    await waiting(store, parcel(*begun(1, version="1")), parcel(created(2, version="2")))
    one, two = await store.placement(run_id(1)), await store.placement(run_id(2))
    assert one is not None and two is not None
    assert (one.owner, one.epoch, one.messages, one.executors) == (store.executor_id, 1, 0, 1)
    assert one.host and one.pid and 0 < one.lease_seconds <= 15
    assert (two.owner, two.host, two.executors) == (None, "", 2)
    assert await store.placement(run_id(3)) is None
