"""Defects planted in what families rest on: the simulation has to find each of them, and say what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from durable.core.commands import Close
from durable.core.records import Record
from durable.engine.closing import Closing
from durable.engine.entry import Entry
from durable.engine.kinship import Kinship
from durable.engine.lifecycle import Lifecycle
from durable.engine.pipeline import Pipeline
from durable.errors import DurableError
from tests.simulation.planted import find
from tests.simulation.test_engine_crashes import quiet
from tests.simulation.test_family_crashes import run_seed

__all__ = ["quiet"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
SEEDS_MAX = 200


def _tell_in_another_unit(patch: pytest.MonkeyPatch) -> None:
    """A parent hears of its child's end a turn later, in a unit of its own."""

    def entailed(self: Kinship, entry: Entry, record: Record) -> Iterable[Any]:
        for relative, command in original(self, entry, record):
            if relative is entry.parent and type(command).__name__ == "ChildEnded":
                asyncio.get_running_loop().call_soon(_stage, self.pipeline, relative, command)
            else:
                yield relative, command

    original = Kinship.entailed
    patch.setattr(Kinship, "entailed", entailed)


def _stage(pipeline: Pipeline, entry: Entry, command: Any) -> None:
    try:
        pipeline.stage(entry, command)
    except DurableError:
        pass


def _wake_nobody(patch: pytest.MonkeyPatch) -> None:
    """A run that is asleep is not woken by what comes for it."""

    def rouse(self: Lifecycle, entry: Entry, record: Record) -> None:
        if not entry.run.asleep:
            original(self, entry, record)

    original = Lifecycle._rouse
    patch.setattr(Lifecycle, "_rouse", rouse)


def _close_at_once(patch: pytest.MonkeyPatch) -> None:
    """A run that has ended is closed without regard to its children."""

    def close(self: Closing, entry: Entry) -> None:
        if not entry.run.closed:
            _stage(self.pipeline, entry, Close())

    patch.setattr(Closing, "close", close)


def _create_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """Returned children come into being before the record of those who returned them."""

    def stage(self: Pipeline, entry: Entry, command: Any, *further: Any) -> Any:
        if type(command).__name__ != "Complete" or not further:
            return original(self, entry, command, *further)
        for relative, wish in further:
            original(self, relative, wish)
            relative.unit = None  # what comes next shall not join it
        return original(self, entry, command)

    original = Pipeline.stage
    patch.setattr(Pipeline, "stage", stage)


Plant = Callable[[pytest.MonkeyPatch], None]
DEFECTS: dict[str, tuple[Plant, str]] = {
    "parent told in another unit": (_tell_in_another_unit, "was not told|unfinished children, they are"),
    "nobody woken": (_wake_nobody, "not everything came to its end"),
    "closing skipped": (_close_at_once, "is closed, and its children"),
    "children created one by one": (_create_one_by_one, "came into being without its record|starts .* children"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defect, some seed breaks the promise that it concerns."""
    plant, words = DEFECTS[defect]
    plant(monkeypatch)
    find(words, run_seed, SEEDS_MAX)
