"""Several executors on the same runs, with sessions ended under them at random: what was told is what is there."""

from __future__ import annotations

import asyncio
import random

import psycopg

from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import fold
from durable.errors import LeaseLostError, RepositoryUnavailableError
from durable.store import PostgresStore
from durable.store.shared import Parcel
from durable.testing.samples import NOW, number_of, run_id

from .conftest import Opener
from .parcels import TASK, begun, parcel, step

RUNS = 12


class Executor:
    """Holds runs, loses them, and writes of those that it believes to hold."""

    def __init__(self, store: PostgresStore, number: int) -> None:
        self.store = store
        self.random = random.Random(number)
        self.number = number
        self.held: dict[str, tuple[int, int]] = {}
        self.written: list[Parcel] = []
        self.refused: list[Parcel] = []

    async def live(self, turns: int) -> None:
        for _ in range(turns):
            await self.patiently(self.turn)

    async def patiently(self, action: object) -> None:
        assert callable(action)
        while True:
            try:
                return await action()
            except RepositoryUnavailableError:
                await asyncio.sleep(0.01)

    async def turn(self) -> None:
        chance = self.random.random()
        if chance < 0.3:
            for held in (await self.store.claim(TASK, self.random.randint(1, 4), NOW)).held:
                self.held[held.run.run_id] = (held.epoch, held.run.seq)
        elif chance < 0.35:
            await self.store.release([(run_id, epoch) for run_id, (epoch, _) in self.held.items()])
        elif chance < 0.4:
            await self.store.renew(TASK)
        elif chance < 0.43:
            await self.store.enroll(TASK)  # what it believes to hold is lost now
        else:
            await self.write()

    async def write(self) -> None:
        chosen = self.random.sample(sorted(self.held), min(len(self.held), self.random.randint(1, 5)))
        parcels = []
        for each in chosen:
            epoch, seq = self.held[each]
            for _ in range(self.random.randint(1, 3)):
                seq += 1
                made = step(number_of(each), seq, b"%d" % self.number)
                parcels.append(parcel(made, epochs={number_of(each): epoch}))
        outcomes = []

        async def hand_in() -> None:
            outcomes[:] = await self.store.write(parcels)

        await self.patiently(hand_in)
        for each, outcome in zip(parcels, outcomes, strict=True):
            (record,) = each.records
            if outcome is None:
                self.written.append(each)
                self.held[record.run_id] = (each.epochs[record.run_id], record.seq)
            else:
                assert isinstance(outcome, LeaseLostError), outcome
                self.refused.append(each)
                self.held.pop(record.run_id, None)


async def test_what_was_told_is_what_is_there(open_postgres: Opener, postgres_url: str, postgres_schema: str) -> None:
    """Every record once, by who held the run; every run as its records say; nothing of what was refused."""
    stores = [await open_postgres() for _ in range(3)]
    for store in stores:
        await store.enroll(TASK)
    executors = [Executor(store, number) for number, store in enumerate(stores)]
    await stores[0].write([parcel(*begun(number)) for number in range(RUNS)])
    await stores[0].enroll(TASK)

    async def murder() -> None:
        choose = random.Random(1)
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
            while True:
                await asyncio.sleep(0.03 + 0.1 * choose.random())
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND query LIKE %s ORDER BY random() LIMIT 1",
                    (f"%{postgres_schema}%",),
                )

    murderer = asyncio.ensure_future(murder())
    async with asyncio.timeout(60):
        await asyncio.gather(*(executor.live(150) for executor in executors))
    murderer.cancel()
    runs = {run.run_id: run for run in await stores[0].query(RunFilter())}
    histories = await stores[0].histories(list(runs))
    assert sorted(runs) == [run_id(number) for number in range(RUNS)]
    there: dict[tuple[str, int], Record] = {}
    for each, records in histories.items():
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert fold(records) == runs[each]
        assert [record.batch for record in records[1:]] == sorted({record.batch for record in records[1:]})
        there.update({(each, record.seq): record for record in records[2:]})
    told = {(record.run_id, record.seq): record for each in executors for own in each.written for record in own.records}
    assert told == there
    assert len(told) == sum(len(each.written) for each in executors) > 300
    assert all(each.refused for each in executors)
