"""Residence: which runs stay in memory, and when those come back that do not.

Law: what only waits costs a bounded amount of memory and no slot that another run needs. A run that is let go is in the store with all
that it needs; when it is due, or somebody asks for it, it comes back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from functools import partial

from durable.clock import Clock
from durable.config import EngineSettings
from durable.core.commands import Sleep
from durable.core.query import RunFilter
from durable.engine.entry import Entry
from durable.engine.pipeline import Pipeline
from durable.engine.scheduler import TIMER_SECONDS_MAX, Scheduler
from durable.engine.services import matching, patiently
from durable.engine.table import Table
from durable.errors import DurableError
from durable.store.base import Store
from durable.tasks.registry import find_code

logger = logging.getLogger("durable.engine")

#: Runs that are read at once.
PAGE = 500
#: A body that is about to wait this many times `engine.idle_seconds` gives its slot to others at once.
LONG_WAIT = 10
#: Shortest time between two looks at bodies that wait, seconds.
LOOK_SECONDS = 0.01
#: With more runs than this in the queue for slots, no further ones are read from the store, which looks again after so many seconds.
QUEUED_MAX, QUEUED_SECONDS = 20_000, 0.05


class Residence:
    """Lets runs go, and brings them back."""

    pipeline: Pipeline
    scheduler: Scheduler

    def __init__(self, table: Table, store: Store, clock: Clock, settings: EngineSettings) -> None:
        self._table = table
        self._store = store
        self._clock = clock
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        #: Bodies that wait for a time, a signal or a child, those that have waited longest first; with the loop's time of their beginning.
        self._paused: dict[Entry, float] = {}
        #: Those of them that were about to wait for long when they began.
        self._long: dict[Entry, None] = {}
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        #: Runs without a body that wait in memory, those that have waited longest first.
        self._resting: dict[Entry, None] = {}
        #: Whatever was due up to this time is on the table.
        self._seen_until = 0.0
        self._next_due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None

    # --- bodies that wait -------------------------------------------------------------------------------------------------------

    def paused(self, entry: Entry) -> None:
        """The body begins to wait for a time, a signal or a child."""
        self._paused[entry] = self._loop.time()
        if self.scheduler.queued:
            self._look_later()
        elif len(self._paused) > self._settings.idle_runs_max + self.scheduler.running:
            self._make_room(len(self._paused) - self._settings.idle_runs_max - self.scheduler.running)

    def unpaused(self, entry: Entry) -> None:
        """The body waits for none of them any more."""
        self._paused.pop(entry, None)
        self._long.pop(entry, None)

    def waits(self, entry: Entry, until: float | None) -> None:
        """It is on record that a call of the body waits, until this wall-clock time if that is known."""
        if until is not None and entry in self._paused and self._is_long(until):
            self._long[entry] = None
            if self.scheduler.queued:
                self._look_soon()

    def _is_long(self, until: float) -> bool:
        return until - self._clock.now() >= LONG_WAIT * self._settings.idle_seconds

    def crowded(self) -> None:
        """A run waits for a slot."""
        if self._long:
            self._look_soon()
        elif self._paused:
            self._look_later()

    def _look_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._look)

    def _look_later(self) -> None:
        if self._later is None:
            since = next(iter(self._paused.values()))
            wait = max(since + self._settings.idle_seconds - self._loop.time(), LOOK_SECONDS)
            self._later = self._loop.call_later(wait, self._look_again)

    def _look_again(self) -> None:
        self._later = None
        self._look()

    def _look(self) -> None:
        """Free as many slots as runs wait for, as far as bodies that wait hold them."""
        self._soon = None
        if self.scheduler.closed:
            return
        helpful = (entry for entry in self._long if self.scheduler.frees_for_others(entry))
        for entry in list(itertools.islice(helpful, self.scheduler.queued)):
            del self._long[entry]
            until = entry.execution.wakes_at if entry.execution is not None else None
            if until is not None and self._is_long(until):
                self._free(entry)
        wanted = self.scheduler.queued
        if wanted and self._paused:
            self._free_oldest(wanted)
            if self._paused:
                self._look_later()

    def _free_oldest(self, wanted: int) -> None:
        """Free slots of bodies that have waited long enough, and are not about to go on."""
        least = self._settings.idle_seconds
        now, wall = self._loop.time(), self._clock.now()
        for entry, since in list(self._paused.items()):
            if not wanted or now - since < least:
                return
            until = entry.execution.wakes_at if entry.execution is not None else None
            if (until is None or until - wall >= least) and self.scheduler.frees_for_others(entry):
                wanted -= self._free(entry)

    def _free(self, entry: Entry) -> bool:
        """Put a body to sleep if that can be; returns whether it held a slot that counts."""
        counted = entry.slot and entry.counted
        # Of those that take none, only the one that another's body awaits: when it sleeps, that one's slot is free to be given up.
        if not counted and entry.parent is None:
            return False
        return self._put_to_sleep(entry) and counted

    def _make_room(self, wanted: int) -> None:
        """Too many bodies wait: let go of those that have waited longest."""
        for entry in list(self._paused)[: 4 * wanted]:
            if wanted > 0:
                wanted -= self._put_to_sleep(entry)

    def _put_to_sleep(self, entry: Entry) -> bool:
        execution = entry.execution
        if execution is None or not execution.idle:
            return False
        if any(child.execution is not None and not child.counted for child in entry.children):
            return False  # a body that it awaits is at work in its slot
        try:
            self.pipeline.stage(entry, Sleep(execution.wakes_at))
        except DurableError:
            return False  # it is ending, or the store failed
        execution.interrupt()  # from here on the body could record nothing more
        self.unpaused(entry)
        return True

    # --- runs without a body ----------------------------------------------------------------------------------------------------

    def rest(self, entry: Entry) -> None:
        """Nothing goes on in the run now: it stays, until there are too many like it."""
        if self._table.get(entry.run.run_id) is not entry or not self._rests(entry):
            return
        self._resting.pop(entry, None)
        self._resting[entry] = None
        while len(self._resting) > self._settings.idle_runs_max:
            oldest = next(iter(self._resting))
            del self._resting[oldest]
            if self._rests(oldest) and self.pipeline.is_durable(oldest):
                self._dismiss(oldest)

    def _rests(self, entry: Entry) -> bool:
        run = entry.run
        due = run.due
        if entry.task is not None or entry.slot or entry.place or entry.waiters or entry.children or entry.held:
            return False
        if entry.identity is not None or run.ended:
            return False
        if due is not None and due <= max(self._seen_until, self._clock.now()):
            return False
        definition = find_code(run.task, run.version)
        return definition is not None and definition.auto_recover

    def _dismiss(self, entry: Entry) -> None:
        self.scheduler.forget(entry)
        if entry.run.due is not None:
            self._expect(entry.run.due)
        for relative in self._table.drop(entry):
            self.rest(relative)

    # --- runs that become due ---------------------------------------------------------------------------------------------------

    def open(self, seen_until: float, next_due: float | None) -> None:
        """Begin to bring back runs that become due after this time."""
        self._seen_until = seen_until
        if next_due is not None:
            self._expect(next_due)

    async def close(self) -> None:
        """Bring back no more."""
        for timer in (self._timer, self._soon, self._later):
            if timer is not None:
                timer.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))

    def _expect(self, due: float) -> None:
        if self._next_due is None or due < self._next_due:
            self._next_due = due
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._next_due is not None
        wait = min(max(self._next_due - self._clock.now(), 0.0), TIMER_SECONDS_MAX)
        self._timer = self._loop.call_later(wait, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._next_due is None or self.scheduler.closed or self._reading is not None:
            return
        if self._next_due > self._clock.now():
            self._set_timer()
            return
        self._reading = asyncio.create_task(self._read_due(), name="durable-due")
        self._reading.add_done_callback(self._read)

    async def _read_due(self) -> None:
        seen, self._seen_until = self._seen_until, max(self._seen_until, self._clock.now())
        self._next_due = None
        await self.bring(RunFilter(open=True, due_after=seen, due_by=self._seen_until, limit=PAGE))
        upcoming = await patiently(partial(self._store.next_due, self._seen_until))
        if upcoming is not None:
            self._expect(upcoming)

    def _read(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        if not reading.cancelled() and (error := reading.exception()) is not None:
            logger.error("runs that are due cannot be read now: %s", error)
        elif self._next_due is not None and self._timer is None:
            self._set_timer()

    async def bring(self, wanted: RunFilter) -> None:
        """Put the wanted runs on the table, no faster than they find slots; being read, each goes on by itself."""
        async for run in matching(self._store, wanted):
            await patiently(partial(self._table.load, run.run_id))
            while self.scheduler.queued + self.scheduler.recoveries.waiting > QUEUED_MAX:  # noqa: ASYNC110 - it is no moment, but a measure, that this waits for
                await asyncio.sleep(QUEUED_SECONDS)
