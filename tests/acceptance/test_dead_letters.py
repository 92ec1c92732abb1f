"""Dead letters: bounded, aged, listed, counted, retried with history and discarded; over restarts, on each kind of store."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from durable import (
    Child,
    Durable,
    Handle,
    LimitError,
    Limits,
    RunFailedError,
    RunNotFoundError,
    Status,
    TransitionError,
    step,
    task,
)
from durable.core.query import RunFilter
from durable.store.base import Store
from tests.acceptance import keeping_worker
from tests.acceptance.grounds import Ground, folder, memory, postgres, until

ROOT = Path(__file__).resolve().parents[2]

#: What the bodies did, counted outside the engine; and the arguments for which the world is whole again.
ran: Counter[str] = Counter()
mended: set[str] = set()


@pytest.fixture(autouse=True)
def fresh() -> None:
    ran.clear()
    mended.clear()


@pytest.fixture(params=["memory", "folder", "postgres"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    if request.param == "memory":
        return memory()
    if request.param == "folder":
        return folder(tmp_path / "store")
    return postgres(request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres_schema"))


@step(name="letters_first")
async def first(what: str) -> str:
    ran[f"first {what}"] += 1
    return what


@step(name="letters_second")
async def second(what: str) -> str:
    ran[f"second {what}"] += 1
    if what not in mended:
        raise OSError(f"no {what}")
    return f"{what} at last"


@task(name="letters_work")
async def work(what: str) -> str:
    return await second(await first(what))


@task(name="letters_other")
async def other(what: str) -> str:
    return await second(what)


@task(name="letters_parent")
async def parent(what: str) -> Child[str]:
    return work.child(what)


async def dead(app: Durable, what: str, of: Any = work) -> Handle[str]:
    """A run that has failed."""
    handle: Handle[str] = await app.start(of, what)
    with pytest.raises(RunFailedError, match=f"no {what}"):
        await handle
    return handle


async def listed(app: Durable, **wanted: Any) -> list[str]:
    """The ids of the letters, as they are listed."""
    return [letter.run_id async for letter in app.dead_letters.list(**wanted)]


async def discarded(handle: Handle[Any]) -> list[Any]:
    """What the events say of why the run is no dead letter any more."""
    return [event.data async for event in handle.events(steps=True) if event.name == "step:discarded"]


async def test_they_are_listed_and_counted_the_oldest_first(ground: Ground) -> None:
    """By when they died, not by when they were started; and they outlive the process."""
    async with ground.app() as app:
        late = await app.start(work.options(delay=0.3), "late")
        early = await dead(app, "early")
        elsewhere = await dead(app, "elsewhere", other)
        with pytest.raises(RunFailedError):
            await late
    async with ground.app() as app:
        assert await listed(app) == [early.run_id, elsewhere.run_id, late.run_id]
        assert await listed(app, task=other) == [elsewhere.run_id]
        counts = [await app.dead_letters.count(task=each) for each in (None, work, "letters_other", "none")]
        assert counts == [3, 2, 1, 0]
        async for letter in app.dead_letters.list(task="letters_other"):
            assert (letter.dead, letter.status, letter.error) == (True, Status.FAILED, "no elsewhere")


async def test_a_retry_goes_on_from_the_step_that_failed(ground: Ground) -> None:
    """What is on record is not done again, and the letter is off the list only because its run goes on."""
    async with ground.app() as app:
        run_id = (await dead(app, "a")).run_id
    async with ground.app() as app:
        await app.dead_letters.retry(run_id)
        with pytest.raises(RunFailedError):
            await (await app.get(run_id))
        assert await listed(app) == [run_id]
        mended.add("a")
        await app.dead_letters.retry(run_id)
        assert await (await app.get(run_id)) == "a at last"
        assert await listed(app) == []
        assert await app.dead_letters.count() == 0
    assert ran == {"first a": 1, "second a": 3}


async def test_retries_are_counted_and_bounded(ground: Ground) -> None:
    """Over restarts; a refusal leaves the letter where it was; the handle's own retry has no bound and does not count."""
    limits = Limits(dead_letter_retries=2)

    async def again(app: Durable, handle: Handle[Any]) -> None:
        with pytest.raises(RunFailedError):
            await handle

    async with ground.app(limits=limits) as app:
        handle = await dead(app, "b")
        run_id = handle.run_id
        await handle.retry()
        await again(app, handle)
        await app.dead_letters.retry(run_id)
        await again(app, handle)
    async with ground.app(limits=limits) as app:
        handle = await app.get(run_id)
        await app.dead_letters.retry(run_id)
        await again(app, handle)
        for _ in range(2):
            with pytest.raises(LimitError, match=r"2 times already.*limits\.dead_letter_retries \(2\)"):
                await app.dead_letters.retry(run_id)
        assert await listed(app) == [run_id]
        assert await app.dead_letters.retry_all() == 0
        await handle.retry()
        await again(app, handle)
        with pytest.raises(LimitError):
            await app.dead_letters.retry(run_id)
    assert ran == {"first b": 1, "second b": 5}


