"""What the tests of writing and holding are made with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from durable.core.records import Kind, Record
from durable.store.shared import Parcel
from durable.testing.samples import created, record, run_id

TASK = [("task", None)]
tokens = itertools.count(1)


def parcel(*records: Record, epochs: dict[int, int] | None = None, **rest: Any) -> Parcel:
    """A parcel with a token of its own; epochs by the numbers of runs."""
    return Parcel(records, next(tokens), {run_id(number): epoch for number, epoch in (epochs or {}).items()}, **rest)


def begun(number: int, **head: Any) -> Sequence[Record]:
    """A run that is created and whose body is at work."""
    return [created(number, **head), record(number, 2, Kind.STARTED)]


def step(number: int, seq: int, payload: bytes = b"1") -> Record:
    """The result of a step."""
    return record(number, seq, Kind.STEP_COMPLETED, name=f"s{seq}", payload=payload)
