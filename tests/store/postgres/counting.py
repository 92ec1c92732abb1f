"""Where several stores are open at once, each as a process would have it: on one PostgreSQL, on several, or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from durable.clock import SYSTEM_CLOCK
from durable.config import PostgresSettings
from durable.store import PostgresStore
from durable.store.postgres.shards.store import ShardedStore
from durable.store.shared import SharedStore, StartAsked, StartRefused
from durable.testing.samples import run_id
from durable.testing.shared import SharedDatabase, SharedMemoryStore

from .parcels import TASK

#: Long enough for no test to take a part of it that matters.
HOUR = 3600.0


class Hands:
    """A clock that is put forward; it begins where the wall clock is."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return SYSTEM_CLOCK.now() + self.passed

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()


class Place:
    """Where several stores are open at once, each as a process would have it."""

    def __init__(self) -> None:
        self.stores: list[SharedStore] = []

    async def store(self, **settings: Any) -> SharedStore:
        """One more, which is no executor yet."""
        store = self.make(**settings)
        self.stores.append(store)
        await store.open()
        return store

    async def executor(self, **settings: Any) -> SharedStore:
        store = await self.store(**settings)
        await store.enroll(TASK)
        return store

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    def make(self, **settings: Any) -> SharedStore:
        raise NotImplementedError

    async def pass_by(self, seconds: float) -> None:
        """Let time go by, for starts."""
        raise NotImplementedError

    async def expire(self, executor: SharedStore) -> None:
        """Let a lease have passed."""
        raise NotImplementedError


class OnPostgres(Place):
    def __init__(self, url: str, schemas: Sequence[str]) -> None:
        super().__init__()
        self.url, self.schemas = url, schemas

    def make(self, **settings: Any) -> SharedStore:
        shards = [PostgresStore(self.url, PostgresSettings(schema=each, **settings)) for each in self.schemas]
        return shards[0] if len(shards) == 1 else ShardedStore(shards)

    async def sql(self, query: str, *values: object) -> list[Any]:
        """Say the same in all schemas; the rows of all."""
        rows: list[Any] = []
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            for schema in self.schemas:
                cursor = await connection.execute(query.replace("{s}", schema).encode(), values)
                rows += await cursor.fetchall() if cursor.description else []
        return rows

    async def pass_by(self, seconds: float) -> None:
        await self.sql("UPDATE {s}.starts SET at = at - %s, until = until - %s", seconds, seconds)
        await self.sql("UPDATE {s}.announced SET at = at - %s", seconds)

    async def expire(self, executor: SharedStore) -> None:
        ids = executor.executor_id.split(",")
        past = "UPDATE {s}.executors SET expires_at = clock_timestamp() - interval '1 s' WHERE executor_id = ANY(%s)"
        await self.sql(past, ids)


class InMemory(Place):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Hands()
        self.database = SharedDatabase(clock=self.clock)

    def make(self, **settings: Any) -> SharedStore:
        return SharedMemoryStore(self.database)

    async def pass_by(self, seconds: float) -> None:
        self.clock.passed += seconds

    async def expire(self, executor: SharedStore) -> None:
        self.database.executors[executor.executor_id] = (0.0, TASK)


def asked(*numbers: int, user: str | None = None, waits: bool = False) -> list[StartAsked]:
    return [StartAsked(run_id(number), user, waits) for number in numbers]


def reasons(decided: list[StartRefused | None]) -> list[str | None]:
    return [None if each is None else each.reason for each in decided]
