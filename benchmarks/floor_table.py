"""The floor on PostgreSQL: a table as the log, and group commit by one INSERT of all that has gathered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg

from benchmarks.floor_engine import Record

ONE = "INSERT INTO floor (record) VALUES (%s)"
MANY = "INSERT INTO floor (record) SELECT unnest(%s::text[])"


class Table:
    """An append returns a future that resolves when the record is committed. While one commit is in flight the next batch gathers."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._records: list[str] = []
        self._futures: list[asyncio.Future[None]] = []
        self._gathered = asyncio.Event()
        self._writer = asyncio.create_task(self._write())

    @classmethod
    async def open(cls, url: str) -> Table:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS floor (number bigserial PRIMARY KEY, record text NOT NULL)"
        )
        return cls(connection)

    def append(self, record: Record) -> asyncio.Future[None]:
        self._records.append(json.dumps(record, separators=(",", ":")))
        future = self._loop.create_future()
        self._futures.append(future)
        self._gathered.set()
        return future

    async def _write(self) -> None:
        while True:
            await self._gathered.wait()
            self._gathered.clear()
            records, self._records = self._records, []
            futures, self._futures = self._futures, []
            if len(records) == 1:
                await self._connection.execute(ONE, records, prepare=True)
            else:
                await self._connection.execute(MANY, (records,), prepare=True)
            for future in futures:
                future.set_result(None)
            await asyncio.sleep(0)  # those who were woken add their records first

    async def replay(self) -> list[Record]:
        rows = await (await self._connection.execute("SELECT record FROM floor ORDER BY number")).fetchall()
        return [json.loads(record) for (record,) in rows]
