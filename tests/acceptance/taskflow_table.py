"""What `@databricks/taskflow` promises (its README and its first pull request), name by name: ours, and the test that shows it.

A row is (theirs, ours, shown by). Where the third part names no test, it says why ours is otherwise.
"""

from __future__ import annotations

Row = tuple[str, str, str]

CONTRACT = "tests/acceptance/test_api_contract"
TASKFLOW = "tests/acceptance/test_taskflow.py"

FEATURES: list[Row] = [
    (
        "durable execution: a write-ahead log survives crashes",
        "durable.log",
        "tests/acceptance/test_sigkill.py::test_no_sigkill_loses_or_repeats_anything",
    ),
    (
        "event streaming with reconnection by sequence numbers",
        "Handle.events",
        f"{CONTRACT}_handles.py::test_a_subscriber_that_comes_back_misses_nothing",
    ),
    (
        "rate limiting: a sliding window with quotas per user",
        "Limits",
        "tests/acceptance/test_limits.py::test_two_hundred_at_once_never_exceed_the_rate",
    ),
    ("retry with exponential back-off", "Retry", f"{CONTRACT}_tasks.py::test_what_ends_the_attempts_at_once"),
    (
        "dead letter queue",
        "Durable.dead_letters",
        "tests/acceptance/test_dead_letters.py::test_they_are_listed_and_counted_the_oldest_first",
    ),
    (
        "stale task detection",
        "PostgresSettings.lease_seconds",
        "tests/acceptance/test_executors.py::test_who_was_stopped_past_its_lease_writes_nothing_stale",
    ),
    ("type safety: branded ids", "durable.Handle", "tests/typing"),
    (
        "observability hooks for traces, metrics and logs",
        "durable.observe",
        "tests/observe/test_observers.py::test_an_observer_is_told_of_everything",
    ),
    (
        "pluggable storage: SQLite, Lakebase, custom",
        "durable.store",
        "tests/store/test_differential.py::test_stores_answer_alike",
    ),
    ("promise handler", "task", f"{CONTRACT}_tasks.py::test_the_page_s_example"),
    (
        "generator handler: yields events, returns the result",
        "Result",
        f"{CONTRACT}_families.py::test_a_generator_task",
    ),
    ("recovery handler: (task, ctx) -> {recovered, result}", "RERUN", f"{CONTRACT}_crash.py::test_a_recovery_handler"),
    ("schema: input validation", "ValidationError", f"{CONTRACT}_inputs.py::test_a_wrong_input_is_refused"),
    ("ctx.progress()", "Context.progress", f"{CONTRACT}_context.py::test_ways_to_emit"),
    (
        "heartbeat of a running task",
        "PostgresSettings.lease_seconds",
        "tests/store/postgres/test_claims.py::test_a_lease_is_renewed",
    ),
    (
        "circuit breaker of the flush worker",
        "FlushSettings.breaker_threshold",
        "tests/flush/test_breaker.py::test_half_open_closes_on_success_and_opens_on_failure",
    ),
    (
        "flush worker in a process of its own",
        "durable.flush",
        "ours is a task beside the log's thread: one process, so nothing to restart, to feed by environment or to lose",
    ),
    (
        "graceful shutdown, in-flight tasks completed",
        "Durable.close",
        "tests/acceptance/test_shutdown.py::test_signals_at_random_moments_lose_nothing_in_a_folder",
    ),
    ("SSE streams", "Durable.subscribe", f"{CONTRACT}.py::test_subscribe_is_events_by_key"),
]

