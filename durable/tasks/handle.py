"""`Handle`: a run as its caller sees it, from anywhere.

Law: a handle holds no state of the run; every answer was durable before it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic
from weakref import WeakValueDictionary

from typing_extensions import TypeVar

from durable.codec import Codec
from durable.core.records import Kind, Record
from durable.core.retry import seconds
from durable.core.run import Run
from durable.core.status import Status
from durable.errors import ConfigError, DecodeError
from durable.tasks.child import found_children, resolve
from durable.tasks.host import Host
from durable.tasks.outcome import raise_end

R = TypeVar("R", default=Any)
R_co = TypeVar("R_co", covariant=True, default=Any)


def to_datetime(at: float) -> datetime:
    """Seconds since the epoch as an aware UTC datetime."""
    return datetime.fromtimestamp(at, UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """A numbered fact of a run.

    Arguments:
        seq: 1, 2, 3 ... over all records of the run.
        name: what it is; for a typed event the name of its class.
        data: what was emitted, or a dict that tells about the engine's own events.
        at: when, UTC.
        attempt: in which attempt, from 1.
    """

    seq: int
    name: str
    data: Any
    at: datetime
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run as it was last acknowledged."""

    run_id: str
    task_name: str
    status: Status
    key: str | None
    user: str | None
    version: str | None
    parent_id: str | None
    attempt: int
    max_attempts: int
    priority: int
    recoveries: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    closed: bool
    dead: bool
    error_type: str | None
    error: str | None
    reason: str | None
    last_seq: int
    #: What `Handle.info` says of a run that nobody can execute now: which code it needs, which there is, and what to do.
    waits_for: str | None = None

    @classmethod
    def of(cls, run: Run, waits_for: str | None = None) -> RunInfo:
        """Describe a run."""
        failure = run.failure or {}
        return cls(
            run_id=run.run_id,
            task_name=run.task,
            status=run.status,
            key=run.key,
            user=run.user,
            version=run.version,
            parent_id=run.parent_id,
            attempt=run.attempt,
            max_attempts=run.max_attempts,
            priority=run.priority,
            recoveries=run.recoveries,
            created_at=to_datetime(run.created_at),
            started_at=None if run.started_at is None else to_datetime(run.started_at),
            ended_at=None if run.ended_at is None else to_datetime(run.ended_at),
            closed=run.closed,
            dead=run.dead,
            error_type=failure.get("error_type"),
            error=failure.get("message"),
            reason=run.reason,
            last_seq=run.seq,
            waits_for=waits_for,
        )


#: Classes of typed events that are defined inside a function, by name: no module could find them again.
_local_events: WeakValueDictionary[str, type] = WeakValueDictionary()


def remember_event_class(kind: type) -> None:
    """Have events of this class decoded, even if it is defined inside a function."""
    if "<locals>" in kind.__qualname__:
        _local_events[kind.__name__] = kind


def _decoded(payload: bytes | None, codec: Codec, expected: Any = Any) -> Any:
    """Decode what an observer asks for; where its class is not loaded, the stored text says more than an error."""
    if payload is None:
        return None
    try:
        return codec.decode(payload, expected)
    except DecodeError:
        return payload.decode("utf-8", "replace")


_ENGINE_EVENTS: dict[Kind, Callable[[Record, Codec], Any]] = {
    Kind.CREATED: lambda record, codec: {
        "task": record.name,
        **_public(record),
        "input": _decoded(record.payload, codec),
    },
    Kind.COMPLETED: lambda record, codec: {"result": _decoded(record.payload, codec)},
    Kind.CHILDREN_STARTED: lambda record, codec: {"children": record.head.get("children", 0)},
    Kind.EVENT: lambda record, codec: _decoded(record.payload, codec, _local_events.get(record.name, Any)),
    Kind.SIGNAL: lambda record, codec: {"name": record.name, "data": _decoded(record.payload, codec)},
    Kind.STEP_COMPLETED: lambda record, codec: {**_step(record), "result": _decoded(record.payload, codec)},
}


def _public(record: Record) -> dict[str, Any]:
    return {key: record.head[key] for key in ("key", "user", "parent", "version") if key in record.head}


