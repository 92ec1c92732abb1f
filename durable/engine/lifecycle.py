"""What the engine does about a record, once it is durable.

Law: each effect of `core.react` has one method here, and nothing else runs, stops or settles a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context
from functools import partial

from durable.core.commands import Begin, Fail, Recover, Suspend, Wake
from durable.core.memo import Memo
from durable.core.react import REACTIONS, Effect
from durable.core.records import Kind, Record
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.body import run_body
from durable.engine.closing import Closing
from durable.engine.entry import Entry, Unit
from durable.engine.execution import Execution
from durable.engine.kinship import WAITS_FOR_USER, Kinship
from durable.engine.residence import Residence
from durable.engine.scheduler import Scheduler
from durable.engine.services import Services
from durable.engine.table import Table
from durable.errors import DefinitionError, DurableError, RepositoryUnavailableError, StorageError
from durable.tasks.definition import TaskDefinition
from durable.tasks.failure import describe
from durable.tasks.host import UserContext, current_identity, current_scope
from durable.tasks.registry import find_task

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
    #: Where runs are shared: told of the end of a run.
    ended: Callable[[Run], None] | None = None

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
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
        elif find_task(run.task) is None:
            self.orphan(entry)
        elif not self._suspended_for_user(entry):
            self.scheduler.schedule(entry)

    def nudge(self, entry: Entry) -> None:
        """Let a run go on that may have been left where it was; what is on its way goes on when it is durable."""
        if entry.task is None and not entry.slot and self.services.pipeline.is_durable(entry):
            self.go_on(entry)

    def _suspended_for_user(self, entry: Entry) -> bool:
        """Suspend a run that lost its user's identity with its process, and cannot go on without."""
        definition = find_task(entry.run.task)
        due = entry.run.due
        if definition is None or definition.auto_recover or not entry.restored or due is None:
            return False
        if entry.run.status is Status.WAITING_FOR_CHILDREN:
            return False  # its coordinator is what cannot go on: see `Kinship.coordination`
        self.services.pipeline.stage(entry, Suspend(WAITS_FOR_USER))
        return True

    def begin(self, entry: Entry) -> None:
        """Stage the beginning of a run that has its slot: of its attempt, its coordinator, its recovery, or of the rest of its body."""
        definition, run, pipeline = find_task(entry.run.task), entry.run, self.services.pipeline
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
                pipeline.stage(entry, Recover("crash", most))
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
        """The run waits until a module that defines its task is imported."""
        run = entry.run
        orphans = self._orphans.setdefault(run.task, {})
        if run.due is not None and entry not in orphans:
            said = "run %s waits: no imported module defines its task %r"
            logger.warning(said, run.run_id, run.task, extra={"run_id": run.run_id})
        orphans[entry] = None

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
        definition = find_task(entry.run.task)
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
            execution = await self._prepared(entry, definition, record)
            if execution is None or entry.lost:
                return
            entry.execution = execution
            await run_body(execution)
            del execution.context  # what leads back: see `Delivery.close`
            execution.body = None
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

    async def _prepared(self, entry: Entry, definition: TaskDefinition, record: Record) -> Execution | None:
        """The attempt with what is on record of it."""
        if record.kind is Kind.STARTED and record.seq == 2:
            return Execution(self.services, entry, definition, Memo(), False) if entry.run.executing else None
        history = [known for known in await self._history(entry, record) if known.seq <= record.seq]
        returned_seq = entry.run.returned_seq
        past = [known for known in history if known.seq <= returned_seq]
        history = history[len(past) :]  # a coordinator's calls are other calls than the body's
        beginning = Kind.COORDINATING if returned_seq else Kind.STARTED
        attempt = [known for known in history if known.attempt == record.attempt and known.seq < record.seq]
        known_kinds = [known.kind for known in attempt]
        begun = [*known_kinds, record.kind].count(beginning)
        recovered = (
            begun > 1
            or Kind.RECOVERED in (record.kind, *known_kinds)
            or not {Kind.RELEASED, Kind.RESUMED}.isdisjoint(known_kinds)
        )
        if not entry.run.executing:
            return None
        return Execution(
            self.services, entry, definition, Memo(history, record.attempt, past), recovered,
            began=_began(record, attempt), returned=past[-1].payload if past else None,
        )  # fmt: skip

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
                run_id = entry.run.run_id
                logger.warning("run %s waits for its history: %s", run_id, error, extra={"run_id": run_id})
            await asyncio.sleep(wait)
            wait = min(2 * wait, 10.0)

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
        if self.ended is not None:
            self.ended(run)
        self.closing.close(entry)
        parent, entry.parent = entry.parent, None  # the parent may leave memory, and come back as another entry
        if parent is not None:
            parent.children.discard(entry)
            self.let_go(parent)


def _began(awake: Record, attempt: list[Record]) -> float | None:
    """When the time of an attempt began that goes on after a wait; None for a record by which it begins."""
    if awake.kind is not Kind.AWAKE:
        return None
    for record in reversed(attempt):
        if record.kind in (Kind.STARTED, Kind.COORDINATING, Kind.RECOVERED):
            return record.at
        if record.kind in (Kind.RELEASED, Kind.RESUMED):
            break
    return awake.at
