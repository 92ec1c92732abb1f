"""`Durable`: the application. The composition root, and the only place that picks implementations.

Law: it holds no rule of its own; it checks what it is given, chooses a store, and passes on to the engine.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY, Clock, Entropy
from durable.config import Config, Limits
from durable.core.ids import is_run_id
from durable.core.query import RunFilter
from durable.core.retry import seconds
from durable.core.status import Status
from durable.engine.engine import Engine
from durable.engine.letters import DeadLetters
from durable.engine.serving import on_signals
from durable.engine.stats import Stats
from durable.errors import ConfigError, ConflictError, RunNotFoundError
from durable.observe.observer import Observer, Telemetry
from durable.store.base import Store
from durable.store.local import LocalStore
from durable.store.shared import is_shared
from durable.tasks.handle import Event, Handle, RunInfo
from durable.tasks.host import current_identity, current_scope, enter_host, leave_host
from durable.tasks.task import Task

P = ParamSpec("P")
R = TypeVar("R")

PAGE = 200


class Durable:
    """An application: opens a store, goes on with every run that had not ended, and runs new ones.

    Arguments:
        target: a directory (log and SQLite in it), the URL of a PostgreSQL database, or a store.
        limits: what is let in and how much runs at once.
        config: all other settings.
        observers: what is told of records and more, in this order; see `durable.observe`. Where the process has set an OpenTelemetry
            provider before this is opened, spans and metrics need none.
        execute: False is for PostgreSQL: start and watch runs, run nothing.
        test_mode: allows what `durable.testing` needs, such as simulated crashes.
        clock: where the time comes from; tests put a virtual one here.
        entropy: where randomness comes from.

    Raises `ConfigError` for a target that cannot be one.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | Store = "./.durable",
        *,
        limits: Limits = Limits(),
        config: Config = Config(),
        observers: Iterable[Observer] = (),
        execute: bool = True,
        test_mode: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        entropy: Entropy = SYSTEM_ENTROPY,
    ) -> None:
        if not isinstance(limits, Limits) or not isinstance(config, Config):
            raise ConfigError("Durable(limits=..., config=...) takes a Limits and a Config", key="config")
        store = _store_of(target, config, clock, entropy)
        if not execute and not is_shared(store):
            raise ConfigError(
                "execute=False needs a PostgreSQL store: a folder has one process, which executes", key="execute"
            )
        self.test_mode = test_mode
        self.config = config
        self._world = (clock, entropy)
        self._execute = execute
        _check_limits(limits, execute)
        self._serving: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._observers = _checked(observers)
        self._engine = Engine(
            store, config, limits, clock, entropy, execute=execute, find_observers=self._all_observers
        )
        if test_mode:
            #: Where `durable.testing` looks into the engine.
            self.engine: Engine = self._engine
        self.dead_letters: DeadLetters = DeadLetters(self._engine)

    @property
    def limits(self) -> Limits:
        """What is let in and how much runs at once; can be replaced at any time: `app.limits = replace(app.limits, max_running=5)`.

        It holds at once. More slots let waiting runs begin, fewer let those that run finish. Starts that were counted go on counting,
        also in a window of another length; those made while nothing was bounded were not counted. Raises `ConfigError`.
        """
        return self._engine.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        _check_limits(limits, self._execute)
        self._engine.limits = limits

    @property
    def store(self) -> Store:
        """Where runs are kept."""
        return self._engine.store

    def move_to(self, target: str | os.PathLike[str] | Store, *, limits: Limits, config: Config) -> None:
        """Before it is opened: execute on another store, with other settings. For `durable worker MODULE:APP --store`."""
        clock, entropy = self._world
        type(self).__init__(
            self, target, limits=limits, config=config, observers=self._observers, test_mode=self.test_mode,
            clock=clock, entropy=entropy,
        )  # fmt: skip

    def _all_observers(self) -> tuple[Observer, ...]:
        """Those that were given, and one for OpenTelemetry where the process has set a provider: it imported the API, then."""
        given = self._observers
        if "opentelemetry" not in sys.modules or any(isinstance(some, Telemetry) for some in given):
            return given
        from durable.observe.otel import OpenTelemetry

        telemetry = OpenTelemetry.of_process()
        return given if telemetry is None else (*given, telemetry)

    async def open(self) -> Self:
        """Open the store and recover: every run that had not ended goes on. Raises `StorageError` with what to do."""
        await self._engine.open()
        enter_host(self._engine)
        return self

    async def close(self, grace: float | timedelta | None = None) -> None:
        """Take no new work, give bodies the grace to finish, hand unfinished runs back, and close the store.

        Arguments:
            grace: seconds, in place of `engine.shutdown_grace_seconds`; with 0 bodies are cancelled at once.
        """
        self.stop_serving()
        leave_host(self._engine)
        await self._engine.close(None if grace is None else seconds(grace, "grace"))

    async def serve(
        self, *, ready: Callable[[], None] | None = None, stopping: Callable[[], None] | None = None
    ) -> None:
        """Open if need be, execute until the first SIGTERM or SIGINT, or `stop_serving()`, then close within the grace.

        A second signal ends the process at once, by the signal itself: what was not finished goes on in the next one. What happened at
        these signals before holds again when this returns. Outside of the main thread no signal comes.

        Arguments:
            ready: called once it is open.
            stopping: called when it begins to close.

        Raises what `open` raises.
        """
        stop = asyncio.Event()
        self._serving = (asyncio.get_running_loop(), stop)
        try:
            with on_signals(stop.set):
                try:
                    if self._engine.is_new:
                        await self.open()
                    if ready is not None:
                        ready()
                    await stop.wait()
                    if stopping is not None:
                        stopping()
                finally:
                    await self.close()
        finally:
            self._serving = None

    def stop_serving(self) -> None:
        """Have `serve` end as a signal does; from any thread. Does nothing where it is not serving."""
        if (serving := self._serving) is not None:
            loop, stop = serving
            loop.call_soon_threadsafe(stop.set)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def lifespan(self, asgi_app: object = None) -> AsyncIterator[None]:
        """For web frameworks: `FastAPI(lifespan=app.lifespan)`."""
        async with self:
            yield

    @overload
    async def start(self, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    async def start(self, task: Task[..., R], /, *args: Any, connection: object, **kwargs: Any) -> Handle[R]: ...
    async def start(self, task: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Start a run; durable when it returns.

        With `connection=` (a psycopg `AsyncConnection` to the store's database, in a transaction) it comes into being when the caller
        commits that transaction, and not at all if the caller does not. Where none is open one is begun, which the caller has to
        commit, but a connection in autocommit is refused (`ConfigError`). A key that another open transaction has used is waited for;
        used twice in one transaction it raises `ConflictError`. A task with a parameter of that name gets it as an argument.

        Raises `ValidationError`, `ConflictError`, `RefusedError`, `NotStorableError`, `StorageError`.
        """
        if not isinstance(task, Task):
            raise ConfigError(f"start() takes a task, got {task!r}: decorate the function with @task", key="task")
        definition, scope = task.definition, current_scope.get()
        connection = None
        if "connection" not in definition.facts.signature.parameters:
            connection = kwargs.pop("connection", None)
        if connection is not None:
            run_id, key = await self._engine.start_run_on(connection, definition, task.start_options, args, kwargs)
        elif scope is not None and scope.host is self._engine:  # in a body it starts once, also over replay
            run_id, key = await scope.start_task(definition, task.start_options, args, kwargs)
        else:
            run_id, key = await self._engine.start_run(definition, task.start_options, args, kwargs)
        return Handle(self._engine, run_id, key, definition.result_hint)

    async def get(self, run_id: str) -> Handle[Any]:
        """The run with this id. Raises `RunNotFoundError`."""
        self._engine.check_readable()
        return self._handle(await self._engine.find_run(run_id))

    async def find(self, key: str, *, user: str | None = None) -> Handle[Any] | None:
        """The run that was started with this key: by `user`, else by the one of `run_as`, else by nobody in particular.

        Keys belong to users. Where nobody in particular has the key, but one user has, it is that one's run; where several have,
        `ConflictError` asks for `user=`.
        """
        self._engine.check_readable()
        identity = current_identity.get()
        owner = user if user is not None or identity is None else identity.user
        run = await self._engine.store.find_key(owner, key)
        if run is None and owner is None:
            others = await self._engine.store.query(RunFilter(key=key, limit=2))
            if len(others) > 1:
                raise ConflictError(f"several users have a run with the key {key!r}: say which with user=", key=key)
            run = others[0] if others else None
        return None if run is None else self._handle(run)

    def _handle(self, run: Any) -> Handle[Any]:
        definition = self._engine.definition_of(run.task)
        return Handle(self._engine, run.run_id, run.key, Any if definition is None else definition.result_hint)

    async def runs(
        self,
        *,
        status: Status | str | Iterable[Status | str] | None = None,
        task: Task[..., Any] | str | None = None,
        user: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> AsyncIterator[RunInfo]:
        """Runs in the order in which they were created; `after` is the id of the last one seen."""
        self._engine.check_readable()
        wanted = None if status is None else frozenset(map(_status, [status] if isinstance(status, str) else status))
        name = task.name if isinstance(task, Task) else task
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = await self._engine.store.query(
                RunFilter(status=wanted, task=name, user=user, after=after, limit=size)
            )
            for run in page:
                yield RunInfo.of(run)
            if len(page) < size:
                return
            after = page[-1].run_id
            left = None if left is None else left - size

    async def subscribe(
        self, key_or_run_id: str, after: int = 0, *, steps: bool = False, heartbeat: float | timedelta | None = None
    ) -> AsyncIterator[Event]:
        """The events of the run with this key or id, as `Handle.events`. Raises `RunNotFoundError`."""
        handle = await self.find(key_or_run_id)
        if handle is None and is_run_id(key_or_run_id):
            handle = await self.get(key_or_run_id)
        if handle is None:
            raise RunNotFoundError(f"no run has the key or id {key_or_run_id!r} in this store")
        async with aclosing(handle.events(after, steps, heartbeat)) as events:  # type: ignore[type-var]  # it is a generator
            async for event in events:
                yield event

    async def stats(self) -> Stats:
        """How much is going on, and what happened since the opening."""
        self._engine.check_readable()
        return await self._engine.stats()


def _check_limits(limits: Limits, execute: bool) -> None:
    if not isinstance(limits, Limits):
        raise ConfigError(f"app.limits takes a Limits, got {limits!r:.100}", key="limits")
    if limits.max_queued == 0 and not execute:
        raise ConfigError(
            "max_queued=0 lets a start wait for a slot of its own process, and with execute=False that has none",
            key="limits.max_queued",
        )


def _status(value: Status | str) -> Status:
    try:
        return Status(value)
    except ValueError:
        raise ConfigError(f"status {value!r} is none of {', '.join(Status)}", key="status") from None


def _checked(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    given = tuple(observers)
    for some in given:
        if not isinstance(some, Observer):
            raise ConfigError(
                f"Durable(observers=[{some!r:.100}]): an observer is an object of a subclass of durable.observe.Observer",
                key="observers",
            )
    if sum(isinstance(some, Telemetry) for some in given) > 1:
        raise ConfigError("Durable(observers=...): one OpenTelemetry is the most there can be", key="observers")
    return given


def _store_of(target: object, config: Config, clock: Clock, entropy: Entropy) -> Store:
    """Choose the store that the target means."""
    if isinstance(target, str | os.PathLike):
        text = os.fspath(target)
        if not isinstance(text, str) or not text:
            raise ConfigError(f"Durable({target!r}): the target must be a directory, a URL or a store", key="target")
        if text.startswith(("postgresql://", "postgres://")):
            return _postgres(text, config, clock, entropy)
        if "://" in text:
            raise ConfigError(
                f"Durable({text.split('://')[0]}://...): a URL must begin with postgresql://; else give a folder or a store",
                key="target",
            )
        return LocalStore(Path(text), log=config.log, flush=config.flush, clock=clock, entropy=entropy)
    if not all(hasattr(target, name) for name in ("open", "close", "commit", "find", "history", "query")):
        raise ConfigError(f"Durable({target!r}): the target must be a directory, a URL or a store", key="target")
    return target  # type: ignore[return-value]


def _postgres(url: str, config: Config, clock: Clock, entropy: Entropy) -> Store:
    try:
        from durable.store.postgres import PostgresStore
    except ImportError as error:
        raise ConfigError(
            f"a PostgreSQL store needs psycopg ({error}): pip install 'durable[postgres]'", key="target"
        ) from error
    return PostgresStore(url, config.postgres, clock=clock, entropy=entropy)
