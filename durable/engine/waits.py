"""Calls that wait: for a time, and for a signal.

Law: when a wait ends is recorded as it begins, so that a crash neither prolongs it nor starts it anew.
"""

from __future__ import annotations

import asyncio

from durable.core.commands import Receive
from durable.core.records import Call, Kind, Record
from durable.engine.attempt import Attempt


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
    until = _deadline(attempt, call, Kind.TIMER_SET, seconds, call[0])
    try:
        await asyncio.sleep(max(0.0, until - attempt.services.clock.now()))
    except asyncio.CancelledError:
        attempt.note_cancelled(call)
        raise
    return await attempt.settle(call, Kind.STEP_COMPLETED, None)


async def receive(attempt: Attempt, call: Call, name: str, timeout: float | None) -> Record:
    """Wait for a signal, and take it."""
    until = None
    if timeout is not None:
        until = _deadline(attempt, call, Kind.WAITING, timeout, name)
    elif attempt.memo.marker(call) is None:
        attempt.note(Kind.WAITING, call, None, {"what": name})
    future = attempt.delivery.expect(call)
    taking: asyncio.Task[None] | None = None

    def take() -> None:
        nonlocal taking
        waiting.remove(take)
        taking = asyncio.ensure_future(_take(attempt, call, name))

    waiting = attempt.receivers.setdefault(name, [])
    waiting.append(take)
    if len(waiting) == 1 and any(signal == name for _, signal in attempt.entry.run.signals):
        take()
    try:
        left = None if until is None else max(0.0, until - attempt.services.clock.now())
        done, _ = await asyncio.wait((future,), timeout=left)
        if done or taking is not None:
            return await future
        attempt.delivery.forget(call)
        return await attempt.settle_failure(call, TimeoutError(f"no signal {name!r} came within {timeout:g} s"))
    except asyncio.CancelledError:
        if taking is not None:
            taking.cancel()
        attempt.note_cancelled(call)
        raise
    finally:
        if take in waiting:
            waiting.remove(take)


async def _take(attempt: Attempt, call: Call, name: str) -> None:
    """Hand the oldest signal of this name to the call."""
    known: dict[int, bytes | None] = {}
    while True:
        oldest = next((seq for seq, signal in attempt.entry.run.signals if signal == name), None)
        if oldest is None or oldest in known:
            break
        records = await attempt.services.store.history(attempt.run_id, after=oldest - 1, limit=1)
        known[oldest] = records[0].payload
    attempt.services.pipeline.stage(attempt.entry, Receive(name, call, known))
