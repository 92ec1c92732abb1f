"""`Engine`: one application's runs: the host of handles and tasks, and the place where the parts of `engine/` meet.

Law: it opens and closes the parts in order; rules live in `core/`, and what follows from a record in `lifecycle.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from durable.clock import Clock, Entropy
from durable.codec import TaggedJson
from durable.config import Config, Limits
from durable.core.commands import Cancel, Discard, Release, Resume, Send, Suspend
from durable.core.query import RunFilter
from durable.core.records import Call, Record
from durable.core.run import Run
from durable.engine.entry import Entry
from durable.engine.lacking import lacking
from durable.engine.observing import Observing
from durable.engine.parts import Calls, Given, Parts
from durable.engine.reading import Reading
from durable.engine.recovery import load
from durable.engine.residence import QUEUED_MAX
from durable.engine.stats import Stats, take_stats
from durable.engine.stopping import stop_bodies
from durable.errors import (
    AppNotOpenError,
    LogFencedError,
    ShuttingDownError,
    StorageError,
    TransitionError,
)
from durable.observe.observer import Observer
from durable.store.base import Store
from durable.tasks.child import Child, register_children
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import current_scope
from durable.tasks.registry import find_code, find_task, on_new_task


class Engine:
    """Executes the runs of a store."""

    def __init__(
        self, store: Store, config: Config, limits: Limits, clock: Clock, entropy: Entropy,
        *, execute: bool = True, find_observers: Callable[[], Sequence[Observer]] = tuple,
    ) -> None:  # fmt: skip
        codec = TaggedJson(config.payload)
        register_children(codec)
        self._observing = Observing(find_observers, codec=codec, clock=clock, store=store, now_going=self._now_going)
        self._given = Given(
            store=store, config=config, limits=limits, clock=clock, entropy=entropy, codec=codec, execute=execute,
            observing=self._observing,
        )  # fmt: skip
        self._parts: Parts
        self._reading = Reading(store, self._given.hub, clock, self._is_over)
        self._state = "new"
        self._opened_at = 0.0
        self._bringing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._task_defined: Callable[[TaskDefinition], None] | None = None

    @property
    def codec(self) -> TaggedJson:
        """The codec of inputs, results and events."""
        return self._given.codec

    @property
    def store(self) -> Store:
        """Where runs are kept."""
        return self._given.store

    @property
    def parts(self) -> Parts:
        """The parts, once it has been opened."""
        return self._parts

    @property
    def on_step(self) -> Callable[[str, Call], None] | None:
        """See `Services.on_step`; set before it is opened."""
        return self._given.on_step

    @on_step.setter
    def on_step(self, called: Callable[[str, Call], None] | None) -> None:
        self._given.on_step = called

    @property
    def limits(self) -> Limits:
        """What is let in and how much runs at once."""
        return self._given.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._given.limits = limits
        if (parts := getattr(self, "_parts", None)) is not None:
            parts.limits_changed()

    # --- opening and closing ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store and let every run that had not ended go on."""
        if self._state in ("opening", "open", "closing"):
            raise AppNotOpenError(f"this application is {self._state} already")
        self._state = "opening"
        self._opened_at = self._given.clock.now()
        try:
            self._observing.prepare()
            await self._given.store.open()
            try:
                await self._start_up()
            except BaseException:
                await self._given.store.close()
                await self._observing.close()
                raise
        except BaseException:
            self._state = "closed"
            raise

    async def _start_up(self) -> None:
        calls = Calls(host=self, check_open=self._check_open, on_failure=self._store_failed, read=self._read_later)
        parts = self._parts = Parts(self._given, calls)
        await self._observing.open()
        if parts.sharing is None:
            await self._take_over(parts)
        else:
            parts.sharing.connect(parts.lifecycle, parts.pipeline, parts.scheduler)
            parts.pipeline.open()
            await parts.sharing.open()
            self._state = "open"
        loop = asyncio.get_running_loop()

        def task_defined(task: TaskDefinition) -> None:
            loop.call_soon_threadsafe(parts.task_defined, task.name)

        if self._given.execute:
            parts.keeper.open()
        self._task_defined = task_defined  # the registry holds it weakly: it lives as long as this engine
        on_new_task(task_defined)

    async def _take_over(self, parts: Parts) -> None:
        """Let every run go on that had not ended: the store is this process's own."""
        given = self._given
        now, began = given.clock.now(), given.clock.monotonic()
        due = RunFilter(open=True, due_by=now)
        left = await load(given.store, parts.table, due, given.slots, QUEUED_MAX)
        self._observing.scanned(len(parts.table), given.clock.monotonic() - began)
        parts.residence.open(now, await given.store.next_due(now))
        parts.pipeline.open()
        self._state = "open"
        for entry in parts.table:
            parts.lifecycle.go_on(entry)
        if left is not None:
            self._bringing = asyncio.create_task(parts.residence.bring(left), name="durable-recovery")

    def _is_over(self) -> bool:
        return self._state != "open" or self._parts.pipeline.failure is not None

    def _read_later(self, entry: Entry) -> None:
        """A run was read from the store after the opening, or beside it."""
        if self._state == "open":
            self._parts.lifecycle.go_on(entry)

    @property
    def is_new(self) -> bool:
        """Whether it can be opened: it was not yet, or was closed again."""
        return self._state in ("new", "closed")

    async def close(self, grace: float | None = None) -> None:
        """Take no new work, let bodies finish within the grace, hand unfinished runs back, flush.

        It goes on to its end, also when who asked for it no longer waits; who asks again waits for the same end.
        """
        if self._state == "open":
            self._state = "closing"
            self._closing = asyncio.create_task(self._close(grace), name="durable-close")
        if self._state == "closing" and self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self, grace: float | None) -> None:
        parts, settings = self._parts, self._given.config.engine
        services = parts.services
        services.closing.set()
        parts.scheduler.close()
        if self._bringing is not None:
            self._bringing.cancel()
        stopping = [parts.keeper.close(), parts.residence.close(), parts.closing.stop()]
        if parts.sharing is not None:
            stopping.append(parts.sharing.stop())
        await asyncio.gather(*stopping)  # beside one another: each may wait for a database that hangs
        self._given.hub.wake_all()
        try:
            await stop_bodies(parts.table, settings, settings.shutdown_grace_seconds if grace is None else grace)
            if parts.pipeline.failure is None:
                for entry in parts.table:
                    run = entry.run
                    if (
                        run.executing
                        and not parts.scheduler.forget(entry)
                        and find_code(run.task, run.version) is not None
                    ):
                        parts.pipeline.stage(entry, Release())
            await parts.pipeline.close()
        finally:
            if parts.sharing is not None:
                await parts.sharing.close(
                    ShuttingDownError("the application was closed before the run ended: it goes on elsewhere")
                )
            self._state = "closed"
            for entry in parts.table:
                entry.tell(ShuttingDownError("the application was closed before the run ended: the next open goes on"))
                entry.definition = None  # who closed an application may keep it, and need not keep its tasks
            self._given.hub.close()
            self._task_defined = None
            await services.invoker.close()
            await self._given.store.close()
            await self._observing.close()

    def _store_failed(self, error: StorageError) -> None:
        """The store takes nothing more: stop the bodies and tell everybody who waits."""
        for entry in self._parts.table:
            if entry.execution is not None:
                entry.execution.interrupt()
            elif entry.task is not None:
                entry.task.cancel()
            entry.tell(LogFencedError(f"the store failed, the run goes on in the next process: {error}"))
        self._given.hub.wake_all()

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
        return await self._parts.starter.start(task, options, task.facts.bind(args, kwargs, task.name))

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
        return await self._parts.starter.start_on(connection, task, options, task.facts.bind(args, kwargs, task.name))

    # --- asking -----------------------------------------------------------------------------------------------------------------

    async def lacks(self, run: Run) -> str | None:
        """What keeps the run from going on, if it is that nobody has the code of it."""
        if run.due is None or run.ended or (self._given.execute and find_code(run.task, run.version) is not None):
            return None
        if self._parts.sharing is not None:
            placement = await self._parts.sharing.store.placement(run.run_id)
            if placement is None or placement.owner is not None or placement.executors:
                return None
            return lacking(run, placement.versions, "no executor that is alive")
        known = find_task(run.task)
        return lacking(run, [] if known is None else [known.version], "nothing that this process has imported")

    def definition_of(self, name: str) -> TaskDefinition | None:
        """The task of this name, where an imported module defines it."""
        return find_task(name)

    async def find_run(self, run_id: str) -> Run:
        """The run as it was last acknowledged."""
        return await self._reading.find_run(run_id)

    async def wait_ended(self, run_id: str) -> Run:
        """Wait until the run has ended."""
        if self._parts.sharing is not None:
            if self._state == "closed":
                raise AppNotOpenError(f"run {run_id} cannot be waited for: the application is closed")
            scope = current_scope.get()
            return await self._parts.sharing.ended(run_id, in_body=scope is not None and scope.host is self)
        entry = self._parts.table.get(run_id)
        if entry is None or entry.settled:
            run = await self.find_run(run_id)
            if run.ended:
                return run
        if self._state == "closed":
            raise AppNotOpenError(f"run {run_id} has not ended, and the application that executes it is closed")
        entry = await self._parts.control.load(run_id)
        if entry.settled:
            self._parts.lifecycle.let_go(entry)
            return await self.find_run(run_id)  # it ended in between
        failure = self._parts.pipeline.failure
        if failure is not None:
            raise LogFencedError(f"the store failed, the run goes on in the next process: {failure}") from failure
        waiter: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        scope = current_scope.get()
        in_body = scope is not None and scope.host is self
        if in_body:
            self._parts.scheduler.hasten(entry)
        try:
            return await waiter
        finally:
            entry.awaited -= in_body
            if waiter in entry.waiters:  # it was cancelled; but the end may have been told to all in the meantime
                entry.waiters.remove(waiter)
            self._parts.lifecycle.let_go(entry)

    def records(
        self, run_id: str, after: int, *, steps: bool = True, heartbeat: float | None = None
    ) -> AsyncGenerator[Record]:
        """All records above `after`: those that are there, then live ones, until the run has ended."""
        return self._reading.records(run_id, after, steps=steps, heartbeat=heartbeat)

    async def children_of(self, run_id: str) -> Sequence[Run]:
        """The runs that this run started, in order; not the one that is its coordinator."""
        return await self._reading.children_of(run_id)

    def _now_going(self) -> tuple[int, int, int]:
        scheduler = self._parts.scheduler
        return scheduler.running, scheduler.queued, len(self._given.hub)

    def statistics(self) -> dict[str, int]:
        """How much is in memory: nothing is left of what has come to its end."""
        scheduler = self._parts.scheduler
        return {
            "loaded": len(self._parts.table),
            "running": scheduler.running,
            "queued": scheduler.queued,
            "orphaned": self._parts.lifecycle.orphaned,
            "recovering": scheduler.recoveries.inside + scheduler.recoveries.waiting,
            "subscribers": len(self._given.hub),
        }

    async def stats(self) -> Stats:
        """How much is going on, and what happened since the opening."""
        return await take_stats(
            self._given, self._parts, opened_at=self._opened_at, is_closing=self._state == "closing"
        )

    # --- control ----------------------------------------------------------------------------------------------------------------

    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        """Cancel the run and all that belongs to it."""
        await self._parts.control.command(run_id, Cancel(reason))

    async def stop_run(self, run_id: str, reason: str | None) -> None:
        """Suspend the run."""
        await self._parts.control.command(run_id, Suspend(reason))

    async def resume_run(self, run_id: str) -> None:
        """Go on with a suspended run."""
        await self._parts.control.command(run_id, Resume())

    async def retry_run(self, run_id: str) -> None:
        """Try a failed run again."""
        await self._parts.control.retry(run_id)

    async def retry_letter(self, run_id: str) -> None:
        """Try a failed run again as a dead letter, which may happen only so often."""
        await self._parts.control.retry(run_id, self._given.limits.dead_letter_retries)

    async def discard_run(self, run_id: str, reason: str | None = None) -> None:
        """Take a dead letter off the list."""
        await self._parts.control.command(run_id, Discard(reason))

    async def end_children(self, run_id: str, children: Sequence[Child[Any]]) -> None:
        """Give these children of a run their outcomes."""
        await self._parts.kinship.end_children(run_id, children)

    async def send_signal(self, run_id: str, name: str, payload: object) -> None:
        """Put a signal into the run's mailbox."""
        if not isinstance(name, str) or not 1 <= len(name) <= 200:
            raise TransitionError(f"a signal's name must be a str of 1 to 200 characters, got {name!r:.100}")
        await self._parts.control.command(
            run_id, Send(name, self._given.codec.encode(payload), self._given.config.engine.signals_max)
        )
