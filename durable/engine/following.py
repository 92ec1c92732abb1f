"""Following runs that other executors may hold: who waits for their end, and who reads their events.

Law: a notice only says when to look; what is told was read from the store. Without any notice, everything is looked at as often as
`poll_seconds` says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress

from durable.core.run import Run
from durable.engine.pipeline import RETRY_SECONDS
from durable.errors import DurableError, RunNotFoundError, StorageError
from durable.events.hub import Hub
from durable.store.shared import SharedStore

logger = logging.getLogger("durable.engine")

#: Runs that are read at once.
PAGE = 500


class Following:
    """Waits for ends, and lets subscribers look.

    Arguments:
        is_here: tells whether a run is held here: what becomes of it is told as it happens.
    """

    def __init__(self, store: SharedStore, hub: Hub, is_here: Callable[[str], bool]) -> None:
        self._store = store
        self._hub = hub
        self._is_here = is_here
        #: Of the runs that somebody reads events of, the last `seq` that was seen here without a notice.
        self._seen: dict[str, int] = {}
        self._waiting: dict[str, set[asyncio.Future[Run]]] = {}
        self._news: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed: DurableError | None = None

    async def ended(self, run_id: str, *, is_here: bool = False) -> Run:
        """Wait until the run has ended. Raises `RunNotFoundError`, and what `close` was given.

        Arguments:
            is_here: whether it is held here and has not ended: its end will be told.
        """
        if self._closed is not None:
            raise self._closed
        waiter: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run_id, set()).add(waiter)  # before it is read: from here on its end is not missed
        try:
            if not is_here:
                run = await self._find(run_id)
                if run is None:
                    raise _unknown(run_id)
                if run.ended:
                    return run
            return await waiter
        finally:
            waiters = self._waiting.get(run_id)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiting[run_id]

    async def _find(self, run_id: str) -> Run | None:
        """The run, once the store can be asked: who waits for its end waits for that, too."""
        while True:
            try:
                return await self._store.find(run_id)
            except StorageError as error:
                if self._closed is not None:
                    raise self._closed from error
                if not error.retryable:
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def _missed(self, run_id: str) -> None:
        """The run was not found: it was forgotten, or it is on a shard that is away."""
        self._hub.look_again((run_id,))
        with suppress(StorageError):  # who waits goes on waiting
            if await self._store.find(run_id) is None:
                for waiter in self._waiting.get(run_id, ()):
                    if not waiter.done():
                        waiter.set_exception(_unknown(run_id))

    def told(self, run: Run) -> None:
        """The run has ended, durably."""
        for waiter in self._waiting.get(run.run_id, ()):
            if not waiter.done():
                waiter.set_result(run.copy())

    def heard(self, run_ids: Collection[str] | None) -> None:
        """There is news of these runs; None: there may be news of any."""
        self._hub.look_again(self._hub.followed if run_ids is None else run_ids)
        self._look_at(self._waiting if run_ids is None else self._waiting.keys() & set(run_ids))

    def close(self, error: DurableError) -> None:
        """Tell all who wait that the end does not come here."""
        self._closed = error
        if self._task is not None:
            self._task.cancel()
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)

    def open(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._work(), name="durable-following")

    def _look_at(self, run_ids: Iterable[str]) -> None:
        self._news.update(run_ids)
        if self._news:
            self._wake.set()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        poll_at = loop.time() + self._store.poll_seconds
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(poll_at):
                    await self._wake.wait()
            self._wake.clear()
            wanted = {run_id for run_id in self._news if run_id in self._waiting}
            self._news.clear()
            if loop.time() >= poll_at:
                followed = self._hub.followed
                self._seen = {run_id: seq for run_id, seq in self._seen.items() if run_id in followed}
                wanted.update(run_id for run_id in (*self._waiting, *followed) if not self._is_here(run_id))
                poll_at = loop.time() + self._store.poll_seconds
            for page in batched(wanted, PAGE):
                await self._look(page)

    async def _look(self, run_ids: Sequence[str]) -> None:
        try:
            found = await self._store.read(run_ids)
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits is told when it can be read again
            logger.warning("runs that somebody follows cannot be read now: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
            self._look_at(run_ids)
            return
        for run_id in run_ids:
            if run_id not in found:
                await self._missed(run_id)
        for run_id, held in found.items():
            if held.run.ended:
                self.told(held.run)
            if held.run.seq > self._seen.get(run_id, 0) and self._hub.is_followed(run_id):
                self._seen[run_id] = held.run.seq
                self._hub.look_again((run_id,))


def _unknown(run_id: str) -> RunNotFoundError:
    return RunNotFoundError(f"no run has the id {run_id!r} in this store")


def batched(run_ids: Iterable[str], size: int) -> Iterator[list[str]]:
    """These ids, so many at a time."""
    left = list(run_ids)
    for start in range(0, len(left), size):
        yield left[start : start + size]
