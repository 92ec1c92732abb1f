"""The store that several simulated executors share, against the suite that every store passes."""

from __future__ import annotations

from pathlib import Path

from durable.store import Store
from durable.testing.conformance import StoreConformance
from durable.testing.shared import SharedDatabase, SharedMemoryStore


class TestSharedMemoryStore(StoreConformance):
    database: SharedDatabase

    async def make_store(self, tmp_path: Path) -> Store:
        self.database = SharedDatabase()
        return SharedMemoryStore(self.database)

    async def reopen(self, store: Store) -> Store:
        await store.close()
        again = SharedMemoryStore(self.database)
        await again.open()
        return again
