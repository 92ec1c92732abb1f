"""`@task` and `@step`, and the objects that they make of functions.

Law: outside a run, calling one calls the plain function; inside a run, the `Scope` we are in decides what a call means.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from functools import partial, update_wrapper
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, final, overload

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
    checked_count,
    checked_function,
    checked_key,
    checked_priority,
    checked_switch,
    name_of,
    origin_of,
    positive,
)
from durable.tasks.handle import Handle
from durable.tasks.host import current_host, current_scope
from durable.tasks.plain import call_plain, call_plain_step
from durable.tasks.registry import register_step, register_task

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")

Duration = float | timedelta


@final
class _Outsider:
    """What no parameter accepts but one that accepts anything."""


class _Open(Protocol[P, R_co]):
    """A function whose first parameter accepts anything, and so a `Context` too: it is not meant by that."""

    @overload
    def __call__(self, first: _Outsider, /, *args: Any, **kwargs: Any) -> R_co: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


# The overloads below go by what the first parameter is (anything, a Context, something else), and by what a call returns.
# Context[Any], and no type variable: only where their type variables are the same does mypy take the first of two overloads
# that fit a function with Any in its signature; else it gives up and calls the task Any.
# For its sake a call returns a Coroutine[object, object, R], too: with Any, `asyncio.gather` would return Any.
# What a generator ends with is Any: mypy cannot find the `Result[R]` in the union of what is yielded.


class Step(Generic[P, R]):
    """A step: called in a task's body, its result is recorded, and after a crash the recorded result comes back."""

    def __init__(self, definition: StepDefinition) -> None:
        update_wrapper(self, definition.facts.function)
        self.definition = definition  # after the function's own attributes, which may be called so, too

    def __repr__(self) -> str:
        return f"<step {self.definition.name!r}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R]:
        """Call the step; await what is returned."""
        scope = current_scope.get()
        if scope is None:
            return call_plain_step(self.definition, args, kwargs)
        return scope.call_step(self.definition, args, kwargs)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Step[P, R]: ...
    @overload
    def __get__(
        self: Step[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> Callable[Q, Coroutine[object, object, R]]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind like a function, so that a method can be a step; the instance is its first argument."""
        return self if instance is None else partial(self, instance)


class Task(Generic[P, R]):
    """A task: started, it is a run that survives crashes."""

    def __init__(self, definition: TaskDefinition, options: StartOptions = NO_OPTIONS) -> None:
        update_wrapper(self, definition.facts.function)
        self.definition = definition
        self.start_options = options

    def __repr__(self) -> str:
        return f"<task {self.definition.name!r}>"

    @property
    def name(self) -> str:
        """The name under which runs of this task are stored."""
        return self.definition.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R]:
        """Outside a run: call the plain function. In a task's body: run it as a child and wait for its result."""
        scope = current_scope.get()
        if scope is None:
            return call_plain(self.definition, args, kwargs)
        return scope.call_task(self.definition, self.start_options, args, kwargs)

    async def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start a run on the current application; durable when it returns. In a body it starts once, also over replay.

        Raises `ValidationError`, `ConflictError`, `RefusedError`, `StorageError`, `AppNotOpenError`, `AmbiguousAppError`.
        """
        scope = current_scope.get()
        definition = self.definition
        if scope is None:
            host = current_host()
            run_id, key = await host.start_run(definition, self.start_options, args, kwargs)
        else:
            host = scope.host
            run_id, key = await scope.start_task(definition, self.start_options, args, kwargs)
        return Handle(host, run_id, key, definition.facts.returns)

    def options(
        self,
        *,
        key: str | None = None,
        user: str | None = None,
        timeout: Duration | None = None,
        retry: int | Retry | None = None,
        delay: Duration | None = None,
        priority: int | None = None,
    ) -> Task[P, R]:
        """The same task with these options for a start.

        Arguments:
            key: unique per user: a start with a key that exists gives the same run. "auto" derives it from task, input and user.
            user: owner of the run.
            timeout: bound on one attempt, seconds or timedelta.
            retry: attempts, or a `Retry`.
            delay: begin no earlier than so many seconds from now.
            priority: higher goes first among runs that wait for a slot.
        """
        for name, value in (("key", key), ("user", user)):
            if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= 500):
                raise ConfigError(f"options({name}={value!r:.100}) must be a str of 1 to 500 characters", key=name)
        old = self.start_options
        return Task(
            self.definition,
            StartOptions(
                key=key if key is not None else old.key,
                user=user if user is not None else old.user,
                timeout=old.timeout if timeout is None else positive(timeout, "timeout"),
                retry=old.retry if retry is None else Retry.of(retry),
                delay=old.delay if delay is None else seconds(delay, "delay"),
                priority=old.priority if priority is None else checked_priority(priority),
            ),
        )


class _TaskDecorator(Protocol):
    """What `@task(...)` returns."""

    @overload
    def __call__(self, fn: _Open[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: _Open[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], AsyncIterator[Any]], /) -> Task[P, Any]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
    @overload
    def __call__(self, fn: _Open[P, R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


class _StepDecorator(Protocol):
    """What `@step(...)` returns."""

    @overload
    def __call__(self, fn: _Open[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: _Open[P, R], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], R], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...


@overload
def task(fn: _Open[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
@overload
def task(fn: _Open[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
@overload
def task(fn: Callable[Concatenate[Context[Any], P], AsyncIterator[Any]], /) -> Task[P, Any]: ...
@overload
def task(fn: Callable[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
@overload
def task(fn: _Open[P, R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Context[Any], P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    version: str | int | None = None,
    timeout: Duration | None = None,
    retry: int | Retry | None = None,
    delay: Duration = 0.0,
    key: str | Callable[..., str] | None = None,
    priority: int = 0,
    auto_recover: bool = True,
    max_recoveries: int | None = None,
    recovery: Callable[..., Any] | None = None,
    validate: Callable[..., Any] | None = None,
) -> _TaskDecorator: ...
def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: str | int | None = None,
    timeout: Duration | None = None,
    retry: int | Retry | None = None,
    delay: Duration = 0.0,
    key: str | Callable[..., str] | None = None,
    priority: int = 0,
    auto_recover: bool = True,
    max_recoveries: int | None = None,
    recovery: Callable[..., Any] | None = None,
    validate: Callable[..., Any] | None = None,
) -> Any:
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
        recovery: runs instead of the body after a crash; returns the result, or `RERUN` to run the body again.
        validate: called with the arguments at `start()`; what it raises refuses the start, and False does too.
    """

    def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
        _undecorated(function, "task")
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
            recovery=None if recovery is None else FunctionFacts(checked_function(recovery, "recovery"), Context),
            validate=None if validate is None else checked_function(validate, "validate"),
            origin=origin_of(function),
        )
        register_task(definition)
        return Task(definition)

    return decorate if fn is None else decorate(fn)


def _undecorated(function: Callable[..., Any], what: str) -> None:
    if isinstance(function, Step | Task):
        raise DefinitionError(f"{function!r} is decorated already: @{what} goes on the plain function")
    check_callable(function, what)


@overload
def step(fn: _Open[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: _Open[P, R], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[Concatenate[Context[Any], P], R], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: _Open[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(name: str, fn: _Open[P, R], /) -> Step[P, R]: ...
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
) -> _StepDecorator: ...
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
