"""`Store`: all that the engine knows of durability.

Law: `commit` returns only when every record of every unit is durable, and a unit is durable whole or not at all. What a query
answers was durable before; what `commit` acknowledged, every later query sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run

__all__ = ["RunFilter", "Store", "StoreHealth", "Unit"]

#: Records that become durable together: of one run, or of several where one fact concerns them all.
Unit = Sequence[Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """How a store is.

    Arguments:
        state: `ok`; `degraded` (work goes on, queries or new starts may be refused); `failed` (nothing can be committed).
        detail: in words, what is wrong; empty when nothing is.
        backlog_records: records that are durable but not yet in the repository.
    """

    state: Literal["ok", "degraded", "failed"] = "ok"
    detail: str = ""
    backlog_records: int = 0


class Store(Protocol):
    """Keeps runs. One process uses a store object at a time; every method is called from one event loop."""

    @property
    def store_id(self) -> str:
        """Identity of the store, known after `open`."""
        ...

    async def open(self) -> None:
        """Open and recover. Raises `StorageError` with what to do."""
        ...

    async def close(self) -> None:
        """Make everything that was acknowledged reachable for the next `open`, and let go of files and connections."""
        ...

    async def commit(self, units: Sequence[Unit]) -> None:
        """Make the units durable, in order.

        Sets `batch` on each record: equal for the records of one unit, rising from unit to unit of a run.
        Nothing was written, of any unit, and the store goes on: `StorageFullError` (the same call may succeed later),
        `RepositoryUnavailableError` (a run that is not in memory, or a key, has to be looked up first), `ConflictError` (a creation
        whose user and key have a run), `ValueError` (a `seq` that does not follow on). Any other `StorageError` means that the outcome
        is unknown and that the store takes nothing more.
        """
        ...

    def admit(self) -> None:
        """Raise the `StorageError` or `BackpressureError` that refuses new runs now; cheap, called for each start."""
        ...

    async def find(self, run_id: str) -> Run | None:
        """Return a copy of the run as it was last acknowledged."""
        ...

    async def find_key(self, user: str | None, key: str) -> Run | None:
        """Return the run that `user` started with `key`."""
        ...

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        """Return the run's records with `seq` above `after`, in order, at most `limit`."""
        ...

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        """Return all records of these runs, in order; for recovery, which needs many at once. Unknown runs are left out."""
        ...

    async def query(self, wanted: RunFilter) -> list[Run]:
        """Return the runs that match, in order of their ids."""
        ...

    async def count(self, wanted: RunFilter) -> int:
        """Return how many runs match; `limit` is ignored."""
        ...

    async def prune(self, before: float, limit: int) -> int:
        """Forget runs that ended before this time, with all their records, at most about `limit`; return how many.

        A family goes whole or not at all: a run whose parent is there goes with it, and only when all of them are closed, ended before
        that time and are no dead letters. Their keys are free again.
        """
        ...

    async def next_due(self, after: float) -> float | None:
        """Return the earliest `Run.due` later than `after`, of any run; None if none is due later.

        A run that changes while this is asked may be counted as it was before, never as later than it is: who asks again at the
        time that was answered misses nothing.
        """
        ...

    def health(self) -> StoreHealth:
        """How the store is now."""
        ...
