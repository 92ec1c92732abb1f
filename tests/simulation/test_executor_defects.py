"""Defects planted in what several executors rest on: the simulation has to find each of them, and say what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from durable.core.messages import Answer
from durable.core.run import Run
from durable.engine.entry import Entry
from durable.engine.kinship import Kinship
from durable.engine.leases import Lease
from durable.engine.pipeline import Pipeline
from durable.errors import DurableError
from durable.store.shared import Parcel
from durable.testing.database import SharedDatabase
from tests.simulation import executor_world
from tests.simulation.executor_world import Weather
from tests.simulation.planted import find
from tests.simulation.test_engine_crashes import quiet
from tests.simulation.test_executor_crashes import run_seed

__all__ = ["quiet"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
SEEDS_MAX = 100


def _check_no_epoch(patch: pytest.MonkeyPatch) -> None:
    """The database takes what follows on, whoever it is from; and much arrives late."""

    def refusal(self: SharedDatabase, parcel: Parcel) -> DurableError | None:
        return original(self, replace(parcel, epochs={}))

    original = SharedDatabase.refusal
    patch.setattr(SharedDatabase, "refusal", refusal)
    patch.setattr(executor_world, "FATES", ("late",))
    patch.setattr(Weather, "draw", lambda rng: Weather(bad=0.2))


def _delete_before_obeying(patch: pytest.MonkeyPatch) -> None:
    """A message is gone before its run has obeyed it."""

    def stage(
        self: Pipeline, entry: Entry, command: Any, *further: Any, answer: Answer | None = None, connection: Any = None
    ) -> Any:
        if answer is None:
            return original(self, entry, command, *further, connection=connection)
        self.answer(entry, answer)
        asyncio.get_running_loop().call_later(0.05, later, self, entry, command, *further)
        return []

    def later(self: Pipeline, entry: Entry, command: Any, *further: Any) -> None:
        with suppress(DurableError):
            original(self, entry, command, *further)

    original = Pipeline.stage
    patch.setattr(Pipeline, "stage", stage)


def _keep_what_was_lost(patch: pytest.MonkeyPatch) -> None:
    """A process goes on with its runs although its lease has passed; and it does pass."""
    patch.setattr(executor_world, "FREEZE_SECONDS", (60.0,))
    patch.setattr(Lease, "give_up", lambda self: None)


def _tell_nobody_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """A child ends, and a parent that others hold is not told."""

    def told(self: Kinship, run: Run) -> Iterable[Any]:
        return ()

    patch.setattr(Kinship, "_told_by_message", told)


def _sweep_nothing(patch: pytest.MonkeyPatch) -> None:
    """What executors held that are gone stays theirs."""
    patch.setattr(SharedDatabase, "sweep", lambda self: 0)


Plant = Callable[[pytest.MonkeyPatch], None]
DEFECTS: dict[str, tuple[Plant, str]] = {
    "epoch not checked": (_check_no_epoch, "holds it|two executors wrote"),
    "message deleted without its record": (_delete_before_obeying, "was acknowledged, and is lost|came to its end"),
    "lease not given up": (_keep_what_was_lost, "where the lease has passed|does not hold the run"),
    "child's end without a message": (_tell_nobody_elsewhere, "not everything came to its end"),
    "nothing swept": (_sweep_nothing, "not everything came to its end|there is left"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defect, some seed breaks the promise that it concerns."""
    plant, words = DEFECTS[defect]
    plant(monkeypatch)
    find(words, run_seed, SEEDS_MAX)
