"""What the engine does about a record, once it is durable.

Law: each effect of `core.react` has one method here, and nothing else runs, stops or settles a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from functools import partial

from durable.core.commands import Begin, Fail, Recover, Suspend, Wake
from durable.core.react import REACTIONS, Effect
from durable.core.records import Record
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.body import run_body
from durable.engine.closing import Closing
from durable.engine.entry import Entry, Unit
from durable.engine.kinship import WAITS_FOR_USER, Kinship
from durable.engine.preparation import prepared
from durable.engine.residence import Residence
from durable.engine.scheduler import Scheduler
from durable.engine.services import Services
from durable.engine.table import Table
from durable.errors import DefinitionError, DurableError, StorageError
from durable.tasks.definition import TaskDefinition
from durable.tasks.failure import describe
from durable.tasks.host import UserContext, current_identity, current_scope
from durable.tasks.registry import find_code

logger = logging.getLogger("durable.engine")


class Lifecycle:
    """Acts on durable records."""

    services: Services
    scheduler: Scheduler
    kinship: Kinship
    residence: Residence
    closing: Closing
    table: Table
    #: Where runs are shared: told of a run that can go on, but that nobody holds.
    offer: Callable[[Entry], None]
    #: Why a run goes on that was executing elsewhere: its process has ended; or, where runs are shared, its lease has passed.
    lost_by: str = "crash"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        #: Told of the end of each run.
        self.ended: list[Callable[[Run], None]] = []
        #: Runs whose task no imported module defines, by task.
        self._orphans: dict[str, dict[Entry, None]] = {}
        #: Bodies that ignored being cancelled.
        self.abandoned: set[asyncio.Task[None]] = set()
        #: While records are published: runs that may be let go after that.
        self._left: list[Entry] | None = None
        self._base = copy_context()
        self._base.run(current_scope.set, None)
        self._base.run(current_identity.set, None)
        self._handlers: dict[Effect, Callable[[Entry, Record], None]] = {
            Effect.SCHEDULE: self._schedule,
            Effect.EXECUTE: self._execute,
            Effect.RECEIVE: self._receive,
            Effect.INTERRUPT: self._interrupt,
            Effect.SETTLE: self._settle,
            Effect.ROUSE: self._rouse,
            Effect.REST: self._rest,
            Effect.PAUSE: self._pause,
        }

    def publish(self, unit: Unit) -> None:
        """Act on the records of a unit."""
        hub, handlers = self.services.hub, self._handlers
        results: dict[int, tuple[Entry, list[Record]]] | None = None
        left = self._left = []
        for entry, record in unit.items:
            hub.publish(record)
            for effect in REACTIONS[record.kind]:
                if effect is not Effect.DELIVER:
                    handlers[effect](entry, record)
                elif entry.execution is not None:
                    if results is None:
                        results = {}
                    results.setdefault(id(entry), (entry, []))[1].append(record)
            if entry.task is None:
                left.append(entry)
        self._left = None
        for entry in left:
            self.let_go(entry)
        if results is not None:
            for entry, batch in results.values():
                if entry.execution is not None:
                    entry.execution.committed(batch)

    def let_go(self, entry: Entry) -> None:
        """Forget a run in which nothing goes on and nothing of which is on its way: the next who asks for it gets it from the store."""
        if self._left is not None:
            self._left.append(entry)  # more of what is being published may be about it
            return
        if entry.task is not None or entry.held or not self.services.pipeline.is_durable(entry):
            return
        if not entry.run.ended:
            self.residence.rest(entry)
        elif entry.settled and (entry.run.closed or not (entry.owned or self.closing.is_closing(entry))):
            for relative in self.table.drop(entry):
                self.let_go(relative)

    def forsake(self, entry: Entry) -> None:
        """The run may be in other hands: stop its body, and forget it."""
        self.services.pipeline.lose(entry)
        self._stand_back(entry)
        if entry.execution is not None:
            entry.execution.interrupt()
        elif entry.task is not None:
            entry.task.cancel()
        if entry.task is None:
            self.scheduler.release(entry)
        else:
            self._abandon_later(entry, entry.task)
        for child in list(entry.children):
            child.parent = None  # it tells by a message
        entry.children.clear()
        for relative in self.table.drop(entry):
            self.let_go(relative)

    def go_on(self, entry: Entry) -> None:
        """Let a run that was read from the store go on."""
        run = entry.run
        if entry.lost:
            return
        if run.ended:
            if entry.settled:  # else its end is not durable yet
                self.closing.close(entry)
        elif not entry.owned:
            self.offer(entry)
        elif find_code(run.task, run.version) is None:
            self.orphan(entry)
        elif not self._suspended_for_user(entry):
            self.scheduler.schedule(entry)

    def nudge(self, entry: Entry) -> None:
        """Let a run go on that may have been left where it was; what is on its way goes on when it is durable."""
        if entry.task is None and not entry.slot and self.services.pipeline.is_durable(entry):
            self.go_on(entry)

    def _suspended_for_user(self, entry: Entry) -> bool:
        """Suspend a run that lost its user's identity with its process, and cannot go on without."""
        definition = find_code(entry.run.task, entry.run.version)
        due = entry.run.due
        if definition is None or definition.auto_recover or not entry.restored or due is None:
            return False
        if entry.run.status is Status.WAITING_FOR_CHILDREN:
            return False  # its coordinator is what cannot go on: see `Kinship.coordination`
        self.services.pipeline.stage(entry, Suspend(WAITS_FOR_USER))
        return True

    def begin(self, entry: Entry) -> None:
        """Stage the beginning of a run that has its slot: of its attempt, its coordinator, its recovery, or of the rest of its body."""
        definition, run, pipeline = find_code(entry.run.task, entry.run.version), entry.run, self.services.pipeline
        if definition is None:
            self.scheduler.release(entry)
            self.orphan(entry)
            return
        try:
            if self._suspended_for_user(entry):
                self.scheduler.release(entry)
            elif run.status is Status.READY:
                pipeline.stage(entry, Begin())
            elif run.status is Status.WAITING_FOR_CHILDREN:
                self._coordinate(entry)
            elif run.asleep:
                pipeline.stage(entry, Wake())
            else:
                limit = definition.max_recoveries
                most = self.services.settings.max_recoveries if limit is None else limit
                pipeline.stage(entry, Recover(self.lost_by, most))
        except StorageError:  # the store failed, or another process has the run: that goes on
            if entry.lost:
                self.scheduler.release(entry)

    def _coordinate(self, entry: Entry) -> None:
        """Begin the coordinator of a run whose children have all ended."""
        wishes = self.kinship.coordination(entry)
        if wishes:
            (_, command), *further = wishes
            self.services.pipeline.stage(entry, command, *further)
        else:
            error = DefinitionError(
                f"task {entry.run.task!r} has no on_children_complete any more, which run {entry.run.run_id} needs"
            )
            self.services.pipeline.stage(entry, Fail(describe(error, self.services.codec), retryable=False))
        if not entry.run.executing:
            self.scheduler.release(entry)  # the coordinator is a run of its own

    def task_defined(self, name: str) -> None:
        """A module that defines this task was imported: its orphans go on."""
        for entry in self._orphans.pop(name, ()):
            self.go_on(entry)

    def orphan(self, entry: Entry) -> None:
        """The run waits until a module is imported that defines its task, in its version."""
        run = entry.run
        orphans = self._orphans.setdefault(run.task, {})
        self.scheduler.forget(entry)
        if run.due is not None and entry not in orphans:
            version = "" if run.version is None else f" in version {run.version!r}"
            said = "run %s waits: no imported module defines its task %r%s"
            logger.warning(said, run.run_id, run.task, version, extra={"run_id": run.run_id})
        orphans[entry] = None

    @property
    def orphans(self) -> dict[str, int]:
        """How many runs wait for each task and version."""
        waiting = (entry.run for entries in self._orphans.values() for entry in entries)
        return dict(Counter(run.task if run.version is None else f"{run.task} {run.version}" for run in waiting))

    @property
    def orphaned(self) -> int:
        """How many runs wait for their task."""
        return sum(map(len, self._orphans.values()))

    # --- effects ----------------------------------------------------------------------------------------------------------------

    def _schedule(self, entry: Entry, record: Record) -> None:
        entry.settled = False
        if entry.run.due is None or self.services.closing.is_set():
            return
        self.go_on(entry)

    def _execute(self, entry: Entry, record: Record) -> None:
        definition = find_code(entry.run.task, entry.run.version)
        if not entry.run.executing or definition is None or entry.lost:
            if entry.task is None:
                self.scheduler.release(entry)
            if definition is None:
                self.orphan(entry)
            return
        context = self._base.copy()
        identity = entry.identity or (UserContext(entry.run.user) if entry.run.user else None)
        if identity is not None:
            context.run(current_identity.set, identity)
        self.services.observing.enter(context, entry.run.run_id)
        previous = entry.task
        entry.task = self._loop.create_task(self._attempt(entry, definition, record, previous), context=context)
        # One that is cancelled before it has begun says nothing itself.
        entry.task.add_done_callback(partial(self._over, entry))

    async def _attempt(
        self, entry: Entry, definition: TaskDefinition, record: Record, previous: asyncio.Task[None] | None
    ) -> None:
        task = asyncio.current_task()
        try:
            if previous is not None and not previous.done():
                await asyncio.wait((previous,))  # two attempts of one run never overlap
            handled = False
            while execution := await prepared(self.services, entry, definition, record, handled=handled):
                if entry.lost:
                    return
                entry.execution = execution
                handled = await run_body(execution)
                del execution.context  # what leads back: see `Delivery.close`
                execution.body = None
                if not handled:
                    return
        except DurableError as error:
            run_id = entry.run.run_id
            logger.error("run %s cannot be executed now: %s", run_id, error, extra={"run_id": run_id})
        finally:
            self._over(entry, task)

    def _over(self, entry: Entry, task: asyncio.Task[None] | None) -> None:
        if entry.task is task and task is not None:
            entry.task = None
            entry.execution = None
            self._body_ended(entry)

    def _body_ended(self, entry: Entry) -> None:
        self.scheduler.release(entry)
        self.residence.unpaused(entry)
        if entry.lost:
            return
        if not entry.run.ended and not entry.run.executing and not self.services.closing.is_set():
            self.go_on(entry)  # it may have been made ready again while its old body was still ending
        self.let_go(entry)

    def _receive(self, entry: Entry, record: Record) -> None:
        if entry.execution is not None:
            entry.execution.received(record.name)
        elif entry.run.asleep:
            self._rouse(entry, record)

    def _rouse(self, entry: Entry, record: Record) -> None:
        """Something came that the run waits for."""
        if not self.services.closing.is_set() and entry.task is None and not entry.run.executing:
            self.go_on(entry)

    def _pause(self, entry: Entry, record: Record) -> None:
        self.residence.waits(entry, record.head.get("until"))

    def _rest(self, entry: Entry, record: Record) -> None:
        """Its body was stopped when this was staged: see `Residence`."""

    def _interrupt(self, entry: Entry, record: Record) -> None:
        self._stand_back(entry)
        if entry.execution is not None:
            entry.execution.interrupt()
        elif entry.task is not None:
            entry.task.cancel()
        if entry.task is not None:
            self._abandon_later(entry, entry.task)

    def _abandon_later(self, entry: Entry, task: asyncio.Task[None]) -> None:
        self._loop.call_later(self.services.settings.cancel_grace_seconds, self._abandon, entry, task)

    def _abandon(self, entry: Entry, task: asyncio.Task[None]) -> None:
        if task.done():
            return
        logger.warning(
            "the body of run %s (task %s) ignores that it was stopped; it is abandoned and can record nothing more",
            entry.run.run_id, entry.run.task, extra={"run_id": entry.run.run_id},
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
        for told in self.ended:
            told(run)
        self.closing.close(entry)
        parent, entry.parent = entry.parent, None  # the parent may leave memory, and come back as another entry
        if parent is not None:
            parent.children.discard(entry)
            self.let_go(parent)
