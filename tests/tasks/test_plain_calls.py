"""Outside a run a task or a step is the plain function; inside a step other steps are, and tasks are refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

import durable
from durable import (
    AmbiguousAppError,
    AppNotOpenError,
    ConfigError,
    Context,
    Durable,
    Result,
    RunFailedError,
    StepContextError,
    TransitionError,
    UserContext,
    current_user,
    run_as,
    step,
    task,
)
from durable.store import MemoryStore
from durable.tasks.context import ShuttingDown

closed: list[str] = []
variable: ContextVar[str] = ContextVar("variable", default="unset")


@dataclass
class Tick:
    n: int


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Nothing was closed yet."""
    closed.clear()


@step
async def double(n: int) -> int:
    return n * 2


@step
def thread_of(word: str) -> tuple[str, str, str]:
    return word, threading.current_thread().name, variable.get()


@step
async def quadruple(n: int) -> int:
    return await double(await double(n))


@task(name="calls.child")
async def child(n: int) -> int:
    return n + 1


@task(name="calls.parent")
async def parent(ctx: Context, n: int, *, more: int = 0) -> tuple[int, int]:
    return await double(n) + more, ctx.attempt


@task(name="calls.plain")
def plain(ctx: Context[Tick], word: str) -> str:
    ctx.emit_nowait(Tick(1))
    return f"{word} {ctx.task_name} {threading.current_thread() is threading.main_thread()}"


@task(name="calls.counting")
async def counting(ctx: Context, n: int) -> AsyncIterator[int | Result[str]]:
    try:
        for i in range(n):
            yield i
        yield Result(f"counted {n} in attempt {ctx.attempt}")
        yield Result("never")
    finally:
        closed.append("counting")


@task(name="calls.endless")
async def endless(n: int) -> AsyncIterator[int]:
    yield n


# --- without any application ----------------------------------------------------------------------------------------------------


async def test_an_async_function_is_called_as_it_is() -> None:
    """A unit test needs no engine, not even for a task that calls steps and other tasks."""
    assert await double(2) == 4
    assert await quadruple(2) == 8
    assert await child(1) == 2
    assert await parent(3, more=1) == (7, 1)


async def test_a_plain_function_runs_in_a_thread() -> None:
    """It is awaited, too, does not block the loop, and sees the caller's context variables."""
    variable.set("set by the caller")
    word, thread, seen = await thread_of("x")
    assert word == "x"
    assert thread != threading.main_thread().name
    assert seen == "set by the caller"
    assert await plain("hello") == "hello calls.plain False"


async def test_a_call_is_a_coroutine_that_starts_when_it_is_awaited() -> None:
    """Nothing runs before; `create_task` and `gather` take it."""
    call = thread_of("x")
    assert asyncio.iscoroutine(call)
    call.close()
    assert await asyncio.gather(double(1), child(1)) == [2, 2]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(double(4))
    assert running.result() == 8


async def test_a_generator_gives_its_result_and_is_closed() -> None:
    """What it yields before is nobody's; what follows the `Result` does not run."""
    assert await counting(3) == "counted 3 in attempt 1"
    assert closed == ["counting"]
    assert await endless(1) is None


async def test_a_wrong_call_is_the_error_of_the_function() -> None:
    """As with any function, it is a TypeError that names the parameter."""
    with pytest.raises(TypeError, match="nn"):
        await double(nn=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="nn"):
        await parent(nn=1)  # type: ignore[call-arg]


async def test_arguments_are_not_checked_against_annotations() -> None:
    """A unit test may pass a stub of its own, also to a function with a context."""

    class Three:
        def __mul__(self, other: int) -> int:
            return 3 * other

    assert await double(Three()) == 6  # type: ignore[arg-type]
    assert await parent(Three()) == (6, 1)  # type: ignore[arg-type]


async def test_a_context_of_ones_own_may_be_passed() -> None:
    """A unit test that wants to look at what the body does with its context hands one in."""
    seen: list[Context[Any]] = []

    @task
    async def keeps(ctx: Context, n: int) -> int:
        seen.append(ctx)
        return n

    await keeps(1)
    await keeps(seen[0], 2)  # type: ignore[arg-type, call-arg]
    assert seen[0] is seen[1]


async def test_a_detached_context_answers_everything() -> None:
    """It is a first attempt of nobody, what is emitted is dropped, and what would wait for ever is an error."""
    seen: list[Context[Any]] = []

    @task
    async def looks(ctx: Context, n: int, *, flag: bool = False) -> None:
        seen.append(ctx)
        await ctx.emit(Tick(1))
        await ctx.emit("tick", {"n": 1}, ephemeral=True)
        ctx.emit_nowait("tick")
        await ctx.progress(0.5)
        with pytest.raises(durable.ReservedNameError):
            await ctx.emit("completed")
        with pytest.raises(StepContextError, match="wait_for"):
            await ctx.wait_for("answer")
        with pytest.raises(StepContextError, match="shutting_down"):
            await ctx.shutting_down.wait()

    await looks(1, flag=True)
    (ctx,) = seen
    assert ctx.task_name == "looks"
    assert ctx.input == {"n": 1, "flag": True}
    assert (ctx.key, ctx.user, ctx.previous_error, ctx.recovery_reason) == (None, None, None, None)
    assert (ctx.attempt, ctx.max_attempts, ctx.recovered) == (1, 1, False)
    assert ctx.previous_events == ctx.past(Tick) == []
    assert isinstance(ctx.shutting_down, ShuttingDown)
    assert not ctx.shutting_down
    assert ctx.step_key() == ctx.step_key()
    assert ctx.logger.isEnabledFor(50)


