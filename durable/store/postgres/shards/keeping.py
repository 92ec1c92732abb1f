"""What is asked of a store of several shards about all its runs together: how many there are, and to forget those that are over.

Law: a count is of all shards, or is none. A family is on one shard, so each forgets its own, and one that is away keeps no other
from it, but for what its runs may still look to.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from durable.core.query import RunFilter
from durable.errors import RepositoryUnavailableError
from durable.store.postgres.shards.fan import Fanned


class Keeping(Fanned):
    """The part of a `ShardedStore` that counts and forgets."""

    async def count(self, wanted: RunFilter) -> int:
        """See `Store.count`."""
        asks = self._fan.each(lambda shard: shard.count(wanted))
        if wanted.parent_id is not None:  # children are where their parent is
            home = self._fan.place_of(wanted.parent_id)
            return int(await self._fan.one(home, asks[home]))
        return sum(await self._fan.all(asks))

    async def prune(self, before: float, limit: int) -> int:
        """See `Store.prune`. The shards are asked one after the other, each for what is left of the limit."""
        gone, failed, places = 0, [], self._fan.present()
        for place in places:
            if gone < limit:
                ask = partial(self._fan.shards[place].prune, before, limit - gone, self._watched)
                answers, failures = await self._fan.tried({place: ask})
                gone += sum(answers.values())
                failed += failures
        if len(failed) == len(places):
            raise failed[0]
        return gone

    async def _watched(self, run_ids: Sequence[str]) -> bool:
        """Whether one of these runs is open, or may be, for all that is known now."""
        try:
            found = await self._fan.all(self._fan.those_of(run_ids, lambda shard, ids: shard.read(ids)))
        except RepositoryUnavailableError:
            return True
        return any(not held.run.closed for some in found for held in some.values())
