"""Executors on three shards, each a PostgreSQL of its own, in two processes; and one of the servers goes away.

What is judged is judged as in `test_executors.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable import Durable, Handle, RunCancelledError, Status, TransitionError
from durable.core.ids import family_of
from durable.errors import RepositoryUnavailableError
from durable.store.postgres.shards.store import ShardedStore
from tests.acceptance import executors_worker as shapes
from tests.acceptance.executors import Place, all_runs, closed, judge, until
from tests.acceptance.shards_worker import store_of_all
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer

SECONDS_MAX = 60.0


@dataclass
class Shards(Place):
    """A `Place` whose store has shards; `url` is that of the first."""

    worker = "tests.acceptance.shards_worker"
    urls: list[str] = field(default_factory=list)

    def where(self) -> dict[str, Any]:
        return {"urls": self.urls}

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Durable]:
        store = store_of_all(self.urls, self.schema, **options)
        async with Durable(store, execute=False, test_mode=True, **shapes.settings(self.schema, **options)) as app:
            yield app

    async def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the tables of all shards."""
        found: list[tuple[Any, ...]] = []
        for url in self.urls:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                cursor = await connection.execute(query.replace("{s}", self.schema).encode(), values)
                found += await cursor.fetchall()
        return found


@pytest.fixture(scope="module")
def servers() -> Iterator[list[PostgresServer]]:
    need_postgres()
    with PostgresServer(tcp=True) as one, PostgresServer(tcp=True) as two, PostgresServer(tcp=True) as three:
        yield [one, two, three]


@pytest.fixture
async def place(servers: list[PostgresServer], tmp_path: Path) -> AsyncIterator[Shards]:
    for server in servers:
        if not server.running:
            server.start()
    urls = [server.url for server in servers]
    made = Shards(urls[0], "shards", tmp_path, urls=urls)
    try:
        yield made
    finally:
        await made.close()
        for server in servers:
            if not server.running:
                server.start()
            server.sql("DROP SCHEMA IF EXISTS shards CASCADE")


def store_of(app: Durable) -> ShardedStore:
    store = app.engine.store
    assert isinstance(store, ShardedStore)
    return store


async def results(handles: list[Handle[Any]]) -> list[Any]:
    async with asyncio.timeout(SECONDS_MAX):
        return list(await asyncio.gather(*(handle.wait() for handle in handles)))


@pytest.mark.timeout(180)
async def test_families_of_all_shapes_end(place: Shards) -> None:
    """Each on one shard, whichever process has its parts; all shards have some."""
    async with place.client() as app:
        await place.crew(2)
        handles = []
        for number in range(48):
            task = shapes.SHAPES[number % len(shapes.SHAPES)]
            chosen = task.options(key=f"run{number}") if number % 3 else task
            handles.append(await app.start(chosen, f"run{number}"))
            if task is shapes.signalled:
                await handles[-1].send("go", number)
        handles += [await app.start(shapes.nested, f"nested{number}", 2) for number in range(6)]
        handles += [await app.start(shapes.chained, f"chained{number}") for number in range(6)]
        await results(handles)
        await closed(place, app, SECONDS_MAX)
        await judge(place, app)
        runs = {run.run_id: run for run, _ in await all_runs(app)}
        for run in runs.values():
            assert run.parent_id is None or family_of(run.run_id) == family_of(run.parent_id)
        shards = Counter(store_of(app).shard_of(run_id) for run_id in runs)
        assert len(shards) == 3 and min(shards.values()) > len(runs) / 10, shards


@pytest.mark.timeout(180)
async def test_a_run_is_told_of_the_end_of_one_of_another_shard(place: Shards) -> None:
    """Keyed children that another run has started: what tells of them crosses from shard to shard, once."""
    async with place.client() as app:
        await place.crew(2)
        store = store_of(app)
        handles: list[Handle[Any]] = []
        crossed = 0
        for number in range(24):
            key = f"shared{number}"
            keyed = await app.start(shapes.leaf.options(key=key), key, 0.05)
            task = shapes.shares if number % 2 else shapes.awaits_shared
            handles += [keyed, await app.start(task, f"run{number}", key)]
            crossed += store.shard_of(keyed.run_id) != store.shard_of(handles[-1].run_id)
        assert crossed > 6
        found = await results(handles)
        for number in range(24):
            own, joined = found[2 * number : 2 * number + 2]
            assert own == f"shared{number}"
            assert own in [getattr(each, "result", each) for each in joined]
        await closed(place, app, SECONDS_MAX)
        await judge(place, app)
        assert await place.sql("SELECT * FROM {s}.strays") == []
        assert await place.sql("SELECT * FROM {s}.messages") == []


