"""Several executors and a client on one shared store, in one virtual world: killed, frozen, closed, cut off and replaced.

Law: the database and the network belong to no process: what was asked for arrives, or does not, whatever has become of who asked.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from durable.app import Durable
from durable.config import Config, Limits
from durable.core.query import RunFilter
from durable.core.records import Call
from durable.engine.entry import Entry
from durable.errors import DurableError, RepositoryUnavailableError
from durable.store.shared import Notice
from durable.tasks.host import leave_host
from durable.testing.database import Listener
from durable.testing.loop import SimulatedClock
from durable.testing.oracle import SimulationError
from durable.testing.shared import SharedMemoryStore
from durable.testing.simulate import SMALL, Life, _close, current_life
from tests.simulation.executor_loop import NOBODY, ExecutorLoop, Process
from tests.simulation.executor_oracle import SharedOracle, WatchedDatabase

T = TypeVar("T")

#: Virtual seconds within which everything has to come to its end.
SECONDS = 600.0
#: How long a process stands still at most, one of these.
FREEZE_SECONDS = (0.5, 6.0, 20.0)
#: Kinds of fate of a request: nothing of it arrives; its answer is lost; it arrives after it was given up.
FATES = ("before", "after", "late")


class ProcessDied(Exception):
    """The process in which something was done has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How the network is.

    Arguments:
        bad: how often a request has one of the `FATES`.
        deaf: how often a notice gets lost.
        latencies: seconds that a way takes at most, chosen from these.
    """

    bad: float = 0.0
    deaf: float = 0.0
    latencies: tuple[float, ...] = (0.0, 0.001)

    @classmethod
    def draw(cls, rng: random.Random) -> Weather:
        """Some weather."""
        slow = rng.choice(((0.0,), (0.0, 0.001), (0.001, 0.02), (0.001, 0.3)))
        return cls(bad=rng.choice((0.0, 0.0, 0.01, 0.05)), deaf=rng.choice((0.0, 0.1, 1.0)), latencies=slow)


@dataclass(slots=True)
class Settings:
    """How one world is."""

    executors: int
    limits: Limits
    config: Config = SMALL
    lease_seconds: float = 5.0
    poll_seconds: float = 1.0
    faults: int = 0


class WiredStore(SharedMemoryStore):
    """A store with a network between it and the database."""

    world: World
    process: Process

    async def _ask(self, what: str, work: Callable[[], T]) -> T:
        self._check()
        world, loop = self.world, asyncio.get_running_loop()
        rng, answer = world.rng, loop.create_future()
        fate = rng.choice(FATES) if rng.random() < world.weather.bad else None
        lost = RepositoryUnavailableError(f"{what}: the database did not answer")

        def tell(error: Exception | None, result: Any = None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        def arrive() -> None:
            error: Exception | None = None
            result: Any = None
            if world.is_away or fate == "before":
                error = lost
            else:
                try:
                    result = work()
                except DurableError as refused:
                    error = refused
            loop.call_later(world.latency(), tell, lost if fate else error, result, context=NOBODY)

        late = rng.random() * 10 if fate == "late" else 0.0
        loop.call_later(world.latency() + late, arrive, context=NOBODY)
        if late:
            loop.call_later(world.latency(), tell, lost, context=NOBODY)
        value: T = await answer
        return value

    def _deliver(self, other: Listener, notice: Notice) -> None:
        world = self.world
        assert isinstance(other, WiredStore)
        if not world.is_away and world.rng.random() >= world.weather.deaf:
            late = world.latency() + world.rng.choice((0.0, 0.0, 0.5)) * world.rng.random()
            asyncio.get_running_loop().call_later(late, other.hear, notice, context=other.process.context.copy())


@dataclass(slots=True, eq=False)
class Member:
    """One simulated process: an application on a store of its own."""

    process: Process
    store: WiredStore
    app: Durable
    life: Life
    died: asyncio.Future[None]
    opened: bool = False
    kept: list[Any] = field(default_factory=list)

    @property
    def is_up(self) -> bool:
        return self.opened and not self.died.done()


class World:
    """See the module; `rng` decides everything."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.settings = settings
        self.loop = ExecutorLoop(seed)
        self.rng = random.Random(seed ^ 0xE0E0)
        self.weather = Weather.draw(self.rng) if settings.faults else Weather()
        self.is_away = False
        self.oracle = SharedOracle()
        self.database = WatchedDatabase(clock=self.loop.clock, entropy=self.loop.entropy)
        self.database.oracle = self.oracle
        self.members: list[Member] = []
        self.client: Member
        self.crashes = self.freezes = 0
        self.over = False
        self._background: set[asyncio.Task[Any]] = set()

    def latency(self) -> float:
        """How long one way takes."""
        return self.rng.choice(self.weather.latencies) * self.rng.random()

    # -- processes

    async def begin(self, *, execute: bool = True) -> Member:
        """Start a process."""
        number = len(self.members) + 1
        process = Process(f"executor {number}" if execute else "client")
        clock = SimulatedClock(self.loop, started_at=self.loop.clock.started_at + self.rng.choice((0.0, -0.2, 0.2)))
        settings = self.settings
        store = WiredStore(
            self.database, clock=clock, entropy=self.loop.entropy,
            lease_seconds=settings.lease_seconds, poll_seconds=settings.poll_seconds,
        )  # fmt: skip
        store.world, store.process = self, process
        app = Durable(
            store, config=settings.config, limits=settings.limits, execute=execute, test_mode=True,
            clock=clock, entropy=self.loop.entropy,
        )  # fmt: skip
        life = Life(app, self.oracle, random.Random(self.rng.random()), number, last=True)
        member = Member(process, store, app, life, self.loop.create_future())
        process.context.run(current_life.set, life)
        app.engine.on_step = partial(self._executed, member)
        self.members.append(member)
        with suppress(ProcessDied):
            await self.within(member, app.open())
            member.opened = True
        return member

    async def within(self, member: Member, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something in a process. Raises `ProcessDied`."""
        task = self.loop.create_task(coroutine, context=member.process.context.copy())
        member.kept.append(task)
        try:
            await asyncio.wait((task, member.died), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            raise ProcessDied
        return task.result()

    def _executed(self, member: Member, run_id: str, call: Call) -> None:
        if member.died.done() or self.over:
            return
        if member.store.lease_left <= 0:
            self.oracle.blame(f"step {call} of run {run_id} begins where the lease has passed")
        if self.database.rows[run_id].owner != member.store.executor_id:
            self.oracle.blame(
                f"step {call} of run {run_id} begins in {member.process.name}, which does not hold the run"
            )
        self.oracle.executed(run_id, call)

    def kill(self, member: Member) -> None:
        """A process ends, and does nothing more."""
        if not member.died.done():
            member.process.state = "dead"
            member.life.over = True
            leave_host(member.app.engine)
            if member.store in self.database.listeners:
                self.database.listeners.remove(member.store)
            # What it was at must not be collected: the ends of its coroutines would run.
            member.kept.append(asyncio.all_tasks(self.loop))
            member.died.set_result(None)
            self.crashes += 1

    def freeze(self, member: Member, seconds: float) -> None:
        """A process stands still for a while."""
        if member.process.state == "running":
            member.process.state = "frozen"
            self.freezes += 1
            self.loop.call_later(seconds, member.process.thaw, context=NOBODY)

    def up(self) -> list[Member]:
        """The executors that there are."""
        return [member for member in self.members if member.is_up and member is not self.client]

    # -- what goes wrong

    async def chaos(self) -> None:
        """Let things go wrong, a number of times."""
        rng = self.rng
        for _ in range(self.settings.faults):
            await asyncio.sleep(rng.choice((0.01, 0.1, 1.0, 5.0)) * rng.random())
            members = self.up()
            what = rng.choice(("kill", "kill", "freeze", "freeze", "close", "away", "client"))
            if what == "away":
                self.is_away = True
                await asyncio.sleep(rng.choice((0.3, 3.0, 12.0)) * rng.random())
                self.is_away = False
            elif what == "client":
                self.freeze(self.client, rng.choice((0.5, 10.0)) * rng.random())
            elif members:
                self._harm(rng.choice(members), what)
        while not self.up():
            await self.begin()

    def _harm(self, member: Member, what: str) -> None:
        rng = self.rng
        if what == "close":
            self._do(self._closed(member))
            return
        seconds = rng.choice(FREEZE_SECONDS) * rng.random()
        happens = partial(self.kill, member) if what == "kill" else partial(self.freeze, member, seconds)
        member.process.after(rng.randint(0, rng.choice((3, 60, 400))), happens)
        if what == "kill":
            self._do(self._replaced(member))

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _replaced(self, member: Member) -> None:
        await asyncio.wait((member.died,))
        await asyncio.sleep(self.rng.choice((0.0, 2.0, 8.0)) * self.rng.random())
        if not self.over and len(self.up()) < self.settings.executors:
            await self.begin()

    async def _closed(self, member: Member) -> None:
        member.opened = False
        with suppress(ProcessDied):
            await self.within(member, member.app.close())
            self.kill(member)
        if len(self.up()) < self.settings.executors:
            await self.begin()

    # -- from the beginning to the end

    def run(self, main: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        """Begin the processes, do something with them, and see that all comes to its end. Raises `SimulationError`."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        try:
            self.loop.run_until_complete(self._in_time(main))
        finally:
            self._bury()
            sys.unraisablehook = hook
        self.oracle.verify()

    async def _in_time(self, main: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        limit = asyncio.timeout(SECONDS)
        try:
            async with limit:
                await self._run(main)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SimulationError(
                f"not everything came to its end within {SECONDS:g} virtual seconds: {self.state()}"
            ) from error

    async def _run(self, main: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        self.client = await self.begin(execute=False)
        for _ in range(self.settings.executors):
            await self.begin()
        chaos = self.loop.create_task(self.chaos())
        await main(self)
        await chaos
        self.weather = Weather()
        await self._settled()
        self.oracle.verify()
        reader = SharedMemoryStore(self.database)
        await reader.open()
        await self.oracle.inspect(reader)

    async def _settled(self) -> None:
        """Wait until all runs are closed, and see what is left then."""
        open_runs = RunFilter(open=True)
        while self.database.overlay.matching(open_runs):
            if self.oracle.violations:
                self.oracle.verify()
            await asyncio.sleep(0.5)
        for _ in range(60):
            left = self._left()
            if not left:
                return
            await asyncio.sleep(0.5)
        raise SimulationError(f"all runs are closed, and yet there is left: {left}")

    def _left(self) -> list[str]:
        left = [f"message {command[0]!r} for run {run_id}" for run_id, command, _ in self.database.messages.values()]
        left += [f"run {run_id} of {row.owner}" for run_id, row in self.database.rows.items() if row.owner is not None]
        for member in [*self.up(), self.client]:
            counts = {
                name: count for name, count in member.app.engine.statistics().items() if count and name != "queued"
            }
            if counts:
                left.append(f"{member.process.name} has {counts}: {[*map(_entry, member.app.engine.parts.table)]}")
        return left

    def state(self) -> str:
        """What has not come to its end, in words."""
        runs = self.database.overlay.matching(RunFilter(open=True))
        words = [
            f"{run.task} {run.run_id} is {run.status}{' asleep' if run.asleep else ''} at {run.seq}, due {run.due}, "
            f"unfinished {run.unfinished}, awaiting {run.awaiting}, {self.database.rows[run.run_id]}"
            for run in runs
        ]
        waiting = [f"{body[0]!r} for {run_id}" for run_id, body, _ in self.database.messages.values()]
        return (
            f"{words}; messages {waiting}; executors {[(each.process.name, each.process.state) for each in self.up()]}"
        )

    def _bury(self) -> None:
        self.over = True
        for member in self.members:
            member.life.over = True
            member.process.state = "dead"
            member.app.engine.on_step = None
            leave_host(member.app.engine)
        left = asyncio.all_tasks(self.loop)
        self.loop.abandon()
        for task in left:
            _close(task.get_coro())


def _entry(entry: Entry) -> str:
    said = {name: getattr(entry, name) for name in ("owned", "lost", "held", "slot", "settled", "epoch")}
    kin = {"parent": entry.parent is not None, "children": len(entry.children), "body": entry.task is not None}
    return f"{entry.run.task} {entry.run.run_id} {entry.run.status} at {entry.run.seq} {said} {kin}"
