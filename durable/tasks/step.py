"""`Step`: what `@step` makes of a function.

Law: outside a run, calling one calls the plain function; inside a run, the `Scope` we are in decides what a call means.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial, update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from durable.tasks.definition import StepDefinition
from durable.tasks.host import current_scope
from durable.tasks.plain import call_plain_step

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


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
