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
from durable.core.commands import Cancel, Command, Discard, Release, Resume, Send, Suspend
from durable.core.query import RunFilter
from durable.core.records import ENDS, Call, Record
from durable.core.run import Run
from durable.engine.divergence import known_call
from durable.engine.entry import Entry
from durable.engine.invoke import Invoker
from durable.engine.kinship import Kinship
from durable.engine.lifecycle import Lifecycle
from durable.engine.pipeline import Pipeline
from durable.engine.recovery import load
from durable.engine.residence import QUEUED_MAX, Residence
from durable.engine.revival import Revival
from durable.engine.scheduler import Scheduler
from durable.engine.services import Services
from durable.engine.starting import Starter
from durable.engine.table import Table
from durable.engine.turns import Turns
from durable.errors import (
    AppNotOpenError,
    LogFencedError,
    RunNotFoundError,
    ShuttingDownError,
    StorageError,
    TransitionError,
)
from durable.events.hub import Hub
from durable.store.base import Store
from durable.tasks.child import Child, register_children
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import current_scope
from durable.tasks.registry import find_task, on_new_task

#: Runs and records that are read at once.
PAGE = 500


class Engine:
    """Executes the runs of a store."""

    def __init__(self, store: Store, config: Config, limits: Limits, clock: Clock, entropy: Entropy) -> None:
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
        lifecycle = self._lifecycle = Lifecycle()
        table = self._table = lifecycle.table = Table(self._store, self._read_later)
        kinship = self._kinship = lifecycle.kinship = Kinship(table, self._store, self._codec, settings)
        kinship.let_go, self._revival = lifecycle.let_go, Revival(kinship)
        kinship.revive_awaited = self._revival.revive_awaited
        residence = self._residence = lifecycle.residence = Residence(table, self._store, self._clock, settings)
        pipeline = kinship.pipeline = residence.pipeline = Pipeline(
            self._store, self._clock, settings.history_records_max,
            publish=lifecycle.publish, entailed=kinship.entailed, on_failure=self._store_failed,
        )  # fmt: skip
        scheduler = Scheduler(self._clock, self._limits.max_running, lifecycle.begin, residence.crowded)
        lifecycle.scheduler = kinship.scheduler = residence.scheduler = scheduler
        lifecycle.services = self._services = Services(
            host=self, families=kinship, residence=residence, store=self._store, pipeline=pipeline, hub=self._hub,
            turns=Turns(asyncio.get_running_loop()),
            invoker=Invoker(settings.thread_workers, settings.process_workers), codec=self._codec, codecs=self._codec_of,
            clock=self._clock, entropy=self._entropy, settings=settings, has_step=known_call, closing=asyncio.Event(), on_step=self.on_step,
        )  # fmt: skip
        self._starter = kinship.starter = Starter(
            table, store=self._store, pipeline=pipeline, scheduler=scheduler,
            codec=self._codec, clock=self._clock, entropy=self._entropy,
        )  # fmt: skip
        loop = asyncio.get_running_loop()

        def task_defined(task: TaskDefinition) -> None:
            loop.call_soon_threadsafe(lifecycle.task_defined, task.name)

        now = self._clock.now()
        due = RunFilter(open=True, due_by=now)
        left = await load(self._store, table, due, self._limits.max_running, QUEUED_MAX)
        residence.open(now, await self._store.next_due(now))
        self._task_defined = task_defined  # the registry holds it weakly: it lives as long as this engine
        on_new_task(task_defined)
        pipeline.open()
        self._state = "open"
        for entry in table:
            lifecycle.go_on(entry)
        if left is not None:
            self._bringing = asyncio.create_task(residence.bring(left), name="durable-recovery")

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
        await self._residence.close()
        await self._kinship.stop()
        self._hub.wake_all()
        try:
            await self._stop_bodies()
            if services.pipeline.failure is None:
                for entry in self._table:
                    self._lifecycle.scheduler.forget(entry)
                    if entry.run.executing and find_task(entry.run.task) is not None:
                        services.pipeline.stage(entry, Release())
            await services.pipeline.close()
        finally:
            self._state = "closed"
            for entry in self._table:
                entry.tell(ShuttingDownError("the application was closed before the run ended: the next open goes on"))
                entry.definition = None  # who closed an application may keep it, and need not keep its tasks
            self._hub.wake_all()
            self._task_defined = None
            await services.invoker.close()
            await self._store.close()

    async def _stop_bodies(self) -> None:
        loop = asyncio.get_running_loop()
        settings = self._config.engine
        deadline = loop.time() + settings.shutdown_grace_seconds
        while True:
            running = [entry for entry in self._table if entry.task is not None]
            late = loop.time() >= deadline
            for entry in running:
                if entry.execution is not None and (late or entry.execution.idle):
                    entry.execution.interrupt()
                elif late and entry.task is not None:
                    entry.task.cancel()
            tasks = [entry.task for entry in running if entry.task is not None]
            if not tasks:
                return
            await asyncio.wait(tasks, timeout=settings.cancel_grace_seconds if late else 0.02)
            if late:
                return

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

    # --- asking -----------------------------------------------------------------------------------------------------------------

    def definition_of(self, name: str) -> TaskDefinition | None:
        """The task of this name, where an imported module defines it."""
        return find_task(name)

    async def find_run(self, run_id: str) -> Run:
        """The run as it was last acknowledged."""
        run = await self._store.find(run_id)
        if run is None:
            raise RunNotFoundError(f"no run has the id {run_id!r} in this store")
        return run

    async def wait_ended(self, run_id: str) -> Run:
        """Wait until the run has ended."""
        entry = self._table.get(run_id)
        if entry is None or entry.settled:
            run = await self.find_run(run_id)
            if run.ended:
                return run
        if self._state == "closed":
            raise AppNotOpenError(f"run {run_id} has not ended, and the application that executes it is closed")
        entry = await self._load(run_id)
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

    async def _load(self, run_id: str) -> Entry:
        entry = await self._table.load(run_id)
        if entry is None:
            raise RunNotFoundError(f"no run has the id {run_id!r} in this store")
        return entry

    async def records(self, run_id: str, after: int) -> AsyncIterator[Record]:
        """All records above `after`: those that are there, then live ones, until the run has ended."""
        await self.find_run(run_id)
        subscription = self._hub.subscribe(run_id)
        try:
            while True:
                subscription.lagging = False
                page = await self._store.history(run_id, after, PAGE)
                for record in page:
                    after = record.seq
                    yield record
                if len(page) == PAGE:
                    continue
                run = await self.find_run(run_id)
                if run.ended and after >= run.seq:
                    return
                while not subscription.lagging:
                    for record in subscription.drain():
                        if record.seq > after or "ephemeral" in record.head:
                            after = max(after, record.seq)
                            yield record
                            if record.kind in ENDS:
                                return
                    if self._state != "open" or self._services.pipeline.failure is not None:
                        raise ShuttingDownError(
                            f"the application is closing; go on from seq {after} when it is open again"
                        )
                    await subscription.wait()
        finally:
            self._hub.unsubscribe(run_id, subscription)

    async def children_of(self, run_id: str) -> Sequence[Run]:
        """The runs that this run started, in order; not the one that is its coordinator."""
        parent = await self.find_run(run_id)
        found: list[Run] = []
        after: str | None = None
        while page := await self._store.query(RunFilter(parent_id=run_id, after=after, limit=PAGE)):
            found += page
            after = page[-1].run_id
        return [run for run in found if run.run_id != parent.coordinator_id]

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

    async def _command(self, run_id: str, command: Command) -> None:
        """Have a run decide a command, durably."""
        self._check_open()
        entry = await self._load(run_id)
        try:
            self._services.pipeline.stage(entry, command)
            await self._services.pipeline.durable(entry)
        finally:
            self._lifecycle.let_go(entry)

    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        """Cancel the run and all that belongs to it."""
        await self._command(run_id, Cancel(reason))

    async def stop_run(self, run_id: str, reason: str | None) -> None:
        """Suspend the run."""
        await self._command(run_id, Suspend(reason))

    async def resume_run(self, run_id: str) -> None:
        """Go on with a suspended run."""
        await self._command(run_id, Resume())

    async def retry_run(self, run_id: str) -> None:
        """Try a failed run again."""
        self._check_open()
        entry = await self._load(run_id)
        entry.held += 1
        try:
            await self._revival.revive(entry)
            await self._services.pipeline.durable(entry)
        finally:
            entry.held -= 1
            self._lifecycle.let_go(entry)

    async def end_children(self, run_id: str, children: Sequence[Child[Any]]) -> None:
        """Give these children of a run their outcomes."""
        await self._kinship.end_children(run_id, children)

    async def discard_run(self, run_id: str) -> None:
        """Take a dead letter off the list."""
        await self._command(run_id, Discard())

    async def send_signal(self, run_id: str, name: str, payload: object) -> None:
        """Put a signal into the run's mailbox."""
        if not isinstance(name, str) or not 1 <= len(name) <= 200:
            raise TransitionError(f"a signal's name must be a str of 1 to 200 characters, got {name!r:.100}")
        await self._command(run_id, Send(name, self._codec.encode(payload), self._config.engine.signals_max))
