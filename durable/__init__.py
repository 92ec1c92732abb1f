"""Ordinary Python functions that survive crashes.

    from durable import Durable, step, task

    @step
    async def fetch(url: str) -> str: ...

    @task
    async def crawl(url: str) -> int:
        page = await fetch(url)     # recorded: after a crash the recorded result comes back
        return len(page)

    async with Durable() as app:
        handle = await app.start(crawl, "https://example.org")
        print(await handle.wait())

See docs/ for guarantees, formats and decisions.
"""

from durable.app import Durable
from durable.config import Config, Limits
from durable.core.retry import Retry
from durable.core.status import Status
from durable.errors import (
    AmbiguousAppError,
    AppError,
    AppNotOpenError,
    BackpressureError,
    ConfigError,
    ConflictError,
    DecodeError,
    DefinitionError,
    DuplicateStepError,
    DuplicateTaskError,
    DurableError,
    ForkedProcessError,
    HistoryLimitError,
    LeaseLostError,
    LimitError,
    LogCorruptError,
    LogFencedError,
    NonDeterminismError,
    NonRetryableError,
    NotStorableError,
    PayloadError,
    PayloadTooDeepError,
    PayloadTooLargeError,
    RefusedError,
    RepositoryUnavailableError,
    ReservedNameError,
    RunCancelledError,
    RunError,
    RunFailedError,
    RunNotFoundError,
    RunTimedOutError,
    ShuttingDownError,
    SignatureMismatchError,
    SlotTimeoutError,
    StepContextError,
    StepError,
    StepTimeoutError,
    StorageError,
    StorageFullError,
    StoreFormatError,
    StoreLockedError,
    StoreMismatchError,
    StoreReadOnlyError,
    TaskNotRegisteredError,
    TransitionError,
    ValidationError,
)
from durable.tasks.child import Child
from durable.tasks.context import Context
from durable.tasks.decorators import step, task
from durable.tasks.definition import RERUN, Result
from durable.tasks.handle import Event, Handle, RunInfo
from durable.tasks.host import UserContext
from durable.tasks.recorded import current_user, map, now, random, run_as, sleep, timeout, uuid4
from durable.tasks.task import chain

__version__ = "0.1.0"

__all__ = [
    "RERUN",
    "AmbiguousAppError",
    "AppError",
    "AppNotOpenError",
    "BackpressureError",
    "Child",
    "Config",
    "ConfigError",
    "ConflictError",
    "Context",
    "DecodeError",
    "DefinitionError",
    "DuplicateStepError",
    "DuplicateTaskError",
    "Durable",
    "DurableError",
    "Event",
    "ForkedProcessError",
    "Handle",
    "HistoryLimitError",
    "LeaseLostError",
    "LimitError",
    "Limits",
    "LogCorruptError",
    "LogFencedError",
    "NonDeterminismError",
    "NonRetryableError",
    "NotStorableError",
    "PayloadError",
    "PayloadTooDeepError",
    "PayloadTooLargeError",
    "RefusedError",
    "RepositoryUnavailableError",
    "ReservedNameError",
    "Result",
    "Retry",
    "RunCancelledError",
    "RunError",
    "RunFailedError",
    "RunInfo",
    "RunNotFoundError",
    "RunTimedOutError",
    "ShuttingDownError",
    "SignatureMismatchError",
    "SlotTimeoutError",
    "Status",
    "StepContextError",
    "StepError",
    "StepTimeoutError",
    "StorageError",
    "StorageFullError",
    "StoreFormatError",
    "StoreLockedError",
    "StoreMismatchError",
    "StoreReadOnlyError",
    "TaskNotRegisteredError",
    "TransitionError",
    "UserContext",
    "ValidationError",
    "chain",
    "current_user",
    "map",
    "now",
    "random",
    "run_as",
    "sleep",
    "step",
    "task",
    "timeout",
    "uuid4",
]
