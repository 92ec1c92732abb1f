"""The ledger of a database in memory: starts that were let in, and places that executors have taken.

Law: the same as in PostgreSQL, told as simply as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from durable.store.places import PlacesTold
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
        #: How many, by name and executor, and when that was said.
        self._places: dict[tuple[str, str], tuple[int, int]] = {}

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

    def hold(self, told: PlacesTold) -> list[tuple[int, int]]:
        """See `PlacesTold`; what comes late changes nothing."""
        self._places = {each: held for each, held in self._places.items() if self._is_live(each[1])}
        me, answers = told.executor_id, list[tuple[int, int]]()
        for name, had, wanted, bound in zip(told.names, told.had, told.wanted, told.bounds, strict=True):
            others = sum(held for (each, who), (held, _) in self._places.items() if each == name and who != me)
            got = max(min(wanted, bound - others - had), 0) if self._is_live(me) else 0
            if self._is_live(me) and self._places.get((name, me), (0, 0))[1] < told.turn:
                self._places[name, me] = had + got, told.turn
            answers.append((got, others))
        return answers
