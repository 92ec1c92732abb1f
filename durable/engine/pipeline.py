"""The pipeline: decisions in, durable records out.

Law: each decision sees all earlier ones (they are applied at once, to the entry alone); effects, answers and results come only after the
store acknowledged the record. While one commit is in flight the next batch gathers: no timer, no window.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from durable.clock import Clock
from durable.core.commands import Command
from durable.core.decide import decide
from durable.core.messages import Answer, Message
from durable.core.records import ENDS, Kind, Record
from durable.core.run import Run, apply
from durable.engine.entry import Entry, Unit
from durable.engine.lanes import UNIT_BYTES_MAX, Lane, size_of
from durable.errors import (
    DurableError,
    LeaseLostError,
    LogFencedError,
    RepositoryUnavailableError,
    ShuttingDownError,
    StorageError,
    StorageFullError,
)

logger = logging.getLogger("durable.engine")

#: Wait between tries while the disk is full or a repository that has to be asked is away, seconds.
RETRY_SECONDS = 0.5
#: Kinds of record that may mean something for other runs.
ENTAILING = ENDS | {Kind.CHILDREN_STARTED, Kind.CHILD_ENDED}


#: What a command is for: a run in hand, or the id of one that another process may hold.
Target = Entry | str
#: A command for a run, to be staged together with others.
Wish = tuple[Target, Command]
#: Turns a command into records: see `core.decide`.
Decide = Callable[[Run, Command, float, int], list[Record]]
#: Hands units to the store; returns for each None, or why it was refused.
Commit = Callable[[Sequence[Unit]], Awaitable[Sequence[DurableError | None]]]


class Pipeline:
    """Gathers records and commits them in batches.

    Arguments:
        commit: hands units to the store.
        publish: called for each unit once it is durable.
        entailed: tells, for a record of one of the kinds `ENTAILING`, what it means for other runs.
        on_failure: called once, when the store takes nothing more.
        on_refused: called for each run of a unit that the store refused, or will not take in time.
        on_lost: called with the id of each run that others may hold by now.
        check_lease: called before each commit; loses the runs that others may hold by now.
        lanes: in how many lanes; runs of one family are in the same.
        lane_of: tells a run's lane from its id.
        patience_seconds: how long to try when the store cannot be asked; None: as long as it takes.
    """

    def __init__(
        self,
        commit: Commit,
        clock: Clock,
        records_max: int,
        *,
        publish: Callable[[Unit], None],
        entailed: Callable[[Entry, Record], Iterable[Wish]],
        on_failure: Callable[[StorageError], None],
        on_refused: Callable[[Entry], None] = lambda entry: None,
        on_lost: Callable[[str], None] = lambda run_id: None,
        check_lease: Callable[[], None] = lambda: None,
        patience_seconds: float | None = None,
        lanes: int = 1,
        lane_of: Callable[[str], int] | None = None,
        decide: Decide = decide,
    ) -> None:
        self._hand_over = commit
        self._clock = clock
        self._records_max = records_max
        self._publish = publish
        self._entailed = entailed
        self._on_failure = on_failure
        self._on_refused = on_refused
        self._on_lost = on_lost
        #: What turns commands into records.
        self.decide = decide
        #: To be called before anything is done that counts only while the lease lasts.
        self.check_lease = check_lease
        self._patience_seconds = patience_seconds
        self._lanes = [Lane() for _ in range(lanes)]
        self._lane_of = lane_of
        self._some_lost = False
        self._closing = False
        self._closed = False
        self.failure: StorageError | None = None

    def open(self) -> None:
        """Start committing."""
        for lane in self._lanes:
            lane.worker = asyncio.get_running_loop().create_task(self._work(lane), name="durable-pipeline")

    async def close(self) -> None:
        """Commit what is pending, then stop."""
        self._closing = True
        self._kick_all()
        for lane in self._lanes:
            if lane.worker is not None:
                await lane.worker

    def _kick_all(self) -> None:
        for lane in self._lanes:
            lane.kick()

    # --- staging ----------------------------------------------------------------------------------------------------------------

    def stage(
        self, entry: Entry, command: Command, *further: Wish, answer: Answer | None = None, connection: Any = None
    ) -> list[Record]:
        """Decide a command and put its records into the next commit. Raises what `decide` raises, and the store's failure.

        Its records, those of `further` commands, and what all of them entail for other runs (which is never refused) become durable
        together or not at all; where one is refused, nothing is staged. Returns the records of the first command.

        Arguments:
            answer: the message that the command came by, which is gone with that commit.
            connection: the user's connection, in whose transaction the records are committed.
        """
        if self.failure is not None or self._closed or entry.lost:
            self._check(entry)
        decided = self.decide(entry.run, command, self._clock.now(), self._records_max)
        staged: list[tuple[Entry, Record]] = []
        messages: list[Message] = []
        work = deque(further)
        before = (
            [(other, other.run.copy()) for other in (entry, *_entries(further)) if other.run.seq] if further else []
        )
        try:
            self._take(entry, decided, staged, work)
            while work:
                other, command = work.popleft()
                if isinstance(other, str):
                    messages.append(Message(other, command))
                    continue
                if other.lost:
                    self._check(other)
                self._take(other, self.decide(other.run, command, self._clock.now(), self._records_max), staged, work)
        except BaseException:
            for other, run in before:
                other.run.become(run)
            raise
        if staged or messages or answer is not None:
            unit = self._place(entry, staged, connection)
            unit.messages += messages
            if answer is not None:
                self._answered(unit, entry, answer)
        return decided

    def answer(self, entry: Entry, answer: Answer, *messages: Message) -> None:
        """Have a message for the run be gone that changes nothing of it, and send others in its place."""
        self._answered(self.post(entry, messages), entry, answer)

    def post(self, entry: Entry, messages: Iterable[Message]) -> Unit:
        """Send messages for a run with its next commit."""
        self._check(entry)
        unit = entry.unit
        if unit is None or unit.connection is not None:
            unit = self._new_unit(entry, None)
        unit.messages += messages
        return unit

    def _answered(self, unit: Unit, entry: Entry, answer: Answer) -> None:
        unit.answers.append((entry, answer))
        entry.unit = unit

    def _check(self, entry: Entry) -> None:
        if self.failure is not None:
            raise LogFencedError(str(self.failure)) from self.failure
        if self._closed:
            raise ShuttingDownError("the application is closed: nothing more is recorded")
        if entry.lost:
            raise LeaseLostError(
                f"run {entry.run.run_id} is in other hands by now: nothing that is decided here counts"
            )

    def _take(
        self,
        entry: Entry,
        records: list[Record],
        staged: list[tuple[Entry, Record]],
        work: deque[Wish],
    ) -> None:
        for record in records:
            apply(entry.run, record)
            staged.append((entry, record))
        for record in records:
            if record.kind in ENTAILING:
                work.extend(self._entailed(entry, record))

    def _place(self, first: Entry, staged: list[tuple[Entry, Record]], connection: Any) -> Unit:
        """Put records into the unit of their runs, where it is one and has room, else into a new one at the end."""
        size, unit, mixed = 0, first.unit, connection is not None
        for entry, record in staged:
            size += size_of(record)
            if entry.unit is not None and entry.unit is not unit:
                mixed = mixed or unit is not None
                unit = entry.unit
        if unit is None or mixed or unit.connection is not None or unit.size_bytes + size > UNIT_BYTES_MAX:
            unit = self._new_unit(first, connection)
        unit.size_bytes += size
        unit.items += staged
        for entry, _ in staged:
            entry.unit = unit
        return unit

    def _new_unit(self, entry: Entry, connection: Any) -> Unit:
        unit = Unit()
        unit.connection = connection
        lane = self._lanes[0 if self._lane_of is None else self._lane_of(entry.run.run_id)]
        lane.pending.append(unit)
        lane.kick()
        return unit

    def durable(self, entry: Entry) -> asyncio.Future[None]:
        """A future that is done when everything staged for the entry is durable."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.failure is not None:
            waiter.set_exception(_outcome_unknown(self.failure))
        elif entry.lost:
            waiter.set_exception(LeaseLostError(f"run {entry.run.run_id} is in other hands by now"))
        elif entry.unit is not None:
            entry.unit.waiters.append(waiter)
        elif entry.in_flight is not None:
            entry.in_flight.waiters.append(waiter)
        else:
            waiter.set_result(None)
        return waiter

    def is_durable(self, entry: Entry) -> bool:
        """Whether nothing that was staged for the entry is still on its way."""
        return entry.unit is None and entry.in_flight is None

    async def _work(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed:
            if not lane.pending:
                if self._closing and not any(other.pending or other.busy for other in self._lanes):
                    self._closed = True  # in this very turn: nothing may be staged that nobody commits
                    self._kick_all()
                    return
                lane.wake = loop.create_future()
                await lane.wake
                continue  # one turn has passed: what else became runnable in it has staged its records too
            lane.busy = True
            going = await self._commit_pending(lane)
            lane.busy = False
            if self._closing:
                self._kick_all()  # the last lane to be done closes all
            if not going:
                return
            await asyncio.sleep(0)  # those who were told stage their next records first, and share one commit

    async def _commit_pending(self, lane: Lane) -> bool:
        """Commit what has gathered, and act on it; False when the store takes nothing more."""
        units, lane.pending = lane.pending, []
        for unit in units:
            for entry, _ in unit.items:
                entry.unit = None
                entry.in_flight = unit
            for entry, _ in unit.answers:
                entry.unit = None
                entry.in_flight = unit
        try:
            for unit, refusal in zip(units, await self._commit(units), strict=False):
                if refusal is not None:
                    self._refuse(unit, refusal)
                    continue
                for entry, _ in unit.items:
                    if entry.in_flight is unit:  # else more of it is to be published
                        entry.in_flight = None
                for entry, _ in unit.answers:
                    if entry.in_flight is unit:
                        entry.in_flight = None
                self._publish(unit)
                for waiter in unit.waiters:
                    if not waiter.done():
                        waiter.set_result(None)
        except StorageError as error:
            self._fail(error, units)
            return False
        except (
            Exception
        ) as error:  # a store that breaks its contract, or a defect: what became of the records is not known
            logger.exception("a commit, or what follows from it, failed in a way that it may not")
            self._fail(StorageError(f"the store raised {error!r}, which no store may"), units)
            return False
        return True

    async def _commit(self, units: list[Unit]) -> Sequence[DurableError | None]:
        told: type[StorageError] | None = None
        started = asyncio.get_running_loop().time()
        while True:
            self.check_lease()
            if self._some_lost:
                units[:] = self._without_lost(units)
            if not units:
                return ()
            try:
                return await self._hand_over(units)
            except (StorageFullError, RepositoryUnavailableError) as error:  # nothing was written; later it can be
                if told is not type(error):
                    logger.error("nothing can be committed now, work waits: %s", error)
                    told = type(error)
                await asyncio.sleep(RETRY_SECONDS)
                waited = asyncio.get_running_loop().time() - started
                if self._patience_seconds is not None and (self._closing or waited > self._patience_seconds):
                    return [error] * len(units)
                if self._closing:
                    raise

    # --- runs that others hold by now ---------------------------------------------------------------------------------------------

    def lose(self, entry: Entry) -> None:
        """The run may be in other hands: nothing that was decided here and is not durable counts, nor what is decided from now on."""
        entry.lost = self._some_lost = True
        self._on_lost(entry.run.run_id)

    def _without_lost(self, units: list[Unit]) -> list[Unit]:
        """The units that concern no lost run. Refusing one loses those that share it with a lost run."""
        while lost := [unit for unit in units if any(entry.lost for entry in unit.entries)]:
            units = [unit for unit in units if unit not in lost]
            for unit in lost:
                self._refuse(
                    unit, LeaseLostError("a run is in other hands by now: what was decided here does not count")
                )
        return units

    def _refuse(self, unit: Unit, error: DurableError) -> None:
        for waiter in unit.waiters:
            if not waiter.done():
                waiter.set_exception(error)
        for entry in set(unit.entries):
            if entry.in_flight is unit:
                entry.in_flight = None
            self.lose(entry)
            self._on_refused(entry)

    def _fail(self, error: StorageError, units: list[Unit]) -> None:
        self.failure = error
        logger.critical("the store failed and takes nothing more in this process: %s", error)
        pending = [unit for lane in self._lanes for unit in lane.pending]
        for unit in (*units, *pending):
            for waiter in unit.waiters:
                if not waiter.done():
                    waiter.set_exception(_outcome_unknown(error))
        for lane in self._lanes:
            lane.pending = []
        self._on_failure(error)


def _entries(wishes: Iterable[Wish]) -> Iterator[Entry]:
    return (target for target, _ in wishes if isinstance(target, Entry))


def _outcome_unknown(error: StorageError) -> DurableError:
    fenced = LogFencedError(f"the outcome is unknown: {error}")
    fenced.__cause__ = error
    return fenced
