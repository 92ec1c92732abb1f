"""Calls that wait: for a time, and for a signal.

Law: when a wait ends is recorded as it begins, so that a crash neither prolongs it nor starts it anew. A signal that was taken for a
call which is then given up is unread again.
"""

from __future__ import annotations

import asyncio

from durable.core.commands import Receive
from durable.core.records import Call, Kind, Record
from durable.engine.attempt import Attempt
from durable.engine.scheduler import TIMER_SECONDS_MAX
from durable.engine.services import patiently
from durable.errors import DurableError


def _deadline(attempt: Attempt, call: Call, kind: Kind, seconds: float, what: str) -> float:
    """The wall-clock time at which the wait ends; recorded now, unless it was before."""
    marker = attempt.memo.marker(call)
    if marker is not None:
        return float(marker.head["until"])
    until = attempt.services.clock.now() + seconds
    attempt.note(kind, call, None, {"until": until, "what": what})
    return until


async def run_timer(attempt: Attempt, call: Call, seconds: float) -> Record:
    """Sleep until the recorded time."""
    until = attempt.deadlines[call] = _deadline(attempt, call, Kind.TIMER_SET, seconds, call[0])
    try:
        while (left := until - attempt.services.clock.now()) > TIMER_SECONDS_MAX:  # noqa: ASYNC110 - the clock may be set
            await asyncio.sleep(TIMER_SECONDS_MAX)
        await asyncio.sleep(max(0.0, left))
    except asyncio.CancelledError:
        del attempt.deadlines[call]
        attempt.note_cancelled(call)
        raise
    try:
        return await attempt.settle(call, Kind.STEP_COMPLETED, None)
    finally:
        del attempt.deadlines[
            call
        ]  # not before: a body that is about to get its time back does not wait for anything else


async def receive(attempt: Attempt, call: Call, name: str, timeout: float | None) -> Record:
    """Wait for a signal, and take it."""
    until = None
    if timeout is not None:
        until = _deadline(attempt, call, Kind.WAITING, timeout, name)
    elif attempt.memo.marker(call) is None:
        attempt.note(Kind.WAITING, call, None, {"what": name})
    future = attempt.delivery.expect(call)
    mailbox = attempt.mailboxes.get(name)
    if not isinstance(mailbox, Mailbox):
        mailbox = attempt.mailboxes[name] = Mailbox(attempt, name)
    mailbox.calls.append(call)
    mailbox.wake()
    expired = False

    def expire() -> None:
        nonlocal expired
        if call in mailbox.calls:
            expired = True
            mailbox.give_up(call)
            attempt.note_failure(call, TimeoutError(f"no signal {name!r} came within {timeout:g} s"))

    timer = None
    if until is not None:
        left = max(0.0, until - attempt.services.clock.now())
        attempt.deadlines[call] = until
        timer = asyncio.get_running_loop().call_later(left, expire)
    try:
        # The future itself, and nothing around it: on replay the result comes by it too, in as many turns of the loop.
        return await future
    except asyncio.CancelledError:
        if not expired:  # else its outcome is on the way, and a call has one
            seq = mailbox.give_up(call)
            attempt.note_cancelled(call, None if seq is None else {"unread": seq, "what": name})
            mailbox.wake()
        raise
    finally:
        if timer is not None:
            timer.cancel()
            attempt.deadlines.pop(call, None)


class Mailbox:
    """The calls of one attempt that wait for signals of one name: the oldest signal goes to the call that has waited longest."""

    def __init__(self, attempt: Attempt, name: str) -> None:
        self._attempt = attempt
        self._name = name
        self._handing_out: asyncio.Task[None] | None = None
        #: Calls that wait, the oldest first.
        self.calls: list[Call] = []
        #: The signals (by seq) that were taken for calls.
        self.taken: dict[Call, int] = {}

    def wake(self) -> None:
        """Hand out what is there."""
        if self.calls and self._handing_out is None and self._oldest() is not None:
            self._handing_out = asyncio.ensure_future(self._hand_out())

    @property
    def is_busy(self) -> bool:
        """Whether a signal is being handed out."""
        return self._handing_out is not None

    def close(self) -> None:
        """The attempt is over."""
        if self._handing_out is not None:
            self._handing_out.cancel()

    def give_up(self, call: Call) -> int | None:
        """The call no longer waits. Returns the signal that was taken for it, if one was."""
        if call in self.calls:
            self.calls.remove(call)
        return self.taken.pop(call, None)

    def _oldest(self) -> int | None:
        return next((seq for seq, name in self._attempt.entry.run.signals if name == self._name), None)

    async def _hand_out(self) -> None:
        attempt = self._attempt
        try:
            while self.calls and (seq := self._oldest()) is not None:
                payload = await self._payload(seq)
                if self.calls and self._oldest() == seq:
                    call = self.calls.pop(0)
                    self.taken[call] = seq
                    attempt.services.pipeline.stage(
                        attempt.entry, Receive(self._name, call, {seq: payload}, attempt.marked())
                    )
        except DurableError:
            return  # the attempt is over, or the store failed: the body is being stopped
        finally:
            self._handing_out = None

    async def _payload(self, seq: int) -> bytes | None:
        """What a signal holds, once it is durable."""
        attempt = self._attempt
        while True:
            records = await patiently(lambda: attempt.services.store.history(attempt.run_id, after=seq - 1, limit=1))
            if records:
                return records[0].payload
            await attempt.services.pipeline.durable(attempt.entry)
            await asyncio.sleep(0)
