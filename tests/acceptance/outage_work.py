"""Work for an executor process, and for the test that starts it: every effect is counted in files, outside of the engine.

    python -m tests.acceptance.outage_work URL SCHEMA NOTES LEASE

Lines go to NOTES by single appending writes, `TIME KIND RUN CALL`, with the time of the machine's monotonic clock: `X` before the body of
a step does anything, `R` once its result was handed back, that is, once it was acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import durable
from durable import Config, Context, Durable, Handle, Limits, step, task
from durable.config import EngineSettings, PostgresSettings
from durable.core.records import Kind
from durable.errors import RepositoryUnavailableError
from durable.store import PostgresStore

ROOT = Path(__file__).resolve().parents[2]
#: A step of these is at work for so long, seconds.
STEP_SECONDS = 0.01
#: Of each run.
STEPS = 4

NOTES: list[int] = []
NOTES_FILE: list[Path] = []


def note(kind: str, run_id: str, call: str) -> None:
    if NOTES:
        os.write(NOTES[0], f"{time.monotonic()} {kind} {run_id} {call}\n".encode())


@step(name="outage.effect")
async def effect(run_id: str, number: int) -> int:
    note("X", run_id, f"effect{number}")
    await asyncio.sleep(STEP_SECONDS)
    return number


@step(name="outage.insert")
async def insert(ctx: Context, number: int) -> int:
    note("X", ctx.run_id, f"insert{number}")
    async with ctx.transaction() as connection:
        await connection.execute("INSERT INTO effects (run_id, number) VALUES (%s, %s)", (ctx.run_id, number))
    return number


@task(name="outage.part")
async def part(ctx: Context, number: int) -> int:
    got = await effect(ctx.run_id, number)
    note("R", ctx.run_id, f"effect{number}")
    return got


@task(name="outage.work")
async def work(ctx: Context, number: int) -> int:
    """Steps, one after the other; by its number with a sleep, children or transactions in between. Returns 6."""
    total = 0
    for each in range(STEPS):
        if number % 4 == 1 and each == 2:
            await durable.sleep(0.05)
        if number % 4 == 2 and each == 2:
            total += sum(await asyncio.gather(part(1), part(1)))
        elif number % 4 == 3:
            total += await insert(each)
            note("R", ctx.run_id, f"insert{each}")
        else:
            total += await effect(ctx.run_id, each)
            note("R", ctx.run_id, f"effect{each}")
    return total


@step(name="outage.linger")
async def linger(ctx: Context, seconds: float) -> None:
    try:
        # Cut off before, it need not be long again: what matters is that nobody is done with it before it is cut off.
        again = f"C {ctx.run_id} linger" in (NOTES_FILE[0].read_text() if NOTES_FILE else "")
        note("X", ctx.run_id, "linger")
        await asyncio.sleep(0.1 if again else seconds)
    except asyncio.CancelledError:
        note("C", ctx.run_id, "linger")
        raise


@task(name="outage.lingering")
async def lingering(ctx: Context, seconds: float) -> str:
    await linger(seconds)
    return "lingered"


def first(folder: str, what: str) -> bool:
    """Whether this has not happened yet, in any process."""
    try:
        os.close(os.open(f"{folder}/{what}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@task(name="outage.blocking")
async def blocking(ctx: Context, folder: str, seconds: float) -> int:
    """Blocks its event loop for so long, once, and goes on as if nothing had been."""
    total = await effect(ctx.run_id, 1)
    if first(folder, "blocked"):
        time.sleep(seconds)  # noqa: ASYNC251 - that is what is tried
        note("B", ctx.run_id, "blocked")
    total += await effect(ctx.run_id, 2)
    note("R", ctx.run_id, "effect2")
    return total


@step(name="outage.deadly_insert")
async def deadly_insert(ctx: Context, folder: str, where: str) -> int:
    note("X", ctx.run_id, "deadly")
    async with ctx.transaction() as connection:
        await connection.execute("INSERT INTO effects (run_id, number) VALUES (%s, 0)", (ctx.run_id,))
        die_at("in the block", where, folder)
    die_at("after the block", where, folder)
    return 0


@task(name="outage.deadly")
async def deadly(ctx: Context, folder: str, where: str) -> str:
    """Its process is killed at this place, once."""
    await deadly_insert(folder, where)
    note("R", ctx.run_id, "deadly")
    die_at("once it is recorded", where, folder)
    return where


def die_at(place: str, where: str, folder: str) -> None:
    if place == where and first(folder, "died"):
        os.kill(os.getpid(), signal.SIGKILL)


#: For what was left over to end, seconds; a run whose executor is gone waits for its lease and the sweep after it.
ENDS_WITHIN = 30.0
#: What every run of `work` returns.
RESULT = 6


def store_at(url: str, schema: str, lease: float, **settings: object) -> PostgresStore:
    """A store with short times, so that a test need not wait."""
    times = {"lease_seconds": lease, "connect_seconds": 1.0, "poll_seconds": 0.5, "statement_seconds": 10.0, **settings}
    return PostgresStore(url, PostgresSettings(schema=schema, **times))  # type: ignore[arg-type]


def app_at(
    url: str, schema: str, lease: float, *, execute: bool = True, slots: int = 20, **settings: object
) -> Durable:
    config = Config(engine=EngineSettings(shutdown_grace_seconds=0.5, max_recoveries=1000))
    return Durable(
        store_at(url, schema, lease, **settings), limits=Limits(max_running=slots), config=config, execute=execute,
        test_mode=True,
    )  # fmt: skip


async def live(url: str, schema: str, lease: float) -> None:
    """Execute until SIGTERM."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with app_at(url, schema, lease):
        print("open", flush=True)
        await over.wait()


