"""What type checkers are told of `@task` and `@step`: the decorators that they return when they are given options.

Law: nothing here runs. The overloads go by what the first parameter is (anything, a Context, something else), and by what a call returns.

Context[Any], and no type variable: only where their type variables are the same does mypy take the first of two overloads that fit a
function with Any in its signature; else it gives up and calls the task Any. For its sake a call returns a Coroutine[object, object, R],
too: with Any, `asyncio.gather` would return Any. What a generator ends with is Any: mypy cannot find the `Result[R]` in the union of what
is yielded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypedDict, TypeVar, final, overload

from durable.core.retry import Retry
from durable.tasks.context import Context
from durable.tasks.step import Step
from durable.tasks.task import Duration, Task

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
#: What a task returns for its coordinator.
V_contra = TypeVar("V_contra", contravariant=True)


@final
class Outsider:
    """What no parameter accepts but one that accepts anything."""


class Open(Protocol[P, R_co]):
    """A function whose first parameter accepts anything, and so a `Context` too: it is not meant by that."""

    @overload
    def __call__(self, first: Outsider, /, *args: Any, **kwargs: Any) -> R_co: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class TaskOptions(TypedDict, total=False):
    """The options of `@task`, but `on_children_complete`."""

    name: str | None
    version: str | int | None
    timeout: Duration | None
    retry: int | Retry | None
    delay: Duration
    key: str | Callable[..., str] | None
    priority: int
    auto_recover: bool
    max_recoveries: int | None
    on_child_failure: Literal["fail", "continue"]
    recovery: Callable[..., Any] | None
    validate: Callable[..., Any] | None


class TaskDecorator(Protocol):
    """What `@task(...)` returns."""

    @overload
    def __call__(self, fn: Open[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Open[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], AsyncIterator[Any]], /) -> Task[P, Any]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[Any]], /) -> Task[P, Any]: ...
    @overload
    def __call__(self, fn: Open[P, R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


class FamilyDecorator(Protocol[V_contra, R_co]):
    """What `@task(on_children_complete=...)` returns: it takes what the coordinator takes, and the result is the coordinator's."""

    @overload
    def __call__(self, fn: Open[P, Coroutine[Any, Any, V_contra]], /) -> Task[P, R_co]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, V_contra]], /
    ) -> Task[P, R_co]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, V_contra]], /) -> Task[P, R_co]: ...
    @overload
    def __call__(self, fn: Open[P, AsyncIterator[Any]], /) -> Task[P, R_co]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], AsyncIterator[Any]], /) -> Task[P, R_co]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[Any]], /) -> Task[P, R_co]: ...
    @overload
    def __call__(self, fn: Open[P, V_contra], /) -> Task[P, R_co]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], V_contra], /) -> Task[P, R_co]: ...
    @overload
    def __call__(self, fn: Callable[P, V_contra], /) -> Task[P, R_co]: ...


class StepDecorator(Protocol):
    """What `@step(...)` returns."""

    @overload
    def __call__(self, fn: Open[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Open[P, R], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context[Any], P], R], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...
