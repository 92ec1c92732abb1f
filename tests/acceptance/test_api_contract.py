"""The contract, section *Opening the engine*: names, defaults, stores, the current application, and asking for runs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

import durable
import durable.errors
from durable import (
    AmbiguousAppError,
    AppNotOpenError,
    Config,
    Context,
    Durable,
    Handle,
    Limits,
    NonRetryableError,
    RunFailedError,
    RunInfo,
    RunNotFoundError,
    Status,
    StoreLockedError,
    TransitionError,
    step,
    task,
)
from durable.store import LocalStore, MemoryStore
from tests.acceptance.contract_support import make_app, until_status

EXPORTS = ["Durable", "Config", "Limits", "task", "step", "map", "Context", "Handle", "Result", "RERUN", "Retry", "Event",
"RunInfo", "Status", "UserContext", "run_as", "current_user", "sleep", "timeout", "now", "random", "uuid4"]  # fmt: skip


@task(name="contract_add")
async def add(a: int, b: int = 1) -> int:
    return a + b


@task(name="contract_wait_go")
async def wait_go(ctx: Context) -> Any:
    return await ctx.wait_for("go")


@task(name="contract_nested_start")
async def nested_start() -> str:
    return (await add.start(1, b=2)).run_id


@task(name="contract_boom")
async def boom() -> None:
    raise ValueError("boom")


@pytest.mark.parametrize("name", EXPORTS)
def test_the_package_exports(name: str) -> None:
    """Each name of the page is exported by `durable` itself."""
    assert hasattr(durable, name) and name in durable.__all__


def test_every_error_is_exported() -> None:
    """No error has to be imported from a subpackage."""
    for name, found in vars(durable.errors).items():
        if inspect.isclass(found) and issubclass(found, durable.DurableError):
            assert getattr(durable, name) is found


def test_parameters_of_durable() -> None:
    """The parameters and their defaults are those of the page; all but the target go by keyword."""
    found = inspect.signature(Durable).parameters
    assert {name: found[name].default for name in ("target", "limits", "config", "observers", "execute", "test_mode")} == {
        "target": "./.durable", "limits": Limits(), "config": Config(), "observers": (), "execute": True, "test_mode": False,
    }  # fmt: skip
    assert all(each.kind is each.KEYWORD_ONLY for name, each in found.items() if name != "target")


async def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Durable()` keeps its log and database under ./.durable."""
    monkeypatch.chdir(tmp_path)
    async with Durable() as app:
        assert await (await app.start(add, 1)).wait() == 2
    assert (tmp_path / ".durable").is_dir()


@pytest.mark.parametrize("kind", ["str", "path", "local", "memory"])
async def test_targets(tmp_path: Path, kind: str) -> None:
    """A folder as text or path, and both stores, are targets."""
    folder = tmp_path / "deep" / "store"
    targets: dict[str, Any] = {"str": str(folder), "path": folder, "local": LocalStore(folder), "memory": MemoryStore()}
    async with Durable(targets[kind]) as app:
        handle = await app.start(add, 1, b=5)
        assert isinstance(handle, Handle) and await handle == 6


async def test_open_and_close_do_the_same_as_async_with() -> None:
    """After `close` nothing can be started, and closing again is no error."""
    app = Durable(MemoryStore())
    await app.open()
    assert await (await add.start(1)).wait() == 2
    await app.close()
    await app.close()
    with pytest.raises(AppNotOpenError):
        await app.start(add, 1)


@pytest.mark.parametrize("closed", [False, True])
async def test_nothing_can_be_asked_of_what_is_not_open(closed: bool) -> None:
    """Before `open` and after `close` each question is the same clear error."""
    app = Durable(MemoryStore())
    if closed:
        async with app:
            pass
    with pytest.raises(AppNotOpenError):
        await app.get("0" * 32)
    with pytest.raises(AppNotOpenError):
        await app.find("key")
    with pytest.raises(AppNotOpenError):
        await app.stats()
    with pytest.raises(AppNotOpenError):
        [info async for info in app.runs()]
    with pytest.raises(AppNotOpenError):
        [info async for info in app.dead_letters.list()]


@pytest.mark.parametrize("kind", ["memory", "folder"])
async def test_opening_recovers(tmp_path: Path, kind: str) -> None:
    """A run that had not ended when its application closed goes on at the next open."""
    store: Any = MemoryStore() if kind == "memory" else tmp_path
    async with Durable(store) as app:
        handle = await app.start(wait_go)
        await until_status(handle, "running")
    async with Durable(store) as app:
        again = await app.get(handle.run_id)
        await again.send("go", "x")
        assert await again.wait(timeout=5) == "x"


async def test_an_exception_in_the_block_closes(tmp_path: Path) -> None:
    """The folder is free again after the block was left by an exception; while it is open a second open is refused."""
    with pytest.raises(ZeroDivisionError):
        async with Durable(tmp_path):
            with pytest.raises(StoreLockedError):
                await Durable(tmp_path).open()
            1 / 0
    async with Durable(tmp_path):
        pass


async def test_none_or_several_open_is_a_clear_error() -> None:
    """`task.start` needs exactly one open application, except in a run, where it is the run's own."""
    with pytest.raises(AppNotOpenError, match="async with Durable"):
        await add.start(1)
    async with Durable(MemoryStore()) as first, Durable(MemoryStore()) as second:
        with pytest.raises(AmbiguousAppError):
            await add.start(1)
        run_id = await (await second.start(nested_start))
        assert await (await second.get(run_id)) == 3
        with pytest.raises(RunNotFoundError):
            await first.get(run_id)


