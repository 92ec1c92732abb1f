"""Where blocking work runs: one thread, and the seam that lets a simulation run the same jobs on a virtual loop.

Law: jobs run one at a time in the order in which they were submitted, and `done` runs on the loop, woken once per job.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

Job = Callable[[], Any]
#: Called on the loop with (result, None) or (None, the exception).
Done = Callable[[Any, Exception | None], None]
#: How often an idle thread looks whether the interpreter is leaving; a backstop for a log that nobody closed.
_EXIT_CHECK_SECONDS = 0.5


class Worker(Protocol):
    """Runs jobs off the loop."""

    def submit(self, job: Job, done: Done) -> None:
        """Run `job` soon, after all earlier ones; then `done` on the loop."""
        ...

    def close(self) -> None:
        """Stop after the jobs that were submitted."""
        ...


#: Makes a worker for the running loop; the argument names it.
WorkerFactory = Callable[[str], Worker]


class ThreadWorker:
    """One thread fed by a queue. Not a daemon: a sync in flight ends before the interpreter does."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Job, Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=False)
        self._started = False

    def submit(self, job: Job, done: Done) -> None:
        if not self._started:
            self._started = True
            self._thread.start()
        self._jobs.put((job, done))

    def close(self) -> None:
        if self._started:
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        get, wake = self._jobs.get, self._loop.call_soon_threadsafe
        main = threading.main_thread()
        while True:
            try:
                item = get(timeout=_EXIT_CHECK_SECONDS)
            except Empty:
                if not main.is_alive():
                    return
                continue
            if item is None:
                return
            job, done = item
            result: Any = None
            failure: Exception | None = None
            try:
                result = job()
            except Exception as error:  # noqa: BLE001 - it belongs to whoever gave the job
                failure = error
            try:
                wake(done, result, failure)
            except RuntimeError:  # the loop is closed: nobody is left who could be told
                return
            # An idle thread must not keep a batch's bytes alive.
            del item, job, done, result, failure
