"""The limits: what the disk and the event loop can do with nothing above them.

`raw_inline` appends 200 bytes and calls fdatasync; `raw_thread` does so in a thread and comes back to the event loop, which is the
least that an engine which never blocks the loop can pay for one durable step. `raw_commit` inserts 200 bytes into PostgreSQL and
commits, on one connection.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

from benchmarks.place import Place
from benchmarks.workloads import Figures, latency

RECORD = b"x" * 200
TASKS = 20_000


async def measure(peer: str, workload: str, place: Place, count: int) -> Figures:
    if workload == "units":
        units = {"F": count / sum(await inline(place.directory, count)), "T": await tasks_a_second()}
        return units | ({"C": count / sum(await commits(place.url, count))} if place.url else {})
    ways: dict[str, Callable[[], Awaitable[list[float]]]] = {
        "raw_inline": lambda: inline(place.directory, count),
        "raw_thread": lambda: through_thread(place.directory, count),
        "raw_commit": lambda: commits(place.url, count),
    }
    seconds = await ways[peer]()
    return latency(seconds) if workload == "W1" else {"steps/s": count / sum(seconds)}


async def timed(count: int, append: Callable[[], Awaitable[None]]) -> list[float]:
    seconds = []
    for _ in range(count):
        began = perf_counter()
        await append()
        seconds.append(perf_counter() - began)
    return seconds


def _open(directory: Path) -> int:
    return os.open(directory / "raw.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)


async def inline(directory: Path, count: int) -> list[float]:
    descriptor = _open(directory)

    async def append() -> None:
        os.write(descriptor, RECORD)
        os.fdatasync(descriptor)

    return await timed(count, append)


async def through_thread(directory: Path, count: int) -> list[float]:
    descriptor, loop = _open(directory), asyncio.get_running_loop()
    waiting: queue.SimpleQueue[asyncio.Future[None]] = queue.SimpleQueue()

    def write() -> None:
        while True:
            future = waiting.get()
            os.write(descriptor, RECORD)
            os.fdatasync(descriptor)
            loop.call_soon_threadsafe(future.set_result, None)

    async def append() -> None:
        future = loop.create_future()
        waiting.put(future)
        await future

    threading.Thread(target=write, daemon=True).start()
    return await timed(count, append)


async def commits(url: str, count: int) -> list[float]:
    import psycopg  # not needed for the others

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS raw (number bigserial PRIMARY KEY, record bytea NOT NULL)")

        async def append() -> None:
            await connection.execute("INSERT INTO raw (record) VALUES (%s)", (RECORD,), prepare=True)

        return await timed(count, append)


async def tasks_a_second() -> float:
    async def nothing() -> None: ...

    began = perf_counter()
    for _ in range(TASKS):
        await asyncio.create_task(nothing())
    return TASKS / (perf_counter() - began)
