"""Commands: what callers, bodies and the engine ask a run to do.

Law: a command is a wish. `decide` turns it into records or refuses it; only records are facts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from durable.core.records import Call, Failure, Kind
from durable.core.retry import Retry
from durable.core.run import Join
from durable.core.status import Status


@dataclass(slots=True)
class Create:
    """Bring the run into being."""

    task: str
    input: bytes
    version: str | None = None
    key: str | None = None
    fingerprint: str = ""
    user: str | None = None
    parent_id: str | None = None
    attached: bool = False
    joined: bool = False
    depth: int = 0
    priority: int = 0
    retry: Retry | None = None
    timeout: float | None = None
    delay: float = 0.0
    #: Trace context (W3C) of who starts it, where that is not the code that is running.
    trace: str = ""


@dataclass(slots=True)
class Begin:
    """Begin the attempt that is due."""


@dataclass(slots=True)
class Recover:
    """Go on after the executor was lost. With `recoveries_max` reached, the run fails instead."""

    reason: str
    recoveries_max: int


@dataclass(slots=True)
class Note:
    """Record something about a call of the body: a result, an event, a timer, a child."""

    kind: Kind
    call: Call
    payload: bytes | None = None
    head: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Receive:
    """Hand the oldest unread signal of this name to a waiting call. `payloads` finds a signal's payload by its seq."""

    signal: str
    call: Call
    payloads: dict[int, bytes | None]
    head: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Send:
    """Put a signal into the run's mailbox."""

    name: str
    payload: bytes | None
    signals_max: int


@dataclass(slots=True)
class Complete:
    """The body, or the coordinator, returned. With children or something that follows them, the run waits for them first.

    Arguments:
        payload: the returned value.
        children: how many runs it holds as children.
        join: what follows when all have ended; see `Run.join`. Only the body's return says so.
        lenient: whether the failure of a child is left to the coordinator.
    """

    payload: bytes
    children: int = 0
    join: Join = ""
    lenient: bool = False


@dataclass(slots=True)
class ChildEnded:
    """A child has ended: what its parent has to know, in the same commit.

    Arguments:
        counts: whether it is one that the parent returned, or has for its coordinator; else its body awaited it, and may have gone on.
    """

    child_id: str
    task: str
    status: Status
    result: bytes | None = None
    failure: dict[str, Any] | None = None
    reason: str | None = None
    counts: bool = True


@dataclass(slots=True)
class Watch:
    """Another run has this one, which its key names, for a child: it is told of the end, too."""

    by: str


@dataclass(slots=True)
class Coordinate:
    """All children have ended: begin the coordinator; `child_id` is its run where it is a task."""

    child_id: str | None = None


@dataclass(slots=True)
class Sleep:
    """Let go of a body that only waits: until a time, or for a signal or a child."""

    until: float | None = None


@dataclass(slots=True)
class Wake:
    """Go on with a run that is asleep."""


@dataclass(slots=True)
class Close:
    """The children of a run that has ended have ended too."""


@dataclass(slots=True)
class Fail:
    """The body raised. `retryable` is false for errors that no further attempt can mend; `fraction` spreads the jitter."""

    failure: Failure
    retryable: bool = True
    timed_out: bool = False
    fraction: float = 0.0


@dataclass(slots=True)
class Cancel:
    """End the run because somebody asked for it."""

    reason: str | None = None


@dataclass(slots=True)
class Suspend:
    """Park the run until it is resumed; with a failure where the engine itself had to park it."""

    reason: str | None = None
    failure: Failure | None = None


@dataclass(slots=True)
class Resume:
    """Go on with a suspended run."""


@dataclass(slots=True)
class Revive:
    """Try a failed run again, from the step that failed.

    Arguments:
        children: how many of its children are tried again with it.
        by_parent: it is tried again because its parent is.
        letter_retries: it is tried again as a dead letter, which may happen so often; None: by its handle, as often as anybody likes.
    """

    children: int = 0
    by_parent: bool = False
    letter_retries: int | None = None


@dataclass(slots=True)
class Release:
    """Give the run back unfinished, because the executor is closing."""


@dataclass(slots=True)
class Discard:
    """Take a dead letter off the list; `reason` says why where nobody asked for it."""

    reason: str | None = None


Command = (
    Note
    | Complete
    | ChildEnded
    | Watch
    | Coordinate
    | Sleep
    | Wake
    | Close
    | Begin
    | Create
    | Recover
    | Receive
    | Send
    | Fail
    | Cancel
    | Suspend
    | Resume
    | Revive
    | Release
    | Discard
)
