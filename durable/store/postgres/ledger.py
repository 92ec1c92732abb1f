"""The ledger: starts that were let in, and places that executors have taken, counted for all processes.

Law: what is decided sees all that was decided before: deciders take turns, one statement each. Where no answer comes, what was asked for
counts as taken, never as free.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from durable.clock import Clock
from durable.config import PostgresSettings
from durable.errors import RepositoryUnavailableError
from durable.store.postgres.columns import Flags, Longs, Texts, escape, escape_some, unescape
from durable.store.postgres.queries import Queries
from durable.store.postgres.statements import Statements
from durable.store.shared import StartAsked, StartBounds, StartRefused

#: When to try again where the queue is full: nobody knows when there will be room.
QUEUE_SECONDS = 1.0


class Waiting(NamedTuple):
    """Started runs that wait for a slot, and the announced runs that are there: as one shard sees it."""

    runs: int
    there: tuple[str, ...]


NOTHING_ELSEWHERE = Waiting(0, ())


class Ledger:
    """See the module, and `SharedStore.let_in`, `take_places`, `give_places`.

    Arguments:
        queries: says the statements.
        statements: what is said.
        settings: how long a statement may take.
        clock: of this process.
    """

    def __init__(self, queries: Queries, statements: Statements, *, settings: PostgresSettings, clock: Clock) -> None:
        self._queries = queries
        self._statements = statements
        self._statement_seconds = settings.statement_seconds
        self._clock = clock
        self._turns = asyncio.Lock()
        self._turn = 0
        self._executor_id = ""
        #: What this executor knows that it has taken, and of how many there are.
        self._held: dict[str, int] = {}
        self._bounds: dict[str, int] = {}
        #: Names of which the store may believe something else, and until when what was asked for may still be carried out.
        self._doubted: dict[str, float] = {}

    async def let_in(
        self, asked: Sequence[StartAsked], bounds: StartBounds, elsewhere: Waiting = NOTHING_ELSEWHERE
    ) -> list[StartRefused | None]:
        """See `SharedStore.let_in`.

        Arguments:
            elsewhere: what waits on other shards.
        """
        values = {
            "ids": Texts([escape(each.run_id) for each in asked]),
            "users": Texts([escape_some(each.user) for each in asked]),
            "waits": Flags([each.waits for each in asked]),
            **bounds._asdict(),
            "waiting": elsewhere.runs,
            "there": Texts([escape(run_id) for run_id in elsewhere.there]),
        }
        try:
            rows = await self._queries.tell(self._statements.LET_IN, values)
        except RepositoryUnavailableError:  # as a rule the connection was idle while the server was away
            rows = await self._queries.tell(self._statements.LET_IN, values)
        return [_refused(reason, retry_after, bounds) for reason, retry_after in rows]

    async def announced(self) -> list[str]:
        """Runs that starts have announced, and that may not be there yet."""
        return [unescape(row[0]) for row in await self._queries.ask(self._statements.ANNOUNCED)]

    async def waiting(self, most: int, announced: Sequence[str]) -> Waiting:
        """How many started runs wait here for a slot, `most` at most, and which of the announced are here."""
        values = (most, Texts([escape(run_id) for run_id in announced]))
        [(count, there)] = await self._queries.ask(self._statements.QUEUE, values)
        return Waiting(count, tuple(map(unescape, there or ())))

    async def take_places(self, executor_id: str, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """See `SharedStore.take_places`."""
        async with self._turns:
            self._be(executor_id)
            self._bounds.update((name, bound) for name, (_, bound) in wanted.items())
            rows = await self._hold({name: count for name, (count, _) in wanted.items()})
            got = {name: rows[name][0] for name in wanted}
            for name, count in got.items():
                self._held[name] = self._held.get(name, 0) + count
            return got

    async def give_places(self, executor_id: str, given: Mapping[str, int]) -> bool:
        """See `SharedStore.give_places`. Returns whether others may have wanted some of these places."""
        async with self._turns:
            self._be(executor_id)
            held = {name: self._held.get(name, 0) for name in given}
            for name, count in given.items():
                self._held[name] = max(held[name] - count, 0)
            rows = await self._hold(dict.fromkeys(given, 0))
            wanted = any(rows[name][1] + held[name] >= self._bounds.get(name, 0) for name in given)
            for name in given:
                if not self._held[name]:
                    del self._held[name]
                    self._bounds.pop(name, None)
            return wanted

    def _be(self, executor_id: str) -> None:
        """Under another id, this executor holds nothing: what it held went with the other."""
        if executor_id != self._executor_id:
            self._executor_id = executor_id
            self._held, self._bounds, self._doubted = {}, {}, {}

    async def _hold(self, wanted: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Say what this executor has of these names, and of all that are in doubt, and what it wants beside."""
        names = [*wanted, *(name for name in self._doubted if name not in wanted)]
        self._turn += 1
        values = {
            "me": self._executor_id,
            "turn": self._turn,
            "names": Texts([escape(name) for name in names]),
            "had": Longs([self._held.get(name, 0) for name in names]),
            "wanted": Longs([wanted.get(name, 0) for name in names]),
            "bounds": Longs([self._bounds.get(name, 0) for name in names]),
        }
        doubted, self._doubted = self._doubted, {**self._doubted, **dict.fromkeys(names, math.inf)}
        try:
            rows = await self._queries.tell(self._statements.HOLD_PLACES, values)
        except BaseException:
            until = self._clock.monotonic() + self._statement_seconds
            self._doubted = {**doubted, **dict.fromkeys(names, until)}
            raise
        now = self._clock.monotonic()
        self._doubted = {name: until for name, until in doubted.items() if until > now}
        return {name: (row[0], row[1]) for name, row in zip(names, rows, strict=True)}


def _refused(reason: str | None, retry_after: float, bounds: StartBounds) -> StartRefused | None:
    if reason is None:
        return None
    return StartRefused(reason, QUEUE_SECONDS if reason == "queue" else min(retry_after, bounds.window))
