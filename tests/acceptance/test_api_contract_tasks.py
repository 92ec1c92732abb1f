"""The contract, section *Tasks and steps*: decorators, retries, timeouts, identity, children, generators."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durable import (
    Context,
    DefinitionError,
    DuplicateTaskError,
    Durable,
    DurableError,
    NonRetryableError,
    Result,
    Retry,
    RunFailedError,
    RunTimedOutError,
    step,
    task,
)
from durable.store import MemoryStore
from tests.acceptance.contract_support import make_app

FAST = Retry(2, delay=0.001)


@pytest.fixture(params=["memory", "folder"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Durable]:
    async with make_app(request.param, tmp_path) as opened:
        yield opened


@dataclass
class Page:
    url: str
    links: list[str]


@dataclass
class Report:
    url: str
    links: int


@dataclass
class Tick:
    n: int


class DeclinedError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"declined with {code}")
        self.code = code


@step(retry=Retry(5, delay=0.1, factor=2, max_delay=5), timeout=20)
async def contract_fetch(url: str) -> Page:
    return Page(url, ["a", "b"])


@step
def contract_plain_step(n: int) -> bool:
    return threading.current_thread() is threading.main_thread()


@task(timeout=60, retry=3)
async def contract_crawl(ctx: Context, url: str) -> Report:
    page = await contract_fetch(url)
    return Report(url, len(page.links))


@task
def contract_plain_task(ctx: Context, n: int) -> tuple[str, bool]:
    ctx.emit_nowait("from the thread", n)
    return ctx.run_id, threading.current_thread() is threading.main_thread()


@task()
async def contract_calls_plain_step() -> bool:
    return await contract_plain_step(4)


def test_parameters_of_the_decorators() -> None:
    """`@task` and `@step` take what the page names, `Retry` has its defaults."""
    found = inspect.signature(task).parameters
    names = "name version timeout retry delay key priority auto_recover max_recoveries recovery validate"
    assert set(names.split()) <= set(found) and found["auto_recover"].default is True
    assert set("name retry timeout codec isolate".split()) <= set(inspect.signature(step).parameters)  # noqa: SIM905
    retry = Retry(3)
    assert (retry.max_attempts, retry.delay, retry.factor, retry.max_delay, retry.jitter, retry.unless) == (
        3,
        1,
        2,
        60,
        0,
        (),
    )


async def test_the_page_s_example(app: Durable) -> None:
    """A task with a context and a typed step gives its typed result; the context is not part of what callers pass."""
    assert await (await contract_crawl.start("u")) == Report("u", 2)
    assert await (await app.start(contract_crawl, url="u")) == Report("u", 2)


async def test_plain_functions_run_in_a_thread(app: Durable) -> None:
    """`@task` and `@step` on a plain `def` do not run on the loop; such a task may still emit."""
    handle = await contract_plain_task.start(3)
    assert tuple(await handle) == (handle.run_id, False)
    assert ("from the thread", 3) in [(event.name, event.data) async for event in handle.events()]
    assert await (await contract_calls_plain_step.start()) is False


async def test_outside_a_run_they_are_plain_functions() -> None:
    """Unit tests need no engine: a call runs the function, a context included."""
    assert await contract_fetch("x") == Page("x", ["a", "b"])
    assert await contract_crawl("x") == Report("x", 2)

    @task(name="contract_plain_generator")
    async def ticks(n: int) -> AsyncIterator[Any]:
        for i in range(n):
            yield Tick(i)
        yield Result("end")

    assert await ticks(2) == "end"
    assert [each async for each in ticks(2)] == [Tick(0), Tick(1), Result("end")]  # type: ignore[attr-defined]
    assert await asyncio.create_task(ticks(1)) == "end"  # type: ignore[arg-type]


async def test_step_wraps_what_is_defined_elsewhere(app: Durable) -> None:
    """`step(fn)`, `step("name", fn)`, also of partials, lambdas, methods and builtins, and wrapped anew for each call."""

    class Adder:
        def __init__(self, by: int) -> None:
            self.by = by

        async def add(self, n: int) -> int:
            return n + self.by

    async def plus_one(n: int) -> int:
        return n + 1

    adder = Adder(10)

    @task(name="contract_wraps")
    async def body() -> list[int]:
        direct = [await step(plus_one)(1), await step("named", plus_one)(2), await step("length", len)([1, 2])]
        wrapped = [await step("partial", functools.partial(plus_one))(n) for n in (1, 2)]
        methods = [await step("method", adder.add)(n) for n in (1, 2)]
        lambdas = [await step("lambda", lambda n: 2 * n)(n) for n in (1, 2)]
        return direct + wrapped + methods + lambdas

    handle = await body.start()
    assert await handle == [2, 3, 2, 2, 3, 11, 12, 2, 4]
    steps = [event.data["step"] async for event in handle.events(steps=True) if event.name == "step:completed"]
    assert steps == ["plus_one", "named", "length", *["partial"] * 2, *["method"] * 2, *["lambda"] * 2]


async def test_a_step_may_be_defined_in_the_body(app: Durable) -> None:
    """A nested step that is defined again in each turn of a loop is the same step; the attempt after has its results."""
    ran: list[int] = []

    @task(name="contract_nested_steps", retry=FAST)
    async def body(ctx: Context) -> list[int]:
        found = []
        for i in range(3):

            @step
            async def inner(n: int) -> int:
                ran.append(n)
                return n

            found.append(await inner(i))
        if ctx.attempt == 1:
            raise ValueError("again")
        return found

    assert await (await body.start()) == [0, 1, 2]
    assert ran == [0, 1, 2]


async def test_two_step_functions_of_one_name(app: Durable) -> None:
    """They are `DuplicateStepError` in one run."""

    async def one() -> int:
        return 1

    async def two() -> int:
        return 2

    @task(name="contract_duplicate_steps")
    async def body() -> None:
        await step("same", one)()
        await step("same", two)()

    with pytest.raises(RunFailedError) as caught:
        await (await body.start())
    assert caught.value.error_type == "durable.errors.DuplicateStepError"


def test_names_of_tasks() -> None:
    """A name is the function's; a second function of it is refused, a lambda has none, the same function again replaces with a warning."""
    assert contract_crawl.name == contract_crawl.__name__ == "contract_crawl"

    @task(name="contract_duplicate")
    async def first() -> None: ...

    with pytest.raises(DuplicateTaskError):

        @task(name="contract_duplicate")
        async def second() -> None: ...

    for nameless in (lambda n: n, functools.partial(max, 1)):
        with pytest.raises(DurableError, match="name="):
            task(nameless)
        with pytest.raises(DurableError, match="name="):
            step(nameless)
    with pytest.raises(DefinitionError):
        task(first)
    cell = "from durable import task\n@task\nasync def contract_cell(x: int) -> int:\n    return x + {}\n"
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell.format(1), "<cell 1>", "exec"), space)
    with pytest.warns(UserWarning, match="contract_cell"):
        exec(compile(cell.format(2), "<cell 2>", "exec"), space)


