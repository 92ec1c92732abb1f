"""The scheduler: which run begins when.

Law: never more than `max_running` runs hold a slot; of those that wait, higher priority first, then the older. A run that the body of
another waits for, as its child or by its handle, takes no slot of its own: the other holds one for it, and could not end otherwise.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from durable.clock import Clock
from durable.core.status import Status
from durable.engine.entry import Entry

#: Longest that a timer runs before the wall clock is looked at again, seconds: it may have been set.
TIMER_SECONDS_MAX = 3600.0


class Scheduler:
    """Slots, and the queue for them.

    Arguments:
        begin: stages the beginning of a run that has its slot.
    """

    def __init__(self, clock: Clock, max_running: int, begin: Callable[[Entry], None]) -> None:
        self._clock = clock
        self._max_running = max_running
        self._begin = begin
        self._queue: list[tuple[int, float, str, int, Entry]] = []
        self._places = 0
        #: Places in the queue whose run no longer wants to begin.
        self._stale = 0
        self.running = 0
        self.closed = False

    @property
    def queued(self) -> int:
        """Runs that wait for a slot."""
        return len(self._queue) - self._stale

    def try_slot(self, entry: Entry) -> bool:
        """Take a slot for a run that begins at once, if there is one."""
        is_free = entry.run.attached or entry.awaited
        if self.closed or (not is_free and (self.queued or self.running >= self._max_running)):
            return False
        self._take(entry)
        return True

    def schedule(self, entry: Entry) -> None:
        """Let the run begin at its time, when there is a slot."""
        if self.closed or entry.slot or entry.place:
            return
        wait = entry.run.not_before - self._clock.now()
        if wait > 0:
            if entry.timer is None:
                loop = asyncio.get_running_loop()
                entry.timer = loop.call_later(min(wait, TIMER_SECONDS_MAX), self._due, entry)
            return
        if self.try_slot(entry):
            self._begin(entry)
        else:
            run = entry.run
            self._places += 1
            entry.place = self._places
            heapq.heappush(self._queue, (-run.priority, run.created_at, run.run_id, entry.place, entry))

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
        self._fill()

    def forget(self, entry: Entry) -> None:
        """The run no longer wants to begin."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.place:
            entry.place = 0
            self._stale += 1
            if 2 * self._stale > len(self._queue):
                self._queue = [place for place in self._queue if place[4].place == place[3]]
                heapq.heapify(self._queue)
                self._stale = 0

    def _take(self, entry: Entry) -> None:
        entry.slot = True
        entry.counted = not (entry.run.attached or entry.awaited)
        if entry.counted:
            self.running += 1

    def _due(self, entry: Entry) -> None:
        entry.timer = None
        if entry.run.status is Status.READY:
            self.schedule(entry)

    def _fill(self) -> None:
        while self._queue and self.running < self._max_running and not self.closed:
            *_, place, entry = heapq.heappop(self._queue)
            if entry.place != place:
                self._stale -= 1
                continue
            entry.place = 0
            if entry.run.status in (Status.READY, Status.RUNNING) and not entry.slot:
                self._take(entry)
                self._begin(entry)
