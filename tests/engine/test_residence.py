"""Runs that only wait: they give up their slots and leave memory, and come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import durable
from durable import Child, Config, Context, Durable, Limits, RunTimedOutError, Status, UserContext, step, task
from durable.core.records import Kind
from tests.engine.conftest import QUICK, MakeApp
from tests.engine.gate import turns

#: A body that waits gives its slot at once; two runs without one stay in memory.
BUSY = Config(engine=replace(QUICK.engine, idle_seconds=0.02, idle_runs_max=2))
ONE = Limits(max_running=1)

effects: Counter[Any] = Counter()


@pytest.fixture(autouse=True)
def no_effects() -> None:
    """Each test counts anew."""
    effects.clear()


@step(name="residence_effect")
async def effect(value: object) -> None:
    effects[value] += 1


async def kinds(app: Durable, run_id: str) -> list[Kind]:
    """The kinds of the run's records."""
    return [record.kind for record in await app.engine.store.history(run_id)]


async def until_dismissed(app: Durable, run_id: str) -> None:
    """Wait until the run is not in memory."""
    async with asyncio.timeout(5):
        while app.engine.parts.table.get(run_id) is not None:
            await asyncio.sleep(0.005)


@task(name="residence_sleeper")
async def sleeper(ctx: Context, seconds: float, label: str) -> tuple[str, bool, int]:
    await effect(f"before {label}")
    await durable.sleep(seconds)
    await effect(f"after {label}")
    return label, ctx.recovered, ctx.attempt


async def test_sleeping_bodies_give_their_slots_to_runs_that_wait(make_app: MakeApp) -> None:
    """With one slot, five runs sleep at the same time; nothing runs twice, and none is said to have been recovered."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await sleeper.start(1.0, str(number)) for number in range(5)]
        results = [await handle.wait(timeout=5) for handle in handles]
        assert results == [(str(number), False, 1) for number in range(5)]
        assert Kind.ASLEEP in await kinds(app, handles[0].run_id)
        info = await handles[0].info()
        assert (info.recoveries, info.attempt) == (0, 1)
        events = [event.name async for event in handles[0].events()]
        assert events == ["created", "started", "completed"]
    assert set(effects.values()) == {1} and len(effects) == 10


async def test_a_short_wait_keeps_its_slot(make_app: MakeApp) -> None:
    """What max_running bounds is what is under way: a run that waits for a moment still is."""
    config = Config(engine=replace(QUICK.engine, idle_seconds=1.0))
    async with make_app(config=config, limits=ONE) as app:
        first = await sleeper.start(0.9, "a")
        second = await sleeper.start(0.0, "b")
        await asyncio.sleep(0.1)
        assert await second.status() is Status.READY
        await second.wait(timeout=5)
        assert Kind.ASLEEP not in await kinds(app, first.run_id)


@task(name="residence_waiter")
async def waiter(ctx: Context, label: str) -> Any:
    await effect(f"before {label}")
    try:
        return await ctx.wait_for("go")
    finally:
        effects["finally"] += 1


async def test_a_signal_wakes_a_run_that_left_memory(make_app: MakeApp) -> None:
    """It is in the store only, as one of many, and goes on with the signal, whenever that came."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await waiter.start(str(number)) for number in range(8)]
        await until_dismissed(app, handles[0].run_id)
        async with asyncio.timeout(5):
            while (await app.stats()).loaded > 4:
                await asyncio.sleep(0.005)
        assert await handles[0].status() is Status.RUNNING
        for number, handle in enumerate(handles):
            await handle.send("go", number)
        assert [await handle.wait(timeout=5) for handle in handles] == list(range(8))
    assert all(effects[f"before {number}"] == 1 for number in range(8))


async def test_a_signal_to_a_run_asleep_outlives_a_crash(make_app: MakeApp) -> None:
    """The next process finds the run due, and wakes it."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await waiter.start(str(number)) for number in range(4)]
        await until_dismissed(app, handles[0].run_id)
        app.engine.parts.lifecycle.scheduler.closed = True  # as if the process ended before it could wake the run
        await handles[0].send("go", "late")
    async with make_app(config=BUSY, limits=ONE) as app:
        handle = await app.get(handles[0].run_id)
        assert await handle.wait(timeout=5) == "late"
        assert not (await handle.info()).recoveries


async def test_runs_asleep_are_not_read_at_opening(make_app: MakeApp) -> None:
    """They come when they are due."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await sleeper.start(1.5, str(number)) for number in range(6)]
        for handle in handles[:3]:
            await until_dismissed(app, handle.run_id)
    async with make_app(config=BUSY, limits=ONE) as app:
        assert (await app.stats()).loaded <= 3
        for handle in handles:
            assert (await (await app.get(handle.run_id)).wait(timeout=5))[0] in "012345"
    assert set(effects.values()) == {1}


async def test_delayed_runs_leave_memory_and_begin_at_their_time(make_app: MakeApp) -> None:
    """Also those whose time comes while others are read."""
    async with make_app(config=BUSY) as app:
        handles = [await sleeper.options(delay=0.3 + number / 50).start(0.0, str(number)) for number in range(20)]
        assert (await app.stats()).loaded <= 3
        for handle in handles:
            await handle.wait(timeout=5)
    assert set(effects.values()) == {1} and len(effects) == 40


async def test_suspended_runs_leave_memory(make_app: MakeApp) -> None:
    """And are resumed, or cancelled, from the store."""
    async with make_app(config=BUSY) as app:
        handles = [await waiter.start(str(number)) for number in range(5)]
        await turns()
        for handle in handles:
            await handle.stop("later")
        await until_dismissed(app, handles[0].run_id)
        assert await handles[0].status() is Status.SUSPENDED
        await handles[0].resume()
        await handles[0].send("go", 1)
        assert await handles[0].wait(timeout=5) == 1
        await handles[1].cancel()
        assert await handles[1].status() is Status.CANCELLED


