"""Running a body: from the stored input to the record of how it ended.

Law: a body ends in exactly one command: complete, fail, suspend, or none where the engine itself stopped it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from durable.clock import fraction_of
from durable.core.commands import Complete, Fail
from durable.core.memo import Divergence
from durable.core.status import Status
from durable.engine.execution import Execution
from durable.engine.scopes import StepScope
from durable.errors import (
    LogFencedError,
    NonRetryableError,
    PayloadError,
    ShuttingDownError,
    StorageError,
    TransitionError,
    ValidationError,
)
from durable.tasks.context import Context, check_event_name, event_name
from durable.tasks.definition import RERUN, FunctionFacts, Result
from durable.tasks.failure import describe
from durable.tasks.host import current_scope

_UNNAMED = (type(None), bool, int, float, str, bytes, list, tuple, dict, set)


async def run_body(execution: Execution) -> None:
    """Run one attempt to its end and stage what came of it."""
    execution.body = asyncio.current_task()
    run = execution.entry.run
    limit = None if run.timeout is None else asyncio.timeout(run.timeout)
    try:
        if limit is None:
            payload = _encoded(execution, await _call(execution))
        else:
            async with limit:
                payload = _encoded(execution, await _call(execution))
    except asyncio.CancelledError as error:
        if execution.interrupted:
            return
        _fail(execution, error)
    except TimeoutError as error:
        if limit is not None and limit.expired():
            late = f"attempt {run.attempt} took longer than the run's timeout of {run.timeout} s"
            _fail(execution, TimeoutError(late), timed_out=True)
        else:
            _fail(execution, error)
    except (LogFencedError, asyncio.InvalidStateError):
        return  # the store is gone: the next process goes on with this run
    except (KeyboardInterrupt, SystemExit):
        raise  # meant for the process, not for the run, which goes on in the next one
    except BaseException as error:  # noqa: BLE001 - whatever else a body raises is its outcome
        _fail(execution, error)
    else:
        leftover = execution.memo.leftover()
        if leftover and not execution.manual:
            execution.park(Divergence(leftover, (), "calls were removed: the body ended without them"))
        elif run.status is Status.RUNNING and not execution.interrupted:
            _stage(execution, Complete(payload))
    finally:
        await execution.finish()


def _encoded(execution: Execution, value: Any) -> bytes:
    definition = execution.definition
    return execution.services.codec.encode(value, definition.facts.returns, f"the result of task {definition.name!r}")


def _fail(execution: Execution, error: BaseException, timed_out: bool = False) -> None:
    """Record that the attempt failed, unless the run is no longer the body's to end."""
    run = execution.entry.run
    if run.status is not Status.RUNNING or execution.interrupted:
        return
    policy = execution.definition.retry
    final = isinstance(error, NonRetryableError | PayloadError | ValidationError) or not policy.allows(error)
    failure = describe(error, execution.services.codec)
    fraction = fraction_of(execution.services.entropy.token_bytes(7)) if run.retry.jitter else 0.0
    _stage(execution, Fail(failure, not final, timed_out, fraction))


def _stage(execution: Execution, command: Complete | Fail) -> None:
    try:
        execution.services.pipeline.stage(execution.entry, command)
    except (StorageError, ShuttingDownError, TransitionError):
        return  # the store failed or is closed, or somebody ended the run first: there is nothing more to say


async def _call(execution: Execution) -> Any:
    definition, services = execution.definition, execution.services
    arguments = services.codec.decode(execution.entry.run.input, definition.facts.input_hint)
    if not isinstance(arguments, dict):
        raise PayloadError(f"the stored input of run {execution.run_id} is no mapping of arguments")
    execution.input = arguments
    execution.context = Context(execution)
    args, kwargs = definition.facts.call_arguments(arguments, definition.name)
    if execution.recovered and definition.recovery is not None:
        scope = StepScope(
            services.host,
            services.clock,
            services.entropy,
            execution.run_id,
            ("recovery", b"", 0),
            "a recovery handler",
        )
        token = current_scope.set(scope)
        try:
            value = await services.invoker.call(
                definition.recovery, _arguments(execution, definition.recovery, args), kwargs
            )
        finally:
            current_scope.reset(token)
        if value is not RERUN:
            execution.manual = True  # the handler answers for what is recorded
            return value
    current_scope.set(execution)
    if definition.facts.shape == "generator":
        return await _generate(execution, _arguments(execution, definition.facts, args), kwargs)
    return await services.invoker.call(definition.facts, _arguments(execution, definition.facts, args), kwargs)


def _arguments(execution: Execution, facts: FunctionFacts, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (execution.context, *args) if facts.takes_context else args


async def _generate(execution: Execution, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an async generator: each value that it yields is an event, a `Result` ends it."""
    generator = execution.definition.facts.function(*args, **kwargs)
    try:
        async for value in generator:
            if isinstance(value, Result):
                return value.value
            if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and type(value) is tuple:
                await execution.emit(check_event_name(value[0]), value[1], False)
            else:
                name = "progress" if type(value) in _UNNAMED else check_event_name(event_name(value))
                await execution.emit(name, value, False)
    finally:
        await generator.aclose()
    return None
