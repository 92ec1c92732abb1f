"""The scheduler: which run begins when.

Law: never more than `max_running` runs hold a slot; of those that wait, the one that stands first. A run stands where its creation puts
it: a minute earlier for each point of priority, so that none waits for ever, and the n-th child of a family n hundredths of a second
later, so that a large family does not keep out all others. A run that the body of another waits for, as its child or by its handle,
takes no slot of its own: the other holds one for it, and could not end otherwise.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from durable.clock import Clock
from durable.engine.entry import Entry
from durable.engine.recoveries import Recoveries

#: How much earlier than it was created a run stands for each point of priority, seconds.
PRIORITY_SECONDS = 60.0
#: How much later each child of a family stands than the one before, seconds.
SIBLING_SECONDS = 0.01
#: Longest that a timer runs before the wall clock is looked at again, seconds: it may have been set.
TIMER_SECONDS_MAX = 3600.0


class Scheduler:
    """Slots, and the queue for them.

    Arguments:
        begin: stages the beginning of a run that has its slot.
        crowded: called when a run has to wait for a slot.
        recoveries: places for runs that go on after a crash.
    """

    def __init__(
        self, clock: Clock, max_running: int, begin: Callable[[Entry], None], crowded: Callable[[], None],
        recoveries: Recoveries,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._max_running = max_running
        self._begin = begin
        self._crowded = crowded
        self.recoveries = recoveries
        self._queue: list[tuple[float, str, int, Entry]] = []
        self._places = 0
        #: Places in the queue whose run no longer wants to begin.
        self._stale = 0
        self.running = 0
        self.closed = False
        #: No run may take a slot now.
        self.paused = False
        #: About how many runs wait in the store for a slot, here or anywhere: see `claims.py`.
        self.elsewhere = 0
        #: Called when a slot has become free that no run here waits for.
        self.on_free: Callable[[], None] | None = None

    @property
    def queued(self) -> int:
        """Runs that wait for a slot."""
        return len(self._queue) - self._stale + self.elsewhere

    @property
    def free(self) -> int:
        """Slots that no run here has or waits for."""
        if self.closed or self.paused:
            return 0
        return max(self._max_running - self.running - len(self._queue) + self._stale - self.recoveries.waiting, 0)

    def try_slot(self, entry: Entry) -> bool:
        """Take a slot for a run that begins at once, if there is one and nobody waits for it."""
        if self.elsewhere and not self._is_free(entry):
            return False
        return self._try_slot(entry)

    def _try_slot(self, entry: Entry) -> bool:
        if self.closed or self.paused:
            return False
        if not self._is_free(entry) and (len(self._queue) > self._stale or self.running >= self._max_running):
            return False
        self._take(entry)
        return True

    def schedule(self, entry: Entry) -> None:
        """Let the run begin at its time, when there is a slot."""
        if self.closed or entry.slot or entry.place:
            return
        due = entry.run.due
        if due is None or entry.run.ended:
            return
        wait = due - self._clock.now()
        if wait > 0:
            if entry.timer is None:
                loop = asyncio.get_running_loop()
                entry.timer = loop.call_later(min(wait, TIMER_SECONDS_MAX), self._due, entry)
            return
        if entry.run.executing and not self.recoveries.enter(entry, self._standing_of(entry)):
            return
        if self._try_slot(entry):
            self._begin(entry)
        else:
            self._places += 1
            entry.place = self._places
            heapq.heappush(self._queue, (self._standing(entry), entry.run.run_id, entry.place, entry))
            self._crowded()

    def hasten(self, entry: Entry) -> None:
        """A body began to wait for the run: it shall not wait for the slot that this body holds."""
        entry.awaited += 1
        if entry.place:
            self.forget(entry)
            self.schedule(entry)

    def release(self, entry: Entry) -> None:
        """Give the slot back, and begin who is next."""
        if entry.slot:
            entry.slot = False
            if entry.counted:
                self.running -= 1
        self.caught_up(entry)
        self.fill()

    def caught_up(self, entry: Entry) -> None:
        """The run does not repeat any more what it did before: others may."""
        self.recoveries.leave(entry)
        while not self.closed and (following := self.recoveries.next()) is not None:
            self.schedule(following)
            if not (following.slot or following.place):
                self.recoveries.leave(following)  # it no longer wants to begin

    def forget(self, entry: Entry) -> bool:
        """The run no longer wants to begin; returns whether it was about to go on after a crash, and has not."""
        waited = self.recoveries.leave(entry) or (entry.place > 0 and entry.run.executing)
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.place:
            entry.place = 0
            self._stale += 1
            if 2 * self._stale > len(self._queue):
                self._queue = [place for place in self._queue if place[3].place == place[2]]
                heapq.heapify(self._queue)
                self._stale = 0
        return waited

    def _is_free(self, entry: Entry) -> bool:
        if entry.awaited:
            return True
        parent = entry.parent
        return parent is not None and not entry.run.joined and not parent.run.asleep

    def _standing(self, entry: Entry) -> float:
        parent, standing = entry.parent, self._standing_of(entry)
        if parent is None:
            return standing
        parent.branches += 1
        return standing + SIBLING_SECONDS * parent.branches

    @staticmethod
    def _standing_of(entry: Entry) -> float:
        return entry.run.created_at - PRIORITY_SECONDS * entry.run.priority

    def _take(self, entry: Entry) -> None:
        entry.slot = True
        entry.counted = not self._is_free(entry)
        if entry.counted:
            self.running += 1

    def _due(self, entry: Entry) -> None:
        entry.timer = None
        self.schedule(entry)

    def fill(self) -> None:
        """Begin as many runs as there are slots."""
        while self._queue and self.running < self._max_running and not self.closed and not self.paused:
            *_, place, entry = heapq.heappop(self._queue)
            if entry.place != place:
                self._stale -= 1
                continue
            entry.place = 0
            if entry.run.due is not None and not entry.run.ended and not entry.slot:
                self._take(entry)
                self._begin(entry)
        if self.elsewhere and self.on_free is not None and not self._queue and self.running < self._max_running:
            self.on_free()
