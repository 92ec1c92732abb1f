"""The pace of a queue: how long it takes, about, until one more of those that wait begins.

Law: it is an estimate out of what happened lately, and says more than that only while nothing has happened yet.
"""

from __future__ import annotations

from durable.clock import Clock

#: What is assumed before the first of those that waited has begun, seconds.
ASSUMED_SECONDS = 1.0
#: How much of the estimate the last gap is.
WEIGHT = 0.2


class Pace:
    """Told each time that the queue moves."""

    __slots__ = ("_clock", "_gap", "_last")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.monotonic()
        self._gap: float | None = None

    def stood(self) -> None:
        """The first one waits: there was nothing to move before."""
        self._last = self._clock.monotonic()

    def moved(self) -> None:
        """One of those that waited has begun."""
        now = self._clock.monotonic()
        gap, self._last = now - self._last, now
        self._gap = gap if self._gap is None else self._gap + WEIGHT * (gap - self._gap)

    def seconds(self) -> float:
        """About how long until the next one begins; longer where the last one was longer ago than that."""
        if self._gap is None:
            return ASSUMED_SECONDS
        return max(self._gap, self._clock.monotonic() - self._last)
