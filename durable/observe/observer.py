"""`Observer`: hooks of one's own into an application, and the facts that they are told.

Law: observers are told of records that are durable, after everybody whom they concern was told; what an observer does, or raises, changes
nothing of what happened. All hooks are called on the event loop and have to be quick: an observer that is slow slows the application.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from durable.core.records import Call, Record
from durable.core.run import Run
from durable.tasks.handle import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRun:
    """The run that something is told of: what of it never changes."""

    run_id: str
    task_name: str
    version: str | None
    key: str | None
    user: str | None
    parent_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedAttempt:
    """An attempt whose body is about to run.

    Arguments:
        run: whose attempt.
        attempt: its number, from 1.
        max_attempts: how many the policy allows.
        recovered: whether it goes on with what was begun before.
    """

    run: ObservedRun
    attempt: int
    max_attempts: int
    recovered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A start that was not let in; nothing was stored of it.

    Arguments:
        task_name: the task that was to be started.
        user: for whom.
        reason: `rate`, `user_rate`, `queue`, `slot_timeout`, `closing` (while it waited for a slot), or `store` (which takes no new runs).
    """

    task_name: str
    user: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Records that were written together.

    Arguments:
        kind: `log` (into the write-ahead log of an embedded store), `flush` (from there into its tables), or `commit` (into the tables
            at once, as PostgreSQL and the store in memory do).
        entries: how many records.
        seconds: how long it took.
        at: when it was done, UTC.
    """

    kind: Literal["log", "flush", "commit"]
    entries: int
    seconds: float
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A look for runs that were left by a process that is gone: at the opening, and on PostgreSQL from time to time.

    Arguments:
        found: how many there were.
        seconds: how long it took.
        at: when it was done, UTC.
    """

    found: int
    seconds: float
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """How much is going on in this process at this moment.

    Arguments:
        running: runs that hold a slot.
        queued: runs that wait for one.
        streams: live event streams.
        dead_letters: dead letters in the store, as of about a second ago.
    """

    running: int
    queued: int
    streams: int
    dead_letters: int


class Observer:
    """The base of one's own observers: override what you want to be told, and pass it as `Durable(observers=[...])`.

    A hook that raises is logged, once for each kind of hook, and harms nobody.
    """

    def on_open(self, gauges: Callable[[], Gauges]) -> None:
        """The application is open. `gauges` may be called at any time from then on, from any thread."""

    def on_record(self, run: ObservedRun, event: Event) -> None:
        """A record became durable: what `handle.events(steps=True)` yields, of every run that this process writes to.

        `event.data` holds inputs and results where the event has them: take care what you pass on.
        """

    def on_refused(self, refusal: Refusal) -> None:
        """A start was not let in."""

    def on_batch(self, batch: Batch) -> None:
        """Records were written."""

    def on_scan(self, scan: Scan) -> None:
        """It was looked for runs to recover."""

    def attempt(self, attempt: ObservedAttempt) -> AbstractContextManager[object]:
        """Something to enter around the body of an attempt: what the body raises is seen there, and cannot be kept from going on."""
        return nullcontext()

    def on_close(self) -> None:
        """The application is closed."""


class Telemetry(Observer):
    """The base of `durable.observe.otel.OpenTelemetry`: an observer that traces, and is told in the engine's own terms."""

    def stamp(self, run: Run, record: Record) -> None:
        """Give a record of a beginning, before it is recorded, the trace context (`head["trace"]`) of what begins."""

    def record(self, run: Run, record: Record) -> None:
        """A record became durable; told before anybody acts on it. Of `run` only what a later record does not change counts."""

    def enter(self, run_id: str) -> None:
        """Make the span of the run's attempt current in this context, which is that of its body."""

    def stepping(self, run_id: str, call: Call, now: float) -> None:
        """A try of a step begins."""

    def replayed(self, run_id: str, record: Record) -> None:
        """A call of the body was served from the record."""

    def dropped(self, run_id: str) -> None:
        """Nothing more comes of what was begun of this run here."""
