"""The contract, section *Tasks and steps*: runs that bodies start, options of one start, generators, durable.map."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Context, Durable, Result, Retry, RunCancelledError, RunFailedError, step, task
from tests.acceptance.contract_support import make_app, until_status

FAST = Retry(2, delay=0.001)


@pytest.fixture(params=["memory", "folder"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Durable]:
    async with make_app(request.param, tmp_path) as opened:
        yield opened


@dataclass
class Tick:
    n: int


@task(name="contract_child")
async def child(n: int) -> int:
    return n + 1


@task(name="contract_waiting_child")
async def waiting(ctx: Context) -> Any:
    return await ctx.wait_for("go")


async def test_a_task_that_is_called_in_a_run_is_a_child(app: Durable) -> None:
    """It is started once, also over a retry, belongs to the run, and gives its result."""

    @task(name="contract_parent", retry=FAST)
    async def parent(ctx: Context) -> int:
        found = await child(4)
        if ctx.attempt == 1:
            raise ValueError("again")
        return found

    handle = await parent.start()
    assert await handle == 5
    [info] = [info async for info in app.runs(task=child)]
    assert info.parent_id == handle.run_id
    assert [each.run_id for each in await handle.children()] == [info.run_id]


async def test_children_are_in_the_order_of_their_start(app: Durable) -> None:
    """Also where many are started at once."""

    @task(name="contract_many_children")
    async def parent() -> list[int]:
        return await durable.map(child, range(20), limit=20)

    handle = await parent.start()
    assert await handle == list(range(1, 21))
    assert [await each.wait() for each in await handle.children()] == list(range(1, 21))


async def test_a_child_is_cancelled_with_its_parent_and_a_started_run_is_not(app: Durable) -> None:
    """`await task(x)` belongs to the run; `await task.start(x)` lives on its own, and knows its parent."""

    @task(name="contract_parent_of_two")
    async def parent() -> None:
        await waiting.options(key="own").start()
        await waiting()

    handle = await parent.start()
    async with asyncio.timeout(5):
        while len(await handle.children()) < 2:
            await asyncio.sleep(0.002)
    await handle.cancel("enough")
    with pytest.raises(RunCancelledError):
        await handle
    own = await app.find("own")
    assert own is not None
    [belongs] = [each for each in await handle.children() if each != own]
    with pytest.raises(RunCancelledError):
        await belongs.wait(timeout=5)
    assert (await own.info()).parent_id == handle.run_id
    await own.send("go", 1)
    assert await own == 1


async def test_start_in_a_body_starts_once(app: Durable) -> None:
    """Over a retry both `task.start` and `app.start` give the run that was started first."""
    seen: list[tuple[str, str]] = []

    @task(name="contract_starts_in_body", retry=FAST)
    async def parent(ctx: Context) -> None:
        first, second = await child.start(1), await app.start(child, 2)
        seen.append((first.run_id, second.run_id))
        if ctx.attempt == 1:
            raise ValueError("again")

    await (await parent.start())
    assert seen[0] == seen[1] and len([info async for info in app.runs(task=child)]) == 2


async def test_a_child_that_fails(app: Durable) -> None:
    """The body gets the `RunFailedError` that `handle.wait()` would raise."""

    @task(name="contract_failing_child")
    async def fails() -> None:
        raise LookupError("inner")

    @task(name="contract_catches_child")
    async def parent() -> tuple[str, str]:
        try:
            await fails()
        except RunFailedError as error:
            return error.error_type, error.message
        return "", ""

    assert tuple(await (await parent.start())) == ("builtins.LookupError", "inner")


async def test_inside_a_step(app: Durable) -> None:
    """Other steps are plain calls, calling a task is `StepContextError`, and `start()` with a key is allowed."""

    @step
    async def inner(n: int) -> int:
        return n + 1

    @step
    async def outer(kind: str) -> Any:
        if kind == "step":
            return await inner(1)
        return await child(1) if kind == "task" else (await child.options(key="by a step").start(1)).run_id

    @task(name="contract_inside_a_step")
    async def body(kind: str) -> Any:
        return await outer(kind)

    handle = await body.start("step")
    assert await handle == 2
    assert [event.data["step"] async for event in handle.events(steps=True) if event.name == "step:completed"] == [
        "outer"
    ]
    with pytest.raises(RunFailedError) as caught:
        await (await body.start("task"))
    assert caught.value.error_type == "durable.errors.StepContextError"
    assert await (await app.get(await (await body.start("start")))) == 2


async def test_options_of_one_start(app: Durable) -> None:
    """`task.options(...)` is the same kind of task with those options, and leaves the task itself as it was."""

    @task(name="contract_options", timeout=60)
    async def body(ctx: Context, n: int) -> list[Any]:
        return [ctx.key, ctx.user, ctx.max_attempts, n]

    special = body.options(key="k", user="u", timeout=timedelta(seconds=5), retry=4, delay=0.05, priority=3)
    assert type(special) is type(body)
    begun = time.monotonic()
    handle = await special.start(7)
    assert await handle.status() == "ready"
    assert await handle == ["k", "u", 4, 7] and time.monotonic() - begun >= 0.045
    info = await handle.info()
    assert (info.key, info.user, info.max_attempts, info.priority) == ("k", "u", 4, 3)
    assert await (await app.start(body, 1)) == [None, None, 1, 1]
    with pytest.raises(TypeError):
        body.options(unknown=1)  # type: ignore[call-arg]


async def test_a_generator_task(app: Durable) -> None:
    """Each yielded value is an event; `yield Result(value)` ends it with that result, and closes the generator."""
    closed: list[str] = []

    @dataclass
    class LocalTick:
        n: int

    @task(name="contract_generator")
    async def ticks(ctx: Context, n: int) -> AsyncIterator[Any]:
        try:
            for i in range(n):
                yield Tick(i)
            yield LocalTick(n)
            yield Result("end")
            closed.append("went on")
        finally:
            closed.append("closed")

    handle = await ticks.start(2)
    assert await handle == "end" and closed == ["closed"]
    events = [(event.name, event.data) async for event in handle.events()]
    assert events[2:-1] == [("Tick", Tick(0)), ("Tick", Tick(1)), ("LocalTick", LocalTick(2))]


async def test_map_keeps_order_and_bounds_concurrency(app: Durable) -> None:
    """Over a step and over a task; eight at once if nothing is said; any iterable, the empty one too."""
    running = 0
    most: list[int] = []

    @step
    async def double(n: int) -> int:
        nonlocal running
        running += 1
        most.append(running)
        await asyncio.sleep(0.001 * (3 - n % 3))
        running -= 1
        return 2 * n

    @task(name="contract_map")
    async def body(limit: int | None) -> list[Any]:
        items = (n for n in range(20))
        return [
            await (durable.map(double, items) if limit is None else durable.map(double, items, limit=limit)),
            await durable.map(child, [1, 2, 3]),
            await durable.map(double, []),
        ]

    for limit, expected in ((4, 4), (None, 8)):
        most.clear()
        assert await (await body.start(limit)) == [[2 * n for n in range(20)], [2, 3, 4], []]
        assert max(most) == expected
    assert await durable.map(double, [1, 2], limit=1) == [2, 4], "outside a run it is a plain function"


async def test_a_run_can_wait_for_its_own_child_with_one_slot(tmp_path: Path) -> None:
    """`Limits(max_running=1)`: a parent that waits does not keep its child from running; others wait for their turn."""
    running = 0
    most: list[int] = []

    @task(name="contract_one_at_a_time")
    async def body() -> int:
        nonlocal running
        running += 1
        most.append(running)
        await asyncio.sleep(0.05)  # as long as it takes to start some of them
        running -= 1
        return 1

    @task(name="contract_parent_with_one_slot")
    async def parent() -> int:
        return await child(1)

    async with Durable(tmp_path / "one", limits=durable.Limits(max_running=1)):
        assert await (await parent.start()).wait(timeout=5) == 2
    async with Durable(tmp_path / "two", limits=durable.Limits(max_running=3)):
        handles = [await body.start() for _ in range(15)]
        await asyncio.gather(*handles)
    assert max(most) == 3


async def test_cancel_of_a_run_that_waits(app: Durable) -> None:
    """A run that has not begun can be cancelled, too."""
    handle = await waiting.options(delay=60).start()
    await handle.cancel()
    with pytest.raises(RunCancelledError):
        await handle
    await until_status(handle, "cancelled")
    assert [event.name async for event in handle.events()] == ["created", "cancelled"]
