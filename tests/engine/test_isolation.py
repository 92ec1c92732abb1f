"""Functions in processes of their own: what goes over, what comes back, and that nothing survives a kill."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

from durable.engine.isolation import ProcessPool
from durable.errors import ConfigError, NotStorableError, PayloadTooLargeError, ShuttingDownError, StepError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def pool() -> AsyncIterator[ProcessPool]:
    pool = ProcessPool(2)
    yield pool
    await pool.close()


@pytest.fixture
async def single() -> AsyncIterator[ProcessPool]:
    pool = ProcessPool(1)
    yield pool
    await pool.close()


@dataclass
class Point:
    x: int
    y: int


class OddError(Exception):
    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"code {code} at {where}")
        self.code = code


def pid(*_: object) -> int:
    return os.getpid()


async def swap(point: Point, *, add: int = 0) -> Point:
    await asyncio.sleep(0)
    return Point(point.y + add, point.x + add)


def fail_oddly() -> None:
    raise OddError(7, where="sea")


def leave(code: int) -> None:
    os._exit(code)


def suicide(number: int) -> None:
    os.kill(os.getpid(), number)


def exit_politely() -> None:
    sys.exit(4)


def echo(value: object) -> object:
    return value


def lock() -> object:
    return threading.Lock()


def talk() -> None:
    print("said in the worker")
    print("complained in the worker", file=sys.stderr)


def traced(function: Callable[[], Any]) -> Callable[[], Any]:
    @functools.wraps(function)
    def wrapper() -> Any:
        raise AssertionError("the decorator runs in the parent only")

    return wrapper


GUARD = threading.Lock()  # a global that cannot be pickled


@traced
def decorated() -> bool:
    return GUARD.locked()


def report_and_block(fifo: str) -> None:
    """Tell the pid and hold the pipe's end for as long as this process lives."""
    with open(fifo, "w") as stream:
        print(os.getpid(), file=stream, flush=True)
        signal.pause()


def report_and_block_in_a_child(fifo: str) -> None:
    program = (
        "import os, signal, sys; f = open(sys.argv[1], 'w'); print(os.getpid(), file=f, flush=True); signal.pause()"
    )
    subprocess.run([sys.executable, "-c", program, fifo], check=True)


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    return path


async def started(fifo: str) -> TextIO:
    """Wait until somebody has the pipe open and has told the pid; end of file comes when all who held it are dead."""
    stream = await asyncio.to_thread(open, fifo)
    assert int(await asyncio.to_thread(stream.readline)) > 0
    return stream


async def ended(stream: TextIO) -> None:
    async with asyncio.timeout(20):
        assert await asyncio.to_thread(stream.read) == ""
    stream.close()


async def test_a_function_runs_in_another_process_that_is_used_again(single: ProcessPool) -> None:
    """A worker is started for the first call and takes the next ones too."""
    assert single.pids() == []
    first, second = await single.run(pid, (), {}), await single.run(pid, (), {})
    assert first == second != os.getpid()


async def test_arguments_and_results_go_over_by_value(pool: ProcessPool) -> None:
    """Sync, async, nested and nameless functions take and give what can be pickled."""
    assert await pool.run(swap, (Point(1, 2),), {"add": 10}) == Point(12, 11)
    offset = 5
    assert await pool.run(lambda n: n + offset, (1,), {}) == 6
    blob = os.urandom(5_000_000)
    assert await pool.run(echo, (blob,), {}) == blob


async def test_a_decorated_function_is_imported_and_not_copied(pool: ProcessPool) -> None:
    """What a step's decorator wraps is found in its module, so that globals that cannot be pickled do no harm."""
    assert await pool.run(decorated.__wrapped__, (), {}) is False  # type: ignore[attr-defined]


async def test_no_more_workers_than_allowed(pool: ProcessPool) -> None:
    """Further calls wait for a place."""
    assert len(set(await asyncio.gather(*(pool.run(pid, (n,), {}) for n in range(8))))) <= 2
    assert len(pool.pids()) <= 2


async def test_calls_wait_in_the_order_in_which_they_came(single: ProcessPool) -> None:
    """First come, first served."""
    order: list[int] = []

    async def one(number: int) -> None:
        await single.run(echo, (number,), {})
        order.append(number)

    await asyncio.gather(*map(one, range(6)))
    assert order == list(range(6))


