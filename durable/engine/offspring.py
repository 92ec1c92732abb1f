"""Runs that a body starts: children that it awaits, and runs that live on their own.

Law: a run comes into being in the same commit as its parent's record of it: once, whatever crashes in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from durable.core.records import Call, Kind, Record
from durable.core.status import Status
from durable.engine.attempt import Attempt
from durable.errors import DurableError, LogFencedError, RunError, StorageError
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.handle import raise_end


#: Wait between tries while the store cannot say whether a key is taken, seconds.
RETRY_SECONDS = 0.5


async def _start(
    attempt: Attempt, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any],
    *, attached: bool, note: Callable[[str, str | None], None],
) -> str:  # fmt: skip
    """Start a run; a store that cannot do it now, but may later, is waited for: it is no failure of the body."""
    while True:
        try:
            run_id, _ = await attempt.services.families.start_child(
                attempt.entry, task, options, arguments, attached=attached, note=note
            )
        except StorageError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return run_id


async def run_child(
    attempt: Attempt, call: Call, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any]
) -> Record:
    """Start a child run, or find the one that was started before a crash, and wait for its end."""
    await attempt.values_durable()
    families = attempt.services.families
    marker = attempt.memo.marker(call)
    if marker is not None and "child" in marker.head:
        child_id = str(marker.head["child"])
    else:
        try:
            child_id = await _start(
                attempt, task, options, arguments, attached=True,
                note=lambda run_id, _: attempt.note(Kind.CHILD_STARTED, call, None, {"child": run_id}),
            )  # fmt: skip
        except LogFencedError:
            raise
        except DurableError as error:
            return await attempt.settle_failure(call, error)
    try:
        child = await families.wait_ended(child_id)
    except asyncio.CancelledError:
        if not attempt.interrupted and attempt.entry.run.status is Status.RUNNING:
            attempt.note_cancelled(call)
            with suppress(DurableError):  # a child that is not told now is when its parent ends
                await families.cancel_run(child_id, "the parent no longer waits for it")
        raise
    if child.status is Status.COMPLETED:
        return await attempt.settle(call, Kind.STEP_COMPLETED, child.result, {"child": child_id})
    try:
        raise_end(child)
    except RunError as error:
        return await attempt.settle_failure(call, error)


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
