"""The ledger: starts that were let in, and places that executors have taken, counted for all processes.

Law: what is decided sees all that was decided before: deciders take turns, one statement each. Where no answer comes, what was asked for
counts as taken, never as free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from durable.clock import Clock
from durable.config import PostgresSettings
from durable.errors import RepositoryUnavailableError
from durable.store.places import OwnPlaces, PlacesTold
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
        #: What this process has taken.
        self.places = OwnPlaces(self._tell, clock.monotonic, settings.statement_seconds)

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

    async def _tell(self, told: PlacesTold) -> list[tuple[int, int]]:
        values = {
            "me": told.executor_id,
            "turn": told.turn,
            "names": Texts([escape(name) for name in told.names]),
            "had": Longs(told.had),
            "wanted": Longs(told.wanted),
            "bounds": Longs(told.bounds),
        }
        return [(got, others) for got, others in await self._queries.tell(self._statements.HOLD_PLACES, values)]


def _refused(reason: str | None, retry_after: float, bounds: StartBounds) -> StartRefused | None:
    if reason is None:
        return None
    return StartRefused(reason, QUEUE_SECONDS if reason == "queue" else min(retry_after, bounds.window))
