"""`crash_everywhere`: a crash before and after every commit of a run, and what must hold then.

Law: a run that crashed and went on has the result, in value and type, that it has without a crash; and no recorded step runs again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from durable.app import Durable
from durable.config import Config
from durable.core.query import RunFilter
from durable.core.records import Call, Kind, Record
from durable.core.run import Run
from durable.errors import DurableError, StorageError
from durable.store.base import Store, StoreHealth, Unit
from durable.store.memory import MemoryStore
from durable.tasks.decorators import Task


class SimulatedCrash(StorageError):
    """The process ended here, as far as the test is concerned."""

    code = "simulated_crash"


class CrashingStore:
    """A store whose process ends before or after a certain commit: from then on nothing reaches it.

    Arguments:
        inner: the store that survives.
        crash_at: number of the commit, from 1; None for never.
        when: before it has taken effect, or after, and before anybody was told.
    """

    def __init__(self, inner: Store, crash_at: int | None = None, when: Literal["before", "after"] = "before") -> None:
        self.inner = inner
        self.crash_at = crash_at
        self.when = when
        self.commits = 0
        self.crashed = asyncio.Event()
        #: Calls whose result is durable.
        self.recorded: set[tuple[str, Call]] = set()

    @property
    def store_id(self) -> str:
        return self.inner.store_id

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def commit(self, units: Sequence[Unit]) -> None:
        if self.crashed.is_set():
            raise SimulatedCrash("the simulated process has ended")
        self.commits += 1
        if self.commits == self.crash_at and self.when == "before":
            self.crashed.set()
            raise SimulatedCrash(f"crash before commit {self.commits}")
        await self.inner.commit(units)
        for unit in units:
            self.recorded.update((record.run_id, record.call) for record in unit if record.kind is Kind.STEP_COMPLETED)
        if self.commits == self.crash_at:
            self.crashed.set()
            raise SimulatedCrash(f"crash after commit {self.commits}")

    def admit(self) -> None:
        self.inner.admit()

    async def find(self, run_id: str) -> Run | None:
        return await self.inner.find(run_id)

    async def find_key(self, user: str | None, key: str) -> Run | None:
        return await self.inner.find_key(user, key)

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        return await self.inner.history(run_id, after, limit)

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        return await self.inner.histories(run_ids)

    async def query(self, wanted: RunFilter) -> list[Run]:
        return await self.inner.query(wanted)

    async def count(self, wanted: RunFilter) -> int:
        return await self.inner.count(wanted)

    async def prune(self, before: float, limit: int) -> int:
        return await self.inner.prune(before, limit)

    async def next_due(self, after: float) -> float | None:
        return await self.inner.next_due(after)

    def health(self) -> StoreHealth:
        return self.inner.health()


@dataclass(slots=True)
class CrashReport:
    """What `crash_everywhere` saw.

    Arguments:
        commits: commits of the run without a crash.
        crashes: crashes that were tried.
        result: the result, the same every time.
        executed: per step name, how often its body began in the run with the most executions.
    """

    commits: int
    crashes: int
    result: Any
    executed: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _World:
    """One store through its lives."""

    store: Store
    config: Config
    executed: Counter[tuple[str, Call]] = field(default_factory=Counter)
    again: list[tuple[str, Call]] = field(default_factory=list)
    recorded: set[tuple[str, Call]] = field(default_factory=set)

    async def live(
        self, task: Task[..., Any], args: tuple[Any, ...], crash_at: int | None, when: Literal["before", "after"]
    ) -> Any:
        """One life: start the run, or go on with it, until it ends or the process does."""
        crashing = CrashingStore(self.store, crash_at, when)
        crashing.recorded = self.recorded
        app = Durable(crashing, config=self.config, test_mode=True)

        def count(run_id: str, call: Call) -> None:
            self.executed[run_id, call] += 1
            if (run_id, call) in self.recorded:
                self.again.append((run_id, call))

        app.engine.on_step = count
        try:
            async with app:
                roots = [run for run in await crashing.query(RunFilter(task=task.name)) if run.parent_id is None]
                handle = await app.get(roots[0].run_id) if roots else await app.start(task, *args)
                result = await handle.wait()
                return crashing.commits, result
        except DurableError:
            if crashing.crashed.is_set():
                return None
            raise


async def crash_everywhere(
    task: Task[..., Any],
    *args: Any,
    once: Sequence[str] = (),
    make_store: Callable[[], Store] = MemoryStore,
    config: Config = Config(),
) -> CrashReport:
    """Run the task once to count its commits, then again for each commit with a crash before and after it.

    Raises `AssertionError` if a result differs in value or type, a recorded step ran again, or a step named in `once` ran twice.
    """
    outcome = await _World(make_store(), config).live(task, args, None, "before")
    commits, expected = outcome
    report = CrashReport(commits, 0, expected)
    whens: tuple[Literal["before", "after"], ...] = ("before", "after")
    for crash_at in range(1, commits + 1):
        for when in whens:
            world = _World(make_store(), config)
            outcome = await world.live(task, args, crash_at, when)
            if outcome is None:
                report.crashes += 1
                outcome = await world.live(task, args, None, "before")
            _check(world, outcome[1], expected, once, f"crash {when} commit {crash_at}")
            for (_, call), count in world.executed.items():
                report.executed[call[0]] = max(report.executed[call[0]], count)
    return report


def _check(world: _World, result: Any, expected: Any, once: Sequence[str], where: str) -> None:
    if type(result) is not type(expected) or result != expected:
        raise AssertionError(f"{where}: the result is {result!r}, without a crash it is {expected!r}")
    if world.again:
        names = ", ".join(call[0] for _, call in world.again)
        raise AssertionError(f"{where}: recorded steps ran again: {names}")
    for (_, call), count in world.executed.items():
        if call[0] in once and count > 1:
            raise AssertionError(f"{where}: step {call[0]!r} ran {count} times, but is named in once=")
