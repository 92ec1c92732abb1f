"""Right use inside bodies and steps."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import durable
from durable import Context, Durable, Event, Handle, step, task
from durable.store import MemoryStore


@dataclass
class Tick:
    n: int


@dataclass
class Done:
    total: int


@step
async def double(n: int) -> int:
    return n * 2


@step
def shout(word: str, *, loud: bool = True) -> str:
    return word.upper() if loud else word


@step
async def keyed(ctx: Context, n: int) -> str:
    await ctx.emit("keyed", n)
    return ctx.step_key()


@task
async def child(n: int) -> str:
    return str(n)


@task
async def parent(ctx: Context[Tick | Done], items: list[int]) -> int:
    assert_type(await double(1), int)
    assert_type(await shout("x", loud=False), str)
    assert_type(await child(3), str)
    assert_type(await keyed(3), str)
    assert_type(await child.start(3), Handle[str])
    assert_type(await child.options(key="child:3").start(3), Handle[str])
    assert_type(await durable.map(double, items, limit=8), list[int])
    assert_type(await durable.map(child, items), list[str])
    assert_type(await durable.map(shout, (str(n) for n in items)), list[str])
    first, second = await asyncio.gather(double(1), child(2))
    assert_type(first, int)
    assert_type(second, str)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(double(4))
    assert_type(running.result(), int)
    await ctx.emit(Tick(1))
    await ctx.emit(Done(total=first))
    await ctx.emit("tick", {"n": 3})
    await ctx.emit("bare")
    await ctx.emit(Tick(2), ephemeral=True)
    await ctx.emit("tick", {"n": 3}, ephemeral=True)
    ctx.emit_nowait(Tick(3))
    ctx.emit_nowait("tick", {"n": 4})
    await ctx.progress({"done": 1})
    return len(items)


@task
async def resuming(ctx: Context[Tick | Done]) -> int:
    assert_type(ctx.past(Tick), list[Tick])
    assert_type(ctx.past(Done), list[Done])
    assert_type(ctx.previous_events, list[Event])
    return len(ctx.past(Tick))


@task
async def asking(ctx: Context) -> str:
    assert_type(ctx.run_id, str)
    assert_type(ctx.task_name, str)
    assert_type(ctx.key, str | None)
    assert_type(ctx.user, str | None)
    assert_type(ctx.attempt, int)
    assert_type(ctx.max_attempts, int)
    assert_type(ctx.previous_error, str | None)
    assert_type(ctx.input, dict[str, Any])
    assert_type(ctx.recovered, bool)
    assert ctx.recovery_reason in ("crash", "stale", "timeout", None)
    assert_type(ctx.shutting_down.is_set(), bool)
    assert_type(ctx.logger, logging.LoggerAdapter[logging.Logger])
    await ctx.emit(Tick(1))  # a Context without a type emits anything
    return ctx.run_id


@task
async def timed() -> float:
    await durable.sleep(0)
    await durable.sleep(timedelta(0))
    async with durable.timeout(5) as limit:
        await durable.sleep(0)
    assert_type(limit.expired(), bool)
    assert_type(durable.now(), datetime)
    assert_type(durable.uuid4(), UUID)
    assert_type(durable.random(), float)
    async with durable.timeout(timedelta(seconds=5)):
        return durable.random()


async def helper(ctx: Context) -> None:
    """A context of whatever events can be passed on."""
    await ctx.progress(ctx.attempt)


@task
async def delegating(ctx: Context[Tick | Done]) -> None:
    await helper(ctx)


async def main() -> None:
    """Run what the checkers accepted."""
    async with Durable(MemoryStore()) as app:
        assert await (await app.start(parent, [1, 2])) == 2
        assert await (await app.start(resuming)) == 0
        assert await (await app.start(asking))
        assert await (await app.start(timed)) < 1
        await (await app.start(delegating))