class Executor:
    """A process that executes runs."""

    def __init__(self, url: str, schema: str, notes: Path, lease: float, log: IO[bytes]) -> None:
        words = ["-m", "tests.acceptance.outage_work", url, schema, str(notes), str(lease)]
        self.process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=log)

    def opened(self) -> None:
        """Wait until it executes."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"open\n", "the executor did not open"

    def end(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)


@asynccontextmanager
async def executors(count: int, url: str, schema: str, folder: Path, lease: float) -> AsyncIterator[list[Executor]]:
    """So many processes, which execute when this block begins; what they log is shown where the block fails."""
    with (folder / "executors.log").open("ab") as log:
        started = [Executor(url, schema, folder / "notes", lease, log) for _ in range(count)]
        try:
            for executor in started:
                await asyncio.to_thread(executor.opened)
            yield started
        except BaseException:
            print((folder / "executors.log").read_text()[-8000:])
            raise
        finally:
            for executor in started:
                await asyncio.to_thread(executor.end)


def repeated(notes: Path) -> list[str]:
    """Calls of steps whose body began after their result had been acknowledged."""
    acknowledged: dict[tuple[str, str], float] = {}
    begun: list[tuple[float, tuple[str, str]]] = []
    for line in notes.read_text().splitlines():
        at, kind, run_id, call = line.split()
        if kind == "R":
            acknowledged.setdefault((run_id, call), float(at))
        elif kind == "X":
            begun.append((float(at), (run_id, call)))
    return [f"{run_id} {call}" for at, (run_id, call) in begun if at > acknowledged.get((run_id, call), at)]


async def verify(app: Durable, started: set[str], notes: Path) -> int:
    """Every run is there, has ended, and its records are whole; each effect in a transaction is there once. Returns how many runs."""
    runs = {info.run_id: info async for info in app.runs()}
    assert started <= runs.keys(), f"{len(started - runs.keys())} acknowledged starts are lost"
    unended = {run_id: str(info.status) for run_id, info in runs.items() if info.status != "completed"}
    assert not unended, f"not ended: {unended}"
    inserted: set[tuple[str, int]] = set()
    for run_id, info in runs.items():
        records = await app.engine.store.history(run_id)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        calls = [record.call for record in records if record.kind is Kind.STEP_COMPLETED]
        twice = [call for call, count in Counter(calls).items() if count > 1]
        assert not twice, f"run {run_id}: {twice} are recorded twice"
        steps = Counter(call[0] for call in calls)
        inserted |= {(run_id, number) for number in range(steps["outage.insert"])}
        if info.task_name == "outage.work":
            assert sum(steps[name] for name in ("outage.effect", "outage.insert")) >= STEPS - 1
    assert repeated(notes) == []
    async with app.engine.store.borrow() as connection:  # type: ignore[attr-defined]
        cursor = await connection.execute("SELECT run_id, number FROM effects")
        rows = [tuple(row) for row in await cursor.fetchall()]
    assert sorted(rows) == sorted(inserted), "effects and records differ"
    return len(runs)


class Client:
    """Starts runs and waits for them, and writes down what it was told."""

    def __init__(self, app: Durable) -> None:
        self.app = app
        self.started: set[str] = set()
        self.results: dict[str, int] = {}
        #: For each start that was refused, how long that took.
        self.refused: list[float] = []
        self.latest = 0.0
        self.enough = False
        self._waiting: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []

    async def start(self, number: int) -> Handle[int]:
        """Start a run, under a key for each second number, however often that takes."""
        while True:
            begun = time.monotonic()
            try:
                chosen = work.options(key=f"key{number}") if number % 8 < 4 else work
                handle = await self.app.start(chosen, number)
            except RepositoryUnavailableError as error:
                assert error.retryable  # noqa: PT017 - it goes on
                self.refused.append(time.monotonic() - begun)
                await asyncio.sleep(0.1)
            else:
                self.started.add(handle.run_id)
                return handle

    async def keep_starting(self, pause: float, first: int = 0, apart: int = 1) -> None:
        number = first
        while not self.enough:
            handle = await self.start(number)
            waiting = asyncio.ensure_future(self._wait(handle))
            self._waiting.add(waiting)
            number += apart
            await asyncio.sleep(pause)

    async def _wait(self, handle: Handle[int]) -> None:
        self.results[handle.run_id] = await handle.wait()
        self.latest = time.monotonic()

    async def ended(self) -> None:
        """Wait until every run that was started has its result."""
        async with asyncio.timeout(ENDS_WITHIN):
            await asyncio.gather(*self._waiting)
        assert self.results.keys() == self.started
        assert set(self.results.values()) <= {RESULT}


@asynccontextmanager
async def at_work(url: str, schema: str, lease: float, notes: Path, pause: float) -> AsyncIterator[Client]:
    """Two executors beside, and a client here that starts runs all the time; at the end all of it has to have come to its end."""
    async with executors(2, url, schema, notes.parent, lease), app_at(url, schema, lease, execute=False) as app:
        if True:
            client = Client(app)
            starting = [asyncio.ensure_future(client.keep_starting(pause, each, 4)) for each in range(4)]
            try:
                yield client
                client.enough = True
                async with asyncio.timeout(ENDS_WITHIN):
                    await asyncio.gather(*starting)
                await client.ended()
                await until_all_ended(app)
                await verify(app, client.started, notes)
            finally:
                for each in starting:
                    each.cancel()


async def until_all_ended(app: Durable) -> None:
    """Starts whose answer was lost have runs that nobody waits for."""
    async with asyncio.timeout(ENDS_WITHIN):
        while [info async for info in app.runs(status=("ready", "running", "waiting_for_children"), limit=1)]:
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    NOTES_FILE.append(Path(sys.argv[3]))
    NOTES.append(os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    asyncio.run(live(sys.argv[1], sys.argv[2], float(sys.argv[4])))
