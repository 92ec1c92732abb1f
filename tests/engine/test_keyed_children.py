"""Returned children whose key names a run: the same run, whoever started it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from durable import Child, Context, RunFailedError, Status, step, task
from tests.engine.conftest import MakeApp

effects: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def no_effects() -> None:
    """Each test counts anew."""
    effects.clear()


@step(name="keyed_effect")
async def effect(label: str) -> None:
    effects[label] += 1


@task(name="keyed_extract", key=lambda path: f"extract:{path}")
async def extract(ctx: Context, path: str) -> str:
    await effect(path)
    if path.startswith("slow"):
        await ctx.wait_for("go")
    if path.startswith("bad"):
        raise ValueError(path)
    return path.upper()


async def collect(ctx: Context, found: list[Child[str]]) -> list[str]:
    await effect("coordinator")
    return [child.result if child.ok else str(child.status) for child in found]


@task(name="keyed_parent", on_children_complete=collect, on_child_failure="continue")
async def parent(paths: list[str]) -> list[Child[str]]:
    return [extract.child(path) for path in paths]


@task(name="keyed_strict")
async def strict(paths: list[str]) -> list[Child[str]]:
    return [extract.child(path) for path in paths]


async def test_a_key_that_exists_is_the_same_run(make_app: MakeApp) -> None:
    """One that has ended counts at once, one that runs when it ends, and none runs twice."""
    async with make_app() as app:
        done = await extract.start("a")
        assert await done.wait(timeout=5) == "A"
        running = await extract.start("slow b")
        handle = await parent.start(["a", "slow b", "c", "c"])
        other = await parent.start(["slow b"])
        async with asyncio.timeout(5):
            while await handle.status() is not Status.WAITING_FOR_CHILDREN or await other.status() is Status.RUNNING:
                await asyncio.sleep(0.001)
        await running.send("go")
        assert await handle.wait(timeout=5) == ["A", "SLOW B", "C", "C"]
        assert await other.wait(timeout=5) == ["SLOW B"]
        assert (await handle.info()).closed
        assert [one.run_id for one in await handle.children()] == [
            info.run_id async for info in app.runs(task=extract) if info.parent_id == handle.run_id
        ]
    assert effects == {"a": 1, "slow b": 1, "c": 1, "coordinator": 2}


async def test_the_parent_is_told_also_after_a_crash(make_app: MakeApp) -> None:
    """Whoever ends the run finds its watchers in the store."""
    async with make_app() as app:
        running = await extract.start("slow d")
        handle = await parent.start(["slow d", "e"])
        while await handle.status() is not Status.WAITING_FOR_CHILDREN:
            await asyncio.sleep(0.001)
    async with make_app() as app:
        await (await app.get(running.run_id)).send("go")
        assert await (await app.get(handle.run_id)).wait(timeout=5) == ["SLOW D", "E"]
    assert effects["slow d"] == effects["e"] == effects["coordinator"] == 1


async def test_a_failure_of_the_run_is_the_familys(make_app: MakeApp) -> None:
    """A strict parent fails, at once where the run had failed before; the run is not its own, so it is not cancelled with it."""
    async with make_app():
        bad = await extract.start("bad f")
        with pytest.raises(RunFailedError):
            await bad.wait(timeout=5)
        handle = await strict.start(["bad f", "g"])
        with pytest.raises(RunFailedError, match="bad f"):
            await handle.wait(timeout=5)
        assert await handle.status() is Status.CHILDREN_FAILED
        slow = await extract.start("slow h")
        handle = await strict.start(["slow h"])
        async with asyncio.timeout(5):
            while await handle.status() is not Status.WAITING_FOR_CHILDREN:
                await asyncio.sleep(0.001)
        await handle.cancel()
        assert await slow.status() is Status.RUNNING
        await slow.send("go")
        assert await slow.wait(timeout=5) == "SLOW H"
        handle = await parent.start(["bad f", "slow h"])
        assert await handle.wait(timeout=5) == ["failed", "SLOW H"]


async def test_a_key_with_another_input_is_refused(make_app: MakeApp) -> None:
    """The body fails with the conflict, and no child comes into being."""

    @task(name="keyed_conflict")
    async def conflict() -> list[Child[str]]:
        return [extract.options(key="extract:i").child("j"), extract.child("k")]

    async with make_app() as app:
        await (await extract.start("i")).wait(timeout=5)
        handle = await conflict.start()
        with pytest.raises(RunFailedError) as caught:
            await handle.wait(timeout=5)
        assert "ConflictError" in caught.value.error_type
        assert await app.find("extract:k") is None


@task(name="keyed_itself", key="itself")
async def itself() -> list[Child[object]]:
    return [itself.child()]


async def test_a_run_cannot_be_its_own_child(make_app: MakeApp) -> None:
    """It would wait for ever."""
    async with make_app():
        handle = await itself.start()
        with pytest.raises(RunFailedError, match="wait for itself"):
            await handle.wait(timeout=5)
