"""Runs that sleep cost a process nothing but their place in the store: the benchmark *asleep*, small, and without its times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import durable
from durable import Config, Durable, Limits, Status, task
from durable.config import EngineSettings

SLEEPING, DELAYED, DUE = 4_500, 500, 20
#: Bodies keep their slots as long as nobody else needs them; beside those, so many runs may stay in memory.
SLOTS, IDLE = 10, 100
HOURS = 6 * 3600.0
CONFIG = Config(engine=EngineSettings(idle_runs_max=IDLE, idle_seconds=0.01))


@task(name="asleep_sleeper")
async def sleeper(number: int) -> int:
    await durable.sleep(HOURS)
    return number


@task(name="asleep_waiter")
async def waiter(ctx: durable.Context, number: int) -> int:
    answer: int = await ctx.wait_for("go")
    return number + answer


@task(name="asleep_brief")
async def brief(number: int) -> int:
    return number + 1


@asynccontextmanager
async def opened(folder: Path, clock: Clock) -> AsyncIterator[Durable]:
    async with Durable(folder, config=CONFIG, limits=Limits(max_running=SLOTS)) as app:
        yield app
