"""Runs that are in the store, which `durable` has to itself: what they cost a process that opens it, and runs beside them.

One process starts runs that sleep, or puts in runs that have ended, and closes the store. Then, in alternation, one process opens that
store and another one an empty store; each starts runs of one step, one after another, beside whatever is there. Starting takes minutes,
so it is done once.
"""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

import durable
from benchmarks.ended import copy
from benchmarks.memory import Peak, resident_mb
from benchmarks.peers.durable import Local, application, one
from benchmarks.place import Place
from benchmarks.workloads import ASLEEP_QUEUED_MAX, ASLEEP_STARTERS, Figures, one_after_another
from durable import BackpressureError, Config, Durable, Limits, Status, task

SAMPLES = 20
HOURS = 6 * 3600.0
DELAYED = 10  # one run in so many has not begun, the others sleep in their bodies
#: Runs that a process may have in hand: bodies that hold a slot, as nobody needs it, and others.
LOADED_MAX = Limits().max_running + Config().engine.idle_runs_max


@task
async def sleeper(i: int) -> int:
    await durable.sleep(HOURS)
    return i


later = one.options(delay=HOURS)


async def fill(place: Place, count: int) -> Figures:
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

    async with application(place.named("full")) as app:
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
        (place.directory / "samples.json").write_text(json.dumps(samples))
    return {"start s": took, "starts put off": refused, "start peak MB": peak.above_mb}


async def fill_with_ended(place: Place, count: int) -> Figures:
    """Put runs that have ended into the store, as copies of one."""
    store = place.named("full")
    async with application(store) as app:
        handle = await app.start(one, 0)
        assert await handle.wait() == 1
    took = await copy(store, handle.run_id, count)
    (place.directory / "samples.json").write_text("[]")
    return {"copy s": took}


async def beside(place: Place, runs: int, *, empty: bool) -> Figures:
    """Open one of the two stores, and measure runs beside what is in it."""
    store = place.named("empty" if empty else "full")
    began = perf_counter()
    async with application(store) as app:
        opened = perf_counter() - began
        await calm(app)
        resident = resident_mb()
        assert (await app.stats()).loaded <= LOADED_MAX, await app.stats()
        peer = Local(app)
        assert await peer.run("one", 0) == 1
        figures = {"W1 p50 ms": (await one_after_another(peer, runs))["p50 ms"]}
        if place.url:
            async with application(store, execute=False) as client:
                figures["claimed p50 ms"] = (await one_after_another(Local(client), runs))["p50 ms"]
        if not empty:
            await check(app, json.loads((place.directory / "samples.json").read_text()))
    return {"open s": opened, "MB": resident, **figures}


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


async def measure(workload: str, place: Place, count: int) -> Figures:
    if workload.endswith("fill"):
        return await (fill if workload == "asleep-fill" else fill_with_ended)(place, count)
    return await beside(place, count, empty=workload.endswith("empty"))
