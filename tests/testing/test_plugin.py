"""The pytest plugin, used as a project uses it: its fixtures come with the installed package."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import durable
from durable import Context, Durable, Retry, step, task
from durable.testing.plugin import LoopClock

attempts: list[float] = []


@step(name="plugin_flaky", retry=Retry(4, delay=60.0))
async def flaky() -> int:
    attempts.append(durable.now().timestamp())
    if len(attempts) < 4:
        raise ConnectionError("not yet")
    return len(attempts)


@task(name="plugin_patient")
async def patient(ctx: Context) -> list[int]:
    began = durable.now()
    await durable.sleep(timedelta(days=2))
    return [await flaky(), round((durable.now() - began).total_seconds())]


async def test_days_pass_at_once(durable_app: Durable, durable_clock: LoopClock) -> None:
    """Sleeps, delays and back-off take no time, and the recorded times are as they would be."""
    attempts.clear()
    began, before = time.monotonic(), durable_clock.now()
    handle = await patient.start()
    tries, took = await handle.wait(timeout=timedelta(days=3))
    assert tries == 4
    assert 2 * 86400 + 180 <= took <= 2 * 86400 + 190  # no wait is longer than max_delay, a minute
    assert durable_clock.now() - before >= took
    assert time.monotonic() - began < 5


async def test_the_order_of_the_fixtures_does_not_matter(durable_clock: LoopClock, durable_app: Durable) -> None:
    """Whichever comes first in the signature."""
    attempts.clear()
    handle = await durable_app.start(patient)
    assert (await handle)[0] == 4


async def test_time_passes_as_ever_without_the_clock(durable_app: Durable) -> None:
    """The application alone does not jump."""

    @task(name="plugin_nap")
    async def nap() -> None:
        await durable.sleep(0.05)

    began = time.monotonic()
    await (await nap.start())
    assert time.monotonic() - began >= 0.05
    with pytest.raises(TimeoutError):
        await (await patient.start()).wait(timeout=0.05)


async def test_a_wait_in_vain_ends_at_once(durable_app: Durable, durable_clock: LoopClock) -> None:
    """Nobody sends the signal: the time limit passes, and nothing hangs."""

    @task(name="plugin_waits")
    async def waits(ctx: Context) -> str:
        try:
            await ctx.wait_for("never", timeout=3600)
        except TimeoutError:
            return "late"
        return "early"

    assert await (await waits.start()) == "late"


async def test_a_thread_at_work_is_waited_for(durable_app: Durable, durable_clock: LoopClock) -> None:
    """Time does not jump past what comes soon."""
    assert await asyncio.wait_for(asyncio.to_thread(time.sleep, 0.005), 0.5) is None
    before = durable_clock.now()
    durable_clock.advance(100)
    assert durable_clock.now() - before >= 100


@task(name="plugin_crashing")
async def crashing() -> int:
    await durable.sleep(0.001)
    return 7


async def test_crash_everywhere_is_a_fixture_too(crash_everywhere: Callable[..., Any]) -> None:
    """For those who look for it among the others."""
    assert (await crash_everywhere(crashing)).result == 7
