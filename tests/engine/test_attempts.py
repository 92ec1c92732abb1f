"""Attempts: what belongs to one does not reach into the next; steps in processes; values of local classes."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Config,
    Context,
    Durable,
    PayloadTooLargeError,
    Retry,
    RunFailedError,
    Status,
    TransitionError,
    step,
    task,
)
from durable.config import PayloadSettings
from durable.engine.execution import Execution
from durable.store import MemoryStore
from tests.engine.conftest import MakeApp

seen: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Nothing was seen yet."""
    seen.clear()
    background.clear()


@step
async def lingering(attempt: int) -> str:
    try:
        await asyncio.sleep(0.05 if attempt == 1 else 0)
    except asyncio.CancelledError:
        seen.append(f"cancelled {attempt}")
        raise
    seen.append(f"ran {attempt}")
    return f"of {attempt}"


@step
async def fails_once(attempt: int) -> None:
    if attempt == 1:
        raise RuntimeError("first")


@task(retry=Retry(2, delay=0.0))
async def leaves_calls_behind(ctx: Context) -> str:
    values = await asyncio.gather(lingering(ctx.attempt), fails_once(ctx.attempt))
    return values[0]


async def test_calls_of_a_failed_attempt_do_not_outlive_it(make_app: MakeApp) -> None:
    """A step that was under way when its attempt failed is cancelled, and records nothing in the next attempt."""
    async with make_app() as app:
        handle = await app.start(leaves_calls_behind)
        assert await handle == "of 2"
        assert seen == ["cancelled 1", "ran 2"]
        steps = [event async for event in handle.events(steps=True) if event.name == "step:completed"]
        assert [event.attempt for event in steps] == [2, 2]


@task
async def forgets_a_call() -> str:
    asyncio.get_running_loop()
    seen.append("started")
    background.append(asyncio.create_task(late_caller()))
    return "done"


background: list[asyncio.Task[Any]] = []


async def late_caller() -> None:
    await asyncio.sleep(0.01)
    try:
        await lingering(9)
    except TransitionError as error:
        seen.append(str(error))


async def test_code_that_outlives_its_run_can_do_nothing(make_app: MakeApp) -> None:
    """A task that the body left running gets a TransitionError when it calls a step."""
    async with make_app() as app:
        assert await (await app.start(forgets_a_call)) == "done"
        await asyncio.gather(*background)
    assert "is over" in seen[1] and len(seen) == 2


@task
async def returns_local(number: int) -> Any:
    @dataclass
    class Local:
        number: int

    return Local(number)


async def test_a_value_that_could_not_be_read_back_is_refused(make_app: MakeApp) -> None:
    """An instance of a class that nobody can find later fails the run with an error that says so."""
    async with make_app() as app:
        with pytest.raises(RunFailedError, match="Local"):
            await (await app.start(returns_local, 1))


async def test_local_classes_work_where_annotations_name_them(make_app: MakeApp) -> None:
    """A dataclass defined in a function can be an input and a result when the annotations mention it."""

    @dataclass
    class Order:
        number: int

    @step
    async def double(order: Order) -> Order:
        return Order(order.number * 2)

    @task
    async def process(order: Order) -> Order:
        return await double(order)

    # The annotations of a local class cannot be resolved from strings; this is how they look without the future import.
    for function, hints in ((double, {"order": Order, "return": Order}), (process, {"order": Order, "return": Order})):
        function.__wrapped__.__annotations__ = hints  # type: ignore[attr-defined]

    async with make_app() as app:
        result = await (await app.start(process, Order(4)))
        assert type(result) is Order and result.number == 8


@step(isolate="process", timeout=30)
def heavy(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


@step(isolate="process", timeout=0.5)
def endless(marker: str) -> None:
    Path(marker).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@task
async def uses_processes(number: int, marker: str) -> tuple[int, bool, str]:
    square, pid = await heavy(number)
    try:
        await endless(marker)
    except TimeoutError as error:
        return square, pid != os.getpid(), type(error).__name__
    raise AssertionError


async def test_isolated_steps_run_in_processes_that_are_killed(make_app: MakeApp, tmp_path: Path) -> None:
    """isolate="process" runs the step elsewhere; one that exceeds its time is killed, not abandoned."""
    marker = tmp_path / "pid"
    async with make_app() as app:
        assert await (await app.start(uses_processes, 7, str(marker))) == (49, True, "StepTimeoutError")
        pid = int(marker.read_text())
        async with asyncio.timeout(5):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.01)


