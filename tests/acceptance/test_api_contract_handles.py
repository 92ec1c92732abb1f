"""The contract, sections *Handles* and *The state machine*: waiting, cancelling, suspending, retrying, events."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durable import (
    Context,
    Durable,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunTimedOutError,
    Status,
    TransitionError,
    step,
    task,
)
from tests.acceptance.contract_support import make_app, until_event, until_status

STATUSES = (
    "ready, running, suspended, waiting_for_children, waiting_for_on_children_complete, completed, failed, timed_out, "
    "children_failed, on_children_complete_failed, cancelled"
)


@pytest.fixture(params=["memory", "folder"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Durable]:
    async with make_app(request.param, tmp_path) as opened:
        yield opened


@task(name="contract_waiter")
async def waiter(ctx: Context) -> Any:
    return await ctx.wait_for("go")


@task(name="contract_failing")
async def failing(message: str) -> None:
    raise LookupError(message)


def test_statuses() -> None:
    """`Status` is a `StrEnum` of exactly these names."""
    assert issubclass(Status, enum.StrEnum)
    assert [str(status) for status in Status] == STATUSES.split(", ")


async def test_wait(app: Durable) -> None:
    """A wait that times out is `TimeoutError` and leaves the run alone; any number may wait, before and after the end."""
    handle = await waiter.options(key="kk").start()
    assert handle.key == "kk" and isinstance(handle.run_id, str)
    for limit in (0.01, timedelta(milliseconds=10)):
        with pytest.raises(TimeoutError):
            await handle.wait(timeout=limit)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle.wait(), 0.01)
    assert await handle.status() is Status.RUNNING
    early = [asyncio.create_task(handle.wait()) for _ in range(3)]
    await handle.send("go", 5)
    assert await asyncio.gather(*early) == [5, 5, 5]
    assert [await handle, await handle.wait(), await handle.wait(timeout=1)] == [5, 5, 5]
    info = await handle.info()
    assert (info.run_id, info.status, info.closed, info.key) == (handle.run_id, "completed", True, "kk")


async def test_a_run_that_failed(app: Durable) -> None:
    """The error tells type, message and traceback, and which run it was; so does the info."""
    handle = await failing.options(user="u").start("bad thing")
    with pytest.raises(RunFailedError) as caught:
        await handle.wait()
    error = caught.value
    assert (error.error_type, error.message) == ("builtins.LookupError", "bad thing")
    assert "in failing" in error.traceback and "LookupError: bad thing" in error.traceback
    assert handle.run_id in str(error) and "bad thing" in str(error)
    info = await handle.info()
    assert (info.status, info.task_name, info.user, info.attempt) == ("failed", "contract_failing", "u", 1)
    assert info.started_at is not None and info.ended_at is not None
    assert info.created_at <= info.started_at <= info.ended_at


async def test_cancel(app: Durable) -> None:
    """The body is stopped and cleans up, waiters get `RunCancelledError` with the reason, and the end cannot be undone."""
    cleaned = asyncio.Event()

    @task(name="contract_cancelled")
    async def body(ctx: Context) -> None:
        try:
            await ctx.wait_for("never")
        finally:
            cleaned.set()

    handle = await body.start()
    await until_event(handle, "waiting")
    waiting = asyncio.create_task(handle.wait())
    await handle.cancel(reason="enough")
    with pytest.raises(RunCancelledError, match="enough"):
        await waiting
    async with asyncio.timeout(5):
        await cleaned.wait()
    assert (await handle.info()).reason == "enough"
    assert [event.name async for event in handle.events()][-1] == "cancelled"
    for refused in (handle.retry, handle.resume, handle.stop):
        with pytest.raises(TransitionError):
            await refused()


async def test_stop_and_resume(app: Durable) -> None:
    """A suspended run does nothing, keeps what is sent to it, and goes on with its recorded steps."""
    ran: list[int] = []

    @step
    async def once() -> int:
        ran.append(1)
        return 1

    @task(name="contract_stopped")
    async def body(ctx: Context) -> Any:
        return await once() + await ctx.wait_for("go")

    handle = await body.start()
    await until_event(handle, "waiting")
    await handle.stop("pause")
    await until_status(handle, "suspended")
    assert (await handle.info()).reason == "pause"
    await handle.send("go", 2)
    with pytest.raises(TimeoutError):
        await handle.wait(timeout=0.02)
    await handle.resume()
    assert await handle == 3 and ran == [1]
    names = [event.name async for event in handle.events()]
    assert [name for name in names if name != "waiting"] == [
        "created",
        "started",
        "suspended",
        "resumed",
        "started",
        "completed",
    ]


async def test_a_suspended_run_stays_so_and_can_be_cancelled(tmp_path: Path) -> None:
    """Opening again does not resume it."""
    async with Durable(tmp_path):
        handle = await waiter.start()
        await until_event(handle, "waiting")
        await handle.stop()
    async with Durable(tmp_path) as app:
        again = await app.get(handle.run_id)
        assert await again.status() == "suspended"
        await again.cancel()
        with pytest.raises(RunCancelledError):
            await again


async def test_retry_goes_on_from_the_step_that_failed(app: Durable) -> None:
    """Completed steps are kept, the failed one runs again, and all attempts of the policy are there anew."""
    ran: list[str] = []
    mended = False

    @step
    async def good() -> int:
        ran.append("good")
        return 1

    @step
    async def bad() -> int:
        ran.append("bad")
        if not mended:
            raise ValueError("not yet")
        return 2

    @task(name="contract_mended", retry=Retry(2, delay=0.001))
    async def body() -> int:
        return await good() + await bad()

    handle = await body.start()
    for _ in range(2):
        with pytest.raises(RunFailedError):
            await handle
        await handle.retry()
    with pytest.raises(RunFailedError):
        await handle
    assert ran == ["good", *["bad"] * 6]
    mended = True
    await handle.retry()
    assert await handle == 3 and ran.count("good") == 1
    with pytest.raises(TransitionError):
        await handle.retry()


async def test_a_run_that_timed_out_can_be_retried(app: Durable) -> None:
    """It failed, too."""
    slow = True

    @task(name="contract_retried_timeout", timeout=0.02)
    async def body() -> int:
        if slow:
            await asyncio.sleep(60)
        return 1

    handle = await body.start()
    with pytest.raises(RunTimedOutError):
        await handle
    slow = False
    await handle.retry()
    assert await handle == 1


async def test_seq_numbers_every_record(app: Durable) -> None:
    """With `steps=True` 1, 2, 3 ...; without, step records are left out; `after` goes on with the next one."""

    @step
    async def echo(n: int) -> int:
        return n

    @task(name="contract_numbered")
    async def body(ctx: Context) -> None:
        for n in range(4):
            await echo(n)
            await ctx.emit("n", n)

    handle = await body.start()
    await handle
    everything = [event async for event in handle.events(steps=True)]
    assert [event.seq for event in everything] == list(range(1, len(everything) + 1))
    seen = [event async for event in handle.events()]
    assert seen == [event for event in everything if not event.name.startswith("step:")]
    assert len(seen) < len(everything)
    for after in range(len(everything) + 1):
        assert [event.seq async for event in handle.events(after=after)] == [
            each.seq for each in seen if each.seq > after
        ]


async def test_a_subscriber_that_comes_back_misses_nothing(app: Durable) -> None:
    """One that listens all the time, and two that leave and come back with `after`, see the same events, each once."""

    @task(name="contract_subscribed")
    async def body(ctx: Context) -> None:
        for n in range(200):
            if n % 2:
                await ctx.emit("n", n)
            else:
                ctx.emit_nowait("n", n)

    handle = await body.start()

    async def whole() -> list[int]:
        return [event.seq async for event in handle.events()]

    async def in_pieces(size: int) -> list[int]:
        seen: list[int] = []
        while True:
            count = 0
            async for event in handle.events(after=seen[-1] if seen else 0):
                seen.append(event.seq)
                count += 1
                if event.name == "completed":
                    return seen
                if count == size:
                    break

    first, second, third = await asyncio.gather(whole(), in_pieces(7), in_pieces(1))
    assert first == second == third == sorted(set(first)) and len(first) == 203
