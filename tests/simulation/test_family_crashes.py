"""Families on a disk that loses what was not synced: trees of runs, put to sleep and woken, stopped, cancelled and retried.

Each seed lives one to four lives in bad weather, with clients that come and go and meddle, and then a last one in which all must come to
its end. `DURABLE_FAMILY_SEEDS` sets how many seeds run. One seed again: `python -m tests.simulation.test_family_crashes SEED`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from durable.config import Limits
from durable.testing.oracle import SimulationError
from durable.testing.simulate import SMALL, Life, Simulation, Weather
from tests.simulation.engine_clients import _quietly
from tests.simulation.family_clients import ANY, PAUSES, FamilyClient, meddle, open_runs, pump, resume_all, settle
from tests.simulation.family_programs import draw
from tests.simulation.test_engine_crashes import _LOGGERS, quiet

__all__ = ["quiet"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
SEEDS = int(os.environ.get("DURABLE_FAMILY_SEEDS", "200"))


def make_simulation(rng: random.Random, seed: int) -> Simulation:
    """A store with few slots, and little patience with runs that wait."""
    limits = Limits(max_running=rng.choice((1, 1, 2, 3, 1000)))
    engine = replace(
        SMALL.engine, idle_seconds=rng.choice((0.01, 0.01, 0.1, 1.0)), idle_runs_max=rng.choice((1, 1, 2, 3, 100))
    )
    return Simulation(seed, config=replace(SMALL, engine=engine), limits=limits)


def make_clients(rng: random.Random, seed: int, acts: tuple[str, ...]) -> list[FamilyClient]:
    """Clients, each with a tree of its own."""
    clients = []
    for number in range(rng.randint(1, 3)):
        mends = rng.random() < 0.3
        plan = draw(rng, rng.choice((3, 8, 14)), mends)
        key = f"family {seed}/{number}" if rng.random() < 0.6 else None
        clients.append(FamilyClient(plan, random.Random(rng.random()), mends, key, disturbed=acts is ANY))
    return clients


async def _with_help(life: Life, main: Coroutine[Any, Any, Any], *helpers: Coroutine[Any, Any, None]) -> None:
    helping = [asyncio.create_task(_quietly(helper)) for helper in helpers]
    try:
        await main
    finally:
        for each in helping:
            each.cancel()


def run_seed(seed: int) -> Simulation:
    """All lives of one seed."""
    rng = random.Random(seed)
    sim = make_simulation(rng, seed)
    acts = rng.choice(((), (), PAUSES, ANY, ANY))
    clients = make_clients(rng, seed, acts)

    async def act(life: Life) -> None:
        patience = None if life.last or rng.random() < 0.6 else rng.random() * rng.choice((1, 10))
        helpers = [pump(life, random.Random(rng.random()))]
        if acts:
            helpers += [meddle(life, random.Random(rng.random()), acts), resume_all(life)]

        async def wait() -> None:
            await asyncio.gather(*(client(life) for client in clients))
            await settle(life)

        try:
            async with asyncio.timeout(patience):
                await _with_help(life, wait(), *helpers)
        except TimeoutError:
            return  # they hang up, and the process is asked to end

    for _ in range(rng.randint(1, 4)):
        sim.live(act, Weather.rough(rng))
    sim.live(act, Weather.mild(rng), last=True)
    for client in clients:
        client.judge(sim)
    sim.live(_look, last=True)
    return sim


async def _look(life: Life) -> None:
    """Nothing happens in this life: what is there has ended, and stays so."""
    if still_open := await open_runs(life):
        raise SimulationError(f"a run that had ended is open again: {still_open}")


def test_no_crash_harms_a_family() -> None:
    """Whatever crashes, each tree comes to its planned end; a child's end is told once, and nobody waits for ever."""
    crashes = 0
    for seed in range(SEEDS):
        try:
            crashes += run_seed(seed).crashes
        except BaseException as error:
            again = f"python -m tests.simulation.test_family_crashes {seed}"
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\nagain: {again}") from error
    assert crashes >= SEEDS


def main(first: int, last: int) -> None:
    """Run seeds and tell how it went: for long hunts, and to look at one seed."""
    for name in _LOGGERS:
        logging.getLogger(name).disabled = last - first > 1
    begun, crashes, failures = time.monotonic(), 0, 0
    for seed in range(first, last):
        try:
            crashes += run_seed(seed).crashes
        except (AssertionError, Exception) as error:  # noqa: BLE001 - a hunt goes on
            failures += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:600]}", flush=True)
            if last - first == 1:
                traceback.print_exc()
    seconds = time.monotonic() - begun
    print(f"{last - first} seeds in {seconds:.0f} s, {crashes} crashes, {failures} failures")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(sys.argv[1]) + 1)
