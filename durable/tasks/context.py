"""`Context`: what the engine tells a body about its run, and what a body may ask for.

Law: reading `previous_events` takes recovery into the body's own hands: from then on what it emits is new. A body that never looks at
them is replayed, and what it emitted before is not emitted twice. A body that looks at `recovered` may go another way than its record:
recorded results still come back to the calls that it makes again, and the calls that it does not make are not missed.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Generic, Literal, Protocol, overload

from typing_extensions import TypeVar

from durable.core.records import RESERVED_NAMES
from durable.core.retry import seconds
from durable.errors import ReservedNameError, StepContextError
from durable.tasks.handle import Event, remember_event_class

#: What may be emitted. `object` by default: with Any there, mypy could not tell the overloads of `@task` apart.
#: Covariant, so that a helper that takes a plain `Context` accepts any: the price is that it may emit what its caller did not name.
E_co = TypeVar("E_co", default=object, covariant=True)
T = TypeVar("T")

RecoveryReason = Literal["crash", "stale", "timeout"]


class Backing(Protocol):
    """The engine's side of a context."""

    run_id: str
    task_name: str
    key: str | None
    user: str | None
    attempt: int
    max_attempts: int
    previous_error: str | None
    input: dict[str, Any]
    recovered: bool
    recovery_reason: RecoveryReason | None

    def saw_recovery(self) -> None:
        """The body was told that it was recovered: it may go another way than before."""
        ...

    def previous_events(self) -> list[Event]:
        """Events that the body emitted before this attempt."""
        ...

    async def emit(self, name: str, value: object, ephemeral: bool) -> None:
        """Record an event; it is durable when this returns."""
        ...

    def emit_nowait(self, name: str, value: object) -> None:
        """Record an event with the next commit."""
        ...

    async def wait_for(self, name: str, timeout: float | None) -> Any:
        """Wait for a signal."""
        ...

    def step_key(self) -> str:
        """The idempotency key of the step that is running."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """The transaction of the step that is running."""
        ...

    async def wait_shutting_down(self) -> None:
        """Return once the application is closing."""
        ...

    @property
    def shutting_down(self) -> bool:
        """Whether the application is closing."""
        ...

    @property
    def replaying(self) -> bool:
        """Whether the body is repeating what it did before."""
        ...


class ShuttingDown:
    """Like an `asyncio.Event` that is set when the application begins to close."""

    __slots__ = ("_backing",)

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    def is_set(self) -> bool:
        """Whether the application is closing."""
        return self._backing.shutting_down

    def __bool__(self) -> bool:
        return self.is_set()

    async def wait(self) -> Literal[True]:
        """Return once the application is closing."""
        await self._backing.wait_shutting_down()
        return True


class _RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the run's id, and is silent while the body repeats what it already logged."""

    def __init__(self, backing: Backing) -> None:
        super().__init__(logging.getLogger(f"durable.task.{backing.task_name}"), {"run_id": backing.run_id})
        self._backing = backing

    def isEnabledFor(self, level: int) -> bool:  # the name is logging's
        return not self._backing.replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **(self.extra or {})}
        return msg, kwargs


def event_name(event: object) -> str:
    """The name under which a typed event is emitted: its class's."""
    return type(event).__name__


def check_event_name(name: object) -> str:
    """Return the name, or raise `ReservedNameError` where users may not emit it."""
    if not isinstance(name, str):
        raise ReservedNameError(f"an event's name must be a str, not {type(name).__name__}")
    if name in RESERVED_NAMES or name.startswith("step:"):
        raise ReservedNameError(f"the event name {name!r} is durable's own: choose another")
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise ReservedNameError(f"the event name {name[:50]!r} must be 1 to 200 printable characters")
    return name


