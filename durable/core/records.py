"""Records: the facts of a run, numbered 1, 2, 3 ... in `seq`.

Law: a record never changes. `run_id` and `seq` name it for ever; `batch` says with which others it became durable, and is known only then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import Any


@unique
class Kind(IntEnum):
    """What a record says. The numbers are part of the wire format: never reuse one."""

    CREATED = 1
    STARTED = 2
    RETRYING = 3
    RECOVERED = 4
    WAITING = 5
    SUSPENDED = 6
    RESUMED = 7
    COMPLETED = 8
    FAILED = 9
    TIMED_OUT = 10
    CANCELLED = 11
    EVENT = 13
    CHILDREN_STARTED = 14
    CHILDREN_FAILED = 15
    STEP_COMPLETED = 20
    STEP_FAILED = 21
    STEP_CANCELLED = 22
    STEP_RETRYING = 23
    TIMER_SET = 24
    CHILD_STARTED = 25
    SIGNAL = 26
    CHILD_ENDED = 27
    RELEASED = 28
    ASLEEP = 29
    DISCARDED = 30
    AWAKE = 31
    COORDINATING = 32
    CLOSED = 33
    WATCHED = 34


#: Kinds that hand a result to a call of the body.
RESULTS = frozenset({Kind.STEP_COMPLETED, Kind.STEP_FAILED, Kind.STEP_CANCELLED})
#: Kinds that belong to a call of the body: they carry its identity.
CALLS = RESULTS | {Kind.STEP_RETRYING, Kind.TIMER_SET, Kind.CHILD_STARTED, Kind.WAITING, Kind.EVENT}
#: Kinds that end a run.
ENDS = frozenset({Kind.COMPLETED, Kind.FAILED, Kind.TIMED_OUT, Kind.CHILDREN_FAILED, Kind.CANCELLED})

_NAMES = {
    Kind.CREATED: "created",
    Kind.STARTED: "started",
    Kind.RETRYING: "retrying",
    Kind.RECOVERED: "recovered",
    Kind.WAITING: "waiting",
    Kind.SUSPENDED: "suspended",
    Kind.RESUMED: "resumed",
    Kind.COMPLETED: "completed",
    Kind.FAILED: "failed",
    Kind.TIMED_OUT: "timed_out",
    Kind.CANCELLED: "cancelled",
    Kind.CHILDREN_STARTED: "waiting",
    Kind.CHILDREN_FAILED: "children_failed",
    Kind.STEP_COMPLETED: "step:completed",
    Kind.STEP_FAILED: "step:failed",
    Kind.STEP_CANCELLED: "step:cancelled",
    Kind.STEP_RETRYING: "step:retrying",
    Kind.TIMER_SET: "step:timer",
    Kind.CHILD_STARTED: "step:child",
    Kind.SIGNAL: "step:signal",
    Kind.CHILD_ENDED: "step:child_ended",
    Kind.RELEASED: "step:released",
    Kind.ASLEEP: "step:asleep",
    Kind.DISCARDED: "step:discarded",
    Kind.AWAKE: "step:awake",
    Kind.COORDINATING: "step:coordinating",
    Kind.CLOSED: "step:closed",
    Kind.WATCHED: "step:watched",
}

_VISIBLE = frozenset(kind for kind in Kind if kind is Kind.EVENT or not _NAMES[kind].startswith("step:"))

#: Event names that users may not emit: the engine's own, and those of the stream protocol.
RESERVED_NAMES = frozenset(
    {name for name in _NAMES.values() if not name.startswith("step:")}
    | {"ready", "error", "heartbeat", "gap", "server_shutting_down"}
)


@dataclass(slots=True)
class Record:
    """One fact of a run. Durable before anything may act on it.

    `name`, `ident` and `occurrence` together are the identity of the call in the body that the record belongs to: the step's
    name, its arguments, and how often the attempt had called it so before. `head` holds small JSON values, `payload` encoded ones.
    """

    run_id: str
    seq: int
    kind: Kind
    at: float
    attempt: int
    name: str = ""
    ident: bytes = b""
    occurrence: int = 0
    head: dict[str, Any] = field(default_factory=dict)
    payload: bytes | None = None
    batch: int = 0

    @property
    def event_name(self) -> str:
        """The name under which subscribers see the record."""
        return self.name if self.kind is Kind.EVENT else _NAMES[self.kind]

    @property
    def visible(self) -> bool:
        """Whether subscribers see the record without asking for steps."""
        return self.kind in _VISIBLE

    @property
    def call(self) -> Call:
        """The identity of the call that the record belongs to."""
        return (self.name, self.ident, self.occurrence)


#: Identity of a call: (name, arguments, occurrence).
Call = tuple[str, bytes, int]


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as it is recorded.

    Arguments:
        error_type: `module.QualifiedName` of the class.
        message: its text.
        traceback: formatted, without values of variables.
        state: the encoded arguments and attributes, from which the exception itself is made again; None where they cannot be stored.
    """

    error_type: str
    message: str
    traceback: str = ""
    state: bytes | None = None

    def head(self) -> dict[str, Any]:
        """The part that is stored as JSON."""
        return {"error_type": self.error_type, "message": self.message, "traceback": self.traceback}

    @classmethod
    def of(cls, record: Record) -> Failure:
        """Read the failure that a record holds."""
        head = record.head
        return cls(head.get("error_type", ""), head.get("message", ""), head.get("traceback", ""), record.payload)