async def test_recorded_functions_do_what_their_namesakes_do() -> None:
    """Outside a run there is nothing to record: real time, real chance."""
    await durable.sleep(0)
    assert durable.now().utcoffset() is not None
    assert durable.uuid4() != durable.uuid4()
    assert durable.uuid4().version == 4
    assert 0 <= durable.random() < 1
    with pytest.raises(TimeoutError):
        async with durable.timeout(0):
            await asyncio.Event().wait()
    async with durable.timeout(60) as limit:
        pass
    assert not limit.expired()


async def test_map_keeps_order_and_bounds_concurrency() -> None:
    """At most `limit` calls are under way; the first failure cancels the others and is raised."""
    running: list[int] = []
    most = 0

    async def slow(n: int) -> int:
        nonlocal most
        running.append(n)
        most = max(most, len(running))
        try:
            for _ in range(3 - n % 3):
                await asyncio.sleep(0)
        finally:
            running.remove(n)
        if n == 99:
            raise KeyError(n)
        return n * 10

    assert await durable.map(step(slow), range(20), limit=3) == [n * 10 for n in range(20)]
    assert most == 3
    assert await durable.map(step(slow), []) == []
    with pytest.raises(KeyError):
        await durable.map(step(slow), [1, 99, 2, 3], limit=2)
    assert running == []
    for limit in (0, True, "3"):
        with pytest.raises(ConfigError) as caught:
            await durable.map(step(slow), [1], limit=limit)  # type: ignore[arg-type]
        assert caught.value.key == "limit"


# --- which application ----------------------------------------------------------------------------------------------------------


async def test_start_without_an_open_application_is_an_error() -> None:
    """The error says how to open one."""
    with pytest.raises(AppNotOpenError, match="async with Durable"):
        await child.start(1)
    closed_app = Durable(MemoryStore())
    async with closed_app:
        pass
    with pytest.raises(AppNotOpenError):
        await child.start(1)
    with pytest.raises(AppNotOpenError):
        await closed_app.start(child, 1)


async def test_start_with_several_open_applications_is_an_error() -> None:
    """`app.start` says which one; once one is left, it is meant."""
    async with Durable(MemoryStore()) as one:
        async with Durable(MemoryStore()) as other:
            with pytest.raises(AmbiguousAppError, match=r"app\.start"):
                await child.start(1)
            assert await (await other.start(child, 1)) == 2
        handle = await child.start(5)
        assert (await one.get(handle.run_id)).run_id == handle.run_id


async def test_in_a_run_the_application_is_the_one_of_the_run() -> None:
    """A body starts runs where it runs itself, however many applications are open."""

    @task
    async def starts_another() -> str:
        return (await child.start(1)).run_id

    async with Durable(MemoryStore()), Durable(MemoryStore()) as own:
        run_id = await (await own.start(starts_another))
        assert (await (await own.get(run_id)).info()).task_name == "calls.child"


async def test_only_tasks_can_be_started(app: Durable) -> None:
    """A step or an undecorated function is refused with what to do."""
    for thing in (double, plain.definition.facts.function, "child"):
        with pytest.raises(ConfigError, match="@task") as caught:
            await app.start(thing, 1)  # type: ignore[arg-type]
        assert caught.value.key == "task"


# --- inside steps ---------------------------------------------------------------------------------------------------------------


@step
async def calls_a_task() -> int:
    return await child(1)


@step
async def starts_a_task(key: str | None) -> str:
    return (await child.options(key=key).start(1)).run_id


@step
async def starts_on_the_application(ctx: Context, key: str | None) -> str:
    handle = await apps[0].start(child.options(key=key), 1)
    return handle.run_id


apps: list[Durable] = []


@task(name="calls.runs_step")
async def runs_step(which: str, key: str | None = None) -> Any:
    match which:
        case "quadruple":
            return await quadruple(2)
        case "calls":
            return await calls_a_task()
        case "starts":
            return await starts_a_task(key)
        case _:
            return await starts_on_the_application(key)


async def test_a_step_inside_a_step_is_a_plain_call(app: Durable) -> None:
    """A step is one unit: only the outer one is recorded."""
    handle = await app.start(runs_step, "quadruple")
    assert await handle == 8
    names = [event.data["step"] async for event in handle.events(steps=True) if event.name == "step:completed"]
    assert names == ["quadruple"]