class Context(Generic[E_co]):
    """The run that the body belongs to. `Context[Events]` says which events the body emits."""

    __slots__ = ("_backing", "_logger", "attempt", "input", "key", "max_attempts", "previous_error",
                 "run_id", "task_name", "user")  # fmt: skip

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._logger: _RunLogger | None = None
        self.run_id: str = backing.run_id
        self.task_name: str = backing.task_name
        self.key: str | None = backing.key
        self.user: str | None = backing.user
        self.attempt: int = backing.attempt
        self.max_attempts: int = backing.max_attempts
        self.previous_error: str | None = backing.previous_error
        self.input: dict[str, Any] = backing.input

    def __repr__(self) -> str:
        return f"Context(run_id={self.run_id!r}, task_name={self.task_name!r}, attempt={self.attempt})"

    @property
    def recovered(self) -> bool:
        """Whether this attempt goes on with what was begun before, in another process or before it was suspended."""
        if self._backing.recovered:
            self._backing.saw_recovery()
        return self._backing.recovered

    @property
    def recovery_reason(self) -> RecoveryReason | None:
        """Why it was recovered, if it was."""
        if self._backing.recovered:
            self._backing.saw_recovery()
        return self._backing.recovery_reason

    @property
    def previous_events(self) -> list[Event]:
        """The events that the run emitted before this attempt, in order."""
        return self._backing.previous_events()

    def past(self, event_type: type[T]) -> list[T]:
        """The emitted values of one type from `previous_events`."""
        remember_event_class(event_type)
        return [event.data for event in self.previous_events if isinstance(event.data, event_type)]

    @property
    def shutting_down(self) -> ShuttingDown:
        """Is set when the application begins to close; a long body may stop at a good place."""
        return ShuttingDown(self._backing)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that carries the run's id and does not repeat itself on replay."""
        if self._logger is None:
            self._logger = _RunLogger(self._backing)
        return self._logger

    @overload
    async def emit(self, event: str, data: object = None, /, *, ephemeral: bool = False) -> None: ...
    @overload
    async def emit(self, event: E_co, /, *, ephemeral: bool = False) -> None: ...  # type: ignore[misc]
    async def emit(self, event: Any, data: object = None, /, *, ephemeral: bool = False) -> None:
        """Emit an event: `emit(Tick(n=3))` or `emit("tick", {"n": 3})`. Durable when it returns.

        With `ephemeral=True` it reaches live subscribers only and is not stored. Raises `ReservedNameError`, `NotStorableError`.
        """
        name, value = _named(event, data)
        await self._backing.emit(name, value, ephemeral)

    @overload
    def emit_nowait(self, event: str, data: object = None, /) -> None: ...
    @overload
    def emit_nowait(self, event: E_co, /) -> None: ...  # type: ignore[misc]
    def emit_nowait(self, event: Any, data: object = None, /) -> None:
        """Emit an event that becomes durable with the next commit."""
        name, value = _named(event, data)
        self._backing.emit_nowait(name, value)

    async def progress(self, data: object) -> None:
        """Emit a `progress` event."""
        await self._backing.emit("progress", data, False)

    async def wait_for(self, name: str, timeout: float | timedelta | None = None) -> Any:
        """Wait for `handle.send(name, data)` and return the data. What was sent before is not lost.

        Raises `TimeoutError` after `timeout` seconds; the time goes on while no process runs.
        """
        if not isinstance(name, str) or not name:
            raise ReservedNameError(f"wait_for() needs the name of a signal, got {name!r}")
        return await self._backing.wait_for(name, None if timeout is None else seconds(timeout, "timeout"))

    def step_key(self) -> str:
        """An idempotency key for outside APIs: the same in every try of the step that calls this."""
        return self._backing.step_key()

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """In a step: `async with ctx.transaction() as connection:` gives a psycopg `AsyncConnection` to the store's database.

        What is written on it becomes durable together with the record of the step: exactly once, whatever crashes. An exception
        that leaves the block undoes what the block wrote; a step that fails undoes all. Where the database goes away meanwhile, the
        step is run again, which counts as no try of its own, ten times at most once it had begun to write. Leave COMMIT and ROLLBACK
        to durable: a step that says one fails with `StepContextError`, and what it committed stays without the record.
        Raises `ConfigError` for a store that is not in PostgreSQL, `StepContextError` outside of a step.
        """
        return self._backing.transaction()


def _named(event: Any, data: object) -> tuple[str, object]:
    if isinstance(event, str):
        return check_event_name(event), data
    return check_event_name(event_name(event)), event


class Detached:
    """The context of a task that is called as a plain function: nothing is recorded."""

    key: str | None = None
    user: str | None = None
    attempt: int = 1
    max_attempts: int = 1
    previous_error: str | None = None
    recovered: bool = False
    recovery_reason: RecoveryReason | None = None
    shutting_down: bool = False
    replaying: bool = False
    run_id: str = "0" * 32

    def __init__(self, task_name: str, arguments: dict[str, Any]) -> None:
        self.task_name = task_name
        self.input = arguments

    def saw_recovery(self) -> None:
        """There was no record to leave."""

    def previous_events(self) -> list[Event]:
        """There was no attempt before."""
        return []

    async def emit(self, name: str, value: object, ephemeral: bool) -> None:
        """Nobody listens."""

    def emit_nowait(self, name: str, value: object) -> None:
        """Nobody listens."""

    async def wait_for(self, name: str, timeout: float | None) -> Any:
        """Nobody can send."""
        raise StepContextError("wait_for() needs a run: start the task with an open Durable application")

    def step_key(self) -> str:
        """A key that is good for one plain call."""
        return f"{self.run_id}:{self.task_name}"

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """There is no store."""
        raise StepContextError("transaction() needs a run: start the task with an open Durable application")

    async def wait_shutting_down(self) -> None:
        """A plain call has no application; wait for ever, as the event is never set."""
        raise StepContextError("shutting_down.wait() needs a run: start the task with an open Durable application")
