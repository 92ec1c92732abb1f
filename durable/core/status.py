"""Statuses of a run and the one table of transitions between them.

Law: every decision consults `TRANSITIONS`; nothing else in the package knows which status may follow which.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, unique
from types import MappingProxyType

from durable.errors import TransitionError


@unique
class Status(StrEnum):
    """Where a run stands."""

    READY = "ready"
    RUNNING = "running"
    SUSPENDED = "suspended"
    WAITING_FOR_CHILDREN = "waiting_for_children"
    WAITING_FOR_ON_CHILDREN_COMPLETE = "waiting_for_on_children_complete"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CHILDREN_FAILED = "children_failed"
    ON_CHILDREN_COMPLETE_FAILED = "on_children_complete_failed"
    CANCELLED = "cancelled"


@unique
class Verb(StrEnum):
    """What can happen to a run's status."""

    BEGIN = "begin"
    COMPLETE = "complete"
    WAIT = "wait for children"
    COORDINATE = "coordinate"
    FAIL_BY_CHILDREN = "fail by its children"
    FAIL = "fail"
    TIME_OUT = "time_out"
    RETRY = "begin another attempt"
    RECOVER = "recover"
    SLEEP = "sleep"
    WAKE = "wake"
    RELEASE = "release"
    SUSPEND = "stop"
    RESUME = "resume"
    CANCEL = "cancel"
    REVIVE = "retry"
    REJOIN = "retry with its family"


#: What callers ask for; the other verbs are the engine's.
_ASKED = {
    Verb.SUSPEND: "stop", Verb.RESUME: "resume", Verb.CANCEL: "cancel", Verb.REVIVE: "retry", Verb.REJOIN: "retry",
}  # fmt: skip
#: What nobody asks for: it follows from a resume, or from the retry of a parent; or is possible for some runs only.
_BY_ITSELF = frozenset(
    {
        (Status.SUSPENDED, Verb.REJOIN),
        (Status.CANCELLED, Verb.REVIVE),
        (Status.CANCELLED, Verb.REJOIN),
        (Status.WAITING_FOR_ON_CHILDREN_COMPLETE, Verb.SUSPEND),
    }
)
#: Statuses in which a run has ended. Only REVIVE and REJOIN lead out of one: a retry.
ENDED = frozenset(
    {
        Status.COMPLETED,
        Status.FAILED,
        Status.TIMED_OUT,
        Status.CHILDREN_FAILED,
        Status.ON_CHILDREN_COMPLETE_FAILED,
        Status.CANCELLED,
    }
)

_READY, _RUNNING, _SUSPENDED = Status.READY, Status.RUNNING, Status.SUSPENDED
_CHILDREN, _COORDINATOR = Status.WAITING_FOR_CHILDREN, Status.WAITING_FOR_ON_CHILDREN_COMPLETE

TRANSITIONS: Mapping[tuple[Status, Verb], Status] = MappingProxyType(
    {
        (_READY, Verb.BEGIN): _RUNNING,
        (_READY, Verb.SUSPEND): _SUSPENDED,
        (_READY, Verb.CANCEL): Status.CANCELLED,
        (_READY, Verb.FAIL): Status.FAILED,  # its input can no longer be read
        (_RUNNING, Verb.COMPLETE): Status.COMPLETED,
        (_RUNNING, Verb.WAIT): _CHILDREN,
        (_RUNNING, Verb.FAIL): Status.FAILED,
        (_RUNNING, Verb.TIME_OUT): Status.TIMED_OUT,
        (_RUNNING, Verb.RETRY): _READY,
        (_RUNNING, Verb.RECOVER): _RUNNING,
        (_RUNNING, Verb.SLEEP): _RUNNING,
        (_RUNNING, Verb.WAKE): _RUNNING,
        (_RUNNING, Verb.RELEASE): _READY,
        (_RUNNING, Verb.SUSPEND): _SUSPENDED,
        (_RUNNING, Verb.CANCEL): Status.CANCELLED,
        (_SUSPENDED, Verb.RESUME): _READY,
        (_SUSPENDED, Verb.REJOIN): _COORDINATOR,  # it was its coordinator that was suspended
        (_SUSPENDED, Verb.CANCEL): Status.CANCELLED,
        (_CHILDREN, Verb.COORDINATE): _COORDINATOR,
        (_CHILDREN, Verb.COMPLETE): Status.COMPLETED,
        (_CHILDREN, Verb.FAIL_BY_CHILDREN): Status.CHILDREN_FAILED,
        (_CHILDREN, Verb.FAIL): Status.ON_CHILDREN_COMPLETE_FAILED,  # the coordinator cannot be started
        (_CHILDREN, Verb.CANCEL): Status.CANCELLED,
        (_COORDINATOR, Verb.COMPLETE): Status.COMPLETED,
        (_COORDINATOR, Verb.WAIT): _COORDINATOR,  # it returned children itself
        (_COORDINATOR, Verb.FAIL): Status.ON_CHILDREN_COMPLETE_FAILED,
        (_COORDINATOR, Verb.TIME_OUT): Status.ON_CHILDREN_COMPLETE_FAILED,
        (_COORDINATOR, Verb.FAIL_BY_CHILDREN): Status.ON_CHILDREN_COMPLETE_FAILED,
        (_COORDINATOR, Verb.RETRY): _COORDINATOR,
        (_COORDINATOR, Verb.RECOVER): _COORDINATOR,
        (_COORDINATOR, Verb.SLEEP): _COORDINATOR,
        (_COORDINATOR, Verb.WAKE): _COORDINATOR,
        (_COORDINATOR, Verb.RELEASE): _COORDINATOR,
        (_COORDINATOR, Verb.SUSPEND): _SUSPENDED,
        (_COORDINATOR, Verb.CANCEL): Status.CANCELLED,
        (Status.FAILED, Verb.REVIVE): _READY,
        (Status.TIMED_OUT, Verb.REVIVE): _READY,
        (Status.CANCELLED, Verb.REVIVE): _READY,  # with its family only: its parent, which had cancelled it, is retried
        (Status.CANCELLED, Verb.REJOIN): _CHILDREN,
        (Status.CHILDREN_FAILED, Verb.REJOIN): _CHILDREN,
        (Status.ON_CHILDREN_COMPLETE_FAILED, Verb.REJOIN): _CHILDREN,
    }
)


def after(status: Status, verb: Verb, run_id: str) -> Status:
    """Return the status that follows, or raise `TransitionError`."""
    following = TRANSITIONS.get((status, verb))
    if following is None:
        allowed = sorted(_ASKED[v] for s, v in TRANSITIONS if s is status and v in _ASKED and (s, v) not in _BY_ITSELF)
        can = f"what can be asked of it there: {', '.join(allowed)}" if allowed else "that is its end"
        raise TransitionError(f"run {run_id} is {status}: it cannot {verb}; {can}")
    return following