async def test_no_retries_at_all(ground: Ground) -> None:
    """With a limit of none, it is the handle's business alone."""
    async with ground.app(limits=Limits(dead_letter_retries=0)) as app:
        handle = await dead(app, "c")
        with pytest.raises(LimitError):
            await app.dead_letters.retry(handle.run_id)
        mended.add("c")
        await handle.retry()
        assert await handle == "c at last"


async def test_all_are_retried_at_once(ground: Ground) -> None:
    """Or those of one task. A child is retried with its parent, and not by itself."""
    async with ground.app() as app:
        handles = [await dead(app, f"d{n}") for n in range(3)]
        apart = await dead(app, "apart", other)
        family = await app.start(parent, "child")
        with pytest.raises(RunFailedError):
            await family
        mended.update({"d0", "d1", "d2", "apart", "child"})
        assert await app.dead_letters.count() == 6
        assert await app.dead_letters.retry_all(task=other) == 1
        assert await apart == "apart at last"
        assert await app.dead_letters.retry_all() == 4
        assert [await handle for handle in handles] == ["d0 at last", "d1 at last", "d2 at last"]
        assert (await family).result == "child at last"
        assert await app.dead_letters.count() == 0


async def test_one_more_than_may_be_discards_the_oldest(ground: Ground) -> None:
    """Soon, not at the next look; and its history says why it is no dead letter any more."""
    async with ground.app(limits=Limits(dead_letter_size=2), interval=3_600) as app:
        handles = [await dead(app, f"e{n}") for n in range(5)]

        async def bounded() -> bool:
            return await app.dead_letters.count() == 2

        await until(bounded, "two dead letters")
        assert await listed(app) == [handle.run_id for handle in handles[3:]]
        for handle in handles[:3]:
            assert await handle.status() is Status.FAILED
            assert await discarded(handle) == [
                {"reason": "the oldest of more than 2 dead letters (limits.dead_letter_size)"}
            ]
        assert await discarded(handles[3]) == []
        with pytest.raises(TransitionError, match="no dead letter"):
            await app.dead_letters.discard(handles[0].run_id)
        mended.add("e0")
        await handles[0].retry()  # what is discarded is not gone
        assert await handles[0] == "e0 at last"


async def test_many_die_at_once_and_again(ground: Ground) -> None:
    """The bound holds in the end, whoever is retried meanwhile: those are left that died last."""
    async with ground.app(limits=Limits(dead_letter_size=10, dead_letter_retries=100), interval=3_600) as app:
        for wave in range(4):
            handles = [await app.start(other, f"m{wave}.{n}") for n in range(15)]
            for handle in handles:
                with pytest.raises(RunFailedError):
                    await handle
            await app.dead_letters.retry_all()  # they die again, and count as younger

        async def bounded() -> bool:
            running = RunFilter(status=frozenset({Status.READY, Status.RUNNING}))
            return await app.dead_letters.count() == 10 and not await app.store.count(running)

        await until(bounded, "ten dead letters")
        left = [letter async for letter in app.dead_letters.list()]
        ends = sorted([run.ended_at async for run in app.runs()], reverse=True)
        assert min(letter.ended_at for letter in left if letter.ended_at) >= ends[20]


