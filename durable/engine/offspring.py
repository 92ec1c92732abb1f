"""Runs that a body starts: children that it awaits, and runs that live on their own.

Law: a run comes into being in the same commit as its parent's record of it: once, whatever crashes in between.
"""

from __future__ import annotations

import asyncio
from typing import Any

from durable.core.records import Call, Kind, Record
from durable.core.status import Status
from durable.engine.attempt import Attempt
from durable.errors import DurableError, RunError
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.handle import raise_end


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
            child_id, _ = await families.start_child(
                attempt.entry, task, options, arguments, attached=True,
                note=lambda run_id, _: attempt.note(Kind.CHILD_STARTED, call, None, {"child": run_id}),
            )  # fmt: skip
        except DurableError as error:
            return await attempt.settle_failure(call, error)
    try:
        child = await families.wait_ended(child_id)
    except asyncio.CancelledError:
        if not attempt.interrupted and attempt.entry.run.status is Status.RUNNING:
            attempt.note_cancelled(call)
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
        await attempt.services.families.start_child(attempt.entry, task, options, arguments, attached=False, note=note)
    except DurableError as error:
        return await attempt.settle_failure(call, error)
    return await future