METHODS: list[Row] = [
    ("new TaskSystem(config, hooks)", "Durable", f"{CONTRACT}.py::test_parameters_of_durable"),
    ("initialize()", "Durable.open", f"{CONTRACT}.py::test_open_and_close_do_the_same_as_async_with"),
    ("defineTask(name, definition)", "task", f"{CONTRACT}_tasks.py::test_names_of_tasks"),
    ("submit(name, params)", "Durable.start", f"{CONTRACT}_keys.py::test_a_key_is_one_run"),
    ("getStatus(idempotencyKey)", "Durable.find", f"{CONTRACT}_keys.py::test_find_sees_a_users_key"),
    ("subscribe(idempotencyKey, options)", "Durable.subscribe", f"{CONTRACT}.py::test_subscribe_is_events_by_key"),
    ("getStats()", "Durable.stats", "tests/observe/test_observers.py::test_stats_say_what_happened_and_what_goes_on"),
    ("shutdown(options)", "Durable.close", "tests/acceptance/test_shutdown.py::test_close_takes_a_grace_of_its_own"),
    (
        "createHooks({tracer, meter, logger})",
        "durable.observe",
        "tests/observe/test_observers.py::test_an_observer_is_told_of_everything",
    ),
    (
        "TaskRepository",
        "durable.repository.base.Repository",
        "tests/repository/test_sqlite.py::test_a_batch_and_its_position_are_one_transaction",
    ),
    (
        "BackpressureError.is(error)",
        "errors.BackpressureError",
        "isinstance: a class is told by its class, not by its name",
    ),
]

SETTINGS: list[Row] = [
    (
        "guard.backpressure.maxTasksPerWindow",
        "Limits.max_starts_per_window",
        "tests/acceptance/test_limits.py::test_two_hundred_at_once_never_exceed_the_rate",
    ),
    (
        "guard.backpressure.maxTasksPerUserWindow",
        "Limits.max_starts_per_user_window",
        "tests/acceptance/test_limits.py::test_rates_of_users_and_of_all_together",
    ),
    (
        "guard.backpressure.windowSizeMs",
        "Limits.window",
        "tests/acceptance/test_limits.py::test_who_waits_as_long_as_was_said_is_let_in",
    ),
    (
        "guard.backpressure.maxQueuedSize",
        "Limits.max_queued",
        "tests/acceptance/test_limits.py::test_the_queue_holds_exactly_as_many_as_it_may",
    ),
    (
        "guard.slots.maxExecutionGlobal",
        "Limits.max_running",
        "tests/acceptance/test_limits.py::test_never_more_at_work_than_there_are_slots",
    ),
    (
        "guard.slots.maxExecutionPerUser",
        "Limits.max_running_per_user",
        "tests/acceptance/test_limits.py::test_a_greedy_user_starves_nobody",
    ),
    (
        "guard.slots.slotTimeoutMs",
        "Limits.slot_timeout",
        "tests/acceptance/test_limits.py::test_a_start_waits_no_longer_than_it_may",
    ),
    (
        "guard.dlq.maxSize",
        "Limits.dead_letter_size",
        "tests/acceptance/test_dead_letters.py::test_one_more_than_may_be_discards_the_oldest",
    ),
    (
        "guard.dlq.ttlMs",
        "Limits.dead_letter_ttl",
        "tests/acceptance/test_dead_letters.py::test_those_that_are_too_old_are_discarded",
    ),
    (
        "guard.dlq.maxRetries",
        "Limits.dead_letter_retries",
        "tests/acceptance/test_dead_letters.py::test_retries_are_counted_and_bounded",
    ),
    (
        "stream.streamBufferSize",
        "StreamSettings.buffer_size",
        "tests/events/test_readers.py::test_settings_bound_what_is_kept",
    ),
    (
        "stream.streamRetentionMs",
        "StreamSettings.retention_seconds",
        "tests/events/test_readers.py::test_who_comes_back_in_time_asks_nothing_of_the_store",
    ),
    (
        "eventLog.eventLogPath",
        "Durable",
        "the folder that is opened: the log lies in it, and nothing else can name another",
    ),
    (
        "eventLog.maxSizeBytesPerFile",
        "LogSettings.segment_bytes",
        "tests/log/test_log_append.py::test_segments_rotate_and_retire",
    ),
    (
        "eventLog.maxAgePerFile",
        "LogSettings.segment_age_seconds",
        "tests/log/test_log_append.py::test_an_old_segment_is_followed_by_a_new_one",
    ),
    (
        "eventLog.retentionCount",
        "durable.log.retention",
        "it goes when all of it is in the tables: tests/log/test_log_retire.py::test_the_segment_of_the_last_durable_record_stays",
    ),
    ("repository.type, database", "Durable", f"{CONTRACT}.py::test_targets"),
    ("repository.connector", "PostgresSettings", f"{CONTRACT}.py::test_targets"),
    (
        "flush.flushIntervalMs",
        "FlushSettings.interval_seconds",
        "tests/store/test_local_flushing.py::test_flushing_lets_go_of_what_it_flushed",
    ),
    (
        "flush.maxBatchSize",
        "FlushSettings.batch_records_max",
        "tests/store/test_local_flushing.py::test_the_position_counts_whole_units",
    ),
    (
        "flush.circuitBreakerThreshold",
        "FlushSettings.breaker_threshold",
        "tests/flush/test_breaker.py::test_it_opens_at_the_threshold_and_not_before",
    ),
    (
        "flush.circuitBreakerDurationMs",
        "FlushSettings.breaker_open_seconds",
        "tests/flush/test_breaker.py::test_it_lets_one_through_when_its_time_is_up",
    ),
    (
        "executor.heartbeatIntervalMs",
        "PostgresSettings.lease_seconds",
        "tests/store/postgres/test_claims.py::test_a_lease_is_renewed",
    ),
    (
        "executor.defaultTimeoutMs",
        "EngineSettings.default_timeout_seconds",
        "tests/acceptance/test_recovery_policy.py::test_w19_a_default_timeout_bounds_an_attempt_that_sets_none",
    ),
    ("executor.tickIntervalMs", "durable.engine.scheduler", "nothing ticks: a run begins when its slot is free"),
    (
        "recovery.staleThresholdMs",
        "PostgresSettings.lease_seconds",
        "tests/acceptance/test_executors.py::test_who_was_stopped_past_its_lease_writes_nothing_stale",
    ),
    (
        "recovery.scanIntervalMs",
        "PostgresSettings.lease_seconds",
        "three sweeps a lease: tests/acceptance/test_executors.py::test_a_sigkill_each_second_loses_and_repeats_nothing",
    ),
    (
        "recovery.maxConcurrentRecoveries",
        "EngineSettings.max_concurrent_recoveries",
        "tests/acceptance/test_recovery_policy.py::test_w20_a_thousand_interrupted_runs_go_on_a_few_at_a_time",
    ),
    (
        "shutdown.timeoutMs",
        "EngineSettings.shutdown_grace_seconds",
        "tests/acceptance/test_shutdown.py::test_close_takes_a_grace_of_its_own",
    ),
    (
        "shutdown.forceKillTimeoutMs",
        "EngineSettings.cancel_grace_seconds",
        "tests/engine/test_runs.py::test_a_body_that_ignores_cancel_is_abandoned",
    ),
]

