"""The fan: questions to one, some or all of several shards at once.

Law: a shard that does not answer makes nobody else wait for long, and an answer that should be whole is never made of what the others say.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from durable.core.ids import family_of
from durable.errors import RepositoryUnavailableError, StorageError
from durable.store.postgres.shards.placing import Placing
from durable.store.postgres.shards.reach import Reach

logger = logging.getLogger("durable.store")

S = TypeVar("S")
T = TypeVar("T")
Ask = Callable[[], Awaitable[T]]


class Fanned(ABC):
    """A part of the store that consists of shards."""

    @property
    @abstractmethod
    def _fan(self) -> Fan[Any]:
        """The shards."""


class Fan(Generic[S]):
    """See the module.

    Arguments:
        shards: in the order of their ids.
        reaches: whether they can be asked.
        placing: which has a family.
    """

    def __init__(self, shards: Sequence[S], reaches: Sequence[Reach], placing: Placing) -> None:
        self.shards = shards
        self.reaches = reaches
        self.placing = placing
        self._turn = 0

    def place_of(self, run_id: str) -> int:
        """The place of the shard that has the run."""
        return self.placing.place(family_of(run_id))

    def each(self, ask: Callable[[S], Awaitable[T]]) -> dict[int, Ask[T]]:
        """The same question to all shards."""
        return {place: partial(ask, shard) for place, shard in enumerate(self.shards)}

    def those_of(self, run_ids: Iterable[str], ask: Callable[[S, list[str]], Awaitable[T]]) -> dict[int, Ask[T]]:
        """A question about runs, to each shard that has some of them."""
        return {place: partial(ask, self.shards[place], ids) for place, ids in self.split(run_ids, str).items()}

    def split(self, items: Iterable[T], run_id_of: Callable[[T], str]) -> dict[int, list[T]]:
        """Items by the shards of their runs."""
        groups: dict[int, list[T]] = {}
        for item in items:
            groups.setdefault(self.place_of(run_id_of(item)), []).append(item)
        return groups

    def present(self) -> list[int]:
        """The shards that can be asked, another one first each time. Raises `RepositoryUnavailableError` where none can."""
        self._turn += 1
        count = len(self.shards)
        places = [(self._turn + step) % count for step in range(count)]
        found = [place for place in places if not self.reaches[place].absence]
        if not found:
            raise RepositoryUnavailableError(self.reaches[0].absence)
        return found

    # -- asking

    def one(self, place: int, ask: Ask[T]) -> Coroutine[Any, Any, T]:
        """Ask one shard."""
        return self.reaches[place].ask(ask)

    def of(self, run_id: str, ask: Callable[[S], Awaitable[T]]) -> Coroutine[Any, Any, T]:
        """Ask the shard that has the run."""
        place = self.place_of(run_id)
        return self.one(place, partial(ask, self.shards[place]))

    async def tried(self, asks: Mapping[int, Ask[T]]) -> tuple[dict[int, T], list[StorageError]]:
        """What shards answer, and why others do not. Raises what else one of them raises."""
        outcomes = await asyncio.gather(*(self.one(place, ask) for place, ask in asks.items()), return_exceptions=True)
        answers: dict[int, T] = {}
        failures: list[StorageError] = []
        for place, outcome in zip(asks, outcomes, strict=True):
            if isinstance(outcome, StorageError):
                failures.append(outcome)
                if not isinstance(outcome, RepositoryUnavailableError):  # no absence, which is told of once
                    logger.error("a shard fails, work of the others goes on: %s", outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                answers[place] = outcome
        return answers, failures

    async def all(self, asks: Mapping[int, Ask[T]]) -> list[T]:
        """What all of these answer. Raises where one of them does not."""
        answers, failures = await self.tried(asks)
        if failures:
            raise failures[0]
        return list(answers.values())

    async def some(self, asks: Mapping[int, Ask[T]]) -> list[T]:
        """What those answer that can be asked. Raises where none can."""
        answers, failures = await self.tried(asks)
        if failures and not answers:
            raise failures[0]
        return list(answers.values())
