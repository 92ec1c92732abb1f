"""Claims: how an executor comes to the work of a shared store.

Law: it takes no more runs than it has slots for, and only such as it has the code for. A notice says when to look; a look without one
comes as often as `poll_seconds` says, not all executors at once; every second of them looks for messages, too.
"""

from __future__ import annotations

import asyncio
import logging
import math

from durable.clock import Clock, Entropy, fraction_of
from durable.engine.entry import Entry
from durable.engine.holding import HoldingTable
from durable.engine.lifecycle import Lifecycle
from durable.engine.mailbox import Mailbox
from durable.engine.pipeline import RETRY_SECONDS
from durable.engine.places import SharedPlaces
from durable.engine.scheduler import TIMER_SECONDS_MAX, Scheduler
from durable.errors import DurableError, RepositoryUnavailableError
from durable.store.shared import Known, SharedStore
from durable.tasks.registry import all_tasks

logger = logging.getLogger("durable.engine")

#: Most runs that are claimed at once.
CLAIM_MAX = 500
#: How long a close waits for a claim that is on its way, seconds.
CLOSE_SECONDS = 1.0
#: How many runs are assumed to wait in the store where there are more than were claimed.
ASSUMED_ELSEWHERE = 100


def known_tasks() -> list[Known]:
    """The tasks that this process has the code of."""
    return [(task.name, task.version) for task in all_tasks()]


class Claims:
    """Looks for runs that can go on here, and for messages."""

    def __init__(
        self, store: SharedStore, table: HoldingTable, mailbox: Mailbox, scheduler: Scheduler,
        *, places: SharedPlaces, lifecycle: Lifecycle, clock: Clock, entropy: Entropy,
    ) -> None:  # fmt: skip
        self._store = store
        self._table = table
        self._mailbox = mailbox
        self._scheduler = scheduler
        self._places = places
        self._lifecycle = lifecycle
        self._clock = clock
        self._entropy = entropy
        self._work_wanted = self._mail_wanted = True
        #: Whether the next look without a notice is for runs only.
        self._runs_only = False
        self._wake = asyncio.Event()
        #: When the next run is due that is known of here.
        self._next_due = math.inf
        self._alarm: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look."""
        self._scheduler.on_free = self.work
        self._task = asyncio.create_task(self._run(), name="durable-claims")

    async def close(self) -> None:
        """Take nothing more."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._task is not None:
            self._task.cancel()
            # A server that hangs may take long to stop what it was asked: an executor that leaves gets nothing by it.
            await asyncio.wait((self._task,), timeout=CLOSE_SECONDS)

    def expect(self, due: float) -> None:
        """A run that nobody holds will be due at this time."""
        if due < self._next_due:
            self._next_due = due
            if self._alarm is not None:
                self._alarm.cancel()
            wait = min(max(due - self._clock.now(), 0.0), TIMER_SECONDS_MAX)
            self._alarm = asyncio.get_running_loop().call_later(wait, self._ring)

    def _ring(self) -> None:
        self._next_due, self._alarm = math.inf, None
        self.work()

    def work(self) -> None:
        """There may be runs to claim."""
        self._work_wanted = True
        self._wake.set()

    def mail(self) -> None:
        """There may be messages."""
        self._mail_wanted = True
        self._wake.set()

    def all(self) -> None:
        """There may be both."""
        self.work()
        self.mail()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                wait = await self._look()
            except RepositoryUnavailableError as error:
                logger.warning("no work can be claimed now: %s", error)
                wait = RETRY_SECONDS
                self._work_wanted = self._mail_wanted = True
            except Exception:  # a defect may cost a run, never all the others
                logger.exception("work cannot be claimed")
                wait = self._store.poll_seconds
                self._work_wanted = self._mail_wanted = True  # what it looked for was not found out
            if not await self._told(wait):
                self._runs_only = not self._runs_only
                self._work_wanted, self._mail_wanted = True, self._mail_wanted or not self._runs_only

    async def _told(self, wait: float) -> bool:
        """Wait for a notice; False where none came in time."""
        try:
            async with asyncio.timeout(wait):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _look(self) -> float:
        """Claim what can be claimed, obey what messages say; return for how long to wait for a notice."""
        wait: float = self._store.poll_seconds * (1 + 0.5 * fraction_of(self._entropy.token_bytes(7)))
        known = known_tasks()
        if self._work_wanted:
            self._work_wanted = False
            await self._claim(known)
        if self._mail_wanted and known:
            self._mail_wanted = await self._mailbox.look(known)
            if self._mail_wanted:
                self._wake.set()
        return wait

    async def _claim(self, known: list[Known]) -> None:
        """Claim as many runs as there are slots."""
        free = self._scheduler.free
        if not free or not known:
            self._scheduler.elsewhere = ASSUMED_ELSEWHERE if known else 0
            self._lifecycle.residence.crowded()  # it is not known that none waits: who only waits itself may go to sleep
            return
        users = self._places.users
        claimed = await self._store.claim(known, min(free, CLAIM_MAX), self._clock.now(), users)
        self._scheduler.elsewhere = ASSUMED_ELSEWHERE if claimed.more else 0
        entries = self._table.place(claimed.held)
        await self._read_ahead(entries)
        for entry in entries:
            if not entry.lost:
                self._lifecycle.go_on(entry)
        if claimed.more or (users is not None and any(held.run.user is not None for held in claimed.held)):
            self.work()
        if claimed.next_due is not None:
            self.expect(claimed.next_due)

    async def _read_ahead(self, entries: list[Entry]) -> None:
        """Read the histories of those that have begun before, all at once."""
        begun = [entry for entry in entries if entry.run.started_at is not None and not entry.run.ended]
        if len(begun) > 1:
            try:
                found = await self._store.histories([entry.run.run_id for entry in begun])
            except DurableError as error:
                logger.warning("histories cannot be read ahead: %s", error)
                return
            for entry in begun:
                entry.history = found.get(entry.run.run_id)