async def test_a_task_inside_a_step_is_refused(app: Durable) -> None:
    """A step may run twice, and would start its children twice."""
    with pytest.raises(RunFailedError, match="options\\(key=") as caught:
        await (await app.start(runs_step, "calls"))
    assert caught.value.error_type == "durable.errors.StepContextError"


@pytest.mark.parametrize("which", ["starts", "starts on the application"])
async def test_a_start_inside_a_step_needs_a_key(app: Durable, which: str) -> None:
    """With a key it starts once, however often the step runs; without one it is refused."""
    apps[:] = [app]
    with pytest.raises(RunFailedError, match="without a key") as caught:
        await (await app.start(runs_step, which))
    assert caught.value.error_type == "durable.errors.StepContextError"
    run_id = await (await app.start(runs_step, which, "k"))
    assert run_id == await (await app.start(runs_step, which, "k"))
    found = await app.find("k")
    assert found is not None
    assert found.run_id == run_id


@task(name="calls.starts_on_its_application")
async def starts_on_its_application(n: int) -> str:
    handle = await apps[0].start(child, n)
    return handle.run_id


async def test_app_start_in_a_body_is_part_of_the_run(app: Durable) -> None:
    """It is the same as `task.start`: started once, also over replay, and the run knows its parent."""
    apps[:] = [app]
    handle = await app.start(starts_on_its_application, 3)
    started = await app.get(await handle)
    assert (await started.info()).parent_id == handle.run_id
    assert [each.run_id for each in await handle.children()] == [started.run_id]


@task(name="calls.thread_calls_a_step")
def thread_calls_a_step() -> None:
    call = double(1)
    call.close()


async def test_a_plain_function_cannot_call_steps_in_a_run(app: Durable) -> None:
    """It has no loop to await them on; the error says to make it `async def`."""
    with pytest.raises(RunFailedError, match="async def"):
        await (await app.start(thread_calls_a_step))


# --- identities -----------------------------------------------------------------------------------------------------------------


@step
async def whose_step() -> str | None:
    identity = current_user()
    return None if identity is None else f"{identity.user} {identity.secrets.get('token')}"


@step
def whose_thread() -> str | None:
    identity = current_user()
    return None if identity is None else identity.user


@task(name="calls.whose_child")
async def whose_child() -> str | None:
    return await whose_step()


@task(name="calls.whose")
async def whose(ctx: Context) -> list[str | None]:
    identity = current_user()
    return [
        ctx.user,
        None if identity is None else identity.user,
        await whose_step(),
        await whose_thread(),
        await whose_child(),
    ]


async def test_run_as_reaches_bodies_steps_threads_and_children(app: Durable) -> None:
    """The run belongs to the user; the secrets are there in memory, and nowhere else."""
    with run_as(UserContext("ann", {"token": "t0ken"})):
        handle = await app.start(whose)
    assert current_user() is None
    assert await handle == ["ann", "ann", "ann t0ken", "ann", "ann t0ken"]
    assert (await handle.info()).user == "ann"
    told = [repr(event) async for event in handle.events(steps=True) if event.name != "step:completed"]
    assert "t0ken" not in "".join(told[:2])


async def test_without_run_as_there_is_nobody(app: Durable) -> None:
    """`user=` owns a run, but brings no identity."""
    assert await (await app.start(whose)) == [None, None, None, None, None]
    assert (await (await app.start(whose.options(user="bob"))))[0] == "bob"


async def test_run_as_nests_and_ends_with_its_block() -> None:
    """The inner one counts, and the outer one comes back."""
    with run_as(UserContext("ann")), run_as(UserContext("bob")) as inner:
        assert current_user() is inner
    assert current_user() is None
    assert await whose_step() is None
    with run_as(UserContext("ann", {"token": "x"})):
        assert await whose_step() == "ann x"
        assert await whose_thread() == "ann"


def test_run_as_needs_an_identity() -> None:
    """A name alone would be taken for one."""
    with pytest.raises(ConfigError) as caught, run_as("ann"):  # type: ignore[arg-type]
        pass
    assert caught.value.key == "identity"


def test_secrets_are_not_shown() -> None:
    """An identity that ends up in a log or a traceback does not tell them."""
    assert "t0ken" not in repr(UserContext("ann", {"token": "t0ken"}))


async def test_a_body_that_ended_starts_nothing_more(app: Durable) -> None:
    """What a body left running behind its back is refused, not recorded into a run that has ended."""
    left: list[asyncio.Task[None]] = []
    late: list[BaseException] = []
    ended = asyncio.Event()

    @task
    async def leaves_work() -> None:
        async def work() -> None:
            await ended.wait()
            try:
                await double(1)
            except TransitionError as error:
                late.append(error)

        left.append(asyncio.create_task(work()))

    handle = await app.start(leaves_work)
    await handle
    ended.set()
    await left[0]
    assert handle.run_id in str(late[0])
