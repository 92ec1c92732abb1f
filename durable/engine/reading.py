"""Reading: what anybody may ask about runs.

Law: every answer comes from the store, and so was durable before. A reader that follows a run gets each record once, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from durable.clock import Clock
from durable.core.query import RunFilter
from durable.core.records import Kind, Record
from durable.core.run import Run
from durable.engine.pipeline import RETRY_SECONDS
from durable.errors import RunNotFoundError, ShuttingDownError, StorageError
from durable.events.hub import Hub
from durable.events.ring import Reader
from durable.store.base import Store

T = TypeVar("T")

#: Runs that are read at once.
PAGE = 500
#: Records that are read at once: a reader that stops holds them for itself.
RECORDS_PAGE = 128


class Silence:
    """How long a subscriber was told nothing.

    Arguments:
        seconds: how long is too long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at: float | None = None

    def broken(self) -> None:
        """It was told something."""
        self._ends_at = None

    async def during(self, pause: Awaitable[None]) -> AsyncGenerator[None]:
        """Wait for `pause`, and tell each time that it was silent too long."""
        loop = asyncio.get_running_loop()
        pausing = asyncio.ensure_future(pause)
        try:
            while True:
                if self._ends_at is None:
                    self._ends_at = loop.time() + self._seconds
                await asyncio.wait({pausing}, timeout=max(0.0, self._ends_at - loop.time()))
                if loop.time() >= self._ends_at:
                    self._ends_at = None
                    yield
                if pausing.done():
                    pausing.result()
                    return
        finally:
            if not pausing.cancel() and not pausing.cancelled():
                pausing.exception()  # nobody asks for it any more


class Reading:
    """Answers from the store, and live.

    Arguments:
        is_over: whether no more records come.
    """

    def __init__(self, store: Store, hub: Hub, clock: Clock, is_over: Callable[[], bool]) -> None:
        self._store = store
        self._hub = hub
        self._clock = clock
        self._is_over = is_over

    async def find_run(self, run_id: str) -> Run:
        """The run as it was last acknowledged. Raises `RunNotFoundError`."""
        run = await self._store.find(run_id)
        if run is None:
            raise RunNotFoundError(f"no run has the id {run_id!r} in this store")
        return run

    async def records(
        self, run_id: str, after: int, *, steps: bool = True, heartbeat: float | None = None
    ) -> AsyncGenerator[Record]:
        """All records above `after`: those that are there, then live ones, until the run has ended. Raises `RunNotFoundError`.

        Arguments:
            steps: whether records of steps are told, too.
            heartbeat: tell that nothing came for so long, seconds.
        """
        with self._hub.follow(run_id, after) as reader:
            last: Record | None = None
            silence = None if heartbeat is None else Silence(heartbeat)
            while True:
                while found := reader.ready():
                    for record in found:
                        if steps or record.visible:
                            last = record
                            yield record
                            if silence is not None:
                                silence.broken()
                pause: Awaitable[None]
                if reader.has_to_ask:
                    pause = self._ask_store(run_id, reader)
                elif reader.ring.ended:
                    return
                elif self._is_over() or reader.ring.closed:
                    raise _closing(reader.after)
                else:
                    pause = reader.ring.wait()
                if silence is None:
                    await pause
                    continue
                async with aclosing(silence.during(pause)) as beats:
                    async for _ in beats:
                        yield self._beat(run_id, after, last)

    def _beat(self, run_id: str, after: int, last: Record | None) -> Record:
        seq, attempt = (after, 1) if last is None else (last.seq, last.attempt)
        return Record(run_id, seq, Kind.EVENT, self._clock.now(), attempt, "heartbeat", head={"ephemeral": True})

    async def _ask_store(self, run_id: str, reader: Reader) -> None:
        """Get what comes next from the store: what is no longer in memory for this reader, what is new for all."""
        ring = reader.ring
        if reader.fell_behind():
            self._hub.overflowed()
        if reader.behind:
            page = await self._ask(reader.after, partial(self._store.history, run_id, reader.after, RECORDS_PAGE))
            reader.take(page)
            if not page:
                ring.forget()
            return
        async with ring.reading:
            if reader.after < ring.last or not ring.news:
                return  # somebody else has asked meanwhile
            after = reader.after
            ring.news = False  # what is heard from here on counts anew
            try:
                page = await self._ask(after, partial(self._store.history, run_id, after, RECORDS_PAGE))
                run = None if len(page) == RECORDS_PAGE else await self._ask(after, partial(self.find_run, run_id))
            except BaseException:
                ring.news = True
                raise
            reader.take(page)
            ring.learn(after, page, run)

    async def _ask(self, after: int, question: Callable[[], Awaitable[T]]) -> T:
        """Ask for who follows a run; once the store can be asked."""
        while True:
            try:
                return await question()
            except StorageError as error:
                if self._is_over():
                    raise _closing(after) from error
                if not error.retryable:
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def children_of(self, run_id: str) -> Sequence[Run]:
        """The runs that this run started, in order; not the one that is its coordinator."""
        parent = await self.find_run(run_id)
        found: list[Run] = []
        after: str | None = None
        while page := await self._store.query(RunFilter(parent_id=run_id, after=after, limit=PAGE)):
            found += page
            after = page[-1].run_id
        return [run for run in found if run.run_id != parent.coordinator_id]


def _closing(after: int) -> ShuttingDownError:
    return ShuttingDownError(f"the application is closing; go on from seq {after} when it is open again")
