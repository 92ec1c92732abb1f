"""Limits of all processes together, where the store is of several shards.

Law: the ledger lies on the first shard, and nobody decides without it. Runs lie on all: each that is let in to wait is counted where it
is announced until it has been seen where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from durable.store.postgres.ledger import NOTHING_ELSEWHERE, Ledger, Waiting
from durable.store.postgres.shards.fan import Fanned
from durable.store.shared import StartAsked, StartBounds, StartRefused


class Limited(Fanned):
    """The part of a `ShardedStore` that asks the ledger. Raises `RepositoryUnavailableError` while the first shard is away."""

    async def let_in(self, asked: Sequence[StartAsked], bounds: StartBounds) -> list[StartRefused | None]:
        """See `SharedStore.let_in`. What waits on a shard that is away is not counted: it cannot begin either."""
        fan, ledger = self._fan, self._ledger
        elsewhere = NOTHING_ELSEWHERE
        if bounds.queued is not None and any(each.waits for each in asked):
            announced = fan.split(await fan.one(0, ledger.announced), str)
            asks = {
                place: partial(fan.shards[place].ledger.waiting, bounds.queued, announced.get(place, ()))
                for place in range(1, len(fan.shards))
            }
            seen = (await fan.tried(asks))[0].values()
            there = tuple(run_id for each in seen for run_id in each.there)
            elsewhere = Waiting(sum(each.runs for each in seen), there)
        return await fan.one(0, partial(ledger.let_in, asked, bounds, elsewhere))

    async def take_places(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """See `SharedStore.take_places`. They are held under the lease on the first shard."""
        taken: dict[str, int] = await self._fan.one(0, partial(self._fan.shards[0].take_places, wanted))
        return taken

    async def give_places(self, given: Mapping[str, int]) -> None:
        """See `SharedStore.give_places`."""
        await self._fan.one(0, partial(self._fan.shards[0].give_places, given))

    @property
    def _ledger(self) -> Ledger:
        ledger: Ledger = self._fan.shards[0].ledger
        return ledger
