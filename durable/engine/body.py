"""Running a body: from the stored input to the record of how it ended.

Law: a body ends in exactly one command: complete, fail, suspend, or none where the engine itself stopped it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from durable.clock import fraction_of
from durable.core.commands import Fail
from durable.core.memo import Divergence
from durable.engine.execution import Execution
from durable.errors import (
    DefinitionError,
    LimitError,
    LogFencedError,
    NonRetryableError,
    PayloadError,
    ShuttingDownError,
    StorageError,
    TransitionError,
    ValidationError,
)
from durable.tasks.child import found_children, holds_children, resolve
from durable.tasks.context import Context, check_event_name, event_name
from durable.tasks.definition import RERUN, FunctionFacts, Result
from durable.tasks.failure import describe
from durable.tasks.host import current_scope

#: Errors that no further attempt can mend.
_FINAL = (NonRetryableError, PayloadError, ValidationError, LimitError)
_UNNAMED = (type(None), bool, int, float, str, bytes, list, tuple, dict, set)


async def run_body(execution: Execution) -> bool:
    """Run one attempt to its end and stage what came of it; True where the recovery handler asks for the body instead."""
    execution.body = asyncio.current_task()
    run = execution.entry.run
    left = None if execution.expires_at is None else max(0.0, execution.expires_at - execution.services.clock.now())
    limit = None if left is None else asyncio.timeout(left)
    try:
        if limit is None:
            return await _lived(execution)
        async with limit:
            return await _lived(execution)
    except asyncio.CancelledError as error:
        if not execution.interrupted:
            _fail(execution, error)
    except TimeoutError as error:
        if limit is not None and limit.expired():
            late = f"attempt {run.attempt} took longer than the run's timeout of {run.timeout} s"
            _fail(execution, TimeoutError(late), timed_out=True)
        else:
            _fail(execution, error)
    except (LogFencedError, asyncio.InvalidStateError):
        pass  # the store is gone: the next process goes on with this run
    except (KeyboardInterrupt, SystemExit):
        raise  # meant for the process, not for the run, which goes on in the next one
    except BaseException as error:  # noqa: BLE001 - whatever else a body raises is its outcome
        _fail(execution, error)
    finally:
        await execution.finish()
    return False


async def _lived(execution: Execution) -> bool:
    value = await _call(execution)
    if execution.handling and value is RERUN:
        return True
    await _returned(execution, value)
    return False


async def _returned(execution: Execution, value: Any) -> None:
    """Record what the body returned, and start the children in it."""
    leftover = execution.memo.leftover()
    if leftover and not execution.manual:
        execution.park(Divergence(leftover, (), "calls were removed: the body ended without them"))
        return
    services, definition = execution.services, execution.definition
    facts, what = definition.facts, f"the result of task {definition.name!r}"
    if execution.coordinating:
        assert isinstance(definition.on_children_complete, FunctionFacts)
        facts, what = definition.on_children_complete, f"the result of the coordinator of task {definition.name!r}"
    if execution.entry.run.executing and not execution.interrupted:
        encode = partial(services.codec.encode, value, facts.returns, what)
        try:
            await services.families.returned(execution.entry, definition, encode)
        except (StorageError, ShuttingDownError, TransitionError):
            return  # the store failed or is closed, or somebody ended the run first: there is nothing more to say


def _fail(execution: Execution, error: BaseException, timed_out: bool = False) -> None:
    """Record that the attempt failed, unless the run is no longer the body's to end."""
    run = execution.entry.run
    if not run.executing or execution.interrupted:
        return
    policy = execution.definition.retry
    final = isinstance(error, _FINAL) or not policy.allows(error)
    failure = describe(error, execution.services.codec)
    fraction = fraction_of(execution.services.entropy.token_bytes(7)) if run.retry.jitter else 0.0
    with suppress(StorageError, ShuttingDownError, TransitionError):  # as above
        execution.services.pipeline.stage(execution.entry, Fail(failure, not final, timed_out, fraction))


async def _decoded(execution: Execution, payload: bytes, hint: Any, run_id: str | None) -> Any:
    """A value with the outcomes of the children in it, which are those of the run `run_id`."""
    if not holds_children(payload):
        return execution.services.codec.decode(payload, hint)
    with found_children() as found:
        value = execution.services.codec.decode(payload, hint)
    if found and run_id is not None:
        await resolve(run_id, found, execution.services.families.end_children)
    return value


async def _call(execution: Execution) -> Any:
    around = execution.services.around
    if around is None:
        return await _called(execution)
    with around(execution.entry.run, execution.recovered):
        return await _called(execution)


async def _called(execution: Execution) -> Any:
    definition, services, run = execution.definition, execution.services, execution.entry.run
    # A coordinator that is a run of its own gets what its parent's body returned.
    arguments = await _decoded(execution, run.input, definition.facts.input_hint, run.parent_id)
    if not isinstance(arguments, dict):
        raise PayloadError(f"the stored input of run {execution.run_id} is no mapping of arguments")
    execution.input = arguments
    execution.context = Context(execution)
    if execution.coordinating:
        return await _coordinate(execution)
    args, kwargs = definition.facts.call_arguments(arguments, definition.name)
    facts = definition.recovery if execution.handling and definition.recovery is not None else definition.facts
    current_scope.set(execution)
    if facts.shape == "generator":
        return await _generate(execution, facts, _arguments(execution, facts, args), kwargs)
    return await services.invoker.call(facts, _arguments(execution, facts, args), kwargs)


async def _coordinate(execution: Execution) -> Any:
    """Call the function that is the coordinator with what the body returned, its children with their outcomes."""
    definition = execution.definition
    facts = definition.on_children_complete
    if not isinstance(facts, FunctionFacts):
        raise DefinitionError(f"task {definition.name!r} has no function for on_children_complete any more")
    value = await _decoded(execution, execution.returned or b"null", definition.facts.returns, execution.run_id)
    current_scope.set(execution)
    return await execution.services.invoker.call(facts, _arguments(execution, facts, (value,)), {})


def _arguments(execution: Execution, facts: FunctionFacts, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (execution.context, *args) if facts.takes_context else args


async def _generate(execution: Execution, facts: FunctionFacts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an async generator: each value that it yields is an event, a `Result` ends it."""
    generator = facts.function(*args, **kwargs)
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
