"""Sharing: the parts by which several processes work on one store, put together.

Law: what concerns a run goes to who holds it. Who holds it decides; where nobody does, whoever asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from durable.clock import Clock, Entropy
from durable.config import EngineSettings, Limits
from durable.core.commands import Command
from durable.core.messages import Message
from durable.core.run import Run
from durable.engine.claims import Claims
from durable.engine.entry import Entry, Unit
from durable.engine.following import Following
from durable.engine.holding import HoldingResidence, HoldingTable
from durable.engine.leases import Lease
from durable.engine.lifecycle import Lifecycle
from durable.engine.mailbox import Mailbox
from durable.engine.pipeline import Pipeline
from durable.engine.places import SharedPlaces
from durable.engine.scheduler import Scheduler
from durable.errors import (
    DurableError,
    HistoryLimitError,
    LimitError,
    RepositoryUnavailableError,
    RunNotFoundError,
    TransitionError,
)
from durable.events.hub import Hub
from durable.store.shared import Notice, Parcel, SharedStore, make_token

#: What a run that is held elsewhere may refuse a command with, by the code that the answer carries.
REFUSALS = {error.code: error for error in (TransitionError, LimitError, HistoryLimitError)}


class Sharing:
    """One process's part in a shared store.

    Arguments:
        execute: whether it executes runs, or only starts and watches them.
        scanned: told of each look for runs of executors that are gone: how many there were, and how many seconds it took.
    """

    def __init__(
        self, store: SharedStore, hub: Hub, clock: Clock, entropy: Entropy, limits: Limits,
        *, execute: bool, scanned: Callable[[int, float], None],
    ) -> None:  # fmt: skip
        self.store = store
        self._clock = clock
        self._entropy = entropy
        self._execute = execute
        self._scanned = scanned
        self.table = HoldingTable(store)
        self.places = SharedPlaces(store, limits)
        self.following = Following(store, hub, lambda run_id: self.table.held(run_id) is not None)
        self._heard: dict[str, asyncio.Event] = {}
        self._claims: Claims
        self._leases: list[Lease] = []
        self._scheduler: Scheduler
        self._residence: HoldingResidence
        self._lifecycle: Lifecycle

    def residence(self, settings: EngineSettings) -> HoldingResidence:
        """Which runs stay here."""
        self._residence = HoldingResidence(self.table, self.store, self._clock, settings)
        return self._residence

    def connect(self, lifecycle: Lifecycle, pipeline: Pipeline, scheduler: Scheduler) -> None:
        """Put the parts together."""
        self._lifecycle = lifecycle
        mailbox = Mailbox(self.store, self.table, pipeline, lifecycle, self.following)
        self._claims = Claims(
            self.store, self.table, mailbox, scheduler,
            places=self.places, lifecycle=lifecycle, clock=self._clock, entropy=self._entropy,
        )  # fmt: skip
        self._scheduler = scheduler
        self._leases = [self._lease(number, shard) for number, shard in enumerate(self.store.shards)]
        lifecycle.offer, lifecycle.lost_by = self._offer, "stale"
        self.table.let_go = lifecycle.let_go
        self._residence.expect = self._claims.expect
        self.places.found, self.places.none_left = self._claims.work, self._hand_back
        lifecycle.ended.append(self.following.told)

    def _lease(self, number: int, shard: SharedStore) -> Lease:
        return Lease(
            shard, self._claims, self._entropy, partial(self._forsake_all, number), self._lease_changed,
            clock=self._clock, scanned=self._scanned,
        )  # fmt: skip

    async def open(self) -> None:
        """Begin to take part."""
        self.store.listen(self._noticed)
        self.table.open(self._claims.all)
        self.following.open()
        if self._execute:
            for lease in self._leases:
                await lease.open()
            await self.places.open()
            self._claims.open()

    async def stop(self) -> None:
        """Take no new work."""
        if self._execute:
            await self._claims.close()

    async def close(self, error: DurableError) -> None:
        """Let others have what is held here; tell who waits `error`."""
        self.following.close(error)
        for event in self._heard.values():
            event.set()
        if self._execute:
            await self.table.released()
            await asyncio.gather(self.places.close(), *(lease.close() for lease in self._leases))
            self.store.notify(work=True)

    def task_defined(self) -> None:
        """There is more that this process has the code of."""
        self._claims.work()

    async def ended(self, run_id: str, *, in_body: bool) -> Run:
        """Wait until a run has ended. One that a body waits for shall not wait for the slot that this body holds."""
        if not in_body:
            here = self.table.held(run_id)
            return await self.following.ended(run_id, is_here=here is not None and not here.settled)
        entry = await self.table.hold(run_id)
        if entry is None:
            return await self.following.ended(run_id)
        self._lifecycle.scheduler.hasten(entry)
        self._lifecycle.nudge(entry)
        try:
            return await self.following.ended(run_id)
        finally:
            entry.awaited -= 1
            self._lifecycle.let_go(entry)

    # --- what is decided elsewhere ------------------------------------------------------------------------------------------------

    async def send(self, run_id: str, command: Command, closed: Callable[[], None]) -> None:
        """Have who holds the run decide a command, and wait for its answer. Raises what refused it there.

        Arguments:
            closed: raises where this application is closed.
        """
        token = self._entropy.token_bytes(16).hex()
        message = Message(run_id, command, token)
        event = self._heard.setdefault(run_id, asyncio.Event())
        try:
            parcel = Parcel((), make_token(self._entropy), messages=[message])
            try:
                outcomes = await self.store.write([parcel])
            except RepositoryUnavailableError:
                # As a rule the connection was idle while the server was away. The parcel counts once.
                outcomes = await self.store.write([parcel])
            for error in outcomes:
                if error is not None:
                    raise error
            self._claims.mail()
            self.store.notify(mail=True)
            while (answer := await self.store.answer(token)) is None:
                closed()
                event.clear()
                try:
                    async with asyncio.timeout(self.store.poll_seconds):
                        await event.wait()
                except TimeoutError:
                    if await self.store.find(run_id) is None:
                        raise RunNotFoundError(
                            f"run {run_id} was forgotten before it answered (retention.closed_seconds)"
                        ) from None
        finally:
            self._heard.pop(run_id, None)
        if answer.code:
            raise REFUSALS.get(answer.code, DurableError)(answer.text)

    def publish(self, unit: Unit) -> None:
        """Act on a unit that is durable, and let others know what may concern them."""
        for entry in unit.entries:
            if entry.run.closed and self._lifecycle.services.pipeline.is_durable(entry):
                entry.owned = False  # nobody holds it any more: who tries it again has to claim it
        self._lifecycle.publish(unit)
        if unit.messages:
            self._claims.mail()
        news = {record.run_id for _, record in unit.items if record.visible}
        if news or unit.messages:
            self.store.notify(mail=bool(unit.messages), runs=news)

    # --- what is heard ------------------------------------------------------------------------------------------------------------

    def _noticed(self, notice: Notice) -> None:
        if notice.work:
            self.places.look()
            self._claims.work()
        if notice.mail:
            self._claims.mail()
        if notice.runs is None or notice.runs:
            self.following.heard(notice.runs)
            for run_id in list(self._heard) if notice.runs is None else notice.runs:
                if (event := self._heard.get(run_id)) is not None:
                    event.set()

    def _offer(self, entry: Entry) -> None:
        due = entry.run.due
        if due is not None and due > self._clock.now():
            self._claims.expect(due)
        elif due is not None:
            # Until claims have looked, who comes later shall not go first.
            self._scheduler.elsewhere = max(self._scheduler.elsewhere, 1)
            self._claims.work()
            self.store.notify(work=True)

    # --- runs that are given up -----------------------------------------------------------------------------------------------------

    def refused(self, entry: Entry) -> None:
        """What was decided for a run did not become durable: who holds it next goes on from what did."""
        is_here = self.table.get(entry.run.run_id) is entry
        self._lifecycle.forsake(entry)  # also where it was claimed anew meanwhile, and is another entry by now
        if is_here:
            self.table.release(entry)

    def _forsake_all(self, shard: int) -> None:
        for entry in self.table:
            if entry.owned and self.store.shard_of(entry.run.run_id) == shard:
                self._lifecycle.forsake(entry)
        if shard == 0:  # where the ledger lies
            self.places.forget()

    def _hand_back(self, user: str | None) -> None:
        """There is no place for this user, or for anybody: what waits here for one may begin elsewhere."""
        self._residence.crowded()  # who only waits may have one
        waiting = [entry for entry in self.table if entry.place and (user is None or entry.run.user == user)]
        if any([self._residence.hand_back(entry) for entry in waiting]):
            self.store.notify(work=True)

    def _lease_changed(self) -> None:
        self._scheduler.paused = all(lease.is_lost for lease in self._leases)
        self._scheduler.fill()

    def check_lease(self) -> None:
        """Give up where the lease has passed while nothing could be done about it: the event loop was blocked."""
        for lease in self._leases if self._execute else ():
            if lease.is_over:
                lease.give_up()
