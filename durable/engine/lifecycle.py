"""What the engine does about a record, once it is durable.

Law: each effect of `core.react` has one method here, and nothing else runs, stops or settles a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context

from durable.core.commands import Begin, Cancel, Recover
from durable.core.memo import Memo
from durable.core.react import REACTIONS, Effect
from durable.core.records import Kind, Record
from durable.core.status import Status
from durable.engine.body import run_body
from durable.engine.entry import Entry, Unit
from durable.engine.execution import Execution
from durable.engine.scheduler import Scheduler
from durable.engine.services import Services
from durable.errors import DurableError, RepositoryUnavailableError, StorageError
from durable.tasks.definition import TaskDefinition
from durable.tasks.host import UserContext, current_identity, current_scope
from durable.tasks.registry import find_task

logger = logging.getLogger("durable.engine")


class Lifecycle:
    """Acts on durable records."""

    services: Services
    scheduler: Scheduler

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries
        self._loop = asyncio.get_running_loop()
        #: Runs whose task no imported module defines, by task.
        self._orphans: dict[str, dict[Entry, None]] = {}
        #: Bodies that ignored being cancelled.
        self.abandoned: set[asyncio.Task[None]] = set()
        self._base = copy_context()
        self._base.run(current_scope.set, None)
        self._base.run(current_identity.set, None)
        self._handlers: dict[Effect, Callable[[Entry, Record], None]] = {
            Effect.SCHEDULE: self._schedule,
            Effect.EXECUTE: self._execute,
            Effect.RECEIVE: self._receive,
            Effect.INTERRUPT: self._interrupt,
            Effect.SETTLE: self._settle,
        }

    def publish(self, unit: Unit) -> None:
        """Act on the records of a unit."""
        hub, handlers = self.services.hub, self._handlers
        results: dict[int, tuple[Entry, list[Record]]] | None = None
        for entry, record in unit.items:
            hub.publish(record)
            for effect in REACTIONS[record.kind]:
                if effect is not Effect.DELIVER:
                    handlers[effect](entry, record)
                elif entry.execution is not None:
                    if results is None:
                        results = {}
                    results.setdefault(id(entry), (entry, []))[1].append(record)
            if entry.settled:
                self.let_go(entry)
        if results is not None:
            for entry, batch in results.values():
                if entry.execution is not None:
                    entry.execution.committed(batch)

    def let_go(self, entry: Entry) -> None:
        """Forget a run that has ended, once nothing of it is on its way: the next who asks for it gets it from the store."""
        run_id = entry.run.run_id
        if (
            entry.run.ended
            and entry.settled
            and entry.task is None
            and self._entries.get(run_id) is entry
            and self.services.pipeline.is_durable(entry)
        ):
            del self._entries[run_id]

    def begin(self, entry: Entry) -> None:
        """Stage the beginning of a run that has its slot: of its attempt, or of its recovery."""
        definition = find_task(entry.run.task)
        if definition is None:
            self.scheduler.release(entry)
            self.orphan(entry)
            return
        try:
            if entry.run.status is Status.READY:
                self.services.pipeline.stage(entry, Begin())
            else:
                limit = definition.max_recoveries
                most = self.services.settings.max_recoveries if limit is None else limit
                self.services.pipeline.stage(entry, Recover("crash", most))
        except StorageError:
            return  # the store failed; the next process goes on

    def task_defined(self, name: str) -> None:
        """A module that defines this task was imported: its orphans go on."""
        for entry in self._orphans.pop(name, ()):
            if entry.run.status in (Status.READY, Status.RUNNING):
                self.scheduler.schedule(entry)

    def orphan(self, entry: Entry) -> None:
        """The run waits until a module that defines its task is imported."""
        self._orphans.setdefault(entry.run.task, {})[entry] = None

    @property
    def orphaned(self) -> int:
        """How many runs wait for their task."""
        return sum(map(len, self._orphans.values()))

    # --- effects ----------------------------------------------------------------------------------------------------------------

    def _schedule(self, entry: Entry, record: Record) -> None:
        if entry.run.status is not Status.READY or self.services.closing.is_set():
            return
        entry.settled = False
        if find_task(entry.run.task) is None:
            self.orphan(entry)
        else:
            self.scheduler.schedule(entry)

    def _execute(self, entry: Entry, record: Record) -> None:
        definition = find_task(entry.run.task)
        if entry.run.status is not Status.RUNNING or definition is None:
            self.scheduler.release(entry)
            if definition is None:
                self.orphan(entry)
            return
        context = self._base.copy()
        identity = entry.identity or (UserContext(entry.run.user) if entry.run.user else None)
        if identity is not None:
            context.run(current_identity.set, identity)
        previous = entry.task
        entry.task = self._loop.create_task(self._attempt(entry, definition, record, previous), context=context)

    async def _attempt(
        self, entry: Entry, definition: TaskDefinition, record: Record, previous: asyncio.Task[None] | None
    ) -> None:
        task = asyncio.current_task()
        try:
            if previous is not None and not previous.done():
                await asyncio.wait((previous,))  # two attempts of one run never overlap
            fresh = record.kind is Kind.STARTED and record.seq == 2
            if fresh:
                memo, recovered = Memo(), False
            else:
                history = await self._history(entry, record)
                history = [known for known in history if known.seq <= record.seq]
                memo = Memo(history, record.attempt)
                recovered = record.kind is Kind.RECOVERED or any(
                    known.kind is Kind.STARTED and known.attempt == record.attempt and known.seq < record.seq
                    for known in history
                )
            if entry.run.status is not Status.RUNNING:
                return
            execution = Execution(self.services, entry, definition, memo, recovered)
            entry.execution = execution
            await run_body(execution)
            del execution.context  # what leads back: see `Delivery.close`
            execution.body = None
        except DurableError as error:
            logger.error("run %s cannot be executed now: %s", entry.run.run_id, error)
        finally:
            if entry.task is task:
                entry.task = None
                entry.execution = None
                self._body_ended(entry)

    async def _history(self, entry: Entry, record: Record) -> list[Record]:
        """The run's records; waits for the repository while it is away."""
        wait = 0.25
        while True:
            history, entry.history = entry.history, None
            if history is not None and history[-1].seq + 1 == record.seq:
                return history  # read ahead, and nothing but the beginning of this attempt came since
            try:
                return await self.services.store.history(entry.run.run_id)
            except RepositoryUnavailableError as error:
                logger.warning("run %s waits for its history: %s", entry.run.run_id, error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, 10.0)

    def _body_ended(self, entry: Entry) -> None:
        self.scheduler.release(entry)
        if entry.settled:
            self.let_go(entry)
        elif entry.run.status is Status.READY and not self.services.closing.is_set():
            self.scheduler.schedule(entry)  # it was made ready again while its old body was still ending

    def _receive(self, entry: Entry, record: Record) -> None:
        if entry.execution is not None:
            entry.execution.received(record.name)

    def _interrupt(self, entry: Entry, record: Record) -> None:
        self._stand_back(entry)
        if entry.execution is not None:
            entry.execution.interrupt()
        elif entry.task is not None:
            entry.task.cancel()
        if entry.task is not None:
            self._loop.call_later(self.services.settings.cancel_grace_seconds, self._abandon, entry, entry.task)

    def _abandon(self, entry: Entry, task: asyncio.Task[None]) -> None:
        if task.done():
            return
        logger.warning(
            "the body of run %s (task %s) ignores that it was stopped; it is abandoned and can record nothing more",
            entry.run.run_id, entry.run.task,
        )  # fmt: skip
        self.abandoned.add(task)
        task.add_done_callback(self.abandoned.discard)
        if entry.task is task:
            entry.task = None
            entry.execution = None
            self._body_ended(entry)

    def _stand_back(self, entry: Entry) -> None:
        """The run no longer wants to begin."""
        self.scheduler.forget(entry)
        self._orphans.get(entry.run.task, {}).pop(entry, None)

    def _settle(self, entry: Entry, record: Record) -> None:
        run = entry.run
        if entry.task is None:
            self.scheduler.release(entry)
        if not run.ended:
            return  # retried before its end could be told: it goes on
        entry.settled = True
        self._stand_back(entry)
        if entry.waiters:
            ended = run.copy()
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_result(ended)
            entry.waiters.clear()
        for child_id in list(entry.children):
            child = self._entries.get(child_id)
            if child is not None and not child.run.ended:
                self.services.pipeline.stage(child, Cancel(f"its parent {run.run_id} is {run.status}"))
        if run.parent_id is not None:
            parent = self._entries.get(run.parent_id)
            if parent is not None:
                parent.children.discard(run.run_id)
