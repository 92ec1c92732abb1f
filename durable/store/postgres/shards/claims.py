"""Claims on several shards.

Law: no shard's runs wait for those of another, and one that is away keeps nobody from claiming.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest

from durable.errors import StorageError
from durable.store.postgres.shards.fan import Fanned
from durable.store.shared import Claimed, Known, UserBounds


class Claiming(Fanned):
    """The part of a `ShardedStore` that claims."""

    @abstractmethod
    def _let_go(self) -> None:
        """Have runs let go of that could not be when they were to."""

    async def claim(self, known: Sequence[Known], limit: int, now: float, users: UserBounds | None = None) -> Claimed:
        """See `SharedStore.claim`. Each shard has an equal share of the limit, and a shard that gets none is asked when some is left."""
        self._let_go()
        places = self._fan.present()
        shares = {place: limit // len(places) + (turn < limit % len(places)) for turn, place in enumerate(places)}
        found, failures = await self._claimed(
            known, {place: share for place, share in shares.items() if share}, now, users
        )
        waiting = [place for place, share in shares.items() if not share]
        while waiting and (left := limit - sum(len(each.held) for each in found)) > 0:
            more, failed = await self._claimed(known, {waiting.pop(0): left}, now, users)
            found += more
            failures += failed
        if failures and not found:
            raise failures[0]
        held = [run for row in zip_longest(*(each.held for each in found)) for run in row if run is not None]
        dues = [each.next_due for each in found if each.next_due is not None]
        return Claimed(held, bool(waiting) or any(each.more for each in found), min(dues, default=None))

    async def _claimed(
        self, known: Sequence[Known], shares: Mapping[int, int], now: float, users: UserBounds | None
    ) -> tuple[list[Claimed], list[StorageError]]:
        asks = {
            place: partial(self._fan.shards[place].claim, known, share, now, users) for place, share in shares.items()
        }
        answers, failures = await self._fan.tried(asks)
        return list(answers.values()), failures
