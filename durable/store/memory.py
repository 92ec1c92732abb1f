"""A store in memory, for tests and for work that need not survive its process.

Law: it behaves as the others do in all but surviving: the same order of commit, fold and visibility. It keeps what it has across
`close` and `open`, so that a test can start an application anew on the same object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from durable.clock import SYSTEM_ENTROPY, Entropy
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.errors import StorageError
from durable.store.base import StoreHealth, Unit
from durable.store.overlay import Overlay, earliest_due


class MemoryStore:
    """See `durable.store.base.Store`."""

    def __init__(self, *, entropy: Entropy = SYSTEM_ENTROPY) -> None:
        self._store_id = entropy.token_bytes(16).hex()
        self._overlay = Overlay()
        self._batch = 0
        self._open = False

    @property
    def store_id(self) -> str:
        return self._store_id

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def commit(self, units: Sequence[Unit]) -> None:
        self._check()
        await asyncio.sleep(0)  # as in the other stores, nothing is acknowledged in the turn that asks for it
        self._check()
        self._overlay.promise(units)
        for unit in units:
            self._batch += 1
            for record in unit:
                record.batch = self._batch
                self._overlay.fold(record)

    def admit(self) -> None:
        self._check()

    async def find(self, run_id: str) -> Run | None:
        self._check()
        run = self._overlay.run(run_id)
        return None if run is None else run.copy()

    async def find_key(self, user: str | None, key: str) -> Run | None:
        self._check()
        run = self._overlay.run_of_key(user, key)
        return None if run is None else run.copy()

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        self._check()
        _, records = self._overlay.tail(run_id) or (0, [])
        start = max(after, 0)
        return records[start : None if limit is None else start + limit]

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        self._check()
        return {run_id: tail[1] for run_id in run_ids if (tail := self._overlay.tail(run_id)) is not None}

    async def query(self, wanted: RunFilter) -> list[Run]:
        self._check()
        return [run.copy() for run in self._overlay.matching(wanted)[: max(wanted.limit, 0)]]

    async def count(self, wanted: RunFilter) -> int:
        self._check()
        return len(self._overlay.matching(wanted))

    async def prune(self, before: float, limit: int) -> int:
        self._check()
        await asyncio.sleep(0)
        return self._overlay.prune(before, limit)

    async def next_due(self, after: float) -> float | None:
        self._check()
        return earliest_due(self._overlay.entries.values(), after)

    def health(self) -> StoreHealth:
        return StoreHealth() if self._open else StoreHealth(state="failed", detail="the store is not open")

    def _check(self) -> None:
        if not self._open:
            raise StorageError("the store is not open; await store.open() first")
