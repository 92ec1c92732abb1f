"""The table: the runs that this process has in hand.

Law: a run is here once, and only from here does anything write to it. A run that has not ended is never here without those that it
belongs to: whatever ends it can tell them in the same commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from durable.core.run import Run
from durable.engine.entry import Entry
from durable.store.base import Store


class Table:
    """Loaded runs by id.

    Arguments:
        on_read: called with each run that was read from the store, to let it go on.
    """

    def __init__(self, store: Store, on_read: Callable[[Entry], None]) -> None:
        self._store = store
        self._on_read = on_read
        self._entries: dict[str, Entry] = {}
        self._loading: dict[str, asyncio.Task[Entry | None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, run_id: str) -> Entry | None:
        """The run, if it is here."""
        return self._entries.get(run_id)

    def add(self, entry: Entry) -> None:
        """A run that is new, or was read from the store while nobody else could read it."""
        self._entries[entry.run.run_id] = entry

    def drop(self, entry: Entry) -> list[Entry]:
        """The run is in the store and nothing of it is on its way: the next who asks for it reads it there.

        Returns the runs that were here for its sake, and need not be any longer.
        """
        if self._entries.get(entry.run.run_id) is entry:
            del self._entries[entry.run.run_id]
        freed, entry.watchers = entry.watchers, []
        for watcher in freed:
            watcher.held -= 1
        if entry.parent is not None:
            entry.parent.children.discard(entry)
            freed.append(entry.parent)
        return freed

    async def load(self, run_id: str) -> Entry | None:
        """The run, read from the store if need be; None where there is none. It may be dropped again in any later turn."""
        while (entry := self._entries.get(run_id)) is None:
            loading = self._loading.get(run_id)
            if loading is None:
                loading = self._loading[run_id] = asyncio.create_task(self._read(run_id))
                loading.add_done_callback(lambda _: self._loading.pop(run_id, None))
            if await asyncio.shield(loading) is None:
                return None
        return entry

    async def _read(self, run_id: str) -> Entry | None:
        run = await self._store.find(run_id)
        if run is None:
            return None
        entry = await self.adopt(run)
        self._on_read(entry)
        return entry

    async def adopt(self, run: Run) -> Entry:
        """Take a run from the store that is not here and that nobody else reads meanwhile, with those that it needs here."""
        watchers = [] if run.ended else [await self._hold(watcher_id) for watcher_id in run.watchers]
        parent = None
        if run.attached and run.parent_id is not None and not run.ended:
            while parent is None or self.get(run.parent_id) is not parent:
                parent = await self.load(run.parent_id)
                if parent is None:
                    break  # a store that lost it: the run goes on by itself
        entry = Entry(run, parent=parent)
        entry.watchers = [watcher for watcher in watchers if watcher is not None]
        entry.settled, entry.restored = run.ended, True
        self.add(entry)
        return entry

    async def _hold(self, run_id: str) -> Entry | None:
        """Load a run and keep it loaded."""
        entry = None
        while entry is None or self.get(run_id) is not entry:
            entry = await self.load(run_id)
            if entry is None:
                return None
        entry.held += 1
        return entry
