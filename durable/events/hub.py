"""The hub: who follows which run, live.

Law: a slow subscriber loses its place, never a record: what is no longer in memory is read from the store. It slows nobody. What is kept
for one who comes back is bounded in time and in number, and only spares a question to the store.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from durable.config import StreamSettings
from durable.core.records import Record
from durable.events.ring import Reader, Ring


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """How much is followed.

    Arguments:
        streams: runs that somebody follows now.
        subscribers: who follows them.
        retained: runs that nobody follows, and of which records are kept for one who comes back.
        overflows: how often a subscriber was left behind what is in memory, and had to go on in the store.
    """

    streams: int
    subscribers: int
    retained: int
    overflows: int


class Hub:
    """All live subscriptions of an application.

    Arguments:
        shared: whether others write to the store, too: then what is retained is not all that there is.
    """

    def __init__(self, settings: StreamSettings, *, shared: bool) -> None:
        self._settings = settings
        self._shared = shared
        self._rings: dict[str, Ring] = {}
        #: Runs that nobody follows, and when to forget them; the first is the oldest.
        self._retained: OrderedDict[str, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._subscribers = 0
        self._overflows = 0

    def __len__(self) -> int:
        return self._subscribers

    def statistics(self) -> StreamStats:
        """How much is followed."""
        return StreamStats(
            streams=len(self._rings) - len(self._retained),
            subscribers=self._subscribers,
            retained=len(self._retained),
            overflows=self._overflows,
        )

    @contextmanager
    def follow(self, run_id: str, after: int) -> Iterator[Reader]:
        """Follow a run from after this `seq` on."""
        ring = self._rings.get(run_id)
        if ring is None:
            ring = self._rings[run_id] = Ring(self._settings.buffer_size, self._settings.buffer_bytes)
        elif self._retained.pop(run_id, None) is not None and self._shared:
            ring.news = True  # nobody listened meanwhile
        ring.readers += 1
        self._subscribers += 1
        try:
            yield Reader(ring, max(after, 0))
        finally:
            ring.readers -= 1
            self._subscribers -= 1
            if not ring.readers and self._rings.get(run_id) is ring:
                ring.left()
                self._retain(run_id, ring)

    def overflowed(self) -> None:
        """A subscriber was left behind."""
        self._overflows += 1

    # --- what comes ---------------------------------------------------------------------------------------------------------------

    def publish(self, record: Record) -> None:
        """Offer a durable record to those who follow its run."""
        ring = self._rings.get(record.run_id)
        if ring is not None:
            ring.push(record)

    def publish_ephemeral(self, record: Record) -> None:
        """Offer an event that is not stored to those who follow its run now."""
        ring = self._rings.get(record.run_id)
        if ring is not None and ring.readers:
            ring.push_ephemeral(record)

    def is_followed(self, run_id: str) -> bool:
        """Whether somebody follows the run."""
        return run_id in self._rings and run_id not in self._retained

    @property
    def followed(self) -> Collection[str]:
        """The runs that somebody follows."""
        return self._rings.keys() - self._retained.keys()

    def look_again(self, run_ids: Collection[str]) -> None:
        """Have those who follow these runs read from the store."""
        for run_id in run_ids:
            ring = self._rings.get(run_id)
            if ring is not None:
                ring.look_again()

    def wake_all(self) -> None:
        """Let every subscriber look at the state of the application."""
        for ring in self._rings.values():
            ring.wake()

    # --- what is kept -------------------------------------------------------------------------------------------------------------

    def _retain(self, run_id: str, ring: Ring) -> None:
        settings = self._settings
        if not settings.retention_seconds or ring.last < 0:  # nothing ever came
            del self._rings[run_id]
            return
        self._retained[run_id] = asyncio.get_running_loop().time() + settings.retention_seconds
        while len(self._retained) > settings.retained_max:
            oldest, _ = self._retained.popitem(last=False)
            del self._rings[oldest]
        if self._timer is None and self._retained:
            self._forget_later()

    def _forget_later(self) -> None:
        at = next(iter(self._retained.values()))
        self._timer = asyncio.get_running_loop().call_at(at, self._forget)

    def _forget(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._retained:
            run_id, at = next(iter(self._retained.items()))
            if at > now:
                self._forget_later()
                return
            del self._retained[run_id], self._rings[run_id]

    def close(self) -> None:
        """Forget all: what comes later, in another life of the application, comes to those who ask then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._retained.clear()
        rings, self._rings = self._rings, {}
        for ring in rings.values():
            ring.closed = True
            ring.wake()
