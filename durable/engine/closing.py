"""Closing: what a run that has ended still owes its children.

Law: a run that has ended is closed once its unfinished children are cancelled, or the message is durable that cancels them; a crash in
between is made good by the next process, which finds the run not closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from durable.core.commands import Cancel, Close
from durable.core.query import RunFilter
from durable.engine.entry import Entry
from durable.engine.holding import HoldingTable
from durable.engine.pipeline import Pipeline, Wish
from durable.engine.services import matching, patiently
from durable.engine.table import Table
from durable.errors import DurableError
from durable.store.base import Store

logger = logging.getLogger("durable.engine")


class Closing:
    """Closes runs."""

    pipeline: Pipeline
    #: Called with a run that nobody needs in memory any more who did.
    let_go: Callable[[Entry], None]

    def __init__(self, table: Table, store: Store) -> None:
        self._table = table
        self._store = store
        #: The table, where other processes may hold runs, too.
        self.holding: HoldingTable | None = None
        #: What closes runs that have ended, by run.
        self._closing: dict[Entry, asyncio.Task[None]] = {}

    async def closed(self, entry: Entry) -> None:
        """Wait until the run is closed in the store, where its children are looked up, if it is being closed."""
        while True:
            closing = self._closing.get(entry)
            if closing is not None:
                await asyncio.wait((closing,))
            elif entry.run.returned_seq and not self.pipeline.is_durable(entry):
                await self.pipeline.durable(entry)  # what follows from its end is staged when that is published
            else:
                return

    async def stop(self) -> None:
        """Close no more runs: the next process finds them not closed."""
        tasks = list(self._closing.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def close(self, entry: Entry) -> None:
        """Cancel the unfinished children of a run that has ended, and record that it is closed."""
        run = entry.run
        if run.closed or entry in self._closing:
            return
        loaded = [child for child in entry.children if not child.run.ended]
        reason = f"its parent {run.run_id} is {run.status}"
        try:
            for child in loaded:
                self.pipeline.stage(child, Cancel(reason))
            if len(loaded) == run.unfinished + run.awaiting:
                self.pipeline.stage(entry, Close())
                return
        except DurableError:
            return  # the store failed or is closed: the next process finds the run not closed
        self._closing[entry] = asyncio.create_task(self._close(entry, reason), name="durable-closing")
        self._closing[entry].add_done_callback(lambda _: self._closing.pop(entry, None))

    async def _close(self, entry: Entry, reason: str) -> None:
        """The same for children that are not all on the table."""
        try:
            if self.holding is not None:
                wishes: list[Wish] = [
                    (self.holding.held(child.run_id) or child.run_id, Cancel(reason))
                    async for child in matching(self._store, RunFilter(parent_id=entry.run.run_id, open=True))
                    if child.attached and not child.ended
                ]
                self.pipeline.stage(entry, Close(), *wishes)
                return
            async for run in matching(self._store, RunFilter(parent_id=entry.run.run_id, open=True)):
                child = await patiently(partial(self._table.load, run.run_id)) if run.attached else None
                if child is not None and not child.run.ended:
                    self.pipeline.stage(child, Cancel(reason))
                elif child is not None:
                    self.let_go(child)
            self.pipeline.stage(entry, Close())
        except DurableError as error:
            logger.debug("run %s is closed by the next process: %s", entry.run.run_id, error)
