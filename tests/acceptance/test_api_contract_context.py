"""The contract, section *Context*: what a body is told, and what it may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import durable
from durable import Context, Durable, Event, ReservedNameError, Retry, RunFailedError, TransitionError, step, task
from tests.acceptance.contract_support import make_app, until_event

FAST = Retry(2, delay=0.001)
RESERVED = [
    "created", "started", "retrying", "recovered", "waiting", "suspended", "resumed", "completed", "failed", "timed_out",
    "children_failed", "cancelled", "ready", "error", "heartbeat", "gap", "server_shutting_down", "step:x", "step:",
]  # fmt: skip


@pytest.fixture(params=["memory", "folder"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Durable]:
    async with make_app(request.param, tmp_path) as opened:
        yield opened


@dataclass
class Tick:
    n: int


@dataclass
class Note:
    text: str


async def test_what_the_context_tells(app: Durable) -> None:
    """Ids, key, user, attempts, the error of the attempt before, the input, and that nothing was recovered."""

    @task(name="contract_context", retry=FAST)
    async def body(ctx: Context, a: int, b: str) -> dict[str, Any]:
        if ctx.attempt == 1:
            assert ctx.previous_error is None
            raise KeyError("first")
        return {
            "ids": [ctx.run_id, ctx.task_name, ctx.key, ctx.user],
            "attempts": [ctx.attempt, ctx.max_attempts, "first" in str(ctx.previous_error)],
            "input": ctx.input,
            "recovered": [ctx.recovered, ctx.recovery_reason],
        }

    handle = await body.options(key="k", user="u").start(1, b="x")
    assert await handle == {
        "ids": [handle.run_id, "contract_context", "k", "u"],
        "attempts": [2, 2, True],
        "input": {"a": 1, "b": "x"},
        "recovered": [False, None],
    }


async def test_previous_events_and_past(app: Durable) -> None:
    """They are the events of the run before this attempt, all and of one type, also of a type inside a function."""

    @dataclass
    class LocalTick:
        n: int

    seen: list[Any] = []

    @task(name="contract_previous_events", retry=Retry(3, delay=0.001))
    async def body(ctx: Context) -> None:
        seen.append(([(each.name, each.attempt) for each in ctx.previous_events], ctx.past(Tick), ctx.past(LocalTick)))
        await ctx.emit(Tick(ctx.attempt))
        await ctx.emit(LocalTick(ctx.attempt))
        if ctx.attempt < 3:
            raise ValueError("again")

    await (await body.start())
    both = [("Tick", 1), ("LocalTick", 1), ("Tick", 2), ("LocalTick", 2)]
    assert seen == [
        ([], [], []),
        (both[:2], [Tick(1)], [LocalTick(1)]),
        (both, [Tick(1), Tick(2)], [LocalTick(1), LocalTick(2)]),
    ]


async def test_ways_to_emit(app: Durable) -> None:
    """Typed, by name, without data, not waited for, as progress, and from within a step."""

    @step
    async def inside(ctx: Context) -> None:
        await ctx.emit("inside", 1)

    @task(name="contract_emit")
    async def body(ctx: Context[Tick | Note]) -> None:
        await ctx.emit(Tick(n=3))
        await ctx.emit("tick", {"n": 3})
        await ctx.emit("bare")
        ctx.emit_nowait(Note("x"))
        ctx.emit_nowait("soon", [1])
        await ctx.progress({"percent": 50})
        await inside()

    handle = await body.start()
    await handle
    events = [event async for event in handle.events()]
    assert [(event.name, event.data) for event in events[2:-1]] == [
        ("Tick", Tick(3)), ("tick", {"n": 3}), ("bare", None), ("Note", Note("x")), ("soon", [1]),
        ("progress", {"percent": 50}), ("inside", 1),
    ]  # fmt: skip
    assert all(isinstance(event, Event) and isinstance(event.at, datetime) and event.at.tzinfo for event in events)
    assert (events[2].seq, events[2].attempt) == (3, 1)


async def test_an_event_is_durable_when_emit_returns(app: Durable) -> None:
    """Whoever subscribes after that sees it."""

    @task(name="contract_emit_is_durable")
    async def body(ctx: Context) -> list[str]:
        await ctx.emit("x")
        names = []
        async for event in (await app.get(ctx.run_id)).events():
            names.append(event.name)
            if event.name == "x":
                break
        return names

    assert (await (await body.start()).wait(timeout=5))[-1] == "x"


async def test_ephemeral_events_are_for_live_subscribers_only(app: Durable) -> None:
    """Who listens sees it between its neighbours; who comes later does not."""
    listening = asyncio.Event()

    @task(name="contract_ephemeral")
    async def body(ctx: Context) -> None:
        await ctx.emit("before")
        await listening.wait()
        await ctx.emit("only live", {"x": 1}, ephemeral=True)
        await ctx.emit("after")

    handle = await body.start()
    names = []
    async for event in handle.events():
        names.append(event.name)
        if event.name == "before":
            listening.set()
    assert names == ["created", "started", "before", "only live", "after", "completed"]
    assert [event.name async for event in handle.events()] == ["created", "started", "before", "after", "completed"]


@pytest.mark.parametrize("name", RESERVED)
async def test_reserved_names(name: str, tmp_path: Path) -> None:
    """No way to emit takes one of the engine's own names."""

    @task(name="contract_reserved")
    async def body(ctx: Context) -> int:
        refused = 0
        for ephemeral in (False, True):
            try:
                await ctx.emit(name, {}, ephemeral=ephemeral)
            except ReservedNameError:
                refused += 1
        try:
            ctx.emit_nowait(name)
        except ReservedNameError:
            refused += 1
        return refused

    async with make_app("memory", tmp_path):
        assert await (await body.start()) == 3


