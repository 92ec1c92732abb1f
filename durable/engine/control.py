"""Control: what people ask of runs, decided where the run is held.

Law: nothing is said to be done that is not durable. Where another process changed the run meanwhile, the command is decided anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from durable.core.commands import Command
from durable.engine.entry import Entry
from durable.engine.holding import HeldElsewhere
from durable.engine.lifecycle import Lifecycle
from durable.engine.pipeline import Pipeline
from durable.engine.revival import Revival
from durable.engine.sharing import Sharing
from durable.engine.table import Table
from durable.errors import LeaseLostError, RunNotFoundError, TransitionError

#: How often a command is decided anew, and how long to wait before that, seconds.
TRIES, TRY_SECONDS = 200, 0.02


class Control:
    """Commands for runs.

    Arguments:
        check_open: raises where the application is not open.
    """

    def __init__(
        self, table: Table, pipeline: Pipeline, lifecycle: Lifecycle, revival: Revival,
        sharing: Sharing | None, check_open: Callable[[], None],
    ) -> None:  # fmt: skip
        self._table = table
        self._pipeline = pipeline
        self._lifecycle = lifecycle
        self._revival = revival
        self._sharing = sharing
        self._check_open = check_open

    async def load(self, run_id: str) -> Entry:
        """The run, read from the store if need be. Raises `RunNotFoundError`."""
        entry = await self._table.load(run_id)
        if entry is None:
            raise RunNotFoundError(f"no run has the id {run_id!r} in this store")
        return entry

    async def command(self, run_id: str, command: Command) -> None:
        """Have a run decide a command, durably."""
        self._check_open()
        try:
            await self._decided(run_id, lambda entry: self._pipeline.stage(entry, command))
        except HeldElsewhere:
            assert self._sharing is not None
            await self._sharing.send(run_id, command, self._check_open)

    async def retry(self, run_id: str, letter_retries: int | None = None) -> None:
        """Try a failed run again; see `Revive.letter_retries`."""
        self._check_open()
        for left in reversed(range(TRIES)):
            try:
                return await self._decided(run_id, partial(self._revival.revive, letter_retries=letter_retries))
            except HeldElsewhere:  # one of the family is not yet cancelled
                if not left:
                    raise TransitionError(f"run {run_id} cannot be retried yet: its family is still at work") from None
            except TransitionError:
                if self._sharing is None or not left:
                    raise
                run = await self._sharing.store.find(run_id)
                if run is None or not run.ended or run.closed:
                    raise
            await asyncio.sleep(TRY_SECONDS)
        return None

    async def _decided(self, run_id: str, decide: Callable[[Entry], object]) -> None:
        for left in reversed(range(TRIES)):
            entry = await self.load(run_id)
            entry.held += 1
            try:
                deciding = decide(entry)
                if isinstance(deciding, Awaitable):
                    await deciding
                await self._pipeline.durable(entry)
                return
            except LeaseLostError:
                if not left:
                    raise
            finally:
                entry.held -= 1
                self._lifecycle.let_go(entry)
            await asyncio.sleep(TRY_SECONDS)
