"""Reading: what anybody may ask about runs.

Law: every answer comes from the store, and so was durable before. A reader that follows a run gets each record once, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from durable.core.query import RunFilter
from durable.core.records import ENDS, Record
from durable.core.run import Run
from durable.engine.pipeline import RETRY_SECONDS
from durable.errors import RunNotFoundError, ShuttingDownError, StorageError
from durable.events.hub import Hub
from durable.store.base import Store

T = TypeVar("T")

#: Runs and records that are read at once.
PAGE = 500


class Reading:
    """Answers from the store, and live.

    Arguments:
        is_over: whether no more records come.
    """

    def __init__(self, store: Store, hub: Hub, is_over: Callable[[], bool]) -> None:
        self._store = store
        self._hub = hub
        self._is_over = is_over

    async def find_run(self, run_id: str) -> Run:
        """The run as it was last acknowledged. Raises `RunNotFoundError`."""
        run = await self._store.find(run_id)
        if run is None:
            raise RunNotFoundError(f"no run has the id {run_id!r} in this store")
        return run

    async def records(self, run_id: str, after: int) -> AsyncIterator[Record]:
        """All records above `after`: those that are there, then live ones, until the run has ended."""
        await self.find_run(run_id)
        subscription = self._hub.subscribe(run_id)
        try:
            while True:
                subscription.lagging = False
                page = await self._ask(after, partial(self._store.history, run_id, after, PAGE))
                for record in page:
                    after = record.seq
                    yield record
                if len(page) == PAGE:
                    continue
                run = await self._ask(after, partial(self.find_run, run_id))
                if run.ended and after >= run.seq:
                    return
                while not subscription.lagging:
                    for record in subscription.drain():
                        if record.seq > after + 1 and "ephemeral" not in record.head:
                            subscription.lagging = True  # another process recorded what is in between
                            break
                        if record.seq > after or "ephemeral" in record.head:
                            after = max(after, record.seq)
                            yield record
                            if record.kind in ENDS:
                                return
                    if self._is_over():
                        raise _closing(after)
                    await subscription.wait()
        finally:
            self._hub.unsubscribe(run_id, subscription)

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
