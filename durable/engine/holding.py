"""Holding: how runs of a shared store come to the table of this process, and leave it.

Law: a run is held by one process, and that one alone executes it and decides for it. A run that nobody holds may be written to by anyone
who knows its last state: the store refuses all but the first, and who was refused looks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from durable.clock import Clock
from durable.config import EngineSettings
from durable.core.run import Run
from durable.engine.entry import Entry
from durable.engine.pipeline import RETRY_SECONDS
from durable.engine.residence import Residence
from durable.engine.table import Table
from durable.errors import DurableError
from durable.store.shared import Held, SharedStore
from durable.tasks.host import UserContext

logger = logging.getLogger("durable.engine")

#: Identities of runs that wait in the store, kept for when they are claimed here; the oldest go first.
IDENTITIES_MAX = 10_000
#: A run that is due again within so many seconds is kept.
KEEP_SECONDS = 5.0


class HeldElsewhere(Exception):
    """Another process holds the run: it has to be asked by a message."""


class HoldingTable(Table):
    """The runs that this process holds, and for a moment others that nobody holds."""

    def __init__(self, store: SharedStore) -> None:
        super().__init__(store, lambda entry: None)
        self._shared = store
        #: Runs that are being let go of: nobody holds them as soon as that is done.
        self._leaving: dict[str, int] = {}
        #: All that a task is letting go of, since it began.
        self._parting: set[str] = set()
        self._freed: Callable[[], None] = lambda: None
        self._releasing: asyncio.Task[None] | None = None
        self._identities: dict[str, UserContext] = {}
        #: Called with a run that nobody needs in memory any more who did.
        self.let_go: Callable[[Entry], None] = lambda entry: None

    def family(self) -> str | None:
        """See `SharedStore.family`."""
        return self._shared.family()

    def held(self, run_id: str) -> Entry | None:
        """The run, if it is held here."""
        entry = self.get(run_id)
        return entry if entry is not None and entry.owned and not entry.lost else None

    async def load(self, run_id: str) -> Entry | None:
        """See `Table.load`. What was read for somebody who no longer waits is let go: it would grow old here."""
        try:
            return await super().load(run_id)
        except asyncio.CancelledError:
            if (loading := self._loading.get(run_id)) is not None:
                loading.add_done_callback(lambda _: self._forget(run_id))
            else:
                self._forget(run_id)
            raise

    def _forget(self, run_id: str) -> None:
        if (entry := self.get(run_id)) is not None:
            self.let_go(entry)

    async def _read(self, run_id: str) -> Entry | None:
        while True:
            held = (await self._shared.read((run_id,))).get(run_id)
            if (entry := self.get(run_id)) is not None:
                return entry  # claimed meanwhile: that is newer
            if held is None:
                return None
            if held.owner is None:
                return self._place(held, owned=False)
            if held.owner != self._shared.shards[self._shared.shard_of(run_id)].executor_id:
                raise HeldElsewhere(run_id)
            if self._releasing is None:
                raise HeldElsewhere(run_id)  # it is on its way to the table
            await asyncio.wait((self._releasing,))

    async def has_mail(self, run_id: str) -> bool:
        """Whether messages wait for the run."""
        placement = await self._shared.placement(run_id)
        return placement is not None and placement.messages > 0

    async def take(self, run_ids: Sequence[str]) -> list[Entry]:
        """Take hold of those of these runs that nobody holds."""
        while self._releasing is not None and not self._parting.isdisjoint(run_ids):
            await asyncio.wait((self._releasing,))  # until then they are this process's own, and cannot be taken
        entries = [self._place(held, owned=True) for held in await self._shared.take(run_ids)]
        for entry in entries:
            if entry.run.closed:
                self.release(entry)  # nothing will be written by which it would be let go of
        return entries

    async def hold(self, run_id: str) -> Entry | None:
        """The run, held here; taken if nobody held it, None if others do."""
        entry = self.held(run_id)
        return entry if entry is not None else next(iter(await self.take([run_id])), None)

    async def look_up(self, run_ids: Sequence[str]) -> tuple[list[Entry], list[str]]:
        """Those of these runs that are held here or by nobody, and the ids of those that others hold."""
        entries = [entry for run_id in run_ids if (entry := self.held(run_id)) is not None]
        here = {entry.run.run_id for entry in entries}
        elsewhere: list[str] = []
        for run_id, held in (await self._shared.read([each for each in run_ids if each not in here])).items():
            if (entry := self.get(run_id)) is not None:
                entries.append(entry)
            elif held.owner is None:
                entries.append(self._place(held, owned=False))
            else:
                elsewhere.append(run_id)
        return entries, elsewhere

    def place(self, held: Iterable[Held]) -> list[Entry]:
        """Put runs on the table that were claimed."""
        return [self._place(each, owned=True) for each in held]

    def _place(self, held: Held, *, owned: bool) -> Entry:
        run = held.run
        parent = None
        if owned and run.attached and run.parent_id is not None and not run.ended:
            parent = self.held(run.parent_id)
        entry = Entry(run, self._identities.pop(run.run_id, None) if owned else None, parent)
        entry.epoch, entry.owned = held.epoch, owned
        entry.settled, entry.restored = run.ended, run.started_at is not None
        if parent is not None and (known := parent.awaits.get(run.run_id)) is not None:
            entry.on_end = known.on_end
            parent.awaits[run.run_id] = entry  # the body that awaits it is told by this one
        self.add(entry)
        return entry

    def drop(self, entry: Entry) -> list[Entry]:
        """See `Table.drop`. Whose run it is that waits in the store for a slot, nobody else knows."""
        if entry.identity is not None and not entry.owned and not entry.run.ended:
            self._identities[entry.run.run_id] = entry.identity
            if len(self._identities) > IDENTITIES_MAX:
                del self._identities[next(iter(self._identities))]
        return super().drop(entry)

    # --- letting go ---------------------------------------------------------------------------------------------------------------

    def open(self, freed: Callable[[], None]) -> None:
        """Begin; `freed` is called after runs were let go of that others, or this process, may want."""
        self._freed = freed

    def release(self, entry: Entry) -> None:
        """Let others have the run."""
        if entry.owned and entry.run.seq:
            self._leaving[entry.run.run_id] = entry.epoch
            self._parting.add(entry.run.run_id)
            if self._releasing is None:
                self._releasing = asyncio.create_task(self._release(), name="durable-release")

    async def _release(self) -> None:
        await asyncio.sleep(0)  # those that leave in the same turn leave together
        try:
            while self._leaving:
                leaving, self._leaving = self._leaving, {}
                try:
                    await self._shared.release(leaving.items())
                except DurableError as error:
                    # They stay this process's as long as it renews its lease: it has to try again.
                    logger.warning("%d runs cannot be let go of now: %s", len(leaving), error)
                    self._leaving = {**leaving, **self._leaving}
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._releasing = None
            self._parting.clear()
        self._freed()

    async def released(self) -> None:
        """Wait until what left is free, or others take it because the lease has passed."""
        if self._releasing is not None:
            await asyncio.wait((self._releasing,), timeout=self._shared.lease_seconds)
        if self._releasing is not None:
            self._releasing.cancel()


class HoldingResidence(Residence):
    """Keeps only runs in which something goes on: what waits is free for whoever it falls due for."""

    def __init__(self, table: HoldingTable, store: SharedStore, clock: Clock, settings: EngineSettings) -> None:
        super().__init__(table, store, clock, settings)
        self._holding = table
        #: Told when a run will be due that is let go of.
        self.expect: Callable[[float], None] = lambda due: None

    def rest(self, entry: Entry) -> None:
        """Nothing goes on in the run now."""
        if not self.pipeline.is_durable(entry) or entry.task is not None or entry.slot or entry.children or entry.held:
            return
        if self._table.get(entry.run.run_id) is not entry:  # it was claimed meanwhile, and is another entry by now
            for relative in self._table.drop(entry):
                self.rest(relative)
            return
        if entry.owned and (entry.place or entry.identity is not None or self._is_soon(entry.run)):
            return
        self._dismiss(entry)

    def hand_back(self, entry: Entry) -> bool:
        """Let others have a run that waits for a slot, if it may go on elsewhere; whether it does."""
        may = (
            entry.owned and entry.identity is None and not (entry.awaited or entry.children or entry.held or entry.slot)
        )
        if not may or entry.task is not None or not self.pipeline.is_durable(entry):
            return False
        self._dismiss(entry)
        return True

    def _is_soon(self, run: Run) -> bool:
        return run.due is not None and run.due - self._clock.now() < KEEP_SECONDS

    def _dismiss(self, entry: Entry) -> None:
        self.scheduler.forget(entry)
        if not entry.lost:
            self._holding.release(entry)
        if entry.run.due is not None:
            self.expect(entry.run.due)
        for relative in self._table.drop(entry):
            self.rest(relative)
