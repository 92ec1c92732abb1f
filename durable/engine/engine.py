"""`Engine`: one application's runs: the host of handles and tasks, and the place where the parts of `engine/` meet.

Law: it opens and closes the parts in order; rules live in `core/`, and what follows from a record in `lifecycle.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from durable.clock import Clock, Entropy
from durable.codec import Codec, Pickled, TaggedJson
from durable.config import Config, Limits
from durable.core.commands import Cancel, Discard, Release, Resume, Send, Suspend
from durable.core.query import RunFilter
from durable.core.records import Call, Record
from durable.core.run import Run
from durable.engine.closing import Closing
from durable.engine.committing import commit_to, write_to
from durable.engine.control import Control
from durable.engine.divergence import known_call
from durable.engine.entry import Entry
from durable.engine.invoke import Invoker
from durable.engine.kinship import Kinship
from durable.engine.lifecycle import Lifecycle
from durable.engine.pipeline import Pipeline
from durable.engine.reading import Reading
from durable.engine.recovery import load
from durable.engine.residence import QUEUED_MAX, Residence
from durable.engine.revival import Revival
from durable.engine.scheduler import Scheduler
from durable.engine.services import Services
from durable.engine.sharing import Sharing
from durable.engine.starting import Starter
from durable.engine.stopping import stop_bodies
from durable.engine.table import Table
from durable.engine.turns import Turns
from durable.errors import (
    AppNotOpenError,
    LogFencedError,
    ShuttingDownError,
    StorageError,
    TransitionError,
)
from durable.events.hub import Hub
from durable.store.base import Store
from durable.store.shared import is_shared
from durable.tasks.child import Child, register_children
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import current_scope
from durable.tasks.registry import find_task, on_new_task


class Engine:
    """Executes the runs of a store."""

    def __init__(
        self, store: Store, config: Config, limits: Limits, clock: Clock, entropy: Entropy, *, execute: bool = True
    ) -> None:
        self._store = store
        self._config = config
        self._limits = limits
        self._clock = clock
        self._entropy = entropy
        self._codec = TaggedJson(config.payload)
        register_children(self._codec)
        self._table: Table
        self._kinship: Kinship
        self._residence: Residence
        self._revival: Revival
        self._bringing: asyncio.Task[None] | None = None
        self._hub = Hub()
        self._execute = execute
        self._sharing: Sharing | None = None
        self._control: Control
        self._reading = Reading(store, self._hub, self._is_over)
        self._state = "new"
        self._services: Services
        self._lifecycle: Lifecycle
        self._starter: Starter
        self._closing: asyncio.Task[None] | None = None
        self._task_defined: Callable[[TaskDefinition], None] | None = None
        #: See `Services.on_step`; set before `open`.
        self.on_step: Callable[[str, Call], None] | None = None

    @property
    def codec(self) -> TaggedJson:
        """The codec of inputs, results and events."""
        return self._codec

    @property
    def store(self) -> Store:
        """Where runs are kept."""
        return self._store

    # --- opening and closing ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store and let every run that had not ended go on."""
        if self._state in ("opening", "open", "closing"):
            raise AppNotOpenError(f"this application is {self._state} already")
        self._state = "opening"
        try:
            await self._store.open()
            try:
                await self._start_up()
            except BaseException:
                await self._store.close()
                raise
        except BaseException:
            self._state = "closed"
            raise

    async def _start_up(self) -> None:
        settings = self._config.engine
        sharing = self._sharing = self._share()
        lifecycle = self._lifecycle = Lifecycle()
        table = self._table = lifecycle.table = (
            Table(self._store, self._read_later) if sharing is None else sharing.table
        )
        kinship = self._kinship = lifecycle.kinship = Kinship(table, self._store, self._codec, settings)
        closing = self._children_closing = lifecycle.closing = Closing(table, self._store)
        kinship.let_go = closing.let_go = lifecycle.let_go
        kinship.go_on, self._revival = lifecycle.go_on, Revival(kinship, closing)
        kinship.revive_awaited = self._revival.revive_awaited
        residence = self._residence = lifecycle.residence = (
            Residence(table, self._store, self._clock, settings) if sharing is None else sharing.residence(settings)
        )
        pipeline = kinship.pipeline = closing.pipeline = residence.pipeline = self._pipeline(lifecycle, kinship)
        max_running = self._limits.max_running if self._execute else 0
        scheduler = Scheduler(self._clock, max_running, lifecycle.begin, residence.crowded)
        lifecycle.scheduler = kinship.scheduler = residence.scheduler = scheduler
        lifecycle.services = self._services = Services(
            host=self, families=kinship, residence=residence, store=self._store, pipeline=pipeline, hub=self._hub,
            turns=Turns(asyncio.get_running_loop()),
            invoker=Invoker(settings.thread_workers, settings.process_workers), codec=self._codec, codecs=self._codec_of,
            clock=self._clock, entropy=self._entropy, settings=settings, has_step=known_call, closing=asyncio.Event(), on_step=self.on_step,
        )  # fmt: skip
        self._control = Control(table, pipeline, lifecycle, self._revival, sharing, self._check_open)
        self._starter = kinship.starter = Starter(
            table, store=self._store, pipeline=pipeline, scheduler=scheduler,
            codec=self._codec, clock=self._clock, entropy=self._entropy,
        )  # fmt: skip
        if sharing is None:
            await self._take_over(lifecycle)
        else:
            sharing.connect(lifecycle, pipeline, scheduler)
            pipeline.open()
            await sharing.open()
            self._state = "open"
        loop = asyncio.get_running_loop()

        def task_defined(task: TaskDefinition) -> None:
            loop.call_soon_threadsafe(self._defined, task.name)

        self._task_defined = task_defined  # the registry holds it weakly: it lives as long as this engine
        on_new_task(task_defined)

    def _share(self) -> Sharing | None:
        if is_shared(self._store):
            return Sharing(self._store, self._hub, self._clock, self._entropy, execute=self._execute)
        return None

    def _pipeline(self, lifecycle: Lifecycle, kinship: Kinship) -> Pipeline:
        sharing = self._sharing
        publish, entailed, records_max = lifecycle.publish, kinship.entailed, self._config.engine.history_records_max
        if sharing is None:
            return Pipeline(
                commit_to(self._store), self._clock, records_max,
                publish=publish, entailed=entailed, on_failure=self._store_failed,
            )  # fmt: skip
        return Pipeline(
            write_to(sharing.store, self._entropy), self._clock, records_max,
            publish=sharing.publish, entailed=entailed, on_failure=self._store_failed, on_refused=sharing.refused,
            check_lease=sharing.check_lease, patience_seconds=sharing.store.lease_seconds,
            lanes=len(sharing.store.shards), lane_of=sharing.store.shard_of if len(sharing.store.shards) > 1 else None,
        )  # fmt: skip

    async def _take_over(self, lifecycle: Lifecycle) -> None:
        """Let every run go on that had not ended: the store is this process's own."""
        now = self._clock.now()
        due = RunFilter(open=True, due_by=now)
        left = await load(self._store, self._table, due, self._limits.max_running, QUEUED_MAX)
        self._residence.open(now, await self._store.next_due(now))
        self._services.pipeline.open()
        self._state = "open"
        for entry in self._table:
            lifecycle.go_on(entry)
        if left is not None:
            self._bringing = asyncio.create_task(self._residence.bring(left), name="durable-recovery")

    def _defined(self, name: str) -> None:
        self._lifecycle.task_defined(name)
        if self._sharing is not None:
            self._sharing.task_defined()

    def _is_over(self) -> bool:
        return self._state != "open" or self._services.pipeline.failure is not None

    def _read_later(self, entry: Entry) -> None:
        """A run was read from the store after the opening, or beside it."""
        if self._state == "open":
            self._lifecycle.go_on(entry)

    async def close(self) -> None:
        """Take no new work, let bodies finish within the grace, hand unfinished runs back, flush.

        It goes on to its end, also when who asked for it no longer waits; who asks again waits for the same end.
        """
        if self._state == "open":
            self._state = "closing"
            self._closing = asyncio.create_task(self._close(), name="durable-close")
        if self._state == "closing" and self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        services = self._services
        services.closing.set()
        self._lifecycle.scheduler.closed = True
        if self._bringing is not None:
            self._bringing.cancel()
        if self._sharing is not None:
            await self._sharing.stop()
        await self._residence.close()
        await self._children_closing.stop()
        self._hub.wake_all()
        try:
            await stop_bodies(self._table, self._config.engine)
            if services.pipeline.failure is None:
                for entry in self._table:
                    self._lifecycle.scheduler.forget(entry)
                    if entry.run.executing and find_task(entry.run.task) is not None:
                        services.pipeline.stage(entry, Release())
            await services.pipeline.close()
        finally:
            if self._sharing is not None:
                await self._sharing.close(
                    ShuttingDownError("the application was closed before the run ended: it goes on elsewhere")
                )
            self._state = "closed"
            for entry in self._table:
                entry.tell(ShuttingDownError("the application was closed before the run ended: the next open goes on"))
                entry.definition = None  # who closed an application may keep it, and need not keep its tasks
            self._hub.wake_all()
            self._task_defined = None
            await services.invoker.close()
            await self._store.close()

    def _store_failed(self, error: StorageError) -> None:
        """The store takes nothing more: stop the bodies and tell everybody who waits."""
        for entry in self._table:
            if entry.execution is not None:
                entry.execution.interrupt()
            elif entry.task is not None:
                entry.task.cancel()
            entry.tell(LogFencedError(f"the store failed, the run goes on in the next process: {error}"))
        self._hub.wake_all()

    def _codec_of(self, name: str | None) -> Codec:
        return self._codec if name in (None, "json") else Pickled(self._config.payload)

    # --- starting ---------------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._state != "open":
            if self._state == "closing":
                raise ShuttingDownError("the application is closing and takes no new work")
            raise AppNotOpenError("the application is not open: use `async with Durable(...) as app:`")

    def check_readable(self) -> None:
        """Raise `AppNotOpenError` where there is no open store to ask."""
        if self._state not in ("open", "closing"):
            raise AppNotOpenError("the application is not open: use `async with Durable(...) as app:`")

    async def start_run(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, str | None]:
        """Start a run; return its id and key."""
        self._check_open()
        return await self._starter.start(task, options, task.facts.bind(args, kwargs, task.name))

    async def start_run_on(
        self,
        connection: object,
        task: TaskDefinition,
        options: StartOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[str, str | None]:
        """Start a run in the caller's own transaction; return its id and key."""
        self._check_open()
        return await self._starter.start_on(connection, task, options, task.facts.bind(args, kwargs, task.name))

    # --- asking -----------------------------------------------------------------------------------------------------------------

    def definition_of(self, name: str) -> TaskDefinition | None:
        """The task of this name, where an imported module defines it."""
        return find_task(name)

    async def find_run(self, run_id: str) -> Run:
        """The run as it was last acknowledged."""
        return await self._reading.find_run(run_id)

    async def wait_ended(self, run_id: str) -> Run:
        """Wait until the run has ended."""
        if self._sharing is not None:
            if self._state == "closed":
                raise AppNotOpenError(f"run {run_id} cannot be waited for: the application is closed")
            scope = current_scope.get()
            return await self._sharing.ended(run_id, in_body=scope is not None and scope.host is self)
        entry = self._table.get(run_id)
        if entry is None or entry.settled:
            run = await self.find_run(run_id)
            if run.ended:
                return run
        if self._state == "closed":
            raise AppNotOpenError(f"run {run_id} has not ended, and the application that executes it is closed")
        entry = await self._control.load(run_id)
        if entry.settled:
            self._lifecycle.let_go(entry)
            return await self.find_run(run_id)  # it ended in between
        failure = self._services.pipeline.failure
        if failure is not None:
            raise LogFencedError(f"the store failed, the run goes on in the next process: {failure}") from failure
        waiter: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        scope = current_scope.get()
        in_body = scope is not None and scope.host is self
        if in_body:
            self._lifecycle.scheduler.hasten(entry)
        try:
            return await waiter
        finally:
            entry.awaited -= in_body
            if waiter in entry.waiters:  # it was cancelled; but the end may have been told to all in the meantime
                entry.waiters.remove(waiter)
            self._lifecycle.let_go(entry)

    def records(self, run_id: str, after: int) -> AsyncIterator[Record]:
        """All records above `after`: those that are there, then live ones, until the run has ended."""
        return self._reading.records(run_id, after)

    async def children_of(self, run_id: str) -> Sequence[Run]:
        """The runs that this run started, in order; not the one that is its coordinator."""
        return await self._reading.children_of(run_id)

    def statistics(self) -> dict[str, int]:
        """How much is going on."""
        scheduler = self._lifecycle.scheduler
        return {
            "loaded": len(self._table),
            "running": scheduler.running,
            "queued": scheduler.queued,
            "orphaned": self._lifecycle.orphaned,
            "subscribers": len(self._hub),
        }

    # --- control ----------------------------------------------------------------------------------------------------------------

    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        """Cancel the run and all that belongs to it."""
        await self._control.command(run_id, Cancel(reason))

    async def stop_run(self, run_id: str, reason: str | None) -> None:
        """Suspend the run."""
        await self._control.command(run_id, Suspend(reason))

    async def resume_run(self, run_id: str) -> None:
        """Go on with a suspended run."""
        await self._control.command(run_id, Resume())

    async def retry_run(self, run_id: str) -> None:
        """Try a failed run again."""
        await self._control.retry(run_id)

    async def discard_run(self, run_id: str) -> None:
        """Take a dead letter off the list."""
        await self._control.command(run_id, Discard())

    async def end_children(self, run_id: str, children: Sequence[Child[Any]]) -> None:
        """Give these children of a run their outcomes."""
        await self._kinship.end_children(run_id, children)

    async def send_signal(self, run_id: str, name: str, payload: object) -> None:
        """Put a signal into the run's mailbox."""
        if not isinstance(name, str) or not 1 <= len(name) <= 200:
            raise TransitionError(f"a signal's name must be a str of 1 to 200 characters, got {name!r:.100}")
        await self._control.command(run_id, Send(name, self._codec.encode(payload), self._config.engine.signals_max))