async def test_a_cancelled_call_is_killed_at_once(single: ProcessPool, fifo: str) -> None:
    """The process is gone, though the function would block for ever, and the next call gets a new one."""
    call = asyncio.create_task(single.run(report_and_block, (fifo,), {}))
    stream = await started(fifo)
    (old,) = single.pids()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await ended(stream)
    assert await single.run(pid, (), {}) != old
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)


async def test_a_killed_call_takes_its_children_with_it(single: ProcessPool, fifo: str) -> None:
    """What the function started does not outlive its timeout."""
    call = asyncio.create_task(single.run(report_and_block_in_a_child, (fifo,), {}))
    stream = await started(fifo)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, timeout=0)
    await ended(stream)


async def test_cancelling_while_waiting_for_a_worker_leaks_nothing(single: ProcessPool, fifo: str) -> None:
    """A waiter that gave up neither runs nor keeps a place."""
    busy = asyncio.create_task(single.run(report_and_block, (fifo,), {}))
    stream = await started(fifo)
    waiting = asyncio.create_task(single.run(leave, (1,), {}))
    behind = asyncio.create_task(single.run(echo, ("served",), {}))
    await asyncio.sleep(0)
    waiting.cancel()
    busy.cancel()
    assert await behind == "served"
    await ended(stream)
    assert len(single.pids()) == 1


