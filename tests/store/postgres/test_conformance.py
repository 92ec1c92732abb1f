"""The store in PostgreSQL against the one suite, on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable.config import PostgresSettings
from durable.store import PostgresStore, Store
from durable.testing.conformance import StoreConformance


class TestPostgresStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def place(self, postgres_url: str, postgres_schema: str) -> None:
        self.url, self.settings = postgres_url, PostgresSettings(schema=postgres_schema)

    async def make_store(self, tmp_path: Path) -> Store:
        return PostgresStore(self.url, self.settings)

    async def reopen(self, store: Store) -> Store:
        await store.close()
        again = PostgresStore(self.url, self.settings)
        await again.open()
        return again
