"""A store between the engine and the real one, whose commits can be held and whose answers can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from durable.core.records import Record
from durable.core.run import Run
from durable.errors import LogFencedError, RepositoryUnavailableError
from durable.store.base import Store, Unit


class Gate:
    """Passes everything on, but for what a test wants otherwise."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        #: Methods that raise `RepositoryUnavailableError`.
        self.failing: set[str] = set()
        #: Tells the records with which the log is fenced.
        self.fencing: Callable[[Record], bool] = lambda record: False
        #: Called with each record before it is committed.
        self.before: Callable[[Record], Awaitable[None]] = _nothing
        #: Set when a commit has come to a closed gate.
        self.arrived = asyncio.Event()
        #: Set when a history was asked for; it is answered when `answering` is set.
        self.asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()
        #: Set when the log has been fenced.
        self.fenced = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def hold(self) -> None:
        """Let no commit through."""
        self._open.clear()
        self.arrived.clear()

    def let_go(self) -> None:
        """Let commits through again."""
        self._open.set()

    async def commit(self, units: Sequence[Unit]) -> None:
        if not self._open.is_set():
            self.arrived.set()
            await self._open.wait()
        for record in [record for unit in units for record in unit]:
            await self.before(record)
        if any(self.fencing(record) for unit in units for record in unit):
            self.fenced.set()
            raise LogFencedError("as a failing disk would")
        await self.inner.commit(units)

    async def find_key(self, user: str | None, key: str) -> Run | None:
        self._ask("find_key")
        return await self.inner.find_key(user, key)

    async def find(self, run_id: str) -> Run | None:
        self._ask("find")
        return await self.inner.find(run_id)

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        self._ask("history")
        records = await self.inner.history(run_id, after, limit)
        self.asked.set()
        await self.answering.wait()
        return records

    async def recorded(self, run_id: str, event_name: str) -> None:
        """Wait until the run has a durable record of this name."""
        while not any(record.event_name == event_name for record in await self.inner.history(run_id)):
            await asyncio.sleep(0.001)

    def _ask(self, what: str) -> None:
        if what in self.failing:
            raise RepositoryUnavailableError(f"{what}: away")


async def _nothing(record: Record) -> None:
    """No test wants anything."""


async def turns(count: int = 50) -> None:
    """Let everything happen that can happen without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)
