"""Ending in order (P21, W54): nothing is lost whenever a signal comes, and the end comes in time, whatever hangs.

`DURABLE_FULL=1`: two hundred signals on each kind of store, in place of some.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Config, Context, Durable, ShuttingDownError, Status, step, task
from durable.config import EngineSettings, PostgresSettings
from durable.core.query import RunFilter
from durable.core.records import ENDS
from durable.core.run import fold
from durable.errors import DurableError
from tests.acceptance import shutdown_worker
from tests.acceptance.contract_support import until_event
from tests.support.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("DURABLE_FULL") == "1"
SIGNALS = 200 if FULL else 25
#: From the signal to the end: the grace, what a cancelled body may take, and what a loaded machine takes.
SECONDS_MAX = 10.0


class Life:
    """A process of `shutdown_worker`."""

    def __init__(self, store: str, schema: str, side: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.acceptance.shutdown_worker", store, schema, str(side)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self._lines = self.process.stdout

    def line(self) -> str:
        return self._lines.readline().strip()

    def end(self, number: int) -> None:
        """Ask it to end; it does so in time, with exit code 0."""
        asked = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(SECONDS_MAX) == 0, f"{self.process.returncode} after {time.monotonic() - asked:.1f} s"
        self._lines.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._lines.close()


async def finish(store: str, schema: str) -> list[Any]:
    """Let what is left come to its end; all runs with their records."""
    app = Durable(store, test_mode=True, **shutdown_worker.settings(schema))
    async with app:
        async with asyncio.timeout(120):
            left = [each for each in Status if not is_end(each) and each is not Status.SUSPENDED]
            while [info async for info in app.runs(status=left, limit=1)]:
                await asyncio.sleep(0.05)
        runs = await app.store.query(RunFilter(limit=1_000_000))
        return [(run, await app.store.history(run.run_id)) for run in runs]


def is_end(status: Status) -> bool:
    return status in {
        Status.COMPLETED, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED, Status.CHILDREN_FAILED,
        Status.ON_CHILDREN_COMPLETE_FAILED,
    }  # fmt: skip


def judge(side: Path, runs: list[Any]) -> Counter[str]:
    """Every start that was acknowledged ended once, with its result; no step that was recorded ran again; returns what was done."""
    lines = [line.split() for line in side.read_text().splitlines()]
    begun, done = (
        Counter(line[1] for line in lines if line[0] == "X"),
        Counter(line[1] for line in lines if line[0] == "D"),
    )
    by_key = {run.key: run for run, _ in runs if run.key is not None}
    acked = {line[1]: line[2] for line in lines if line[0] == "A"}
    assert acked, "nothing was started"
    for key, run_id in acked.items():
        assert by_key[key].run_id == run_id
    for run, history in runs:
        assert run.status is Status.COMPLETED and run.closed, (run.task, run.status, run.failure)
        assert [record.seq for record in history] == list(range(1, len(history) + 1))
        assert fold(history) == run
        assert sum(record.kind in ENDS for record in history) == 1
    for word, count in done.items():
        assert count <= begun[word]
    return begun


@pytest.mark.timeout(900 if FULL else 240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_at_random_moments_lose_nothing_in_a_folder(tmp_path: Path, number: signal.Signals) -> None:
    """Life after life under load, each asked to end at a random moment: exit code 0 in time, and every start ends once."""
    store, side = str(tmp_path / "store"), tmp_path / "side"
    rng = random.Random(int(number))
    for _ in range(SIGNALS if number == signal.SIGTERM else 8):
        life = Life(store, "none", side)
        try:
            assert life.line() == "ready"
            time.sleep(rng.choice((0.0, 0.05, 0.3)) * rng.random())
            life.end(number)
        finally:
            life.kill()
    runs = asyncio.run(finish(store, "none"))
    begun = judge(side, runs)
    assert begun


@pytest.mark.timeout(900 if FULL else 240)
def test_signals_at_random_moments_lose_nothing_in_a_database(
    tmp_path: Path, postgres_url: str, postgres_schema: str
) -> None:
    """The same with two workers at a time, of which one goes and the other takes over what it hands back."""
    side = tmp_path / "side"
    rng = random.Random(3)
    lives = [Life(postgres_url, postgres_schema, side)]
    try:
        assert lives[0].line() == "ready"
        for _ in range(SIGNALS // 2 if not FULL else SIGNALS):
            lives.append(Life(postgres_url, postgres_schema, side))
            assert lives[-1].line() == "ready"
            time.sleep(rng.choice((0.0, 0.05, 0.3)) * rng.random())
            lives.pop(0).end(signal.SIGTERM)
        lives.pop().end(signal.SIGTERM)
    finally:
        for life in lives:
            life.kill()
    runs = asyncio.run(finish(postgres_url, postgres_schema))
    judge(side, runs)
    assert sum(run.recoveries for run, _ in runs) == 0


# --- programs of their own --------------------------------------------------------------------------------------------------------

HEAD = """
import asyncio, signal, sys, threading, time
import durable
from durable import *
from durable.config import *

