"""`Simulation`: the real application, engine, log and flusher on a virtual loop, disk and repository, through many crashes.

Law: the oracle stands outside of the engine. Everything that a client, a subscriber or a body was told is noted in the moment in which
it was told, and each life begins with a look at what is still there. The same seed gives the same lives.
"""

from __future__ import annotations

import asyncio
import errno
import random
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from durable.app import Durable
from durable.config import Config, EngineSettings, FlushSettings, Limits, LogSettings, PayloadSettings
from durable.core.records import ENDS, Call, Kind, Record
from durable.core.run import Run, fold
from durable.core.status import Status
from durable.errors import DurableError, LogCorruptError, LogFencedError, StorageError, StoreMismatchError
from durable.store.base import Unit
from durable.store.local import LocalStore
from durable.tasks.context import Context
from durable.tasks.decorators import Task
from durable.tasks.handle import Handle
from durable.tasks.host import leave_host
from durable.testing.disk import Fault, PowerLossError, SimulatedDisk
from durable.testing.loop import SimulatedLoop, SimulatedWorker
from durable.testing.oracle import Oracle, SimulationError
from durable.testing.repository import MemoryRepository, away

T = TypeVar("T")

#: Small enough that segments turn over and batches end everywhere.
SMALL = Config(
    log=LogSettings(segment_bytes=8192, frame_bytes_max=65536, segment_age_seconds=2.0, low_water_bytes=0),
    payload=PayloadSettings(bytes_max=32768),
    flush=FlushSettings(interval_seconds=0.2, batch_records_max=20, breaker_threshold=2, breaker_open_seconds=1.0),
    engine=EngineSettings(shutdown_grace_seconds=1.0, cancel_grace_seconds=0.5, family_bytes_max=32768),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What one life meets. The default is a calm one, without an end.

    Arguments:
        crash_points: the power goes at so many crash points of the disk after the start.
        crash_turns: the process ends after so many turns of the loop.
        kill: what ends is the process and not the machine: the disk's caches survive.
        faults: system calls that fail.
        capacity: bytes that the disk holds.
        away: virtual seconds at which the repository goes away, and comes back.
        lost_answer: virtual second after which one answer of the repository is lost.
        clock_jump: seconds by which the wall clock is set, a second after the start.
        seconds: virtual seconds after which the process is killed, if it did not end by itself.
    """

    crash_points: int | None = None
    crash_turns: int | None = None
    kill: bool = False
    faults: tuple[Fault, ...] = ()
    capacity: int | None = None
    away: tuple[float, float] | None = None
    lost_answer: float | None = None
    clock_jump: float = 0.0
    seconds: float = 20_000.0

    @classmethod
    def rough(cls, rng: random.Random) -> Weather:
        """The weather of a life that need not come to its end."""
        weather = replace(cls.mild(rng), kill=rng.random() < 0.3, seconds=rng.choice((3.0, 30.0, 300.0)))
        if rng.random() < 0.6:
            weather = replace(weather, crash_points=rng.randint(1, rng.choice((30, 120, 400))))
        elif rng.random() < 0.9:
            weather = replace(weather, crash_turns=rng.randint(1, rng.choice((60, 300, 1200))))
        if rng.random() < 0.2:
            kind = rng.choice(("fdatasync", "fdatasync", "pwrite", "fsync_dir", "rename", "create", "preallocate"))
            how = rng.choice((errno.EIO, errno.EIO, errno.ENOSPC))
            fault = Fault(kind, rng.randint(1, 40), how, for_ever=rng.random() < 0.2)
            weather = replace(weather, faults=(*weather.faults, fault))
        if rng.random() < 0.05:
            weather = replace(weather, capacity=rng.randint(20_000, 60_000))
        return weather

    @classmethod
    def mild(cls, rng: random.Random) -> Weather:
        """Weather in which all must come to its end all the same."""
        weather = cls()
        if rng.random() < 0.25:
            start = rng.choice((0.0, 3.0)) * rng.random()
            weather = replace(weather, away=(start, start + rng.random() * 5))
        if rng.random() < 0.15:
            weather = replace(weather, lost_answer=rng.random() * 2)
        if rng.random() < 0.2:
            how: Literal["short", "eintr"] = rng.choice(("short", "eintr"))
            weather = replace(weather, faults=(Fault("pwrite", rng.randint(1, 30), how),))
        if rng.random() < 0.1:
            weather = replace(weather, clock_jump=rng.choice((-1.0, 1.0)) * rng.choice((2.0, 3600.0)) * rng.random())
        return weather


class _Store(LocalStore):
    """The local store, watched at its seam."""

    oracle: Oracle

    async def open(self) -> None:
        await super().open()
        await self.oracle.inspect(self)

    async def commit(self, units: Sequence[Unit]) -> None:
        await super().commit(units)
        self.oracle.committed(units)


class _Loop(SimulatedLoop):
    """A loop whose process can end at any turn."""

    turns = 0
    crash_at: int | None = None

    def _advance(self, timeout: float | None) -> None:
        self.turns += 1
        if self.crash_at is not None and self.turns >= self.crash_at:
            raise PowerLossError
        super()._advance(timeout)


@dataclass(slots=True)
class Life:
    """One life of the process, as its clients see it. All answers are noted by the oracle."""

    app: Durable
    oracle: Oracle
    rng: random.Random
    number: int
    #: Whether it is the last one, in which everything has to come to its end.
    last: bool
    over: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self, task: Task[..., Any], *args: Any) -> str:
        """Start a run; return its id."""
        handle = await self.app.start(task, *args)
        self.oracle.promise(handle.run_id, f"start of {task.name}", bool)
        return handle.run_id

    async def _handle(self, run_id: str) -> Handle[Any]:
        return await self.app.get(run_id)

    async def wait(self, run_id: str) -> Run:
        """Wait for the end of a run, and return the run."""
        with suppress(DurableError):
            await (await self._handle(run_id)).wait()
        run = await self.app.engine.find_run(run_id)
        if not run.ended:
            raise LogFencedError(f"run {run_id} goes on in the next process")
        self._promise_end(run)
        return run

    async def poll(self, run_id: str) -> Run:
        """Ask the store for a run until it has ended, and return it: the engine does not hear of that."""
        wait = 0.05
        while not (run := await self.app.engine.find_run(run_id)).ended:
            await asyncio.sleep(wait)
            wait = min(1.5 * wait, 60.0)
        self._promise_end(run)
        return run

    def _promise_end(self, run: Run) -> None:
        payload = run.result if run.status is Status.COMPLETED else None
        self.oracle.promise(
            run.run_id, f"end {run.status} with {payload!r}",
            lambda records: any(
                each.kind in ENDS and each.at == run.ended_at and (payload is None or each.payload == payload) for each in records
            ),
        )  # fmt: skip

    async def send(self, run_id: str, name: str, value: object) -> None:
        """Send a signal."""
        await (await self._handle(run_id)).send(name, value)
        payload = self.app.engine.codec.encode(value)
        self._promise_count(
            run_id, f"signal {name!r}", lambda each: each.kind is Kind.SIGNAL and each.payload == payload
        )

    async def cancel(self, run_id: str) -> None:
        """Cancel a run."""
        await (await self._handle(run_id)).cancel("a client asked for it")
        self.oracle.promise(run_id, "cancel", lambda records: any(record.kind in ENDS for record in records))

    async def stop(self, run_id: str) -> None:
        """Suspend a run."""
        await (await self._handle(run_id)).stop("a client asked for it")
        self.oracle.promise(run_id, "stop", lambda records: any(record.kind is Kind.SUSPENDED for record in records))

    async def resume(self, run_id: str) -> None:
        """Let a suspended run go on."""
        await (await self._handle(run_id)).resume()
        self.oracle.promise(run_id, "resume", lambda records: any(record.kind is Kind.RESUMED for record in records))

    async def retry(self, run_id: str) -> None:
        """Let a failed run go on."""
        await (await self._handle(run_id)).retry()
        self.oracle.promise(run_id, "retry", lambda records: any(record.kind is Kind.RESUMED for record in records))

    async def watch(self, run_id: str) -> None:
        """Follow all records of a run, from where the last subscriber was."""
        handle = await self._handle(run_id)
        last = max((seq for known, seq in self.oracle.seen if known == run_id), default=0)
        async for event in handle.events(last, steps=True):
            if event.seq != last + 1:
                self.oracle.blame(f"a subscriber of run {run_id} got event {event.seq} after {last}")
            last = event.seq
            self.oracle.noticed(run_id, event.seq, event.name)

    def emitted(self, run_id: str, name: str, value: object) -> None:
        """An `emit` returned."""
        payload = self.app.engine.codec.encode(value)
        self._promise_count(
            run_id,
            f"event {name!r}",
            lambda each: each.kind is Kind.EVENT and each.name == name and each.payload == payload,
        )

    def _promise_count(self, run_id: str, what: str, matches: Callable[[Record], bool]) -> None:
        self.oracle.promise(run_id, what, lambda records: any(map(matches, records)))


#: The life that the running code belongs to; bodies inherit it from the application's `open`.
current_life: ContextVar[Life] = ContextVar("durable.testing.life")


class Witness:
    """Notes what one execution of a body sees, in order. Make it first in the body: `saw = Witness(ctx)`."""

    def __init__(self, ctx: Context[Any]) -> None:
        backing: Any = ctx._backing
        self._backing = backing
        self._life, self._attempt = current_life.get(), ctx.attempt
        self._run_id = backing.origin  # a coordinator sees other things than the body
        self._position = 0

    def __call__(self, value: T) -> T:
        """Note a value that must be the same in every life, and return it."""
        stopped = self._backing.interrupted or not self._backing.entry.run.executing
        if not self._life.over and not stopped:  # what a body sees that is being stopped, it can tell nobody
            self._life.oracle.sight(self._run_id, self._attempt, self._position, value)
            self._position += 1
        return value


Ending = Literal["closed", "crashed", "failed"]


class Simulation:
    """One store with its disk and its repository, through its lives.

    Arguments:
        seed: decides everything.
        disk: the kind of disk; a planted defect may be in it.
        repository: what the log is flushed into.
        limits: how much runs at once.
    """

    def __init__(
        self, seed: int, *, config: Config = SMALL, disk: type[SimulatedDisk] = SimulatedDisk,
        repository: MemoryRepository | None = None, limits: Limits = Limits(),
    ) -> None:  # fmt: skip
        self.seed, self.config, self.limits = seed, config, limits
        self.rng = random.Random(seed)
        self.disk = disk(self.rng, self.rng.choice(("posix", "journal", "ext4")))
        self.repository = repository if repository is not None else MemoryRepository()
        self.oracle = Oracle()
        self.lives = self.crashes = self.trace = 0
        #: What the coroutines of the last life raised when they were ended with it; for whoever looks at one seed.
        self.last_words: list[str] = []
        self._now = 1_700_000_000.0

    def live(
        self, clients: Callable[[Life], Coroutine[Any, Any, None]], weather: Weather = Weather(), *, last: bool = False
    ) -> Ending:
        """One life: open the application, let the clients act, close it; or die on the way. Raises `SimulationError`."""
        self.lives += 1
        disk, number = self.disk, self.lives
        loop = _Loop(self.seed * 64 + number)
        loop.clock.started_at = self._now
        loop.crash_at = weather.crash_turns
        disk.crash_at = None if weather.crash_points is None else disk.points + weather.crash_points
        disk.faults, disk.capacity = list(weather.faults), weather.capacity
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        ending: Ending = "closed"
        life: Life | None = None
        try:
            store = _Store(
                "simulated", log=self.config.log, flush=self.config.flush, clock=loop.clock, entropy=loop.entropy,
                files=disk, repository=self.repository, worker=SimulatedWorker,
            )  # fmt: skip
            store.oracle = self.oracle
            app = Durable(
                store, config=self.config, limits=self.limits, test_mode=True, clock=loop.clock, entropy=loop.entropy
            )
            life = Life(app, self.oracle, random.Random(loop.rng.random()), number, last)
            loop.run_until_complete(_run(life, clients, weather, self.repository))
        except PowerLossError:
            ending = "crashed"
            self.crashes += 1
        except StorageError as error:
            blamed = isinstance(error, LogCorruptError | StoreMismatchError)
            if last or blamed or (not weather.faults and weather.capacity is None):
                raise  # no fault of the machine excuses this
            ending = "failed"
        finally:
            self._bury(loop, life)
            sys.unraisablehook = hook
        self._now = loop.clock.now() + self.rng.choice((0.0, 0.5, 20.0)) * self.rng.random()
        self.trace = self.trace * 31 + loop.trace & (2**64 - 1)
        self.oracle.verify()
        if last and ending != "closed":
            raise SimulationError(
                f"not everything came to its end within {weather.seconds:g} virtual seconds: {self._open_runs()}"
            )
        self.disk = disk.kill() if weather.kill else disk.crash()
        self.repository.crash()
        return ending

    def _bury(self, loop: SimulatedLoop, life: Life | None) -> None:
        self.disk.dead = True
        if life is not None:
            life.over = True
            life.app.engine.on_step = None
            leave_host(life.app.engine)
        left = asyncio.all_tasks(loop)
        loop.abandon()
        self.last_words = [said for task in left if (said := _close(task.get_coro())) is not None]
        self.repository.away = self.repository.fail_after = None

    def _open_runs(self) -> str:
        folded = [fold(records) for records in self.oracle.known.values()]
        return ", ".join(f"{run.task} {run.run_id} is {run.status} at {run.seq}" for run in folded if not run.closed)


def _close(coroutine: Any) -> str | None:
    """End a coroutine of a dead process, now, and return what it said last, if anything.

    The garbage collector could end its parts in an order in which they meet freed tasks, and take the interpreter with it.
    """
    said = None
    for _ in range(50):
        try:
            coroutine.close()
            break
        except BaseException as error:  # noqa: BLE001 - it may raise, or even wait for something, and is closed again
            said = repr(error)
    return said


async def _run(
    life: Life, clients: Callable[[Life], Coroutine[Any, Any, None]], weather: Weather, repository: MemoryRepository
) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)

    def end() -> None:
        raise PowerLossError

    def set_away(error: BaseException | None) -> None:
        repository.away = error

    def lose_answer() -> None:
        repository.fail_after = away("its answer was lost")

    def jump() -> None:
        loop.clock.started_at += weather.clock_jump

    def executed(run_id: str, call: Call) -> None:
        if not life.over:
            life.oracle.executed(run_id, call)

    loop.call_later(weather.seconds, end)
    life.app.engine.on_step = executed
    current_life.set(life)
    await life.app.open()
    loop.call_later(1.0, jump)
    if weather.away is not None:
        loop.call_later(weather.away[0], set_away, away())
        loop.call_later(weather.away[1], set_away, None)
    if weather.lost_answer is not None:
        loop.call_later(weather.lost_answer, lose_answer)
    await clients(life)
    await life.app.close()
