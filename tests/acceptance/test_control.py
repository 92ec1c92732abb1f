"""The contract's control verbs on runs and their families: cancel, stop, resume, retry, timeouts, delay, priority.

What a body does is judged by what it leaves outside the engine (`log`), not by what the engine tells.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Child,
    Config,
    Context,
    Durable,
    DurableError,
    Handle,
    Limits,
    NonRetryableError,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunInfo,
    RunTimedOutError,
    StepTimeoutError,
    TransitionError,
    chain,
    step,
)
from durable.config import EngineSettings
from durable.store import MemoryStore
from durable.testing.crash import CrashingStore
from tests.acceptance.contract_support import store_of, until_status

MakeApp = Callable[..., Durable]
QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.05, cancel_grace_seconds=0.2))
ENDS = {"completed", "failed", "timed_out", "cancelled", "children_failed", "on_children_complete_failed"}

#: What happened outside the engine, in this order.
log: list[Any] = []
#: Whether the outside world answers; what fails, fails while it does not.
world: set[str] = set()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    log.clear()
    world.clear()


@pytest.fixture(params=["memory", "folder", "postgres"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> MakeApp:
    """Makes an application; called again, another one on the same store."""
    make_store = store_of(request, tmp_path)

    def make(config: Config = QUICK, **options: Any) -> Durable:
        return Durable(make_store(), config=config, **options)

    return make


@pytest.fixture
async def app(reopen: MakeApp) -> AsyncIterator[Durable]:
    async with reopen() as opened:
        yield opened


def control(function: Any = None, /, **options: Any) -> Any:
    """A task with a name that no other test's task has."""

    def decorate(body: Any) -> Any:
        return durable.task(name=f"accept_control_{body.__name__}", **options)(body)

    return decorate if function is None else decorate(function)


async def until(what: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.002)


async def closed(handle: Handle[Any], seconds: float = 10) -> RunInfo:
    """Wait until the run is closed."""
    async with asyncio.timeout(seconds):
        while not (info := await handle.info()).closed:
            await asyncio.sleep(0.002)
    return info


async def names(handle: Handle[Any]) -> list[str]:
    return [event.name async for event in handle.events()]


async def all_of(app: Durable, task: Any) -> list[RunInfo]:
    return [info async for info in app.runs(task=task, limit=100_000)]


async def fails_with(handle: Handle[Any], error: type[BaseException], seconds: float = 10) -> Any:
    with pytest.raises(error) as caught:
        await handle.wait(timeout=seconds)
    return caught.value


# -- bodies


@control
async def quick(n: int) -> int:
    log.append(("quick", n))
    return 2 * n


@control
async def hanging(name: str) -> str:
    """Runs until it is cancelled, and tells how that was."""
    log.append(("begin", name))
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        log.append(("cancelled", name))
        raise
    finally:
        log.append(("finally", name))
    return name


@control
async def waiting(ctx: Context, name: str = "go") -> Any:
    log.append(("waiting", name))
    return await ctx.wait_for(name)


@step(name="accept_control_first")
async def first(n: int) -> int:
    log.append(("first", n))
    return n


@step(name="accept_control_second")
async def second(n: int) -> int:
    log.append(("second", n))
    if "up" not in world:
        raise ConnectionError(f"down for {n}")
    return n + 100


@control
async def two_steps(n: int) -> int:
    return await first(n) + await second(n)


@control
async def gated_coordinator(ctx: Context, children: list[Child[Any]]) -> Any:
    log.append("coordinating")
    try:
        return [child.result for child in children] + [await ctx.wait_for("end")]
    finally:
        log.append("coordinator left")


async def gated_function(ctx: Context, children: list[Child[Any]]) -> Any:
    log.append("coordinating")
    try:
        return [child.result for child in children] + [await ctx.wait_for("end")]
    finally:
        log.append("coordinator left")


async def one_child() -> list[Child[Any]]:
    log.append("body")
    return [quick.child(1)]


by_function = durable.task(name="accept_control_by_function", on_children_complete=gated_function)(one_child)
by_task = durable.task(name="accept_control_by_task", on_children_complete=gated_coordinator)(one_child)
COORDINATED = {"function": by_function, "task": by_task}


@control
async def parent_of(kind: str, count: int) -> list[Child[Any]]:
    task = {"hanging": hanging, "waiting": waiting}[kind]
    return [task.child(str(n)) for n in range(count)]


@control
async def grandparent(kind: str, width: int) -> list[Child[Any]]:
    return [parent_of.child(kind, width) for _ in range(width)]


async def begun(count: int) -> None:
    await until(lambda: sum(entry[0] in {"begin", "waiting"} for entry in log if isinstance(entry, tuple)) == count)


async def in_status(app: Durable, status: str) -> Handle[Any]:
    """A run that is, and stays, in this status."""
    if status == "ready":
        return await quick.options(delay=60).start(1)
    if status == "suspended":
        handle = await waiting.start()
        await until_status(handle, "running")
        await handle.stop()
        await until_status(handle, "suspended")
        return handle
    if status == "waiting_for_children":
        handle = await parent_of.start("waiting", 2)
    elif status == "waiting_for_on_children_complete":
        handle = await by_function.start()
    elif status == "completed":
        handle = await quick.start(1)
    elif status == "failed":
        handle = await two_steps.start(1)
    elif status == "timed_out":
        handle = await hanging.options(timeout=0.02).start("x")
    elif status == "cancelled":
        handle = await waiting.start()
        await handle.cancel()
    elif status == "children_failed":
        handle = await failing_parent.start(1)
    elif status == "on_children_complete_failed":
        handle = await broken_coordinator.start()
    else:
        handle = await hanging.start("x")
    await until_status(handle, status)
    if status in ENDS:
        await closed(handle)
    return handle


@control
async def failing_parent(n: int) -> list[Child[int]]:
    return [two_steps.child(n)]


def raising(children: list[Child[Any]]) -> Any:
    log.append("coordinator")
    if "up" not in world:
        raise ConnectionError("coordinator is down")
    return [child.result for child in children]


async def raising_in_steps(children: list[Child[Any]]) -> Any:
    return [await first(7), await second(7), *[child.result for child in children]]


broken_coordinator = durable.task(name="accept_control_broken_coordinator", on_children_complete=raising)(one_child)

OPEN = ["ready", "running", "suspended", "waiting_for_children", "waiting_for_on_children_complete"]
ENDED = ["completed", "failed", "timed_out", "cancelled", "children_failed", "on_children_complete_failed"]


# -- cancel


