"""Real processes, killed with SIGKILL while they commit: what they acknowledged is there (P1)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from durable.config import LogSettings
from durable.core.query import RunFilter
from durable.store import LocalStore
from durable.testing.conformance import run_id

KILLS = 24
CHILD = """
import asyncio, os, sys
from durable.config import FlushSettings, LogSettings
from durable.store import LocalStore
from durable.testing.conformance import finished

async def work(store, first, step):
    number = first
    while True:
        records = finished(number, key=str(number))
        await store.commit([records[:2]])
        await store.commit([records[2:]])
        os.write(1, b"%d\\n" % number)
        number += step

async def main(path, first):
    store = LocalStore(path, log=LogSettings(segment_bytes=16384), flush=FlushSettings(interval_seconds=0.005, batch_records_max=50))
    await store.open()
    os.write(1, b"open\\n")
    await asyncio.gather(*(work(store, first + lane, 8) for lane in range(8)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def live_and_die(path: Path, first: int, seconds: float) -> set[int]:
    """Start a process that commits runs from `first` on, kill it after so long, and return what it said was acknowledged."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(first)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    time.sleep(seconds)  # the moment of the kill, no synchronisation
    os.kill(child.pid, signal.SIGKILL)
    # The last line may be torn by the kill: a number without its newline was not told to anybody.
    acknowledged = {int(line) for line in child.stdout.read().split(b"\n")[:-1]}
    child.wait()
    child.stdout.close()
    return acknowledged


async def test_nothing_acknowledged_is_lost_by_sigkill(tmp_path: Path) -> None:
    """A few dozen lives of one store, each killed at some moment; at the end every acknowledged run is there, whole."""
    path = tmp_path / "store"
    chance = random.Random(20250601)
    acknowledged: set[int] = set()
    first = 0
    for _ in range(KILLS):
        acknowledged |= live_and_die(path, first, chance.uniform(0.0, 0.06))
        first += 1_000_000
    store = LocalStore(path, log=LogSettings(segment_bytes=16384))
    await store.open()
    try:
        runs = {run.run_id: run for run in await store.query(RunFilter(limit=10_000_000))}
        lost = [number for number in acknowledged if run_id(number) not in runs or not runs[run_id(number)].ended]
        assert not lost
        assert len(acknowledged) > KILLS
        for run in runs.values():
            assert [each.seq for each in await store.history(run.run_id)] == list(range(1, run.seq + 1))
            assert run.seq in (2, 4)
    finally:
        await store.close()
