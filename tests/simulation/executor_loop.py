"""One virtual loop for several simulated processes, each of which can die or be frozen at any callback.

Law: a callback belongs to the process in whose context it was asked for. A dead process runs nothing more, not even a `finally`; a frozen
one runs all that has come for it when it is let go again, in the order in which it came. Time goes on for both.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any, Literal

from durable.testing.loop import SimulatedLoop

State = Literal["running", "frozen", "dead"]
#: What belongs to no process: the database, the network, the simulation itself.
NOBODY = Context()


class Process:
    """What callbacks belong to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: State = "running"
        self.context = copy_context()
        self.context.run(_process.set, self)
        self._parked: list[_Handle] = []
        #: After how many callbacks, and what then happens to it.
        self._countdown: tuple[int, Callable[[], None]] | None = None

    def after(self, callbacks: int, happens: Callable[[], None]) -> None:
        """Have something happen to it before one of its next callbacks."""
        self._countdown = (callbacks, happens)

    def thaw(self) -> None:
        """Let it go on."""
        if self.state == "frozen":
            self.state = "running"
            loop = asyncio.get_running_loop()
            parked, self._parked = self._parked, []
            loop._ready.extend(parked)  # type: ignore[attr-defined]  # each is cancelled or not, as its owner left it

    def admits(self, handle: _Handle) -> bool:
        """Whether the process runs this now."""
        if self._countdown is not None:
            left, happens = self._countdown
            self._countdown = (left - 1, happens) if left else None
            if not left:
                happens()
        if self.state == "frozen":
            self._parked.append(handle)
        return self.state == "running"


_process: ContextVar[Process | None] = ContextVar("process", default=None)


class _Handle(asyncio.Handle):
    process: Process | None = None

    def _run(self) -> None:
        if self.process is None or self.process.admits(self):
            super()._run()


class _TimerHandle(_Handle, asyncio.TimerHandle):
    pass


def _of(context: Context | None) -> Process | None:
    return _process.get() if context is None else context.get(_process)


class ExecutorLoop(SimulatedLoop):
    """See the module."""

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> _Handle:
        handle = _Handle(callback, args, self, context)
        handle.process = _of(context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        handle = _TimerHandle(when, callback, args, self, context)
        handle.process = _of(context)
        heapq.heappush(self._scheduled, handle)  # type: ignore[attr-defined]
        handle._scheduled = True
        return handle
