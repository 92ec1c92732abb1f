"""Retention: closed runs go, with their events and payloads, when they have been closed for long enough, whatever else happens."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable import Child, Context, Durable, Handle, Limits, RunFailedError, RunNotFoundError, Status, step, task
from durable.config import Config, RetentionSettings
from durable.core.query import RunFilter
from durable.core.run import Run
from durable.store import LocalStore
from durable.testing.repository import MemoryRepository, away
from tests.acceptance import keeping_worker
from tests.acceptance.grounds import SECONDS_MAX, Ground, folder, memory, postgres, until

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("DURABLE_KEEPING_KILLS", "8"))
DAY = 86_400.0

failing: set[str] = set()


@pytest.fixture(params=["memory", "folder", "postgres"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    if request.param == "memory":
        return memory()
    if request.param == "folder":
        return folder(tmp_path / "store")
    return postgres(request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres_schema"))


@step(name="retention_step")
async def stepped(text: str) -> str:
    return text * 2


@task(name="retention_brief")
async def brief(ctx: Context[Any], text: str) -> str:
    await ctx.emit("said", {"text": text})
    return await stepped(text)


@task(name="retention_waiter")
async def waiter(ctx: Context[Any]) -> Any:
    return await ctx.wait_for("go")


@task(name="retention_family")
async def family(text: str) -> list[Child[Any]]:
    return [brief.child(text), waiter.child()]


@task(name="retention_spawner")
async def spawner() -> str:
    return (await waiter.start()).run_id


@task(name="retention_fails")
async def fails(what: str) -> None:
    if what in failing:
        raise OSError(what)


async def all_runs(app: Durable) -> dict[str, Run]:
    return {run.run_id: run for run in await app.store.query(RunFilter(limit=100_000))}


async def gone(app: Durable, count: int) -> None:
    """Wait until only so many runs are left."""

    async def left() -> bool:
        return await app.store.count(RunFilter()) == count

    await until(left, f"{count} runs are left")


async def test_what_has_been_closed_for_long_goes_and_nothing_else(
    ground: Ground, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """2,000 runs, with events and payloads, beside families of which one member still waits, and work that goes on meanwhile."""
    async with ground.app() as app:
        for start in range(0, 2_000, 250):
            await asyncio.gather(*[await app.start(brief, f"{number}") for number in range(start, start + 250)])
        keyed = await app.start(brief.options(key="k"), "keyed")
        await keyed
        families = [await app.start(family, "member") for _ in range(5)]
        spawned = [await app.start(spawner) for _ in range(5)]
        for handle in spawned:
            await handle
        waiting = await app.start(waiter)
        ground.clock.seconds = 2 * DAY
        young = await app.start(brief, "young")
        await young
        before = await all_runs(app)
    kept = {young.run_id, waiting.run_id, *(handle.run_id for handle in (*families, *spawned))}
    kept |= {run.run_id for run in before.values() if run.parent_id in kept}
    assert len(before) == 2_001 + 1 + 1 + 15 + 10 and len(kept) == 27
    async with ground.app(closed_seconds=DAY, batch_runs=100) as app:
        for number in range(20):  # work goes on between the batches
            assert await (await app.start(brief.options(key=f"meanwhile{number}"), "x")) == "xx"
        await gone(app, 27 + 20)
        after = await all_runs(app)
        assert kept <= after.keys() and all(after[run_id] == before[run_id] for run_id in kept if before[run_id].closed)
        with pytest.raises(RunNotFoundError):
            await app.get(keyed.run_id)
        assert await app.find("k") is None
        again = await app.start(brief.options(key="k"), "again")
        assert again.run_id != keyed.run_id and await again == "againagain"
        await (await app.get(waiting.run_id)).send("go", 1)
        assert await (await app.get(waiting.run_id)) == 1
        for handle in families:  # they go on as if nothing had been beside them
            for child in await (await app.get(handle.run_id)).children():
                if await child.status() is not Status.COMPLETED:
                    await child.send("go", 2)
            found = await (await app.get(handle.run_id))
            assert [child.result for child in found] == ["membermember", 2]
    async with ground.app() as app:
        runs = await all_runs(app)
        assert keyed.run_id not in runs and kept <= runs.keys()
    assert records_of_nobody(ground, request, tmp_path) == 0


def records_of_nobody(ground: Ground, request: pytest.FixtureRequest, tmp_path: Path) -> int:
    """How many records are left of runs that are gone, as the database itself says."""
    query = "SELECT count(*) FROM {0}records WHERE run_id NOT IN (SELECT run_id FROM {0}runs)"
    if ground.name == "folder":
        with sqlite3.connect(tmp_path / "store" / "repository.db") as connection:
            return int(connection.execute(query.format("")).fetchone()[0])
    if ground.name == "postgres":
        with psycopg.connect(request.getfixturevalue("postgres_url")) as session:
            schema = request.getfixturevalue("postgres_schema")
            row = session.execute(query.format(f"{schema}.").encode()).fetchone()
            assert row is not None
            return int(row[0])
    return 0


async def test_dead_letters_stay_until_they_are_discarded(ground: Ground) -> None:
    """However long ago they died: somebody may still want them."""
    failing.add("a")
    async with ground.app(closed_seconds=0.0, limits=Limits(dead_letter_ttl=100 * DAY)) as app:
        dead = await app.start(fails, "a")
        with pytest.raises(RunFailedError):
            await dead
        fine = await app.start(brief, "x")
        ground.clock.seconds = DAY
        await gone(app, 1)
        assert (await dead.info()).dead
        with pytest.raises(RunNotFoundError):
            await fine.info()
        await app.dead_letters.discard(dead.run_id)
        await gone(app, 0)
        with pytest.raises(RunNotFoundError):
            await dead.retry()


async def test_too_old_a_letter_goes_by_itself(ground: Ground) -> None:
    """First it is discarded, then it is forgotten."""
    failing.add("b")
    async with ground.app(closed_seconds=10.0, limits=Limits(dead_letter_ttl=3_600.0)) as app:
        dead = await app.start(fails, "b")
        with pytest.raises(RunFailedError):
            await dead
        ground.clock.seconds = 7_200.0
        await gone(app, 0)


async def test_nothing_goes_unless_it_is_said_for_how_long_it_stays(ground: Ground) -> None:
    """By default all is kept."""
    async with ground.app() as app:
        await (await app.start(brief, "x"))
        ground.clock.seconds = 1_000 * DAY
    async with ground.app(closed_seconds=2_000 * DAY) as app:
        await (await app.start(brief, "y"))
        await asyncio.sleep(0.3)  # some looks
        assert await app.store.count(RunFilter()) == 2


# -- who looks at what goes


async def test_who_follows_what_goes_is_told(ground: Ground) -> None:
    """A reader in the middle of a run, one that comes too late, and one that waits: an error that says so, and nobody hangs."""
    async with ground.app() as app:
        handles = [await app.start(brief, f"{number}") for number in range(20)]
        for handle in handles:
            await handle
        readers = [handle.events(steps=True) for handle in handles]
        for reader in readers:
            assert (await anext(reader)).name == "created"
    ground.clock.seconds = DAY
    async with ground.app(closed_seconds=1.0) as app:
        handles = [Handle(app._engine, handle.run_id, None) for handle in handles]
        seen: list[list[str]] = [[] for _ in handles]

        async def follow(number: int) -> None:
            async for event in handles[number].events(steps=True):
                seen[number].append(event.name)

        readings = [asyncio.ensure_future(follow(number)) for number in range(20)]
        await gone(app, 0)
        outcomes = await asyncio.wait_for(asyncio.gather(*readings, return_exceptions=True), SECONDS_MAX)
        for names, outcome in zip(seen, outcomes, strict=True):
            assert isinstance(outcome, RunNotFoundError) or (
                outcome is None and names[-1] in ("completed", "step:closed")
            )
        asks: list[Callable[[Handle[Any]], Awaitable[Any]]] = [
            Handle.wait, Handle.info, Handle.status, Handle.cancel, Handle.retry, Handle.children, Handle.stop, Handle.resume,
        ]  # fmt: skip
        for ask in asks:
            with pytest.raises(RunNotFoundError):
                await asyncio.wait_for(ask(handles[0]), SECONDS_MAX)
        with pytest.raises(RunNotFoundError):
            await asyncio.wait_for(handles[0].send("go"), SECONDS_MAX)


async def test_a_retry_meets_its_end(ground: Ground) -> None:
    """A run that is retried while it may be forgotten goes on, or it is told to be gone; the application goes on in any case."""
    names = [f"r{number}" for number in range(60)]
    failing.update(names)
    async with ground.app() as app:
        handles = [await app.start(fails, name) for name in names]
        for handle in handles:
            with pytest.raises(RunFailedError):
                await handle
            await app.dead_letters.discard(handle.run_id)
    failing.difference_update(names)
    ground.clock.seconds = DAY
    async with ground.app(closed_seconds=100.0, batch_runs=2) as app:
        handles = [Handle(app._engine, handle.run_id, None) for handle in handles]
        outcomes = await asyncio.gather(*(handle.retry() for handle in handles), return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, RunNotFoundError) for outcome in outcomes), outcomes
        for handle, outcome in zip(handles, outcomes, strict=True):
            if outcome is None:
                await handle.wait()
        assert await (await app.start(brief, "x")) == "xx"
        await gone(app, outcomes.count(None) + 1)


async def test_a_parent_that_is_open_keeps_the_child_that_its_key_named(ground: Ground) -> None:
    """The child is another one's, and long over, when the parent looks at what became of it."""

    async def add_up(children: list[Child[Any]]) -> Any:
        return [child.result for child in children]

    @task(name="retention_named", on_children_complete=add_up)
    async def named() -> list[Child[Any]]:
        return [waiter.options(key="named").child(), waiter.options(key="own").child()]

    async with ground.app(closed_seconds=10.0) as app:
        child = await app.start(waiter.options(key="named"))
        parent = await app.start(named)

        async def both_wait() -> bool:
            return await app.find("own") is not None

        await until(both_wait, "the parent waits")
        await child.send("go", 1)
        assert await child == 1
        ground.clock.seconds = DAY
        for _ in range(5):
            await asyncio.sleep(0.06)
        own = await app.find("own")
        assert own is not None
        await own.send("go", 2)
        assert await parent == [1, 2]
        ground.clock.seconds = 2 * DAY
        await gone(app, 0)


