"""Transactions of steps: what a step writes to the user's tables, durable together with the record of the step.

Law: from the moment at which the record is staged, the connection is the pipeline's: nobody else ends its transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from durable.errors import ConfigError, RepositoryUnavailableError, StepContextError
from durable.store.base import Store
from durable.store.shared import is_shared


class StepTransaction:
    """The transaction of one try of a step; none is open before `enter` is first used."""

    __slots__ = ("_opening", "_run_id", "_stack", "_store", "connection", "unreached")

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._stack: AsyncExitStack | None = None
        self._opening: asyncio.Lock | None = None
        #: The open transaction's connection.
        self.connection: Any = None
        #: Whether the database could not be reached.
        self.unreached = False

    @property
    def cut(self) -> bool:
        """Whether the connection was lost."""
        return self.connection is not None and self.connection.broken

    def require_open(self, what: str) -> None:
        """Raise where the record of `what` cannot be committed with what it wrote."""
        if self.connection is None or self.connection.info.transaction_status.name == "INTRANS":
            return
        if self.cut:
            raise RepositoryUnavailableError(f"the connection of {what} was lost: what it wrote is undone")
        raise StepContextError(
            f"{what} ended the transaction of ctx.transaction() itself, or an SQL error in it was swallowed without leaving the block: "
            "its record cannot be committed with what it wrote. Leave COMMIT and ROLLBACK to durable"
        )

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[Any]:
        """A block on the step's connection; what it wrote is undone where an exception leaves it."""
        if not is_shared(self._store):
            raise ConfigError(
                "ctx.transaction() needs a PostgreSQL store: elsewhere there is no transaction to share with the record",
                key="target",
            )
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:  # blocks that begin at once share the one connection
            if self.connection is None:
                stack = self._stack = AsyncExitStack()
                try:
                    self.connection = await stack.enter_async_context(self._store.borrow(self._run_id))
                except RepositoryUnavailableError:
                    self.unreached = True
                    raise
        async with self.connection.transaction():  # a savepoint
            yield self.connection

    async def end(self) -> None:
        """Give the connection back; what is not committed is undone."""
        self.connection = None
        if self._stack is not None:
            await self._stack.aclose()
