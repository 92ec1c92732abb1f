"""DBOS on SQLite or on PostgreSQL, as its own documentation sets it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dbos import DBOS, DBOSConfig

from benchmarks.effects import RECORDED, STEPS, effects
from benchmarks.place import Place

ended = 0  # bodies of `ten` that have ended in this process


@DBOS.step()
async def increment(i: int) -> int:
    return i + 1


@DBOS.step()
async def numbered(run: int, number: int) -> int:
    return await effects.perform(run, number)


@DBOS.workflow()
async def one(i: int) -> int:
    return await increment(i)


@DBOS.workflow()
async def sequence(count: int) -> int:
    total = 0
    for i in range(count):
        total += await increment(i)
    return total


@DBOS.workflow()
async def fan(count: int) -> int:
    return sum(await asyncio.gather(*(increment(i) for i in range(count))))


@DBOS.workflow()
async def children(count: int) -> int:
    return sum(await asyncio.gather(*(one(i) for i in range(count))))


@DBOS.workflow()
async def five(run: int) -> int:
    total = 0
    for number in range(RECORDED):
        total += await numbered(run, number)
    return total


@DBOS.workflow()
async def ten(run: int) -> int:
    global ended  # noqa: PLW0603 - counted so that the wait for recovery does not load the database with polls
    total = 0
    for number in range(STEPS):
        total += await numbered(run, number)
    ended += 1
    return total


WORKFLOWS = {"one": one, "sequence": sequence, "fan": fan, "children": children, "five": five}


class Dbos:
    async def run(self, body: str, argument: int) -> int:
        handle = await DBOS.start_workflow_async(WORKFLOWS[body], argument)
        return await handle.get_result()

    async def begin(self, argument: int) -> str:
        return (await DBOS.start_workflow_async(ten, argument)).get_workflow_id()

    async def recovered(self, run_ids: list[str]) -> list[int]:
        while ended < len(run_ids):
            await asyncio.sleep(0.02)
        while await DBOS.list_workflows_async(status=["PENDING", "ENQUEUED"], name=ten.__qualname__, limit=1):
            await asyncio.sleep(0.02)
        outputs = {run.workflow_id: run.output for run in await DBOS.list_workflows_async(name=ten.__qualname__)}
        return [outputs[run_id] for run_id in run_ids]


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Dbos]:
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": place.url or f"sqlite:///{place.directory / 'dbos.sqlite'}",
        "application_version": "1",
        "log_level": "CRITICAL",
    }
    DBOS(config=config)
    DBOS.launch()
    yield Dbos()
