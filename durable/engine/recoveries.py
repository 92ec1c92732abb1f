"""Recoveries: how many runs repeat at once what they had done before a crash.

Law: a run that goes on after a crash has a place here until it has caught up with its record, or its body ends; never more than there are
places do so at once. Who waits for a place holds no slot, so that runs which are new need not wait for it.
"""

from __future__ import annotations

import heapq

from durable.engine.entry import Entry


class Recoveries:
    """Places, and the queue for them.

    Arguments:
        most: how many there are.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside: set[Entry] = set()
        self._waiting: dict[Entry, None] = {}
        self._queue: list[tuple[float, int, Entry]] = []
        self._entered = 0

    @property
    def waiting(self) -> int:
        """Runs that wait for a place."""
        return len(self._waiting)

    @property
    def inside(self) -> int:
        """Runs that have a place."""
        return len(self._inside)

    def enter(self, entry: Entry, standing: float) -> bool:
        """Take a place; False where there is none, and it has to wait for one, the one that stands first before all others."""
        if entry in self._inside:
            return True
        if entry not in self._waiting:
            if not self._waiting and len(self._inside) < self._most:
                self._inside.add(entry)
                return True
            self._waiting[entry] = None
            self._entered += 1
            heapq.heappush(self._queue, (standing, self._entered, entry))
        return False

    def leave(self, entry: Entry) -> bool:
        """Give the place up, or no longer wait for one; returns whether it waited."""
        self._inside.discard(entry)
        waited = entry in self._waiting
        if waited:
            del self._waiting[entry]
        return waited

    def next(self) -> Entry | None:
        """Give a place that is free to who is next; None where nobody waits, or all have one."""
        while self._queue and len(self._inside) < self._most:
            *_, entry = heapq.heappop(self._queue)
            if entry in self._waiting:
                del self._waiting[entry]
                self._inside.add(entry)
                return entry
        return None
