"""What the tests of the core share: a run brought into a status, and commands that ask for each verb."""

from __future__ import annotations

from durable.core.commands import (
    Begin,
    Cancel,
    ChildEnded,
    Close,
    Command,
    Complete,
    Coordinate,
    Create,
    Fail,
    Note,
    Recover,
    Release,
    Resume,
    Revive,
    Sleep,
    Suspend,
    Wake,
)
from durable.core.decide import decide
from durable.core.records import Call, Failure, Kind, Record
from durable.core.retry import Retry
from durable.core.run import Run, apply
from durable.core.status import Status, Verb

RUN_ID = "0198" + "0" * 24 + "beef"
RECORDS_MAX = 1_000
FAILURE = Failure("builtins.ValueError", "no such page", "Traceback ...", b"state")
CALL: Call = ("fetch", b'["u"]', 0)

#: What a child came to, as its parent hears of it.
CHILD_DONE = ChildEnded("c1", "title", Status.COMPLETED, b'"a title"')
CHILD_BROKE = ChildEnded("c2", "summary", Status.FAILED, failure=FAILURE.head())
CHILD_CANCELLED = ChildEnded("c3", "summary", Status.CANCELLED, reason="enough")

#: The ways of a run that has returned two children and has a function for a coordinator.
RETURNED: tuple[Command, ...] = (Begin(), Complete(b'"value"', 2, "function"))
GATHERED: tuple[Command, ...] = (*RETURNED, CHILD_DONE, CHILD_DONE)
COORDINATING: tuple[Command, ...] = (*GATHERED, Coordinate())

#: A command that asks for each verb, given a run of `asked()`: three attempts, the first one under way.
WISHES: dict[Verb, Command] = {
    Verb.BEGIN: Begin(),
    Verb.COMPLETE: Complete(b'"done"'),
    Verb.WAIT: Complete(b'"value"', 2),
    Verb.COORDINATE: Coordinate(),
    Verb.FAIL_BY_CHILDREN: CHILD_BROKE,
    Verb.FAIL: Fail(FAILURE, retryable=False),
    Verb.TIME_OUT: Fail(FAILURE, retryable=False, timed_out=True),
    Verb.RETRY: Fail(FAILURE),
    Verb.RECOVER: Recover("crash", 10),
    Verb.SLEEP: Sleep(60.0),
    Verb.WAKE: Wake(),
    Verb.RELEASE: Release(),
    Verb.SUSPEND: Suspend("stop"),
    Verb.RESUME: Resume(),
    Verb.CANCEL: Cancel("enough"),
    Verb.REVIVE: Revive(by_parent=True),
    Verb.REJOIN: Revive(children=1, by_parent=True),
}

#: How a run comes to a status.
PATHS: dict[Status, tuple[Command, ...]] = {
    Status.READY: (),
    Status.RUNNING: (Begin(),),
    Status.SUSPENDED: (Begin(), Suspend("stop")),
    Status.WAITING_FOR_CHILDREN: RETURNED,
    Status.WAITING_FOR_ON_CHILDREN_COMPLETE: COORDINATING,
    Status.COMPLETED: (Begin(), Complete(b'"done"')),
    Status.FAILED: (Begin(), Fail(FAILURE, retryable=False)),
    Status.TIMED_OUT: (Begin(), Fail(FAILURE, retryable=False, timed_out=True)),
    Status.CHILDREN_FAILED: (*RETURNED, CHILD_BROKE),
    Status.ON_CHILDREN_COMPLETE_FAILED: (*COORDINATING, Fail(FAILURE, retryable=False)),
    Status.CANCELLED: (Begin(), Cancel("enough")),
}

#: How a run comes to a status in which a verb is possible, where the plain way does not lead there: all its children have ended, it is
#: asleep, it has returned children before it was stopped or cancelled, it is closed.
SHAPES: dict[tuple[Status, Verb], tuple[Command, ...]] = {
    (Status.RUNNING, Verb.WAKE): (Begin(), Sleep(60.0)),
    (Status.SUSPENDED, Verb.REJOIN): (*COORDINATING, Suspend("stop")),
    (Status.WAITING_FOR_CHILDREN, Verb.COMPLETE): (Begin(), Complete(b'"value"', 1)),
    (Status.WAITING_FOR_CHILDREN, Verb.COORDINATE): GATHERED,
    (Status.WAITING_FOR_CHILDREN, Verb.FAIL): GATHERED,
    (Status.WAITING_FOR_ON_CHILDREN_COMPLETE, Verb.WAKE): (*COORDINATING, Sleep(60.0)),
    (Status.WAITING_FOR_ON_CHILDREN_COMPLETE, Verb.FAIL_BY_CHILDREN): (*COORDINATING, Complete(b'"more"', 2)),
    (Status.CHILDREN_FAILED, Verb.REJOIN): (*RETURNED, CHILD_BROKE, Close()),
    (Status.CANCELLED, Verb.REJOIN): (*RETURNED, Cancel("enough"), Close()),
}
#: Verbs that another command than usual asks for, from there.
ASKED_BY: dict[tuple[Status, Verb], Command] = {
    (Status.WAITING_FOR_CHILDREN, Verb.COMPLETE): CHILD_DONE,
    (Status.SUSPENDED, Verb.REJOIN): Resume(),
}


def give(run: Run, *commands: Command, now: float = 10.0, records_max: int = RECORDS_MAX) -> list[Record]:
    """Decide and apply commands one after another; return the records."""
    records: list[Record] = []
    for command in commands:
        for record in decide(run, command, now, records_max):
            apply(run, record)
            records.append(record)
    return records


def made(status: Status = Status.READY, **create: object) -> Run:
    """A run in this status."""
    return lived(*PATHS[status], **create)


def lived(*commands: Command, **create: object) -> Run:
    """A new run after these commands."""
    run = Run(RUN_ID)
    options = {"retry": Retry(3), **create}
    give(run, Create("crawl", b'{"url":"u"}', **options), *commands)  # type: ignore[arg-type]
    return run


def asked(status: Status, verb: Verb) -> tuple[Run, Command]:
    """A run in this status, in the shape that the verb needs, and a command that asks for just that verb."""
    run = lived(*SHAPES.get((status, verb), PATHS[status]))
    assert run.status is status
    # Whether a run goes on by itself or joins its children again is not the command's to say: it is told by what the run has returned.
    if verb in (Verb.RESUME, Verb.REVIVE):
        run.returned_seq = 0
    elif verb is Verb.REJOIN:
        run.returned_seq = run.returned_seq or 1
    return run, ASKED_BY.get((status, verb), WISHES[verb])


def step(
    run: Run, name: str = "fetch", ident: bytes = b"", occurrence: int = 0, kind: Kind = Kind.STEP_COMPLETED
) -> list[Record]:
    """Record something about a call."""
    return give(run, Note(kind, (name, ident, occurrence), b"1"))
