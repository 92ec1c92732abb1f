"""Executors and clients in processes of their own, on PostgreSQL: the children's side of `elsewhere`, `idle` and `scale`.

executor   opens the store, says OPEN, and executes until it is killed
elsewhere  a client that executes nothing: runs one after another, from `start` to the result
fill-BODY  a client that starts runs and goes
"""

from __future__ import annotations

import asyncio

from benchmarks.peers.durable import Local, application, one, ten
from benchmarks.place import Place
from benchmarks.workloads import CONCURRENCY, Figures, one_after_another

BODIES = {"fill-one": one, "fill-ten": ten}


async def execute(place: Place) -> None:
    async with application(place):
        print("OPEN", flush=True)
        await asyncio.Event().wait()


async def elsewhere(place: Place, count: int) -> Figures:
    async with application(place, execute=False) as app:
        peer = Local(app)
        assert await peer.run("one", 0) == 1
        return await one_after_another(peer, count)


async def fill(place: Place, body: str, count: int) -> None:
    numbers = iter(range(count))

    async with application(place, execute=False) as app:

        async def client() -> None:
            for i in numbers:
                await app.start(BODIES[body], i)

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))


async def measure(workload: str, place: Place, count: int) -> Figures:
    if workload == "executor":
        await execute(place)
    if workload == "elsewhere":
        return await elsewhere(place, count)
    await fill(place, workload, count)
    return {}
