"""One run at a time: how it starts, goes, and ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import durable
from durable import (
    ConflictError,
    Context,
    Event,
    NonRetryableError,
    NotStorableError,
    Result,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunNotFoundError,
    RunTimedOutError,
    Status,
    StepError,
    StepTimeoutError,
    TransitionError,
    ValidationError,
    step,
    task,
)
from tests.engine.conftest import MakeApp


@dataclass
class Page:
    url: str
    links: tuple[str, ...]
    at: datetime


@step
async def fetch(url: str) -> Page:
    return Page(url, (url + "/a", url + "/b"), datetime(2026, 1, 2, tzinfo=UTC))


@task
async def crawl(ctx: Context, url: str) -> Page:
    return await fetch(url)


async def names(handle: durable.Handle[Any], steps: bool = False) -> list[str]:
    return [event.name async for event in handle.events(steps=steps)]


async def test_a_run_returns_what_its_body_returned(make_app: MakeApp) -> None:
    """Value and type come back, also through a handle found later, and after the store was opened again."""
    async with make_app() as app:
        handle = await app.start(crawl, "x")
        expected = Page("x", ("x/a", "x/b"), datetime(2026, 1, 2, tzinfo=UTC))
        assert await handle.wait() == expected
        assert await handle == expected
        assert await (await app.get(handle.run_id)).wait() == expected
        assert await handle.status() is Status.COMPLETED
        info = await handle.info()
        assert (info.task_name, info.attempt, info.closed, info.error) == ("crawl", 1, True, None)
    async with make_app() as app:
        assert await (await app.get(handle.run_id)).wait() == expected


async def test_events_are_numbered_and_end_with_the_run(make_app: MakeApp) -> None:
    """With steps the numbers have no holes; without, step records are left out."""
    async with make_app() as app:
        handle = await app.start(crawl, "x")
        await handle
        assert await names(handle) == ["created", "started", "completed"]
        events = [event async for event in handle.events(steps=True)]
        assert [event.seq for event in events] == [1, 2, 3, 4]
        assert events[2].name == "step:completed" and events[2].data["step"] == "fetch"
        assert [event.seq async for event in handle.events(after=3)] == [4]


@task(name="runs_failing")
async def failing() -> None:
    raise LookupError("nothing here")


async def test_a_failed_run_tells_what_happened(make_app: MakeApp) -> None:
    """The error carries type, message and traceback, and the run is a dead letter until it is discarded."""
    async with make_app() as app:
        handle = await app.start(failing)
        with pytest.raises(RunFailedError, match="nothing here") as caught:
            await handle
        assert caught.value.error_type == "builtins.LookupError"
        assert caught.value.message == "nothing here"
        assert "raise LookupError" in caught.value.traceback
        assert [letter.run_id async for letter in app.dead_letters.list()] == [handle.run_id]
        await app.dead_letters.discard(handle.run_id)
        assert [letter async for letter in app.dead_letters.list()] == []
        with pytest.raises(TransitionError):
            await app.dead_letters.discard(handle.run_id)


attempts: list[tuple[int, str | None]] = []


@task(retry=Retry(3, delay=0.01))
async def third_time(ctx: Context) -> int:
    attempts.append((ctx.attempt, ctx.previous_error))
    if ctx.attempt < 3:
        raise RuntimeError(f"no {ctx.attempt}")
    return ctx.attempt


async def test_a_task_is_tried_again(make_app: MakeApp) -> None:
    """Attempts are counted from 1, and each knows the error of the one before."""
    attempts.clear()
    async with make_app() as app:
        handle = await app.start(third_time)
        assert await handle == 3
        assert attempts == [(1, None), (2, "no 1"), (3, "no 2")]
        assert await names(handle) == ["created", "started", "retrying", "started", "retrying", "started", "completed"]


@task(name="runs_hopeless", retry=5)
async def hopeless() -> None:
    attempts.append((0, None))
    raise NonRetryableError("no use")


async def test_non_retryable_errors_end_the_attempts(make_app: MakeApp) -> None:
    """NonRetryableError is not tried again."""
    attempts.clear()
    async with make_app() as app:
        with pytest.raises(RunFailedError, match="no use"):
            await (await app.start(hopeless))
    assert len(attempts) == 1


calls: list[str] = []


@step(retry=Retry(3, delay=0.01))
async def flaky(ctx: Context, name: str) -> str:
    calls.append(ctx.step_key())
    if len(calls) < 3:
        raise ConnectionError("again")
    return name


@task
async def uses_flaky() -> str:
    return await flaky("x")


async def test_a_step_is_tried_again_under_the_same_key(make_app: MakeApp) -> None:
    """The idempotency key of a step is the same in every try; failed tries are recorded."""
    calls.clear()
    async with make_app() as app:
        handle = await app.start(uses_flaky)
        assert await handle == "x"
        assert len(calls) == 3 and len(set(calls)) == 1
        assert (await names(handle, steps=True)).count("step:retrying") == 2


@step(timeout=0.02)
async def slow_step() -> None:
    await asyncio.Event().wait()


@task
async def times_out_in_step() -> str:
    try:
        await slow_step()
    except TimeoutError as error:
        return type(error).__name__
    return "no"


@task(timeout=0.03)
async def times_out() -> None:
    await asyncio.Event().wait()


async def test_timeouts_bound_steps_and_attempts(make_app: MakeApp) -> None:
    """A step that takes too long raises StepTimeoutError, a run is timed_out."""
    async with make_app() as app:
        assert await (await app.start(times_out_in_step)) == StepTimeoutError.__name__
        handle = await app.start(times_out)
        with pytest.raises(RunTimedOutError, match=r"timeout of 0\.03"):
            await handle
        assert await handle.status() is Status.TIMED_OUT


cleaned: list[str] = []


@task
async def waits_for_ever() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        cleaned.append("finally")


async def test_cancel_reaches_the_body(make_app: MakeApp) -> None:
    """The body sees CancelledError and cleans up; the run is cancelled; a second cancel changes nothing."""
    cleaned.clear()
    async with make_app() as app:
        handle = await app.start(waits_for_ever)
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await handle.wait(timeout=0.01)
        await handle.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await handle
        await handle.cancel()
        assert await handle.status() is Status.CANCELLED
        assert await names(handle) == ["created", "started", "cancelled"]
        await asyncio.sleep(0)
        assert cleaned == ["finally"]
        with pytest.raises(TransitionError):
            await handle.resume()


stubborn_gate = threading.Event()


@task
async def stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cleaned.append("ignored")
            if len(cleaned) > 1:
                raise


async def test_a_body_that_ignores_cancel_is_abandoned(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    """The run is cancelled all the same, its slot comes back after the grace, and a warning says so."""
    cleaned.clear()
    async with make_app() as app:
        handle = await app.start(stubborn)
        await asyncio.sleep(0.01)
        await handle.cancel()
        assert await handle.status() is Status.CANCELLED
        async with asyncio.timeout(5):
            while (await app.stats()).running:
                await asyncio.sleep(0.01)
        assert "ignores that it was stopped" in caplog.text
        assert [getattr(entry, "run_id", "") for entry in caplog.records if "ignores" in entry.message] == [
            handle.run_id
        ]


stopped: list[int] = []


@task
async def stoppable() -> str:
    value = await fetch("once")
    stopped.append(1)
    if len(stopped) == 1:
        await asyncio.Event().wait()
    return value.url


async def test_stop_suspends_and_resume_goes_on(make_app: MakeApp) -> None:
    """A suspended run keeps its steps, survives a restart as it is, and goes on when it is resumed."""
    stopped.clear()
    async with make_app() as app:
        handle = await app.start(stoppable)
        async with asyncio.timeout(5):
            while not stopped:
                await asyncio.sleep(0.001)
        await handle.stop("lunch")
        assert await handle.status() is Status.SUSPENDED
        assert (await handle.info()).reason == "lunch"
    async with make_app() as app:
        handle = await app.get(handle.run_id)
        assert await handle.status() is Status.SUSPENDED
        await handle.resume()
        assert await handle == "once"
        assert (await names(handle, steps=True)).count("step:completed") == 1


broken = [True]


@step
async def breaks() -> str:
    if broken[0]:
        raise OSError(5, "broken")
    return "mended"


@task
async def mendable() -> str:
    page = await fetch("kept")
    return page.url + await breaks()


async def test_retry_goes_on_from_the_step_that_failed(make_app: MakeApp) -> None:
    """A failed run that is retried keeps its completed steps and runs the failed one again."""
    broken[0] = True
    async with make_app() as app:
        handle = await app.start(mendable)
        with pytest.raises(RunFailedError, match="broken"):
            await handle
        with pytest.raises(TransitionError):
            await handle.resume()
        broken[0] = False
        await handle.retry()
        assert await handle == "keptmended"
        events = [event async for event in handle.events(steps=True)]
        assert sum(event.name == "step:completed" and event.data["step"] == "fetch" for event in events) == 1
        with pytest.raises(TransitionError):
            await handle.retry()


@task
async def generates(ctx: Context, count: int) -> AsyncIterator[Any]:
    for number in range(count):
        yield {"n": number}
    yield Page("u", (), datetime(2026, 1, 1, tzinfo=UTC))
    yield ("named", 5)
    yield Result(count)


async def test_a_generator_emits_what_it_yields(make_app: MakeApp) -> None:
    """Each yielded value is an event, `Result` ends the run with its value."""
    async with make_app() as app:
        handle = await app.start(generates, 2)
        assert await handle == 2
        events = [event async for event in handle.events() if event.name not in ("created", "started", "completed")]
        assert [event.name for event in events] == ["progress", "progress", "Page", "named"]
        assert isinstance(events[2].data, Page) and events[3].data == 5


@step
def threaded(number: int) -> str:
    return f"{number} in {threading.current_thread() is threading.main_thread()}"


@task
def plain_task(number: int) -> int:
    assert threading.current_thread() is not threading.main_thread()
    return number * 2


@task
async def calls_threaded() -> str:
    return await threaded(1)


async def test_plain_functions_run_in_threads(make_app: MakeApp) -> None:
    """A plain def step or task does not block the loop."""
    async with make_app() as app:
        assert await (await app.start(calls_threaded)) == "1 in False"
        assert await (await app.start(plain_task, 4)) == 8


async def test_a_key_names_one_run(make_app: MakeApp) -> None:
    """Starting again with a key gives the same run; another input or task is a conflict; users have their own keys."""
    async with make_app() as app:
        first = await app.start(crawl.options(key="k"), "x")
        again = await asyncio.gather(*[app.start(crawl.options(key="k"), "x") for _ in range(20)])
        assert {handle.run_id for handle in again} == {first.run_id}
        await first
        with pytest.raises(ConflictError) as caught:
            await app.start(crawl.options(key="k"), "y")
        assert caught.value.key == "k"
        with pytest.raises(ConflictError):
            await app.start(failing.options(key="k"))
        other = await app.start(crawl.options(key="k", user="ann"), "y")
        assert other.run_id != first.run_id
        assert (await app.find("k", user="ann")).run_id == other.run_id  # type: ignore[union-attr]
        assert await app.find("none") is None
        auto = await app.start(crawl.options(key="auto"), "x")
        assert auto.key is not None and len(auto.key) == 64
        assert (await app.start(crawl.options(key="auto"), "x")).run_id == auto.run_id
        await other, await auto
    async with make_app() as app:
        assert (await app.start(crawl.options(key="k"), "x")).run_id == first.run_id


async def test_wrong_inputs_store_nothing(make_app: MakeApp) -> None:
    """A wrong argument, a missing one, an unknown id: each its own error, and no run."""
    async with make_app() as app:
        with pytest.raises(ValidationError) as caught:
            await app.start(crawl, 5)  # type: ignore[arg-type]
        assert caught.value.field == "url"
        with pytest.raises(ValidationError):
            await app.start(crawl)  # type: ignore[call-arg]
        with pytest.raises(RunNotFoundError):
            await app.get("0" * 32)
        with pytest.raises(RunNotFoundError):
            await app.get("nonsense")
        assert [info async for info in app.runs()] == []


@step
async def returns_lock() -> Any:
    return threading.Lock()


@task
async def stores_lock() -> None:
    await returns_lock()


@task
async def returns_lock_itself() -> Any:
    return threading.Lock()


class Unstorable(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())


@step
async def raises_unstorable() -> None:
    raise Unstorable


@task
async def sees_unstorable() -> str:
    try:
        await raises_unstorable()
    except StepError as error:
        return error.error_type
    return "no"


async def test_what_cannot_be_stored_fails_clearly(make_app: MakeApp) -> None:
    """A result or exception that cannot be stored is an error that names it; the engine goes on."""
    async with make_app() as app:
        with pytest.raises(RunFailedError, match="lock") as caught:
            await (await app.start(stores_lock))
        assert NotStorableError.__name__ in caught.value.error_type
        with pytest.raises(RunFailedError, match="lock"):
            await (await app.start(returns_lock_itself))
        assert (await (await app.start(sees_unstorable))).endswith("Unstorable")
        assert (await (await app.start(crawl, "on"))).url == "on"


order: list[int] = []


@task
async def ordered(number: int) -> int:
    order.append(number)
    await asyncio.sleep(0)
    return number


async def test_slots_priority_and_delay(make_app: MakeApp) -> None:
    """No more than max_running at once; of those that wait, higher priority first; a delayed run begins later."""
    order.clear()
    async with make_app(limits=durable.Limits(max_running=1)) as app:
        late = await app.start(ordered.options(delay=timedelta(seconds=0.05)), 99)
        handles = [await app.start(ordered.options(priority=number), number) for number in range(4)]
        for handle in handles:
            await handle
        assert order[0] == 0 and set(order) >= {0, 1, 2, 3}
        assert await late == 99
        info = await late.info()
        assert info.started_at is not None and (info.started_at - info.created_at).total_seconds() >= 0.05


@task
async def approval(ctx: Context) -> Any:
    first = await ctx.wait_for("answer")
    try:
        await ctx.wait_for("never", timeout=0.01)
    except TimeoutError:
        return first, "timed out"


async def test_signals_wait_for_whoever_asks(make_app: MakeApp) -> None:
    """A signal that was sent early is kept; a wait that times out raises TimeoutError; an ended run takes none."""
    async with make_app() as app:
        handle = await app.start(approval)
        await handle.send("answer", {"yes": True})
        assert await handle == ({"yes": True}, "timed out")
        assert "waiting" in await names(handle)
        with pytest.raises(TransitionError):
            await handle.send("answer")


@task
async def emits(ctx: Context) -> None:
    await ctx.emit("one", 1)
    ctx.emit_nowait("two", 2)
    await ctx.progress({"done": 3})
    await ctx.emit("ghost", 4, ephemeral=True)


async def test_events_are_seen_live_and_later(make_app: MakeApp) -> None:
    """Durable events are there for everybody, ephemeral ones only for those who listen."""
    async with make_app() as app:
        handle = await app.start(emits.options(key="stream", delay=0.02))
        live = [event async for event in app.subscribe("stream")]
        later = [event async for event in handle.events()]
        assert [event.name for event in later] == ["created", "started", "one", "two", "progress", "completed"]
        assert [event.name for event in live if event.name != "ghost"] == [event.name for event in later]
        assert any(isinstance(event, Event) and event.name == "ghost" for event in live)


@task(name="runs_nested")
async def nested(depth: int) -> int:
    return 0 if depth == 0 else 1 + await nested(depth - 1)


@task
async def parent_of_sleeper() -> None:
    await waits_for_ever()


@task
async def starts_other() -> str:
    handle = await crawl.start("alone")
    return handle.run_id


async def test_children_belong_to_their_parent(make_app: MakeApp) -> None:
    """A task called in a body is a child run; cancelling the parent cancels it; start() makes a run of its own."""
    async with make_app(limits=durable.Limits(max_running=1)) as app:
        handle = await app.start(nested, 3)
        assert await handle == 3
        (child,) = await handle.children()
        assert (await child.info()).parent_id == handle.run_id
        parent = await app.start(parent_of_sleeper)
        async with asyncio.timeout(5):
            while not await parent.children():
                await asyncio.sleep(0.005)
        (child,) = await parent.children()
        await parent.cancel()
        with pytest.raises(RunCancelledError):
            await child
        other = await app.get(await (await app.start(starts_other)))
        assert (await other).url == "alone"
        assert (await other.info()).parent_id is not None