# -- when things go wrong


async def test_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Work goes on, and what is over goes later."""
    repository = MemoryRepository()
    store = LocalStore(tmp_path / "store", repository=repository)
    config = Config(retention=RetentionSettings(closed_seconds=0.0, interval_seconds=0.05))
    async with Durable(store, config=config) as app:
        repository.away = away()
        handle = await app.start(brief, "x")
        assert await handle == "xx"
        await asyncio.sleep(0.3)  # looks that fail
        assert await handle.status() is Status.COMPLETED
        repository.away = None
        await gone(app, 0)


async def test_forgetting_is_whole_whenever_it_is_killed(tmp_path: Path) -> None:
    """Killed at random moments: no family is left in parts, what is gone stays gone, and each opening finds a store in order."""
    rng = random.Random(5)
    path = tmp_path / "store"
    forgotten: set[str] = set()
    known: set[str] = set()
    for life in range(KILLS):
        process = await asyncio.to_thread(_begin, path)
        await asyncio.sleep(rng.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
        store = LocalStore(path, read_only=bool(life % 2))
        await store.open()
        runs = {run.run_id: run for run in await store.query(RunFilter(limit=1_000_000))}
        histories = await store.histories(list(runs))
        await store.close()
        assert forgotten.isdisjoint(runs)
        forgotten |= known - runs.keys()
        known |= runs.keys()
        for run in runs.values():
            assert len(histories[run.run_id]) == run.seq
            assert run.parent_id is None or run.parent_id in runs
            if run.parent_id is None and run.returned_seq:
                assert sum(other.parent_id == run.run_id for other in runs.values()) == 2
    assert forgotten
    async with keeping_worker.pruning(str(path), 100) as app:
        await gone(app, 0)


def _begin(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.acceptance.keeping_worker", "prunes", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    process.stdout.close()
    return process


async def test_a_repository_that_is_built_anew_has_a_key_once(tmp_path: Path) -> None:
    """Where only the log is left it brings back what was forgotten; but of two runs with one key the one that has it now."""
    path = tmp_path / "store"
    config = Config(retention=RetentionSettings(closed_seconds=0.0, interval_seconds=0.02))
    async with Durable(path, config=config) as app:
        for _ in range(3):
            first = await app.start(brief.options(key="k"), "x")
            await first
            await gone(app, 0)
    async with Durable(path) as app:
        last = await app.start(brief.options(key="k"), "x")
        await last
    for file in path.glob("repository.db*"):
        file.unlink()
    async with Durable(path) as app:
        found = await app.find("k")
        assert found is not None and found.run_id == last.run_id
        assert app.store.health().state == "ok"


# -- many executors


async def test_executors_that_share_a_store_do_it_once(postgres_url: str, postgres_schema: str) -> None:
    """They meet at the same rows, wait for nobody, and nothing is left."""
    ground = postgres(postgres_url, postgres_schema)
    async with ground.app() as app:
        await asyncio.gather(*[await app.start(brief, f"{number}") for number in range(400)])
    ground.clock.seconds = DAY
    apps = [ground.app(closed_seconds=1.0, batch_runs=7) for _ in range(4)]
    for each in apps:
        await each.open()
    try:
        assert await (await apps[0].start(brief, "x")) == "xx"
        await gone(apps[0], 1)
    finally:
        for each in apps:
            await each.close()
