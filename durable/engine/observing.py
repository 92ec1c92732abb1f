"""Observing: how observers come to know what an application does.

Law: nothing here decides anything. What an observer raises is logged, once for each kind of hook, and goes no further. Where nobody
observes, all that happens is that records are counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import Context
from typing import Any

from durable.clock import Clock
from durable.codec import Codec
from durable.core.decide import decide
from durable.core.query import RunFilter
from durable.core.records import Call, Kind, Record
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.entry import Unit
from durable.engine.pipeline import Commit, Decide
from durable.errors import DurableError
from durable.observe.observer import Batch, Gauges, ObservedAttempt, ObservedRun, Observer, Refusal, Scan, Telemetry
from durable.store.base import Store
from durable.store.shared import is_shared
from durable.tasks.handle import to_datetime, to_event

logger = logging.getLogger("durable.observe")

#: Kinds after which the number of dead letters may be another.
_DEADLY = frozenset({Kind.FAILED, Kind.TIMED_OUT, Kind.CHILDREN_FAILED, Kind.RESUMED, Kind.DISCARDED})
#: They are counted at most so often, and anew when somebody asks after so long: other processes have dead letters, too.
RECOUNT_SECONDS = 1.0
RECOUNT_ASKED_SECONDS = 10.0
#: How long that may take: a database that is away shall not hold up who asks for figures.
COUNT_SECONDS = 2.0
#: How often a reading that was disturbed is tried.
READS_MAX = 5


class Tally:
    """What happened since the application was opened, in numbers."""

    def __init__(self) -> None:
        #: Durable records, by kind.
        self.records = [0] * (max(Kind) + 1)
        self.scans = self.found = 0
        #: Batches written into the tables, and their records.
        self.batches = self.entries = 0


class Observing:
    """Tells observers.

    Arguments:
        find_observers: who is told, in this order; asked at each opening.
        store: where dead letters are counted.
        now_going: how much is going on: (running, queued, streams).
    """

    def __init__(
        self, find_observers: Callable[[], Sequence[Observer]], *, codec: Codec, clock: Clock, store: Store,
        now_going: Callable[[], tuple[int, int, int]],
    ) -> None:  # fmt: skip
        self.tally = Tally()
        self._find_observers = find_observers
        self._codec = codec
        self._clock = clock
        self._store = store
        self._now_going = now_going
        self._observers: Sequence[Observer] = ()
        self._telemetry: Telemetry | None = None
        #: Those who want to be told of records, and to stand around bodies.
        self._told: list[Observer] = []
        self._around: list[Observer] = []
        self._complained: set[tuple[type, str]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dead = self._waiting = 0
        self._counted_at = 0.0
        self._recounting: asyncio.Task[None] | None = None
        self._recount_wanted = False
        self._going = (0, 0, 0)

    # --- opening and closing ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Before the store is opened, and before the parts are made that tell what they do."""
        observers = self._observers = tuple(self._find_observers())
        self.tally = Tally()
        self._telemetry = next((some for some in observers if isinstance(some, Telemetry)), None)
        self._told = [some for some in observers if type(some).on_record is not Observer.on_record]
        self._around = [some for some in observers if type(some).attempt is not Observer.attempt]
        if hasattr(self._store, "on_flush"):
            self._store.on_flush = self.flushed

    async def open(self) -> None:
        """The application is about to be open."""
        if not self._observers:
            return
        self._loop = asyncio.get_running_loop()
        await self._count_dead()
        for some in self._observers:
            self._call(some, "on_open", self._gauges)

    async def close(self) -> None:
        """The application is closed."""
        if self._recounting is not None:
            self._recounting.cancel()
            await asyncio.wait((self._recounting,))
            self._recounting = None
        if self._loop is not None:
            self._loop = None
            for some in self._observers:
                self._call(some, "on_close")

    def _call(self, observer: Observer, hook: str, *arguments: Any) -> Any:
        try:
            return getattr(observer, hook)(*arguments)
        except Exception:  # noqa: BLE001 - whatever it is, it is the observer's own
            self._complain(observer, hook)
            return None

    def _complain(self, observer: Observer, hook: str) -> None:
        kind = (type(observer), hook)
        if kind not in self._complained:
            self._complained.add(kind)
            logger.exception("%s.%s raised; this is logged once", type(observer).__qualname__, hook)

    # --- gauges -----------------------------------------------------------------------------------------------------------------

    def _gauges(self) -> Gauges:
        loop = self._loop
        if loop is not None and self._clock.monotonic() - self._counted_at > RECOUNT_ASKED_SECONDS:
            self._counted_at = self._clock.monotonic()
            try:
                loop.call_soon_threadsafe(self._recount)
            except RuntimeError:
                self._loop = None  # the loop was closed, and the application was not
        for _ in range(READS_MAX):
            with suppress(RuntimeError):  # it is another thread that asks, and what it counts changed meanwhile
                self._going = self._now_going()
                break
        running, queued, streams = self._going
        if is_shared(self._store):
            queued = self._waiting
        return Gauges(running=running, queued=queued, streams=streams, dead_letters=self._dead)

    def _recount(self) -> None:
        self._recount_wanted = True
        if self._loop is not None and (self._recounting is None or self._recounting.done()):
            self._recounting = self._loop.create_task(self._recount_all(), name="durable-dead-letters")

    async def _recount_all(self) -> None:
        while self._recount_wanted:
            self._recount_wanted = False
            await self._count_dead()
            await asyncio.sleep(RECOUNT_SECONDS)

    async def _count_dead(self) -> None:
        counted = await self.dead_letters()
        self._dead = self._dead if counted is None else counted
        if is_shared(self._store):
            self._waiting = await self.queued(self._waiting)
        self._counted_at = self._clock.monotonic()

    async def dead_letters(self) -> int | None:
        """How many dead letters the store has; None where it cannot be asked now."""
        return await self._count("dead letters", RunFilter(dead=True))

    async def queued(self, here: int) -> int:
        """How many runs wait for a slot: of a store that is shared, in all of it; else, or where it cannot be asked now, `here`."""
        if not is_shared(self._store):
            return here
        ready = RunFilter(status=frozenset({Status.READY}), due_by=self._clock.now())
        counted = await self._count("runs that wait", ready)
        return here if counted is None else counted

    async def _count(self, what: str, wanted: RunFilter) -> int | None:
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                return await self._store.count(wanted)
        except (DurableError, TimeoutError) as error:
            logger.warning("%s cannot be counted now: %r", what, error)
            return None

    # --- records ----------------------------------------------------------------------------------------------------------------

    def told(self, publish: Callable[[Unit], None]) -> Callable[[Unit], None]:
        """Publish a unit, then tell observers of its records. Who traces is told before: an attempt ends before the next begins."""
        telemetry, told, is_observed = self._telemetry, self._told, bool(self._observers)

        def publish_and_tell(unit: Unit) -> None:
            if telemetry is not None:
                for entry, record in unit.items:
                    self._call(telemetry, "record", entry.run, record)
            publish(unit)
            counts = self.tally.records
            for _, record in unit.items:
                counts[record.kind] += 1
            if not is_observed:
                return
            for entry, record in unit.items:
                if told:
                    self._tell(entry.run, record)
                if record.kind in _DEADLY:
                    self._recount()

        return publish_and_tell

    def _tell(self, run: Run, record: Record) -> None:
        try:
            observed, event = _observed(run), to_event(record, self._codec)
        except Exception:  # a value that cannot be shown is no reason to stop who wrote it
            logger.exception("record %d of run %s cannot be told", record.seq, run.run_id, extra={"run_id": run.run_id})
            return
        for some in self._told:
            self._call(some, "on_record", observed, event)

    @property
    def decide(self) -> Decide:
        """What decides commands: `core.decide`, and who traces adds the trace context to what begins."""
        telemetry = self._telemetry
        if telemetry is None:
            return decide

        def decide_traced(run: Run, command: Any, now: float, records_max: int) -> list[Record]:
            records = decide(run, command, now, records_max)
            for record in records:
                self._call(telemetry, "stamp", run, record)
            return records

        return decide_traced

    def dropped(self, run_id: str) -> None:
        """Nothing more comes of what was begun of the run here."""
        if self._telemetry is not None:
            self._call(self._telemetry, "dropped", run_id)

    # --- bodies -----------------------------------------------------------------------------------------------------------------

    def enter(self, context: Context, run_id: str) -> None:
        """Make the span of a run's attempt current in the context of its body."""
        if self._telemetry is not None:
            context.run(self._call, self._telemetry, "enter", run_id)

    @property
    def around(self) -> Callable[[Run, bool], AbstractContextManager[None]] | None:
        """What to enter around the body of each attempt."""
        return self._entered if self._around else None

    @contextmanager
    def _entered(self, run: Run, recovered: bool) -> Iterator[None]:
        attempt = ObservedAttempt(
            run=_observed(run), attempt=run.attempt, max_attempts=run.max_attempts, recovered=recovered
        )
        entered: list[tuple[Observer, AbstractContextManager[object]]] = []
        for some in self._around:
            manager = self._call(some, "attempt", attempt)
            if manager is not None and self._enters(some, manager):
                entered.append((some, manager))
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            for some, manager in reversed(entered):
                self._leave(some, manager, error)

    def _enters(self, observer: Observer, manager: AbstractContextManager[object]) -> bool:
        try:
            manager.__enter__()
        except Exception:  # noqa: BLE001 - the same
            self._complain(observer, "attempt")
            return False
        return True

    def _leave(self, observer: Observer, manager: AbstractContextManager[object], error: BaseException | None) -> None:
        try:
            manager.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except BaseException as raised:
            if raised is error:
                return  # it goes on by itself
            if not isinstance(raised, Exception):
                raise
            self._complain(observer, "attempt")

    @property
    def replayed(self) -> Callable[[str, Record], None] | None:
        """To be called where a call of a body is served from the record."""
        telemetry = self._telemetry
        return None if telemetry is None else lambda run_id, record: self._call(telemetry, "replayed", run_id, record)

    def stepping(self, further: Callable[[str, Call], None] | None) -> Callable[[str, Call], None] | None:
        """To be called before each try of a step's body; calls `further`, too."""
        telemetry = self._telemetry
        if telemetry is None:
            return further

        def step_begins(run_id: str, call: Call) -> None:
            self._call(telemetry, "stepping", run_id, call, self._clock.now())
            if further is not None:
                further(run_id, call)

        return step_begins

    # --- what no record says ----------------------------------------------------------------------------------------------------

    def refused(self, reason: str, task_name: str, user: str | None) -> None:
        """A start was not let in."""
        refusal = Refusal(task_name=task_name, user=user, reason=reason)
        for some in self._observers:
            self._call(some, "on_refused", refusal)

    def scanned(self, found: int, seconds: float) -> None:
        """It was looked for runs to recover."""
        self.tally.scans += 1
        self.tally.found += found
        scan = Scan(found=found, seconds=seconds, at=to_datetime(self._clock.now()))
        for some in self._observers:
            self._call(some, "on_scan", scan)

    def flushed(self, entries: int, seconds: float) -> None:
        """Records of the log came into the tables."""
        self._written("flush", entries, seconds)

    def _written(self, kind: Any, entries: int, seconds: float) -> None:
        if kind != "log":
            self.tally.batches += 1
            self.tally.entries += entries
        if self._observers:
            batch = Batch(kind=kind, entries=entries, seconds=seconds, at=to_datetime(self._clock.now()))
            for some in self._observers:
                self._call(some, "on_batch", batch)

    def measured(self, commit: Commit) -> Commit:
        """Commit, and tell how long it took."""
        kind = "log" if hasattr(self._store, "on_flush") else "commit"

        async def commit_and_tell(units: Sequence[Unit]) -> Sequence[DurableError | None]:
            began = self._clock.monotonic()
            outcomes = await commit(units)
            self._written(kind, sum(len(unit.items) for unit in units), self._clock.monotonic() - began)
            return outcomes

        return commit_and_tell


def _observed(run: Run) -> ObservedRun:
    return ObservedRun(
        run_id=run.run_id, task_name=run.task, version=run.version, key=run.key, user=run.user,
        parent_id=run.parent_id, created_at=to_datetime(run.created_at),
    )  # fmt: skip
