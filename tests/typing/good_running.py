"""Right use of applications and handles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_type

from durable import (
    Config,
    Context,
    Durable,
    Event,
    Handle,
    Limits,
    Retry,
    RunInfo,
    Status,
    UserContext,
    current_user,
    run_as,
    task,
)
from durable.config import EngineSettings, LogSettings
from durable.store import MemoryStore


@dataclass
class Report:
    url: str
    links: int


@task
async def crawl(ctx: Context, url: str, *, depth: int = 1) -> Report:
    await ctx.emit("page", {"url": url})
    return Report(url, depth)


@task
async def owner() -> str | None:
    identity = current_user()
    assert_type(identity, UserContext | None)
    return None if identity is None else identity.user


@task
async def waiter(ctx: Context) -> str:
    answer: str = await ctx.wait_for("answer", timeout=timedelta(minutes=1))
    return answer


async def opened(directory: str) -> None:
    """Ways to open."""
    app = Durable(
        directory, limits=Limits(max_running=10, slot_timeout=5.0), config=Config(log=LogSettings(segment_bytes=4096))
    )
    assert_type(await app.open(), Durable)
    await app.close()
    async with Durable(MemoryStore(), config=Config(engine=EngineSettings(max_recoveries=3)), test_mode=True) as other:
        assert_type(other, Durable)
        assert_type(await other.find("no such key"), Handle[Any] | None)
    async with Durable(MemoryStore()).lifespan():
        assert_type(await crawl.start("x"), Handle[Report])


async def starts(app: Durable) -> None:
    handle = await app.start(crawl, "https://example.org", depth=2)
    assert_type(handle, Handle[Report])
    assert_type(await handle, Report)
    assert_type(await handle.wait(), Report)
    assert_type(await handle.wait(timeout=timedelta(seconds=30)), Report)
    assert_type((await handle).links, int)
    started = await crawl.start(url="https://example.org")
    assert_type(started, Handle[Report])
    optioned = crawl.options(key="k", user="ann", timeout=3, retry=2, delay=timedelta(0), priority=1).options(
        retry=Retry(3)
    )
    assert_type(await optioned.start("https://example.org", depth=3), Handle[Report])
    assert_type(await app.start(optioned, "https://example.org", depth=3), Handle[Report])
    assert_type(crawl.name, str)
    with run_as(UserContext("ann", {"token": "t"})) as identity:
        assert_type(identity, UserContext)
        assert await (await owner.start()) == "ann"


async def handles(app: Durable) -> None:
    handle = await app.start(crawl, "https://example.org")
    assert_type(handle.run_id, str)
    assert_type(handle.key, str | None)
    events = handle.events(after=0, steps=False)
    assert_type(events, AsyncIterator[Event])
    async for event in handle.events(5, True, timedelta(seconds=15)):
        assert_type(event, Event)
        assert_type(event.seq, int)
        assert_type(event.name, str)
        assert_type(event.at, datetime)
        assert_type(event.attempt, int)
    assert_type(await handle.status(), Status)
    info = await handle.info()
    assert_type(info, RunInfo)
    assert_type(info.parent_id, str | None)
    assert_type(info.created_at, datetime)
    assert_type(info.closed, bool)
    assert_type(await handle.children(), list[Handle[Any]])
    assert await handle.status() is Status.COMPLETED
    await handle.cancel("too late")
    waiting = await app.start(waiter)
    await waiting.send("answer", "yes")
    assert await waiting.wait(10) == "yes"
    stopped = await app.start(waiter)
    await stopped.stop("pause")
    await stopped.resume()
    await stopped.cancel(reason="enough")


async def asks(app: Durable, run_id: str) -> None:
    assert_type(await app.get(run_id), Handle[Any])
    async for info in app.runs(status=Status.COMPLETED, task=crawl, user=None, limit=10, after=None):
        assert_type(info, RunInfo)
    async for _ in app.runs(status=["completed", Status.FAILED], task="crawl"):
        pass
    async for event in app.subscribe(run_id, after=1, heartbeat=15.0):
        assert_type(event, Event)
    async for letter in app.dead_letters.list():
        assert_type(letter, RunInfo)
    stats = await app.stats()
    assert_type(stats.running, int)


def typed_handle(handle: Handle[Report]) -> Handle[object]:
    """A handle of something is a handle of anything wider: results are only read."""
    return handle


async def main() -> None:
    """Run what the checkers accepted."""
    async with Durable(MemoryStore()) as app:
        await starts(app)
        await handles(app)
        handle = await app.start(crawl, "https://example.org")
        await typed_handle(handle)
        await asks(app, handle.run_id)
