"""Threads for plain `def` functions.

Law: a thread that hangs keeps neither an application from closing nor its process from ending; what it comes to after its call was given
up is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads(Executor):
    """Runs functions in threads, begun as they are needed.

    Those of `ThreadPoolExecutor` are waited for when the interpreter ends, however long that takes.

    Arguments:
        most: how many at once; further calls wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = self._busy = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in the next thread that is free."""
        future: Future[T] = Future()
        with self._lock:
            self._busy += 1
            self._jobs.put((future, partial(fn, *args, **kwargs)))
            if self._begun < min(self._busy, self._most):
                self._begun += 1
                threading.Thread(target=self._work, name=f"durable-body-{self._begun}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Begin nothing more. Threads cannot be stopped, and are left to end by themselves."""
        for _ in range(self._begun):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _run(*job)
            del job
            with self._lock:
                self._busy -= 1


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except StopIteration as stop:  # which no future of asyncio can hold
        error = RuntimeError(f"a function that runs in a thread raised {stop!r}")
        error.__cause__ = stop
        future.set_exception(error)
    except BaseException as error:  # noqa: BLE001 - whatever it raises is for who awaits it
        future.set_exception(error)
    else:
        future.set_result(result)