FOLDER = sys.argv[1]

def said(text):
    print(text, flush=True)

"""


class Program:
    """A program, begun, with a store in a folder."""

    def __init__(self, folder: Path, text: str) -> None:
        self.store = folder / "store"
        script = folder / "program.py"
        script.write_text(HEAD + textwrap.dedent(text))
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.store)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        self.lines = self.process.stdout

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self.lines.close()

    def line(self) -> str:
        return self.lines.readline().strip()

    def ends(self, seconds: float) -> int:
        """Its exit code; it ends within so many seconds."""
        return self.process.wait(seconds)


STUBBORN = """
    @task
    async def stubborn(ctx: Context) -> None:
        await ctx.emit("begun")
        said("begun")
        await ctx.shutting_down.wait()
        said(f"told {ctx.shutting_down.is_set()}")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                said("cancelled")

    async def main():
        config = Config(engine=EngineSettings(shutdown_grace_seconds=GRACE, cancel_grace_seconds=0.3))
        app = Durable(FOLDER, config=config)
        async def start():
            await stubborn.options(key="k").start()
        starts = []
        await app.serve(ready=lambda: starts.append(asyncio.ensure_future(start())))
        said("closed")

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
)
def test_the_second_signal_ends_the_process_within_a_second(tmp_path: Path, first: int, second: int) -> None:
    """By the signal itself; the next process goes on."""
    with Program(tmp_path, STUBBORN.replace("GRACE", "600")) as program:
        assert program.line() == "begun"
        program.process.send_signal(first)
        assert program.line() == "told True"
        program.process.send_signal(second)
        assert program.ends(1.0) == -second

    async def next_process() -> None:
        async with Durable(program.store) as app:
            handle = await app.find("k")
            assert handle is not None and await handle.status() is Status.RUNNING

    asyncio.run(next_process())


def test_a_body_that_ignores_being_cancelled_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """It is told at the start, cancelled after the grace, and left behind after another; the loop then cancels it once more."""
    text = STUBBORN.replace("GRACE", "0.2").replace('said("closed")', 'said("closed"); import os; os._exit(0)')
    with Program(tmp_path, text) as program:
        assert program.line() == "begun"
        program.process.send_signal(signal.SIGTERM)
        assert [program.line() for _ in range(3)] == ["told True", "cancelled", "closed"]
        assert program.ends(3.0) == 0


@pytest.mark.parametrize("where", ["task", "step"])
def test_a_thread_that_hangs_does_not_hold_up_the_end(tmp_path: Path, where: str) -> None:
    """The process ends, with code 0, although a thread of it is in the middle of something: nothing of that is recorded."""
    with Program(
        tmp_path,
        """
        def hang():
            said("begun")
            time.sleep(600)

        hanging = task(name="hanging")(hang)
        hang_step = step(name="hang_step")(hang)

        @task
        async def stepping() -> None:
            await hang_step()

        async def main():
            config = Config(engine=EngineSettings(shutdown_grace_seconds=0.1, cancel_grace_seconds=0.1))
            app = Durable(FOLDER, config=config)
            async def start():
                await WHICH.options(key="k").start()
            starts = []
            await app.serve(ready=lambda: starts.append(asyncio.ensure_future(start())))
            said("closed")

        asyncio.run(main())
        """.replace("WHICH", "hanging" if where == "task" else "stepping"),
    ) as program:
        assert program.line() == "begun"
        program.process.send_signal(signal.SIGTERM)
        assert program.line() == "closed"
        assert program.ends(3.0) == 0


def test_a_loop_that_is_blocked_ends_at_the_second_signal(tmp_path: Path) -> None:
    with Program(
        tmp_path,
        """
        @task
        async def blocking() -> None:
            said("begun")
            time.sleep(600)

        async def main():
            app = Durable(FOLDER)
            async def start():
                await blocking.start()
            starts = []
            await app.serve(ready=lambda: starts.append(asyncio.ensure_future(start())))

        asyncio.run(main())
        """,
    ) as program:
        assert program.line() == "begun"
        program.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            program.ends(0.5)
        program.process.send_signal(signal.SIGTERM)
        assert program.ends(1.0) == -signal.SIGTERM


def test_what_held_at_a_signal_before_holds_again(tmp_path: Path) -> None:
    """Under `asyncio.run`, beside handlers of one's own: they are back when `serve` returns, also when it raises or is cancelled."""
    with Program(
        tmp_path,
        """
        def mine(number, frame):
            said(f"mine {number}")

        async def main():
            signal.signal(signal.SIGTERM, mine)
            interrupt = signal.getsignal(signal.SIGINT)
            app = Durable(FOLDER)
            await app.serve(ready=app.stop_serving)
            assert signal.getsignal(signal.SIGTERM) is mine and signal.getsignal(signal.SIGINT) is interrupt
            opened = asyncio.Event()
            serving = asyncio.create_task(app.serve(ready=opened.set))
            await opened.wait()
            assert signal.getsignal(signal.SIGTERM) is not mine
            serving.cancel()
            try:
                await serving
            except asyncio.CancelledError:
                said("cancelled")
            assert signal.getsignal(signal.SIGTERM) is mine and signal.getsignal(signal.SIGINT) is interrupt
            async with Durable(FOLDER):
                try:
                    await app.serve()
                except DurableError as error:
                    said(type(error).__name__)
            assert signal.getsignal(signal.SIGTERM) is mine
            signal.raise_signal(signal.SIGTERM)
            await app.open()
            asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
            await app.serve(stopping=lambda: said("stopping"))
            said("over")

        asyncio.run(main())
        """,
    ) as program:
        expected = ["cancelled", "StoreLockedError", f"mine {int(signal.SIGTERM)}", "stopping", "over"]
        assert [program.line() for _ in expected] == expected
        assert program.ends(3.0) == 0


