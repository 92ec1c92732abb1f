"""How a run ended, as an exception.

Law: whoever asks for the result of a run that ended otherwise gets the same error: a handle, a body that awaits it, a coordinator.
"""

from __future__ import annotations

from typing import NoReturn

from durable.core.run import Run
from durable.core.status import Status
from durable.errors import RunCancelledError, RunError, RunFailedError, RunTimedOutError


def error_of(run: Run) -> RunError:
    """The error that tells how the run ended: `RunFailedError`, `RunTimedOutError` or `RunCancelledError`.

    Arguments:
        run: one that has ended, and not as completed.
    """
    if run.status is Status.CANCELLED:
        reason = run.reason or "no reason given"
        message = f"run {run.run_id} of task {run.task!r} was cancelled: {reason}"
        return RunCancelledError(message, run_id=run.run_id, reason=reason)
    failure = run.failure or {}
    kind: type[RunError] = RunTimedOutError if run.status is Status.TIMED_OUT else RunFailedError
    error_type, message = failure.get("error_type", ""), failure.get("message", "")
    return kind(
        f"run {run.run_id} of task {run.task!r} is {run.status} after attempt {run.attempt}: {error_type}: {message}",
        run_id=run.run_id,
        error_type=error_type,
        reason=message,
        traceback=failure.get("traceback", ""),
    )


def raise_end(run: Run) -> NoReturn:
    """Raise the error that tells how the run ended; see `error_of`."""
    raise error_of(run)