async def test_many_cancels_at_any_moment_leak_no_place(pool: ProcessPool) -> None:
    """After calls were cancelled at every stage of their life, all places can be taken still."""
    for turns in [*range(12), 50, 500, 5000]:
        calls = [asyncio.create_task(pool.run(pid, (), {})) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in calls[:2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[2], int)
    both = await asyncio.gather(pool.run(echo, (1,), {}), pool.run(echo, (2,), {}))
    assert list(both) == [1, 2]
    assert len(pool.pids()) <= 2


@pytest.mark.parametrize(
    ("function", "argument", "told"),
    [
        (leave, 3, "exited with code 3"),
        (leave, 0, "exited with code 0"),
        (suicide, signal.SIGSEGV, "SIGSEGV"),
        (suicide, signal.SIGKILL, "SIGKILL"),
    ],
)
async def test_a_worker_that_dies_is_an_error_of_its_call(
    pool: ProcessPool, function: Callable[..., object], argument: int, told: str
) -> None:
    """The error names the function and how the process ended; the pool goes on."""
    with pytest.raises(StepError, match=told) as caught:
        await pool.run(function, (argument,), {})
    assert caught.value.error_type == "durable.WorkerDied"
    assert function.__name__ in str(caught.value)
    assert await pool.run(echo, (1,), {}) == 1


async def test_a_worker_that_died_idle_is_replaced(single: ProcessPool) -> None:
    """Nobody's call fails for a process that was killed between two calls."""
    old = await single.run(pid, (), {})
    assert isinstance(old, int)
    os.kill(old, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # the pool was faster and has reaped it
        await asyncio.to_thread(os.waitid, os.P_PID, old, os.WEXITED | os.WNOWAIT)
    assert await single.run(pid, (), {}) != old


async def test_an_exception_comes_back_as_itself(pool: ProcessPool) -> None:
    """Class, attributes and text are the original's, whatever its constructor wants; the traceback there is a note."""
    with pytest.raises(OddError, match="code 7 at sea") as caught:
        await pool.run(fail_oddly, (), {})
    assert caught.value.code == 7
    assert "in fail_oddly" in caught.value.__notes__[0]

    class LocalError(Exception):
        pass

    def fail_locally() -> None:
        raise LocalError("here")

    with pytest.raises(LocalError):
        await pool.run(fail_locally, (), {})
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 / 0, (), {})


async def test_leaving_the_interpreter_is_an_error_and_not_the_end_of_the_worker(single: ProcessPool) -> None:
    """sys.exit() ends the call, as a failure; a CancelledError of the function's own is no cancel of the caller."""
    before = await single.run(pid, (), {})
    with pytest.raises(StepError) as caught:
        await single.run(exit_politely, (), {})
    assert caught.value.error_type == "builtins.SystemExit"

    def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(StepError, match="CancelledError"):
        await single.run(cancelled, (), {})
    assert await single.run(pid, (), {}) == before


async def test_what_cannot_be_pickled_is_named(pool: ProcessPool) -> None:
    """A call or a result that cannot be carried says so with the function's name and the type."""
    with pytest.raises(NotStorableError, match=r"call of .*echo .*lock"):
        await pool.run(echo, (threading.Lock(),), {})
    with pytest.raises(NotStorableError, match=r"result of .*\.lock, a _thread\.lock"):
        await pool.run(lock, (), {})


async def test_what_is_too_large_is_refused() -> None:
    """Neither a call nor a result may be larger than the bound, and the worker goes on."""
    pool = ProcessPool(1, frame_bytes_max=200_000)
    try:
        with pytest.raises(PayloadTooLargeError, match="call of") as caught:
            await pool.run(echo, (b"x" * 200_000,), {})
        assert caught.value.size_bytes > caught.value.limit_bytes == 200_000
        with pytest.raises(PayloadTooLargeError, match="result of"):
            await pool.run(bytes, (300_000,), {})
        with pytest.raises(StepError, match="ValueError"):
            await pool.run(fail_hugely, (), {})
        assert len(await pool.run(bytes, (199_000,), {})) == 199_000  # type: ignore[arg-type]
    finally:
        await pool.close()


def fail_hugely() -> None:
    raise ValueError("x" * 1_000_000)


async def test_what_a_worker_prints_is_seen(pool: ProcessPool, capfd: pytest.CaptureFixture[str]) -> None:
    """stdout and stderr pass through, and are flushed when the call is done."""
    await pool.run(talk, (), {})
    out, err = capfd.readouterr()
    assert "said in the worker" in out
    assert "complained in the worker" in err


async def test_a_worker_works_where_its_parent_does(
    pool: ProcessPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import path and the directory of the parent are the worker's, also when they change between calls."""
    assert await pool.run(os.getcwd, (), {}) == os.getcwd()
    (tmp_path / "made_for_isolation.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    import made_for_isolation  # type: ignore[import-not-found]

    try:
        assert await pool.run(made_for_isolation.answer, (), {}) == 42
        assert await pool.run(os.getcwd, (), {}) == str(tmp_path)
    finally:
        del sys.modules["made_for_isolation"]


async def test_closing_kills_all_and_ends_every_call(fifo: str) -> None:
    """The call that runs, the one that waits and the one that comes later all end with ShuttingDownError."""
    pool = ProcessPool(1)
    running = asyncio.create_task(pool.run(report_and_block, (fifo,), {}))
    stream = await started(fifo)
    waiting = asyncio.create_task(pool.run(pid, (), {}))
    await asyncio.sleep(0)
    await pool.close()
    await ended(stream)
    for call in (running, waiting, pool.run(pid, (), {})):
        with pytest.raises(ShuttingDownError):
            await call
    assert pool.pids() == []


async def test_without_cloudpickle_the_error_says_what_to_install(
    pool: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is asked for by name, and only when it is needed."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ConfigError, match=r"pip install durable\[pickle\]"):
        await pool.run(pid, (), {})


SCRIPT = """
    import asyncio, enum, os, sys
    from dataclasses import dataclass
    from durable.engine.isolation import ProcessPool

    sys.stdout.write("top\\n")  # once: the worker does not run the script again

    class Colour(enum.Enum):
        RED = 1

    @dataclass
    class Point:
        colour: Colour

    class Mine(Exception):
        pass

    FACTOR = 3

    async def paint(point):
        assert point.colour is Colour.RED
        return [point] * FACTOR

    def fail():
        raise Mine("so")

    async def main():
        pool = ProcessPool(1)
        points = await pool.run(paint, (Point(Colour.RED),), {})
        assert points == [Point(Colour.RED)] * 3 and type(points[0]) is Point
        try:
            await pool.run(fail, (), {})
        except Mine as error:
            print("caught", error)
        await pool.close()

    asyncio.run(main())
"""

ORPHANS = """
    import asyncio, os, signal
    from durable.engine.isolation import ProcessPool

    def block():
        print("blocked", flush=True)
        signal.pause()

    async def main():
        pool = ProcessPool(2)
        await pool.run(os.getpid, (), {})
        await pool.run(block, (), {})

    asyncio.run(main())
"""


def test_functions_of_a_script_are_carried_by_value(tmp_path: Path) -> None:
    """What is defined in __main__ works, comes back as the same classes, and the script is not run a second time."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["top", "caught so"], done.stderr
    assert done.stderr == ""


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    """After SIGKILL of the parent nobody is left who could hold its output open."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(ORPHANS))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with contextlib.closing(parent.stdout):
        assert parent.stdout.readline() == "blocked\n"
        parent.kill()
        assert parent.communicate(timeout=20)[0] == ""
