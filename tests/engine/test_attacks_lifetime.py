"""Races and abuse around starting, families, slots, opening and closing."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

import durable
from durable import (
    AppNotOpenError,
    Limits,
    RepositoryUnavailableError,
    RunCancelledError,
    RunFailedError,
    ShuttingDownError,
    Status,
    step,
    task,
)
from durable.engine import services
from durable.tasks.decorators import Task
from tests.engine.conftest import MakeApp
from tests.engine.gate import turns
from tests.engine.test_attacks import gated


class Stage:
    """What the bodies of this module and their test share."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.effects: list[Any] = []
        self.fail = True
        self.go = asyncio.Event()
        self.there = asyncio.Event()


stage = Stage()


@pytest.fixture(autouse=True)
async def fresh_stage() -> None:
    """Each test finds the stage empty."""
    stage.reset()


@step(name="attack_family_effect")
async def effect(value: object) -> None:
    stage.effects.append(value)


@task(name="attack_endless")
async def endless() -> None:
    stage.there.set()
    await asyncio.Event().wait()


@task(name="attack_echo")
async def echo(value: int) -> int:
    return value


@task(name="attack_keyed", key="attack")
async def keyed(value: int) -> int:
    return value


async def test_a_keyed_start_is_given_up_and_made_again(make_app: MakeApp) -> None:
    """The second start finds the run that the first one made, though nobody waited for that any more."""
    app, gate = gated(make_app)
    async with app:
        gate.hold()
        first = asyncio.ensure_future(app.start(keyed, 1))
        await gate.arrived.wait()
        first.cancel()
        second = asyncio.ensure_future(app.start(keyed, 1))
        await turns()
        gate.let_go()
        handle = await second
        assert await handle.wait(timeout=5) == 1
        assert [info.run_id async for info in app.runs()] == [handle.run_id]


@task(name="attack_breaks_once")
async def breaks_once() -> str:
    if stage.fail:
        stage.fail = False
        raise ValueError("the first time")
    return "whole"


@task(name="attack_slow_child")
async def slow_child() -> str:
    await stage.go.wait()
    await effect("slow")
    return "slow"


@task(name="attack_parent_of_two")
async def parent_of_two() -> list[str]:
    return list(await asyncio.gather(breaks_once(), slow_child()))


async def test_a_parent_is_retried_after_its_end_cancelled_a_child(make_app: MakeApp) -> None:
    """The cancelled child is run again, as the failed one is."""
    async with make_app() as app:
        handle = await app.start(parent_of_two)
        with pytest.raises(RunFailedError, match="the first time"):
            await handle.wait(timeout=5)
        stage.go.set()
        await turns()
        await handle.retry()
        assert await handle.wait(timeout=5) == ["whole", "slow"]
        assert stage.effects == ["slow"]


@task(name="attack_impatient")
async def impatient() -> str:
    try:
        async with durable.timeout(0):
            return await slow_child()
    except TimeoutError:
        stage.there.set()
        await stage.go.wait()
        return "gave up"


async def test_a_child_is_given_up_while_it_is_being_started(make_app: MakeApp) -> None:
    """It is cancelled, and does not go on behind its parent's back."""
    async with make_app() as app:
        handle = await app.start(impatient)
        await stage.there.wait()
        for child in await handle.children():
            with pytest.raises(RunCancelledError):
                await child.wait(timeout=5)
        stage.go.set()
        assert await handle.wait(timeout=5) == "gave up"
    assert stage.effects == []


@task(name="attack_shared", key="shared")
async def shared() -> str:
    stage.there.set()
    await stage.go.wait()
    return "shared"


@task(name="attack_looks_in")
async def looks_in() -> str:
    try:
        async with durable.timeout(0.01):
            return await shared()
    except TimeoutError:
        return "gave up"


async def test_a_parent_gives_up_a_run_that_is_not_its_own(make_app: MakeApp) -> None:
    """A run that its key led to goes on for whoever started it."""
    async with make_app() as app:
        owner = await app.start(shared)
        await stage.there.wait()
        assert await (await app.start(looks_in)).wait(timeout=5) == "gave up"
        stage.go.set()
        assert await owner.wait(timeout=5) == "shared"


@task(name="attack_late_parent")
async def late_parent() -> int:
    stage.there.set()
    await stage.go.wait()
    return await echo(4)