@pytest.mark.timeout(180)
async def test_64_starts_of_one_key_are_one_run(place: Shards) -> None:
    """From two processes at once, whatever shard the key falls to."""
    async with place.client() as app:
        crew = await place.crew(2)
        places = set()
        for number in range(12):
            ask = {"task": shapes.quick.name, "args": [number], "times": 32, "key": f"key{number}"}
            found = {
                run_id for some in await asyncio.gather(*(each.ask("start", **ask) for each in crew)) for run_id in some
            }
            assert len(found) == 1
            (run_id,) = found
            assert await (await app.get(run_id)).wait() == number + 1
            places.add(store_of(app).shard_of(run_id))
        assert len(await all_runs(app)) == 12
        assert len(places) > 1


@pytest.mark.timeout(180)
async def test_handles_reach_runs_on_every_shard(place: Shards) -> None:
    """Signals, events, cancels with all descendants, and retries, from a process that executes nothing."""
    async with place.client() as app:
        await place.crew(2)
        gate = str(place.gate)
        listening = [await app.start(shapes.listening, f"listening{number}") for number in range(9)]
        families = [await app.start(shapes.holder_of_holders, f"family{number}", gate) for number in range(6)]
        failing = [await app.start(shapes.failing, f"failing{number}", gate) for number in range(9)]
        assert {store_of(app).shard_of(handle.run_id) for handle in listening + families + failing} == {0, 1, 2}
        for number, handle in enumerate(listening):
            async for event in handle.events():
                if event.name == "begun":
                    assert event.data == f"listening{number}"
                    break
            await handle.send("go", number)
        assert await results(listening) == list(range(9))
        await place.acted(*(f"family{n}.{a}.{b}" for n in range(6) for a in range(2) for b in range(4)))
        await asyncio.gather(*(handle.cancel("enough") for handle in families))
        for handle in families:
            with pytest.raises(RunCancelledError):
                await handle.wait()
        await asyncio.gather(*(handle.wait() for handle in failing), return_exceptions=True)

        async def all_are_cancelled() -> bool:
            runs = [run for run, _ in await all_runs(app) if run.task == shapes.holding.name]
            return all(run.ended for run in runs)

        await until(all_are_cancelled, "the end of all descendants")
        place.open_gate()

        async def retried(handle: Handle[Any]) -> None:
            async def closed_by_then() -> bool:
                try:
                    await handle.retry()
                except TransitionError:
                    return False
                return True

            await until(closed_by_then, f"that {handle.run_id} can be retried")

        await asyncio.gather(*map(retried, failing))
        assert await results(failing) == [f"failing{number}.again" for number in range(9)]
        await closed(place, app, SECONDS_MAX)
        statuses = Counter((run.task, run.status) for run, _ in await all_runs(app))
        assert statuses[shapes.holding.name, Status.CANCELLED] == 6 * 2 * 4


async def sent(handle: Handle[Any], value: int) -> bool:
    """Send a signal, where the connection is not one that was lost while nobody used it."""
    try:
        await handle.send("go", value)
    except RepositoryUnavailableError:
        return False
    return True


@pytest.mark.timeout(180)
async def test_a_server_that_is_stopped_takes_only_its_own_runs_with_it(
    place: Shards, servers: list[PostgresServer]
) -> None:
    """Runs on the others go on, and new ones begin there; when it is back, everything ends."""
    async with place.client() as app:
        store = store_of(app)
        await place.crew(2)
        before = [await app.start(shapes.steps, f"before{number}", 0.2) for number in range(30)]
        waiting = [await app.start(shapes.listening, f"waiting{number}") for number in range(12)]
        await place.acted(*(f"waiting{number}.begun" for number in range(12)))
        lost = next(number for number in range(3) if str(servers[0].port) in store._fan.shards[number].place)
        servers[0].stop(immediate=True)

        def is_here(handle: Handle[Any]) -> bool:
            return store.shard_of(handle.run_id) != lost

        here = [handle for handle in before if is_here(handle)]
        assert 0 < len(here) < len(before)
        await results(here)
        for number, handle in enumerate(waiting):
            if is_here(handle):
                await handle.send("go", number)
                assert await handle.wait() == number
        with pytest.raises(RepositoryUnavailableError, match=str(servers[0].port)):
            _ = [run async for run in app.runs()]
        during = [await app.start(shapes.family, f"during{number}") for number in range(20)]
        assert all(map(is_here, during))
        await results(during)
        servers[0].start()
        await results(before)
        for number, handle in enumerate(waiting):
            if not is_here(handle):
                await until(partial(sent, handle, number), "that a signal is taken")
                assert await handle.wait() == number
        await closed(place, app, SECONDS_MAX)
        await judge(place, app)


@pytest.mark.timeout(180)
async def test_an_executor_closes_while_a_server_is_away(place: Shards, servers: list[PostgresServer]) -> None:
    """Its runs there go on with others, when the server is back and the lease has passed."""
    async with place.client() as app:
        (leaving,) = await place.crew(1)
        gate = str(place.gate)
        handles = [await app.start(shapes.holding, f"held{number}", gate) for number in range(12)]
        await place.acted(*(f"held{number}" for number in range(12)))
        servers[1].stop(immediate=True)
        await leaving.stop()
        place.open_gate()
        await place.executor()
        servers[1].start()
        assert await results(handles) == [f"held{number}" for number in range(12)]
