"""Runs that a body starts: children that it awaits, and runs that live on their own.

Law: a run comes into being in the same commit as its parent's record of it: once, whatever crashes in between.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from durable.core.commands import Command, Note
from durable.core.records import Call, Kind, Record
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.attempt import Attempt
from durable.engine.services import patiently
from durable.errors import AppError, DurableError, LogFencedError
from durable.tasks.child import found_children, resolve
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.failure import describe
from durable.tasks.outcome import error_of


async def run_child(
    attempt: Attempt, call: Call, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any]
) -> Record:
    """Start a child run, or find the one that was started before a crash, and wait for its end."""
    await attempt.values_durable()
    marker = attempt.memo.marker(call)
    wait = ChildWait(attempt, call, None if marker is None else marker.head.get("child"))
    try:
        if wait.child_id is None:
            await wait.start(task, options, arguments)
        elif marker is not None and marker.attempt != attempt.attempt:
            await (
                wait.try_again()
            )  # what did not end well goes on from where it failed, or was cancelled with its parent
        child = await wait.ended()
        if not wait.is_recorded:
            await wait.record(child)
            wait.is_recorded = True
        return await wait.outcome
    except (AppError, LogFencedError):
        raise  # no outcome of the child: the next process goes on
    except DurableError as error:
        attempt.note_failure(call, error, wait.head)
        wait.is_recorded = True
        return await wait.outcome
    except asyncio.CancelledError:
        if not attempt.interrupted and attempt.entry.run.executing and not wait.is_recorded:
            # Nothing is awaited here: on replay there would be nothing to await.
            note = attempt.outcome_note(call, Kind.STEP_CANCELLED, None, wait.head)
            wait.is_recorded = True  # a call has one outcome: what the child's end says comes too late
            attempt.services.families.give_up(attempt.entry, note, wait.child_id, is_own=wait.is_own)
        raise


class ChildWait:
    """A call that waits for a child run. As a rule its outcome is recorded in the commit that ends the child."""

    def __init__(self, attempt: Attempt, call: Call, child_id: str | None) -> None:
        self._attempt = attempt
        self._call = call
        self.child_id = child_id
        #: Whether the outcome of the call is on its way.
        self.is_recorded = False
        #: Whether the child is known to belong to this run, and has not ended.
        self.is_own = False
        self.outcome = attempt.delivery.expect(call)

    @property
    def head(self) -> dict[str, Any]:
        """What the record of the call's outcome says of the child."""
        return {} if self.child_id is None else {"awaited": self.child_id}

    async def start(self, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any]) -> None:
        """Start the child; a store that cannot do it now, but may later, is waited for: that is no failure of the body."""
        attempt = self._attempt
        start = attempt.services.families.start_child
        self.child_id = await patiently(
            lambda: start(attempt.entry, task, options, arguments, attached=True, note=self._note_start)
        )

    def _note_start(self, run_id: str, key: str | None) -> Command:
        self._attempt.check_current()
        self.child_id = run_id
        return Note(Kind.CHILD_STARTED, self._call, None, {"child": run_id})

    async def try_again(self) -> None:
        """Let a child of an earlier attempt go on that did not complete."""
        attempt, child_id = self._attempt, str(self.child_id)
        attempt.check_current()
        note = Note(Kind.CHILD_STARTED, self._call, None, {"child": child_id})
        await attempt.services.families.revive_awaited(attempt.entry, child_id, note)
        await attempt.services.pipeline.durable(attempt.entry)

    async def ended(self) -> Run:
        """Wait for the child's end."""
        assert self.child_id is not None
        attempt, services = self._attempt, self._attempt.services
        child = await patiently(partial(services.families.awaited, attempt.entry, self.child_id))
        if child is None or child.parent is not attempt.entry:
            if child is not None:
                services.families.let_go(child)
            return await self._told()  # a run that only its key names does not know of this one, and could not wake it
        awaits = attempt.entry.awaits
        awaits[self.child_id] = child
        child.on_end += (self._on_end,)
        try:
            with attempt.pausing():
                return await self._told()
        finally:
            child = awaits[self.child_id]  # it may have left this process, and come back as another entry
            child.on_end = tuple(on_end for on_end in child.on_end if on_end != self._on_end)
            self.is_own = not child.run.ended
            if not child.on_end:
                del awaits[self.child_id]

    async def _told(self) -> Run:
        return await patiently(partial(self._attempt.services.host.wait_ended, str(self.child_id)))

    def _on_end(self, run: Run) -> Command | None:
        """The outcome of the call, to become durable together with the end of the child; None where that cannot be said at once."""
        attempt = self._attempt
        over = attempt.interrupted or not attempt.entry.run.executing or attempt.entry.execution is not attempt
        full = attempt.entry.run.seq + 1 >= attempt.services.settings.history_records_max
        if over or full or run.returned_seq or self.is_recorded or self._call not in attempt.performing:
            return None
        self.is_recorded = True
        if run.status is Status.COMPLETED:
            return attempt.outcome_note(self._call, Kind.STEP_COMPLETED, run.result, self.head)
        failure = describe(error_of(run), attempt.services.codec)
        return attempt.outcome_note(self._call, Kind.STEP_FAILED, failure.state, {**failure.head(), **self.head})

    async def record(self, child: Run) -> None:
        """Record the outcome of the call after the child has ended."""
        attempt = self._attempt
        if child.status is not Status.COMPLETED:
            attempt.note_failure(self._call, error_of(child), self.head)
            return
        result = child.result
        if child.returned_seq and result is not None:
            result = await self._with_outcomes(child, result)
        attempt.check_current()
        note = attempt.outcome_note(self._call, Kind.STEP_COMPLETED, result, self.head)
        attempt.services.pipeline.stage(attempt.entry, note)

    async def _with_outcomes(self, child: Run, result: bytes) -> bytes:
        """The result of a run that returned children, with what became of them in it."""
        services = self._attempt.services
        definition = services.host.definition_of(child.task)
        hint = Any if definition is None else definition.result_hint
        with found_children() as found:
            value = services.codec.decode(result, hint)
        if not found:
            return result
        await resolve(child.run_id, found, services.families.end_children)
        return services.codec.encode(value, hint, f"the result of child run {child.run_id}")


async def spawn(
    attempt: Attempt, call: Call, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any]
) -> Record:
    """Start a run that lives on its own."""
    await attempt.values_durable()
    encode = attempt.services.codec.encode
    future = attempt.delivery.expect(call)

    def note(run_id: str, key: str | None) -> Command:
        attempt.check_current()
        return attempt.outcome_note(call, Kind.STEP_COMPLETED, encode([run_id, key]), {"child": run_id})

    start = attempt.services.families.start_child
    try:
        await patiently(lambda: start(attempt.entry, task, options, arguments, attached=False, note=note))
    except LogFencedError:
        raise
    except DurableError as error:
        return await attempt.settle_failure(call, error)
    return await future
