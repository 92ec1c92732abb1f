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
    FAIL = "fail"
    TIME_OUT = "time_out"
    RETRY = "retry"
    RECOVER = "recover"
    RELEASE = "release"
    SUSPEND = "suspend"
    RESUME = "resume"
    CANCEL = "cancel"
    REVIVE = "revive"


#: Statuses in which a run has ended. Only REVIVE leads out of one.
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

TRANSITIONS: Mapping[tuple[Status, Verb], Status] = MappingProxyType(
    {
        (Status.READY, Verb.BEGIN): Status.RUNNING,
        (Status.READY, Verb.SUSPEND): Status.SUSPENDED,
        (Status.READY, Verb.CANCEL): Status.CANCELLED,
        (Status.READY, Verb.FAIL): Status.FAILED,  # its input can no longer be read
        (Status.RUNNING, Verb.COMPLETE): Status.COMPLETED,
        (Status.RUNNING, Verb.FAIL): Status.FAILED,
        (Status.RUNNING, Verb.TIME_OUT): Status.TIMED_OUT,
        (Status.RUNNING, Verb.RETRY): Status.READY,
        (Status.RUNNING, Verb.RECOVER): Status.RUNNING,
        (Status.RUNNING, Verb.RELEASE): Status.READY,
        (Status.RUNNING, Verb.SUSPEND): Status.SUSPENDED,
        (Status.RUNNING, Verb.CANCEL): Status.CANCELLED,
        (Status.SUSPENDED, Verb.RESUME): Status.READY,
        (Status.SUSPENDED, Verb.CANCEL): Status.CANCELLED,
        (Status.FAILED, Verb.REVIVE): Status.READY,
        (Status.TIMED_OUT, Verb.REVIVE): Status.READY,
    }
)


def after(status: Status, verb: Verb, run_id: str) -> Status:
    """Return the status that follows, or raise `TransitionError`."""
    following = TRANSITIONS.get((status, verb))
    if following is None:
        allowed = sorted(v for s, v in TRANSITIONS if s is status)
        can = f"from there it can only {', '.join(allowed)}" if allowed else "that is its end"
        raise TransitionError(f"run {run_id} is {status}: it cannot {verb}; {can}")
    return following
