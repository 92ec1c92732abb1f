"""Threads for plain `def` functions.

Law: a thread that hangs keeps neither an application from closing nor its process from ending; what it comes to after its call was given
up is dropped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = tuple[asyncio.Future[Any], Callable[[], Any]]


class Threads:
    """Runs functions in threads, begun as they are needed.

    Those of `concurrent.futures` are waited for when the interpreter ends, however long that takes.

    Arguments:
        most: how many at once; further calls wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._begun = self._busy = 0

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """What the function returns, to be awaited."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._busy += 1
        self._jobs.put((future, function))
        if self._begun < min(self._busy, self._most):
            self._begun += 1
            threading.Thread(target=self._work, name=f"durable-body-{self._begun}", daemon=True).start()
        return future

    def close(self) -> None:
        """Begin nothing more. Threads cannot be stopped, and are left to end by themselves."""
        for _ in range(self._begun):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function = job
            result: Any = None
            error: BaseException | None = None
            if not future.cancelled():
                try:
                    result = function()
                except StopIteration as stop:  # which no future can hold
                    error = RuntimeError(f"a function that runs in a thread raised {stop!r}")
                    error.__cause__ = stop
                except BaseException as raised:  # noqa: BLE001 - whatever it raises is for who awaits it
                    error = raised
            try:
                self._loop.call_soon_threadsafe(self._told, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more
            del job, future, function, result, error

    def _told(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
