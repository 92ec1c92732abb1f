"""Calling users' functions: on the loop, in a thread, or in a process of its own.

Law: a call that is cancelled leaves nothing behind that could report later: a thread's late result is dropped, a process is killed.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from functools import partial
from typing import Any, Literal

from durable.engine.isolation import ProcessPool
from durable.engine.threads import Threads
from durable.tasks.definition import FunctionFacts


class Invoker:
    """Runs functions.

    Arguments:
        threads: most plain `def` functions at once.
        processes: most `isolate="process"` steps at once.
    """

    def __init__(self, threads: int, processes: int) -> None:
        self._threads_max = threads
        self._processes_max = processes
        self._threads: Threads | None = None
        self._processes: ProcessPool | None = None

    async def call(
        self,
        facts: FunctionFacts,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        isolate: Literal["process"] | None = None,
    ) -> Any:
        """Call the function in the way that its definition asks for."""
        if isolate is not None:
            if self._processes is None:
                self._processes = ProcessPool(self._processes_max)
            return await self._processes.run(facts.function, args, kwargs)
        if facts.shape == "coroutine":
            return await facts.function(*args, **kwargs)
        if self._threads is None:
            self._threads = Threads(self._threads_max)
        run = partial(copy_context().run, facts.function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def close(self) -> None:
        """Kill the processes; threads cannot be killed and are left to end by themselves."""
        if self._processes is not None:
            await self._processes.close()
        if self._threads is not None:
            self._threads.shutdown()
