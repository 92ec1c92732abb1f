"""Tasks that have families, and a store that is full of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from durable import Child, Context, Durable, Handle, Limits, RunError, Status, sleep, step, task
from durable.config import Config, EngineSettings

WAITS = 100


@step(name="cli_family_look")
async def look(n: int) -> int:
    return n


@task(name="cli_page")
async def page(ctx: Context[Any], n: int) -> int:
    await look(n)
    if n < 0:
        raise ValueError(f"no page {n}")
    if n >= WAITS:
        await ctx.wait_for("go")
    return n * 10


async def summed(pages: list[Child[int]]) -> int:
    return await look(sum(each.result for each in pages))


@task(name="cli_book", on_children_complete=summed)
async def book(pages: list[int]) -> list[Child[int]]:
    await look(0)
    return [page.child(n) for n in pages]


@task(name="cli_glue")
async def glue(pages: list[Child[int]]) -> list[Child[int]]:
    if len(pages) > 2:
        raise LookupError("no glue")
    return pages


@task(name="cli_bound", on_children_complete=glue)
async def bound(pages: list[int]) -> list[Child[int]]:
    return [page.child(n) for n in pages]


async def broken(pages: list[Child[int]]) -> None:
    raise LookupError("cannot sum")


@task(name="cli_badly_summed", on_children_complete=broken)
async def badly_summed(pages: list[int]) -> list[Child[int]]:
    return [page.child(n) for n in pages]


@task(name="cli_shelf")
async def shelf() -> list[Child[Any]]:
    return [book.child([WAITS, WAITS + 1]), page.child(WAITS + 2)]


@task(name="cli_reader")
async def reader(ctx: Context[Any]) -> int:
    first: int = await page(1)
    await page.options(key="own").start(WAITS)
    second: int = await page(WAITS)
    return first + second


@task(name="cli_sleeper")
async def sleeper(ctx: Context[Any]) -> None:
    await look(1)
    await ctx.wait_for("one")
    await sleep(3600)


@task(name="cli_library")
async def library() -> list[Child[int]]:
    return [page.options(key="ok page").child(1), page.options(key="open page").child(WAITS)]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.005)


async def _statuses(handle: Handle[Any]) -> list[Status]:
    return [await each.status() for each in await handle.children()]


async def fill(folder: Path) -> None:
    """Families that ended (`ok`, `failed`, `bound`, `unbound`, `unsummed`) and that have not (the others)."""
    settings = EngineSettings(idle_seconds=0.01)
    async with Durable(folder, config=Config(engine=settings), limits=Limits(max_running=2)) as app:
        for what, key, pages in (
            (book, "ok", [1, 2, 3]),
            (book, "failed", [1, -2, WAITS]),
            (bound, "bound", [1, 2]),
            (bound, "unbound", [1, 2, 3]),
            (badly_summed, "unsummed", [1]),
        ):
            try:
                await what.options(key=key).start(pages)
                handle = await app.find(key)
                assert handle is not None
                await handle.wait(timeout=20)
            except RunError:
                pass
        await (await page.options(key="ok page").start(1))
        await page.options(key="open page").start(WAITS)
        shelved = await library.options(key="library").start()
        sleeping = await sleeper.options(key="sleeper").start()
        waiting = await book.options(key="waiting").start([WAITS, *range(1, 15), WAITS + 1])
        reading = await reader.options(key="reader").start()
        full = await shelf.options(key="shelf").start()

        async def all_wait() -> bool:
            return (
                await shelved.status() is Status.WAITING_FOR_CHILDREN
                and (await _statuses(waiting)).count(Status.COMPLETED) == 14
                and len(await reading.children()) == 3
                and (await _statuses(full))[:1] == [Status.WAITING_FOR_CHILDREN]
            )

        await until(all_wait)
        await until(lambda: _has_step(sleeping, "step:asleep"))
        await sleeping.send("one")
        await until(lambda: _has_step(sleeping, "step:timer"))


async def _has_step(handle: Handle[Any], name: str) -> bool:
    last = (await handle.info()).last_seq
    async for event in handle.events(steps=True):
        if event.name == name:
            return True
        if event.seq >= last:
            return False
    return False
