"""`Host` and `Scope`: all that a task, a context or a handle may ask of the engine.

Law: `tasks/` and `engine/` never import each other; they meet in these protocols, and in the two variables that say where the code is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from durable.codec import Codec
from durable.core.records import Record
from durable.core.run import Run
from durable.errors import AmbiguousAppError, AppNotOpenError
from durable.tasks.child import Child
from durable.tasks.definition import StartOptions, StepDefinition, TaskDefinition


@dataclass(frozen=True, slots=True)
class UserContext:
    """Who the caller is.

    Arguments:
        user: the owner of the runs that are started.
        secrets: tokens and the like; they stay in memory and are never stored.
    """

    user: str
    secrets: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


class Host(Protocol):
    """An open application, as handles and tasks see it."""

    @property
    def codec(self) -> Codec:
        """The codec of this application."""
        ...

    async def start_run(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, str | None]:
        """Start a run; return its id and key. Durable when it returns."""
        ...

    async def find_run(self, run_id: str) -> Run:
        """The run as it was last acknowledged. Raises `RunNotFoundError`."""
        ...

    async def wait_ended(self, run_id: str) -> Run:
        """Wait until the run has ended."""
        ...

    def records(
        self, run_id: str, after: int, *, steps: bool = True, heartbeat: float | None = None
    ) -> AsyncGenerator[Record]:
        """All records with a higher `seq`, first those that are there, then live ones, until the run has ended."""
        ...

    async def lacks(self, run: Run) -> str | None:
        """What keeps the run from going on, if it is that nobody has the code of it."""
        ...

    def definition_of(self, name: str) -> TaskDefinition | None:
        """The task of this name, where an imported module defines it."""
        ...

    async def children_of(self, run_id: str) -> Sequence[Run]:
        """The runs that this run started."""
        ...

    async def end_children(self, run_id: str, children: Sequence[Child[Any]]) -> None:
        """Give these started children of a run their outcomes."""
        ...

    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        """Cancel the run and all that belongs to it."""
        ...

    async def stop_run(self, run_id: str, reason: str | None) -> None:
        """Suspend the run."""
        ...

    async def resume_run(self, run_id: str) -> None:
        """Go on with a suspended run."""
        ...

    async def retry_run(self, run_id: str) -> None:
        """Try a failed run again."""
        ...

    async def send_signal(self, run_id: str, name: str, payload: object) -> None:
        """Put a signal into the run's mailbox."""
        ...


class Scope(Protocol):
    """Where code runs: in a task's body, or in a step."""

    run_id: str
    task_name: str
    attempt: int

    @property
    def replaying(self) -> bool:
        """Whether a body is repeating what it did before."""
        ...

    @property
    def host(self) -> Host:
        """The application that runs it."""
        ...

    def call_step(
        self, step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call a step from here."""
        ...

    def call_task(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Run a task as a child of this run and wait for its result."""
        ...

    async def start_task(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, str | None]:
        """Start a run that lives on its own; once, also over replay."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Sleep, also over a crash."""
        ...

    async def deadline(self, seconds: float) -> Coroutine[Any, Any, Any] | None:
        """What to await until a recorded deadline has passed; None where a plain timeout is meant."""
        ...

    def now(self) -> datetime:
        """The time, the same on replay."""
        ...

    def uuid4(self) -> UUID:
        """A random UUID, the same on replay."""
        ...

    def random(self) -> float:
        """A random number in [0, 1), the same on replay."""
        ...


#: The body or step that the running code belongs to.
current_scope: ContextVar[Scope | None] = ContextVar("durable.scope", default=None)
#: The identity that `run_as` carries.
current_identity: ContextVar[UserContext | None] = ContextVar("durable.identity", default=None)

_open_hosts: list[Host] = []


def enter_host(host: Host) -> None:
    """Note that an application is open in this process."""
    _open_hosts.append(host)


def leave_host(host: Host) -> None:
    """Note that an application is closed."""
    if host in _open_hosts:
        _open_hosts.remove(host)


def current_host() -> Host:
    """The application whose run we are in, else the only one that is open.

    Raises `AppNotOpenError` or `AmbiguousAppError`.
    """
    scope = current_scope.get()
    if scope is not None:
        return scope.host
    if not _open_hosts:
        raise AppNotOpenError(
            "no Durable application is open in this process: `async with Durable(...) as app:` opens one"
        )
    if len(_open_hosts) > 1:
        raise AmbiguousAppError(
            f"{len(_open_hosts)} Durable applications are open in this process: use `app.start(task, ...)` to say which one"
        )
    return _open_hosts[0]
