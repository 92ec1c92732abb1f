"""`Turns`: when has a run done all that it can do for now?

Law: a run is called quiet when nothing is left to run on the whole loop, which is exact and usually so at the first look, or when a
number of turns have passed in which the run neither made a call nor was handed a result. One look a turn serves all runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized

#: Turns without activity that count as quiet on a loop that is never idle. A result travels through nested tasks at one or two turns
#: a level.
QUIET_TURNS = 64


class Watch:
    """One run's wish to be told when it is quiet."""

    __slots__ = ("armed", "due", "quiet")

    def __init__(self, quiet: Callable[[], None]) -> None:
        self.quiet = quiet
        self.due = 0
        self.armed = False


class Turns:
    """Looks once a turn of the loop, while anybody waits for quiet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # asyncio's own loops keep what is ready to run here. Without it (another loop) the count of turns decides alone: slower, not other.
        self._ready: Sized | None = getattr(loop, "_ready", None)
        self._now = 0
        self._watches: dict[Watch, None] = {}
        self._looking = False

    def arm(self, watch: Watch) -> None:
        """Tell the watch once its run is quiet."""
        if not watch.armed:
            watch.armed = True
            self._watches[watch] = None
            if not self._looking:
                self._looking = True
                self._loop.call_soon(self._look)

    def touch(self, watch: Watch) -> None:
        """The run did something: it is not quiet."""
        watch.due = self._now + QUIET_TURNS

    def disarm(self, watch: Watch) -> None:
        """Nobody needs to be told any more."""
        watch.armed = False
        self._watches.pop(watch, None)

    def _look(self) -> None:
        self._now += 1
        idle = self._ready is not None and not self._ready
        due = [watch for watch in self._watches if idle or watch.due <= self._now]
        for watch in due:
            self.disarm(watch)
        for watch in due:
            watch.quiet()
        self._looking = bool(self._watches)
        if self._looking:
            self._loop.call_soon(self._look)
