"""The floor: the least that deserves the name of a durable engine, to see what Python can reach.

A log with a checksum on each record, group commit in a writer thread, and recorded results handed back on recovery; or, with
`benchmarks.floor_table`, a table in PostgreSQL instead of the log. It has no queries, no limits, no retries, no keys, no cancellation and
no checks: a yardstick, not a product.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import struct
import threading
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

HEADER = struct.Struct("<II")  # length, CRC-32
Record = dict[str, Any]
Batch = tuple[list[bytes], list["asyncio.Future[None]"]]


class Appends(Protocol):
    def append(self, record: Record) -> asyncio.Future[None]:
        """Return a future that resolves when the record is durable."""
        ...


class Log:
    """An append returns a future that resolves when the record is synced. While one sync is in flight the next batch gathers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        self._loop = asyncio.get_running_loop()
        self._frames: list[bytes] = []
        self._futures: list[asyncio.Future[None]] = []
        self._flushing = False
        self._batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def append(self, record: Record) -> asyncio.Future[None]:
        payload = json.dumps(record, separators=(",", ":")).encode()
        self._frames.append(HEADER.pack(len(payload), zlib.crc32(payload)) + payload)
        future = self._loop.create_future()
        self._futures.append(future)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        if not self._frames:
            self._flushing = False
            return
        self._batches.put((self._frames, self._futures))
        self._frames, self._futures = [], []

    def _write(self) -> None:
        while True:
            frames, futures = self._batches.get()
            os.write(self._descriptor, b"".join(frames))
            os.fdatasync(self._descriptor)
            self._loop.call_soon_threadsafe(self._synced, futures)

    def _synced(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)
        self._loop.call_soon(self._flush)  # those who were woken add their records first

    def replay(self) -> Iterator[Record]:
        content = self.path.read_bytes()
        offset = 0
        while offset + HEADER.size <= len(content):
            length, checksum = HEADER.unpack_from(content, offset)
            payload = content[offset + HEADER.size : offset + HEADER.size + length]
            if len(payload) < length or zlib.crc32(payload) != checksum:
                break
            yield json.loads(payload)
            offset += HEADER.size + length
        os.ftruncate(self._descriptor, offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)


class Run:
    __slots__ = ("calls", "recorded", "run_id")

    def __init__(self, run_id: str, recorded: dict[int, Any]) -> None:
        self.run_id = run_id
        self.calls = 0
        self.recorded = recorded


Body = Callable[..., Coroutine[Any, Any, Any]]
current: ContextVar[tuple[Engine, Run]] = ContextVar("current")


def step(function: Body) -> Callable[..., Awaitable[Any]]:
    """A call of the result is numbered where it is made, so that steps at once keep their places."""

    async def execute(engine: Engine, run: Run, number: int, arguments: tuple[Any, ...]) -> Any:
        if number in run.recorded:
            return run.recorded[number]
        result = await function(*arguments)
        await engine.log.append({"run": run.run_id, "step": number, "result": result})
        return result

    def call(*arguments: Any) -> Awaitable[Any]:
        engine, run = current.get()
        run.calls += 1
        return execute(engine, run, run.calls, arguments)

    return call


async def child(body: str, argument: int) -> Any:
    """Run a body as a run of its own, and wait for its end. Its result is not recorded in the run that calls it."""
    engine, _ = current.get()
    return await engine.result(await engine.start(body, argument))


class Engine:
    """Runs bodies; after `recover()` those that had not ended go on."""

    def __init__(self, log: Appends, bodies: dict[str, Body]) -> None:
        self.log = log
        self._bodies = bodies
        self._started = 0
        self.tasks: dict[str, asyncio.Task[Any]] = {}

    async def start(self, body: str, argument: int) -> str:
        """Return the run's id when the start is durable."""
        self._started += 1
        run_id = f"{body}-{self._started}"
        await self.log.append({"run": run_id, "body": body, "argument": argument})
        self._spawn(run_id, body, argument, {})
        return run_id

    async def result(self, run_id: str) -> Any:
        """Return the run's result when its end is durable."""
        return await self.tasks.pop(run_id)

    def recover(self, records: Iterable[Record]) -> None:
        opened: dict[str, tuple[str, int, dict[int, Any]]] = {}
        for record in records:
            match record:
                case {"run": run_id, "body": body, "argument": argument}:
                    opened[run_id] = (body, argument, {})
                case {"run": run_id, "step": number, "result": result}:
                    opened[run_id][2][number] = result
                case {"run": run_id, "end": _}:
                    del opened[run_id]
        for run_id, (body, argument, recorded) in opened.items():
            self._spawn(run_id, body, argument, recorded)

    def _spawn(self, run_id: str, body: str, argument: int, recorded: dict[int, Any]) -> None:
        self.tasks[run_id] = asyncio.create_task(self._execute(run_id, body, argument, recorded))

    async def _execute(self, run_id: str, body: str, argument: int, recorded: dict[int, Any]) -> Any:
        current.set((self, Run(run_id, recorded)))
        result = await self._bodies[body](argument)
        await self.log.append({"run": run_id, "end": result})
        return result
