"""A repository in memory that can be away, refuse content, and forget what it did not sync: for tests and the simulation.

Law: `apply_batch` is atomic; it fails before it changes anything, or (with `fail_after`) after it changed everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Sequence

from durable.core.families import prunable
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.core.wire import decode_record
from durable.errors import RepositoryUnavailableError
from durable.repository.base import RecordRefusedError, RepositoryState
from durable.repository.projection import RecordRow, RunRow, run_of


class _Tables:
    """What is stored; copied whole where a crash has to be able to go back."""

    def __init__(self) -> None:
        self.store_id: str | None = None
        self.position = 0
        self.runs: dict[str, RunRow] = {}
        self.records: dict[str, dict[int, tuple[int, bytes]]] = {}

    def copy(self) -> _Tables:
        twin = _Tables()
        twin.store_id, twin.position, twin.runs = self.store_id, self.position, dict(self.runs)
        twin.records = {run_id: dict(records) for run_id, records in self.records.items()}
        return twin


class MemoryRepository:
    """See `durable.repository.base.Repository`. It survives `close`, as a database would.

    Arguments:
        undurable_batches_max: `crash` loses so many of the last batches. 0 is a repository that syncs each batch, as it must; any other
            number is a planted defect.
    """

    def __init__(self, *, undurable_batches_max: int = 0) -> None:
        self._tables = _Tables()
        self._older: list[_Tables] = []
        self._undurable_max = undurable_batches_max
        #: Set to an exception, every call raises it: the repository is away.
        self.away: BaseException | None = None
        #: Set to an exception, `apply_batch` applies all of it and then raises this once: the answer is lost.
        self.fail_after: BaseException | None = None
        #: Tells which rows are refused, for ever.
        self.refuses: Callable[[RecordRow], bool] | None = None
        self.batches = 0

    @property
    def position(self) -> int:
        """The log is applied up to here."""
        return self._tables.position

    def crash(self) -> None:
        """Go back to what was durable."""
        if self._older:
            self._tables = self._older[0]
            self._older = []

    async def peek(self) -> RepositoryState:
        await self._turn()
        tables = self._tables
        return RepositoryState(tables.store_id, tables.position if tables.store_id is not None else None)

    async def initialize(self) -> RepositoryState:
        return await self.peek()

    async def adopt(self, store_id: str) -> None:
        await self._turn()
        self._tables.store_id = store_id

    async def apply_batch(self, records: Sequence[RecordRow], runs: Sequence[RunRow], position: int) -> None:
        await self._turn()
        if self.refuses is not None:
            for row in records:
                if self.refuses(row):
                    raise RecordRefusedError(f"record {row[1]} of run {row[0]} is refused")
        if self._undurable_max:
            self._older = [*self._older, self._tables.copy()][-self._undurable_max :]
        tables = self._tables
        for run_id, seq, batch, body in records:
            tables.records.setdefault(run_id, {}).setdefault(seq, (batch, body))
        for run in runs:
            stored = tables.runs.get(run.run_id)
            if stored is None or stored.seq < run.seq:
                tables.runs[run.run_id] = run
        tables.position = position
        self.batches += 1
        if self.fail_after is not None:
            error, self.fail_after = self.fail_after, None
            raise error

    async def find(self, run_ids: Sequence[str]) -> dict[str, Run]:
        await self._turn()
        rows = ((run_id, self._tables.runs.get(run_id)) for run_id in run_ids)
        return {run_id: _run(row) for run_id, row in rows if row is not None}

    async def find_by_key(self, user: str | None, key: str) -> Run | None:
        await self._turn()
        runs = map(_run, self._tables.runs.values())
        return next((run for run in runs if run.key == key and run.user == user), None)

    async def query(self, wanted: RunFilter) -> list[Run]:
        await self._turn()
        runs = (_run(row) for _, row in sorted(self._tables.runs.items()))
        return [run for run in runs if wanted.matches(run)][: max(wanted.limit, 0)]

    async def count(self, wanted: RunFilter, but: Collection[str] = ()) -> int:
        await self._turn()
        runs = (_run(row) for run_id, row in self._tables.runs.items() if run_id not in but)
        return sum(1 for run in runs if wanted.matches(run))

    async def prune(
        self, before: float, limit: int, lets_go: Callable[[Collection[str], Collection[str]], bool]
    ) -> list[str]:
        await self._turn()
        tables = self._tables
        runs = {run_id: _run(row) for run_id, row in tables.runs.items()}
        gone: list[str] = []
        for family in prunable(runs, before):
            watchers = [watcher for run_id in family for watcher in runs[run_id].watchers]
            batches = (batch for run_id in family for batch, _ in tables.records.get(run_id, {}).values())
            if len(gone) < limit and max(batches, default=0) <= tables.position and lets_go(family, watchers):
                gone += family
        if gone and self._undurable_max:
            self._older = [*self._older, tables.copy()][-self._undurable_max :]
        for run_id in gone:
            del tables.runs[run_id]
            tables.records.pop(run_id, None)
        return gone

    async def next_due(self, after: float, but: Container[str] = ()) -> float | None:
        await self._turn()
        rows = self._tables.runs.values()
        dues = (row.due for row in rows if row.due is not None and row.due > after and row.run_id not in but)
        return min(dues, default=None)

    async def events(self, run_id: str, after: int, limit: int | None) -> list[Record]:
        await self._turn()
        stored = sorted(self._tables.records.get(run_id, {}).items())
        found = [decode_record(body, batch) for seq, (batch, body) in stored if seq > after]
        return found if limit is None else found[:limit]

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        return {run_id: found for run_id in run_ids if (found := await self.events(run_id, 0, None))}

    async def health_check(self) -> None:
        await self._turn()

    async def close(self) -> None:
        pass

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.away is not None:
            raise self.away


def away(reason: str = "switched off by a test") -> RepositoryUnavailableError:
    """The error of a repository that is away."""
    return RepositoryUnavailableError(reason)


def _run(row: RunRow) -> Run:
    return run_of((row.run_id, row.state, row.input, row.result, row.open))
