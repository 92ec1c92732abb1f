"""Keeping: what is over goes when its time has come: closed runs, and dead letters that are too many or too old.

Law: it only ever forgets what `Store.prune` lets go, and discards dead letters by a command like anybody else's; where the store is away it
looks again later, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from itertools import islice

from durable.clock import Clock, Entropy, fraction_of
from durable.config import Limits, RetentionSettings
from durable.core.commands import Command, Discard
from durable.core.query import RunFilter, by_death
from durable.core.run import Run
from durable.engine.services import matching
from durable.errors import DurableError, RunNotFoundError, ShuttingDownError, TransitionError
from durable.store.base import Store

#: Runs that are read, and letters that are discarded, at once.
PAGE, AT_ONCE = 500, 50
#: How long after a run has died its letter is counted: those that die together are counted together. Seconds.
GATHER_SECONDS = 0.05
#: How long to let work go on between two batches: as long as a batch took, but within these bounds. Seconds.
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.01, 1.0

LETTERS = RunFilter(dead=True, limit=PAGE)

logger = logging.getLogger("durable.engine")


class Keeper:
    """See the module.

    Arguments:
        store: where runs are kept.
        settings: how long closed runs are kept.
        limits: tells what bounds dead letters now.
        clock: for the ages of runs.
        entropy: spreads the looks of executors that share the store; None where nobody shares it.
        command: has a run decide a command.
        alone: entered while runs are forgotten: keeps those away that would let one of them go on.
    """

    def __init__(
        self,
        store: Store,
        settings: RetentionSettings,
        limits: Callable[[], Limits],
        clock: Clock,
        *,
        entropy: Entropy | None,
        command: Callable[[str, Command], Awaitable[None]],
        alone: AbstractAsyncContextManager[object] | None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._limits = limits
        self._clock = clock
        self._entropy = entropy
        self._command = command
        self._alone: AbstractAsyncContextManager[object] = nullcontext() if alone is None else alone
        self._died = asyncio.Event()
        #: Dead letters, first those that died first, since there were too many: so that not all are read for each further one. Some
        #: may be none any more, and where others share the store there may be younger ones.
        self._oldest: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._work(), name="durable-keeper")

    async def close(self) -> None:
        """Look no more. A batch that is on its way is whole or not at all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def ended(self, run: Run) -> None:
        """A run has ended, durably."""
        if run.dead:
            self._died.set()
            if self._oldest:
                self._oldest.pop(run.run_id, None)
                self._oldest[run.run_id] = None

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        interval = self._settings.interval_seconds
        look_at = loop.time()
        if self._entropy is not None:
            look_at += interval * fraction_of(self._entropy.token_bytes(7))
        while True:
            letters = False
            try:
                if loop.time() >= look_at:
                    look_at = loop.time() + interval
                    letters = await self._bury(anew=True)
                    await self._prune()
                elif self._died.is_set():
                    await asyncio.sleep(GATHER_SECONDS)
                    self._died.clear()
                    letters = await self._bury(anew=False)
            except ShuttingDownError:
                return
            except DurableError as error:
                letters = True
                logger.warning("what is over stays longer: %s", error)
            except Exception:
                letters = True
                logger.exception("what is over stays longer: something failed that may not")
            # Where nothing can come of looking before somebody dies here, nothing is looked at.
            idle = not letters and self._entropy is None and self._settings.closed_seconds is None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if idle else look_at):
                    await self._died.wait()

    # --- dead letters -------------------------------------------------------------------------------------------------------------

    async def _bury(self, *, anew: bool) -> bool:
        """Discard dead letters that are too old or too many; tell whether any are left.

        Arguments:
            anew: whether this is one of the regular looks: what is known of letters here may be old.
        """
        limits = self._limits()
        if anew:
            self._oldest.clear()
            expired = RunFilter(dead=True, ended_by=self._clock.now() - limits.dead_letter_ttl, limit=PAGE)
            old = [run.run_id async for run in matching(self._store, expired)]
            await self._discard(old, f"not retried within {limits.dead_letter_ttl:g} s (limits.dead_letter_ttl)")
        most, has_read = limits.dead_letter_size, False
        while (count := await self._store.count(LETTERS)) > most:
            if not self._oldest and has_read:
                break  # those that are left changed meanwhile: at the next look it is known how
            if not self._oldest:
                has_read = True
                deaths = [by_death(run) async for run in matching(self._store, LETTERS)]
                self._oldest = dict.fromkeys(run_id for _, run_id in sorted(deaths))
            some = list(islice(self._oldest, count - most))
            for run_id in some:
                del self._oldest[run_id]
            await self._discard(some, f"the oldest of more than {most} dead letters (limits.dead_letter_size)")
        return count > 0

    async def _discard(self, run_ids: list[str], reason: str) -> None:
        for start in range(0, len(run_ids), AT_ONCE):
            some = run_ids[start : start + AT_ONCE]
            outcomes = await asyncio.gather(
                *(self._command(run_id, Discard(reason)) for run_id in some), return_exceptions=True
            )
            for outcome in outcomes:
                # Somebody may have retried or discarded it meanwhile.
                if outcome is not None and not isinstance(outcome, TransitionError | RunNotFoundError):
                    raise outcome
        if run_ids:
            logger.warning("%d dead letters were discarded: %s", len(run_ids), reason)

    # --- closed runs ----------------------------------------------------------------------------------------------------------------

    async def _prune(self) -> None:
        kept = self._settings.closed_seconds
        if kept is None:
            return
        loop = asyncio.get_running_loop()
        before, gone, count = self._clock.now() - kept, 0, 1
        while count:
            began = loop.time()
            async with self._alone:
                count = await self._store.prune(before, self._settings.batch_runs)
            gone += count
            if count:
                await asyncio.sleep(min(max(loop.time() - began, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX))
        if gone:
            logger.info(
                "%d runs were forgotten that had ended %g s ago or longer (retention.closed_seconds)", gone, kept
            )
