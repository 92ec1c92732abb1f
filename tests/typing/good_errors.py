"""Right use of errors: what each carries."""

from __future__ import annotations

from typing import assert_type

import pytest

from durable import (
    BackpressureError,
    ConfigError,
    ConflictError,
    Durable,
    DurableError,
    NonRetryableError,
    RefusedError,
    RunError,
    RunFailedError,
    RunTimedOutError,
    SlotTimeoutError,
    StepError,
    ValidationError,
    task,
)
from durable.store import MemoryStore


class OutOfStock(NonRetryableError):
    """An error of one's own."""


@task
async def failing(n: int) -> int:
    raise OutOfStock(f"none of {n}")


def refused(error: RefusedError) -> float:
    match error:
        case BackpressureError():
            assert_type(error.retry_after, float)
            return error.retry_after
        case SlotTimeoutError():
            assert_type(error.timeout, float)
            return error.timeout
        case _:
            return 0.0


def told(error: DurableError) -> str:
    assert_type(error.code, str)
    assert_type(error.retryable, bool)
    if isinstance(error, ValidationError):
        assert_type(error.field, str)
        return error.field
    if isinstance(error, ConfigError | ConflictError):
        assert_type(error.key, str | None)
    if isinstance(error, RunError):
        assert_type(error.error_type, str)
        assert_type(error.message, str)
        assert_type(error.traceback, str)
    if isinstance(error, StepError):
        assert_type(error.error_type, str)
    return error.code


async def main() -> None:
    """Run what the checkers accepted."""
    assert refused(BackpressureError(retry_after=2.5)) == 2.5
    assert refused(SlotTimeoutError(timeout=3.0)) == 3.0
    assert told(ValidationError("wrong", field="n")) == "n"
    async with Durable(MemoryStore()) as app:
        handle = await app.start(failing, 3)
        with pytest.raises(RunFailedError) as caught:
            await handle
        assert caught.value.error_type.endswith("OutOfStock")
        assert caught.value.message == "none of 3"
        assert told(caught.value) == "run_failed"
        assert not isinstance(caught.value, RunTimedOutError)
