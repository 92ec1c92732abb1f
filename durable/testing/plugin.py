"""A pytest plugin, there wherever durable is installed: `durable_app`, an application in memory, and `durable_clock`, whose time jumps.

Law: time jumps only while nothing else can happen: to the next timer of the loop, and no further. It needs pytest-asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from durable.app import Durable
from durable.clock import SYSTEM_CLOCK
from durable.store.memory import MemoryStore
from durable.testing.crash import crash_everywhere as crash_a_run_everywhere

try:
    from pytest_asyncio import fixture as async_fixture
except ImportError:  # the fixtures then say so, when somebody asks for one
    async_fixture = pytest.fixture  # type: ignore[assignment]

#: How long a thread that is at work may take to answer before the loop counts as idle, seconds.
THREAD_SECONDS = 0.01

#: By how much the time of each loop is ahead of the machine's, seconds.
_ahead: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


class LoopClock:
    """`durable.clock.Clock` as a loop has it: the machine's time, and what it jumped.

    Arguments:
        loop: the loop of the test.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return SYSTEM_CLOCK.now() + _ahead.get(self._loop, 0.0)

    def monotonic(self) -> float:
        """A clock that never goes back, seconds."""
        return SYSTEM_CLOCK.monotonic() + _ahead.get(self._loop, 0.0)

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once, also while there is something to do."""
        _ahead[self._loop] = _ahead.get(self._loop, 0.0) + seconds


class _Jumping:
    """Makes a loop jump where it would wait for a timer."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._time: Callable[[], float] = loop.time
        self._select: Callable[[float | None], list[Any]] = loop._selector.select

    def begin(self) -> None:
        _ahead.setdefault(self._loop, 0.0)
        self._loop.time = lambda: self._time() + _ahead[self._loop]
        self._loop._selector.select = self._jump

    def end(self) -> None:
        # The time stays ahead: timers that are set count on it.
        self._loop._selector.select = self._select

    def _jump(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout <= 0:
            return self._select(timeout)
        events = self._select(min(timeout, THREAD_SECONDS))
        if not events and timeout > THREAD_SECONDS:
            _ahead[self._loop] += timeout - THREAD_SECONDS
        return events


@async_fixture
async def durable_clock() -> AsyncIterator[LoopClock]:
    """The clock of this test's loop. While it is in use, time jumps to the next timer whenever nothing is left to do."""
    loop = asyncio.get_running_loop()
    jumping = _Jumping(loop)
    jumping.begin()
    try:
        yield LoopClock(loop)
    finally:
        jumping.end()


@async_fixture
async def durable_app() -> AsyncIterator[Durable]:
    """An open application on a `MemoryStore` of its own, in the time of this test's loop."""
    async with Durable(MemoryStore(), test_mode=True, clock=LoopClock(asyncio.get_running_loop())) as app:
        yield app


@pytest.fixture
def crash_everywhere() -> Callable[..., Any]:
    """See `durable.testing.crash_everywhere`."""
    return crash_a_run_everywhere
