"""Calling tasks and steps as the plain functions that they are, where there is no run.

Law: nothing is recorded; unit tests need no engine.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
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


async def call_plain(task: TaskDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a task's function; of a generator, the value of the `Result` that it yields."""
    facts = task.facts
    args = _with_context(facts, task.name, args, kwargs)
    if facts.shape != "generator":
        return await run_function(facts, args, kwargs)
    async with aclosing(facts.function(*args, **kwargs)) as values:
        async for value in values:
            if isinstance(value, Result):
                return value.value
    return None