async def test_a_timeout_bounds_one_attempt(app: Durable) -> None:
    """An attempt that timed out is retried; a run whose last attempt did is `timed_out`, one that failed after is `failed`."""

    @task(name="contract_times_out", timeout=timedelta(milliseconds=40), retry=FAST)
    async def body(ctx: Context, kind: str) -> int:
        if kind == "always" or ctx.attempt == 1:
            await asyncio.sleep(60)
        if kind == "then fail":
            raise ValueError("x")
        return ctx.attempt

    assert await (await body.start("once")) == 2
    late = await body.start("always")
    with pytest.raises(RunTimedOutError):
        await late
    assert await late.status() == "timed_out" and (await late.info()).closed
    assert [event.name async for event in late.events()] == ["created", "started", "retrying", "started", "timed_out"]
    failed = await body.start("then fail")
    with pytest.raises(RunFailedError):
        await failed
    assert await failed.status() == "failed"


async def test_a_step_s_timeout_may_be_retried_and_is_a_timeout_error(app: Durable) -> None:
    """`timeout` of a step bounds each of its tries."""
    tries: list[int] = []

    @step(timeout=0.02, retry=Retry(2, delay=timedelta(milliseconds=1)))
    async def slow() -> None:
        tries.append(1)
        await asyncio.sleep(60)

    @task(name="contract_step_timeout")
    async def body() -> str:
        try:
            await slow()
        except TimeoutError:
            return "timed out"
        return "?"

    assert await (await body.start()) == "timed out"
    assert len(tries) == 2


