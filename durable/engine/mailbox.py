"""The mailbox: messages from other executors to runs that are held here, or by nobody.

Law: a message is gone in the commit by which its run obeys it, or which says why not: it counts once, whatever crashes.
"""

from __future__ import annotations

import logging

from durable.core.commands import ChildEnded, Watch
from durable.core.messages import Answer, Message
from durable.engine.entry import Entry
from durable.engine.following import Following
from durable.engine.holding import HoldingTable
from durable.engine.kinship import told_of_end
from durable.engine.lifecycle import Lifecycle
from durable.engine.pipeline import Pipeline
from durable.errors import DurableError, StorageError
from durable.store.shared import Known, SharedStore

logger = logging.getLogger("durable.engine")

#: Messages that are read at once.
PAGE = 500


class Mailbox:
    """Reads messages and has runs obey them."""

    def __init__(
        self, store: SharedStore, table: HoldingTable, pipeline: Pipeline, lifecycle: Lifecycle, following: Following
    ) -> None:
        self._store = store
        self._table = table
        self._pipeline = pipeline
        self._lifecycle = lifecycle
        self._following = following

    async def look(self, known: list[Known]) -> bool:
        """Obey what messages there are; tell whether there may be more."""
        messages = await self._store.mail(known, PAGE)
        by_run: dict[str, list[Message]] = {}
        for message in messages:
            by_run.setdefault(message.run_id, []).append(message)
        missing = [run_id for run_id in by_run if self._table.held(run_id) is None]
        if missing:
            await self._table.take(missing)
        obeying: list[Entry] = []
        try:
            for run_id, waiting in by_run.items():
                entry = self._table.held(run_id)
                if entry is None:
                    continue  # somebody else was quicker
                entry.held += 1
                obeying.append(entry)
                for message in waiting:
                    await self._obey(entry, message)
        finally:
            await self._settle(obeying)
        return len(messages) == PAGE and bool(obeying)

    async def _obey(self, entry: Entry, message: Message) -> None:
        command = message.command
        answer = Answer(message)
        try:
            if isinstance(command, ChildEnded):
                await self._child_ended(entry, command, answer)
            elif isinstance(command, Watch) and entry.run.ended:
                self._pipeline.answer(entry, answer, Message(command.by, told_of_end(entry.run)))
            else:
                self._pipeline.stage(entry, command, answer=answer)
        except StorageError:
            return  # the run is in other hands, or the store failed: who holds it next obeys
        except DurableError as error:
            try:
                self._pipeline.answer(entry, Answer(message, error.code, str(error)))
            except DurableError:
                return

    async def _child_ended(self, entry: Entry, command: ChildEnded, answer: Answer) -> None:
        """A child has ended that another executor had: the body that awaits it here records what came of it."""
        child = await self._store.find(command.child_id) if command.child_id in entry.awaits else None
        known = entry.awaits.get(command.child_id)
        if known is not None and child is not None and child.ended:
            if not known.run.ended:
                known.run.become(child)  # from here on the body is not put to sleep before it knows
            outcome = known.outcome(child)
            if outcome is not None:
                self._pipeline.stage(entry, outcome, answer=answer)
                return
        self._pipeline.stage(entry, command, answer=answer)
        if child is not None and child.ended:  # else it has been tried again since
            self._following.told(child)

    async def _settle(self, entries: list[Entry]) -> None:
        told = []
        for entry in entries:
            try:
                while not self._pipeline.is_durable(entry):
                    await self._pipeline.durable(entry)
                told.append(entry.run.run_id)
            except DurableError as error:
                logger.debug("run %s is obeyed by who holds it next: %s", entry.run.run_id, error)
            finally:
                entry.held -= 1
            if not entry.lost:
                self._lifecycle.nudge(entry)
                self._lifecycle.let_go(entry)
        if told:
            self._store.notify(runs=told)
