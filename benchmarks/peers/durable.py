"""`durable` itself, through its public names only, with its settings as they come but for those of the place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.effects import RECORDED, STEPS, effects
from benchmarks.place import Place
from durable import Config, Durable, step, task
from durable.config import PostgresSettings
from durable.observe import Observer


@step
async def increment(i: int) -> int:
    return i + 1


@step
async def numbered(run: int, number: int) -> int:
    return await effects.perform(run, number)


@task
async def one(i: int) -> int:
    return await increment(i)


@task
async def sequence(count: int) -> int:
    total = 0
    for i in range(count):
        total += await increment(i)
    return total


@task
async def fan(count: int) -> int:
    return sum(await asyncio.gather(*(increment(i) for i in range(count))))


@task
async def children(count: int) -> int:
    return sum(await asyncio.gather(*(one(i) for i in range(count))))


@task
async def five(run: int) -> int:
    total = 0
    for number in range(RECORDED):
        total += await numbered(run, number)
    return total


@task
async def ten(run: int) -> int:
    total = 0
    for number in range(STEPS):
        total += await numbered(run, number)
    return total


TASKS = {"one": one, "sequence": sequence, "fan": fan, "children": children, "five": five}


def application(place: Place, *, execute: bool = True, observers: Sequence[Observer] = ()) -> Durable:
    target = place.url or place.directory / "store"
    config = Config(postgres=PostgresSettings(**place.settings))
    return Durable(target, config=config, execute=execute, observers=observers)


class Local:
    def __init__(self, app: Durable) -> None:
        self._app = app

    async def run(self, body: str, argument: int) -> int:
        handle = await self._app.start(TASKS[body], argument)
        return await handle.wait()

    async def begin(self, argument: int) -> str:
        return (await self._app.start(ten, argument)).run_id

    async def recovered(self, run_ids: list[str]) -> list[int]:
        handles = [await self._app.get(run_id) for run_id in run_ids]
        return list(await asyncio.gather(*(handle.wait() for handle in handles)))


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Local]:
    async with application(place) as app:
        yield Local(app)
