"""The pipeline: decisions in, durable records out.

Law: each decision sees all earlier ones (they are applied at once, to the entry alone); effects, answers and results come only after the
store acknowledged the record. While one commit is in flight the next batch gathers: no timer, no window.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from durable.clock import Clock
from durable.core.commands import Command
from durable.core.decide import decide
from durable.core.records import ENDS, Kind, Record
from durable.core.run import apply
from durable.engine.entry import Entry, Unit
from durable.errors import (
    DurableError,
    LogFencedError,
    RepositoryUnavailableError,
    ShuttingDownError,
    StorageError,
    StorageFullError,
)
from durable.store.base import Store

logger = logging.getLogger("durable.engine")

#: Wait between tries while the disk is full or a repository that has to be asked is away, seconds.
RETRY_SECONDS = 0.5
#: Kinds of record that may mean something for other runs.
ENTAILING = ENDS | {Kind.CHILDREN_STARTED, Kind.CHILD_ENDED}
#: A unit becomes one frame of the log: with this many bytes in it, the next record of its run goes into another unit.
UNIT_BYTES_MAX = 8 * 1024 * 1024


class Pipeline:
    """Gathers records and commits them in batches.

    Arguments:
        publish: called for each unit once it is durable.
        entailed: tells, for a record of one of the kinds `ENTAILING`, what it means for other runs.
        on_failure: called once, when the store takes nothing more.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        records_max: int,
        *,
        publish: Callable[[Unit], None],
        entailed: Callable[[Entry, Record], Iterable[tuple[Entry, Command]]],
        on_failure: Callable[[StorageError], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._records_max = records_max
        self._publish = publish
        self._entailed = entailed
        self._on_failure = on_failure
        self._pending: list[Unit] = []
        self._wake: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closing = False
        self._closed = False
        self.failure: StorageError | None = None

    def open(self) -> None:
        """Start committing."""
        self._worker = asyncio.get_running_loop().create_task(self._work(), name="durable-pipeline")

    async def close(self) -> None:
        """Commit what is pending, then stop."""
        self._closing = True
        self._kick()
        if self._worker is not None:
            await self._worker

    def stage(self, entry: Entry, command: Command, *further: tuple[Entry, Command]) -> list[Record]:
        """Decide a command and put its records into the next commit. Raises what `decide` raises, and the store's failure.

        Its records, those of `further` commands, and what all of them entail for other runs (which is never refused) become durable
        together or not at all; where one is refused, nothing is staged. Returns the records of the first command.
        """
        if self.failure is not None:
            raise LogFencedError(str(self.failure)) from self.failure
        if self._closed:
            raise ShuttingDownError("the application is closed: nothing more is recorded")
        decided = decide(entry.run, command, self._clock.now(), self._records_max)
        staged: list[tuple[Entry, Record]] = []
        work = deque(further)
        before = (
            [(other, other.run.copy()) for other in (entry, *(wish[0] for wish in further)) if other.run.seq]
            if further
            else []
        )
        try:
            self._take(entry, decided, staged, work)
            while work:
                other, command = work.popleft()
                self._take(other, decide(other.run, command, self._clock.now(), self._records_max), staged, work)
        except BaseException:
            for other, run in before:
                other.run.become(run)
            raise
        if staged:
            self._place(staged)
        return decided

    def _take(
        self,
        entry: Entry,
        records: list[Record],
        staged: list[tuple[Entry, Record]],
        work: deque[tuple[Entry, Command]],
    ) -> None:
        for record in records:
            apply(entry.run, record)
            staged.append((entry, record))
        for record in records:
            if record.kind in ENTAILING:
                work.extend(self._entailed(entry, record))

    def _place(self, staged: list[tuple[Entry, Record]]) -> None:
        """Put records into the unit of their runs, where it is one and has room, else into a new one at the end."""
        size, unit, mixed = 0, None, False
        for entry, record in staged:
            size += _size(record)
            if entry.unit is not None and entry.unit is not unit:
                mixed = unit is not None
                unit = entry.unit
        if unit is None or mixed or unit.size_bytes + size > UNIT_BYTES_MAX:
            unit = Unit()
            self._pending.append(unit)
            self._kick()
        unit.size_bytes += size
        unit.items += staged
        for entry, _ in staged:
            entry.unit = unit

    def durable(self, entry: Entry) -> asyncio.Future[None]:
        """A future that is done when everything staged for the entry is durable."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.failure is not None:
            waiter.set_exception(_outcome_unknown(self.failure))
        elif entry.unit is not None:
            entry.unit.waiters.append(waiter)
        elif entry.in_flight is not None:
            entry.in_flight.waiters.append(waiter)
        else:
            waiter.set_result(None)
        return waiter

    def is_durable(self, entry: Entry) -> bool:
        """Whether nothing that was staged for the entry is still on its way."""
        return entry.unit is None and entry.in_flight is None

    def _kick(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._pending:
                if self._closing:
                    self._closed = True  # in this very turn: nothing may be staged that nobody commits
                    return
                self._wake = loop.create_future()
                await self._wake
                continue  # one turn has passed: what else became runnable in it has staged its records too
            if not await self._commit_pending():
                return
            await asyncio.sleep(0)  # those who were told stage their next records first, and share one commit

    async def _commit_pending(self) -> bool:
        """Commit what has gathered, and act on it; False when the store takes nothing more."""
        units = self._pending
        self._pending = []
        for unit in units:
            for entry, _ in unit.items:
                entry.unit = None
                entry.in_flight = unit
        try:
            await self._commit(units)
            for unit in units:
                for entry, _ in unit.items:
                    if entry.in_flight is unit:  # else more of it is to be published
                        entry.in_flight = None
                self._publish(unit)
                for waiter in unit.waiters:
                    if not waiter.done():
                        waiter.set_result(None)
        except StorageError as error:
            self._fail(error, units)
            return False
        except (
            Exception
        ) as error:  # a store that breaks its contract, or a defect: what became of the records is not known
            logger.exception("a commit, or what follows from it, failed in a way that it may not")
            self._fail(StorageError(f"the store raised {error!r}, which no store may"), units)
            return False
        return True

    async def _commit(self, units: list[Unit]) -> None:
        batch = [[record for _, record in unit.items] for unit in units]
        told: type[StorageError] | None = None
        while True:
            try:
                await self._store.commit(batch)
                return
            except (StorageFullError, RepositoryUnavailableError) as error:  # nothing was written; later it can be
                if told is not type(error):
                    logger.error("nothing can be committed now, work waits: %s", error)
                    told = type(error)
                await asyncio.sleep(RETRY_SECONDS)
                if self._closing:
                    raise

    def _fail(self, error: StorageError, units: list[Unit]) -> None:
        self.failure = error
        logger.critical("the store failed and takes nothing more in this process: %s", error)
        for unit in (*units, *self._pending):
            for waiter in unit.waiters:
                if not waiter.done():
                    waiter.set_exception(_outcome_unknown(error))
        self._pending = []
        self._on_failure(error)


def _size(record: Record) -> int:
    """About how many bytes it will have."""
    size = 256 + len(record.payload or b"") + len(record.ident)
    return size + 4 * len(record.head["traceback"]) if "traceback" in record.head else size


def _outcome_unknown(error: StorageError) -> DurableError:
    fenced = LogFencedError(f"the outcome is unknown: {error}")
    fenced.__cause__ = error
    return fenced