def _step(record: Record) -> dict[str, Any]:
    return {"step": record.name, "occurrence": record.occurrence}


def to_event(record: Record, codec: Codec) -> Event:
    """A record as subscribers see it."""
    tell = _ENGINE_EVENTS.get(record.kind)
    if tell is not None:
        value = tell(record, codec)
    elif not record.name:
        value = dict(record.head)
    else:
        value = {**_step(record), **record.head}
    return Event(record.seq, record.event_name, value, to_datetime(record.at), record.attempt)


class Handle(Generic[R_co]):
    """A run, started or found. `await handle` is `await handle.wait()`.

    Arguments:
        run_id: the run.
        key: the key under which it was started, if any.
    """

    __slots__ = ("_host", "_returns", "key", "run_id")

    def __init__(self, host: Host, run_id: str, key: str | None, returns: Any = Any) -> None:
        self._host = host
        self._returns = returns
        self.run_id: str = run_id
        self.key: str | None = key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return NotImplemented
        return self.run_id == other.run_id

    def __hash__(self) -> int:
        return hash(self.run_id)

    def __repr__(self) -> str:
        return f"Handle(run_id={self.run_id!r}, key={self.key!r})"

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.wait().__await__()

    async def wait(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the end and return the result.

        Raises `RunFailedError`, `RunTimedOutError` or `RunCancelledError` for a run that ended otherwise, and `TimeoutError` after
        `timeout` seconds, which leaves the run alone. Each `Child` in the result has its outcome.
        """
        if timeout is None:
            run = await self._host.wait_ended(self.run_id)
        else:
            async with asyncio.timeout(seconds(timeout, "timeout")):
                run = await self._host.wait_ended(self.run_id)
        if run.status is not Status.COMPLETED:
            raise_end(run)
        payload = run.result or b"null"
        with found_children() as found:
            result: R_co = self._host.codec.decode(payload, self._returns)  # type: ignore[assignment]
        if found:
            await resolve(self.run_id, found, self._host.end_children)
        return result

    async def status(self) -> Status:
        """The run's status."""
        return (await self._host.find_run(self.run_id)).status

    async def info(self) -> RunInfo:
        """All about the run but its input and result."""
        run = await self._host.find_run(self.run_id)
        return RunInfo.of(run, await self._host.lacks(run))

    async def events(
        self, after: int = 0, steps: bool = False, heartbeat: float | timedelta | None = None
    ) -> AsyncIterator[Event]:
        """Events with a higher `seq` than `after`: those that were, then live ones; ends with the run.

        With `steps=True` all records are seen, and `seq` rises without holes. With `heartbeat` an event of that name, with the `seq`
        of the last one and no data, is seen each time that none came for so long.
        """
        pause = None if heartbeat is None else seconds(heartbeat, "heartbeat")
        if pause == 0:
            raise ConfigError("heartbeat is 0, but must be more than 0 seconds", key="heartbeat")
        codec = self._host.codec
        async with aclosing(self._host.records(self.run_id, after, steps=steps, heartbeat=pause)) as records:
            async for record in records:
                yield to_event(record, codec)

    async def cancel(self, reason: str | None = None) -> None:
        """End the run and its unfinished children. A run that has ended stays as it is."""
        await self._host.cancel_run(self.run_id, reason)

    async def stop(self, reason: str | None = None) -> None:
        """Suspend the run until `resume()`. Raises `TransitionError` when it has ended."""
        await self._host.stop_run(self.run_id, reason)

    async def resume(self) -> None:
        """Go on with a suspended run. Raises `TransitionError` for any other."""
        await self._host.resume_run(self.run_id)

    async def retry(self) -> None:
        """Let a run that failed go on from the step that failed, with the policy's attempts anew. Raises `TransitionError`."""
        await self._host.retry_run(self.run_id)

    async def send(self, name: str, data: object = None) -> None:
        """Send a signal to `ctx.wait_for(name)`. Durable when it returns; kept until the run takes it."""
        await self._host.send_signal(self.run_id, name, data)

    async def children(self) -> list[Handle[Any]]:
        """The runs that this run started, in order."""
        return [Handle(self._host, run.run_id, run.key) for run in await self._host.children_of(self.run_id)]
