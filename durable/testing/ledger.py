"""The ledger of a database in memory: starts that were let in, and places that executors have taken.

Law: the same as in PostgreSQL, told as simply as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from durable.store.shared import StartAsked, StartBounds, StartRefused

#: For how long a start counts as waiting whose run is not there.
ANNOUNCED_SECONDS = 10.0
#: When to try again where the queue is full.
QUEUE_SECONDS = 1.0


class MemoryLedger:
    """See the module.

    Arguments:
        now: the time by which starts are counted.
        is_live: whether this is an executor whose lease has not passed.
    """

    def __init__(self, now: Callable[[], float], is_live: Callable[[str], bool]) -> None:
        self._now = now
        self._is_live = is_live
        #: When starts were let in, and until when they count, by what they count for: None for all, else a user.
        self._starts: dict[str | None, list[tuple[float, float]]] = {}
        self._announced: dict[str, float] = {}
        #: How many, by name and executor.
        self._places: dict[tuple[str, str], int] = {}

    def let_in(
        self, asked: Sequence[StartAsked], bounds: StartBounds, waiting: int, there: Collection[str]
    ) -> list[StartRefused | None]:
        """See `SharedStore.let_in`.

        Arguments:
            waiting: how many started runs wait for a slot.
            there: the runs that there are.
        """
        now = self._now()
        for whose, starts in self._starts.items():
            self._starts[whose] = [each for each in starts if each[1] > now]
        since = now - ANNOUNCED_SECONDS
        self._announced = {each: at for each, at in self._announced.items() if at > since and each not in there}
        return [self._decide(each, bounds, now, waiting + len(self._announced)) for each in asked]

    def _decide(self, asked: StartAsked, bounds: StartBounds, now: float, waiting: int) -> StartRefused | None:
        counts: dict[str, tuple[str | None, int]] = {}
        if bounds.starts is not None:
            counts["rate"] = None, bounds.starts
        if bounds.starts_per_user is not None and asked.user is not None:
            counts["user_rate"] = asked.user, bounds.starts_per_user
        waits = {reason: self._wait(whose, most, bounds.window, now) for reason, (whose, most) in counts.items()}
        refused = [reason for reason, wait in waits.items() if wait > 0]
        if refused:
            return StartRefused(refused[0], max(waits.values()))
        if asked.waits and bounds.queued is not None:
            if waiting >= bounds.queued:
                return StartRefused("queue", QUEUE_SECONDS)
            self._announced[asked.run_id] = now
        for whose, _ in counts.values():
            self._starts.setdefault(whose, []).append((now, now + bounds.window))
        return None

    def _wait(self, whose: str | None, most: int, window: float, now: float) -> float:
        """For how long the oldest start stays in the window that is in the way of another one."""
        starts = self._starts.get(whose, [])
        return 0.0 if len(starts) < most else max(starts[-most][0] + window - now, 0.0)

    def take(self, me: str, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """See `SharedStore.take_places`."""
        self._places = {each: count for each, count in self._places.items() if self._is_live(each[1])}
        got = dict.fromkeys(wanted, 0)
        for name, (count, bound) in wanted.items() if self._is_live(me) else ():
            taken = sum(held for (each, _), held in self._places.items() if each == name)
            got[name] = max(min(count, bound - taken), 0)
            self._places[name, me] = self._places.get((name, me), 0) + got[name]
        return got

    def give(self, me: str, given: Mapping[str, int]) -> None:
        """See `SharedStore.give_places`."""
        for name, count in given.items():
            left = self._places.pop((name, me), 0) - count
            if left > 0:
                self._places[name, me] = left
