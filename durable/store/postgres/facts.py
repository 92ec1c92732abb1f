"""Facts: how all that some parcels concern is in the database, asked for when a write did not fit.

Law: a run is asked for before the tokens of its records. Where a run has gone on by a parcel that is asked about, its token is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import tuple_row

from durable.core.wire import decode_run
from durable.store.postgres.columns import Longs, Texts, escape, escape_some, register
from durable.store.postgres.recent import Known, stripped
from durable.store.postgres.statements import Statements
from durable.store.shared import Parcel

Key = tuple[str | None, str]


@dataclass(slots=True)
class Facts:
    """See the module.

    Arguments:
        runs: those that there are.
        batches: of records that are there, by (run_id, seq, token).
        marks: tokens of parcels without records that are there.
        keys: which run has them.
        messages: those that are there.
    """

    runs: Mapping[str, Known] = field(default_factory=dict)
    batches: Mapping[tuple[str, int, int], int] = field(default_factory=dict)
    marks: frozenset[int] = frozenset()
    keys: Mapping[Key, str] = field(default_factory=dict)
    messages: frozenset[int] = frozenset()

    def written(self, parcel: Parcel) -> bool:
        """Whether this very parcel is there; its records are then told their batch."""
        if not parcel.records:
            return parcel.token in self.marks
        first = parcel.records[0]
        batch = self.batches.get((first.run_id, first.seq, parcel.token))
        if batch is None:
            return False
        for record in parcel.records:
            record.batch = batch
        return True


class Asking:
    """Asks for facts.

    Arguments:
        connection: may be somebody else's, with a transaction open that is to be seen.
        statements: what is said.
    """

    def __init__(self, connection: AsyncConnection[Any], statements: Statements) -> None:
        self._cursor = AsyncCursor(connection, row_factory=tuple_row)
        register(self._cursor.adapters)
        self._statements = statements

    async def facts(self, parcels: Sequence[Parcel]) -> Facts:
        """How what these parcels concern is."""
        statements = self._statements
        firsts = [parcel.records[0] for parcel in parcels if parcel.records]
        facts = Facts(await self.states({record.run_id for parcel in parcels for record in parcel.records}))
        ids, seqs = Texts([record.run_id for record in firsts]), Longs([record.seq for record in firsts])
        rows = await self._rows(statements.TOKENS, ids, seqs)
        facts.batches = {(run_id, seq, token): batch for run_id, seq, token, batch in rows}
        marks = {mark_of(parcel): parcel.token for parcel in parcels if not parcel.records}
        if marks:
            rows = await self._rows(statements.MARKS, Texts(list(marks)))
            facts.marks = frozenset(marks[mark] for (mark,) in rows)
        keys = list(_keys_of(parcels))
        if keys:
            users, names = [escape_some(user) for user, _ in keys], [escape(key) for _, key in keys]
            rows = await self._rows(statements.KEYS, Longs(range(len(keys))), Texts(users), Texts(names))
            facts.keys = {keys[place]: run_id for place, run_id in rows}
        numbers = [answer.message.message_id for parcel in parcels for answer in parcel.answers]
        if numbers:
            rows = await self._rows(statements.MESSAGES, Longs(numbers))
            facts.messages = frozenset(number for (number,) in rows)
        return facts

    async def states(self, run_ids: Iterable[str]) -> dict[str, Known]:
        """These runs, without their large values."""
        rows = await self._rows(self._statements.STATES, Texts([escape(run_id) for run_id in run_ids]))
        found: dict[str, Known] = {}
        for run_id, state, is_open, has_result, epoch in rows:
            run = stripped(decode_run(run_id, state, input=b"", result=b"" if has_result else None))
            run.closed = not is_open
            found[run_id] = Known(run, epoch)
        return found

    async def _rows(self, statement: bytes, *values: object) -> list[Any]:
        await self._cursor.execute(statement, values, binary=True)
        return await self._cursor.fetchall()


def mark_of(parcel: Parcel) -> str:
    """What says that a parcel without records is written."""
    return f"#{parcel.token}"


def _keys_of(parcels: Iterable[Parcel]) -> set[Key]:
    return {
        (record.head.get("user"), record.head["key"])
        for parcel in parcels
        for record in parcel.records
        if record.seq == 1 and "key" in record.head
    }
