"""Right definitions: what `@task` and `@step` keep of a signature, on every kind of function."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, assert_type

from durable import RERUN, Context, Durable, Handle, NonRetryableError, Result, Retry, step, task
from durable.store import MemoryStore

T = TypeVar("T")


@dataclass
class Tick:
    n: int


@dataclass
class Done:
    total: int


# --- tasks: bare, with arguments, async def, plain def, generator ---------------------------------------------------------------


@task
async def bare(n: int, *, label: str = "") -> str:
    return f"{label}{n}"


@task(timeout=60, retry=3)
async def with_arguments(ctx: Context, url: str) -> int:
    return len(url) + ctx.attempt


@task
async def with_events(ctx: Context[Tick | Done], n: int) -> int:
    return n


@task
def plain(name: str) -> str:
    return name.upper()


@task(version=2)
def plain_with_context(ctx: Context, name: str) -> str:
    return name + ctx.task_name


@task
async def nothing() -> None: ...


@task
async def anything(value: object, times: int = 1) -> str:
    return repr(value) * times


@task
async def untyped(value: Any, times: int = 1) -> str:
    return repr(value) * times


@task
async def variadic(first: int, *rest: int, **named: str) -> int:
    return first + sum(rest) + len(named)


@task
async def ticking(n: int) -> AsyncIterator[Tick]:
    for i in range(n):
        yield Tick(i)


@task(name="counting")
async def counting(ctx: Context[Tick], n: int) -> AsyncIterator[Tick | Result[int]]:
    yield Tick(n)
    yield Result(n + ctx.attempt)


@task
async def generating(n: int) -> AsyncGenerator[Result[str], None]:
    yield Result(str(n))


@task
async def listed(query: dict[str, Any]) -> list[Any]:
    return list(query)


@task
async def open_ended(ctx: Context, query: dict[str, Any]) -> dict[str, Any]:
    return {**query, "attempt": ctx.attempt}


async def recover(ctx: Context, url: str) -> int | object:
    return RERUN if ctx.recovered else len(url)


def key_of(url: str) -> str:
    return f"crawl:{url}"


async def check(url: str) -> bool:
    return url.startswith("https://")


@task(
    name="everything",
    version="1.2",
    timeout=timedelta(minutes=1),
    retry=Retry(
        5, delay=0.1, factor=2, max_delay=timedelta(seconds=5), jitter=0.1, unless=(NonRetryableError, KeyError)
    ),
    delay=timedelta(0),
    key=key_of,
    priority=5,
    auto_recover=True,
    max_recoveries=3,
    recovery=recover,
    validate=check,
)
async def everything(url: str) -> int:
    return len(url)


@task(key="auto")
async def automatic(n: int) -> int:
    return n


# --- steps ----------------------------------------------------------------------------------------------------------------------


@step
async def fetch(url: str) -> bytes:
    return url.encode()


@step(name="fetch-more", retry=Retry(5), timeout=20, codec="json", isolate=None)
async def fetch_more(ctx: Context, url: str, *, limit: int = 10) -> list[bytes]:
    return [url.encode()] * (limit * ctx.attempt)


@step(isolate="process")
def crunch(numbers: list[float]) -> float:
    return sum(numbers)


@step(retry=2)
def with_step_context(ctx: Context[Tick], n: int) -> int:
    return n * ctx.attempt


@step
async def describe(value: object) -> str:
    return repr(value)


def elsewhere(path: str, mode: str = "r") -> int:
    return len(path + mode)


async def elsewhere_too(ctx: Context, path: str) -> int:
    return len(path)


wrapped = step(elsewhere)
named = step("read", elsewhere)
named_too = step("read-too", elsewhere_too)
named_lambda = step(name="double")(elsewhere)


class Client:
    """A method may be a step: it is bound like a function."""

    @step
    async def get(self, path: str) -> int:
        return len(path)

    def __repr__(self) -> str:
        return "Client()"


def traced(fn: Callable[[int], Coroutine[Any, Any, T]]) -> Callable[[int], Coroutine[Any, Any, T]]:
    @functools.wraps(fn)
    async def wrapper(n: int) -> T:
        return await fn(n)

    return wrapper


@task(name="traced")
@traced
async def decorated_twice(n: int) -> str:
    return str(n)


# --- calling them as plain functions: always awaited, also what is a plain `def` ------------------------------------------------


async def plain_calls() -> None:
    assert_type(await bare(1, label="x"), str)
    assert_type(await with_arguments("https://example.org"), int)
    assert_type(await with_events(n=3), int)
    assert_type(await plain(name="x"), str)
    assert_type(await plain_with_context("x"), str)
    assert_type(await nothing(), None)
    assert_type(await anything(value=3, times=2), str)
    assert_type(await anything([1]), str)
    repeated: str = await untyped(value=3, times=2)
    assert repeated == "33"
    assert_type(await variadic(1, 2, 3, x="y"), int)
    assert_type(await generating(1), Any)  # what a generator ends with is not known
    opened: dict[str, Any] = await open_ended(query={})  # to mypy it is Any: a Context and another Any in one signature
    assert opened == {"attempt": 1}
    assert_type(await listed({}), list[Any])
    assert_type(await everything("https://example.org"), int)
    assert_type(await decorated_twice(3), str)
    assert_type(await fetch(url="x"), bytes)
    assert_type(await fetch_more("x", limit=1), list[bytes])
    assert_type(await with_step_context(3), int)
    assert_type(await describe(value=None), str)
    assert_type(await wrapped("x", mode="w"), int)
    assert_type(await named(path="x"), int)
    assert_type(await named_too("x"), int)
    assert_type(await named_lambda("x"), int)
    assert_type(await Client().get("x"), int)
    assert_type(await Client().get(path="x"), int)
    counted: int = await counting(3)
    assert counted == 4


async def main() -> None:
    """Run what the checkers accepted."""
    await plain_calls()
    async with Durable(MemoryStore()) as app:
        assert_type(await app.start(bare, 1, label="x"), Handle[str])
        assert_type(await app.start(with_arguments, url="x"), Handle[int])
        assert_type(await app.start(plain, "x"), Handle[str])
        assert_type(await app.start(anything, value=1), Handle[str])
        assert_type(await app.start(variadic, 1, 2, x="y"), Handle[int])
        assert_type(await app.start(nothing), Handle[None])
        assert_type(await app.start(generating, n=1), Handle[Any])
        assert_type(await app.start(listed, query={}), Handle[list[Any]])
        assert_type(await everything.start(url="https://example.org"), Handle[int])
        assert_type(await decorated_twice.start(3), Handle[str])
        handle = await app.start(counting, n=3)
        assert await handle == 4
