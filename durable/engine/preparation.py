"""Preparation: what an attempt needs to know of its run before it begins.

Law: an attempt begins with all that was recorded of its run, and with nothing that came after the record by which it begins.
"""

from __future__ import annotations

import asyncio
import logging

from durable.core.memo import Memo
from durable.core.records import Kind, Record
from durable.engine.entry import Entry
from durable.engine.execution import Execution
from durable.engine.services import Services
from durable.errors import RepositoryUnavailableError
from durable.tasks.definition import TaskDefinition

logger = logging.getLogger("durable.engine")

#: How long to wait before a history is read again that could not be read: at first, and at most, seconds.
FIRST_WAIT_SECONDS, WAIT_SECONDS_MAX = 0.25, 10.0


async def prepared(
    services: Services, entry: Entry, definition: TaskDefinition, record: Record, *, handled: bool = False
) -> Execution | None:
    """The attempt that this record begins, with what is on record of it; None where it is over by now.

    Arguments:
        handled: the task's recovery handler, whose own calls are on record by now, has asked for the body.
    """
    if record.kind is Kind.STARTED and record.seq == 2:
        return Execution(services, entry, definition, Memo(), False) if entry.run.executing else None
    whole = await _history(services, entry, record, handled)
    if not entry.run.executing:
        return None
    history = whole if handled else [known for known in whole if known.seq <= record.seq]
    returned_seq = entry.run.returned_seq
    past = [known for known in history if known.seq <= returned_seq]
    history = history[len(past) :]  # a coordinator's calls are other calls than the body's
    beginning = Kind.COORDINATING if returned_seq else Kind.STARTED
    attempt = [known for known in history if known.attempt == record.attempt and known.seq < record.seq]
    known_kinds = [known.kind for known in attempt]
    begun = [*known_kinds, record.kind].count(beginning)
    recovered = (
        begun > 1
        or entry.run.recovery_reason == "timeout"
        or Kind.RECOVERED in (record.kind, *known_kinds)
        or not {Kind.RELEASED, Kind.RESUMED}.isdisjoint(known_kinds)
    )
    began = _began(record, attempt)
    memo = Memo(history, record.attempt, past)
    handling = recovered and not handled and began is None and definition.recovery is not None and not returned_seq
    if handling:
        memo.loosen()
    return Execution(
        services, entry, definition, memo, recovered, handling=handling,
        began=record.at if handled else began, returned=past[-1].payload if past else None,
    )  # fmt: skip


async def _history(services: Services, entry: Entry, record: Record, anew: bool) -> list[Record]:
    """The run's records; waits for the repository while it is away."""
    wait = FIRST_WAIT_SECONDS
    if anew:
        await services.pipeline.durable(entry)
    while True:
        history, entry.history = entry.history, None
        if history is not None and history[-1].seq + 1 == record.seq and not anew:
            return history  # read ahead, and nothing but the beginning of this attempt came since
        try:
            return await services.store.history(entry.run.run_id)
        except RepositoryUnavailableError as error:
            run_id = entry.run.run_id
            logger.warning("run %s waits for its history: %s", run_id, error, extra={"run_id": run_id})
        await asyncio.sleep(wait)
        wait = min(2 * wait, WAIT_SECONDS_MAX)


def _began(awake: Record, attempt: list[Record]) -> float | None:
    """When the time of an attempt began that goes on after a wait; None for a record by which it begins."""
    if awake.kind is not Kind.AWAKE:
        return None
    for record in reversed(attempt):
        if record.kind in (Kind.STARTED, Kind.COORDINATING, Kind.RECOVERED):
            return record.at
        if record.kind in (Kind.RELEASED, Kind.RESUMED):
            break
    return awake.at