async def test_time_and_chance_are_recorded(app: Durable) -> None:
    """`now`, `uuid4` and `random` are the same in a replay; `sleep` takes seconds and timedelta; outside a run they are plain."""
    seen: list[Any] = []

    @task(name="contract_recorded", retry=FAST)
    async def body(ctx: Context) -> None:
        seen.append((durable.now(), durable.uuid4(), durable.random(), durable.uuid4()))
        await durable.sleep(0.001)
        await durable.sleep(timedelta(milliseconds=1))
        if ctx.attempt == 1:
            raise ValueError("again")

    await (await body.start())
    assert seen[0] == seen[1] and seen[0][1] != seen[0][3]
    for now, unique, chance in (seen[0][:3], (durable.now(), durable.uuid4(), durable.random())):
        assert isinstance(now, datetime) and now.tzinfo is not None
        assert isinstance(unique, UUID) and unique.version == 4
        assert isinstance(chance, float) and 0 <= chance < 1
    await durable.sleep(0.001)


async def test_timeout_is_recorded(app: Durable) -> None:
    """`durable.timeout` raises `TimeoutError`, in a run and outside; one that had time to spare does not."""

    async def late() -> str:
        try:
            async with durable.timeout(timedelta(milliseconds=20)):
                await asyncio.sleep(60)
        except TimeoutError:
            async with durable.timeout(60):
                await durable.sleep(0)
            return "late"
        return "in time"

    @task(name="contract_timeout")
    async def body() -> str:
        return await late()

    assert await (await body.start()) == "late"
    assert await late() == "late"


async def test_step_key_is_stable_over_retries(app: Durable) -> None:
    """It is the same in each try of a step and attempt of the task, and another for each call; the context may come by closure."""
    keys: list[tuple[int, str]] = []

    @task(name="contract_step_key", retry=FAST)
    async def body(ctx: Context) -> None:
        @step(retry=FAST)
        async def pay(n: int) -> None:
            keys.append((n, ctx.step_key()))
            if len(keys) in {1, 3}:
                raise ValueError("again")

        await pay(1)
        await pay(2)
        await pay(2)
        if ctx.attempt == 1:
            raise ValueError("again")

    await (await body.start())
    assert [n for n, _ in keys] == [1, 1, 2, 2, 2]
    assert keys[0] == keys[1] and keys[2] == keys[3] and len({key for _, key in keys}) == 3


async def test_signals(app: Durable) -> None:
    """Nothing sent is lost, also when sent before the run began; each is received once, in order; a wait may time out."""

    @task(name="contract_signals")
    async def body(ctx: Context) -> list[Any]:
        both = await asyncio.gather(ctx.wait_for("b"), ctx.wait_for("a", timeout=60))
        more = [await ctx.wait_for("a"), await ctx.wait_for("a")]
        try:
            await ctx.wait_for("c", timeout=timedelta(milliseconds=10))
        except TimeoutError:
            return [*both, *more, "late"]
        return []

    handle = await body.options(delay=0.02).start()
    for payload in (1, Tick(2)):
        await handle.send("a", payload)
    await handle.send("b", {"early": True})
    await until_event(handle, "started")
    await handle.send("a", None)
    assert await handle == [{"early": True}, 1, Tick(2), None, "late"]
    with pytest.raises(TransitionError):
        await handle.send("a", 4)


async def test_a_body_that_waits_for_the_shutdown_ends_in_its_grace(tmp_path: Path) -> None:
    """`ctx.shutting_down` is like an `asyncio.Event`; what the body does after it is set is recorded."""

    @task(name="contract_shutting_down")
    async def body(ctx: Context) -> bool:
        assert not ctx.shutting_down.is_set()
        async with durable.timeout(60):
            await ctx.emit("up")
            await ctx.shutting_down.wait()
        return ctx.shutting_down.is_set()

    async with Durable(tmp_path) as app:
        handle = await body.start()
        await until_event(handle, "up")
    async with Durable(tmp_path) as app:
        again = await app.get(handle.run_id)
        assert await again.status() == "completed" and await again is True


async def test_a_body_that_only_waits_does_not_hold_up_a_close(tmp_path: Path) -> None:
    """It goes on at the next open; closing takes none of the grace."""

    @task(name="contract_only_waits")
    async def body(ctx: Context) -> None:
        async with durable.timeout(60):
            await ctx.wait_for("never")

    app = await Durable(tmp_path).open()
    handle = await body.start()
    await until_event(handle, "waiting")
    async with asyncio.timeout(1.5):  # the grace is two seconds
        await app.close()


async def test_an_error_in_emit_is_the_body_s(app: Durable) -> None:
    """What cannot be stored fails where it is emitted."""

    @task(name="contract_emit_unstorable")
    async def body(ctx: Context) -> None:
        await ctx.emit("x", object())

    with pytest.raises(RunFailedError) as caught:
        await (await body.start())
    assert caught.value.error_type == "durable.errors.NotStorableError"