@task(name="residence_child")
async def child(ctx: Context, label: str) -> str:
    await effect(f"child {label}")
    await ctx.wait_for("go")
    return label


@task(name="residence_awaiting")
async def awaiting(label: str) -> str:
    await effect(f"parent {label}")
    return await child(label) + "!"


@task(name="residence_family")
async def family(label: str) -> list[Child[str]]:
    await effect(f"parent {label}")
    return [child.child(f"{label}{number}") for number in range(2)]


async def test_a_parent_asleep_is_woken_by_its_child(make_app: MakeApp) -> None:
    """The body that awaited the child was let go, and so was the child."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await awaiting.start(str(number)) for number in range(8)]
        await until_dismissed(app, handles[0].run_id)
        [only] = await handles[0].children()
        await only.send("go")
        assert await handles[0].wait(timeout=5) == "0!"
        assert not (await handles[0].info()).recoveries
        for handle in handles[1:]:
            await handle.cancel()
    assert effects["parent 0"] == effects["child 0"] == 1


async def test_a_waiting_family_leaves_memory(make_app: MakeApp) -> None:
    """Parents and children are in the store only; the end of the last child completes the parent."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await family.start(str(number)) for number in range(6)]
        await until_dismissed(app, handles[0].run_id)
        for one in await handles[0].children():
            await one.send("go")
        found = await handles[0].wait(timeout=5)
        assert [each.result for each in found] == ["00", "01"]
        children = await handles[1].children()
        await handles[1].cancel()
        async with asyncio.timeout(5):
            while not (await handles[1].info()).closed:
                await asyncio.sleep(0.005)
        assert [await one.status() for one in children] == [Status.CANCELLED] * 2


async def test_a_time_limit_wakes_a_run(make_app: MakeApp) -> None:
    """A deadline of the body is a time at which it wakes."""

    @task(name="residence_limited")
    async def limited(ctx: Context) -> str:
        try:
            async with durable.timeout(0.5):
                await ctx.wait_for("never")
        except TimeoutError:
            return "late"
        return "early"

    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await limited.start() for _ in range(4)]
        assert [await handle.wait(timeout=5) for handle in handles] == ["late"] * 4
        assert Kind.ASLEEP in await kinds(app, handles[0].run_id)


async def test_an_identity_keeps_its_run_in_memory(make_app: MakeApp) -> None:
    """Secrets are nowhere but there."""

    @task(name="residence_secret")
    async def secret(ctx: Context) -> str:
        await ctx.wait_for("go")
        found = durable.current_user()
        assert found is not None
        return str(found.secrets["token"])

    async with make_app(config=BUSY, limits=ONE) as app:
        with durable.run_as(UserContext("ann", {"token": "t1"})):
            kept = await secret.start()
        others = [await waiter.start(str(number)) for number in range(6)]
        await until_dismissed(app, others[0].run_id)
        await kept.send("go")
        assert await kept.wait(timeout=5) == "t1"


async def test_a_run_that_is_waited_for_stays_and_its_waiter_is_told(make_app: MakeApp) -> None:
    """Waiting for a run in the store brings it back."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await waiter.start(str(number)) for number in range(6)]
        await until_dismissed(app, handles[0].run_id)
        waiting = asyncio.ensure_future(handles[0].wait(timeout=5))
        await turns()
        await asyncio.sleep(0.05)
        await handles[0].send("go", "x")
        assert await waiting == "x"


async def test_the_body_that_is_let_go_records_nothing_more(make_app: MakeApp) -> None:
    """Its `finally` blocks run, and what they do in vain shows nowhere."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await waiter.start(str(number)) for number in range(3)]
        async with asyncio.timeout(5):
            while Kind.ASLEEP not in await kinds(app, handles[0].run_id):
                await asyncio.sleep(0.005)
        assert (await kinds(app, handles[0].run_id))[-1] is Kind.ASLEEP
        assert effects["finally"] >= 1
        assert await handles[0].status() is Status.RUNNING


@task(name="residence_bounded", timeout=0.6)
async def bounded(ctx: Context) -> None:
    await effect("bounded")
    await durable.sleep(0.3)
    await ctx.wait_for("never")


async def test_the_time_limit_of_a_run_goes_on_while_it_sleeps(make_app: MakeApp) -> None:
    """An attempt has its time once, however often its body is let go and replayed."""
    async with make_app(config=BUSY, limits=ONE) as app:
        handles = [await bounded.start() for _ in range(3)]
        for handle in handles:
            with pytest.raises(RunTimedOutError):
                await handle.wait(timeout=5)
        assert Kind.ASLEEP in await kinds(app, handles[0].run_id)
        for handle in handles:
            info = await handle.info()
            assert info.started_at is not None and info.ended_at is not None
            assert 0.55 <= (info.ended_at - info.started_at).total_seconds() < 3


@task(name="residence_at_work")
async def at_work(label: str) -> None:
    effects["at work"] += 1
    effects["most at work"] = max(effects["most at work"], effects["at work"])
    await asyncio.sleep(0.15)
    effects["at work"] -= 1


@task(name="residence_employer")
async def employer(label: str) -> None:
    await at_work(label)


async def test_a_body_keeps_its_slot_for_the_child_that_works_in_it(make_app: MakeApp) -> None:
    """An awaited child takes no slot, since its parent holds one: it may not be given away."""
    async with make_app(config=BUSY, limits=Limits(max_running=2)):
        for handle in [await employer.start(str(number)) for number in range(8)]:
            await handle.wait(timeout=10)
    assert 1 <= effects["most at work"] <= 2
