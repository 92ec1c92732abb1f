"""A run's state, and `apply`: the one fold that makes it out of records.

Law: `apply` is total and idempotent by `seq`. Live, in recovery, in the repository and in tests it is the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from durable.core.records import Kind, Record
from durable.core.retry import ONCE, Retry
from durable.core.status import ENDED, Status


@dataclass(slots=True)
class Run:
    """One durable execution of a task, as its records up to `seq` tell it."""

    run_id: str
    seq: int = 0
    task: str = ""
    version: str | None = None
    key: str | None = None
    user: str | None = None
    parent_id: str | None = None
    #: Whether the parent waits for this run in its body, and cancels it with itself.
    attached: bool = False
    priority: int = 0
    input: bytes = b"null"
    #: SHA-256 of the canonical input, for a later start with the same key; empty without a key.
    fingerprint: str = ""
    retry: Retry = ONCE
    timeout: float | None = None
    status: Status = Status.READY
    attempt: int = 1
    #: Attempts spent before the last `retry()` of a failed run: the policy counts from there.
    attempt_base: int = 0
    #: Recoveries since a step was last recorded.
    recoveries: int = 0
    recovery_reason: str | None = None
    #: Not to be begun before this time.
    not_before: float = 0.0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    failure: dict[str, Any] | None = None
    result: bytes | None = None
    #: Signals received and not yet taken: (seq, name).
    signals: list[tuple[int, str]] = field(default_factory=list)
    #: Ended in failure, and not yet discarded or retried.
    dead: bool = False
    reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.status in ENDED

    @property
    def max_attempts(self) -> int:
        """The number of the last attempt that the policy allows."""
        return self.attempt_base + self.retry.max_attempts

    def copy(self) -> Run:
        """A copy that further records do not change."""
        twin = Run(*_FIELDS(self))
        twin.signals = list(self.signals)
        return twin


_FIELDS = attrgetter(*(spec.name for spec in fields(Run)))


def _failure(record: Record) -> dict[str, Any]:
    return {key: record.head.get(key, "") for key in ("error_type", "message", "traceback")}


def _created(run: Run, record: Record) -> None:
    head = record.head
    run.task = record.name
    run.created_at = record.at
    run.input = record.payload or b"null"
    run.version = head.get("version")
    run.key = head.get("key")
    run.user = head.get("user")
    run.parent_id = head.get("parent")
    run.attached = head.get("attached", False)
    run.priority = head.get("priority", 0)
    run.fingerprint = head.get("fingerprint", "")
    run.timeout = head.get("timeout")
    run.not_before = head.get("not_before", 0.0)
    if "retry" in head:
        run.retry = Retry.from_json(head["retry"])


def _started(run: Run, record: Record) -> None:
    run.status = Status.RUNNING
    run.attempt = record.attempt
    if run.started_at is None:
        run.started_at = record.at


def _retrying(run: Run, record: Record) -> None:
    run.status = Status.READY
    run.attempt = record.attempt + 1
    run.not_before = record.head.get("not_before", 0.0)
    run.failure = _failure(record)


def _recovered(run: Run, record: Record) -> None:
    run.status = Status.RUNNING
    run.recoveries += 1
    run.recovery_reason = record.head.get("reason")


def _suspended(run: Run, record: Record) -> None:
    run.status = Status.SUSPENDED
    run.reason = record.head.get("reason")
    if "error_type" in record.head:
        run.failure = _failure(record)


def _resumed(run: Run, record: Record) -> None:
    run.status = Status.READY
    run.reason = None
    run.failure = None
    run.not_before = 0.0
    if run.ended_at is not None:  # a failed run that is retried: a new attempt, with the policy's whole count before it
        run.attempt_base = record.attempt
        run.attempt = record.attempt + 1
    run.ended_at = None
    run.dead = False
    run.recoveries = 0


def _completed(run: Run, record: Record) -> None:
    run.status = Status.COMPLETED
    run.result = record.payload
    run.failure = None
    run.ended_at = record.at


def _failed(run: Run, record: Record) -> None:
    run.status = Status.TIMED_OUT if record.kind is Kind.TIMED_OUT else Status.FAILED
    run.failure = _failure(record)
    run.ended_at = record.at
    run.dead = True


def _cancelled(run: Run, record: Record) -> None:
    run.status = Status.CANCELLED
    run.reason = record.head.get("reason")
    run.ended_at = record.at


def _released(run: Run, record: Record) -> None:
    run.status = Status.READY


def _discarded(run: Run, record: Record) -> None:
    run.dead = False


def _signal(run: Run, record: Record) -> None:
    run.signals.append((record.seq, record.name))


def _step(run: Run, record: Record) -> None:
    run.recoveries = 0
    taken = record.head.get("signal")
    if taken is not None:  # as a rule it is the first: one pass over thousands for each would be too much
        at = next((at for at, (seq, _) in enumerate(run.signals) if seq == taken), None)
        if at is not None:
            del run.signals[at]


def _step_cancelled(run: Run, record: Record) -> None:
    given_back = record.head.get("unread")
    if given_back is not None:  # the call had taken a signal, and was given up before it got it
        run.signals = sorted([*run.signals, (given_back, record.head["what"])])


def _nothing(run: Run, record: Record) -> None:
    """The record changes no field of the run but `seq`."""


_FOLD: dict[Kind, Callable[[Run, Record], None]] = {
    Kind.CREATED: _created,
    Kind.STARTED: _started,
    Kind.RETRYING: _retrying,
    Kind.RECOVERED: _recovered,
    Kind.WAITING: _nothing,
    Kind.SUSPENDED: _suspended,
    Kind.RESUMED: _resumed,
    Kind.COMPLETED: _completed,
    Kind.FAILED: _failed,
    Kind.TIMED_OUT: _failed,
    Kind.CANCELLED: _cancelled,
    Kind.EVENT: _nothing,
    Kind.STEP_COMPLETED: _step,
    Kind.STEP_FAILED: _step,
    Kind.STEP_CANCELLED: _step_cancelled,
    Kind.STEP_RETRYING: _nothing,
    Kind.TIMER_SET: _nothing,
    Kind.CHILD_STARTED: _nothing,
    Kind.SIGNAL: _signal,
    Kind.RELEASED: _released,
    Kind.DISCARDED: _discarded,
}


def apply(run: Run, record: Record) -> Run:
    """Fold one record into the run, in place, and return it. A record that it has already seen changes nothing."""
    if record.seq > run.seq:
        run.seq = record.seq
        _FOLD[record.kind](run, record)
    return run


def fold(records: Iterable[Record]) -> Run:
    """Make a run out of all its records, which must begin with the first."""
    iterator = iter(records)
    first = next(iterator)
    run = apply(Run(first.run_id), first)
    for record in iterator:
        apply(run, record)
    return run
