"""`app.dead_letters`: runs that ended in failure, and what can be done about them.

Law: a dead letter is a run that says of itself that it is one. Nothing is kept of it beside the run, so nothing is lost with a process.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from operator import itemgetter
from typing import Any

from durable.core.query import RunFilter, by_death
from durable.core.run import Run
from durable.engine.engine import Engine
from durable.engine.services import matching
from durable.errors import LimitError, RunNotFoundError, TransitionError
from durable.tasks.handle import RunInfo
from durable.tasks.task import Task

#: Runs that are read at once.
PAGE = 500

logger = logging.getLogger("durable.engine")


class DeadLetters:
    """Runs that ended in failure after their last attempt, and were not retried or discarded since.

    `Limits` bounds them: with one more than `dead_letter_size` the oldest is discarded, and so is each after `dead_letter_ttl`. A run that
    is discarded stays, with its history, and its handle can still retry it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def list(self, *, task: Task[..., Any] | str | None = None) -> AsyncIterator[RunInfo]:
        """All dead letters, or those of one task; first the one that died first."""
        self._engine.check_readable()
        letters = [(by_death(run), RunInfo.of(run)) async for run in self._matching(task)]
        letters.sort(key=itemgetter(0))
        for _, letter in letters:
            yield letter

    async def count(self, *, task: Task[..., Any] | str | None = None) -> int:
        """How many dead letters there are, or how many of one task."""
        self._engine.check_readable()
        return await self._engine.store.count(RunFilter(dead=True, task=_name(task)))

    async def retry(self, run_id: str) -> None:
        """Let the run go on from the step that failed, with all that it has on record.

        Raises `RunNotFoundError`; `TransitionError` for a run that cannot be retried; `LimitError` for one that was retried in this way
        `Limits.dead_letter_retries` times.
        """
        await self._engine.retry_letter(run_id)

    async def retry_all(self, *, task: Task[..., Any] | str | None = None) -> int:
        """Retry all dead letters, or those of one task, the oldest first; returns how many go on.

        Those stay on the list that may not be retried again, and children whose parent is no dead letter.
        """
        count = 0
        async for letter in self.list(task=task):
            try:
                await self._engine.retry_letter(letter.run_id)
                count += 1
            except (LimitError, RunNotFoundError, TransitionError) as error:
                logger.info("dead letter %s stays: %s", letter.run_id, error)
        return count

    async def discard(self, run_id: str) -> None:
        """Take the run off the list; its history stays. Raises `RunNotFoundError`, `TransitionError`."""
        await self._engine.discard_run(run_id)

    def _matching(self, task: Task[..., Any] | str | None) -> AsyncIterator[Run]:
        return matching(self._engine.store, RunFilter(dead=True, task=_name(task), limit=PAGE))


def _name(task: Task[..., Any] | str | None) -> str | None:
    return task.name if isinstance(task, Task) else task
