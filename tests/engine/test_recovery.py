"""Runs that outlive their process: recovery, its policies and its bounds."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

import durable
from durable import RERUN, Config, Context, RunFailedError, Status, UserContext, step, task
from durable.config import EngineSettings
from durable.errors import DurableError
from durable.store.base import Store
from durable.testing.crash import CrashingStore
from tests.engine.conftest import MakeApp

ran: list[str] = []
gate: list[bool] = []
#: Bodies that have got the result of their first step.
reached: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Nothing ran yet."""
    for log in (ran, gate, reached):
        log.clear()


@pytest.fixture
def reason(request: pytest.FixtureRequest) -> str:
    """Why a run goes on whose process is gone: in a database nobody can tell that from a process that is cut off."""
    return "stale" if "postgres" in request.node.callspec.id else "crash"


@step
async def effect(name: str) -> str:
    ran.append(name)
    return name


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def crash(make_app: MakeApp, start: Any, until: Any, config: Config | None = None) -> str:
    """Start a run, and let the process end without a word once `until()` holds; return the run's id."""
    stores: list[CrashingStore] = []

    def wrap(store: Store) -> Store:
        stores.append(CrashingStore(store))
        return stores[0]

    app = make_app(wrap=wrap) if config is None else make_app(wrap=wrap, config=config)
    await app.open()
    handle = await start(app)
    await wait_until(until)
    stores[0].crashed.set()
    try:
        await app.start(nothing)
    except DurableError:
        pass
    await app.close()
    return str(handle.run_id)


@task
async def nothing() -> None: ...


@task
async def two_steps(ctx: Context) -> tuple[str, bool, str | None]:
    await effect("first")
    reached.append("first")
    if not gate:
        await asyncio.Event().wait()
    await effect("second")
    return ctx.run_id, ctx.recovered, ctx.recovery_reason


async def test_a_run_goes_on_after_a_crash(make_app: MakeApp, reason: str) -> None:
    """The recorded step is not run again; the context says that and why it was recovered."""
    run_id = await crash(make_app, lambda app: app.start(two_steps), lambda: bool(reached))
    gate.append(True)
    async with make_app() as app:
        handle = await app.get(run_id)
        assert await handle == (run_id, True, reason)
        assert "recovered" in [event.name async for event in handle.events()]
    assert ran == ["first", "second"]


async def test_a_run_goes_on_after_an_orderly_close(make_app: MakeApp) -> None:
    """Closing hands unfinished runs back: they go on at the next open, and it does not count as a crash."""
    async with make_app() as app:
        handle = await app.start(two_steps)
        await wait_until(lambda: bool(reached))
    gate.append(True)
    async with make_app() as app:
        handle = await app.get(handle.run_id)
        assert await handle == (handle.run_id, True, None)
        assert (await handle.info()).recoveries == 0
    assert ran == ["first", "second"]


@task(max_recoveries=2)
async def deadly() -> None:
    ran.append("body")
    await asyncio.Event().wait()


async def test_a_body_that_ends_its_process_is_bounded(make_app: MakeApp) -> None:
    """After max_recoveries without a newly recorded step the run fails and is a dead letter."""
    run_id = await crash(make_app, lambda app: app.start(deadly), lambda: len(ran) == 1)
    for life in (2, 3):
        await crash(make_app, lambda app: app.get(run_id), lambda n=life: len(ran) == n)
    async with make_app() as app:
        handle = await app.get(run_id)
        with pytest.raises(RunFailedError, match="3 times"):
            await handle
        assert [letter.run_id async for letter in app.dead_letters.list()] == [run_id]
    assert len(ran) == 3


@pytest.mark.one_process  # elsewhere such a run is not read at all
async def test_a_run_without_its_task_is_kept(make_app: MakeApp) -> None:
    """A run whose task no module defines waits, and goes on when the task is there again, also in mid-flight."""

    def define(value: str) -> Any:
        @task(name="comes_and_goes")
        async def comes_and_goes() -> str:
            await effect("kept")
            reached.append("kept")
            if not gate:
                await asyncio.Event().wait()
            return value

        return comes_and_goes

    definition = define("old")
    run_id = await crash(make_app, lambda app: app.start(definition), lambda: bool(reached))
    del definition
    gc.collect()
    gate.append(True)
    async with make_app() as app:
        handle = await app.get(run_id)
        assert await handle.status() is Status.RUNNING
        assert (await app.stats()).orphaned == 1
        definition = define("new")
        assert await handle == "new"
    assert ran == ["kept"]


@task(auto_recover=False)
async def on_behalf() -> tuple[str, str]:
    await effect("as user")
    reached.append("as user")
    if not gate:
        await asyncio.Event().wait()
    identity = durable.current_user()
    assert identity is not None
    return identity.user, identity.secrets["token"]


