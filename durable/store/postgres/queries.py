"""Asking: runs and their records, as they are in the database.

Law: an answer is what was committed when it was asked for. What the engine asks while a million runs are asleep reads an index, and rows of
the answer only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncCursor

from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.core.wire import decode_record
from durable.errors import RepositoryUnavailableError
from durable.repository.projection import read_history, run_of
from durable.store.postgres.columns import Texts, escape, escape_some
from durable.store.postgres.recent import Recent
from durable.store.postgres.session import Sessions
from durable.store.postgres.statements import Statements
from durable.store.shared import Held

#: Most rows that are fetched and decoded in one turn of the event loop (about 3 ms).
SLICE_ROWS = 200
#: How often a question is asked: the first time, the server may have ended a session of the pool unnoticed.
TRIES = 2


class Queries:
    """The asking half of a store.

    Arguments:
        sessions: where connections come from.
        statements: what is said.
        recent: where runs go that are likely to be written next.
    """

    def __init__(self, sessions: Sessions, statements: Statements, recent: Recent) -> None:
        self._sessions = sessions
        self._statements = statements
        self._recent = recent

    async def ask(self, statement: bytes, values: Any = ()) -> list[Any]:
        """The rows of a statement that may be said twice: it changes nothing."""
        for last in range(1, TRIES + 1):
            try:
                return await self.tell(statement, values)
            except RepositoryUnavailableError:
                if last == TRIES:
                    raise
        raise AssertionError("unreachable")

    async def tell(self, statement: bytes, values: Any) -> list[Any]:
        """Say a statement, once, in a transaction of its own; its rows, if it has any."""
        async with self._cursor() as cursor:
            await cursor.execute(statement, values, prepare=True, binary=True)
            return await cursor.fetchall() if cursor.description else []

    async def change(self, statement: bytes, values: Any) -> int:
        """Say a statement, once, in a transaction of its own; how many rows it has changed."""
        async with self._cursor() as cursor:
            await cursor.execute(statement, values, prepare=True)
            return cursor.rowcount

    @asynccontextmanager
    async def _cursor(self) -> AsyncIterator[AsyncCursor[Any]]:
        async with self._sessions.connection() as session:
            try:
                # The server's own time-out does not run in a server that hangs.
                async with asyncio.timeout(session.answer_seconds):
                    with self._sessions.translated():
                        yield session.cursor(binary=True)
            except TimeoutError as error:
                raise RepositoryUnavailableError(
                    f"the database did not answer within {session.answer_seconds} s (twice postgres.statement_seconds)"
                ) from error

    # -- the questions of `Store`

    async def find(self, run_id: str) -> Run | None:
        """See `Store.find`."""
        rows = await self.ask(self._statements.FIND, (escape(run_id),))
        return run_of(rows[0]) if rows else None

    async def find_key(self, user: str | None, key: str) -> Run | None:
        """See `Store.find_key`."""
        rows = await self.ask(self._statements.FIND_KEY, {"user": escape_some(user), "key": escape(key)})
        return run_of(rows[0]) if rows else None

    async def history(self, run_id: str, after: int, limit: int | None) -> list[Record]:
        """See `Store.history`."""

        async def rows_after(seq: int, size: int) -> list[Any]:
            return await self.ask(self._statements.HISTORY, (escape(run_id), seq, size))

        return await read_history(rows_after, max(after, 0), limit, SLICE_ROWS)

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        """See `Store.histories`."""
        found: dict[str, list[Record]] = {}
        rows = await self.ask(self._statements.HISTORIES, (Texts([escape(run_id) for run_id in run_ids]),))
        for count, (run_id, batch, body) in enumerate(rows, 1):
            found.setdefault(run_id, []).append(decode_record(body, batch))
            if count % SLICE_ROWS == 0:
                await asyncio.sleep(0)
        return found

    async def query(self, wanted: RunFilter) -> list[Run]:
        """See `Store.query`."""
        conditions, values = _conditions(wanted)
        rows = await self.ask(self._statements.query(conditions), [*values, max(wanted.limit, 0)])
        runs: list[Run] = []
        for start in range(0, len(rows), SLICE_ROWS):
            if start:
                await asyncio.sleep(0)
            runs.extend(run_of(row) for row in rows[start : start + SLICE_ROWS])
        return runs

    async def count(self, wanted: RunFilter) -> int:
        """See `Store.count`."""
        conditions, values = _conditions(wanted)
        rows = await self.ask(self._statements.count(conditions), values)
        return int(rows[0][0])

    async def next_due(self, after: float) -> float | None:
        """See `Store.next_due`."""
        rows = await self.ask(self._statements.NEXT_DUE, (after,))
        return rows[0][0] if rows else None

    async def read(self, run_ids: Sequence[str]) -> dict[str, Held]:
        """See `SharedStore.read`."""
        rows = await self.ask(self._statements.READ, (Texts([escape(run_id) for run_id in run_ids]),))
        return {row[0]: self.held(row[:5], row[5], row[6]) for row in rows}

    def held(self, row: Sequence[Any], epoch: int, owner: str | None) -> Held:
        """A run that is likely to be written next."""
        run = run_of(row)
        self._recent.saw(run.copy(), epoch)
        return Held(run, epoch, owner)


def _conditions(wanted: RunFilter) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    values: list[object] = []
    if wanted.open or wanted.due_after is not None or wanted.due_by is not None:
        conditions.append("open")
    if wanted.dead:
        conditions.append("dead")
    for condition, text in (
        ("task = %s", wanted.task),
        ("user_name = %s", wanted.user),
        ("key = %s", wanted.key),
        ("parent_id = %s", wanted.parent_id),
        ("run_id > %s", wanted.after),
    ):
        if text is not None:
            conditions.append(condition)
            values.append(escape(text))
    for condition, time in (
        ("due > %s", wanted.due_after),
        ("due <= %s", wanted.due_by),
        ("ended_at <= %s", wanted.ended_by),
    ):
        if time is not None:
            conditions.append(condition)
            values.append(time)
    if wanted.status is not None:
        conditions.append("status = ANY(%b::text[])")
        values.append(Texts([status.value for status in wanted.status]))
    return conditions, values
