"""A virtual world for asyncio code: a loop whose clock jumps, with no real I/O, in an order given by a seed.

Law: the same seed gives the same run; nothing waits for real, and code that waits for what can never come gets
`DeadlockError`.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from durable.log.worker import Done, Job

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")


class DeadlockError(RuntimeError):
    """Nothing can ever wake this loop again."""


class _JumpingSelector(selectors.BaseSelector):
    """Knows no file; instead of waiting it moves the loop's clock."""

    loop: SimulatedLoop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise NotImplementedError("a simulated loop does no real I/O")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise NotImplementedError("a simulated loop does no real I/O")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.loop._advance(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def close(self) -> None:
        pass


class SimulatedClock:
    """`durable.clock.Clock` on a simulated loop."""

    def __init__(self, loop: SimulatedLoop, *, started_at: float = 1_700_000_000.0) -> None:
        self._loop = loop
        #: Move this to let the wall clock jump.
        self.started_at = started_at

    def now(self) -> float:
        return self.started_at + self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()


class SimulatedEntropy:
    """`durable.clock.Entropy` from a seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def token_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time.

    Arguments:
        seed: decides all random delays and orders.
        shuffle: probability that the callbacks which are ready in one turn run in another order; asyncio itself never
        does that,
            so use it only for code that claims not to care.
    """

    def __init__(self, seed: int = 0, *, shuffle: float = 0.0) -> None:
        self._virtual = 0.0
        self.rng = random.Random(seed)
        self.shuffle = shuffle
        #: A number that two runs share if, very probably, they did the same at the same times.
        self.trace = 0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self.clock = SimulatedClock(self)
        self.entropy = SimulatedEntropy(random.Random(seed ^ 0x5EED))

    def time(self) -> float:
        return self._virtual

    def _advance(self, timeout: float | None) -> None:
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]  # no public way to see or to shuffle what is ready
        if timeout is None:
            raise DeadlockError("nothing can ever wake this loop")
        self._virtual += max(0.0, timeout)
        self.trace = (self.trace * 1_000_003 ^ round(self._virtual * 1e6) * 31 + len(ready)) & (2**64 - 1)
        if self.shuffle and len(ready) > 1 and self.rng.random() < self.shuffle:
            order = list(ready)
            self.rng.shuffle(order)
            ready.clear()
            ready.extend(order)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Arguments]], _Result], *args: *_Arguments
    ) -> asyncio.Future[_Result]:
        """Runs inline, a little later: threads would not be the same twice."""
        future: asyncio.Future[_Result] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - it belongs to whoever gave the job
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self.rng.random() * 0.003, run)
        return future

    def abandon(self) -> None:
        """The process is dead: forget all tasks without running another line of theirs, and close."""
        for handle in (*self._ready, *self._scheduled):  # type: ignore[attr-defined]
            handle.cancel()
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is meant to vanish
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()

    # The loop wakes itself by a socket pair, which would be real I/O.
    def _make_self_pipe(self) -> None: ...

    def _close_self_pipe(self) -> None: ...

    def _write_to_self(self) -> None: ...


class SimulatedWorker:
    """A `durable.log.Worker` that runs each job inline on the simulated loop, after a random delay; `done` comes
    later still."""

    def __init__(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop), "a simulated worker needs a simulated loop"
        self._loop, self.name = loop, name
        self._jobs: deque[tuple[Job, Done]] = deque()
        self._busy = False
        self._done_at = 0.0

    def submit(self, job: Job, done: Done) -> None:
        self._jobs.append((job, done))
        if not self._busy:
            self._busy = True
            self._loop.call_later(self._delay(), self._run)

    def close(self) -> None:
        """Nothing to stop: what was submitted still runs as long as the loop does."""

    def _delay(self) -> float:
        return self._loop.rng.choice((0.0, 0.0001, 0.001, 0.02)) * self._loop.rng.random()

    def _run(self) -> None:
        job, done = self._jobs.popleft()
        result: Any = None
        failure: Exception | None = None
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever gave the job
            failure = error
        if self._jobs:
            self._loop.call_later(self._delay(), self._run)
        else:
            self._busy = False
        # Later, but never before the `done` of an earlier job; equal times have no order in asyncio's heap.
        self._done_at = max(self._done_at + 1e-9, self._loop.time() + self._delay())
        self._loop.call_at(self._done_at, done, result, failure)
