"""The whole engine on a disk that loses what was not synced: programs of all kinds, thousands of crashes, one oracle.

Each seed lives two to four lives in bad weather, with clients that come and go, and then a last one in which all must come to its end.
`DURABLE_SIM_SEEDS` sets how many seeds run. One seed again: `python -m tests.simulation.test_engine_crashes SEED`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from durable.config import Limits
from durable.core.status import Status
from durable.errors import RepositoryUnavailableError
from durable.testing.disk import SimulatedDisk
from durable.testing.oracle import SimulationError
from durable.testing.repository import MemoryRepository
from durable.testing.simulate import Life, Simulation, Weather
from tests.simulation.engine_clients import PROGRAMS, Client

#: A process that dies leaves coroutines that nobody ever awaits.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
SEEDS = int(os.environ.get("DURABLE_SIM_SEEDS", "1250"))
CRASHES_MIN = 2000
_LOGGERS = ("asyncio", "durable.log", "durable.engine", "durable.flush")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Torn tails, fenced logs and the remains of abandoned tasks are the daily bread here."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    for logger in loggers:
        logger.disabled = True
    yield
    gc.collect()
    sys.unraisablehook = hook
    for logger in loggers:
        logger.disabled = False


def make_clients(rng: random.Random, seed: int) -> list[Client]:
    """Clients of several programs; some want the same run."""
    clients = []
    for number in range(rng.randint(1, 5)):
        program = rng.choice(PROGRAMS)
        args = program.arguments(rng)
        keyed = program.keyed or rng.random() < 0.3
        twins = rng.randint(2, 4) if keyed and program.act is None and not program.revive and rng.random() < 0.4 else 1
        for _ in range(twins):
            key = f"{seed}/{number}" if keyed else None
            clients.append(Client(program, args, random.Random(rng.random()), key))
    return clients


def run_seed(
    seed: int, *, disk: type[SimulatedDisk] = SimulatedDisk, repository: MemoryRepository | None = None
) -> Simulation:
    """All lives of one seed."""
    rng = random.Random(seed)
    limits = Limits(max_running=rng.choice((1, 2, 1000, 1000)))
    sim = Simulation(seed, disk=disk, repository=repository, limits=limits)
    clients = make_clients(rng, seed)

    async def act(life: Life) -> None:
        patience = None if life.last or rng.random() < 0.7 else rng.random() * 3
        with_patience = asyncio.gather(
            *(client(life) for client in clients if client.ended is None or rng.random() < 0.5)
        )
        try:
            async with asyncio.timeout(patience):
                await with_patience
        except TimeoutError:
            return  # they hang up, and the process is asked to end
        while life.last:
            try:
                await _settle(life)
                return
            except RepositoryUnavailableError:
                await asyncio.sleep(0.5)

    for _ in range(rng.randint(2, 4)):
        sim.live(act, Weather.rough(rng))
    sim.live(act, Weather.mild(rng), last=True)
    for client in clients:
        client.judge(sim)
    sim.live(_look, last=True)
    _judge_numbers(sim, clients)
    return sim


async def _settle(life: Life) -> None:
    """Wait for runs whose client never heard of them."""
    while open_runs := [run async for run in life.app.runs() if not run.closed]:
        for run in open_runs:
            if run.status is Status.SUSPENDED:
                await life.resume(run.run_id)
            elif run.task_name == "sim.endless":
                await life.cancel(run.run_id)
            await life.wait(run.run_id)
        await asyncio.sleep(0.1)  # an end is told before the run is closed


async def _look(life: Life) -> None:
    """Nothing happens in this life: what is there has ended, and stays so."""
    still_open = [run async for run in life.app.runs() if not run.closed]
    if still_open:
        raise SimulationError(f"a run that had ended is open again: {still_open}")


def _judge_numbers(sim: Simulation, clients: list[Client]) -> None:
    """Unkeyed starts make at most one run each, keyed ones one run in all."""
    roots: dict[str, int] = {}
    for records in sim.oracle.known.values():
        if "parent" not in records[0].head:
            name = records[0].head.get("key") or f"{records[0].name}"
            roots[name] = roots.get(name, 0) + 1
    allowed: dict[str, int] = {}
    for client in clients:
        if client.key is not None:
            allowed[client.key] = 1
        else:
            allowed[client.program.name] = allowed.get(client.program.name, 0) + client.starts
    for name, count in roots.items():
        if count > allowed.get(name, 0):
            raise SimulationError(f"{name!r} has {count} runs, {allowed.get(name, 0)} were started")


def hunt(seeds: range, **options: Any) -> tuple[int, int]:
    """Run many seeds; returns the crashes and the lives. Raises with the command that runs the seed again."""
    crashes = lives = 0
    for seed in seeds:
        try:
            sim = run_seed(seed, **options)
        except BaseException as error:
            again = f"python -m tests.simulation.test_engine_crashes {seed}"
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\nagain: {again}") from error
        crashes += sim.crashes
        lives += sim.lives
    return crashes, lives


def test_no_crash_changes_what_anybody_was_told_or_what_comes_out() -> None:
    """After every crash all that was acknowledged or seen is there; each run ends once, with the result of an undisturbed one."""
    crashes, _ = hunt(range(SEEDS))
    assert crashes >= min(CRASHES_MIN, 2 * SEEDS)


def test_a_seed_runs_the_same_twice() -> None:
    """A failure can be replayed: the same seed gives the same schedule."""
    assert [run_seed(seed).trace for seed in range(8)] == [run_seed(seed).trace for seed in range(8)]


def main(first: int, last: int) -> None:
    """Run seeds and tell how it went: for long hunts, and to look at one seed."""
    if last - first > 1:
        for name in _LOGGERS:
            logging.getLogger(name).disabled = True
    begun, crashes, failures = time.monotonic(), 0, 0
    for seed in range(first, last):
        try:
            crashes += run_seed(seed).crashes
        except (AssertionError, Exception) as error:  # noqa: BLE001 - a hunt goes on
            failures += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:600]}")
            if last - first == 1:
                traceback.print_exc()
    seconds = time.monotonic() - begun
    print(f"{last - first} seeds, {crashes} crashes, {failures} failures, {crashes / seconds:.0f} crashes/s")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(sys.argv[1]) + 1)
