"""`Task`: what `@task` makes of a function, and `chain`, which makes one of several.

Law: outside a run, calling one calls the plain function; inside a run, the `Scope` we are in decides what a call means.
"""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from durable.core.retry import Retry, seconds
from durable.errors import ConfigError, DefinitionError
from durable.tasks.chaining import chained
from durable.tasks.child import Child, ChildCall
from durable.tasks.definition import NO_OPTIONS, StartOptions, TaskDefinition, checked_priority, positive
from durable.tasks.handle import Handle
from durable.tasks.host import current_host, current_scope
from durable.tasks.plain import call_plain

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
G = TypeVar("G")
H = TypeVar("H")
V_contra = TypeVar("V_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

Duration = float | timedelta


class Link(Protocol[V_contra, R_co]):
    """A `Task` as type checkers see it in a chain: it can be called with one value; what else its signature has does not count."""

    @property
    def definition(self) -> TaskDefinition: ...
    @property
    def start_options(self) -> StartOptions: ...
    def child(self, value: V_contra, /) -> Child[R_co]: ...


class Task(Generic[P, R_co]):
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

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R_co]:
        """Outside a run: call the plain function. In a task's body: run it as a child and wait for its result."""
        scope = current_scope.get()
        if scope is None:
            return call_plain(self.definition, args, kwargs)
        return scope.call_task(self.definition, self.start_options, args, kwargs)

    async def start(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R_co]:
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
        return Handle(host, run_id, key, definition.result_hint)

    def child(self, *args: P.args, **kwargs: P.kwargs) -> Child[R_co]:
        """A child to be returned by a task; it is started once that has returned it. Raises `ValidationError`."""
        definition = self.definition
        arguments = definition.facts.bind(args, kwargs, definition.name)
        return Child(ChildCall(definition, self.start_options, arguments))

    def __rshift__(self: Task[P, R], other: Link[R, S], /) -> Task[P, S]:
        """`extract >> transform` is `chain(extract, transform)`."""
        return _chain((self, other)) if isinstance(other, Task) else NotImplemented

    def options(
        self,
        *,
        key: str | None = None,
        user: str | None = None,
        timeout: Duration | None = None,
        retry: int | Retry | None = None,
        delay: Duration | None = None,
        priority: int | None = None,
    ) -> Task[P, R_co]:
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


@overload
def chain(a: Task[P, A], /, *, name: str | None = None) -> Task[P, A]: ...
@overload
def chain(a: Task[P, A], b: Link[A, B], /, *, name: str | None = None) -> Task[P, B]: ...
@overload
def chain(a: Task[P, A], b: Link[A, B], c: Link[B, C], /, *, name: str | None = None) -> Task[P, C]: ...
@overload
def chain(a: Task[P, A], b: Link[A, B], c: Link[B, C], d: Link[C, D], /, *, name: str | None = None) -> Task[P, D]: ...
@overload
def chain(
    a: Task[P, A], b: Link[A, B], c: Link[B, C], d: Link[C, D], e: Link[D, E], /, *, name: str | None = None
) -> Task[P, E]: ...
@overload
def chain(
    a: Task[P, A], b: Link[A, B], c: Link[B, C], d: Link[C, D], e: Link[D, E], f: Link[E, F], /,
    *, name: str | None = None,
) -> Task[P, F]: ...  # fmt: skip
@overload
def chain(
    a: Task[P, A], b: Link[A, B], c: Link[B, C], d: Link[C, D], e: Link[D, E], f: Link[E, F], g: Link[F, G], /,
    *, name: str | None = None,
) -> Task[P, G]: ...  # fmt: skip
@overload
def chain(
    a: Task[P, A], b: Link[A, B], c: Link[B, C], d: Link[C, D], e: Link[D, E], f: Link[E, F], g: Link[F, G], /,
    *h: *tuple[Link[G, H]], name: str | None = None,
) -> Task[P, H]: ...  # fmt: skip
@overload
def chain(
    a: Task[P, Any], b: Link[Any, Any], c: Link[Any, Any], d: Link[Any, Any], e: Link[Any, Any], f: Link[Any, Any],
    g: Link[Any, Any], /, *more: *tuple[Link[Any, Any], Link[Any, Any], *tuple[Link[Any, Any], ...]],
    name: str | None = None,
) -> Task[P, Any]: ...  # fmt: skip
def chain(*tasks: Any, name: str | None = None) -> Any:
    """Make one task of several: each gets the result of the one before as its one argument, and the last one's is the result.

    Each is a child run of the chain's, so that a crash costs only what the link in hand had not recorded. The same tasks make the
    same chain, however often it is made. A chain within a chain is taken apart, unless it has a name of its own or options.

    Arguments:
        tasks: at least one. Type checkers follow the values through the first eight.
        name: under which its runs are stored; the names of the tasks joined by " >> " by default.

    Raises `DefinitionError` where there is none, one is no task, or one after the first cannot be called with one argument;
    `DuplicateTaskError` where another task has the name.
    """
    return _chain(tasks, name)


def _chain(tasks: tuple[Any, ...], name: str | None = None) -> Task[Any, Any]:
    for each in tasks:
        if not isinstance(each, Task):
            raise DefinitionError(f"a chain is made of tasks, got {each!r:.200}: decorate the function with @task")
    definition, options = chained([(each.definition, each.start_options) for each in tasks], name)
    return Task(definition, options)
