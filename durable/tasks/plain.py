"""Calling tasks and steps as the plain functions that they are, where there is no run.

Law: nothing is recorded; unit tests need no engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import aclosing
from types import TracebackType
from typing import Any

from durable.tasks.context import Context, Detached
from durable.tasks.definition import FunctionFacts, Result, StepDefinition, TaskDefinition


async def run_function(facts: FunctionFacts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Await the function, or run it in a thread when it is a plain `def`."""
    if facts.shape == "coroutine":
        return await facts.function(*args, **kwargs)
    return await asyncio.to_thread(facts.function, *args, **kwargs)


def _with_context(facts: FunctionFacts, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Put a detached context in front, unless the caller of a unit test passed one."""
    if not facts.takes_context or (args and isinstance(args[0], Context)):
        return args
    try:
        arguments = facts.signature.bind(*args, **kwargs).arguments
    except TypeError:
        arguments = {}  # the function itself will say what is wrong
    return (Context[Any](Detached(name, arguments)), *args)


async def call_plain_step(step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a step's function."""
    return await run_function(step.facts, _with_context(step.facts, step.name, args, kwargs), kwargs)


def call_plain(task: TaskDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
    """Call a task's function."""
    facts = task.facts
    args = _with_context(facts, task.name, args, kwargs)
    if facts.shape != "generator":
        return run_function(facts, args, kwargs)
    return PlainGenerator(facts.function(*args, **kwargs))


class PlainGenerator(Coroutine[Any, Any, Any]):
    """A generator task called as a plain function: `async for` gives what it yields, `await` the value of its `Result`."""

    def __init__(self, values: AsyncGenerator[Any, None]) -> None:
        self._values = values
        self._awaited: Coroutine[Any, Any, Any] | None = None

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        return self._values

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._result().__await__()

    def send(self, value: Any) -> Any:
        """Go on, as `asyncio` does with a coroutine."""
        self._awaited = self._awaited or self._result()
        return self._awaited.send(value)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:
        """Raise in it, as `asyncio` does to cancel."""
        self._awaited = self._awaited or self._result()
        return self._awaited.throw(kind if value is None else value)

    def close(self) -> None:
        """End it."""
        if self._awaited is not None:
            self._awaited.close()

    async def _result(self) -> Any:
        async with aclosing(self._values) as values:
            async for value in values:
                if isinstance(value, Result):
                    return value.value
        return None