async def test_a_step_starts_on_the_application_of_its_run() -> None:
    """Inside a step, too, the current application is the run's."""

    @step
    async def starter(n: int) -> str:
        return (await add.options(key="from a step").start(n)).run_id

    @task(name="contract_step_starts")
    async def outer() -> str:
        return await starter(3)

    async with Durable(MemoryStore()), Durable(MemoryStore()) as second:
        run_id = await (await second.start(outer))
        assert await (await second.get(run_id)) == 4


@pytest.mark.parametrize("run_id", ["nope", "", "0" * 32])
async def test_an_unknown_id(tmp_path: Path, run_id: str) -> None:
    """Whatever is asked about an unknown id is `RunNotFoundError`; an unknown key is None."""
    async with Durable(tmp_path) as app:
        assert await app.find("nope") is None
        with pytest.raises(RunNotFoundError):
            await app.get(run_id)
        with pytest.raises(RunNotFoundError):
            await app.dead_letters.retry(run_id)
        with pytest.raises(RunNotFoundError):
            await app.dead_letters.discard(run_id)
        with pytest.raises(RunNotFoundError):
            [event async for event in app.subscribe(run_id)]


@pytest.mark.parametrize("kind", ["memory", "folder"])
async def test_runs_are_listed(tmp_path: Path, kind: str) -> None:
    """`app.runs` filters by status (name, member or several), task and user, and pages with `limit` and `after`."""
    async with make_app(kind, tmp_path) as app:
        done = [await app.start(add, n) for n in range(5)]
        await asyncio.gather(*(handle.wait() for handle in done))
        waiting = await wait_go.options(user="ann").start()
        failed = await app.start(boom)
        with pytest.raises(RunFailedError):
            await failed
        found = [info async for info in app.runs(status="completed")]
        assert [info.run_id for info in found] == [handle.run_id for handle in done]
        assert all(isinstance(info, RunInfo) for info in found)
        assert len([info async for info in app.runs(status=Status.COMPLETED)]) == 5
        assert len([info async for info in app.runs(status=["completed", Status.FAILED])]) == 6
        assert len([info async for info in app.runs(task=add)]) == 5
        assert len([info async for info in app.runs(task="contract_add", limit=2)]) == 2
        assert [info.run_id async for info in app.runs(user="ann")] == [waiting.run_id]
        everything = [info.run_id async for info in app.runs()]
        paged: list[str] = []
        while page := [info.run_id async for info in app.runs(limit=3, after=paged[-1] if paged else None)]:
            paged += page
        assert paged == everything and len(paged) == 7
        assert (await app.stats()).running == 1


async def test_lifespan_for_starlette() -> None:
    """`Starlette(lifespan=app.lifespan)` opens and closes the application by the ASGI protocol."""
    app = Durable(MemoryStore())
    web = Starlette(lifespan=app.lifespan)
    sent: asyncio.Queue[Any] = asyncio.Queue()
    received: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    server = asyncio.create_task(web(scope, sent.get, received.put))
    await sent.put({"type": "lifespan.startup"})
    assert (await received.get())["type"] == "lifespan.startup.complete"
    assert await (await app.start(add, 2)) == 3
    await sent.put({"type": "lifespan.shutdown"})
    assert (await received.get())["type"] == "lifespan.shutdown.complete"
    await server
    with pytest.raises(AppNotOpenError):
        await app.start(add, 1)


async def test_lifespan_within_another() -> None:
    """A lifespan of one's own can use it."""
    app = Durable(MemoryStore())

    @asynccontextmanager
    async def lifespan(web: object) -> AsyncIterator[None]:
        async with app.lifespan(web):
            yield

    async with lifespan(None):
        assert await (await add.start(2)) == 3


async def test_subscribe_is_events_by_key() -> None:
    """`app.subscribe` takes a key or an id, and `after`."""
    async with Durable(MemoryStore()) as app:
        handle = await add.options(key="the key").start(1)
        direct = [event async for event in handle.events()]
        assert [event async for event in app.subscribe("the key")] == direct
        assert [event async for event in app.subscribe(handle.run_id)] == direct
        assert [event async for event in app.subscribe("the key", after=direct[0].seq)] == direct[1:]


async def test_dead_letters(tmp_path: Path) -> None:
    """A run that failed for good is one over restarts until it is retried or discarded."""
    mended = False

    @task(name="contract_dead_letter", retry=2)
    async def fails() -> int:
        if not mended:
            raise NonRetryableError("no")
        return 3

    async with Durable(tmp_path) as app:
        first, second = await app.start(fails), await app.start(fails)
        for handle in (first, second):
            with pytest.raises(RunFailedError):
                await handle
    async with Durable(tmp_path) as app:
        assert [letter.run_id async for letter in app.dead_letters.list()] == [first.run_id, second.run_id]
        mended = True
        await app.dead_letters.retry(first.run_id)
        assert await (await app.get(first.run_id)) == 3
        await app.dead_letters.discard(second.run_id)
        assert [letter async for letter in app.dead_letters.list()] == []
        assert await (await app.get(second.run_id)).status() == "failed"
        with pytest.raises(TransitionError):
            await app.dead_letters.discard(second.run_id)


async def test_handles_of_one_run_are_equal() -> None:
    """The handle that `start`, `get` and `find` give for one run is the same one, as far as `==` and sets tell."""
    async with Durable(MemoryStore()) as app:
        handle = await add.options(key="k").start(1)
        same = {handle, await app.get(handle.run_id), await app.find("k"), await add.options(key="k").start(1)}
        assert same == {handle} and handle != await add.start(1)
