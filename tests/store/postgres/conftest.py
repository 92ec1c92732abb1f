"""Stores on one schema of one server, closed when their test ends, and what parcels are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from durable.config import PostgresSettings
from durable.store import PostgresStore

Opener = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def open_postgres(postgres_url: str, postgres_schema: str) -> AsyncIterator[Opener]:
    """Open one more store on the test's schema; keyword arguments are settings."""
    opened: list[PostgresStore] = []

    async def opener(url: str = postgres_url, **settings: Any) -> PostgresStore:
        store = PostgresStore(url, PostgresSettings(schema=postgres_schema, **settings))
        opened.append(store)
        await store.open()
        return store

    yield opener
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_postgres: Opener) -> PostgresStore:
    """A store whose process is an executor that knows the task of the samples."""
    store = await open_postgres()
    await store.enroll([("task", None)])
    return store
