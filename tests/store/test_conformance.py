"""The stores that need no server, each against the one suite."""

from __future__ import annotations

from pathlib import Path

from durable.config import FlushSettings, LogSettings
from durable.store import LocalStore, MemoryStore, Store
from durable.testing.conformance import StoreConformance
from durable.testing.repository import MemoryRepository

LOG = LogSettings(segment_bytes=64 * 1024)


class TestMemoryStore(StoreConformance):
    async def make_store(self, tmp_path: Path) -> Store:
        return MemoryStore()

    async def reopen(self, store: Store) -> Store:
        await store.close()
        await store.open()
        return store


class TestLocalStore(StoreConformance):
    """With defaults, nothing is flushed while a test is at work."""

    async def make_store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store", log=LOG)

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, LocalStore)
        await store.close()
        again = LocalStore(store.path, log=LOG)
        await again.open()
        return again


class TestLocalStoreThatFlushesAllTheTime(StoreConformance):
    """Every record is flushed at once, so that flushing meets committing and asking at every point."""

    flush = FlushSettings(interval_seconds=0.0001, batch_records_max=1)

    async def make_store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store", log=LOG, flush=self.flush)

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, LocalStore)
        await store.close()
        again = LocalStore(store.path, log=LOG, flush=self.flush)
        await again.open()
        return again


class TestLocalStoreWithAnotherRepository(StoreConformance):
    """A repository that is not SQLite."""

    async def make_store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store", log=LOG, repository=MemoryRepository())

    async def reopen(self, store: Store) -> Store:
        await store.close()
        await store.open()
        return store
