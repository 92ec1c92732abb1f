"""Clients of the engine's simulation: each remembers, outside of the process that dies, what it has been told.

A client whose call was not answered does not know what came of it, and asks again with the same key, or gives it up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from durable.core.run import Run
from durable.core.status import Status
from durable.errors import (
    BackpressureError,
    RepositoryUnavailableError,
    RunNotFoundError,
    ShuttingDownError,
    StorageError,
    StorageFullError,
    TransitionError,
)
from durable.tasks.decorators import Task
from durable.testing.oracle import SimulationError
from durable.testing.simulate import Life, Simulation
from tests.simulation import engine_programs as programs
from tests.simulation.engine_fuzz import fuzzed

Act = Callable[["Client", Life, str], Coroutine[Any, Any, None]]
#: Answers that ask a client to come again later.
LATER = (StorageFullError, BackpressureError, RepositoryUnavailableError)


@dataclass
class Client:
    """Wants one run of a program, and its result."""

    program: Program
    args: tuple[Any, ...]
    rng: random.Random
    key: str | None = None
    run_ids: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    starts: int = 0
    ended: Run | None = None

    async def __call__(self, life: Life) -> None:
        if not life.last:
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.1, 3.0)) * self.rng.random())
        while True:
            try:
                await self._act(life)
                return
            except LATER:
                await asyncio.sleep(0.5)
            except (StorageError, ShuttingDownError):
                if life.last:
                    raise
                return  # the process is about to end

    async def _act(self, life: Life) -> None:
        task: Task[..., Any] = self.program.task
        if self.key is not None:
            self.run_ids.add(await life.start(task.options(key=self.key), *self.args))
        elif not self.run_ids:
            self.starts += 1
            self.run_ids.add(await life.start(task, *self.args))
        run_id = max(self.run_ids)
        watching = asyncio.create_task(_quietly(life.watch(run_id))) if self.rng.random() < 0.4 else None
        acting = asyncio.create_task(_quietly(self.program.act(self, life, run_id))) if self.program.act else None
        try:
            if acting is not None and self.program.act_first:
                await acting
            run = await life.wait(run_id)
            while self.program.revive and run.dead:
                with suppress(TransitionError):
                    await life.retry(run_id)
                run = await life.wait(run_id)
            self.ended = run
            if watching is not None and life.last:
                await watching
        finally:
            for mine in (watching, acting):
                if mine is not None:
                    mine.cancel()

    def judge(self, sim: Simulation) -> None:
        """Compare what came out with a run that nobody disturbed."""
        run = self.ended
        if run is None:
            raise SimulationError(f"a client of {self.program.name} never heard of the end")
        if run.status not in self.program.ends:
            raise SimulationError(f"run {run.run_id} of {self.program.name} is {run.status}: {run.failure}")
        if run.status is Status.COMPLETED:
            expected = undisturbed(self.program, self.args)
            if run.result != expected:
                raise SimulationError(
                    f"run {run.run_id} of {self.program.name} gave {run.result!r}, undisturbed {expected!r}"
                )
        if self.key is not None and len(self.run_ids) != 1:
            raise SimulationError(f"the key {self.key!r} has {len(self.run_ids)} runs")


async def _quietly(act: Coroutine[Any, Any, None]) -> None:
    """Act; where the run is no longer in a state for it, or the process ends, that is no fault."""
    try:
        await act
    except (TransitionError, StorageError, ShuttingDownError, *LATER):
        pass
    except RunNotFoundError as error:
        raise SimulationError(f"an acknowledged run is not found: {error}") from error


# -- what clients do besides waiting


async def send_signals(client: Client, life: Life, run_id: str) -> None:
    for name, value in (("left", {"n": 2}), ("first", 1), ("right", [3])):
        if name not in client.told:
            await asyncio.sleep(client.rng.random() * client.rng.choice((0.0, 0.5)))
            await life.send(run_id, name, value)
            client.told.add(name)


async def send_any(client: Client, life: Life, run_id: str) -> None:
    while len(client.told) < 6:
        await asyncio.sleep(client.rng.random() * client.rng.choice((0.0, 0.5)))
        number = len(client.told)
        await life.send(run_id, f"signal {number % 3}", [number, client.rng.random()])
        client.told.add(str(number))


async def cancel_soon(client: Client, life: Life, run_id: str) -> None:
    await asyncio.sleep(client.rng.random() * 2)
    await life.cancel(run_id)


async def stop_and_resume(client: Client, life: Life, run_id: str) -> None:
    for _ in range(client.rng.randint(1, 3)):
        await asyncio.sleep(client.rng.random())
        try:
            await life.stop(run_id)
            await asyncio.sleep(client.rng.random() * client.rng.choice((0.0, 0.3)))
        except TransitionError:
            return
        finally:
            if client.rng.random() < 0.9:
                await life.resume(run_id)
    info = await life.app.engine.find_run(run_id)
    if info.status is Status.SUSPENDED:
        await life.resume(run_id)


# -- the programs


@dataclass(frozen=True)
class Program:
    """A task, arguments for it, and what its clients do."""

    task: Task[..., Any]
    arguments: Callable[[random.Random], tuple[Any, ...]]
    act: Act | None = None
    ends: frozenset[Status] = frozenset({Status.COMPLETED})
    keyed: bool = False
    revive: bool = False
    act_first: bool = False

    @property
    def name(self) -> str:
        return self.task.name


def _up_to(most: int) -> Callable[[random.Random], tuple[Any, ...]]:
    return lambda rng: (rng.randint(1, most),)


def _any_seed(rng: random.Random) -> tuple[Any, ...]:
    return (rng.randrange(1 << 40),)


EITHER = frozenset({Status.COMPLETED, Status.CANCELLED})
PROGRAMS = [
    Program(programs.sequential, _up_to(6)),
    Program(programs.gathering, _up_to(5)),
    Program(programs.completing, _up_to(5)),
    Program(programs.racing, _up_to(4)),
    Program(programs.grouped, _up_to(3)),
    Program(programs.group_failing, _up_to(3)),
    Program(programs.queued, _up_to(3)),
    Program(programs.locked, _up_to(4)),
    Program(programs.timed, lambda rng: (rng.choice((0.3, 1.0, 2.5)),)),
    Program(programs.receiving, lambda rng: (), act=send_signals, keyed=True),
    Program(programs.family, _up_to(3)),
    Program(programs.family, _up_to(3), act=cancel_soon, ends=EITHER, keyed=True),
    Program(programs.nested, _up_to(3)),
    Program(programs.spawning, _up_to(2)),
    Program(programs.emitting, _up_to(3)),
    Program(programs.yielding, _up_to(4)),
    Program(programs.retried, _up_to(9)),
    Program(programs.manual, _up_to(5)),
    Program(programs.failing, _up_to(9), keyed=True, revive=True),
    Program(programs.hopeless, _up_to(9), ends=frozenset({Status.FAILED})),
    Program(programs.patient, _up_to(3), act=stop_and_resume, keyed=True, act_first=True),
    Program(programs.patient, _up_to(3), act=cancel_soon, ends=EITHER, keyed=True),
    Program(programs.endless, _up_to(9), act=cancel_soon, ends=frozenset({Status.CANCELLED}), keyed=True),
    Program(programs.racing, _up_to(4), act=stop_and_resume, keyed=True, act_first=True),
    Program(programs.queued, _up_to(3), act=stop_and_resume, keyed=True, act_first=True),
    Program(programs.handled, _up_to(5)),
    Program(programs.returning, _up_to(3), keyed=True),
    Program(programs.late, _up_to(5), ends=frozenset({Status.TIMED_OUT})),
    Program(programs.delayed, _up_to(5)),
    Program(programs.child, _up_to(9), keyed=True),
    *[Program(fuzzed, _any_seed)] * 6,
    *[Program(fuzzed, _any_seed, act=send_any, keyed=True)] * 4,
    Program(fuzzed, _any_seed, act=stop_and_resume, keyed=True, act_first=True),
    Program(fuzzed, _any_seed, act=cancel_soon, ends=EITHER, keyed=True),
    Program(programs.plain, _up_to(9), keyed=True),
]

_results: dict[tuple[str, tuple[Any, ...]], bytes | None] = {}


def undisturbed(program: Program, args: tuple[Any, ...]) -> bytes | None:
    """The result that the program has when nothing happens."""
    if program.task is fuzzed:
        return b'"done"'
    known = _results.get((program.name, args))
    if known is None:
        signals = send_signals if program.task is programs.receiving else None
        calm = Program(program.task, program.arguments, act=signals, revive=program.revive)
        client = Client(calm, args, random.Random(0))
        Simulation(1).live(client, last=True)
        if client.ended is None or client.ended.status is not Status.COMPLETED:
            raise SimulationError(f"undisturbed, {program.name}{args} came to {client.ended}")
        known = _results[program.name, args] = client.ended.result
    return known
