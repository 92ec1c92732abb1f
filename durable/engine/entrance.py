"""The entrance: what a start from outside has to pass before its run is made.

Law: from the moment at which a start is let in until its run is on the table and known to the queue nothing is awaited, so that no other
start is decided on what is no longer so. What bodies and steps start is not held up: their run has been let in.
"""

from __future__ import annotations

import asyncio

from durable.clock import Clock
from durable.core.commands import Create
from durable.core.run import Run
from durable.engine.entry import Entry
from durable.engine.scheduler import Scheduler
from durable.errors import ConfigError, DurableError, ShuttingDownError, SlotTimeoutError
from durable.guard.gate import Gate, StartAsked
from durable.store.base import Store
from durable.tasks.host import Host, current_identity, current_scope


class Entrance:
    """Lets starts in."""

    def __init__(self, gate: Gate, scheduler: Scheduler, store: Store, host: Host, clock: Clock) -> None:
        self.gate = gate
        self._scheduler = scheduler
        self._store = store
        self._host = host
        self._clock = clock

    def check_store(self, task: str, user: str | None) -> None:
        """Raise where the store takes no new runs now."""
        try:
            self._store.admit()
        except DurableError:
            self.gate.refused("store", task, user)
            raise

    async def let_in(self, run_id: str, create: Create, came: float) -> Entry | None:
        """Let a start in; returns its run where that was needed to decide, with its slot if it has one.

        Arguments:
            came: when the start was asked for, by the loop's clock: it waits for a slot no longer than `limits.slot_timeout` from then.

        Raises `BackpressureError`, `SlotTimeoutError`, `ShuttingDownError`.
        """
        if not self._is_from_outside():
            return None
        gate, scheduler = self.gate, self._scheduler
        seeks = not create.delay and scheduler.may_seek_slot(create.user)
        if gate.is_open and not seeks:
            gate.let_by()
            return None
        run = Run(run_id, user=create.user, priority=create.priority, created_at=self._clock.now())
        entry = Entry(run, current_identity.get())
        has_slot = bool(create.delay) or await scheduler.seek_slot(entry)
        if gate.is_open:
            gate.let_by()
            return entry
        asked = StartAsked(run_id, create.user, not has_slot)
        try:
            if asked.waits and gate.slot_timeout is not None:
                gate.foresee(asked, create.task)
                waited = asyncio.get_running_loop().time() - came
                await self._wait_for_slot(entry, create, gate.slot_timeout, waited)
                asked = asked._replace(waits=False)
            await gate.let_in(asked, create.task)
        except BaseException:
            scheduler.release(entry)
            raise
        if asked.waits:
            scheduler.expect(entry)
        return entry

    async def let_in_on(self, run_id: str, create: Create) -> None:
        """Let a start in whose run comes into being with the caller's transaction."""
        if not self._is_from_outside():
            return
        if self.gate.slot_timeout is not None and not create.delay:
            raise ConfigError(
                "start(connection=...) makes a run that waits in the store, and limits.max_queued=0 lets none wait there",
                key="limits.max_queued",
            )
        await self.gate.let_in(StartAsked(run_id, create.user, not create.delay), create.task)

    def created(self, create: Create) -> None:
        """The start that was let in just now has created its run."""
        if not self.gate.is_open and self._is_from_outside():
            self.gate.created(create.user)

    def _is_from_outside(self) -> bool:
        scope = current_scope.get()
        return scope is None or scope.host is not self._host

    async def _wait_for_slot(self, entry: Entry, create: Create, seconds: float, waited: float) -> None:
        try:
            await self._scheduler.wait_for_slot(entry, seconds, waited)
        except SlotTimeoutError:
            self.gate.refused("slot_timeout", create.task, create.user)
            raise
        except ShuttingDownError:
            self.gate.refused("closing", create.task, create.user)
            raise
