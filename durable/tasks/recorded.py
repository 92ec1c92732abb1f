"""Functions for bodies whose outcome is recorded: `sleep`, `timeout`, `now`, `random`, `uuid4`, `map`; and identities.

Law: outside a body (in a step, in a unit test) each does what its namesake in the standard library does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar
from uuid import UUID

from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY, fraction_of, uuid4_of
from durable.core.retry import seconds
from durable.errors import ConfigError
from durable.tasks.host import UserContext, current_identity, current_scope

A = TypeVar("A")
B = TypeVar("B")


async def sleep(delay: float | timedelta) -> None:
    """Sleep for `delay` (seconds or timedelta). In a body the end is recorded: a crash neither lengthens nor repeats the sleep."""
    wait = seconds(delay, "delay")
    scope = current_scope.get()
    if scope is None:
        await asyncio.sleep(wait)
    else:
        await scope.sleep(wait)


def now() -> datetime:
    """The time, aware UTC. In a body it is recorded, so that a replay sees the same."""
    scope = current_scope.get()
    return datetime.fromtimestamp(SYSTEM_CLOCK.now(), UTC) if scope is None else scope.now()


def random() -> float:
    """A random number in [0, 1). In a body a replay sees the same."""
    scope = current_scope.get()
    return fraction_of(SYSTEM_ENTROPY.token_bytes(7)) if scope is None else scope.random()


def uuid4() -> UUID:
    """A random UUID. In a body a replay sees the same, so it is good for idempotency keys."""
    scope = current_scope.get()
    return uuid4_of(SYSTEM_ENTROPY.token_bytes(16)) if scope is None else scope.uuid4()


class timeout:  # like asyncio.timeout
    """`async with durable.timeout(seconds):` raises `TimeoutError` when the block takes longer.

    In a body the deadline is recorded: it goes on while no process runs, and a replay of a block that timed out does not wait again.
    """

    def __init__(self, delay: float | timedelta) -> None:
        self._seconds = seconds(delay, "delay")
        self._plain: asyncio.Timeout | None = None
        self._alarm: asyncio.Task[Any] | None = None
        self._fired = False

    async def __aenter__(self) -> timeout:
        scope = current_scope.get()
        if scope is None:
            self._plain = asyncio.timeout(self._seconds)
        else:
            self._plain = asyncio.timeout(None)
            alarm = await scope.deadline(self._seconds)
            if alarm is not None:
                self._alarm = asyncio.ensure_future(alarm)
                self._alarm.add_done_callback(self._ring)
            else:
                self._plain = asyncio.timeout(self._seconds)
        await self._plain.__aenter__()
        return self

    def _ring(self, alarm: asyncio.Task[Any]) -> None:
        if not alarm.cancelled() and alarm.exception() is None and self._plain is not None and not self._fired:
            self._fired = True
            # A deadline in the past makes asyncio cancel the block at once and turn that into TimeoutError.
            self._plain.reschedule(asyncio.get_running_loop().time())

    def expired(self) -> bool:
        """Whether the block was cut off."""
        return self._plain is not None and self._plain.expired()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fired = True  # whatever the alarm says from now on is too late
        if self._alarm is not None:
            self._alarm.cancel()
        assert self._plain is not None, "__aexit__ without __aenter__"
        await self._plain.__aexit__(kind, error, trace)


async def map(  # the public name is durable.map
    function: Callable[[A], Coroutine[Any, Any, B]], items: Iterable[A], *, limit: int = 8
) -> list[B]:
    """Call a task or step for each item, at most `limit` at once; the results are in the order of the items.

    The first call that fails cancels the others and its error is raised.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"map(limit={limit!r}) must be an int of at least 1", key="limit")
    pending = enumerate(items)
    results: dict[int, B] = {}

    async def worker() -> None:
        for index, item in pending:  # shared by all workers: each takes the next item
            results[index] = await function(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(limit)]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for other in workers:
            other.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise
    return [results[index] for index in range(len(results))]


@contextmanager
def run_as(identity: UserContext) -> Iterator[UserContext]:
    """Carry an identity to the runs that are started in the block; they belong to its user, and `current_user()` reads it there."""
    if not isinstance(identity, UserContext):
        raise ConfigError(f"run_as() needs a UserContext, got {type(identity).__name__}", key="identity")
    token = current_identity.set(identity)
    try:
        yield identity
    finally:
        current_identity.reset(token)


def current_user() -> UserContext | None:
    """The identity under which this code runs: in a task or step, the one that its run was started with."""
    return current_identity.get()