@pytest.mark.parametrize("status", OPEN)
async def test_cancel_of_each_open_status(app: Durable, status: str) -> None:
    """Ends it: the waiter is told with the reason, it is closed, and its family ends with it."""
    handle = await in_status(app, status)
    await handle.cancel("not needed")
    error = await fails_with(handle, RunCancelledError, 5)
    assert "not needed" in str(error)
    info = await closed(handle)
    assert info.status == "cancelled" and info.reason == "not needed"
    assert (await names(handle))[-1] == "cancelled" and (await names(handle)).count("cancelled") == 1
    for child in await handle.children():
        assert (await closed(child)).status in {"cancelled", "completed"}


@pytest.mark.parametrize("status", ENDED)
async def test_cancel_of_each_ended_status(app: Durable, status: str) -> None:
    """Changes nothing."""
    handle = await in_status(app, status)
    before = await handle.info(), await names(handle)
    await handle.cancel("too late")
    await handle.cancel()
    assert (await handle.info(), await names(handle)) == before


async def test_cancel_twice_at_once(app: Durable) -> None:
    """Is one cancel."""
    handle = await hanging.start("x")
    await begun(1)
    await asyncio.gather(*(handle.cancel(str(n)) for n in range(10)))
    await fails_with(handle, RunCancelledError)
    assert (await names(handle)).count("cancelled") == 1


async def test_cancel_reaches_the_body(app: Durable) -> None:
    """It gets `CancelledError`, and its finally runs."""
    handle = await hanging.start("x")
    await begun(1)
    await handle.cancel()
    await until(lambda: ("finally", "x") in log)
    assert log == [("begin", "x"), ("cancelled", "x"), ("finally", "x")]


async def test_cancel_reaches_a_step_and_a_plain_function(app: Durable) -> None:
    """A step of the body is cancelled as well."""

    @step(name="accept_control_long_step")
    async def long_step() -> None:
        try:
            log.append("in step")
            await asyncio.sleep(60)
        finally:
            log.append("step left")

    @control
    async def in_a_step() -> None:
        try:
            await long_step()
        finally:
            log.append("body left")

    handle = await in_a_step.start()
    await until(lambda: "in step" in log)
    await handle.cancel()
    await until(lambda: "body left" in log)
    assert log == ["in step", "step left", "body left"]
    await fails_with(handle, RunCancelledError)


@pytest.mark.parametrize("kind", ["hanging", "waiting"])
async def test_cancel_cascades(app: Durable, kind: str) -> None:
    """To children and grandchildren, whose bodies are told; siblings' families are untouched."""
    beside = await grandparent.start("waiting", 2)
    await begun(4)
    handle = await grandparent.start(kind, 3)
    await begun(4 + 9)
    [inner, *_] = await handle.children()
    await handle.cancel("all")
    await fails_with(handle, RunCancelledError)
    for child in await handle.children():
        assert (await closed(child)).status == "cancelled"
        for grandchild in await child.children():
            assert (await closed(grandchild)).status == "cancelled"
            await fails_with(grandchild, RunCancelledError)
    if kind == "hanging":
        await until(lambda: sum(entry[0] == "finally" for entry in log) == 9)
    assert await inner.status() == "cancelled"
    assert await beside.status() == "waiting_for_children"
    assert {await child.status() for child in await beside.children()} == {"waiting_for_children"}
    await beside.cancel()


@pytest.mark.parametrize("kind", COORDINATED)
async def test_cancel_reaches_the_coordinator(app: Durable, kind: str) -> None:
    """A function, or a task: its body is told, and no run of the family is left."""
    handle = await COORDINATED[kind].start()
    await until(lambda: "coordinating" in log)
    await until_status(handle, "waiting_for_on_children_complete")
    await handle.cancel()
    await fails_with(handle, RunCancelledError)
    await until(lambda: "coordinator left" in log, 5)
    async with asyncio.timeout(5):
        while any(not info.closed for info in [info async for info in app.runs()]):
            await asyncio.sleep(0.002)
    assert [info.status for info in await all_of(app, gated_coordinator)] == (["cancelled"] if kind == "task" else [])
    [child] = await handle.children() if kind == "function" else (await handle.children())[:1]
    assert await child.status() == "completed"


async def test_cancel_of_a_chain_and_of_awaited_children(app: Durable) -> None:
    """A child that the body awaits is cancelled with it, through a chain."""

    @control
    async def awaits() -> Any:
        return await durable.map(hanging, ["1", "2"], limit=2)

    @control
    async def ignores(n: int) -> str:
        return "3"

    pipeline = chain(ignores, hanging)
    handles = [await awaits.start(), await pipeline.start(1)]
    await begun(3)
    for handle in handles:
        await handle.cancel()
        await fails_with(handle, RunCancelledError)
    await until(lambda: sum(entry[0] == "finally" for entry in log) == 3)
    assert {info.status for info in await all_of(app, hanging)} == {"cancelled"}


async def test_a_cancelled_child_that_is_awaited_is_an_error_of_the_body(app: Durable) -> None:
    """A child cancelled on its own raises `RunCancelledError` in the body, which is not itself cancelled."""

    @control
    async def catches() -> str:
        try:
            await hanging("child")
        except RunCancelledError as error:
            return f"caught {error.code}"
        return "missed"

    handle = await catches.start()
    await begun(1)
    [child] = await handle.children()
    await child.cancel()
    assert await handle.wait(timeout=5) == "caught run_cancelled"


async def test_a_body_that_ignores_cancel(app: Durable) -> None:
    """Is abandoned after the grace, and can write nothing more: no step, no event, no child, no result, no other end."""
    problems: list[BaseException] = []

    @control
    async def stubborn(ctx: Context) -> str:
        log.append("begin")
        left = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < left:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left - asyncio.get_running_loop().time())
        log.append("goes on")
        for attempt in (
            lambda: ctx.emit("late"), lambda: first(99), lambda: quick(99), lambda: quick.start(98),
            lambda: durable.sleep(0.001),
        ):  # fmt: skip
            try:
                await attempt()
            except BaseException as error:  # noqa: BLE001 - whatever it is, it has to be one
                problems.append(error)
        with suppress(BaseException):
            ctx.emit_nowait("later")
        log.append("end")
        return "late result"

    handle = await stubborn.start()
    await until(lambda: "begin" in log)
    began = time.monotonic()
    await handle.cancel()
    await fails_with(handle, RunCancelledError)
    assert time.monotonic() - began < 0.9, "who waits for the cancelled run does not wait for the body"
    info, events = await closed(handle), [event async for event in handle.events(steps=True)]
    with suppress(TimeoutError):
        await until(lambda: "end" in log, 3)
    await asyncio.sleep(0.05)
    assert [event async for event in handle.events(steps=True)] == events and events[-1].name == "cancelled"
    assert await handle.info() == info
    assert await handle.children() == []
    assert await all_of(app, quick) == []
    assert ("first", 99) not in log and ("quick", 99) not in log and ("quick", 98) not in log, log
    if "end" in log:
        assert len(problems) == 5, problems


