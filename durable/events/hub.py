"""The hub: who follows which run, live.

Law: a slow subscriber loses its place, never a record: its buffer is bounded, and what did not fit is read from the store. It slows nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, KeysView

from durable.core.records import Record

#: Records that a subscriber may lag behind before it has to read from the store.
BUFFER_RECORDS_MAX = 1024


class Subscription:
    """One subscriber's view of one run."""

    __slots__ = ("_buffer", "_wake", "lagging")

    def __init__(self) -> None:
        self._buffer: deque[Record] = deque()
        self._wake: asyncio.Future[None] | None = None
        #: Records were dropped: read from the store, then go on.
        self.lagging = False

    def push(self, record: Record) -> None:
        """Offer a record."""
        if len(self._buffer) < BUFFER_RECORDS_MAX and not self.lagging:
            self._buffer.append(record)
        else:
            self.lagging = True
        self.wake()

    def wake(self) -> None:
        """Let the subscriber look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def drain(self) -> list[Record]:
        """Take what has come, in order."""
        taken = list(self._buffer)
        self._buffer.clear()
        return taken

    async def wait(self) -> None:
        """Wait until there is something to take."""
        if self._buffer or self.lagging:
            return
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake


class Hub:
    """All live subscriptions of an application."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, set[Subscription]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._subscriptions.values()))

    def subscribe(self, run_id: str) -> Subscription:
        """Follow a run from now on."""
        subscription = Subscription()
        self._subscriptions.setdefault(run_id, set()).add(subscription)
        return subscription

    def unsubscribe(self, run_id: str, subscription: Subscription) -> None:
        """Stop following."""
        subscriptions = self._subscriptions.get(run_id)
        if subscriptions is not None:
            subscriptions.discard(subscription)
            if not subscriptions:
                del self._subscriptions[run_id]

    def publish(self, record: Record) -> None:
        """Offer a durable record to those who follow its run."""
        for subscription in self._subscriptions.get(record.run_id, ()):
            subscription.push(record)

    @property
    def followed(self) -> KeysView[str]:
        """The runs that somebody follows."""
        return self._subscriptions.keys()

    def look_again(self, run_ids: Collection[str]) -> None:
        """Have those who follow these runs read from the store."""
        for run_id in run_ids:
            for subscription in self._subscriptions.get(run_id, ()):
                subscription.lagging = True
                subscription.wake()

    def wake_all(self) -> None:
        """Let every subscriber look at the state of the application."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.wake()
