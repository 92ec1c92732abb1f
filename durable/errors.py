"""Every error that `durable` raises, in one tree.

DurableError
├── ConfigError                      a setting is wrong; names the key
├── DefinitionError                  a task or step is defined or used wrongly
│   ├── DuplicateTaskError
│   ├── DuplicateStepError
│   ├── TaskNotRegisteredError
│   ├── StepContextError
│   └── ReservedNameError
├── AppError                         the application is not in a state to do this
│   ├── AppNotOpenError
│   ├── AmbiguousAppError
│   └── ShuttingDownError
├── ValidationError (ValueError)     an input does not fit the annotations
├── ConflictError                    the key exists with another input
├── RunNotFoundError (LookupError)
├── TransitionError                  the run's status does not allow this
├── RunError                         how a run ended, raised by `handle.wait()`
│   ├── RunFailedError
│   ├── RunTimedOutError
│   └── RunCancelledError
├── StepError                        a step failed and its own exception class cannot be found
│   └── StepTimeoutError (TimeoutError)
├── NonRetryableError                raised by users: ends the attempts at once
├── NonDeterminismError              code and record diverge
├── RefusedError                     turned away before anything was stored
│   ├── BackpressureError
│   └── SlotTimeoutError
├── PayloadError                     a value cannot be stored or read back
│   ├── NotStorableError (TypeError)
│   ├── DecodeError (ValueError)
│   ├── SignatureMismatchError
│   ├── PayloadTooLargeError
│   └── PayloadTooDeepError
├── LimitError                       a run outgrew a bound
│   └── HistoryLimitError
└── StorageError                     the store cannot do this
    ├── LogFencedError
    ├── LogCorruptError
    ├── StorageFullError
    ├── StoreLockedError
    ├── StoreFormatError
    ├── StoreMismatchError
    ├── StoreReadOnlyError
    ├── ForkedProcessError
    ├── LeaseLostError
    └── RepositoryUnavailableError

Law: each class has a stable `code`, says whether the same call may work later (`retryable`), and its docstring is the default message.
"""

from __future__ import annotations

from copyreg import __newobj__ as newobj  # type: ignore[attr-defined]
from typing import ClassVar


class DurableError(Exception):
    """Something in durable went wrong."""

    code: ClassVar[str] = "durable"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])

    def __reduce__(self) -> tuple[object, ...]:  # past the constructors, which want more than the message
        return newobj, (type(self),), {**self.__dict__, "args": self.args}


