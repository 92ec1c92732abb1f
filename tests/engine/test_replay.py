"""Replay: code that has not changed repeats itself, code that has is told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import durable
from durable import Config, Status, step, task
from durable.config import EngineSettings
from tests.engine.conftest import MakeApp
from tests.engine.test_recovery import crash, wait_until

ran: list[str] = []


@step
async def one(n: int) -> int:
    ran.append(f"one{n}")
    return n


@step
async def two(n: int) -> int:
    ran.append(f"two{n}")
    return n


@step
async def block() -> None:
    ran.append("block")
    if versions["now"] is not None:
        return
    await asyncio.Event().wait()


@step
async def added(n: int) -> int:
    ran.append(f"added{n}")
    return n


Body = Callable[[], Awaitable[Any]]
versions: dict[str, Body | None] = {"before": None, "now": None}


@task
async def changing() -> Any:
    body = versions["now"] or versions["before"]
    assert body is not None
    return await body()


async def before() -> str:
    await one(1)
    await two(2)
    await block()
    return "before"


async def changed(make_app: MakeApp, now: Body, config: Config | None = None) -> Any:
    """Crash a run of `before`, and go on with `now` in its place."""
    ran.clear()
    versions.update(before=before, now=None)
    run_id = await crash(make_app, lambda app: app.start(changing), lambda: "block" in ran)
    ran.clear()
    versions["now"] = now
    app = make_app() if config is None else make_app(config=config)
    await app.open()
    return app, await app.get(run_id)


async def parked(handle: Any) -> str:
    async with asyncio.timeout(5):
        while await handle.status() is not Status.SUSPENDED:
            await asyncio.sleep(0.005)
    info = await handle.info()
    assert info.error_type == "durable.errors.NonDeterminismError"
    return str(info.error)


async def reordered() -> str:
    await two(2)
    await one(1)
    await block()
    return "reordered"


async def other_arguments() -> str:
    await one(5)
    await two(2)
    await block()
    return "arguments"


async def removed() -> str:
    await one(1)
    await block()
    return "removed"


async def ends_early() -> str:
    await one(1)
    return "early"


@pytest.mark.parametrize(
    ("now", "expected"),
    [(reordered, "order"), (other_arguments, "arguments"), (removed, "two[2]"), (ends_early, "removed")],
)
async def test_code_that_diverges_is_parked(make_app: MakeApp, now: Body, expected: str) -> None:
    """The run is suspended with record and code side by side and nothing runs; after a fix it goes on."""
    app, handle = await changed(make_app, now, Config(engine=EngineSettings(
        on_new_step="error", replay_stall_seconds=0.05, shutdown_grace_seconds=0.1)))  # fmt: skip
    try:
        message = await parked(handle)
        assert expected in message and "record" in message and "code" in message
        assert ran == []
        versions["now"] = before
        await handle.resume()
        assert await handle == "before"
        assert ran == ["block"]
    finally:
        await app.close()


async def test_a_renamed_step_is_parked_before_it_runs(make_app: MakeApp) -> None:
    """A step whose recorded name the code no longer has is not run under its new name; the message names file and line."""

    @step(name="old_name")
    async def old(n: int) -> int:
        return n

    async def with_old() -> str:
        await old(1)
        await block()
        return "old"

    ran.clear()
    versions.update(before=with_old, now=None)
    run_id = await crash(make_app, lambda app: app.start(changing), lambda: "block" in ran)
    ran.clear()
    del old, with_old

    @step
    async def new_name(n: int) -> int:
        ran.append("new")
        return n

    async def with_new() -> str:
        await new_name(1)
        await block()
        return "new"

    versions.update(before=with_new, now=with_new)
    async with make_app() as app:
        handle = await app.get(run_id)
        message = await parked(handle)
        assert "renamed" in message and "test_replay.py:" in message and "old_name[1]" in message
        assert ran == []


async def with_added() -> str:
    await one(1)
    await added(9)
    await two(2)
    await block()
    return "added"


async def test_a_step_that_was_added_is_run(make_app: MakeApp) -> None:
    """An added step runs, the recorded ones do not run again."""
    app, handle = await changed(make_app, with_added)
    try:
        assert await handle == "added"
        assert ran == ["added9", "block"]
    finally:
        await app.close()


async def plain_waits() -> str:
    await one(1)
    await asyncio.sleep(0.15)  # longer than the replay waits for a recorded call
    first, _ = await asyncio.gather(two(2), asyncio.sleep(0.1))
    await block()
    return str(first)


async def test_plain_waits_between_steps_are_no_divergence(make_app: MakeApp) -> None:
    """A body that sleeps with plain asyncio between its calls replays, in its own time."""
    ran.clear()
    versions.update(before=plain_waits, now=None)
    run_id = await crash(make_app, lambda app: app.start(changing), lambda: "block" in ran)
    ran.clear()
    versions["now"] = plain_waits
    async with make_app() as app:
        assert await (await app.get(run_id)) == "2"
    assert ran == ["block"]


async def in_flight() -> list[int]:
    async def branch(n: int) -> int:
        await one(n)
        if n == 2:
            await block()
        return await two(n)

    return list(await asyncio.gather(*[branch(n) for n in range(4)]))


async def test_calls_in_flight_at_the_crash_are_no_divergence(make_app: MakeApp) -> None:
    """What had begun and not ended when the process died is run again, beside what is replayed."""
    ran.clear()
    versions.update(before=in_flight, now=None)
    run_id = await crash(
        make_app, lambda app: app.start(changing), lambda: {"two0", "two1", "two3", "block"} <= set(ran)
    )
    done = [name for name in ran if name != "block"]
    ran.clear()
    versions["now"] = in_flight
    async with make_app() as app:
        assert await (await app.get(run_id)) == [0, 1, 2, 3]
    assert ran == ["block", "two2"] and len(done) == 7


async def with_plain_timeout() -> str:
    try:
        async with asyncio.timeout(0.05):
            await block()
    except TimeoutError:
        pass
    await one(7)
    await block()
    return "timed out"


async def test_a_call_that_a_plain_timeout_cancelled_is_cancelled_again(make_app: MakeApp) -> None:
    """A call that asyncio.timeout gave up waits on replay until it is given up again."""
    ran.clear()
    versions.update(before=with_plain_timeout, now=None)
    run_id = await crash(make_app, lambda app: app.start(changing), lambda: ran == ["block", "one7", "block"])
    ran.clear()
    versions["now"] = with_plain_timeout
    async with make_app() as app:
        assert await (await app.get(run_id)) == "timed out"
    assert ran == ["block"]


async def with_durable_timeout() -> str:
    try:
        async with durable.timeout(0.2):
            await block()
    except TimeoutError:
        pass
    await one(8)
    await block()
    return "timed out"


async def test_a_durable_timeout_that_fired_does_not_wait_again(make_app: MakeApp) -> None:
    """A recorded deadline that passed cuts the block off at once on replay."""
    ran.clear()
    versions.update(before=with_durable_timeout, now=None)
    run_id = await crash(make_app, lambda app: app.start(changing), lambda: ran == ["block", "one8", "block"])
    ran.clear()
    versions["now"] = with_durable_timeout
    async with make_app() as app:
        began = asyncio.get_running_loop().time()
        assert await (await app.get(run_id)) == "timed out"
        assert asyncio.get_running_loop().time() - began < 0.2
    assert ran == ["block"]
    await wait_until(lambda: True)