async def test_a_run_that_needs_its_user_waits_for_a_fresh_start(make_app: MakeApp) -> None:
    """With auto_recover=False the run waits for a start with the same key, which brings the secrets back."""

    async def start(app: Any) -> Any:
        with durable.run_as(UserContext("ann", {"token": "t1"})):
            return await app.start(on_behalf.options(key="mine"))

    run_id = await crash(make_app, start, lambda: bool(reached))
    gate.append(True)
    async with make_app() as app:
        handle = await app.get(run_id)
        await wait_until(lambda: True)
        assert (await handle.info()).user == "ann"
        async with asyncio.timeout(5):
            while await handle.status() is not Status.SUSPENDED:
                await asyncio.sleep(0.002)
        with durable.run_as(UserContext("ann", {"token": "t2"})):
            again = await app.start(on_behalf.options(key="mine"))
        assert again.run_id == run_id
        assert await again == ("ann", "t2")
    assert ran == ["as user"]


async def look_outside(ctx: Context, answer: str) -> Any:
    ran.append(f"handler {ctx.recovery_reason} {len(ctx.previous_events)}")
    return answer if answer != "rerun" else RERUN


@task(name="recovery_handled", recovery=look_outside)
async def handled(ctx: Context, answer: str) -> str:
    await ctx.emit("began", answer)
    await effect("step")
    reached.append("step")
    if not gate:
        await asyncio.Event().wait()
    return "body"


@pytest.mark.parametrize(("answer", "result"), [("direct", "direct"), ("rerun", "body")])
async def test_a_recovery_handler_decides(make_app: MakeApp, reason: str, answer: str, result: str) -> None:
    """After a crash the handler runs instead of the body; RERUN has the body go on with its recorded steps."""
    run_id = await crash(make_app, lambda app: app.start(handled, answer), lambda: bool(reached))
    gate.append(True)
    async with make_app() as app:
        assert await (await app.get(run_id)) == result
    assert ran == ["step", f"handler {reason} 1"]


@task
async def sleeper() -> float:
    before = durable.now()
    await durable.sleep(0.3)
    return (durable.now() - before).total_seconds()


async def test_sleep_goes_on_over_a_restart(make_app: MakeApp) -> None:
    """A sleep ends when it was to end, however often the process did."""
    async with make_app() as app:
        handle = await app.start(sleeper)
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    async with make_app() as app:
        started = asyncio.get_running_loop().time()
        assert await (await app.get(handle.run_id)) >= 0.3
        assert asyncio.get_running_loop().time() - started < 0.25


@task
async def child_waits() -> str:
    await effect("child")
    reached.append("child")
    if not gate:
        await asyncio.Event().wait()
    return "grown"


@task
async def parent_waits() -> str:
    return "parent of " + await child_waits()


async def test_parent_and_child_both_go_on(make_app: MakeApp) -> None:
    """After a crash the child is found again, not started again."""
    run_id = await crash(make_app, lambda app: app.start(parent_waits), lambda: bool(reached))
    gate.append(True)
    async with make_app() as app:
        handle = await app.get(run_id)
        assert await handle == "parent of grown"
        assert len(await handle.children()) == 1
    assert ran == ["child"]


async def test_a_failed_store_stops_everything_and_says_so(make_app: MakeApp) -> None:
    """When the store fails, bodies stop, those who wait are told, new starts are refused, and a restart goes on."""
    stores: list[CrashingStore] = []

    def wrap(store: Store) -> Store:
        stores.append(CrashingStore(store))
        return stores[0]

    async with make_app(wrap=wrap) as app:
        handle = await app.start(two_steps)
        waiting = asyncio.create_task(handle.wait())
        await wait_until(lambda: bool(reached))
        stores[0].crashed.set()
        with pytest.raises(durable.LogFencedError):
            await app.start(two_steps)
        with pytest.raises(durable.LogFencedError):
            await waiting
        with pytest.raises(durable.LogFencedError):
            await app.start(two_steps)
        with pytest.raises(durable.LogFencedError):
            await handle.cancel()
    gate.append(True)
    async with make_app() as app:
        assert (await (await app.get(handle.run_id)))[1] is True


@task
async def emits_for_ever(ctx: Context) -> None:
    for number in range(1000):
        await ctx.emit("n", number)


async def test_a_history_has_a_bound(make_app: MakeApp) -> None:
    """A run that outgrows its history fails with HistoryLimitError; the engine goes on."""
    config = Config(engine=EngineSettings(history_records_max=50))
    async with make_app(config=config) as app:
        with pytest.raises(RunFailedError, match="history_records_max") as caught:
            await (await app.start(emits_for_ever))
        assert "HistoryLimitError" in caught.value.error_type
        await (await app.start(nothing))
