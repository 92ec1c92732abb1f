"""The embedded store: a write-ahead log, and a repository behind it.

Law: `commit` waits for the log's sync and for nothing else; the overlay is changed, and the flusher told, in the very call that the
log's acknowledgement makes, in the order of the log. The repository may lag behind or be away; it never holds what the log did not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY, Clock, Entropy
from durable.config import FlushSettings, LogSettings
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.core.wire import decode_unit, encode_record, encode_unit
from durable.errors import (
    ConflictError,
    LogFencedError,
    StorageError,
    StorageFullError,
    StoreMismatchError,
    StoreReadOnlyError,
)
from durable.flush.flusher import Flusher
from durable.log import DiskFiles, Files, Log, ThreadWorker, WorkerFactory
from durable.repository.base import Repository, RepositoryState
from durable.repository.projection import RecordRow
from durable.repository.sqlite import SqliteRepository
from durable.store.answers import Answers
from durable.store.base import StoreHealth, Unit
from durable.store.overlay import Commit, Overlay

#: How long `close` may take to flush what is pending. What is left stays in the log.
CLOSE_FLUSH_SECONDS = 10.0
#: How often `open` looks at the repository again when another process has changed it in between.
_PEEKS = 3

T = TypeVar("T")


class LocalStore:
    """See `durable.store.base.Store`. The log is in `path/log`, the repository in `path/repository.db`.

    Arguments:
        path: the store's directory; made, with mode 0700, when it is missing.
        log: settings of the log.
        flush: settings of the flusher.
        clock: where the time comes from.
        entropy: where a new store's id comes from.
        files: the log's directory, if it is not `path/log` on a disk.
        repository: the tables behind the log, if it is not SQLite in `path`.
        worker: makes the threads of the log.
        read_only: take no lock and write nothing at all; for looking at a store that another process may be at work on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        log: LogSettings = LogSettings(),
        flush: FlushSettings = FlushSettings(),
        clock: Clock = SYSTEM_CLOCK,
        entropy: Entropy = SYSTEM_ENTROPY,
        files: Files | None = None,
        repository: Repository | None = None,
        worker: WorkerFactory = ThreadWorker,
        read_only: bool = False,
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self._log_settings = log
        self._flush_settings = flush
        self._clock = clock
        self._entropy = entropy
        self._files: Files = files or DiskFiles(os.path.join(self.path, "log"))
        self._repository: Repository = repository or SqliteRepository(os.path.join(self.path, "repository.db"))
        self._worker = worker
        self._read_only = read_only
        self._renew()
        self._log: Log | None = None
        self._flusher: Flusher | None = None
        self._queue = asyncio.Lock()
        self._queued = 0
        #: Told, after each batch that came into the tables, of how many records, and how many seconds it took; set before `open`.
        self.on_flush: Callable[[int, float], None] | None = None
        #: Runs that are being forgotten; a commit that goes on with one waits for that.
        self._going: set[str] = set()
        self._pruning = asyncio.Lock()

    @property
    def store_id(self) -> str:
        return self._opened().store_id

    # -- opening and closing

    async def open(self) -> None:
        if self._log is not None:
            raise StorageError(f"the store in {self.path} is open already")
        self._renew()
        try:
            self._log, peeked = await self._open_log()
            if self._read_only:
                await self._replay(self._log, peeked.applied or 0, None)
                return
            store_id, applied = await self._repository.initialize()
            if store_id is None:
                await self._repository.adopt(self._log.store_id)
            elif store_id != self._log.store_id:
                raise StoreMismatchError(
                    f"the repository belongs to store {store_id}, the log to store {self._log.store_id}"
                )
            flusher = Flusher(
                self._repository, self._flush_settings, clock=self._clock, position=applied or 0,
                run_of=self._run_of, on_flushed=self._flushed, on_batch=self.on_flush,
            )  # fmt: skip
            await self._replay(self._log, applied or 0, flusher)
            flusher.start()
            self._flusher = flusher
            self._flushed(
                {}, flusher.position
            )  # what an earlier process was killed before: on a full disk nothing else would
        except BaseException:
            await self._release()
            raise

    def _renew(self) -> None:
        self._overlay = Overlay()
        self._answers = Answers(self._overlay, self._repository, keeps_open=not self._read_only)

    async def _open_log(self) -> tuple[Log, RepositoryState]:
        peeked = await self._repository.peek()
        for attempt in range(_PEEKS):
            try:
                log = await Log.open(
                    self._files, self._log_settings, clock=self._clock, entropy=self._entropy, applied=peeked.applied,
                    store_id=peeked.store_id, worker=self._worker, read_only=self._read_only,
                )  # fmt: skip
                return log, peeked
            except StoreMismatchError:
                # Another process may have flushed, retired and closed since the first look; damage looks the same again.
                before, peeked = peeked, await self._repository.peek()
                if peeked == before or attempt == _PEEKS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _replay(self, log: Log, applied: int, flusher: Flusher | None) -> None:
        """Bring the repository, or at least the overlay, up to the end of the log."""
        units: list[list[Record]] = []
        count = 0
        forgotten = set() if applied else _superseded(log)
        for lsn, payload in log.read(applied):
            unit = [record for record in decode_unit(payload, lsn) if record.run_id not in forgotten]
            units.append(unit)
            count += len(unit)
            if count >= self._flush_settings.batch_records_max:
                await self._replay_units(units, flusher)
                units, count = [], 0
        await self._replay_units(units, flusher)

    async def _replay_units(self, units: list[list[Record]], flusher: Flusher | None) -> None:
        for run in (await self._repository.find(self._overlay.missing(units)[0])).values():
            self._overlay.adopt(run)
        records = list(chain.from_iterable(units))
        try:
            self._overlay.replay(records)
        except ValueError as error:
            raise StoreMismatchError(
                f"the log does not go on where the repository ends ({error}): restore the repository that belongs to this log"
            ) from error
        if flusher is not None:
            flusher.hand_over([(record.run_id, record.seq, record.batch, encode_record(record)) for record in records])
            if flusher.full:  # else it flushes what it has, as it does with what is committed from now on
                await flusher.drain()

    async def close(self) -> None:
        if self._flusher is not None:
            await self._flusher.close(CLOSE_FLUSH_SECONDS)
        await self._release()

    async def _release(self) -> None:
        log, self._log, self._flusher = self._log, None, None
        try:
            await self._repository.close()
        finally:
            if log is not None:
                await log.close()

    # -- committing

    async def commit(self, units: Sequence[Unit]) -> None:
        flusher = self._flusher
        if flusher is None:
            raise self._not_writable()
        # A commit that first has to wait or to ask may not be overtaken by a later one of the same run: so all later ones queue.
        if self._queued or flusher.full or any(self._overlay.missing(units)):
            self._queued += 1
            try:
                async with self._queue:
                    await self._prepare(flusher, units)
                    appended = self._append(flusher, units)
            finally:
                self._queued -= 1
        else:
            appended = self._append(flusher, units)
        await appended.told

    async def _prepare(self, flusher: Flusher, units: Sequence[Unit]) -> None:
        if flusher.full:
            await flusher.room()
        # Again and again: what was here may have gone to the repository while that was asked for the rest.
        while any(asked := self._overlay.missing(units)):
            missing, keys = asked
            for user, key in keys:
                holder = await self._answers.find_key(user, key)
                if holder is not None:
                    raise ConflictError(
                        f"key {key!r} belongs to run {holder.run_id} already; find it by its key", key=key
                    )
            if not self._going.isdisjoint(missing):
                async with self._pruning:
                    pass
            await self._answers.load(missing)
            if any(run_id not in self._overlay.entries for run_id in missing):
                return  # there is no such run, as `_append` says

    def _append(self, flusher: Flusher, units: Sequence[Unit]) -> Commit:
        if self._log is None:
            raise self._not_writable()
        overlay = self._overlay
        marks = overlay.promise(units)
        try:
            encoded = [[encode_record(record) for record in unit] for unit in units]
            commit = Commit(partial(self._acknowledged, flusher, units, encoded), partial(overlay.withdraw, marks))
            self._log.append_for(commit, [encode_unit(bodies) for bodies in encoded])
        except BaseException:
            overlay.withdraw(marks)
            raise
        return commit

    def _acknowledged(
        self, flusher: Flusher, units: Sequence[Unit], encoded: Sequence[Sequence[bytes]], lsn: int
    ) -> None:
        rows: list[RecordRow] = []
        for unit, bodies in zip(units, encoded, strict=True):
            for record, body in zip(unit, bodies, strict=True):
                record.batch = lsn
                if self._overlay.fold(record):  # else it was there, and the flusher needs no run that may be gone
                    rows.append((record.run_id, record.seq, lsn, body))
            lsn += 1
        if rows:
            flusher.hand_over(rows)

    def _run_of(self, run_id: str) -> Run:
        return self._overlay.entries[run_id].run

    def _flushed(self, seqs: Mapping[str, int], position: int) -> None:
        for run_id, seq in seqs.items():
            self._overlay.flushed(run_id, seq)
        log = self._log
        if log is not None and log.health in ("ok", "full"):  # when it is full, nothing else makes room
            log.retire(position).add_done_callback(_retrieve)

    # -- answering

    def admit(self) -> None:
        if self._flusher is None or self._log is None:
            raise self._not_writable()
        if self._log.health == "fenced":
            raise LogFencedError(f"the log in {self.path} met an I/O error; restart this process")
        if self._log.health == "full" or self._log.free_space_low():
            raise StorageFullError(
                f"the disk of {self.path} has less room than log.low_water_bytes ({self._log_settings.low_water_bytes}): "
                "starts are refused until there is more"
            )
        self._flusher.admit()

    async def find(self, run_id: str) -> Run | None:
        self._opened()
        return await self._answers.find(run_id)

    async def find_key(self, user: str | None, key: str) -> Run | None:
        self._opened()
        return await self._answers.find_key(user, key)

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        self._opened()
        return await self._answers.history(run_id, after, limit)

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        self._opened()
        return await self._answers.histories(run_ids)

    async def query(self, wanted: RunFilter) -> list[Run]:
        self._opened()
        return await self._answers.query(wanted)

    async def count(self, wanted: RunFilter) -> int:
        self._opened()
        return await self._answers.count(wanted)

    async def prune(self, before: float, limit: int) -> int:
        if self._flusher is None:
            raise self._not_writable()
        async with self._pruning:
            await self._answers.ask(self._flusher.settle())
            return await self._answers.prune(before, limit, self._going)

    async def next_due(self, after: float) -> float | None:
        self._opened()
        return await self._answers.next_due(after)

    def health(self) -> StoreHealth:
        log, flusher = self._log, self._flusher
        if log is None:
            return StoreHealth(state="failed", detail="the store is not open")
        if flusher is None:
            return StoreHealth(detail="open for reading only")
        backlog = flusher.backlog_records
        if log.health in ("fenced", "closed"):
            detail = f"the log is {log.health}: nothing can be committed; restart"
            return StoreHealth(state="failed", detail=detail, backlog_records=backlog)
        details = [flusher.detail] if flusher.detail else []
        if log.health == "full" or log.free_space_low():
            details.insert(0, "the disk is nearly full: starts are refused")
        return StoreHealth(state="degraded" if details else "ok", detail="; ".join(details), backlog_records=backlog)

    def _opened(self) -> Log:
        if self._log is None:
            raise self._closed()
        return self._log

    def _closed(self) -> StorageError:
        return StorageError(f"the store in {self.path} is not open; await store.open() first")

    def _not_writable(self) -> StorageError:
        if self._read_only:
            return StoreReadOnlyError(f"the store in {self.path} is open for reading only")
        return self._closed()


def _superseded(log: Log) -> set[str]:
    """Runs whose key another run has got since, in a log from which the repository is built anew: they had been pruned."""
    holders: dict[tuple[str | None, str], str] = {}
    found: set[str] = set()
    for lsn, payload in log.read(0):
        for record in decode_unit(payload, lsn):
            if record.seq == 1 and "key" in record.head:
                pair = (record.head.get("user"), record.head["key"])
                before = holders.get(pair)
                if before not in (None, record.run_id):
                    found.add(before)
                holders[pair] = record.run_id
    return found


def _retrieve(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()  # a log that cannot retire says so through its health