async def test_those_that_are_too_old_are_discarded(ground: Ground) -> None:
    """By the time at which they died, also those of an earlier process."""
    limits = Limits(dead_letter_ttl=3_600)
    async with ground.app(limits=limits) as app:
        old = await dead(app, "old")
        ground.clock.seconds = 3_000
        young = await dead(app, "young")
        assert await app.dead_letters.count() == 2
    ground.clock.seconds = 4_000
    async with ground.app(limits=limits) as app:

        async def one_left() -> bool:
            return await listed(app) == [young.run_id]

        await until(one_left, "one dead letter")
        old = await app.get(old.run_id)
        assert await discarded(old) == [{"reason": "not retried within 3600 s (limits.dead_letter_ttl)"}]
        ground.clock.seconds = 7_000

        async def none_left() -> bool:
            return await app.dead_letters.count() == 0

        await until(none_left, "no dead letter")


async def test_what_is_not_there_is_told(ground: Ground) -> None:
    """An unknown run, and one that is no dead letter."""
    async with ground.app() as app:
        mended.add("f")
        fine = await app.start(work, "f")
        await fine
        for act in (app.dead_letters.retry, app.dead_letters.discard):
            with pytest.raises(RunNotFoundError):
                await act("0" * 32)
            with pytest.raises(TransitionError):
                await act(fine.run_id)


async def test_many_retries_at_once_are_one(ground: Ground) -> None:
    """Whoever comes first retries it; the others are told; the letter is never lost."""
    async with ground.app() as app:
        handle = await dead(app, "g")
        mended.add("g")
        outcomes = await asyncio.gather(
            *(app.dead_letters.retry(handle.run_id) for _ in range(8)), return_exceptions=True
        )
        assert outcomes.count(None) == 1
        assert all(outcome is None or isinstance(outcome, TransitionError) for outcome in outcomes)
        assert await handle == "g at last"
    assert ran["second g"] == 2


# -- a body that ends its process


@pytest.fixture(params=["folder", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    if request.param == "folder":
        return str(tmp_path / "store"), ""
    return request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres_schema")


def live(target: tuple[str, str], notes: Path) -> subprocess.CompletedProcess[str]:
    """One life of the process, to its end."""
    command = [sys.executable, "-m", "tests.acceptance.keeping_worker", "dies", *target]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "KEEPING_NOTES": str(notes)}, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip


async def test_a_body_that_ends_its_process_is_a_dead_letter_in_the_end(
    target: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many recoveries; its process is then left alone, and once the world is mended it goes on from that step."""
    notes = tmp_path / "notes"
    codes, said = [], ""
    for _ in range(keeping_worker.RECOVERIES_MAX + 5):
        done = await asyncio.to_thread(live, target, notes)
        codes.append(done.returncode)
        said = done.stdout
        if done.returncode != 9:
            break
    assert codes == [9] * (keeping_worker.RECOVERIES_MAX + 1) + [0], done.stderr
    assert said.split()[-1] == "failed"
    assert notes.read_text().split() == ["before"] + ["kills"] * (keeping_worker.RECOVERIES_MAX + 1)
    monkeypatch.setattr(keeping_worker, "NOTES", notes)
    notes.with_suffix(".mended").touch()
    store: Store = keeping_worker.store_of(*target)
    async with Durable(store) as app:
        (letter,) = [letter async for letter in app.dead_letters.list()]
        assert letter.error_type == "durable.RecoveryLimit"
        assert await store.count(RunFilter(dead=True)) == 1
        await app.dead_letters.retry(letter.run_id)
        assert await (await app.get(letter.run_id)) == 3
    assert notes.read_text().split().count("before") == 1
