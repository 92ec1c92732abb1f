"""Real processes, real files, real SIGKILLs at random moments; judged by a side file that the engine knows nothing of.

`DURABLE_KILLS` sets how many kills there are.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from durable.core.query import RunFilter
from durable.core.records import ENDS, Kind, Record
from durable.core.run import Run, fold
from durable.store.local import LocalStore
from tests.acceptance.sigkill_worker import KILLS_OF_A_WAVE, PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("DURABLE_KILLS", "320"))
#: Lives that begin with a start of Python; all others are forked from a nursery.
FRESH_KILLS = 5
FRESH_WAVES = 10
LANES = 2


def command(mode: str, folder: Path, *arguments: object) -> list[str]:
    """The command line of the worker."""
    words = (mode, folder / "store", folder / "side", *arguments)
    return [sys.executable, "-W", "ignore", "-m", "tests.acceptance.sigkill_worker", *map(str, words)]


def run_lane(folder: Path, kills: int, seed: int) -> int:
    """Kill so many lives in one folder, then let a last one come to its end; returns the waves of runs."""
    rng = random.Random(seed)
    folder.mkdir()
    for number in range(FRESH_KILLS):
        process = subprocess.Popen(command("live", folder, FRESH_WAVES - FRESH_KILLS + number + 1), cwd=ROOT)
        time.sleep(0.15 + rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command("nursery", folder, kills - FRESH_KILLS, seed), cwd=ROOT, check=True, timeout=110)
    waves = max(FRESH_WAVES, (kills - FRESH_KILLS - 1) // KILLS_OF_A_WAVE + 1)
    subprocess.run(command("live", folder, waves), cwd=ROOT, check=True, timeout=60)
    return waves


def results(lines: list[str]) -> dict[str, set[str]]:
    """All results that were seen, by key."""
    found: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith("E "):
            _, key, result = line.split(" ", 2)
            found.setdefault(key, set()).add(result)
    return found


def judge_executions(lines: list[str]) -> int:
    """No step runs once its result is recorded; returns how many ran more than once, legally."""
    recorded: set[str] = set()
    ran: Counter[str] = Counter()
    for line in lines:
        kind, call = line[0], line[2:]
        if kind == "R":
            recorded.add(call)
        elif kind == "X":
            assert call not in recorded, f"a recorded step ran again: {call}"
            ran[call] += 1
    return sum(count > 1 for count in ran.values())


async def read_all(folder: Path) -> list[tuple[Run, list[Record]]]:
    """All runs of a store with their records."""
    store = LocalStore(folder / "store")
    await store.open()
    try:
        return [(run, await store.history(run.run_id)) for run in await store.query(RunFilter(limit=1_000_000))]
    finally:
        await store.close()


def judge_store(runs: list[tuple[Run, list[Record]]], lines: list[str]) -> None:
    """Each run ended once, with records 1, 2, 3 ...; keys and children are there once; what was acknowledged is there."""
    acknowledged: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith("A "):
            _, key, run_id = line.split(" ")
            acknowledged.setdefault(key, set()).add(run_id)
    by_key = {run.key: run.run_id for run, _ in runs if run.key is not None}
    assert len(by_key) == sum(run.key is not None for run, _ in runs), "a key has two runs"
    for key, run_ids in acknowledged.items():
        assert run_ids == {by_key.get(key)}, (
            f"the start of {key} was acknowledged as {run_ids}, it is {by_key.get(key)}"
        )
    children = Counter(run.parent_id for run, _ in runs if run.parent_id is not None)
    for run, history in runs:
        assert [record.seq for record in history] == list(range(1, len(history) + 1))
        assert fold(history) == run
        assert run.ended
        assert sum(record.kind in ENDS for record in history) == 1
        noted = [each for each in history if each.kind is Kind.CHILD_STARTED or each.name.startswith("start:")]
        assert children[run.run_id] == len(noted), (
            f"run {run.run_id} notes {len(noted)} children, it has {children[run.run_id]}"
        )


@pytest.mark.timeout(300)
def test_no_sigkill_loses_or_repeats_anything(tmp_path: Path) -> None:
    """After hundreds of SIGKILLs all runs ended, with the results of an undisturbed process, and no recorded step ran again."""
    with ThreadPoolExecutor(LANES) as pool:
        lanes = [pool.submit(run_lane, tmp_path / f"lane{n}", KILLS // LANES, 1000 + n) for n in range(LANES)]
        waves = [lane.result() for lane in lanes]
    calm = tmp_path / "calm"
    calm.mkdir()
    subprocess.run(command("live", calm, max(waves)), cwd=ROOT, check=True, timeout=60)
    expected = results((calm / "side").read_text().splitlines())
    repeated = 0
    for number, count in enumerate(waves):
        folder = tmp_path / f"lane{number}"
        lines = (folder / "side").read_text().splitlines()
        repeated += judge_executions(lines)
        seen = results(lines)
        assert len(seen) == count * len(PROGRAMS)
        for key, values in seen.items():
            assert values == expected[key], f"{key} came to {values}, undisturbed to {expected[key]}"
        judge_store(asyncio.run(read_all(folder)), lines)
    assert repeated, "no kill met a step between its execution and its record: the test does not do what it says"
