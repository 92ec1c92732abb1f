"""Several executors on one shared store: families that spread over them, while they are killed, frozen, cut off and replaced.

Each seed is one world, with clients that want trees of runs, and others that meddle; it ends when all of it has come to its end.
`DURABLE_EXECUTOR_SEEDS` sets how many seeds run. One seed again: `python -m tests.simulation.test_executor_crashes SEED`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

import pytest

from durable.config import Limits
from durable.errors import DurableError
from durable.testing.simulate import SMALL
from tests.simulation.engine_clients import _quietly
from tests.simulation.executor_world import ProcessDied, Settings, World
from tests.simulation.family_clients import ANY, PAUSES, FamilyClient, meddle, pump, resume_all
from tests.simulation.test_engine_crashes import _LOGGERS, quiet
from tests.simulation.test_family_crashes import make_clients

__all__ = ["quiet"]  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
SEEDS = int(os.environ.get("DURABLE_EXECUTOR_SEEDS", "100"))


def make_world(rng: random.Random, seed: int) -> World:
    """A few executors with few slots, and little patience with runs that wait."""
    engine = replace(SMALL.engine, idle_seconds=rng.choice((0.01, 0.1, 1.0)), idle_runs_max=rng.choice((1, 3, 100)))
    settings = Settings(
        executors=rng.randint(2, 4),
        limits=Limits(max_running=rng.choice((1, 1, 2, 3, 8))),
        config=replace(SMALL, engine=engine),
        faults=rng.choice((0, 2, 6, 12)),
    )
    return World(seed, settings)


async def serve(world: World, client: FamilyClient, rng: random.Random) -> None:
    """Have a client served by one process after another, until it has been told the end."""
    while not client.is_told:
        member = rng.choice([world.client, world.client, *world.up()])
        try:
            await world.within(member, client(member.life))
        except (ProcessDied, DurableError):
            await asyncio.sleep(0.1)


async def elsewhere(world: World, act: Any, rng: random.Random) -> None:
    """Do something in one process after another."""
    while True:
        member = rng.choice([world.client, *world.up()])
        try:
            await world.within(member, _quietly(act(member.life)))
        except (ProcessDied, DurableError):
            pass
        await asyncio.sleep(1.0)


def run_seed(seed: int) -> World:
    """The world of one seed."""
    rng = random.Random(seed)
    world = make_world(rng, seed)
    acts = rng.choice(((), (), PAUSES, ANY, ANY))
    clients = make_clients(rng, seed, acts)

    async def act(world: World) -> None:
        helping = [world.loop.create_task(elsewhere(world, lambda life: pump(life, rng), rng))]
        if acts:
            helping += [
                world.loop.create_task(elsewhere(world, lambda life: meddle(life, rng, acts), rng)),
                world.loop.create_task(elsewhere(world, resume_all, rng)),
            ]
        await asyncio.gather(*(serve(world, client, rng) for client in clients))

    world.run(act)
    for client in clients:
        client.judge(world)  # type: ignore[arg-type]  # of a simulation it wants the oracle
    return world


def test_no_executor_that_is_lost_harms_a_family() -> None:
    """Whatever is killed, frozen or cut off, each tree comes to its planned end; nobody waits for ever, and nothing is left."""
    crashes = 0
    for seed in range(SEEDS):
        try:
            crashes += run_seed(seed).crashes
        except BaseException as error:
            again = f"python -m tests.simulation.test_executor_crashes {seed}"
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\nagain: {again}") from error
    assert crashes >= SEEDS // 2


def main(first: int, last: int) -> None:
    """Run seeds and tell how it went: for long hunts, and to look at one seed."""
    for name in _LOGGERS:
        logging.getLogger(name).disabled = last - first > 1
    begun, crashes, freezes, failures = time.monotonic(), 0, 0, 0
    for seed in range(first, last):
        try:
            world = run_seed(seed)
            crashes, freezes = crashes + world.crashes, freezes + world.freezes
        except (AssertionError, Exception) as error:  # noqa: BLE001 - a hunt goes on
            failures += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:700]}", flush=True)
            if last - first == 1:
                traceback.print_exc()
    seconds = time.monotonic() - begun
    print(f"{last - first} seeds in {seconds:.0f} s, {crashes} crashes, {freezes} freezes, {failures} failures")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(sys.argv[1]) + 1)
