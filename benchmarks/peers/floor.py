"""The floor engine's bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.effects import RECORDED, STEPS, effects
from benchmarks.floor_engine import Engine, Log, child, step
from benchmarks.place import Place


@step
async def increment(i: int) -> int:
    return i + 1


@step
async def numbered(run: int, number: int) -> int:
    return await effects.perform(run, number)


async def one(i: int) -> int:
    result: int = await increment(i)
    return result


async def sequence(count: int) -> int:
    total = 0
    for i in range(count):
        total += await increment(i)
    return total


async def fan(count: int) -> int:
    return sum(await asyncio.gather(*(increment(i) for i in range(count))))


async def children(count: int) -> int:
    return sum(await asyncio.gather(*(child("one", i) for i in range(count))))


async def five(run: int) -> int:
    total = 0
    for number in range(RECORDED):
        total += await numbered(run, number)
    return total


async def ten(run: int) -> int:
    total = 0
    for number in range(STEPS):
        total += await numbered(run, number)
    return total


BODIES = {body.__name__: body for body in (one, sequence, fan, children, five, ten)}


class Floor:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def run(self, body: str, argument: int) -> int:
        result: int = await self._engine.result(await self._engine.start(body, argument))
        return result

    async def begin(self, argument: int) -> str:
        return await self._engine.start("ten", argument)

    async def recovered(self, run_ids: list[str]) -> list[int]:
        return list(await asyncio.gather(*(self._engine.result(run_id) for run_id in run_ids)))


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Floor]:
    if place.url:
        from benchmarks.floor_table import Table  # psycopg is not needed for the other one

        table = await Table.open(place.url)
        engine = Engine(table, BODIES)
        engine.recover(await table.replay())
    else:
        log = Log(place.directory / "floor.log")
        engine = Engine(log, BODIES)
        engine.recover(log.replay())
    yield Floor(engine)
