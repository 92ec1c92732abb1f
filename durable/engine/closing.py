"""Closing: what a run that has ended still owes its children.

Law: a run that has ended is closed once its unfinished children are cancelled; a crash in between is made good by the next process, which
finds the run not closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from durable.core.commands import Cancel, Close
from durable.core.messages import Message
from durable.core.query import RunFilter
from durable.engine.entry import Entry
from durable.engine.holding import HoldingTable
from durable.engine.pipeline import Pipeline
from durable.engine.services import matching, patiently
from durable.engine.table import Table
from durable.errors import DurableError, LeaseLostError
from durable.store.base import Store

#: Children that are read at once.
PAGE = 5_000
#: How long to wait before looking whether children that others hold have ended: at first, and at most, seconds.
FIRST_LOOK_SECONDS, LOOK_SECONDS_MAX = 0.005, 0.5

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
        self.holding = table if isinstance(table, HoldingTable) else None
        #: What closes runs that have ended, by run.
        self._closing: dict[Entry, asyncio.Task[None]] = {}

    async def closed(self, entry: Entry) -> None:
        """Wait until the run is closed in the store, where its children are looked up, if it is being closed."""
        while True:
            closing = self._closing.get(entry)
            if closing is not None:
                await asyncio.wait((closing,))
            elif (entry.run.returned_seq or self.holding is not None) and not self.pipeline.is_durable(entry):
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
        self._closing[entry].add_done_callback(lambda _: self._done(entry))

    def is_closing(self, entry: Entry) -> bool:
        """Whether the run is being closed here."""
        return entry in self._closing

    def _done(self, entry: Entry) -> None:
        self._closing.pop(entry, None)
        self.let_go(entry)

    async def _close(self, entry: Entry, reason: str) -> None:
        """The same for children that are not all on the table."""
        try:
            if self.holding is not None:
                if await self._cancel_all(entry, Cancel(reason), self.holding):
                    self.pipeline.stage(entry, Close())
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

    async def _cancel_all(self, entry: Entry, cancel: Cancel, holding: HoldingTable) -> bool:
        """Cancel children of which other processes may hold some, until none is left that has not ended; False where others did."""
        told: set[str] = set()
        wait = FIRST_LOOK_SECONDS
        wanted = RunFilter(parent_id=entry.run.run_id, open=True, limit=PAGE)
        while left := [run.run_id async for run in matching(self._store, wanted) if run.attached and not run.ended]:
            children, elsewhere = await patiently(partial(holding.look_up, left))
            now = await patiently(partial(self._store.find, entry.run.run_id))
            if now is None or now.closed or not now.ended:  # it may be tried again by now, and its children with it
                for child in children:
                    self.let_go(child)
                return False
            for child in children:
                if child.parent is None and entry.owned:
                    child.parent = entry  # which need not be told by a message
                with suppress(LeaseLostError):  # another process has it since: it is looked up again
                    self.pipeline.stage(child, cancel)
            if fresh := [run_id for run_id in elsewhere if run_id not in told]:
                self.pipeline.post(entry, [Message(run_id, cancel) for run_id in fresh])
                told.update(fresh)
            for child in children:
                with suppress(LeaseLostError):
                    await self.pipeline.durable(child)
                self.let_go(child)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LOOK_SECONDS_MAX)
        return True
