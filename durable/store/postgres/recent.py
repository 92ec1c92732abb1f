"""Runs as they were last seen, so that a write need not ask for them.

Law: what is here may be old, never wrong: each was the run's state once. Whoever writes by it is refused where it is old.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from durable.core.run import Run

#: Most runs that are kept.
RUNS_MAX = 10_000
#: Stands for a value that the row has.
_STORED = b"stored"


class Known(NamedTuple):
    """A run as it is in its row, and under which epoch. Its input and its result are in the row only."""

    run: Run
    epoch: int


def stripped(run: Run) -> Run:
    """The run itself, without its large values: no record needs them."""
    run.input = _STORED
    if run.result is not None:
        run.result = _STORED
    return run


class Recent:
    """See the module; `runs` has them, the longest unused first."""

    def __init__(self, runs_max: int = RUNS_MAX) -> None:
        self.runs: dict[str, Known] = {}
        #: Runs that this executor holds, and perhaps some that it holds no more.
        self.mine: set[str] = set()
        self._runs_max = runs_max

    def saw(self, run: Run, epoch: int) -> None:
        """Keep a run as it was read, unless a newer state of it is here. It is kept itself, and is the caller's no more."""
        known = self.runs.get(run.run_id)
        if known is None or (known.run.seq <= run.seq and known.epoch <= epoch):
            self._put(run, epoch)

    def wrote(self, run: Run, epoch: int) -> None:
        """Keep a run as it was written; it is the caller's no more."""
        if run.closed:
            self.runs.pop(run.run_id, None)
            self.mine.discard(run.run_id)
        else:
            self._put(run, epoch)

    def forget(self, run_ids: Iterable[str]) -> None:
        """Drop what has turned out to be old."""
        for run_id in run_ids:
            self.runs.pop(run_id, None)

    def _put(self, run: Run, epoch: int) -> None:
        runs = self.runs
        runs.pop(run.run_id, None)
        runs[run.run_id] = Known(stripped(run), epoch)
        if len(runs) > self._runs_max:
            del runs[next(iter(runs))]