class ConfigError(DurableError):
    """A setting is wrong."""

    code = "config"

    def __init__(self, message: str | None = None, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class DefinitionError(DurableError):
    """A task or step is defined or used wrongly."""

    code = "definition"


class DuplicateTaskError(DefinitionError):
    """Two different functions are tasks of one name."""

    code = "duplicate_task"


class DuplicateStepError(DefinitionError):
    """Two different functions are steps of one name in one run."""

    code = "duplicate_step"


class TaskNotRegisteredError(DefinitionError):
    """No imported module defines this task."""

    code = "task_not_registered"


class StepContextError(DefinitionError):
    """This call is not possible where it was made."""

    code = "step_context"


class ReservedNameError(DefinitionError):
    """This event name is reserved or malformed."""

    code = "reserved_name"


class AppError(DurableError):
    """The application is not in a state to do this."""

    code = "app"


class AppNotOpenError(AppError):
    """No Durable application is open."""

    code = "app_not_open"


class AmbiguousAppError(AppError):
    """Several Durable applications are open in this process; say which one."""

    code = "app_ambiguous"


class ShuttingDownError(AppError):
    """The application is closing and takes no new work."""

    code = "shutting_down"
    retryable = True


class ValidationError(DurableError, ValueError):
    """An input does not fit the task's annotations."""

    code = "validation"

    def __init__(
        self, message: str | None = None, *, field: str, errors: list[dict[str, object]] | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.errors = errors or []


class ConflictError(DurableError):
    """The key exists already, with another task or another input."""

    code = "conflict"

    def __init__(self, message: str | None = None, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class RunNotFoundError(DurableError, LookupError):
    """No run has this id."""

    code = "run_not_found"


class TransitionError(DurableError):
    """The run's status does not allow this."""

    code = "transition"


class RunError(DurableError):
    """A run did not end well."""

    code = "run"

    def __init__(
        self, message: str | None = None, *, run_id: str | None = None,
        error_type: str = "", reason: str = "", traceback: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.run_id = run_id
        #: Qualified name of the exception's class, for example ``builtins.ValueError``.
        self.error_type = error_type
        #: The recorded text of the exception, or the reason of a cancel.
        self.message = reason
        #: The recorded traceback, formatted.
        self.traceback = traceback


class RunFailedError(RunError):
    """The run failed."""

    code = "run_failed"


class RunTimedOutError(RunError):
    """The run's last attempt timed out."""

    code = "run_timed_out"


class RunCancelledError(RunError):
    """The run was cancelled."""

    code = "run_cancelled"


class StepError(DurableError):
    """A step failed; its own exception class cannot be found here."""

    code = "step_failed"

    def __init__(
        self, message: str | None = None, *, error_type: str = "", reason: str = "", traceback: str = ""
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = reason
        self.traceback = traceback


class StepTimeoutError(StepError, TimeoutError):
    """A step's last attempt timed out."""

    code = "step_timed_out"


class NonRetryableError(DurableError):
    """Raise this (or a subclass) to end the attempts at once."""

    code = "non_retryable"


class NonDeterminismError(DurableError):
    """The code does not do what the record says it did."""

    code = "non_determinism"


class RefusedError(DurableError):
    """Turned away before anything was stored."""

    code = "refused"
    retryable = True


class BackpressureError(RefusedError):
    """Too many starts, of which there may be `limit`; try again after `retry_after` seconds."""

    code = "backpressure"
    remaining = 0

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0, limit: int | None = None) -> None:
        super().__init__(message)
        self.retry_after, self.limit = retry_after, limit


class SlotTimeoutError(RefusedError):
    """No running slot became free in time."""

    code = "slot_timeout"

    def __init__(self, message: str | None = None, *, timeout: float = 0.0) -> None:
        super().__init__(message)
        self.timeout = timeout


class PayloadError(DurableError):
    """A value cannot be stored or read back."""

    code = "payload"


class NotStorableError(PayloadError, TypeError):
    """The codec cannot store a value of this type exactly."""

    code = "not_storable"


class DecodeError(PayloadError, ValueError):
    """Stored bytes cannot be turned back into a value."""

    code = "decode"


class SignatureMismatchError(DecodeError):
    """The signature of a pickled payload is missing or wrong; it was not unpickled."""

    code = "signature_mismatch"


class PayloadTooLargeError(PayloadError):
    """An encoded value is larger than the limit."""

    code = "payload_too_large"

    def __init__(self, message: str | None = None, *, size_bytes: int = 0, limit_bytes: int = 0) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class PayloadTooDeepError(PayloadError):
    """A value is nested more deeply than the limit."""

    code = "payload_too_deep"


class LimitError(DurableError):
    """A run outgrew a bound."""

    code = "limit"


class HistoryLimitError(LimitError):
    """A run has more records than it may have."""

    code = "history_limit"


class StorageError(DurableError):
    """The store cannot do this."""

    code = "storage"


class LogFencedError(StorageError):
    """The log met an I/O error and takes nothing more in this process; the outcome of what was in flight is unknown."""

    code = "log_fenced"


class LogCorruptError(StorageError):
    """A record that was durable cannot be read."""

    code = "log_corrupt"

    def __init__(self, message: str | None = None, *, segment: str = "", offset: int = 0, lsn: int = 0) -> None:
        super().__init__(message)
        self.segment = segment
        self.offset = offset
        self.lsn = lsn


class StorageFullError(StorageError):
    """The disk is full or nearly so; nothing was written."""

    code = "storage_full"
    retryable = True


class StoreLockedError(StorageError):
    """Another process has this store open."""

    code = "store_locked"
    retryable = True


class StoreFormatError(StorageError):
    """The store was written by a newer version of durable."""

    code = "store_format"


class StoreMismatchError(StorageError):
    """Log and repository do not belong together."""

    code = "store_mismatch"


class StoreReadOnlyError(StorageError):
    """The store is open for reading only."""

    code = "store_read_only"


class ForkedProcessError(StorageError):
    """This process was forked from the one that opened the store and may not write to it."""

    code = "forked_process"


class LeaseLostError(StorageError):
    """Another executor has taken this run over; nothing was written."""

    code = "lease_lost"


class RepositoryUnavailableError(StorageError):
    """The repository behind the log is away; running work goes on, this query cannot be answered now."""

    code = "repository_unavailable"
    retryable = True
