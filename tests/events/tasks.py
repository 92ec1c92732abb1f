"""What emits, and what reads, in the tests of streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from durable import Context, Durable, Event, Handle, step, task
from durable.core.records import RESERVED_NAMES, Record
from durable.events.hub import StreamStats
from durable.store.base import Store
from tests.engine.gate import Gate

STEP_SECONDS = 10.0


@step(name="streams_rest")
async def rest(number: int) -> int:
    return number


@task(name="streams_steady")
async def steady(ctx: Context, count: int, size: int = 0) -> int:
    """Emits numbers, one after another; with a `size`, so many bytes with each."""
    for number in range(count):
        await ctx.emit("tick", "x" * size if size else number)
    return count


@task(name="streams_bulk")
async def bulk(ctx: Context, count: int) -> int:
    """Emits numbers, all at once."""
    for number in range(count):
        ctx.emit_nowait("tick", number)
    return count


@task(name="streams_on_demand")
async def on_demand(ctx: Context) -> int:
    """Emits as many as it is asked for, until it is asked for none."""
    told = 0
    while count := await ctx.wait_for("more"):
        for _ in range(count):
            ctx.emit_nowait("tick", told)
            told += 1
        await ctx.emit("done", told)
    return told


@task(name="streams_failing")
async def failing(ctx: Context, word: str) -> str:
    await ctx.emit("tick", word)
    if ctx.attempt == 1:
        raise ValueError(word)
    return word


def ticks(events: list[Event]) -> list[Any]:
    """What the body emitted."""
    return [event.data for event in events if event.name == "tick"]


def own(events: list[Event]) -> list[tuple[str, Any]]:
    """What is not the engine's."""
    return [(event.name, event.data) for event in events if event.name not in RESERVED_NAMES]


async def more(handle: Handle[Any], count: int) -> None:
    """Have `on_demand` emit so many, and wait until it has."""
    last = (await handle.info()).last_seq
    await handle.send("more", count)
    if count:
        async for event in handle.events(last):
            if event.name == "done":
                break


class Tail:
    """A reader that goes on by itself, and notes what it sees."""

    def __init__(self, stream: AsyncIterator[Event]) -> None:
        self.seen: list[Event] = []
        self._stream = stream
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self._stream:
            self.seen.append(event)
            self._news.set()

    async def until(self, name: str, times: int = 1) -> Event:
        """Wait until it has seen so many events of this name; the last of them."""
        async with asyncio.timeout(STEP_SECONDS):
            while len(found := [event for event in self.seen if event.name == name]) < times:
                self._news.clear()
                await self._news.wait()
        return found[times - 1]

    async def end(self) -> list[Event]:
        """Wait for the end of the stream."""
        async with asyncio.timeout(STEP_SECONDS):
            await self.task
        return self.seen


def streams(app: Durable) -> StreamStats:
    return app.engine.parts.services.hub.statistics()


async def nobody_reads(app: Durable) -> None:
    """Wait the two turns that asyncio takes to close a generator which nobody has any more."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert streams(app).subscribers == 0


class Counting(Gate):
    """Counts the questions that a reader asks of the store."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.questions = 0

    async def find(self, run_id: str) -> Any:
        self.questions += 1
        return await super().find(run_id)

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        self._ask("history")
        self.questions += 1
        return await super().history(run_id, after, limit)
