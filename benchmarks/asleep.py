"""Runs that sleep in the store, which `durable` has to itself: what they cost a process that opens it, and runs beside them.

One process starts the runs and closes the store. Then, in alternation, one process opens that store and another one an empty
store; each starts runs of one step, one after another, beside whatever is there. Starting takes minutes, so it is done once.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import perf_counter

import durable
from benchmarks.memory import Peak, resident_mb
from benchmarks.workloads import ASLEEP_QUEUED_MAX, ASLEEP_STARTERS, Figures, one_after_another
from durable import BackpressureError, Config, Durable, Limits, Status, step, task

SAMPLES = 20
HOURS = 6 * 3600.0
DELAYED = 10  # one run in so many has not begun, the others sleep in their bodies
#: Runs that a process may have in hand: bodies that hold a slot, as nobody needs it, and others.
LOADED_MAX = Limits().max_running + Config().engine.idle_runs_max


@step
async def increment(i: int) -> int:
    return i + 1


@task
async def one(i: int) -> int:
    return await increment(i)


@task
async def sleeper(i: int) -> int:
    await durable.sleep(HOURS)
    return i


later = one.options(delay=HOURS)


class Beside:
    """An open application, for the workload W1."""

    def __init__(self, app: Durable) -> None:
        self._app = app

    async def run(self, body: str, argument: int) -> int:
        return await (await self._app.start(one, argument)).wait()


async def fill(directory: Path, count: int) -> Figures:
    """Start the runs; until all of them are asleep, none waits for a slot, and the log is flushed."""
    numbers = iter(range(count))
    samples: list[str] = []
    refused = 0

    room = asyncio.Event()

    async def watch(app: Durable) -> None:
        while True:
            if (await app.stats()).queued > ASLEEP_QUEUED_MAX:
                room.clear()
            else:
                room.set()
            await asyncio.sleep(0.02)

    async def client(app: Durable) -> None:
        nonlocal refused
        for i in numbers:
            while True:
                await room.wait()
                try:
                    handle = await app.start(later if i % DELAYED == 0 else sleeper, i)
                except BackpressureError as error:
                    refused += 1
                    await asyncio.sleep(error.retry_after)
                else:
                    break
            if i % (count // SAMPLES) < 2:  # one that has not begun, and a sleeper
                samples.append(handle.run_id)

    async with Durable(directory / "asleep") as app:
        with Peak() as peak:
            began = perf_counter()
            watching = asyncio.create_task(watch(app))
            await asyncio.gather(*(client(app) for _ in range(ASLEEP_STARTERS)))
            while (await app.stats()).queued:
                await asyncio.sleep(0.05)
            took = perf_counter() - began
            watching.cancel()
            await calm(app)
        assert (await app.stats()).loaded <= LOADED_MAX, await app.stats()
        await check(app, samples)
        (directory / "samples.json").write_text(json.dumps(samples))
    return {"start s": took, "starts put off": refused, "start peak MB": peak.above_mb}


async def beside(directory: Path, runs: int, *, empty: bool) -> Figures:
    """Open one of the two stores, and measure runs beside what is in it."""
    began = perf_counter()
    async with Durable(directory / ("empty" if empty else "asleep")) as app:
        opened = perf_counter() - began
        await calm(app)
        resident = resident_mb()
        assert (await app.stats()).loaded <= LOADED_MAX, await app.stats()
        peer = Beside(app)
        assert await peer.run("one", 0) == 1
        figures = await one_after_another(peer, runs)
        if not empty:
            await check(app, json.loads((directory / "samples.json").read_text()))
    return {"open s": opened, "MB": resident, "p50 ms": figures["p50 ms"]}


async def calm(app: Durable) -> None:
    """Wait until everything is flushed, and the number of runs in hand has been the same for half a second."""
    before, since = -1, 0.0
    while True:
        stats = await app.stats()
        if stats.loaded != before or stats.queued or stats.health.backlog_records:
            before, since = stats.loaded, perf_counter()
        elif perf_counter() - since > 0.5:
            return
        await asyncio.sleep(0.02)


async def check(app: Durable, samples: list[str]) -> None:
    """These runs are there and have not ended: those of `sleeper` are asleep, the others have not begun."""
    for run_id in samples:
        info = await (await app.get(run_id)).info()
        assert info.status is (Status.RUNNING if info.task_name == sleeper.name else Status.READY), info


async def measure(workload: str, directory: Path, count: int) -> Figures:
    if workload == "asleep-fill":
        return await fill(directory, count)
    return await beside(directory, count, empty=workload == "asleep-empty")
