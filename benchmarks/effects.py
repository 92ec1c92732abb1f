"""The one side effect of the crash workload: each execution of a step leaves a line on disk, so that none can be run twice unseen."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

STEPS = 10
RECORDED = 5  # steps of each run that are on record when the process is killed


class Effects:
    """A file that gets `run step` for each execution; with `block` the first step that is not to be recorded never returns."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._block = False
        self.blocked = 0

    def open(self, path: Path, *, block: bool) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._block = block

    async def perform(self, run: int, number: int) -> int:
        if self._descriptor >= 0:
            os.write(self._descriptor, b"%d %d\n" % (run, number))
        if self._block and number == RECORDED:
            self.blocked += 1
            await asyncio.Event().wait()
        return number


def run_again(path: Path) -> int:
    """Count the executions of recorded steps beyond the first of each."""
    executions = Counter(path.read_text().splitlines())
    return sum(count - 1 for line, count in executions.items() if int(line.split()[1]) < RECORDED)


effects = Effects()
