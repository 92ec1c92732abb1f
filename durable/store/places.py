"""Places of an executor, as its side of a shared store knows them.

Law: it tells the store how many it has, not how many more or less, each time under a higher number: what is said twice, or carried out
late, changes nothing. Where no answer came, the store may believe that it has more, never less; the next that is said sets that right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple


class PlacesTold(NamedTuple):
    """What an executor says of its places; the lists belong together by their places.

    Arguments:
        executor_id: who.
        turn: rises from one to the next.
        names, had: what there are places of, and how many it has.
        wanted, bounds: how many it wants beside, as far as all together have no more than these.
    """

    executor_id: str
    turn: int
    names: list[str]
    had: list[int]
    wanted: list[int]
    bounds: list[int]


#: Tells the store; for each name, how many came beside, and how many others have.
Tell = Callable[[PlacesTold], Awaitable[list[tuple[int, int]]]]


class OwnPlaces:
    """See the module.

    Arguments:
        tell: tells the store.
        now: a clock that never goes back.
        late_seconds: for how long what had no answer may still be carried out.
    """

    def __init__(self, tell: Tell, now: Callable[[], float], late_seconds: float) -> None:
        self._tell = tell
        self._now = now
        self._late_seconds = late_seconds
        self._turns = asyncio.Lock()
        self._turn = 0
        self._executor_id = ""
        self._had: dict[str, int] = {}
        self._bounds: dict[str, int] = {}
        #: Names of which the store may believe something else, and until when that may change.
        self._doubted: dict[str, float] = {}

    async def take(self, executor_id: str, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """See `SharedStore.take_places`."""
        async with self._turns:
            self._be(executor_id)
            self._bounds.update((name, bound) for name, (_, bound) in wanted.items())
            told = await self._say({name: count for name, (count, _) in wanted.items()})
            got = {name: told[name][0] for name in wanted}
            for name, count in got.items():
                self._had[name] = self._had.get(name, 0) + count
            return got

    async def give(self, executor_id: str, given: Mapping[str, int]) -> bool:
        """See `SharedStore.give_places`. Returns whether others may have wanted some of these places."""
        async with self._turns:
            self._be(executor_id)
            before = {name: self._had.get(name, 0) for name in given}
            for name, count in given.items():
                self._had[name] = max(before[name] - count, 0)
            told = await self._say(dict.fromkeys(given, 0))
            wanted = any(told[name][1] + before[name] >= self._bounds.get(name, 0) for name in given)
            for name in given:
                if not self._had[name]:
                    del self._had[name]
                    self._bounds.pop(name, None)
            return wanted

    def _be(self, executor_id: str) -> None:
        """Under another id, this executor has nothing: what it had went with the other."""
        if executor_id != self._executor_id:
            self._executor_id = executor_id
            self._had, self._bounds, self._doubted = {}, {}, {}

    async def _say(self, wanted: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Tell of these names, and of all that are in doubt."""
        names = [*wanted, *(name for name in self._doubted if name not in wanted)]
        self._turn += 1
        told = PlacesTold(
            self._executor_id, self._turn, names,
            had=[self._had.get(name, 0) for name in names],
            wanted=[wanted.get(name, 0) for name in names],
            bounds=[self._bounds.get(name, 0) for name in names],
        )  # fmt: skip
        doubted = self._doubted
        try:
            answers = await self._tell(told)
        except BaseException:
            until = self._now() + self._late_seconds
            self._doubted = {**doubted, **dict.fromkeys(names, until)}
            raise
        now = self._now()
        self._doubted = {name: until for name, until in doubted.items() if until > now}
        return dict(zip(names, answers, strict=True))
