"""Defects planted under and inside the engine: the simulation has to find each of them, or it proves nothing.

Each is planted from here, by a disk, a repository or a function that breaks its promise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from durable.core.memo import Memo
from durable.engine.attempt import Attempt
from durable.engine.pipeline import Pipeline
from durable.errors import LogCorruptError, RunNotFoundError, StoreMismatchError
from durable.testing.disk import SimulatedDisk
from durable.testing.oracle import SimulationError
from durable.testing.repository import MemoryRepository
from tests.simulation.log_defects import (
    acknowledge_before_sync,
    ignore_a_short_write,
    keep_the_torn_tail,
    retry_the_sync,
)
from tests.simulation.test_engine_crashes import quiet, run_seed

__all__ = ["quiet"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
SEEDS_MAX = 1500


def _tell_before_commit(patch: pytest.MonkeyPatch) -> None:
    """The pipeline publishes while the store is still at work."""

    async def commit(self: Pipeline, units: Any) -> Any:
        self._early = asyncio.ensure_future(self._hand_over(list(units)))  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return [None] * len(units)

    patch.setattr(Pipeline, "_commit", commit)


def _results_before_they_are_durable(patch: pytest.MonkeyPatch) -> None:
    def note(self: Attempt, kind: Any, call: Any, payload: Any = None, head: Any = None) -> None:
        original(self, kind, call, payload, head)
        records = [record for entry, record in self.entry.unit.items if entry is self.entry] if self.entry.unit else []
        self.loop.call_soon(self.delivery._hand_over, records)

    original = Attempt.note
    patch.setattr(Attempt, "note", note)


def _forget_a_result(patch: pytest.MonkeyPatch) -> None:
    def result(self: Memo, call: Any) -> Any:
        return None if call[1] == b"[3]" else original(self, call)

    original = Memo.result
    patch.setattr(Memo, "result", result)


def _hand_over_at_once(patch: pytest.MonkeyPatch) -> None:
    """On replay the results come all at once, and not in the batches in which they were committed."""

    def next_batch(self: Memo, waiting: Any) -> Any:
        due = [self._results.pop(call) for call in waiting if call in self._results]
        for record in due:
            self._called.discard(record.call)
            for batch in self._batches:
                if record in batch:
                    batch.remove(record)
        while self._batches and not self._batches[0]:
            self._batches.popleft()
        return due or original(self, waiting)

    original = Memo.next_batch
    patch.setattr(Memo, "next_batch", next_batch)


def _go_on_after_a_stop(patch: pytest.MonkeyPatch) -> None:
    """A child is started without regard to the one that is recorded."""
    patch.setattr(Memo, "marker", lambda self, call: None)


class _NoDirectorySync(SimulatedDisk):
    def fsync_dir(self) -> None:
        self._begin("fsync_dir")


Plant = Callable[[pytest.MonkeyPatch], None]
DEFECTS: dict[str, tuple[Plant, Callable[[int], Any]]] = {
    "ack before sync": (acknowledge_before_sync, run_seed),
    "sync retried": (retry_the_sync, run_seed),
    "short write ignored": (ignore_a_short_write, run_seed),
    "torn tail kept": (keep_the_torn_tail, run_seed),
    "no directory sync": (lambda patch: None, partial(run_seed, disk=_NoDirectorySync)),
    "repository forgets": (
        lambda patch: None,
        lambda seed: run_seed(seed, repository=MemoryRepository(undurable_batches_max=2)),
    ),
    "told before commit": (_tell_before_commit, run_seed),
    "results before they are durable": (_results_before_they_are_durable, run_seed),
    "recorded result forgotten": (_forget_a_result, run_seed),
    "results handed over at once": (_hand_over_at_once, run_seed),
    "recorded child forgotten": (_go_on_after_a_stop, run_seed),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defect, some seed breaks a promise."""
    plant, run = DEFECTS[defect]
    plant(monkeypatch)
    for seed in range(SEEDS_MAX):
        try:
            run(seed)
        except (SimulationError, LogCorruptError, StoreMismatchError, RunNotFoundError) as error:
            logging.getLogger("tests").info("%s: found by seed %d: %s", defect, seed, error)
            print(f"found by seed {seed}: {type(error).__name__}: {str(error)[:300]}")
            return
    pytest.fail(f"{SEEDS_MAX} seeds did not find: {defect}")
