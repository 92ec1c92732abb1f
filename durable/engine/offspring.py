"""Runs that a body starts: children that it awaits, and runs that live on their own.

Law: a run comes into being in the same commit as its parent's record of it: once, whatever crashes in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from durable.core.records import Call, Kind, Record
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.attempt import Attempt
from durable.engine.services import patiently
from durable.errors import AppError, DurableError, LogFencedError, RunError
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.handle import raise_end


async def _start(
    attempt: Attempt, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any],
    *, attached: bool, note: Callable[[str, str | None], None],
) -> str:  # fmt: skip
    """Start a run; a store that cannot do it now, but may later, is waited for: it is no failure of the body."""
    start = attempt.services.families.start_child
    run_id, _ = await patiently(lambda: start(attempt.entry, task, options, arguments, attached=attached, note=note))
    return run_id


async def run_child(
    attempt: Attempt, call: Call, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any]
) -> Record:
    """Start a child run, or find the one that was started before a crash, and wait for its end."""
    await attempt.values_durable()
    marker = attempt.memo.marker(call)
    child_id = str(marker.head["child"]) if marker is not None and "child" in marker.head else None

    def note(run_id: str, _: str | None) -> None:
        nonlocal child_id
        attempt.note(Kind.CHILD_STARTED, call, None, {"child": run_id})
        child_id = run_id

    try:
        if child_id is None:
            await _start(attempt, task, options, arguments, attached=True, note=note)
        child = await _ended(attempt, str(child_id))
        if marker is not None and marker.attempt != attempt.attempt and child.status is Status.CANCELLED:
            # Its parent's end cancelled it; the parent was retried, and what did not end well is run again.
            await _start(attempt, task, options, arguments, attached=True, note=note)
            child = await _ended(attempt, str(child_id))
    except (AppError, LogFencedError):
        raise  # no outcome of the child: the next process goes on
    except DurableError as error:
        return await attempt.settle_failure(call, error)
    except asyncio.CancelledError:
        if not attempt.interrupted and attempt.entry.run.status is Status.RUNNING:
            attempt.note_cancelled(call)
            if child_id is not None:  # nothing is awaited here: on replay there would be nothing to await
                attempt.services.families.give_up(attempt.entry, child_id)
        raise
    if child.status is Status.COMPLETED:
        return await attempt.settle(call, Kind.STEP_COMPLETED, child.result, {"child": child_id})
    try:
        raise_end(child)
    except RunError as error:
        return await attempt.settle_failure(call, error)


async def _ended(attempt: Attempt, child_id: str) -> Run:
    """Wait until the child has ended, and for a store that cannot tell now."""
    return await patiently(lambda: attempt.services.families.wait_ended(child_id))


async def spawn(
    attempt: Attempt, call: Call, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any]
) -> Record:
    """Start a run that lives on its own."""
    await attempt.values_durable()
    encode = attempt.services.codec.encode
    future = attempt.delivery.expect(call)

    def note(run_id: str, key: str | None) -> None:
        attempt.note(Kind.STEP_COMPLETED, call, encode([run_id, key]), {"child": run_id})

    try:
        await _start(attempt, task, options, arguments, attached=False, note=note)
    except LogFencedError:
        raise
    except DurableError as error:
        return await attempt.settle_failure(call, error)
    return await future