async def test_the_store_cannot_tell_how_a_child_ended(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent waits for the store instead of failing."""
    monkeypatch.setattr(services, "RETRY_SECONDS", 0.001)
    app, _ = gated(make_app)
    async with app:
        handle = await app.start(late_parent)
        await stage.there.wait()
        wait_ended, refusals = (
            app.engine.wait_ended,
            [RepositoryUnavailableError("away"), RepositoryUnavailableError("away")],
        )

        async def away(run_id: str) -> Any:
            if refusals:
                raise refusals.pop()
            return await wait_ended(run_id)

        monkeypatch.setattr(app.engine, "wait_ended", away)
        stage.go.set()
        while refusals:
            await asyncio.sleep(0.001)
        monkeypatch.undo()
        assert await handle.wait(timeout=5) == 4


@task(name="attack_chain")
async def chain(length: int) -> str:
    if not length:
        return "end"
    return await (await chain.start(length - 1)).wait()


async def test_bodies_wait_for_runs_that_they_started_with_one_slot(make_app: MakeApp) -> None:
    """What a body waits for does not wait for that body's slot; all slots come back."""
    async with make_app(limits=Limits(max_running=1)) as app:
        handles = [await app.start(chain, 3) for _ in range(3)]
        assert [await handle.wait(timeout=5) for handle in handles] == ["end"] * 3
        await turns()
        figures = app.engine.statistics()
        assert (figures["loaded"], figures["running"], figures["queued"]) == (0, 0, 0)


async def test_runs_are_cancelled_while_they_wait_for_a_slot(make_app: MakeApp) -> None:
    """They leave the queue at once, and one that is resumed has one place in it."""
    async with make_app(limits=Limits(max_running=1)) as app:
        first = await app.start(endless)
        await stage.there.wait()
        for _ in range(20):
            await (await app.start(endless)).cancel()
        assert (await app.stats()).queued == 0
        assert app.engine.statistics()["loaded"] == 1
        waiting = await app.start(echo, 5)
        for _ in range(5):
            await waiting.stop()
            await waiting.resume()
        assert (await app.stats()).queued == 1
        await first.cancel()
        assert await waiting.wait(timeout=5) == 5


async def test_a_waiter_is_cancelled_in_the_moment_of_the_end(make_app: MakeApp) -> None:
    """It sees its cancellation and nothing else; waiting in vain leaves nothing behind."""
    async with make_app() as app:
        handle = await app.start(endless)
        entry = app.engine.parts.table.get(handle.run_id)
        waiting = asyncio.ensure_future(handle.wait())
        await turns()
        waiting.cancel()
        entry.tell(ShuttingDownError("as an end would"))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await handle.wait(timeout=0.001)
        assert entry.waiters == [] and entry.awaited == 0


async def test_a_suspended_run_has_no_code_until_a_module_is_imported(make_app: MakeApp) -> None:
    """It stays suspended, and those behind it go on."""

    def define() -> Task[[], int]:
        @task(name="attack_absent")
        async def absent() -> int:
            return 5

        return absent

    defined = define()
    async with make_app(limits=Limits(max_running=1)) as app:
        await app.start(endless)
        await stage.there.wait()
        ids = [(await app.start(defined)).run_id for _ in range(3)]
    del defined
    gc.collect()
    async with make_app() as app:
        handles = [await app.get(run_id) for run_id in ids]
        assert (await app.stats()).orphaned == 3
        await handles[0].stop()
        assert (await app.stats()).orphaned == 2
        again = define()
        assert [await handle.wait(timeout=5) for handle in handles[1:]] == [5, 5]
        assert await handles[0].status() is Status.SUSPENDED
        await handles[0].resume()
        assert await handles[0].wait(timeout=5) == 5
        assert again.name == "attack_absent"


async def test_a_start_is_under_way_when_the_application_closes(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused once the application is closed; it does not hang."""
    app, gate = gated(make_app)
    await app.open()

    async def slow(user: str | None, key: str) -> None:
        await stage.go.wait()

    monkeypatch.setattr(gate, "find_key", slow)
    starting = asyncio.ensure_future(app.start(keyed, 2))
    await turns()
    await app.close()
    stage.go.set()
    with pytest.raises(ShuttingDownError):
        await asyncio.wait_for(starting, 5)


async def test_waiting_begins_after_the_application_was_closed(make_app: MakeApp) -> None:
    """It is refused; it does not hang."""
    async with make_app() as app:
        handle = await app.start(endless)
        await stage.there.wait()
    with pytest.raises(AppNotOpenError):
        await asyncio.wait_for(handle.wait(), 5)


@task(name="attack_closes")
async def closes() -> None:
    await stage.app.close()  # type: ignore[attr-defined]


async def test_the_application_is_closed_by_many_and_by_a_body(make_app: MakeApp) -> None:
    """All wait for the same end; a body that closes it is handed back as any other, and it can be opened again."""
    app = stage.app = make_app()  # type: ignore[attr-defined]
    await app.open()
    handle = await app.start(closes)
    await turns()
    await asyncio.gather(app.close(), app.close())
    with pytest.raises(AppNotOpenError):
        await app.start(echo, 1)
    stage.app = make_app()  # type: ignore[attr-defined]  # what the body closes when it goes on
    async with app:
        await handle.wait(timeout=5)


async def test_closing_goes_on_when_who_closes_is_cancelled(make_app: MakeApp) -> None:
    """What was staged is committed, and the store is closed."""
    app = make_app()
    await app.open()
    handle = await app.start(endless)
    await stage.there.wait()
    closing = asyncio.ensure_future(app.close())
    await turns(2)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await app.close()
    async with app:
        assert (await handle.info()).last_seq > 2  # it was handed back


async def test_an_application_is_opened_twice_at_once(make_app: MakeApp) -> None:
    """One opens it, the other is told."""
    app = make_app()
    opened = await asyncio.gather(app.open(), app.open(), return_exceptions=True)
    assert [type(each) for each in opened] == [durable.Durable, AppNotOpenError]
    assert await (await app.start(echo, 1)).wait(timeout=5) == 1
    await app.close()


async def test_opening_fails_half_way(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is let go of, and the next open works."""
    app, gate = gated(make_app)

    async def away(wanted: object) -> None:
        raise RepositoryUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(gate, "query", away, raising=False)
        with pytest.raises(RepositoryUnavailableError):
            await app.open()
    async with app:
        assert await (await app.start(echo, 1)).wait(timeout=5) == 1
