"""Settings: frozen, one class per part, checked when they are made.

Law: a wrong value never gets further than the constructor, and the error names the key (`log.segment_bytes`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, Self

from durable.environment import read_part, variable
from durable.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB


def _require(condition: bool, key: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"setting {key!r} is {value!r}, but must be {rule}", key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The write-ahead log.

    Arguments:
        segment_bytes: size to which each segment file is preallocated; a full segment is followed by a new one.
        segment_age_seconds: a segment older than this is followed by a new one at the next append.
        frame_bytes_max: largest single frame; bounds what one read may allocate.
        low_water_bytes: with less free space than this on the disk, starts are refused with `StorageFullError`.
    """

    segment_bytes: int = 16 * MIB
    segment_age_seconds: float = 3600.0
    frame_bytes_max: int = 64 * MIB
    low_water_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        _require(self.segment_bytes >= 4 * KIB, "log.segment_bytes", self.segment_bytes, "at least 4096")
        _require(self.segment_age_seconds > 0, "log.segment_age_seconds", self.segment_age_seconds, "positive")
        _require(self.frame_bytes_max >= KIB, "log.frame_bytes_max", self.frame_bytes_max, "at least 1024")
        _require(self.low_water_bytes >= 0, "log.low_water_bytes", self.low_water_bytes, "zero or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushSettings:
    """The flusher that carries the log into the repository.

    Arguments:
        interval_seconds: longest time that a committed record waits before it is flushed.
        batch_records_max: most records in one transaction.
        backlog_records_max: with more records than this not yet flushed, starts are refused; at twice as many, commits wait.
        breaker_threshold: consecutive failures after which the breaker opens.
        breaker_open_seconds: how long it stays open before one flush is tried again.
    """

    interval_seconds: float = 0.5
    batch_records_max: int = 5_000
    backlog_records_max: int = 500_000
    breaker_threshold: int = 5
    breaker_open_seconds: float = 30.0

    def __post_init__(self) -> None:
        _require(self.interval_seconds > 0, "flush.interval_seconds", self.interval_seconds, "positive")
        _require(self.batch_records_max >= 1, "flush.batch_records_max", self.batch_records_max, "at least 1")
        _require(self.backlog_records_max >= 1, "flush.backlog_records_max", self.backlog_records_max, "at least 1")
        _require(self.breaker_threshold >= 1, "flush.breaker_threshold", self.breaker_threshold, "at least 1")
        _require(self.breaker_open_seconds > 0, "flush.breaker_open_seconds", self.breaker_open_seconds, "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadSettings:
    """Bounds on what users store.

    Arguments:
        bytes_max: largest encoded value (input, result, event, signal).
        depth_max: deepest nesting.
        pickle_key: secret for signing cloudpickle payloads; needed only where `codec="cloudpickle"` is used.
    """

    bytes_max: int = 4 * MIB
    depth_max: int = 100
    pickle_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require(self.bytes_max >= 64, "payload.bytes_max", self.bytes_max, "at least 64")
        _require(1 <= self.depth_max <= 500, "payload.depth_max", self.depth_max, "between 1 and 500")
        _require(
            self.pickle_key is None or len(self.pickle_key) >= 16,
            "payload.pickle_key",
            "<hidden>",
            "16 bytes or longer",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How runs are executed.

    Arguments:
        max_recoveries: recoveries of one run without a newly recorded step, after which it fails; a task may set its own.
        concurrency: runs that this process executes at once; None: as many as `Limits.max_running`.
        max_concurrent_recoveries: runs that go on after a crash at the same time; each gives its place up when it has caught up with its
            record, or ends.
        default_timeout_seconds: timeout of an attempt of tasks that set none; None: no timeout.
        history_records_max: most records that one run may have.
        signals_max: most signals that may wait unread in one run.
        shutdown_grace_seconds: how long `close()` waits for running bodies before it cancels them.
        cancel_grace_seconds: how long a cancelled body may take to end before it is abandoned.
        replay_stall_seconds: how long a replay may wait for a recorded call that does not come before it counts as divergence.
        on_new_step: what to do with a step that was added to the code of a run in flight.
        children_max: most children that one value may hold.
        family_bytes_max: most bytes that the inputs of these children may take together.
        tree_depth_max: most ancestors that a child may have.
        idle_runs_max: most runs that wait, without a slot, in memory; further ones wait in the store only.
        idle_seconds: how long a body may only wait, for a time, a signal or a child, before it gives its slot to a run that needs one;
            one that is about to wait ten times as long gives it at once.
        process_workers: size of the pool for `isolate="process"` steps.
        thread_workers: threads for plain `def` tasks and steps.
    """

    max_recoveries: int = 100
    concurrency: int | None = None
    max_concurrent_recoveries: int = 200
    default_timeout_seconds: float | None = None
    history_records_max: int = 100_000
    signals_max: int = 10_000
    shutdown_grace_seconds: float = 2.0
    cancel_grace_seconds: float = 5.0
    replay_stall_seconds: float = 2.0
    on_new_step: Literal["run", "error"] = "run"
    children_max: int = 50_000
    family_bytes_max: int = 16 * MIB
    tree_depth_max: int = 1_000
    idle_runs_max: int = 5_000
    idle_seconds: float = 1.0
    process_workers: int = 2
    thread_workers: int = 32

    def __post_init__(self) -> None:
        _require(self.max_recoveries >= 0, "engine.max_recoveries", self.max_recoveries, "zero or more")
        _require(
            self.concurrency is None or self.concurrency >= 1,
            "engine.concurrency",
            self.concurrency,
            "None or at least 1",
        )
        timeout = self.default_timeout_seconds
        _require(timeout is None or timeout > 0, "engine.default_timeout_seconds", timeout, "None or positive")
        _require(self.history_records_max >= 10, "engine.history_records_max", self.history_records_max, "at least 10")
        _require(self.signals_max >= 1, "engine.signals_max", self.signals_max, "at least 1")
        for key in ("max_concurrent_recoveries", "children_max", "tree_depth_max", "idle_runs_max", "family_bytes_max"):
            _require(getattr(self, key) >= 1, f"engine.{key}", getattr(self, key), "at least 1")
        for key in ("shutdown_grace_seconds", "cancel_grace_seconds", "replay_stall_seconds", "idle_seconds"):
            _require(getattr(self, key) >= 0, f"engine.{key}", getattr(self, key), "zero or more")
        _require(self.on_new_step in ("run", "error"), "engine.on_new_step", self.on_new_step, "'run' or 'error'")
        _require(self.process_workers >= 1, "engine.process_workers", self.process_workers, "at least 1")
        _require(self.thread_workers >= 1, "engine.thread_workers", self.thread_workers, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """Live subscribers to the events of runs.

    Arguments:
        buffer_size: records of one run that are kept in memory for those who follow it; who lags further behind reads from the store.
        buffer_bytes: most bytes that these records take; the last one is kept even if it has more.
        retention_seconds: how long they are kept after the last of these has gone or the run has ended, for one who comes back.
        retained_max: most runs of which they are kept so.
    """

    buffer_size: int = 1024
    buffer_bytes: int = MIB
    retention_seconds: float = 60.0
    retained_max: int = 1000

    def __post_init__(self) -> None:
        _require(self.buffer_size >= 1, "stream.buffer_size", self.buffer_size, "at least 1")
        _require(self.buffer_bytes >= KIB, "stream.buffer_bytes", self.buffer_bytes, "at least 1024")
        _require(self.retention_seconds >= 0, "stream.retention_seconds", self.retention_seconds, "zero or more")
        _require(self.retained_max >= 0, "stream.retained_max", self.retained_max, "zero or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSettings:
    """How long what is over is kept.

    Arguments:
        closed_seconds: closed runs go, with their events and payloads, this long after they ended, and not before their whole family may;
            dead letters stay until they are discarded. None: all is kept.
        interval_seconds: how often to look for what may go.
        batch_runs: how many runs go at once; work goes on between two batches.
    """

    closed_seconds: float | None = None
    interval_seconds: float = 60.0
    batch_runs: int = 500

    def __post_init__(self) -> None:
        kept = self.closed_seconds
        _require(kept is None or kept >= 0, "retention.closed_seconds", kept, "None, or zero or more")
        _require(self.interval_seconds > 0, "retention.interval_seconds", self.interval_seconds, "positive")
        _require(self.batch_runs >= 1, "retention.batch_runs", self.batch_runs, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """A store in PostgreSQL.

    Arguments:
        schema: the schema that holds the tables; several stores may share a database.
        lease_seconds: how long the runs of an executor stay its own after it was last heard of. It is heard of three times as often.
        poll_seconds: about how often an executor looks for work (half as often for messages), and a waiting handle at its run, when no
            notice comes.
        notify: `listen` (notices by LISTEN and NOTIFY) or `poll` (none: for servers without them, or behind a pooler of transactions).
        connections_max: most connections of one process, besides one that writes and one that listens.
        connect_seconds: how long to try to reach a server.
        statement_seconds: how long one statement may take; also for how long one may wait for a lock.
        idle_seconds: how long the server leaves a transaction open in which nothing happens.
        migrate: whether opening creates or updates the tables; else `durable migrate` has to.
    """

    schema: str = "durable_store"
    lease_seconds: float = 15.0
    poll_seconds: float = 1.0
    notify: Literal["listen", "poll"] = "listen"
    connections_max: int = 8
    connect_seconds: float = 10.0
    statement_seconds: float = 30.0
    idle_seconds: float = 60.0
    migrate: bool = True

    def __post_init__(self) -> None:
        _require(
            self.schema.isidentifier() and self.schema.isascii() and self.schema.islower() and len(self.schema) <= 48,
            "postgres.schema",
            self.schema,
            "at most 48 lower-case letters, digits and underscores",
        )
        for key in ("lease_seconds", "poll_seconds", "connect_seconds", "statement_seconds", "idle_seconds"):
            _require(getattr(self, key) > 0, f"postgres.{key}", getattr(self, key), "positive")
        _require(self.notify in ("listen", "poll"), "postgres.notify", self.notify, "'listen' or 'poll'")
        _require(self.connections_max >= 1, "postgres.connections_max", self.connections_max, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of an application, one part each."""

    log: LogSettings = LogSettings()
    flush: FlushSettings = FlushSettings()
    payload: PayloadSettings = PayloadSettings()
    engine: EngineSettings = EngineSettings()
    stream: StreamSettings = StreamSettings()
    retention: RetentionSettings = RetentionSettings()
    postgres: PostgresSettings = PostgresSettings()

    def __post_init__(self) -> None:
        for part in fields(self):
            kind = type(part.default)
            _require(
                isinstance(getattr(self, part.name), kind), part.name, getattr(self, part.name), f"a {kind.__name__}"
            )
        # A value travels in one frame of the log, with its record's name, arguments or traceback around it.
        room = self.log.frame_bytes_max // 2
        _require(
            self.engine.family_bytes_max <= room,
            "engine.family_bytes_max",
            self.engine.family_bytes_max,
            f"at most {room}, half of log.frame_bytes_max: children come into being in one frame",
        )
        _require(
            self.payload.bytes_max <= room,
            "payload.bytes_max",
            self.payload.bytes_max,
            f"at most {room}, half of log.frame_bytes_max, to fit into a frame with what is around it",
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The settings that variables name, `DURABLE_ENGINE_MAX_RECOVERIES=5` for `engine.max_recoveries`; all others by default.

        What code says on top of that, with `dataclasses.replace`, wins. Raises `ConfigError` that names the variable.
        """
        parts = {part.name: read_part(type(part.default), part.name, environ) for part in fields(cls)}
        try:
            return cls(**parts)
        except ConfigError as error:
            name = variable(*error.key.split(".")) if error.key else ""
            raise ConfigError(f"the environment variable {name}: {error}", key=error.key) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is let in and how much runs at once. Durations are seconds; None means no limit.

    Refusals are decided before anything is stored. What bodies and steps start, retries and recoveries do not count as starts, nor does a
    start whose key has a run already.

    Arguments:
        max_starts_per_window: starts in any `window`; one more raises `BackpressureError`, which says when the next will be let in.
        max_starts_per_user_window: the same for the starts of one user.
        window: length of the sliding window.
        max_queued: started runs that may wait for their first slot; one more start that would have to wait raises `BackpressureError`,
            whose `retry_after` is an estimate from how fast the queue moved lately, at least 0.1 and at most `window`. A run with a delay
            counts from when it is due. With 0 no run waits in the store: `start` itself waits for a slot, in turn, at most `slot_timeout`.
        max_running: runs that execute at once, in all processes that share the store; further ones wait their turn in status `ready`. See
            `engine.concurrency` for a bound of one process.
        max_running_per_user: the same for the runs of one user; others go first meanwhile.
        slot_timeout: how long a start waits for a slot where no run may wait for one (`max_queued=0`), before it raises
            `SlotTimeoutError`.
        dead_letter_size: dead letters that are kept; with one more the oldest is discarded.
        dead_letter_ttl: how long a dead letter is kept before it is discarded.
        dead_letter_retries: how often `app.dead_letters.retry` lets one run go on again.
    """

    max_starts_per_window: int | None = None
    max_starts_per_user_window: int | None = None
    window: float = 60.0
    max_queued: int | None = None
    max_running: int = 1000
    max_running_per_user: int | None = None
    slot_timeout: float = 30.0
    dead_letter_size: int = 1000
    dead_letter_ttl: float = 86400.0
    dead_letter_retries: int = 3

    def __post_init__(self) -> None:
        for key in ("max_starts_per_window", "max_starts_per_user_window", "max_running_per_user"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"limits.{key}", value, "None or at least 1")
        _require(
            self.max_queued is None or self.max_queued >= 0,
            "limits.max_queued",
            self.max_queued,
            "None, or zero or more",
        )
        _require(self.max_running >= 1, "limits.max_running", self.max_running, "at least 1")
        for key in ("window", "slot_timeout", "dead_letter_ttl"):
            _require(getattr(self, key) > 0, f"limits.{key}", getattr(self, key), "positive")
        _require(self.dead_letter_size >= 0, "limits.dead_letter_size", self.dead_letter_size, "zero or more")
        _require(self.dead_letter_retries >= 0, "limits.dead_letter_retries", self.dead_letter_retries, "zero or more")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The limits that variables name, as in `DURABLE_LIMITS_MAX_RUNNING=10`; all others by default. See `Config.from_env`."""
        return read_part(cls, "limits", environ)
