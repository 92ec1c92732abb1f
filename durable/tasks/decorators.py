"""`@task` and `@step`.

Law: all that can be wrong with a definition is said when it is made, and names the option.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from typing_extensions import Unpack

from durable.core.retry import ONCE, Retry, seconds
from durable.errors import ConfigError, DefinitionError
from durable.tasks.context import Context
from durable.tasks.definition import (
    NO_OPTIONS,
    FunctionFacts,
    StartOptions,
    StepDefinition,
    TaskDefinition,
    check_callable,
    checked_choice,
    checked_count,
    checked_function,
    checked_key,
    checked_priority,
    checked_switch,
    name_of,
    origin_of,
    positive,
)
from durable.tasks.registry import register_step, register_task
from durable.tasks.signatures import FamilyDecorator, Open, StepDecorator, TaskDecorator, TaskOptions
from durable.tasks.step import Step
from durable.tasks.task import Duration, Task

__all__ = ["Step", "Task", "step", "task"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
#: What a task returns for its coordinator.
V = TypeVar("V")


@overload
def task(fn: Open[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
@overload
def task(fn: Open[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
@overload
def task(fn: Callable[Concatenate[Context[Any], P], AsyncIterator[Any]], /) -> Task[P, Any]: ...
@overload
def task(fn: Callable[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
@overload
def task(fn: Open[P, R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Context[Any], P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(**options: Unpack[TaskOptions]) -> TaskDecorator: ...
@overload
def task(
    *, on_children_complete: Callable[[V], Coroutine[Any, Any, S]], **options: Unpack[TaskOptions]
) -> FamilyDecorator[V, S]: ...
@overload
def task(
    *, on_children_complete: Callable[[Context[Any], V], Coroutine[Any, Any, S]], **options: Unpack[TaskOptions]
) -> FamilyDecorator[V, S]: ...
@overload
def task(*, on_children_complete: Callable[[V], S], **options: Unpack[TaskOptions]) -> FamilyDecorator[V, S]: ...
@overload
def task(
    *, on_children_complete: Callable[[Context[Any], V], S], **options: Unpack[TaskOptions]
) -> FamilyDecorator[V, S]: ...
def task(
    fn: Callable[..., Any] | None = None, /, *, name: str | None = None, version: str | int | None = None,
    timeout: Duration | None = None, retry: int | Retry | None = None, delay: Duration = 0.0,
    key: str | Callable[..., str] | None = None, priority: int = 0, auto_recover: bool = True,
    max_recoveries: int | None = None, on_children_complete: Callable[..., Any] | None = None,
    on_child_failure: Literal["fail", "continue"] = "fail",
    recovery: Callable[..., Any] | None = None, validate: Callable[..., Any] | None = None,
) -> Any:  # fmt: skip
    """Make a function a task.

    Arguments:
        name: under which its runs are stored; the function's own name by default.
        version: recorded with each run.
        timeout: bound on one attempt, seconds or timedelta.
        retry: attempts (the first included), or a `Retry`.
        delay: begin a run no earlier than so many seconds after its start.
        key: a key for every start, or a function of the arguments that makes one; "auto" derives it.
        priority: higher goes first among runs that wait for a slot.
        auto_recover: False: after a crash the run waits for a fresh start with the same key.
        max_recoveries: recoveries without a newly recorded step after which the run fails.
        on_children_complete: the coordinator, a function or a task: called with what the function returned, when the children in
            that have ended; its result is the run's.
        on_child_failure: "fail" ends the run with the first child that fails, "continue" leaves failures to the coordinator.
        recovery: runs instead of the body after a crash; returns the result, or `RERUN` to run the body again.
        validate: called with the arguments at `start()`; what it raises refuses the start, and False does too.
    """

    def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
        _undecorated(function, "task")
        coordinator, coordinator_options = _coordinator(on_children_complete)
        definition = TaskDefinition(
            name=name_of(function, name, "task"),
            facts=FunctionFacts(function, Context),
            retry=ONCE if retry is None else Retry.of(retry),
            version=None if version is None else str(version),
            timeout=None if timeout is None else positive(timeout, "timeout"),
            delay=seconds(delay, "delay"),
            key=checked_key(key),
            priority=checked_priority(priority),
            auto_recover=checked_switch(auto_recover, "auto_recover"),
            max_recoveries=checked_count(max_recoveries, "max_recoveries"),
            on_children_complete=coordinator,
            coordinator_options=coordinator_options,
            on_child_failure=checked_choice(on_child_failure, ("fail", "continue"), "on_child_failure"),
            recovery=None if recovery is None else FunctionFacts(checked_function(recovery, "recovery"), Context),
            validate=None if validate is None else checked_function(validate, "validate"),
            origin=origin_of(function),
        )
        register_task(definition)
        return Task(definition)

    return decorate if fn is None else decorate(fn)


def _coordinator(given: Any) -> tuple[FunctionFacts | TaskDefinition | None, StartOptions]:
    """The coordinator, and the options with which it is started if it is a task. Raises `DefinitionError`, `ConfigError`."""
    if given is None:
        return None, NO_OPTIONS
    what = "the coordinator (on_children_complete=) gets what the task returned"
    if isinstance(given, Task):
        given.definition.facts.check_takes_one(what)
        return given.definition, given.start_options
    if isinstance(given, Step):
        raise DefinitionError(f"{given!r} cannot be a coordinator (on_children_complete=): make it a task, or plain")
    check_callable(checked_function(given, "on_children_complete"), "task(on_children_complete=)")
    facts = FunctionFacts(given, Context)
    if facts.shape == "generator":
        raise DefinitionError(f"{given!r} cannot be a coordinator (on_children_complete=): make the generator a task")
    facts.check_takes_one(what)
    return facts, NO_OPTIONS


def _undecorated(function: Callable[..., Any], what: str) -> None:
    if isinstance(function, Step | Task):
        raise DefinitionError(f"{function!r} is decorated already: @{what} goes on the plain function")
    check_callable(function, what)


@overload
def step(fn: Open[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Open[P, R], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[Concatenate[Context[Any], P], R], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Open[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Open[P, R], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Callable[Concatenate[Context[Any], P], R], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: int | Retry | None = None,
    timeout: Duration | None = None,
    codec: Literal["json", "cloudpickle"] | None = None,
    isolate: Literal["process"] | None = None,
) -> StepDecorator: ...
def step(
    fn: Any = None,
    second: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: int | Retry | None = None,
    timeout: Duration | None = None,
    codec: Literal["json", "cloudpickle"] | None = None,
    isolate: Literal["process"] | None = None,
) -> Any:
    """Make a function a step: `@step`, `@step(...)`, `step(fn)` or `step("name", fn)`.

    Arguments:
        name: under which its results are recorded; the function's own name by default.
        retry: attempts (the first included), or a `Retry`.
        timeout: bound on one attempt, seconds or timedelta.
        codec: how its result is stored; "cloudpickle" is signed and needs a key in the settings.
        isolate: "process" runs it in a process of its own, which is killed on timeout or cancel.
    """
    if codec not in (None, "json", "cloudpickle"):
        raise ConfigError(f"step codec {codec!r} must be 'json' or 'cloudpickle'", key="codec")
    if isolate not in (None, "process"):
        raise ConfigError(f"step isolate={isolate!r} must be None or 'process'", key="isolate")

    def decorate(function: Callable[..., Any], given: str | None = name) -> Step[Any, Any]:
        _undecorated(function, "step")
        definition = StepDefinition(
            name=name_of(function, given, "step"),
            facts=FunctionFacts(function, Context),
            retry=ONCE if retry is None else Retry.of(retry),
            timeout=None if timeout is None else positive(timeout, "timeout"),
            codec=codec,
            isolate=isolate,
        )
        if definition.facts.shape == "generator":
            raise ConfigError(f"step {definition.name!r} is an async generator: a step returns one value", key="step")
        register_step(definition)
        return Step(definition)

    if second is not None:
        return decorate(second, fn)
    return decorate if fn is None else decorate(fn)
