"""Delivery: when a body gets the results of its calls.

Law: results are handed back in the batches in which they were committed, one batch at a time, when the run is quiet, live and on replay
alike (what counts as quiet is in `turns.py`). So a body that uses plain asyncio sees the same order when it is replayed. A live run
with one call outstanding, made by the body itself, has nothing that could be in another order, and waits for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from durable.core.memo import Divergence, Memo
from durable.core.records import Call, Kind, Record
from durable.engine.turns import Turns, Watch


class Delivery:
    """Hands one attempt its results.

    Arguments:
        diverged: called once when the code does not do what the record says.
        has_step: whether the code has a step of this name.
        stall_seconds: how long a quiet replay may wait for the next recorded call.
        run_new_steps: whether a step that was added to the code is run.
    """

    __slots__ = (
        "_activity",
        "_concurrent",
        "_diverged",
        "_handed",
        "_has_step",
        "_held",
        "_live",
        "_loop",
        "_memo",
        "_run_new_steps",
        "_stall_seconds",
        "_stalled",
        "_turns",
        "_waiting",
        "_watch",
        "added",
        "outstanding",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        turns: Turns,
        memo: Memo,
        *,
        diverged: Callable[[Divergence], None],
        has_step: Callable[[str], bool],
        stall_seconds: float,
        run_new_steps: bool,
    ) -> None:
        self._loop = loop
        self._turns = turns
        self._memo = memo
        self._diverged = diverged
        self._has_step = has_step
        self._stall_seconds = stall_seconds
        self._run_new_steps = run_new_steps
        self._waiting: dict[Call, asyncio.Future[Record]] = {}
        self._held: dict[Call, asyncio.Future[None]] = {}
        #: Calls that have their result, and have not gone on with it.
        self._handed: set[Call] = set()
        #: Calls that the code gained since the run began.
        self.added: frozenset[Call] = frozenset()
        self._live: list[Sequence[Record]] = []
        #: Calls that have not ended.
        self.outstanding = 0
        self._concurrent = False
        self._activity = 0
        self._watch = Watch(self._quiet)
        self._stalled: asyncio.TimerHandle | None = None

    def begin(self, by_body: bool) -> None:
        """A call was made."""
        self.outstanding += 1
        self._acted()
        if not by_body:
            self._concurrent = True
        if self._live or self._memo.replaying:
            self._arm()

    def end(self) -> None:
        """A call is over."""
        self.outstanding -= 1

    def expect(self, call: Call) -> asyncio.Future[Record]:
        """The result of a call, to be awaited."""
        future: asyncio.Future[Record] = self._loop.create_future()
        self._waiting[call] = future
        return future

    def recall(self, call: Call) -> asyncio.Future[Record]:
        """The recorded result of a call, to be awaited."""
        future = self.expect(call)
        self._arm()
        return future

    def forget(self, call: Call) -> None:
        """Nobody waits for this call any more."""
        self._waiting.pop(call, None)
        self._held.pop(call, None)
        self._handed.discard(call)
        if self._memo.replaying:  # a call that was given up: the batch that recorded this may be next
            self._acted()
            self._arm()

    def hold(self, call: Call) -> asyncio.Future[None] | None:
        """What a call that the record does not have must await before it runs; None when it may run now."""
        if not self._memo.replaying:
            return None
        future: asyncio.Future[None] = self._loop.create_future()
        self._held[call] = future
        self._arm()
        return future

    def committed(self, batch: Sequence[Record]) -> None:
        """Results of this attempt became durable."""
        if self.outstanding <= 1 and not self._concurrent and not self._live and not self._memo.replaying:
            self._hand_over(batch)
        else:
            self._live.append(batch)
            self._arm()

    def relaxed(self) -> None:
        """The record no longer says what comes next."""
        self._acted()
        self._arm()

    @property
    def delivering(self) -> bool:
        """Whether results are on their way to their calls."""
        return bool(self._live or self._handed) or self._watch.armed or self._memo.replaying

    def close(self) -> None:
        """The attempt is over."""
        self._turns.disarm(self._watch)
        # Let go of what leads back here: what an attempt leaves is freed at once, and not by the next collection of cycles.
        self._watch.quiet = _nothing
        self._diverged = _unheard
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _hand_over(self, batch: Sequence[Record]) -> None:
        self._acted()
        for record in batch:
            if record.kind is Kind.STEP_CANCELLED:
                continue  # its call waits until the body cancels it, as it did
            future = self._waiting.pop(record.call, None)
            if future is not None and not future.done():
                future.set_result(record)
                self._handed.add(record.call)

    def _arm(self) -> None:
        """See to it that `_quiet` is called once the run is quiet."""
        if not self._watch.armed:
            self._turns.arm(self._watch)

    def _acted(self) -> None:
        """The run made a call, was handed something, or gave something up."""
        self._activity += 1
        self._turns.touch(self._watch)

    def _quiet(self) -> None:
        batch: Sequence[Record] = self._memo.next_batch(self._waiting)
        if batch:
            self._hand_over(batch)
        elif self._memo.replaying:
            self._judge()
            return
        elif self._held:
            self._release()
        elif self._live:
            self._hand_over(self._live.pop(0))
        else:
            return
        self._arm()

    def _release(self) -> None:
        for future in self._held.values():
            if not future.done():
                future.set_result(None)
        self._held.clear()
        self._acted()

    def _judge(self) -> None:
        """The run is quiet and the next recorded batch is not complete: the code does something else first, or will never get there."""
        for batch in self._live:
            if all(record.call in self.added for record in batch):
                self._live.remove(batch)
                self._hand_over(batch)
                self._arm()
                return
        if self._held and self._run_new_steps and self._memo.diverged(tuple(self._held), self._has_step).added:
            self.added |= self._held.keys()
            self._release()
        elif self._stalled is None and (self._held or self._blocked()):
            # Plain asyncio may still be on its way to the recorded call: give it time.
            self._stalled = self._loop.call_later(self._stall_seconds, self._give_up, self._activity)

    def _blocked(self) -> bool:
        """Whether a recorded result waits behind one that the code has not called for, and no call waits to be cancelled."""
        recorded = [record.kind for call in self._waiting if (record := self._memo.result(call)) is not None]
        return bool(recorded) and Kind.STEP_CANCELLED not in recorded

    def _give_up(self, activity: int) -> None:
        self._stalled = None
        if activity != self._activity:
            self._arm()
        elif self._memo.missing():
            self._diverged(self._memo.diverged(tuple(self._held), self._has_step))


def _nothing() -> None:
    """The attempt is over."""


def _unheard(divergence: Divergence) -> None:
    """The attempt is over."""