@pytest.mark.timeout(60)
async def test_cancel_racing_completion(app: Durable) -> None:
    """Whatever comes first, each run has exactly one end, and the waiter's outcome is the run's."""
    rng = random.Random(3)

    @control
    async def brief(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    seen: Counter[str] = Counter()

    async def one() -> None:
        handle = await brief.start(rng.random() * 0.006)
        await asyncio.sleep(rng.random() * 0.008)
        await handle.cancel()
        try:
            outcome = "completed" if await handle.wait(timeout=10) == "done" else "?"
        except RunCancelledError:
            outcome = "cancelled"
        assert await handle.status() == outcome
        events = await names(handle)
        assert sum(name in ENDS for name in events) == 1 and events[-1] == outcome, events
        seen[outcome] += 1

    for _ in range(20):
        await asyncio.gather(*(one() for _ in range(15)))
    assert seen["completed"] and seen["cancelled"], seen


@pytest.mark.timeout(60)
async def test_cancel_racing_a_family(app: Durable) -> None:
    """A parent cancelled anywhere between its start and its coordinator's end: one end each, nothing left open, none goes on."""
    rng = random.Random(5)

    @control(on_children_complete=lambda children: sum(child.result for child in children))
    async def small(n: int) -> list[Child[int]]:
        await asyncio.sleep(rng.random() * 0.002)
        return [quick.child(n), quick.child(n + 1)]

    seen: Counter[str] = Counter()

    async def one() -> None:
        handle = await small.start(1)
        await asyncio.sleep(rng.random() * 0.02)
        await handle.cancel()
        try:
            assert await handle.wait(timeout=10) == 6
            outcome = "completed"
        except RunCancelledError:
            outcome = "cancelled"
        seen[outcome] += 1
        assert (await closed(handle)).status == outcome
        for child in await handle.children():
            assert (await closed(child)).status in (
                {"completed"} if outcome == "completed" else {"completed", "cancelled"}
            )
            assert sum(name in ENDS for name in await names(child)) == 1
        assert sum(name in ENDS for name in await names(handle)) == 1

    for _ in range(15):
        await asyncio.gather(*(one() for _ in range(10)))
    assert seen["completed"] and seen["cancelled"], seen


@pytest.mark.timeout(90)
async def test_cancel_of_a_thousand_running_children(reopen: MakeApp) -> None:
    """Within 2 s all are cancelled, each body was told, and nothing runs on."""
    ticks = 0

    @control
    async def ticking(n: int) -> None:
        nonlocal ticks
        log.append(("begin", n))
        try:
            while True:
                await asyncio.sleep(0.25)
                ticks += 1
        finally:
            log.append(("finally", n))

    @control
    async def thousand() -> list[Child[None]]:
        return [ticking.child(n) for n in range(1000)]

    async with reopen(limits=Limits(max_running=2000)) as app:
        handle = await thousand.start()
        async with asyncio.timeout(30):
            while sum(entry[0] == "begin" for entry in log) < 1000:
                await asyncio.sleep(0.02)
        begun_at = time.monotonic()
        await handle.cancel("enough")
        await fails_with(handle, RunCancelledError)
        children = await all_of(app, ticking)
        while any(not info.closed for info in children):
            await asyncio.sleep(0.02)
            children = await all_of(app, ticking)
            assert time.monotonic() - begun_at < 10
        took = time.monotonic() - begun_at
        assert len(children) == 1000 and {info.status for info in children} == {"cancelled"}
        await until(lambda: sum(entry[0] == "finally" for entry in log) == 1000, 2)
        before = ticks
        await asyncio.sleep(0.6)
        assert ticks == before, "something runs on"
        assert took < 2.0, f"it took {took:.2f} s"
    async with reopen() as app:
        await asyncio.sleep(0.1)
        assert sum(entry[0] == "begin" for entry in log) == 1000, "a cancelled child ran after a restart"


async def test_a_run_cancelled_before_a_restart_stays_cancelled(reopen: MakeApp) -> None:
    """With its family."""
    async with reopen() as app:
        handle = await grandparent.start("hanging", 2)
        await begun(4)
        await handle.cancel()
    log.clear()
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        await fails_with(handle, RunCancelledError)
        async with asyncio.timeout(5):
            while any(not info.closed for info in [info async for info in app.runs()]):
                await asyncio.sleep(0.002)
        assert {info.status for info in [info async for info in app.runs()]} == {"cancelled"}
    assert log == []


# -- stop and resume


async def test_stop_and_resume(app: Durable) -> None:
    """A suspended run does nothing; resumed it goes on with its recorded steps."""

    @control
    async def walks(ctx: Context) -> list[Any]:
        got = [await first(1), await ctx.wait_for("go"), await first(2)]
        log.append("end")
        return got

    handle = await walks.start()
    await until(lambda: ("first", 1) in log)
    await until_status(handle, "running")
    await handle.stop("a pause")
    await until_status(handle, "suspended")
    assert (await handle.info()).reason == "a pause"
    await handle.send("go", "x")
    await asyncio.sleep(0.05)
    assert await handle.status() == "suspended" and log == [("first", 1)]
    await handle.resume()
    assert await handle.wait(timeout=5) == [1, "x", 2]
    assert log == [("first", 1), ("first", 2), "end"]
    events = await names(handle)
    assert "suspended" in events and "resumed" in events and events.index("suspended") < events.index("resumed")


async def test_stop_survives_a_restart(reopen: MakeApp) -> None:
    """A suspended run is not recovered; it waits for `resume()`."""
    async with reopen() as app:
        handle = await waiting.start()
        await begun(1)
        await handle.stop()
        await until_status(handle, "suspended")
    log.clear()
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        await asyncio.sleep(0.05)
        assert await handle.status() == "suspended" and log == []
        await handle.resume()
        await handle.send("go", 3)
        assert await handle.wait(timeout=5) == 3


async def test_stop_of_a_child_keeps_its_parent_waiting(app: Durable) -> None:
    """And resume lets both come to their ends."""
    handle = await parent_of.start("waiting", 2)
    await begun(2)
    one, other = await handle.children()
    await one.stop()
    await until_status(one, "suspended")
    await other.send("1", "b")
    await other
    await one.send("0", "a")
    await asyncio.sleep(0.05)
    assert await handle.status() == "waiting_for_children"
    await one.resume()
    assert [child.result for child in await handle.wait(timeout=5)] == ["a", "b"]


@pytest.mark.parametrize("restart", [False, True], ids=["alive", "restart"])
async def test_stop_of_a_run_whose_coordinator_runs(reopen: MakeApp, restart: bool) -> None:
    """Suspended and resumed it coordinates again from its record; the children are not run again."""
    async with reopen() as app:
        handle = await by_function.start()
        await until(lambda: "coordinating" in log)
        await until_status(handle, "waiting_for_on_children_complete")
        try:
            await handle.stop()
        except TransitionError as error:
            pytest.skip(f"this is refused: {error}")
        await until_status(handle, "suspended")
        await until(lambda: "coordinator left" in log, 5)
        await handle.send("end", 9)
        await asyncio.sleep(0.05)
        assert await handle.status() == "suspended"
        if not restart:
            await handle.resume()
            assert await handle.wait(timeout=5) == [2, 9]
    if restart:
        async with reopen() as app:
            handle = await app.get(handle.run_id)
            assert await handle.status() == "suspended"
            await handle.resume()
            assert await handle.wait(timeout=5) == [2, 9]
    assert log.count("body") == 1 and log.count(("quick", 1)) == 1


async def test_stop_of_a_waiting_parent(app: Durable) -> None:
    """Is refused, and says what to do instead; nothing has changed."""
    handle = await in_status(app, "waiting_for_children")
    before = await snapshot(handle)
    with pytest.raises(TransitionError) as caught:
        await handle.stop()
    says_what_to_do(caught.value, "waiting_for_children")
    assert await snapshot(handle) == before


def says_what_to_do(error: TransitionError, status: str) -> None:
    """Beyond that it cannot stop: stop or cancel what."""
    advice = str(error).replace("cannot stop", "").replace("cannot be stopped", "")
    assert status in advice and ("children" in advice.replace(status, "") or "coordinator" in advice), str(error)
    assert "cancel" in advice or "stop" in advice, str(error)


async def test_stop_of_a_run_whose_coordinator_is_a_task(app: Durable) -> None:
    """Is refused in the same way: the coordinator is a run of its own, which can be stopped. What a refusal offers is possible."""
    handle = await by_task.start()
    await until_status(handle, "waiting_for_on_children_complete")
    [info] = await all_of(app, gated_coordinator)
    before = await snapshot(handle)
    with pytest.raises(TransitionError) as caught:
        await handle.stop()
    says_what_to_do(caught.value, "waiting_for_on_children_complete")
    with pytest.raises(TransitionError) as caught:
        await handle.resume()
    assert "stop" not in str(caught.value), f"it offers what it refuses: {caught.value}"
    assert await snapshot(handle) == before
    coordinator = await app.get(info.run_id)
    await coordinator.stop()
    await until_status(coordinator, "suspended")
    await coordinator.send("end", 4)
    await coordinator.resume()
    assert await handle.wait(timeout=5) == [2, 4]


async def test_send_to_a_parent_that_waits(app: Durable) -> None:
    """Is kept for its coordinator."""

    @control(on_children_complete=gated_function)
    async def early() -> list[Child[Any]]:
        return [waiting.child()]

    handle = await early.start()
    await until_status(handle, "waiting_for_children")
    await handle.send("end", "early")
    [child] = await handle.children()
    await child.send("go", 1)
    assert await handle.wait(timeout=5) == [1, "early"]


async def test_stop_does_not_shorten_a_delay(app: Durable) -> None:
    """A run begins no earlier than its delay says, stopped and resumed or not."""
    began = time.monotonic()
    handle = await quick.options(delay=0.3).start(1)
    await handle.stop()
    await handle.resume()
    await handle.wait(timeout=5)
    assert time.monotonic() - began >= 0.29


@pytest.mark.parametrize("kind", COORDINATED)
async def test_a_coordinator_that_is_cancelled_alone(app: Durable, kind: str) -> None:
    """The cancel of a coordinating task fails its parent, of which a retry coordinates again."""
    handle = await COORDINATED[kind].start()
    await until_status(handle, "waiting_for_on_children_complete")
    if kind == "task":
        await until(lambda: log.count("coordinating") == 1)
        [info] = await all_of(app, gated_coordinator)
        coordinator = await app.get(info.run_id)
        await coordinator.cancel("alone")
        await fails_with(handle, RunFailedError)
        assert (await closed(handle)).status == "on_children_complete_failed"
        await handle.retry()
        await until(lambda: log.count("coordinating") == 2)
        await (
            await app.get(next(each for each in await all_of(app, gated_coordinator) if not each.closed).run_id)
        ).send("end", 5)
    else:
        await handle.send("end", 5)
    assert await handle.wait(timeout=5) == [2, 5]
    assert log.count("body") == log.count(("quick", 1)) == 1


async def snapshot(handle: Handle[Any]) -> Any:
    """All that can be seen of a run that does nothing."""
    events = []
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            async for event in handle.events(steps=True):
                events.append(event)
    return await handle.info(), events, await handle.children()


REFUSED = {
    "stop": ["waiting_for_children", *ENDED],
    "resume": ["ready", "running", "waiting_for_children", "waiting_for_on_children_complete", *ENDED],
    "retry": [*OPEN, "completed", "cancelled"],
    "send": ENDED,
}


@pytest.mark.parametrize(("verb", "status"), [(verb, status) for verb in REFUSED for status in REFUSED[verb]])
async def test_refusals(app: Durable, verb: str, status: str) -> None:
    """A verb that the status does not allow is a `TransitionError` that names run and status, and leaves the run unchanged."""
    handle = await in_status(app, status)
    before = await snapshot(handle)
    with pytest.raises(TransitionError) as caught:
        await (handle.send("go", 1) if verb == "send" else getattr(handle, verb)())
    assert handle.run_id in str(caught.value) and status in str(caught.value), str(caught.value)
    assert caught.value.code
    assert await snapshot(handle) == before


# -- retry


async def test_retry_of_a_failed_run(app: Durable) -> None:
    """It goes on from the step that failed."""
    handle = await two_steps.start(1)
    error = await fails_with(handle, RunFailedError)
    assert "down" in error.message
    world.add("up")
    await handle.retry()
    assert await handle.wait(timeout=5) == 102
    assert log == [("first", 1), ("second", 1), ("second", 1)]
    info = await handle.info()
    assert info.status == "completed" and info.error is None and info.closed


async def test_retry_that_fails_again(app: Durable) -> None:
    """Fails again, and can be retried again; a policy's attempts are there anew; `NonRetryableError` does not hinder a retry by hand."""

    @control(retry=Retry(2, delay=0.001))
    async def fails_twice(ctx: Context) -> int:
        log.append(ctx.attempt)
        if "up" not in world:
            raise ConnectionError("down")
        return ctx.attempt

    @control
    async def final() -> str:
        if "up" not in world:
            raise NonRetryableError("final")
        return "not so"

    handle, other = await fails_twice.start(), await final.start()
    await fails_with(handle, RunFailedError)
    await fails_with(other, RunFailedError)
    assert len(log) == 2
    await handle.retry()
    await fails_with(handle, RunFailedError)
    assert len(log) == 4
    world.add("up")
    await handle.retry()
    await handle.wait(timeout=5)
    await other.retry()
    assert await other.wait(timeout=5) == "not so"


async def test_retry_of_a_timed_out_run(app: Durable) -> None:
    """The same."""

    @control(timeout=0.1)
    async def slow() -> int:
        await first(1)
        if "up" not in world:
            await asyncio.sleep(60)
        return await first(2)

    handle = await slow.start()
    await fails_with(handle, RunTimedOutError)
    world.add("up")
    await handle.retry()
    assert await handle.wait(timeout=5) == 2
    assert log == [("first", 1), ("first", 2)]


async def mixed_body() -> list[Child[Any]]:
    log.append("body")
    return [quick.child(1), two_steps.options(delay=0.1).child(5), waiting.child("third")]


def mixed_end(children: list[Child[Any]]) -> list[Any]:
    log.append("end")
    return [child.result for child in children]


mixed = durable.task(name="accept_control_mixed", on_children_complete=mixed_end)(mixed_body)
mixed_alone = durable.task(name="accept_control_mixed_alone")(mixed_body)


@pytest.mark.parametrize("restart", [False, True], ids=["alive", "restart"])
@pytest.mark.parametrize("parent", [mixed, mixed_alone], ids=["coordinator", "alone"])
async def test_retry_of_children_failed(reopen: MakeApp, parent: Any, restart: bool) -> None:
    """Completed children are kept, failed ones go on from the step that failed, cancelled siblings run; the same runs."""
    async with reopen() as app:
        handle = await app.start(parent)
        error = await fails_with(handle, RunFailedError)
        assert "down for 5" in str(error)
        await closed(handle)
        children = await handle.children()
        for child in children:
            await closed(child)
        assert [await child.status() for child in children] == ["completed", "failed", "cancelled"]
        world.add("up")
        if not restart:
            await finish_mixed(handle, children, parent)
    if restart:
        async with reopen() as app:
            handle = await app.get(handle.run_id)
            await finish_mixed(handle, await handle.children(), parent)
    assert log.count("body") == log.count(("quick", 1)) == log.count(("first", 5)) == 1
    assert log.count(("second", 5)) == 2
    assert log.count("end") == (parent is mixed)


async def finish_mixed(handle: Handle[Any], children: list[Handle[Any]], parent: Any) -> None:
    """Retry the parent, and see that all come to their ends."""
    await handle.retry()
    await children[2].send("third", "late")
    found = await handle.wait(timeout=5)
    assert (found if parent is mixed else [child.result for child in found]) == [2, 110, "late"]
    assert await handle.children() == children
    info = await closed(handle)
    assert info.status == "completed" and info.error is None
    for child in children:
        assert (await closed(child)).status == "completed"


async def test_retry_of_a_grandparent(app: Durable) -> None:
    """A retry goes down to the run that failed, and its success up to the root."""

    @control
    async def middle(n: int) -> list[Child[int]]:
        log.append(("middle", n))
        return [two_steps.child(n), quick.child(n)]

    @control
    async def top() -> list[Child[Any]]:
        log.append("top")
        return [middle.child(1), quick.child(2)]

    handle = await top.start()
    await fails_with(handle, RunFailedError)
    await closed(handle)
    [inner, _] = await handle.children()
    assert await inner.status() == "children_failed"
    world.add("up")
    await handle.retry()
    value = await handle.wait(timeout=5)
    assert value[0].result[0].result == 102
    assert log.count("top") == log.count(("middle", 1)) == log.count(("first", 1)) == 1


async def test_retry_of_children_failed_that_fails_again(app: Durable) -> None:
    """Ends as before, once more, and can be retried again."""
    handle = await failing_parent.start(1)
    for _ in range(3):
        await fails_with(handle, RunFailedError)
        assert (await closed(handle)).status == "children_failed"
        await handle.retry()
    await fails_with(handle, RunFailedError)
    await closed(handle)
    world.add("up")
    await handle.retry()
    assert [child.result for child in await handle.wait(timeout=5)] == [102]
    assert len(await handle.children()) == 1


@pytest.mark.parametrize("kind", ["function", "task"])
async def test_retry_of_a_coordinator(app: Durable, kind: str) -> None:
    """Body and children are kept, the coordinator goes on from the step that failed."""
    coordinator = raising_in_steps if kind == "function" else control(raising_in_steps)
    parent = durable.task(name=f"accept_control_retry_{kind}", on_children_complete=coordinator)(one_child)
    handle = await parent.start()
    await fails_with(handle, RunFailedError)
    assert (await closed(handle)).status == "on_children_complete_failed"
    world.add("up")
    await handle.retry()
    assert await handle.wait(timeout=5) == [7, 107, 2]
    info = await closed(handle)
    assert info.status == "completed" and info.error is None
    assert log == ["body", ("quick", 1), ("first", 7), ("second", 7), ("second", 7)]


async def test_retry_of_a_chain(app: Durable) -> None:
    """It goes on with the link that failed."""
    pipeline = chain(quick, two_steps, quick)
    handle = await pipeline.start(3)
    await fails_with(handle, RunFailedError)
    await closed(handle)
    world.add("up")
    await handle.retry()
    assert await handle.wait(timeout=5) == 2 * (6 + 106)
    assert log == [("quick", 3), ("first", 6), ("second", 6), ("second", 6), ("quick", 112)]


async def test_retry_of_a_body_whose_awaited_child_failed(app: Durable) -> None:
    """The same for a child that the body awaited."""

    @control
    async def awaiting() -> int:
        return await first(0) + await two_steps(4)

    handle = await awaiting.start()
    await fails_with(handle, RunFailedError)
    await closed(handle)
    world.add("up")
    await handle.retry()
    assert await handle.wait(timeout=5) == 108
    assert log.count(("first", 0)) == 1 and log.count(("first", 4)) == 1


@pytest.mark.parametrize("how", ["returned", "awaited"])
async def test_retry_of_a_child_alone(app: Durable, how: str) -> None:
    """Is refused, with a pointer to the parent, as its parent has ended; nothing changes."""

    @control
    async def awaiting_one() -> int:
        return await two_steps(1)

    handle = await (failing_parent.start(1) if how == "returned" else awaiting_one.start())
    await fails_with(handle, RunFailedError)
    await closed(handle)
    [child] = await handle.children()
    await closed(child)
    before = await snapshot(child), await snapshot(handle)
    world.add("up")
    with pytest.raises(TransitionError) as caught:
        await child.retry()
    assert handle.run_id in str(caught.value), str(caught.value)
    assert (await snapshot(child), await snapshot(handle)) == before


async def test_retry_while_the_family_is_closing(app: Durable) -> None:
    """Retried at once after the end, while siblings are still being cancelled: it comes to the right end, or is refused clearly."""
    for _ in range(10):
        world.clear()
        handle = await mixed.start()
        await fails_with(handle, RunFailedError)
        world.add("up")
        async with asyncio.timeout(5):
            while True:
                try:
                    await handle.retry()
                    break
                except TransitionError:
                    await asyncio.sleep(0.002)
        third = (await handle.children())[2]
        assert not (await third.info()).closed, "the retry forgot a sibling that was being cancelled"
        await third.send("third", "late")
        assert await handle.wait(timeout=5) == [2, 110, "late"]


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("status", ["failed", "children_failed", "on_children_complete_failed"])
async def test_retry_twice_at_once(reopen: MakeApp, status: str, cold: bool) -> None:
    """Is one retry; the others are refused, and do no harm: the run comes to its end, also when nobody has asked for it since a restart."""
    async with reopen() as app:
        handle = await in_status(app, status)
        if cold:
            await app.close()
        other = await reopened(reopen) if cold else app
        try:
            handle = await other.get(handle.run_id)
            world.add("up")
            results = await asyncio.gather(*(handle.retry() for _ in range(3)), return_exceptions=True)
            assert sum(result is None for result in results) == 1
            assert {type(result) for result in results} == {type(None), TransitionError}
            await handle.wait(timeout=3)
            assert await handle.status() == "completed"
        finally:
            if cold:
                await other.close()


async def reopened(reopen: MakeApp) -> Durable:
    """Another application on the same store, open."""
    app = reopen()
    await app.open()
    return app


PAIRS = [
    (status, first_verb, second_verb)
    for status, verbs in {
        "ready": ["cancel", "stop"],
        "running": ["cancel", "stop"],
        "suspended": ["cancel", "resume", "stop"],
        "waiting_for_children": ["cancel", "stop"],
        "waiting_for_on_children_complete": ["cancel", "stop"],
        "failed": ["retry", "cancel"],
        "children_failed": ["retry", "cancel"],
        "on_children_complete_failed": ["retry", "cancel"],
    }.items()
    for first_verb in verbs
    for second_verb in verbs
]


@pytest.mark.parametrize(("status", "first_verb", "second_verb"), PAIRS)
async def test_two_verbs_at_once(app: Durable, status: str, first_verb: str, second_verb: str) -> None:
    """One after the other, in whichever order: nothing but `TransitionError` comes of it, and the run can still come to an end."""
    handle = await in_status(app, status)
    world.add("up")
    results = await asyncio.gather(
        getattr(handle, first_verb)(), getattr(handle, second_verb)(), return_exceptions=True
    )
    assert all(result is None or type(result) is TransitionError for result in results), results
    assert None in results or status == "waiting_for_children", results
    if await handle.status() == "suspended":
        await handle.resume()
    for child in await handle.children():
        with suppress(TransitionError):
            await child.send("0", 1)
            await child.send("1", 1)
    with suppress(TransitionError):
        await handle.send("go", 1)
    with suppress(TransitionError):
        await handle.send("end", 1)
    if status in {"ready", "running"}:
        await handle.cancel()
    with suppress(RunCancelledError):
        try:
            await handle.wait(timeout=3)
        except RunFailedError:
            assert "retry" not in (first_verb, second_verb)
    info = await closed(handle, 3)
    assert info.status in {"completed", "cancelled"} or "retry" not in (first_verb, second_verb)
    assert (await names(handle))[-1] in ENDS


# -- timeouts


async def test_run_timeout(app: Durable) -> None:
    """Bounds one attempt; the last one's makes the run `timed_out`; the body is cancelled and its finally runs."""

    @control(timeout=0.05, retry=Retry(2, delay=0.001))
    async def slow(ctx: Context) -> None:
        log.append(ctx.attempt)
        try:
            await asyncio.sleep(60)
        finally:
            log.append("finally")

    handle = await slow.start()
    await fails_with(handle, RunTimedOutError)
    assert log == [1, "finally", 2, "finally"]
    assert (await closed(handle)).status == "timed_out" and (await names(handle))[-1] == "timed_out"


async def test_a_run_that_times_out_takes_its_awaited_children_with_it(app: Durable) -> None:
    """They are cancelled."""

    @control
    async def awaits_long() -> str:
        return await hanging("child")

    handle = await awaits_long.options(timeout=0.2).start()
    await fails_with(handle, RunTimedOutError)
    [child] = await handle.children()
    assert (await closed(child)).status == "cancelled"
    await until(lambda: ("finally", "child") in log)


async def test_a_timeout_bounds_the_attempt_and_not_the_children(app: Durable) -> None:
    """A parent that waits for returned children is not running."""

    @control
    async def longer(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @control(timeout=0.1)
    async def short_parent() -> Child[str]:
        return longer.child(0.4)

    handle = await short_parent.start()
    assert (await handle.wait(timeout=5)).result == "done"


async def test_step_timeout(app: Durable) -> None:
    """The step's error reaches the body; with attempts left it is tried again."""

    @step(name="accept_control_slow_step", timeout=0.03, retry=Retry(2, delay=0.001))
    async def slow_step() -> int:
        log.append("step")
        if log.count("step") < 4:
            await asyncio.sleep(60)
        return 5

    @control
    async def steps() -> list[Any]:
        try:
            await slow_step()
        except TimeoutError as error:
            log.append(type(error))
        return [await slow_step()]

    assert await (await steps.start()).wait(timeout=5) == [5]
    assert log[:3] == ["step", "step", StepTimeoutError]


# -- delay, priority, fairness


async def test_delay(app: Durable) -> None:
    """A run begins no earlier; a retry is not delayed by it again; a delayed child keeps its parent waiting."""

    @control(delay=0.2, retry=Retry(2, delay=0.001))
    async def later(ctx: Context) -> float:
        log.append(time.monotonic())
        if ctx.attempt == 1:
            raise ValueError("again")
        return log[-1]

    @control
    async def of_later() -> list[Child[Any]]:
        return [later.child(), quick.options(delay=0.3).child(1)]

    began = time.monotonic()
    handle = await later.start()
    assert await handle.status() == "ready"
    assert 0.19 <= await handle.wait(timeout=5) - began < 1.0
    assert log[1] - log[0] < 0.15
    log.clear()
    began = time.monotonic()
    assert [child.ok for child in await (await of_later.start()).wait(timeout=5)] == [True, True]
    assert time.monotonic() - began >= 0.29 and log[0] - began >= 0.19


async def test_delay_over_a_restart(reopen: MakeApp) -> None:
    """The time goes on while no process runs."""
    async with reopen() as app:
        handle = await quick.options(delay=0.5).start(1)
        began = time.monotonic()
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        assert await handle.status() == "ready"
        assert await handle.wait(timeout=5) == 2
        assert 0.4 <= time.monotonic() - began < 1.5


async def test_priority(reopen: MakeApp) -> None:
    """Among those that wait for a slot, higher ones go first, those of one priority in the order of their start."""

    @control
    async def ordered(name: str) -> None:
        log.append(name)
        await asyncio.sleep(0.001)

    @control
    async def blocker() -> None:
        while "go" not in world:
            await asyncio.sleep(0.002)

    async with reopen(limits=Limits(max_running=1)):
        blocking = await blocker.start()
        await until_status(blocking, "running")
        handles = [
            await ordered.options(priority=priority).start(f"{priority}:{n}")
            for n in range(3)
            for priority in (0, 5, -1, 2)
        ]
        world.add("go")
        await asyncio.gather(*handles)
    assert log == [f"{priority}:{n}" for priority in (5, 2, 0, -1) for n in range(3)]


@pytest.mark.timeout(90)
async def test_a_single_run_beside_a_large_family(reopen: MakeApp) -> None:
    """With two slots, it does not wait for all of a thousand children."""
    done = 0

    @control
    async def crowd(n: int) -> None:
        nonlocal done
        await asyncio.sleep(0.002)
        done += 1

    @control
    async def crowded() -> list[Child[None]]:
        return [crowd.child(n) for n in range(1000)]

    async with reopen(limits=Limits(max_running=2)):
        handle = await crowded.start()
        await until(lambda: done >= 10, 30)
        single = await quick.start(1)
        assert await single.wait(timeout=30) == 2
        before = done
        assert before < 500, f"the single run waited for {before} of the 1000 children"
        urgent = await quick.options(priority=10).start(2)
        assert await urgent.wait(timeout=30) == 4
        assert done - before < 50, f"the urgent run waited for {done - before} children"
        await handle.cancel()
        await fails_with(handle, RunCancelledError)
        stopped = done
        await asyncio.sleep(0.1)
        assert done <= stopped + 2, "children begin after the cancel"


async def test_retry_is_not_lost_with_one_slot(reopen: MakeApp) -> None:
    """Control verbs work while every slot is taken: a run that waits for one can be cancelled, stopped and resumed."""
    async with reopen(limits=Limits(max_running=1)):
        blocking = await hanging.start("slot")
        await begun(1)
        queued = await quick.start(1)
        stopped = await quick.start(2)
        await queued.cancel()
        await fails_with(queued, RunCancelledError, 2)
        with suppress(TransitionError):
            await stopped.stop()
            assert await stopped.status() == "suspended"
            await stopped.resume()
        await blocking.cancel()
        assert await stopped.wait(timeout=5) == 4
        assert ("quick", 1) not in log


async def test_random_control(app: Durable) -> None:
    """Verbs at random moments, legal or not: only `DurableError`s come, each run has one end, and all are closed in the end."""
    rng = random.Random(11)

    @control(on_children_complete=lambda children: len(children))
    async def played(n: int) -> list[Child[Any]]:
        await durable.sleep(0.002)
        return [quick.child(n), two_steps.child(n)]

    async def play(handle: Handle[Any]) -> None:
        for _ in range(12):
            await asyncio.sleep(rng.random() * 0.004)
            verb = rng.choice(["cancel", "stop", "resume", "retry", "stop", "resume"])
            target = rng.choice([handle, *await handle.children()])
            with suppress(DurableError):
                await getattr(target, verb)()

    handles = [await played.start(n) for n in range(25)]
    await asyncio.gather(*(play(handle) for handle in handles))
    world.add("up")
    async with asyncio.timeout(20):
        for handle in handles:
            for each in [handle, *await handle.children()]:
                with suppress(TransitionError):
                    await each.resume()
        for handle in handles:
            await closed(handle)
            for child in await handle.children():
                await closed(child)
    for handle in handles:
        for each in [handle, *await handle.children()]:
            events = await names(each)
            assert events[-1] in {*ENDS, "failed"}
            info = await each.info()
            assert info.status in ENDS
            records = [event.seq async for event in each.events(steps=True)]
            assert records == list(range(1, len(records) + 1))


# -- a crash before and after every commit, with verbs in between


@control
async def fragile(n: int) -> int:
    return await first(n) + await second(n)


@control
async def patient(n: int) -> int:
    await first(1000 + n)
    if "up" not in world:
        await durable.sleep(3600)
    return n


async def fragile_body() -> list[Child[int]]:
    return [quick.child(1), fragile.child(2), patient.child(3)]


async def fragile_end(children: list[Child[int]]) -> list[int]:
    return [child.result for child in children] + [await first(500)]


FRAGILE = {
    "alone": durable.task(name="accept_control_fragile_alone")(fragile_body),
    "function": durable.task(name="accept_control_fragile_function", on_children_complete=fragile_end)(fragile_body),
    "task": durable.task(name="accept_control_fragile_task", on_children_complete=control(fragile_end))(fragile_body),
}


async def crashes(drive: Callable[[Durable], Any]) -> int:
    """Drive a scenario once, then with a crash before and after each of its commits; each life drives it on to its end."""
    store = CrashingStore(MemoryStore())
    async with Durable(store, config=QUICK, test_mode=True) as app:
        await drive(app)
        total = store.commits
    for number in range(1, total + 1):
        for when in ("before", "after"):
            log.clear()
            world.clear()
            memory = MemoryStore()
            for crashing in (CrashingStore(memory, number, when), CrashingStore(memory)):  # type: ignore[arg-type]
                try:
                    async with asyncio.timeout(10), Durable(crashing, config=QUICK, test_mode=True) as app:
                        await unless_crashed(crashing, drive(app))
                        await unless_crashed(crashing, judge_all(app, f"crash {when} commit {number}"))
                except TimeoutError:
                    if not crashing.crashed.is_set():
                        raise AssertionError(f"crash {when} commit {number}: it hangs") from None
                except DurableError:
                    if not crashing.crashed.is_set():
                        raise
    return total


async def unless_crashed(store: CrashingStore, work: Any) -> None:
    """Do this, but no longer than the simulated process lives."""
    doing, ended = asyncio.ensure_future(work), asyncio.ensure_future(store.crashed.wait())
    await asyncio.wait({doing, ended}, return_when=asyncio.FIRST_COMPLETED)
    for each in (doing, ended):
        each.cancel()
    await asyncio.gather(doing, ended, return_exceptions=True)
    if not store.crashed.is_set():
        doing.result()


async def judge_all(app: Durable, where: str) -> None:
    """All runs are closed, with one end each since they were last retried, and with records 1, 2, 3 ..."""
    async with asyncio.timeout(5):
        while any(not info.closed for info in [info async for info in app.runs()]):
            await asyncio.sleep(0.002)
    for info in [info async for info in app.runs()]:
        records = [event async for event in (await app.get(info.run_id)).events(steps=True)]
        assert [event.seq for event in records] == list(range(1, len(records) + 1)), where
        last = [event.name for event in records if not event.name.startswith("step:")][-1]
        assert last in ENDS, (where, [event.name for event in records])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FRAGILE)
async def test_crash_everywhere_around_a_retry(kind: str) -> None:
    """A family that failed and is retried: completed children are kept, and the result is right, wherever it crashes."""

    async def drive(app: Durable) -> None:
        handle = await app.start(FRAGILE[kind].options(key="one"))
        if "up" not in world:
            await fails_with(handle, RunFailedError, 5)
            for each in [*await handle.children(), handle]:
                await closed(each, 5)
            world.add("up")
        if await handle.status() == "children_failed":
            await handle.retry()
        value = await handle.wait(timeout=5)
        value = [child.result for child in value] if kind == "alone" else value
        assert value == [2, 104, 3] + ([] if kind == "alone" else [500])
        assert len(await handle.children()) == 3
        for child in await handle.children():
            assert await child.status() == "completed"
        assert log.count(("first", 2)) <= 2 and log.count(("quick", 1)) <= 2

    assert await crashes(drive) > 5


@pytest.mark.timeout(120)
async def test_crash_everywhere_around_a_cancel() -> None:
    """A cancelled family is cancelled to the last leaf, wherever it crashes."""

    async def drive(app: Durable) -> None:
        handle = await app.start(grandparent.options(key="one"), "waiting", 2)
        async with asyncio.timeout(5):
            while not (await handle.info()).closed and len([i async for i in app.runs(task=waiting)]) < 4:
                await asyncio.sleep(0.002)
        await handle.cancel("enough")
        await fails_with(handle, RunCancelledError, 5)
        async with asyncio.timeout(5):
            while {info.status for info in [info async for info in app.runs()]} != {"cancelled"}:
                await asyncio.sleep(0.002)

    assert await crashes(drive) > 3


@pytest.mark.timeout(120)
async def test_crash_everywhere_around_stop_and_resume() -> None:
    """A coordinator that is suspended and resumed."""

    async def drive(app: Durable) -> None:
        handle = await app.start(by_function.options(key="one"))
        async with asyncio.timeout(5):
            while await handle.status() not in {"waiting_for_on_children_complete", "suspended", "completed"}:
                await asyncio.sleep(0.002)
        if "stopped" not in world and await handle.status() != "completed":
            with suppress(TransitionError):
                await handle.stop()
                world.add("stopped")
        if await handle.status() == "suspended":
            await handle.resume()
        with suppress(TransitionError):
            await handle.send("end", 9)
        assert (await handle.wait(timeout=5))[:2] == [2, 9]

    assert await crashes(drive) > 5


# -- retries at random moments

chance = random.Random(0)


@step(name="accept_control_flaky")
async def flaky(n: int) -> int:
    if "up" not in world and chance.random() < 0.5:
        raise ConnectionError("down")
    await asyncio.sleep(chance.random() * 0.003)
    return n


@control
async def flaky_leaf(n: int) -> int:
    await durable.sleep(n % 5 * 0.001)
    return await flaky(n) + await flaky(n + 100)


@control(on_children_complete=lambda children: sum(child.result for child in children))
async def flaky_family(n: int) -> list[Child[int]]:
    return [flaky_leaf.child(n), flaky_leaf.child(n + 1), flaky_leaf.child(n + 2)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(4))
async def test_retries_at_random_moments(part: int) -> None:
    """Families that fail and are retried, one verb after the other, over a restart: once the world is up, each comes to its result."""
    for seed in range(part * 10, part * 10 + 10):
        chance.seed(seed)
        world.clear()
        store = MemoryStore()
        async with Durable(store, config=QUICK, test_mode=True) as app:
            ids = [(await app.start(flaky_family, n)).run_id for n in range(4)]
        for slots in (1, 50):
            async with Durable(store, config=QUICK, test_mode=True, limits=Limits(max_running=slots)) as app:
                for _ in range(60):
                    await asyncio.sleep(chance.random() * 0.001)
                    with suppress(TransitionError):
                        await (await app.get(chance.choice(ids))).retry()
        world.add("up")
        async with Durable(store, config=QUICK, test_mode=True) as app:
            for n, run_id in enumerate(ids):
                handle = await app.get(run_id)
                for _ in range(200):
                    if (info := await handle.info()).status == "completed":
                        break
                    with suppress(TransitionError):
                        await handle.retry()
                    await asyncio.sleep(0.005)
                children = [str(await child.status()) for child in await handle.children()]
                assert info.status == "completed", (
                    f"seed {seed}: {info.status}, children {children}, error {info.error}"
                )
                assert await handle == 3 * (2 * n + 100) + 6
                assert children == ["completed"] * 3
