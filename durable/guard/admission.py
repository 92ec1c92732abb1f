"""Admission in one process: the rates and the queue, counted here.

Law: it never suspends, so that what it decided still holds when the run is put on the table.
"""

from __future__ import annotations

from collections.abc import Callable

from durable.clock import Clock
from durable.guard.gate import StartAsked, StartBounds, StartRefused
from durable.guard.window import SlidingWindow, UserWindows

#: What is answered, in seconds, where the queue is full: at least this, also when it moves faster.
RETRY_SECONDS_MIN = 0.1


class LocalAdmission:
    """See `durable.guard.gate.Admission`.

    Arguments:
        waiting: tells how many started runs wait for their first slot.
        pace: tells about how many seconds pass until one more of those that wait begins.
    """

    def __init__(self, clock: Clock, waiting: Callable[[], int], pace: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting = waiting
        self._pace = pace
        self._all = SlidingWindow()
        self._users = UserWindows()

    async def let_in(self, asked: StartAsked, bounds: StartBounds) -> StartRefused | None:
        """Decide a start, and count it where it is let in."""
        now = self._clock.monotonic()
        refused = self._rate(asked.user, bounds, now) or self._queue(asked, bounds)
        if refused is None:
            if bounds.starts is not None:
                self._all.add(now)
            if bounds.starts_per_user is not None and asked.user is not None:
                self._users.add(asked.user, now)
        return refused

    def foresee(self, asked: StartAsked, bounds: StartBounds) -> StartRefused | None:
        """Whether the rate refuses the start."""
        return self._rate(asked.user, bounds, self._clock.monotonic())

    def amend(self, user: str | None, bounds: StartBounds) -> None:
        """The start that was just let in has created its run: its time in the windows shall not be earlier than that of the run."""
        now = self._clock.monotonic()
        if bounds.starts is not None:
            self._all.amend(now)
        if bounds.starts_per_user is not None and user is not None:
            self._users.amend(user, now)

    def _rate(self, user: str | None, bounds: StartBounds, now: float) -> StartRefused | None:
        """Where both rates refuse, it may come when neither does any more."""
        wait = own = 0.0
        if bounds.starts is not None:
            wait = self._all.wait(now, bounds.starts, bounds.window)
        if bounds.starts_per_user is not None and user is not None:
            own = self._users.wait(user, now, bounds.starts_per_user, bounds.window)
        if not wait and not own:
            return None
        return StartRefused("rate" if wait else "user_rate", max(wait, own))

    def _queue(self, asked: StartAsked, bounds: StartBounds) -> StartRefused | None:
        if bounds.queued is None or not asked.waits or self._waiting() < bounds.queued:
            return None
        return StartRefused("queue", min(max(self._pace(), RETRY_SECONDS_MIN), bounds.window))