EVENTS: list[Row] = [
    ("created", "created", "tests/engine/test_runs.py::test_events_are_numbered_and_end_with_the_run"),
    ("start", "started", "tests/engine/test_runs.py::test_events_are_numbered_and_end_with_the_run"),
    ("progress", "progress", f"{CONTRACT}_context.py::test_ways_to_emit"),
    ("heartbeat", "heartbeat", "tests/events/test_ephemeral.py::test_a_heartbeat_comes_when_nothing_else_does"),
    ("complete", "completed", "tests/engine/test_runs.py::test_events_are_numbered_and_end_with_the_run"),
    ("error", "failed", "tests/engine/test_runs.py::test_a_failed_run_tells_what_happened"),
    ("custom", "Context.emit", f"{CONTRACT}_context.py::test_ways_to_emit"),
]

METRICS: list[Row] = [
    (f"taskflow.{name}", f"durable.{name}", "tests/observe")
    for name in (
        *("tasks.submitted", "tasks.completed", "tasks.failed", "tasks.running", "tasks.queued"),
        *("guard.rejections", "dlq.size", "flush.entries", "streams.active"),
    )
]

SPANS: list[Row] = [
    (f"taskflow.{name}", f"durable.{name}", "tests/observe")
    for name in ("task.execute", "task.handler", "flush.batch", "recovery.scan")
]

ERRORS: list[Row] = [
    (
        "BackpressureError(retryAfterMs)",
        "errors.BackpressureError.retry_after",
        "tests/acceptance/test_limits.py::test_retry_after_is_right_by_the_clock_on_the_wall",
    ),
    (
        "SlotTimeoutError(timeoutMs)",
        "errors.SlotTimeoutError.timeout",
        "tests/acceptance/test_limits.py::test_a_start_waits_no_longer_than_it_may",
    ),
    ("ValidationError(field)", "errors.ValidationError.field", f"{CONTRACT}_inputs.py::test_a_wrong_input_is_refused"),
]