@step
async def large(size: int) -> str:
    return "x" * size


@task
async def stores_large(size: int) -> int:
    return len(await large(size))


async def test_payloads_have_a_bound(make_app: MakeApp) -> None:
    """A step result or an input over the limit is refused with its size; the engine goes on."""
    async with make_app(config=Config(payload=PayloadSettings(bytes_max=1000))) as app:
        with pytest.raises(RunFailedError, match="1000") as caught:
            await (await app.start(stores_large, 2000))
        assert PayloadTooLargeError.__name__ in caught.value.error_type
        with pytest.raises(PayloadTooLargeError):
            await app.start(lingering_input, "x" * 2000)
        assert await (await app.start(stores_large, 100)) == 100


@task
async def lingering_input(text: str) -> int:
    return len(text)


@step(codec="cloudpickle")
async def makes_function(number: int) -> Any:
    return lambda: number


@task
async def uses_pickle(number: int) -> int:
    function = await makes_function(number)
    result: int = function()
    return result


async def test_cloudpickle_is_opt_in_and_needs_a_key(make_app: MakeApp) -> None:
    """A step may store its result with cloudpickle, signed; without a key in the settings the run fails and says what to set."""
    async with make_app(config=Config(payload=PayloadSettings(pickle_key=b"0123456789abcdef"))) as app:
        assert await (await app.start(uses_pickle, 5)) == 5
    async with make_app() as app:
        with pytest.raises(RunFailedError, match="pickle_key"):
            await (await app.start(uses_pickle, 6))


@task
async def shuts_down(ctx: Context) -> str:
    await ctx.shutting_down.wait()
    seen.append("told")
    return "left in order"


async def test_a_body_may_end_in_order_when_the_application_closes(make_app: MakeApp) -> None:
    """shutting_down is set at close, and a body that ends within the grace ends its run."""
    async with make_app() as app:
        handle = await app.start(shuts_down)
        await asyncio.sleep(0.01)
    assert seen == ["told"]
    async with make_app() as app:
        assert await (await app.get(handle.run_id)).status() is Status.COMPLETED


async def test_waiting_when_the_application_closes_ends_with_an_error(make_app: MakeApp) -> None:
    """Who waits for a run that has not ended is told that the application closed."""

    async with make_app() as app:
        handle = await app.start(leaves_nothing)
        waiting = asyncio.create_task(handle.wait())
        following = asyncio.create_task(follow(handle))
        await asyncio.sleep(0.01)
    with pytest.raises(durable.ShuttingDownError):
        await waiting
    with pytest.raises(durable.ShuttingDownError):
        await following
    with pytest.raises(durable.AppNotOpenError):
        await app.start(leaves_nothing)


async def follow(handle: Any) -> None:
    async for _ in handle.events():
        pass


@task
async def leaves_nothing() -> None:
    await durable.sleep(3600)


async def test_an_ended_run_is_freed_without_a_collection() -> None:
    """What an attempt leaves refers to itself nowhere, so it is gone at once: nobody's collector has to look for it."""
    async with Durable(MemoryStore()) as app:
        await (await app.start(stores_large, 1))
        await asyncio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            for size in range(20):
                await (await app.start(stores_large, size))
            await asyncio.sleep(0)
            assert [each for each in gc.get_objects() if isinstance(each, Execution)] == []
        finally:
            gc.enable()


@task(name="attempts_stopping")
def stopping(value: str) -> str:
    raise StopIteration(value)


async def test_a_thread_may_raise_what_no_future_can_hold(make_app: MakeApp) -> None:
    """A StopIteration that leaves a plain function ends the attempt, and does not leave it waiting for ever."""
    async with make_app() as app:
        with pytest.raises(RunFailedError, match="StopIteration"):
            await (await app.start(stopping, "x"))
