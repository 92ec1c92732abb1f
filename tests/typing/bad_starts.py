"""Wrong starts and calls: each marked line has to be refused, as its comment says, by mypy and by pyright."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import durable
from durable import Context, Durable, Handle, step, task


@dataclass
class Tick:
    n: int


@task
async def add(a: int, b: int = 0) -> int:
    return a + b


@task(timeout=60)
async def crawl(ctx: Context, url: str, *, depth: int = 1) -> str:
    return url * depth * ctx.attempt


@task
async def typed(ctx: Context[Tick], n: int) -> int:
    return n


@task
def plain(name: str) -> str:
    return name


@task
def plain_with_context(ctx: Context, name: str) -> str:
    return name


@task
async def generator(n: int) -> AsyncIterator[Tick]:
    yield Tick(n)


@task
async def anything(value: object, times: int) -> str:
    return repr(value) * times


@step
async def fetch(url: str) -> bytes:
    return url.encode()


@step(retry=3)
def shout(ctx: Context, word: str) -> str:
    return word


@step
async def listing(path: str) -> dict[str, Any]:
    return {path: None}


class Client:
    @step
    async def get(self, path: str) -> int:
        return len(path)


named = step("read", len)


async def undecorated(n: int) -> int:
    return n


async def starts(app: Durable) -> None:
    await app.start(add, "1")  # type: ignore[call-overload]  # reportArgumentType
    await app.start(add)  # type: ignore[call-overload]  # reportCallIssue
    await app.start(add, 1, 2, 3)  # type: ignore[call-overload]  # reportCallIssue
    await app.start(add, 1, c=3)  # type: ignore[call-arg]  # reportCallIssue
    await app.start(add, a="1")  # type: ignore[call-overload]  # reportArgumentType
    await app.start(crawl, 1)  # type: ignore[call-overload]  # reportArgumentType
    await app.start(crawl, "x", 2)  # type: ignore[call-overload]  # reportCallIssue
    await app.start(crawl, "x", depth="2")  # type: ignore[arg-type]  # reportArgumentType
    await app.start(plain, 1)  # type: ignore[call-overload]  # reportArgumentType
    await app.start(plain_with_context, 1)  # type: ignore[call-overload]  # reportArgumentType
    await app.start(generator, "1")  # type: ignore[call-overload]  # reportArgumentType
    await app.start(undecorated, 1)  # type: ignore[call-overload]  # reportArgumentType
    await app.start(fetch, "x")  # type: ignore[call-overload]  # reportArgumentType
    await add.start("1")  # type: ignore[arg-type]  # reportArgumentType
    await add.start(1, bb=2)  # type: ignore[call-arg]  # reportCallIssue
    await add.options(key="k").start("1")  # type: ignore[arg-type]  # reportArgumentType
    await app.start(add.options(key="k"), "1")  # type: ignore[call-overload]  # reportArgumentType
    await typed.start("1")  # type: ignore[arg-type]  # reportArgumentType
    fetch.start("x")  # type: ignore[attr-defined]  # reportAttributeAccessIssue


async def contexts(app: Durable, ctx: Context, tick: Context[Tick]) -> None:
    await app.start(crawl, ctx, "x")  # type: ignore[call-overload]  # reportCallIssue
    await crawl(ctx, "x")  # type: ignore[arg-type, call-arg]  # reportCallIssue
    await typed(tick, 1)  # type: ignore[arg-type, call-arg]  # reportCallIssue
    await shout(ctx, "x")  # type: ignore[arg-type, call-arg]  # reportCallIssue


async def calls() -> None:
    add(1)  # type: ignore[unused-coroutine]  # reportUnusedCoroutine
    await add("1")  # type: ignore[arg-type]  # reportArgumentType
    await crawl(url=1)  # type: ignore[arg-type]  # reportArgumentType
    await plain(1)  # type: ignore[arg-type]  # reportArgumentType
    await anything(1)  # type: ignore[call-arg]  # reportCallIssue
    await anything(1, times="2")  # type: ignore[arg-type]  # reportArgumentType
    await fetch(1)  # type: ignore[arg-type]  # reportArgumentType
    await fetch("x", timeout=3)  # type: ignore[call-arg]  # reportCallIssue
    await shout(1)  # type: ignore[arg-type]  # reportArgumentType
    await listing(1)  # type: ignore[arg-type]  # reportArgumentType
    await Client().get(1)  # type: ignore[arg-type]  # reportArgumentType
    await named(1)  # type: ignore[arg-type]  # reportArgumentType
    plain("x").upper()  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    text: str = await add(1)  # type: ignore[assignment]  # reportAssignmentType
    print(text)


async def results(handle: Handle[int], app: Durable) -> None:
    text: str = await handle  # type: ignore[assignment]  # reportAssignmentType
    text = await handle.wait()  # type: ignore[assignment]  # reportAssignmentType
    text = await (await app.start(add, 1))  # type: ignore[call-overload]  # reportAssignmentType
    print(text)
    wrong: Handle[str] = await app.start(add, 1)  # type: ignore[call-overload]  # reportAssignmentType
    print(wrong)
    await handle.wait("soon")  # type: ignore[arg-type]  # reportArgumentType
    await handle.send(1)  # type: ignore[arg-type]  # reportArgumentType
    await handle.status().name  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    async for event in handle.events(after="0"):  # type: ignore[arg-type]  # reportArgumentType
        event.seq.upper()  # type: ignore[attr-defined]  # reportAttributeAccessIssue
        event.sequence  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    async for _ in await handle.events():  # type: ignore[misc]  # reportGeneralTypeIssues
        pass
    handle.event  # type: ignore[attr-defined]  # reportAttributeAccessIssue


async def maps() -> None:
    await durable.map(add, ["1"])  # type: ignore[arg-type]  # reportArgumentType
    await durable.map(fetch, [1])  # type: ignore[arg-type]  # reportArgumentType
    await durable.map(fetch, "ab", limit="8")  # type: ignore[arg-type]  # reportArgumentType
    await durable.map(undecorated, [None])  # type: ignore[misc]  # reportArgumentType
    wrong: list[str] = await durable.map(fetch, ["x"])  # type: ignore[arg-type]  # reportAssignmentType
    print(wrong)
