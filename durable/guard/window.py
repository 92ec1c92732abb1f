"""Sliding windows: how many starts there were lately, in all and of each user.

Law: a window knows exactly what came in the last so many seconds, and keeps nothing else for longer than the next few starts. Each call
costs the same in the long run, however many there were. Times never go back: they come from a monotonic clock.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from math import inf

#: Most users who are forgotten in one call: so many at once take no time that anybody would notice.
FORGOTTEN_MAX = 500


class SlidingWindow:
    """Starts of one kind."""

    __slots__ = ("_gone", "_times")

    def __init__(self) -> None:
        self._times = array("d")
        #: How many at the front count no more.
        self._gone = 0

    def __len__(self) -> int:
        return len(self._times) - self._gone

    @property
    def newest(self) -> float:
        """When the last one came that still counts."""
        return self._times[-1] if self._times else -inf

    def forget(self, until: float) -> None:
        """What came at this time or earlier counts no more."""
        times, gone = self._times, self._gone
        while gone < len(times) and times[gone] <= until:
            gone += 1
        if 2 * gone >= len(times):
            del times[:gone]
            gone = 0
        self._gone = gone

    def wait(self, now: float, limit: int, window: float) -> float:
        """In how many seconds one more may come, of which there may be `limit` in any `window`; 0: now."""
        self.forget(now - window)
        if len(self) < limit:
            return 0.0
        return max(self._times[-limit] + window - now, 0.0)

    def add(self, now: float) -> None:
        """One came."""
        self._times.append(now)

    def amend(self, now: float) -> None:
        """The last one came a little later than was told."""
        self._times[-1] = now


class UserWindows:
    """A window for each user who started something lately."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        #: Those whose last start is the longest ago first.
        self._windows: OrderedDict[str, SlidingWindow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def wait(self, user: str, now: float, limit: int, window: float) -> float:
        """See `SlidingWindow.wait`."""
        self._forget(now - window)
        known = self._windows.get(user)
        return 0.0 if known is None else known.wait(now, limit, window)

    def add(self, user: str, now: float) -> None:
        """One of this user came."""
        known = self._windows.get(user)
        if known is None:
            known = self._windows[user] = SlidingWindow()
        else:
            self._windows.move_to_end(user)
        known.add(now)

    def amend(self, user: str, now: float) -> None:
        """The last one of this user came a little later than was told."""
        self._windows[user].amend(now)

    def _forget(self, until: float) -> None:
        for _ in range(min(FORGOTTEN_MAX, len(self._windows))):
            user, oldest = next(iter(self._windows.items()))
            if oldest.newest > until:
                return
            del self._windows[user]
