"""A circuit breaker: after so many failures in a row, leave the other side in peace for a while.

Law: a pure machine; the time is an argument.

    closed --threshold failures--> open --open_seconds--> half-open --success--> closed
                                     ^-------- failure -------+
"""

from __future__ import annotations

from enum import StrEnum, unique


@unique
class BreakerState(StrEnum):
    """Whether calls go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts consecutive failures.

    Arguments:
        threshold: failures in a row that open it.
        open_seconds: how long it stays open before one call is let through.
    """

    def __init__(self, threshold: int, open_seconds: float) -> None:
        self._threshold = threshold
        self._open_seconds = open_seconds
        self._opened_at = 0.0
        self.state = BreakerState.CLOSED
        self.failures = 0

    def allows(self, now: float) -> bool:
        """Whether a call may be made at monotonic time `now`. An open breaker whose time is up becomes half-open."""
        if self.state is BreakerState.OPEN and self.wait_seconds(now) <= 0:
            self.state = BreakerState.HALF_OPEN
        return self.state is not BreakerState.OPEN

    def wait_seconds(self, now: float) -> float:
        """How long until a call may be made; 0 unless it is open."""
        if self.state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._open_seconds - now)

    def success(self) -> None:
        """The call went well."""
        self.failures = 0
        self.state = BreakerState.CLOSED

    def failure(self, now: float) -> None:
        """The call failed."""
        self.failures += 1
        if self.state is BreakerState.HALF_OPEN or self.failures >= self._threshold:
            self.state = BreakerState.OPEN
            self._opened_at = now