# --- in this process ------------------------------------------------------------------------------------------------------------------


@step(name="shutdown_test_hold")
async def hold(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "held"


@task(name="shutdown_test_holding")
async def holding(ctx: Context, seconds: float) -> str:
    await ctx.emit("begun")
    return await hold(seconds)


@pytest.fixture(params=["folder", "postgres"])
def make_app(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Durable]:
    """Makes applications on one store of each kind, the grace of which is long."""
    engine = EngineSettings(shutdown_grace_seconds=60, cancel_grace_seconds=0.3)
    if request.param == "folder":
        return lambda **options: Durable(tmp_path / "store", config=Config(engine=engine), **options)
    url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres_schema")
    config = Config(engine=engine, postgres=PostgresSettings(schema=schema, lease_seconds=5))
    return lambda **options: Durable(url, config=config, **options)


async def test_close_takes_a_grace_of_its_own(make_app: Callable[..., Durable]) -> None:
    """0 cancels at once, another one is waited for; what was cancelled goes on next time."""
    app = await make_app().open()
    handle = await app.start(holding, 30.0)
    await until_event(handle, "begun")
    begun = time.monotonic()
    await app.close(grace=0)
    assert time.monotonic() - begun < 5
    with pytest.raises(DurableError):
        await handle
    app = await make_app().open()
    short = await app.start(holding, 0.3)
    await until_event(short, "begun")
    await app.close(grace=1)
    app = await make_app().open()
    assert await (await app.get(short.run_id)).status() is Status.COMPLETED
    long = await app.get(handle.run_id)
    assert await long.status() is not Status.COMPLETED
    await long.cancel()
    await app.close(grace=0)


async def test_queued_runs_are_there_after_a_restart(make_app: Callable[..., Durable]) -> None:
    """W54: what had not begun is neither lost nor begun while closing; what asks for more meanwhile is told that it closes."""
    app = await make_app(limits=durable.Limits(max_running=1)).open()
    first = await app.start(holding, 0.2)
    queued = [await app.start(holding, 0.0) for _ in range(20)]
    await until_event(first, "begun")
    closing = asyncio.create_task(app.close())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDownError):
        await app.start(holding, 0.0)
    await closing
    async with make_app() as app:
        assert await (await app.get(first.run_id)).status() is Status.COMPLETED
        for handle in queued:
            assert await (await app.get(handle.run_id)) == "held"


async def test_stop_serving_works_from_a_thread_where_no_signal_comes(tmp_path: Path) -> None:
    """In a thread with a loop of its own; a close by somebody else ends it, too."""
    before = signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    app = Durable(tmp_path / "store")
    ready = threading.Event()

    async def serve() -> None:
        await app.serve(ready=ready.set, stopping=lambda: said.append("stopping"))

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert await asyncio.to_thread(ready.wait, 10)
    assert signal.getsignal(signal.SIGTERM) is before
    app.stop_serving()
    await asyncio.to_thread(thread.join, 10)
    assert (thread.is_alive(), said) == (False, ["stopping"])
    app.stop_serving()
    opened = asyncio.Event()
    serving = asyncio.create_task(app.serve(ready=opened.set))
    await opened.wait()
    await app.close()
    async with asyncio.timeout(5):
        await serving


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["cut", "frozen"])
async def test_a_close_ends_although_the_database_is_away(postgres_url: str, postgres_schema: str, how: str) -> None:
    """Neither one that is away nor one that hangs holds up the end for longer than a lease; the next process goes on."""
    engine = EngineSettings(shutdown_grace_seconds=0.2, cancel_grace_seconds=0.2)
    settings = PostgresSettings(schema=postgres_schema, lease_seconds=2, connect_seconds=1, statement_seconds=2)
    config = Config(engine=engine, postgres=settings)
    async with Proxy(postgres_url) as proxy:
        app = await Durable(proxy.url, config=config).open()
        handle = await app.start(holding, 60.0)
        await until_event(handle, "begun")
        if how == "frozen":
            proxy.freeze()
        else:
            await proxy.__aexit__()
        begun = time.monotonic()
        await app.close()
        assert time.monotonic() - begun < 8
        proxy.thaw()
    async with Durable(postgres_url, config=config) as app:
        again = await app.get(handle.run_id)
        assert not is_end(await again.status())
        await again.cancel()
