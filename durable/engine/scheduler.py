"""The scheduler: which run begins when.

Law: never more runs hold a slot than this process has slots, and none without a place, of which `Places` gives each user no more than may
be; of those that wait and may have one, the one that stands first. A run stands where its creation puts it: a minute earlier for each
point of priority, so that none waits for ever, and the n-th child of a family n hundredths of a second later, so that a large family does
not keep out all others. A run that the body of another waits for, as its child or by its handle, takes no slot of its own: the other
holds one for it, and could not end otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from durable.clock import Clock
from durable.engine.entry import Entry
from durable.engine.recoveries import Recoveries
from durable.errors import ShuttingDownError, SlotTimeoutError
from durable.guard.pace import Pace
from durable.guard.places import Places
from durable.guard.queue import FairQueue

#: How much earlier than it was created a run stands for each point of priority, seconds.
PRIORITY_SECONDS = 60.0
#: How much later each child of a family stands than the one before, seconds.
SIBLING_SECONDS = 0.01
#: Longest that a timer runs before the wall clock is looked at again, seconds: it may have been set.
TIMER_SECONDS_MAX = 3600.0


class Scheduler:
    """Slots, and the queue for them.

    Arguments:
        slots: how many runs this process executes at once.
        places: bound those of all, and of each user.
        begin: stages the beginning of a run that has its slot.
        crowded: called when a run has to wait for a slot.
        recoveries: places for runs that go on after a crash.
    """

    def __init__(
        self, clock: Clock, slots: int, places: Places, begin: Callable[[Entry], None], crowded: Callable[[], None],
        recoveries: Recoveries,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._slots = slots
        self._places = places
        places.freed = self._freed
        self._begin = begin
        self._crowded = crowded
        self.recoveries = recoveries
        self._queue: FairQueue[Entry] = FairQueue()
        self._filling = False
        #: Runs that were started and have to wait, on their way into the queue.
        self._coming: set[Entry] = set()
        #: Starts that wait for a slot before their run is created.
        self._asking: dict[Entry, asyncio.Future[None]] = {}
        #: How fast the queue moves.
        self.pace = Pace(clock)
        self.running = 0
        self.closed = False
        #: No run may take a slot now.
        self.paused = False
        #: About how many runs wait in the store for a slot, here or anywhere: see `claims.py`.
        self.elsewhere = 0
        #: Called when a slot has become free that no run here waits for.
        self.on_free: Callable[[], None] | None = None

    @property
    def queued(self) -> int:
        """About how many runs wait for a slot."""
        return self.queued_here + self.elsewhere

    @property
    def queued_here(self) -> int:
        """Runs in this process's hands that wait for a slot."""
        return len(self._queue)

    @property
    def wanted(self) -> int:
        """About how many slots runs wait for."""
        return max(self.queued, self._places.some_missed)

    @property
    def starts_waiting(self) -> int:
        """Runs that were started, by nobody's body, and wait for their first slot."""
        return self._queue.starts + len(self._coming)

    @property
    def free(self) -> int:
        """Slots that no run here has or waits for; those set aside because of their user wait for a place, not for a slot."""
        if self.closed or self.paused:
            return 0
        return max(min(self._slots - self.running, self._places.room) - self._queue.ready - self.recoveries.waiting, 0)

    def change(self, slots: int) -> None:
        """There are so many slots now, and other places: what runs goes on, what may begin begins."""
        self._slots = slots
        self._queue.freed_all()
        self.fill()

    def close(self) -> None:
        """No run begins any more."""
        self.closed = True
        for asking in self._asking.values():
            if not asking.done():
                asking.set_exception(ShuttingDownError("the application was closed before the start had a slot"))

    def try_slot(self, entry: Entry) -> bool:
        """Take a slot for a run that begins at once, if there is one and nobody waits for it."""
        if self.elsewhere and not self._is_free(entry):
            return False
        return self._try_slot(entry)

    def _try_slot(self, entry: Entry) -> bool:
        if self.closed or self.paused:
            return False
        if self._is_free(entry):
            entry.counted = False
        elif self._queue.ready or self.running >= self._slots or not self._places.take(entry.run.user):
            return False
        else:
            entry.counted = True
            self.running += 1
        entry.slot = True
        return True

    async def wait_for_slot(self, entry: Entry, seconds: float, waited: float = 0.0) -> None:
        """Wait, in turn, until the run that is about to be created has a slot. Raises `SlotTimeoutError`, `ShuttingDownError`.

        Arguments:
            seconds: how long it may wait.
            waited: how long it has waited already, for something else.
        """
        if self.closed:
            raise ShuttingDownError("the application is closing and takes no new work")
        asking = self._asking[entry] = asyncio.get_running_loop().create_future()
        try:
            self._enqueue(entry)
            async with asyncio.timeout(max(seconds - waited, 0.0)):
                await asking
        except BaseException as error:
            if isinstance(error, TimeoutError) and entry.slot:
                return  # in the very turn in which the time was over
            self.forget(entry)
            self.release(entry)
            if isinstance(error, TimeoutError):
                raise SlotTimeoutError(
                    f"no slot became free in {seconds:.3g} s (limits.slot_timeout), and no run may wait for one "
                    "(limits.max_queued=0); nothing was stored: try again later",
                    timeout=seconds,
                ) from None
            raise
        finally:
            self._asking.pop(entry, None)

    def expect(self, entry: Entry) -> None:
        """A run that is being created will have to wait: it counts for the queue from now on."""
        self._coming.add(entry)

    def schedule(self, entry: Entry) -> None:
        """Let the run begin at its time, when there is a slot."""
        self._coming.discard(entry)
        if self.closed or entry.slot or entry.place:
            return
        due = entry.run.due
        if due is None or entry.run.ended:
            return
        wait = due - self._clock.now()
        if wait > 0:
            if entry.timer is None:
                loop = asyncio.get_running_loop()
                entry.timer = loop.call_later(min(wait, TIMER_SECONDS_MAX), self._due, entry)
            return
        if entry.run.executing and not self.recoveries.enter(entry, self._standing_of(entry)):
            return
        if self._try_slot(entry):
            self._begin(entry)
        else:
            self._enqueue(entry)

    def _enqueue(self, entry: Entry) -> None:
        run = entry.run
        starts = run.parent_id is None and run.started_at is None
        entry.place = self._queue.push(self._standing(entry), run.run_id, run.user, entry, starts=starts)
        if len(self._queue) == 1:
            self.pace.stood()
        self._fill()  # as a rule there is no slot; but if it is its user who has no place, it shall not stand in the way
        self._crowded()

    def hasten(self, entry: Entry) -> None:
        """A body began to wait for the run: it shall not wait for the slot that this body holds."""
        entry.awaited += 1
        if entry.place:
            self.forget(entry)
            self.schedule(entry)

    def release(self, entry: Entry) -> None:
        """Give the slot back, and begin who is next."""
        if entry.slot:
            entry.slot = False
            if entry.counted:
                self.running -= 1
                self._places.give(entry.run.user)
                self._queue.freed(entry.run.user)
        self.caught_up(entry)
        self.fill()

    def caught_up(self, entry: Entry) -> None:
        """The run does not repeat any more what it did before: others may."""
        self.recoveries.leave(entry)
        while not self.closed and (following := self.recoveries.next()) is not None:
            self.schedule(following)
            if not (following.slot or following.place):
                self.recoveries.leave(following)  # it no longer wants to begin

    def forget(self, entry: Entry) -> bool:
        """The run no longer wants to begin; returns whether it was about to go on after a crash, and has not."""
        self._coming.discard(entry)
        waited = self.recoveries.leave(entry) or (entry.place is not None and entry.run.executing)
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.place:
            self._queue.drop(entry.place)
            entry.place = None
        return waited

    def frees_for_others(self, entry: Entry) -> bool:
        """Whether a run that waits could begin if this one gave its slot up."""
        user = entry.run.user
        return self.elsewhere > 0 or self._queue.ready > 0 or self._queue.is_aside(user) or self._places.is_missed(user)

    def may_seek_slot(self, user: str | None) -> bool:
        """Whether a run of this user has no slot now, but may have one after what is soon known."""
        return (
            self._places.may_come(user)
            and self.running < self._slots
            and not (self.closed or self.paused or self.elsewhere)
        )

    async def seek_slot(self, entry: Entry) -> bool:
        """Take a slot for a run that begins at once, if there is one after what is soon known."""
        while not self.try_slot(entry):
            if not await self._places.seek(entry.run.user):
                return False
        return True

    def _is_free(self, entry: Entry) -> bool:
        if entry.awaited:
            return True
        parent = entry.parent
        return parent is not None and not entry.run.joined and not parent.run.asleep

    def _standing(self, entry: Entry) -> float:
        parent, standing = entry.parent, self._standing_of(entry)
        if parent is None:
            return standing
        parent.branches += 1
        return standing + SIBLING_SECONDS * parent.branches

    @staticmethod
    def _standing_of(entry: Entry) -> float:
        return entry.run.created_at - PRIORITY_SECONDS * entry.run.priority

    def _due(self, entry: Entry) -> None:
        entry.timer = None
        self.schedule(entry)

    def _freed(self, user: str | None) -> None:
        """There may be a place that was refused before."""
        self._queue.freed(user)
        self.fill()

    def fill(self) -> None:
        """Begin as many runs as there are slots and places."""
        self._fill()
        if self.elsewhere and self.on_free is not None and not self._queue.ready and self.running < self._slots:
            self.on_free()

    def _fill(self) -> None:
        if self._filling:
            return  # a run that cannot begin gives its slot back at once: who fills goes on
        self._filling = True
        try:
            while self.running < self._slots and not self.closed and not self.paused:
                turn = self._queue.first()
                if turn is None:
                    return
                entry = turn.what
                if entry.slot or entry.run.due is None or entry.run.ended:
                    self._queue.pop()
                    entry.place = None
                elif not self._places.take(turn.user):
                    if self._places.full:
                        return
                    self._queue.set_aside()
                else:
                    self._queue.pop()
                    self.pace.moved()
                    self._give(entry)
        finally:
            self._filling = False

    def _give(self, entry: Entry) -> None:
        """It has a place: let it begin."""
        entry.place = None
        entry.slot = entry.counted = True
        self.running += 1
        asking = self._asking.get(entry)
        if asking is not None:
            if not asking.done():
                asking.set_result(None)
        else:
            self._begin(entry)
