"""A run's state, and `apply`: the one fold that makes it out of records.

Law: `apply` is total and idempotent by `seq`. Live, in recovery, in the repository and in tests it is the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Literal

from durable.core.records import Kind, Record
from durable.core.retry import ONCE, Retry
from durable.core.status import ENDED, Status

Join = Literal["", "function", "task"]

COORDINATED = frozenset({Status.WAITING_FOR_ON_CHILDREN_COMPLETE})
#: Statuses in which the ends of returned children count.
JOINING = COORDINATED | {Status.WAITING_FOR_CHILDREN}


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
    #: Whether this run belongs to its parent, and is cancelled with it.
    attached: bool = False
    #: Whether the parent returned this run as a child (or has it for a coordinator), and is told when it ends.
    joined: bool = False
    #: How many ancestors it belongs to.
    depth: int = 0
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
    #: How often it went on again as a dead letter that was retried; `retry()` of a handle does not count.
    retried: int = 0
    #: Recoveries since a step was last recorded.
    recoveries: int = 0
    #: Why what goes on now does not go on from its own beginning: `crash` or `stale`, or `timeout` where the attempt before timed out.
    recovery_reason: str | None = None
    #: Not to be begun before this time.
    not_before: float = 0.0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    failure: dict[str, Any] | None = None
    result: bytes | None = None
    #: Children that the body, or the coordinator, returned and that have not ended.
    unfinished: int = 0
    #: Children that the body awaits and whose outcome it has not recorded.
    awaiting: int = 0
    #: What follows when all children have ended: nothing, a function of this run, or a run of its own.
    join: Join = ""
    #: Whether the failure of a child is left to the coordinator.
    lenient: bool = False
    #: The record by which the body returned children; 0 while it has not.
    returned_seq: int = 0
    #: The run that is the coordinator.
    coordinator_id: str | None = None
    #: Whether it waits without a coroutine, until `wake_at` if that is known.
    asleep: bool = False
    wake_at: float | None = None
    #: Ended, and so are the children that belonged to it.
    closed: bool = False
    #: Runs that have this one for a child although it is not theirs: its key named it.
    watchers: list[str] = field(default_factory=list)
    #: Signals received and not yet taken: (seq, name).
    signals: list[tuple[int, str]] = field(default_factory=list)
    #: Ended in failure, and not yet discarded or retried.
    dead: bool = False
    reason: str | None = None
    #: Trace contexts (W3C `traceparent`, then a space and `tracestate` if there is one), empty where nobody traced it: of the start, and
    trace: str = ""
    attempt_trace: str = ""  # of the last attempt, or part of one, that began

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.status in ENDED

    @property
    def executing(self) -> bool:
        """Whether a body is at work: the task's own, or the function that is its coordinator."""
        at_work = self.status is Status.RUNNING or (self.status in COORDINATED and not self.unfinished)
        return at_work and not self.asleep

    @property
    def due(self) -> float | None:
        """From when on the engine has to see to it; None while it waits for something else than time."""
        if self.closed or self.status is Status.SUSPENDED:
            return None
        if self.ended:
            return 0.0
        if self.asleep:
            return self.wake_at
        if self.status in JOINING and self.unfinished:
            return None
        return 0.0 if self.executing else self.not_before

    @property
    def max_attempts(self) -> int:
        """The number of the last attempt that the policy allows."""
        return self.attempt_base + self.retry.max_attempts

    def become(self, other: Run) -> None:
        """Take over the state of a copy that was made before."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    def copy(self) -> Run:
        """A copy that further records do not change."""
        twin = Run(*_FIELDS(self))
        twin.signals = list(self.signals)
        twin.watchers = list(self.watchers)
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
    run.joined = head.get("joined", False)
    run.depth = head.get("depth", 0)
    run.priority = head.get("priority", 0)
    run.fingerprint = head.get("fingerprint", "")
    run.trace = head.get("trace", "")
    run.timeout = head.get("timeout")
    run.not_before = head.get("not_before", 0.0)
    if "retry" in head:
        run.retry = Retry.from_json(head["retry"])


def _traced(run: Run, record: Record) -> None:
    if "trace" in record.head:
        run.attempt_trace = record.head["trace"]


def _started(run: Run, record: Record) -> None:
    run.status = Status.RUNNING
    run.attempt = record.attempt
    _traced(run, record)
    if run.started_at is None:
        run.started_at = record.at


def _make_ready(run: Run) -> None:
    """Let a run wait for its turn: its body's, or its coordinator's, which goes on like one that was asleep."""
    if run.returned_seq:
        run.status = Status.WAITING_FOR_ON_CHILDREN_COMPLETE
        run.asleep, run.wake_at = True, run.not_before
    else:
        run.status = Status.READY


def _retrying(run: Run, record: Record) -> None:
    run.attempt = record.attempt + 1
    run.not_before = record.head.get("not_before", 0.0)
    run.recovery_reason = "timeout" if record.head.get("timed_out") else None
    _make_ready(run)
    run.failure = _failure(record)


def _recovered(run: Run, record: Record) -> None:
    run.recoveries += 1
    run.recovery_reason = record.head.get("reason")
    _traced(run, record)


def _suspended(run: Run, record: Record) -> None:
    run.status = Status.SUSPENDED
    run.asleep, run.wake_at = False, None
    run.reason = record.head.get("reason")
    if "error_type" in record.head:
        run.failure = _failure(record)


def _resumed(run: Run, record: Record) -> None:
    run.reason = run.recovery_reason = None
    run.failure = None
    if run.ended_at is None:
        if run.started_at is not None:  # else its delay holds
            run.not_before = 0.0
        _make_ready(run)
    else:  # a failed run that is retried: a new attempt, with the policy's whole count before it
        run.status = Status.WAITING_FOR_CHILDREN if run.returned_seq else Status.READY
        run.unfinished = record.head.get("children", 0) if run.returned_seq else 0
        run.retried += record.head.get("letter", False)
        run.attempt_base = record.attempt
        run.attempt = record.attempt + 1
        run.not_before = 0.0
    run.ended_at = None
    run.dead = run.closed = False
    run.recoveries = 0


def _ended(run: Run, record: Record, status: Status) -> None:
    run.status = status
    run.ended_at = record.at
    run.asleep, run.wake_at = False, None
    run.closed = not (run.unfinished or run.awaiting)


def _completed(run: Run, record: Record) -> None:
    run.result = record.payload
    run.failure = None
    _ended(run, record, Status.COMPLETED)


_FAILURES = {
    Kind.FAILED: Status.FAILED,
    Kind.TIMED_OUT: Status.TIMED_OUT,
    Kind.CHILDREN_FAILED: Status.CHILDREN_FAILED,
}


def _failed(run: Run, record: Record) -> None:
    status = _FAILURES[record.kind]
    if run.returned_seq and status is not Status.CHILDREN_FAILED:
        status = Status.ON_CHILDREN_COMPLETE_FAILED
    run.failure = _failure(record)
    run.dead = True
    _ended(run, record, status)


def _cancelled(run: Run, record: Record) -> None:
    run.reason = record.head.get("reason")
    _ended(run, record, Status.CANCELLED)


def _closed(run: Run, record: Record) -> None:
    run.closed = True


def _watched(run: Run, record: Record) -> None:
    run.watchers.append(record.head.get("by", ""))


def _children_started(run: Run, record: Record) -> None:
    head = record.head
    run.unfinished = head.get("children", 0)
    run.result = record.payload
    if not run.returned_seq:
        run.status = Status.WAITING_FOR_CHILDREN
        run.returned_seq = record.seq
        run.join = head.get("join", "")
        run.lenient = head.get("lenient", False)
        run.attempt_base = record.attempt - 1  # the coordinator has the policy's whole count before it
        run.failure = None
        run.not_before = 0.0
        run.recoveries = 0


def _child_ended(run: Run, record: Record) -> None:
    if run.asleep:
        run.wake_at = run.not_before  # in the past but for one that backs off
    else:
        run.unfinished -= 1


def _coordinating(run: Run, record: Record) -> None:
    run.status = Status.WAITING_FOR_ON_CHILDREN_COMPLETE
    run.coordinator_id = record.head.get("coordinator")
    run.unfinished = record.head.get("children", 0)
    run.join = "task" if run.unfinished else "function"
    _traced(run, record)


def _asleep(run: Run, record: Record) -> None:
    run.asleep = True
    run.wake_at = record.head.get("until")


def _awake(run: Run, record: Record) -> None:
    run.asleep, run.wake_at = False, None
    _traced(run, record)


def _released(run: Run, record: Record) -> None:
    run.recovery_reason = None
    _make_ready(run)


def _discarded(run: Run, record: Record) -> None:
    run.dead = False


def _signal(run: Run, record: Record) -> None:
    run.signals.append((record.seq, record.name))
    if run.asleep:
        run.wake_at = run.not_before  # in the past but for one that backs off


def _step(run: Run, record: Record) -> None:
    run.recoveries = 0
    head = record.head
    if not head:
        return
    if "awaited" in head:
        run.awaiting -= 1
    taken = head.get("signal")
    if taken is not None:  # as a rule it is the first: one pass over thousands for each would be too much
        at = next((at for at, (seq, _) in enumerate(run.signals) if seq == taken), None)
        if at is not None:
            del run.signals[at]


def _child_started(run: Run, record: Record) -> None:
    run.awaiting += 1


def _step_cancelled(run: Run, record: Record) -> None:
    if "awaited" in record.head:
        run.awaiting -= 1
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
    Kind.CHILDREN_STARTED: _children_started,
    Kind.CHILDREN_FAILED: _failed,
    Kind.EVENT: _nothing,
    Kind.STEP_COMPLETED: _step,
    Kind.STEP_FAILED: _step,
    Kind.STEP_CANCELLED: _step_cancelled,
    Kind.STEP_RETRYING: _nothing,
    Kind.TIMER_SET: _nothing,
    Kind.CHILD_STARTED: _child_started,
    Kind.SIGNAL: _signal,
    Kind.CHILD_ENDED: _child_ended,
    Kind.RELEASED: _released,
    Kind.ASLEEP: _asleep,
    Kind.DISCARDED: _discarded,
    Kind.AWAKE: _awake,
    Kind.COORDINATING: _coordinating,
    Kind.CLOSED: _closed,
    Kind.WATCHED: _watched,
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
