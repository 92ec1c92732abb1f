"""Clients of the families' simulation: some only wait, some meddle with any run of any family.

Whoever only waits asks the store again and again, and loads nothing: a wake-up that is lost is not made good by the question.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from durable.core.query import RunFilter
from durable.core.records import CALLS, RESULTS, Kind
from durable.core.run import Run, fold
from durable.core.status import Status
from durable.errors import ShuttingDownError, StorageError, TransitionError
from durable.testing.oracle import SimulationError
from durable.testing.simulate import Life, Simulation
from tests.simulation.engine_clients import LATER, _quietly
from tests.simulation.family_programs import Plan, outcome, plainly, task_of

RETRIES_MAX = 100


@dataclass
class FamilyClient:
    """Wants one tree of runs, and what comes of it.

    Arguments:
        plan: of the root.
        mends: whether it retries a root that failed, until it completes.
        key: of the root, where it has one.
    """

    plan: Plan
    rng: random.Random
    mends: bool
    key: str | None = None
    #: Whether others may change what comes of it.
    disturbed: bool = False
    run_ids: set[str] = field(default_factory=set)
    result: Any = None
    is_told: bool = False

    async def __call__(self, life: Life) -> None:
        if not life.last:
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.1, 3.0)) * self.rng.random())
        while not self.is_told:
            try:
                await self._act(life)
            except LATER:
                await asyncio.sleep(0.5)
            except (StorageError, ShuttingDownError):
                if life.last:
                    raise
                return  # the process is about to end

    async def _act(self, life: Life) -> None:
        task = task_of(self.plan)
        if self.key is not None:
            self.run_ids.add(await life.start(task.options(key=self.key), self.plan))
        elif not self.run_ids:
            self.run_ids.add(await life.start(task, self.plan))
        run_id = max(self.run_ids)
        run = await self._ended(life, run_id)
        for _ in range(RETRIES_MAX):
            if not (self.mends and run.dead):
                break
            with suppress(TransitionError):
                await life.retry(run_id)
            run = await self._ended(life, run_id)
        if run.status is Status.COMPLETED:
            self.result = plainly(await (await life.app.get(run_id)).wait())
        self.is_told = True

    async def _ended(self, life: Life, run_id: str) -> Run:
        if self.rng.random() < 0.4:
            return await life.wait(run_id)
        return await life.poll(run_id)

    def judge(self, sim: Simulation) -> None:
        """Compare what came out with the plan."""
        if not self.is_told:
            raise SimulationError(f"a client of {self.run_ids} never heard of the end")
        if self.key is not None and len(self.run_ids) != 1:
            raise SimulationError(f"the key {self.key!r} has {len(self.run_ids)} runs")
        if self.disturbed:
            return
        run = fold(sim.oracle.known[max(self.run_ids)])
        status, value = outcome(self.plan)
        if (run.status, self.result) != (status, value):
            raise SimulationError(
                f"run {run.run_id} of {run.task} is {run.status} with {self.result}, planned was {status} with {value}: {run.failure}"
            )


async def open_runs(life: Life) -> list[Run]:
    """The runs that are not closed, as the store has them."""
    while True:
        try:
            return await life.app.engine.store.query(RunFilter(open=True, limit=10_000))
        except LATER:
            await asyncio.sleep(0.5)


def wants_signal(life: Life, run: Run) -> bool:
    """Whether a call of the run waits for a signal that nobody has sent."""
    if any(name == "go" for _, name in run.signals):
        return False
    waiting: set[Any] = set()
    for record in life.oracle.known.get(run.run_id, ()):
        if record.kind is Kind.CHILDREN_STARTED:
            waiting.clear()
        elif record.kind in CALLS and record.name == "wait_for":
            if record.kind in RESULTS:
                waiting.discard(record.call)
            elif record.head.get("what") == "go":
                waiting.add(record.call)
    return bool(waiting) and run.status in (Status.RUNNING, Status.WAITING_FOR_ON_CHILDREN_COMPLETE)


async def pump(life: Life, rng: random.Random) -> None:
    """Send the signals that runs wait for."""
    number = 0
    while True:
        for run in await open_runs(life):
            if wants_signal(life, run):
                number += 1
                await _quietly(life.send(run.run_id, "go", [life.number, number]))
        await asyncio.sleep(rng.choice((0.05, 1.0, 4.0)) * (1 + rng.random()))


PAUSES = ("stop", "stop", "resume", "send")
ANY = (*PAUSES, "cancel", "cancel", "retry", "retry")


async def meddle(life: Life, rng: random.Random, acts: tuple[str, ...]) -> None:
    """Do something to some run, some times."""
    for _ in range(rng.randint(1, 8)):
        await asyncio.sleep(rng.choice((0.01, 0.1, 1.0, 5.0)) * rng.random())
        act = rng.choice(acts)
        if act == "retry":
            runs = await _quietly_query(life, RunFilter(dead=True, limit=1000))
        else:
            runs = await open_runs(life)
        if act == "resume":
            runs = [run for run in runs if run.status is Status.SUSPENDED]
        if runs:
            run_id = rng.choice(runs).run_id
            if act == "send":
                await _quietly(life.send(run_id, rng.choice(("go", "other")), rng.random()))
            else:
                await _quietly(getattr(life, act)(run_id))


async def _quietly_query(life: Life, wanted: RunFilter) -> list[Run]:
    try:
        return await life.app.engine.store.query(wanted)
    except LATER:
        return []


async def resume_all(life: Life) -> None:
    """Let whatever somebody stopped go on, a little later."""
    while True:
        await asyncio.sleep(6.0)
        for run in await open_runs(life):
            if run.status is Status.SUSPENDED:
                await _quietly(life.resume(run.run_id))


async def settle(life: Life) -> None:
    """Wait until every run is closed, and the engine has let go of all of them."""
    wait = 0.2
    while await open_runs(life):
        await asyncio.sleep(wait)
        wait = min(1.3 * wait, 300.0)
    if not life.last:
        return  # the store may have failed: a process that is about to end keeps what it has
    for _ in range(20):
        left = {name: count for name, count in life.app.engine.statistics().items() if count}
        if not left:
            return
        await asyncio.sleep(0.1)
    raise SimulationError(f"every run is closed, and yet the engine keeps {left}")
