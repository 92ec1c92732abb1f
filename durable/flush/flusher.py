"""The flusher: carries what is durable in the log into the repository, in large batches, off the path of every commit.

Law: the position goes up only in the transaction that applied everything below it, and only by whole units. Until then the log keeps
it all, so nothing that happens here can lose a record: a repository that is away costs queries and room, never work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from durable.clock import Clock
from durable.config import FlushSettings
from durable.core.run import Run
from durable.errors import BackpressureError, StorageError
from durable.flush.breaker import Breaker, BreakerState
from durable.repository.base import RecordRefusedError, Repository
from durable.repository.projection import RecordRow, RunRow, run_row

logger = logging.getLogger("durable.flush")

#: Most runs that are turned into rows in one turn of the event loop (about 1 ms).
SLICE_RUNS = 64
#: Most runs that are withheld because the repository refuses them; with more, the fault is taken to be the repository's.
WITHHELD_RUNS_MAX = 100


class Flusher:
    """Holds the records that the repository lacks, in the order of the log.

    Arguments:
        repository: where they go.
        settings: sizes, times and bounds.
        clock: for the breaker.
        position: the log is applied up to here.
        run_of: the live state of a run that has pending records.
        on_flushed: told, after each transaction, up to which `seq` each run is stored, and the position.
        on_batch: told, after each batch, how many records it had, and how many seconds it took.
    """

    def __init__(
        self,
        repository: Repository,
        settings: FlushSettings,
        *,
        clock: Clock,
        position: int,
        run_of: Callable[[str], Run],
        on_flushed: Callable[[Mapping[str, int], int], None],
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.position = position
        self._repository = repository
        self._settings = settings
        self._clock = clock
        self._run_of = run_of
        self._on_flushed = on_flushed
        self._on_batch = on_batch
        self._breaker = Breaker(settings.breaker_threshold, settings.breaker_open_seconds)
        self._state = BreakerState.CLOSED  # as it was last logged
        self._pending: list[RecordRow] = []
        #: Runs that the repository refuses: what waits of each, and why. The position stays below the first of them.
        self._withheld: dict[str, list[RecordRow]] = {}
        self._refusals: dict[str, str] = {}
        self._last_error: BaseException | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        #: Held by who flushes a batch.
        self._turn = asyncio.Lock()
        self._commits_wait = False
        self._closing = False

    # -- the committing side

    def hand_over(self, rows: Sequence[RecordRow]) -> None:
        """Take records that have just become durable, in the order of the log."""
        self._pending.extend(rows)
        if len(self._pending) >= self._settings.batch_records_max and not self._breaker.failures:
            self._wake.set()
        elif self._timer is None:
            self._schedule(self._settings.interval_seconds)

    @property
    def backlog_records(self) -> int:
        """Records that are durable but not in the repository."""
        return len(self._pending) + sum(map(len, self._withheld.values()))

    def admit(self) -> None:
        """Raise `BackpressureError` when new runs should not be started."""
        if len(self._pending) > self._settings.backlog_records_max:
            raise BackpressureError(
                f"{len(self._pending)} records wait to be flushed, more than flush.backlog_records_max "
                f"({self._settings.backlog_records_max}): {self._why()}; starts are refused until they are fewer",
                retry_after=max(self._settings.interval_seconds, self._breaker.wait_seconds(self._clock.monotonic())),
            )

    @property
    def full(self) -> bool:
        """Whether commits have to wait for `room`."""
        return len(self._pending) >= 2 * self._settings.backlog_records_max

    async def room(self) -> None:
        """Wait until the backlog is below its last bound, or the flusher is closed."""
        if self.full and not self._commits_wait:
            self._commits_wait = True
            logger.error(
                "commits wait: %d records are not flushed, twice flush.backlog_records_max; %s",
                len(self._pending),
                self._why(),
            )
        while self.full and not self._closing:
            self._room.clear()
            await self._room.wait()

    def _why(self) -> str:
        if self._last_error is not None:
            return f"the repository is away ({self._last_error})"
        return "the repository is slower than the work"

    @property
    def detail(self) -> str:
        """What is wrong, in words; empty when nothing is."""
        parts = []
        if self._breaker.state is not BreakerState.CLOSED:
            parts.append(f"the repository is away ({self._last_error}); {len(self._pending)} records wait in the log")
        if len(self._pending) > self._settings.backlog_records_max:
            waiting = " and commits wait" if self.full else ""
            parts.append(f"{len(self._pending)} records wait to be flushed: starts are refused{waiting}")
        if self._refusals:
            run_id, reason = next(iter(self._refusals.items()))
            parts.append(
                f"the repository refuses {len(self._refusals)} run(s), first {run_id} ({reason}); the log keeps everything from there on"
            )
        return "; ".join(parts)

    # -- the flushing side

    def start(self) -> None:
        """Begin to flush in the background."""
        self._task = asyncio.create_task(self._work(), name="durable-flusher")

    async def drain(self) -> None:
        """Flush all that is pending, without the breaker; raises what the repository raises. For recovery, before `start`."""
        while self._pending:
            await self._flush_batch()

    async def settle(self) -> None:
        """Flush what is pending by now, whatever the breaker says; raises what the repository raises."""
        last = self._pending[-1][2] if self._pending else 0
        while self._pending and self._pending[0][2] <= last:
            async with self._turn:
                if self._pending and self._pending[0][2] <= last:
                    await self._flush_batch()

    async def close(self, seconds: float) -> None:
        """Flush what is pending, for at most `seconds`. What is left stays in the log, for the next open."""
        self._closing = True
        self._cancel_timer()
        self._wake.set()
        self._room.set()
        if self._task is None:
            return
        _, late = await asyncio.wait({self._task}, timeout=seconds)
        for task in late:
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
        if self._pending:
            logger.warning(
                "closed with %d records not flushed; they are in the log, and the next open flushes them",
                len(self._pending),
            )

    async def _work(self) -> None:
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            self._cancel_timer()
            went_well = not self._pending or await self._try_batch()
            if not self._pending:
                continue
            if went_well and len(self._pending) >= self._settings.batch_records_max:
                self._wake.set()
            elif self._timer is None:
                wait = self._breaker.wait_seconds(self._clock.monotonic())
                self._schedule(max(wait, self._settings.interval_seconds))
        while self._pending and await self._try_batch():
            pass

    def _schedule(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _try_batch(self) -> bool:
        """Flush one batch if the breaker allows it; tell whether it went well."""
        if not self._breaker.allows(self._clock.monotonic()):
            return False
        self._tell_state()
        try:
            async with self._turn:
                if self._pending:
                    await self._flush_batch()
        except Exception as error:  # noqa: BLE001  whatever a repository raises, it is no reason to lose the flusher
            self._last_error = error
            self._breaker.failure(self._clock.monotonic())
            self._tell_state()
            return False
        self._last_error = None
        self._breaker.success()
        self._tell_state()
        return True

    def _tell_state(self) -> None:
        state = self._breaker.state
        if state is self._state:
            return
        before, self._state = self._state, state
        if state is BreakerState.OPEN:
            logger.error(
                "the repository is away: %s flush(es) in a row failed, the next is tried in %g s; %d records wait in the log",
                self._breaker.failures, self._settings.breaker_open_seconds, len(self._pending), exc_info=self._last_error,
            )  # fmt: skip
        elif state is BreakerState.HALF_OPEN:
            logger.info("trying the repository again")
        else:
            logger.warning(
                "the repository is back (breaker %s before); %d records left to flush", before, len(self._pending)
            )

    async def _flush_batch(self) -> None:
        began = self._clock.monotonic()
        count = self._batch_end()
        batch = self._pending[:count]
        seqs = {row[0]: row[1] for row in batch}  # the highest of each run, since a run's records come in order
        runs = await self._snapshots(batch, [run_id for run_id in seqs if run_id not in self._withheld])
        rows = [row for row in batch if row[0] not in self._withheld] if self._withheld else batch
        try:
            await self._repository.apply_batch(rows, runs, self._position_after(batch))
        except RecordRefusedError:
            await self._sort_out(rows, runs)
            await self._repository.apply_batch((), (), self._position_after(batch))
        for row in batch:
            if row[0] in self._withheld:
                seqs.pop(row[0], None)
                self._withheld[row[0]].append(row)
        self.position = self._position_after(batch)
        del self._pending[:count]
        if not self.full:
            self._commits_wait = False
            self._room.set()
        self._on_flushed(seqs, self.position)
        if self._on_batch is not None:
            self._on_batch(count, self._clock.monotonic() - began)

    def _batch_end(self) -> int:
        """Where the next batch ends: at the end of a unit, since the position counts units."""
        pending = self._pending
        end = min(len(pending), self._settings.batch_records_max)
        while end < len(pending) and pending[end][2] == pending[end - 1][2]:
            end += 1
        return end

    def _position_after(self, batch: Sequence[RecordRow]) -> int:
        """The last unit of the batch, or the one before the first record that is withheld."""
        if not self._withheld:
            return batch[-1][2]
        firsts = [rows[0][2] for rows in self._withheld.values() if rows]
        firsts += [row[2] for row in batch if row[0] in self._withheld]
        return max(self.position, min(*(first - 1 for first in firsts), batch[-1][2]))

    async def _snapshots(self, batch: Sequence[RecordRow], run_ids: Sequence[str]) -> list[RunRow]:
        rows = []
        for number, run_id in enumerate(run_ids, 1):
            try:
                rows.append(run_row(self._run_of(run_id)))
            except (TypeError, ValueError) as error:  # it has no row: the same as being refused
                self._withhold(run_id, [row for row in batch if row[0] == run_id], RecordRefusedError(repr(error)))
            if number % SLICE_RUNS == 0:
                await asyncio.sleep(0)
        return rows

    async def _sort_out(self, rows: Sequence[RecordRow], runs: Sequence[RunRow]) -> None:
        """Apply a batch that was refused in halves, and withhold the runs that are refused alone. The position stays."""
        groups = [runs]
        while groups:
            group = groups.pop()
            members = {run.run_id for run in group}
            some = [row for row in rows if row[0] in members]
            try:
                await self._repository.apply_batch(some, group, self.position)
            except RecordRefusedError as error:
                if len(group) > 1:
                    middle = len(group) // 2
                    groups += [group[:middle], group[middle:]]
                    continue
                if len(self._withheld) >= WITHHELD_RUNS_MAX:
                    raise StorageError(f"the repository refuses more than {WITHHELD_RUNS_MAX} runs: {error}") from error
                self._withhold(group[0].run_id, some, error)

    def _withhold(self, run_id: str, rows: Sequence[RecordRow], error: RecordRefusedError) -> None:
        self._withheld[run_id] = []
        self._refusals[run_id] = str(error)
        logger.error(
            "the repository refuses run %s, records %d to %d (from unit %d of the log on): %s. The run goes on and stays readable; it "
            "is withheld from the repository until the store is opened again, and the log is kept from there on",
            run_id, rows[0][1], rows[-1][1], rows[0][2], error, extra={"run_id": run_id},
        )  # fmt: skip