@pytest.mark.parametrize(("kind", "tries"), [("own", 1), ("subclass", 1), ("unless", 1), ("other", 4)])
async def test_what_ends_the_attempts_at_once(kind: str, tries: int) -> None:
    """`NonRetryableError`, a subclass of it, and a class in `Retry(unless=...)`, for steps and for tasks."""
    ran = {"step": 0, "task": 0}

    class OwnError(NonRetryableError):
        pass

    errors = {
        "own": NonRetryableError("x"),
        "subclass": OwnError("x"),
        "unless": KeyError("x"),
        "other": ValueError("x"),
    }
    policy = Retry(4, delay=0.001, unless=(LookupError,))

    @step(retry=policy)
    async def fails() -> None:
        ran["step"] += 1
        raise errors[kind]

    @task(name="contract_ends_at_once")
    async def by_step() -> None:
        await fails()

    @task(name="contract_ends_at_once_itself", retry=policy)
    async def by_task() -> None:
        ran["task"] += 1
        raise errors[kind]

    async with Durable(MemoryStore()):
        for each in (by_step, by_task):
            with pytest.raises(RunFailedError):
                await (await each.start())
    assert ran == {"step": tries, "task": tries}


async def test_a_step_s_error_is_raised_as_it_was(app: Durable) -> None:
    """The body gets the original class with its attributes, live and on replay, a class inside a function included."""

    class LocalError(Exception):
        pass

    seen: list[Any] = []

    @step
    async def fails(kind: str) -> None:
        raise {"own": DeclinedError(code=7), "local": LocalError("inside"), "os": OSError(2, "nope", "file")}[kind]

    @task(name="contract_original_errors", retry=FAST)
    async def body(ctx: Context) -> None:
        for kind in ("own", "local", "os"):
            try:
                await fails(kind)
            except Exception as error:  # noqa: BLE001
                seen.append((type(error), str(error), getattr(error, "code", None)))
        if ctx.attempt == 1:
            raise ValueError("again")

    await (await body.start())
    once = [
        (DeclinedError, "declined with 7", 7),
        (LocalError, "inside", None),
        (FileNotFoundError, "[Errno 2] nope: 'file'", None),
    ]
    assert seen == once * 2


async def test_a_task_retry_keeps_completed_steps(app: Durable) -> None:
    """It runs those again that failed; a step is known by name, arguments and how often it was called so."""
    ran: list[Any] = []

    @step
    async def count(n: int) -> int:
        ran.append(n)
        if n == 3 and ran.count(3) == 1:
            raise ValueError("first time")
        return len(ran)

    @task(name="contract_retry_keeps", retry=FAST)
    async def body() -> list[int]:
        return [await count(1), await count(1), await count(2), await count(3)]

    assert await (await body.start()) == [1, 2, 3, 5]
    assert ran == [1, 1, 2, 3, 3]


async def test_plain_asyncio_replays_the_same_way(app: Durable) -> None:
    """`gather`, `TaskGroup`, `as_completed`, `wait` and `timeout` come out in the second attempt as in the first."""
    seen: list[Any] = []
    ran: list[int] = []

    @step
    async def work(n: int) -> int:
        ran.append(n)
        await asyncio.sleep(0.002 * (5 - n))
        return n

    @task(name="contract_asyncio", retry=FAST)
    async def body(ctx: Context) -> None:
        gathered = await asyncio.gather(*(work(n) for n in range(5)))
        async with asyncio.TaskGroup() as group:
            grouped = [group.create_task(work(n)) for n in range(5)]
        order = [await each for each in asyncio.as_completed([work(n) for n in range(5)])]
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(work(n)) for n in (0, 4)], return_when="FIRST_COMPLETED"
        )
        first = [each.result() for each in done]
        await asyncio.gather(*pending)
        async with asyncio.timeout(5):
            await work(1)
        seen.append((gathered, [each.result() for each in grouped], order, first))
        if ctx.attempt == 1:
            raise ValueError("again")

    await (await body.start())
    assert seen[0] == seen[1] and len(ran) == 18
