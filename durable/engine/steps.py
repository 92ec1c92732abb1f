"""Running a step: its tries, its time limit, its outcome.

Law: a failed try is recorded before the next one waits, so that a crash does not give a step its tries anew.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from durable.clock import fraction_of
from durable.core.records import Call, Kind, Record
from durable.engine.attempt import Attempt
from durable.engine.pipeline import RETRY_SECONDS
from durable.engine.scopes import StepScope
from durable.engine.transactions import StepTransaction
from durable.errors import PayloadError, StepTimeoutError
from durable.tasks.definition import StepDefinition
from durable.tasks.failure import describe
from durable.tasks.host import current_scope

logger = logging.getLogger("durable.engine")

#: How often a step may lose the connection of its transaction before that counts as a failed try: it may be the cause itself.
CUTS_MAX = 10


async def run_step(
    attempt: Attempt, call: Call, step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Record:
    """Run a step that has no recorded outcome, record what came of it, and return the record once it is handed back."""
    await attempt.values_durable()
    services = attempt.services
    scope = StepScope(
        services.host, services.clock, services.entropy, attempt.run_id, call, f"step {step.name!r}",
        task_name=attempt.task_name, attempt=attempt.attempt,
    )  # fmt: skip
    if step.facts.takes_context:
        args = (attempt.context, *args)
    marker = attempt.memo.marker(call)
    number = 1 if marker is None else int(marker.head.get("try", 0)) + 1
    cuts = 0
    token = current_scope.set(scope)
    try:
        while True:
            services.pipeline.check_lease()
            attempt.check_current()
            transaction = scope.transaction = StepTransaction(services.store, attempt.run_id)
            try:
                if services.on_step is not None:
                    services.on_step(attempt.run_id, call)
                value = await _one_try(attempt, step, args, kwargs)
                payload = services.codecs(step.codec).encode(value, step.facts.returns, f"the result of {scope.label}")
                transaction.require_open(scope.label)
                break
            except asyncio.CancelledError:
                try:
                    attempt.note_cancelled(call)
                finally:
                    await transaction.end()
                raise
            except Exception as error:  # noqa: BLE001 - whatever a step raises is its outcome
                cuts += transaction.cut
                away = transaction.unreached or (transaction.cut and cuts <= CUTS_MAX)
                await transaction.end()
                retry, wait = step.retry, RETRY_SECONDS
                if away:
                    logger.warning("%s of run %s is run again: %s", scope.label, attempt.run_id, error)
                elif number >= retry.max_attempts or not retry.allows(error) or isinstance(error, PayloadError):
                    return await attempt.settle_failure(call, error)
                else:
                    wait = retry.wait_after(number, fraction_of(services.entropy.token_bytes(7)))
                    head = {"try": number, "wait": wait, **describe(error, services.codec).head()}
                    attempt.note(Kind.STEP_RETRYING, call, None, head)
                    number += 1
            try:
                await asyncio.sleep(wait)
            except asyncio.CancelledError:
                attempt.note_cancelled(call)
                raise
    finally:
        current_scope.reset(token)
    codec = {"codec": step.codec} if step.codec else None
    if transaction.connection is not None:
        return await _settle_with(attempt, call, payload, codec, transaction)
    return await attempt.settle(call, Kind.STEP_COMPLETED, payload, codec)


async def _settle_with(
    attempt: Attempt, call: Call, payload: bytes, head: dict[str, Any] | None, transaction: StepTransaction
) -> Record:
    """Record the outcome in the transaction in which the step wrote."""
    pipeline = attempt.services.pipeline
    future = attempt.delivery.expect(call)
    try:
        attempt.check_current()
        note = attempt.outcome_note(call, Kind.STEP_COMPLETED, payload, head)
        pipeline.stage(attempt.entry, note, connection=transaction.connection)
    except BaseException:
        await transaction.end()
        raise

    # Whoever is cancelled while it is on its way leaves it to the pipeline.
    async def end_when_durable(durable: asyncio.Future[None]) -> None:
        await asyncio.wait((durable,))
        if not durable.cancelled():
            durable.exception()
        await transaction.end()

    ending = asyncio.create_task(end_when_durable(pipeline.durable(attempt.entry)))
    attempt.services.background.add(ending)
    ending.add_done_callback(attempt.services.background.discard)
    return await future


async def _one_try(attempt: Attempt, step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    invoker = attempt.services.invoker
    if step.timeout is None:
        return await invoker.call(step.facts, args, kwargs, step.isolate)
    limit = asyncio.timeout(step.timeout)
    try:
        async with limit:
            return await invoker.call(step.facts, args, kwargs, step.isolate)
    except TimeoutError as error:
        if not limit.expired():
            raise  # the step's own
        message = f"step {step.name!r} took longer than its timeout of {step.timeout:g} s"
        raise StepTimeoutError(message, error_type="durable.errors.StepTimeoutError", reason=message) from error
