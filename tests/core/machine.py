"""What the tests of the core share: a run brought into a status, and commands that ask for each verb."""

from __future__ import annotations

from durable.core.commands import (
    Begin,
    Cancel,
    Command,
    Complete,
    Create,
    Fail,
    Note,
    Recover,
    Release,
    Resume,
    Revive,
    Suspend,
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

#: A command that asks for each verb, given a run of `made()`: three attempts, the first one under way.
WISHES: dict[Verb, Command] = {
    Verb.BEGIN: Begin(),
    Verb.COMPLETE: Complete(b'"done"'),
    Verb.FAIL: Fail(FAILURE, retryable=False),
    Verb.TIME_OUT: Fail(FAILURE, retryable=False, timed_out=True),
    Verb.RETRY: Fail(FAILURE),
    Verb.RECOVER: Recover("crash", 10),
    Verb.RELEASE: Release(),
    Verb.SUSPEND: Suspend("stop"),
    Verb.RESUME: Resume(),
    Verb.CANCEL: Cancel("enough"),
    Verb.REVIVE: Revive(),
}

#: How a run comes to a status.
PATHS: dict[Status, tuple[Command, ...]] = {
    Status.READY: (),
    Status.RUNNING: (Begin(),),
    Status.SUSPENDED: (Begin(), Suspend("stop")),
    Status.COMPLETED: (Begin(), Complete(b'"done"')),
    Status.FAILED: (Begin(), Fail(FAILURE, retryable=False)),
    Status.TIMED_OUT: (Begin(), Fail(FAILURE, retryable=False, timed_out=True)),
    Status.CANCELLED: (Begin(), Cancel("enough")),
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
    """A run in this status. One that no command leads to yet gets it by hand."""
    run = Run(RUN_ID)
    options = {"retry": Retry(3), **create}
    give(run, Create("crawl", b'{"url":"u"}', **options), *PATHS.get(status, ()))  # type: ignore[arg-type]
    run.status = status
    return run


def step(
    run: Run, name: str = "fetch", ident: bytes = b"", occurrence: int = 0, kind: Kind = Kind.STEP_COMPLETED
) -> list[Record]:
    """Record something about a call."""
    return give(run, Note(kind, (name, ident, occurrence), b"1"))
