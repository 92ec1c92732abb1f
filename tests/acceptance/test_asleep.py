"""Runs that sleep take nothing but their place in the store: the benchmark *asleep*, small, and without its times."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import durable
from durable import Config, Context, Durable, Handle, Limits, Status, task
from durable.clock import SystemClock
from durable.config import EngineSettings

SLEEPING, DELAYED, DUE = 4_480, 500, 20
#: A body keeps its slot as long as nobody else needs it; beside those, so many runs may stay in memory.
SLOTS, IDLE = 50, 100
CLIENTS = 100
HOUR = 3600.0
CONFIG = Config(engine=EngineSettings(idle_runs_max=IDLE, idle_seconds=0.01))

begun: Counter[int] = Counter()


@task(name="asleep_sleeper")
async def sleeper(number: int, hours: float) -> int:
    begun[number] += 1
    await durable.sleep(hours * HOUR)
    return number


@task(name="asleep_waiter")
async def waiter(ctx: Context) -> None:
    await ctx.wait_for("go")


@task(name="asleep_brief")
async def brief(number: int) -> int:
    return number + 1


class Later(SystemClock):
    """The machine's clock, set forward by some hours."""

    def __init__(self, hours: float) -> None:
        self.hours = hours

    def now(self) -> float:  # type: ignore[override]
        return time.time() + self.hours * HOUR


def an_app(folder: Path, hours: float = 0.0) -> Durable:
    return Durable(folder, config=CONFIG, limits=Limits(max_running=SLOTS), clock=Later(hours))


async def start(number: int) -> Handle[int]:
    """Start one of the runs: the last ones sleep for an hour, those before for ten."""
    if number < DELAYED:
        return await brief.options(delay=10 * HOUR).start(number)
    return await sleeper.start(number, 10.0 if number < DELAYED + SLEEPING else 1.0)


async def start_all() -> list[Handle[int]]:
    """Start all of them, so many at a time."""
    total = DELAYED + SLEEPING + DUE
    handles: list[Handle[int]] = []
    for first in range(0, total, CLIENTS):
        handles += await asyncio.gather(*(start(number) for number in range(first, min(first + CLIENTS, total))))
    return handles


async def until_loaded(app: Durable, most: int) -> None:
    """Wait until no run waits for a slot, and no more than so many are in memory."""
    async with asyncio.timeout(60):
        while (stats := await app.stats()).queued or stats.loaded > most:
            await asyncio.sleep(0.01)


async def take_the_slots(app: Durable) -> None:
    """Have other runs need all the slots that bodies asleep hold, and give them back."""
    others = [await waiter.start() for _ in range(SLOTS)]
    async with asyncio.timeout(60):
        for other in others:
            while await other.status() is not Status.RUNNING:
                await asyncio.sleep(0.01)
    for other in others:
        await other.send("go")
    for other in others:
        await other.wait(timeout=60)
    await until_loaded(app, IDLE + SLOTS)


async def test_runs_asleep_are_in_the_store_only(store_dir: Path) -> None:
    """Of 5,000 runs asleep few are in memory, and none after opening; one beside them ends, and those that are due wake, once."""
    begun.clear()
    async with an_app(store_dir) as app:
        handles = await start_all()
        await until_loaded(app, IDLE + SLOTS)
        async with asyncio.timeout(60):
            while (await app.stats()).running:  # again, should one have been about to record that it sleeps
                await take_the_slots(app)
    run_ids = [handle.run_id for handle in handles]

    async with an_app(store_dir) as app:
        assert (await app.stats()).loaded == 0
        assert await (await brief.start(1)).wait(timeout=60) == 2
        assert await (await app.get(run_ids[0])).status() is Status.READY
        assert await (await app.get(run_ids[-1])).status() is Status.RUNNING
        assert (await app.stats()).loaded <= 1  # the run beside them may not have gone yet
    assert set(begun) == set(range(DELAYED, DELAYED + SLEEPING + DUE)) and set(begun.values()) == {1}

    async with an_app(store_dir, hours=1.0) as app:
        for number, run_id in list(enumerate(run_ids))[-DUE:]:
            handle = await app.get(run_id)
            assert await handle.wait(timeout=60) == number
            assert (await handle.info()).recoveries == 0
        await until_loaded(app, 0)
    woken = {number for number, count in begun.items() if count > 1}
    assert woken == set(range(DELAYED + SLEEPING, DELAYED + SLEEPING + DUE))
