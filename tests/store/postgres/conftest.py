"""Stores on one schema of one server, closed when their test ends, and what parcels are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest

from durable.config import PostgresSettings
from durable.store import PostgresStore

from .counting import InMemory, OnPostgres, Place

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


@pytest.fixture
def postgres_schemas(postgres_url: str, postgres_schema: str) -> Iterator[list[str]]:
    """The names of three schemas for as many shards, dropped after the test."""
    names = [postgres_schema, f"{postgres_schema}_2", f"{postgres_schema}_3"]
    yield names
    with psycopg.connect(postgres_url, autocommit=True, options="-c lock_timeout=10s") as connection:
        for name in names:
            connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE".encode())


@pytest.fixture(params=["postgres", "shards", "memory"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made: Place
    if request.param == "memory":
        made = InMemory()
    else:
        schemas = request.getfixturevalue("postgres_schemas")
        made = OnPostgres(request.getfixturevalue("postgres_url"), schemas[: 1 if request.param == "postgres" else 3])
    yield made
    await made.close()
