"""The 68 weaknesses that were found in `@databricks/taskflow`, by number: the test that shows that ours has it not, or why it cannot."""

from __future__ import annotations

CONTRACT = "tests/acceptance/test_api_contract"
FLUSHING = "tests/store/test_local_flushing.py"
LIMITS = "tests/acceptance/test_limits.py"
STREAMS = "tests/events/test_weaknesses.py"
POLICY = "tests/acceptance/test_recovery_policy.py"

WEAKNESSES: dict[int, tuple[str, str]] = {
    1: (
        "accepted tasks are not durable",
        "tests/acceptance/test_sigkill.py::test_no_sigkill_loses_or_repeats_anything",
    ),
    2: ("nothing reaches the database", f"{FLUSHING}::test_flushing_lets_go_of_what_it_flushed"),
    3: ("not write-ahead", f"{CONTRACT}_context.py::test_an_event_is_durable_when_emit_returns"),
    4: ("failed tasks are stored as completed", "tests/engine/test_runs.py::test_a_failed_run_tells_what_happened"),
    5: ("sequence reuse after a crash", "tests/store/test_local_kill.py::test_nothing_acknowledged_is_lost_by_sigkill"),
    6: ("a torn checkpoint file", "there is none: the position is a row in the transaction of what it counts"),
    7: (
        "a torn tail destroys the next record",
        "tests/log/test_log_open.py::test_a_torn_tail_is_cut_kept_and_logged_once",
    ),
    8: ("checksums are not checked", "tests/log/test_log_format.py::test_every_flipped_bit_is_noticed"),
    9: ("rotation loses unflushed data", "tests/log/test_log_append.py::test_segments_rotate_and_retire"),
    10: ("checkpoint arithmetic", f"{FLUSHING}::test_the_position_counts_whole_units"),
    11: ("a poison batch", f"{FLUSHING}::test_a_poison_record_holds_up_nobody_else"),
    12: ("concurrent appends reorder the file", "tests/log/test_log_append.py::test_appends_of_one_turn_share_a_sync"),
    13: ("overlapping flush passes", "tests/repository/test_sqlite.py::test_a_batch_applied_again_changes_nothing"),
    14: ("progress is not synced", f"{CONTRACT}_context.py::test_an_event_is_durable_when_emit_returns"),
    15: (
        "what is stored loses names and falsy values",
        "tests/codec/test_codec_values.py::test_value_comes_back_exactly",
    ),
    16: ("rotation overwrites and leaks", f"{FLUSHING}::test_flushed_segments_are_removed"),
    17: (
        "a failed rotation closes the log unseen",
        "tests/log/test_log_fencing.py::test_each_call_failing_loses_nothing_and_fences",
    ),
    18: ("one task at a time", f"{POLICY}::test_w18_runs_go_on_side_by_side"),
    19: ("no timeouts", f"{POLICY}::test_w19_a_default_timeout_bounds_an_attempt_that_sets_none"),
    20: ("recovery never finishes", f"{POLICY}::test_w20_a_thousand_interrupted_runs_go_on_a_few_at_a_time"),
    21: (
        "a live task executed twice in one process",
        "tests/acceptance/test_executors.py::test_who_was_stopped_past_its_lease_writes_nothing_stale",
    ),
    22: (
        "no claim across processes",
        "tests/store/postgres/test_claims.py::test_many_claim_at_once_and_each_run_is_held_once",
    ),
    23: (
        "recovery outside slots, retries and shutdown",
        f"{POLICY}::test_w23_a_recovered_run_has_slots_retries_timeouts_and_cancel",
    ),
    24: ("aborting ends in an unhandled rejection", f"{POLICY}::test_w24_a_generator_that_is_cancelled_ends_once"),
    25: ("a generator's return value is lost", f"{CONTRACT}_families.py::test_a_generator_task"),
    26: (
        "a start with a key waits for a recovery",
        f"{POLICY}::test_w26_a_start_with_a_key_does_not_wait_for_the_recovery",
    ),
    27: ("retries by the text of messages", f"{CONTRACT}_tasks.py::test_what_ends_the_attempts_at_once"),
    28: ("no jitter; a crash resets attempts", f"{POLICY}::test_w28_a_crash_between_attempts_resets_nothing"),
    29: ("exactly once is suggested", f"{POLICY}::test_w29_a_key_is_good_after_the_end_and_over_processes"),
    30: (
        "dead letters in memory, slot failures only",
        f"{LIMITS}::test_w30_and_w31_what_failed_is_a_dead_letter_that_outlives_the_process_and_is_not_lost_by_a_retry",
    ),
    31: (
        "a retried dead letter is lost",
        f"{LIMITS}::test_w30_and_w31_what_failed_is_a_dead_letter_that_outlives_the_process_and_is_not_lost_by_a_retry",
    ),
    32: (
        "retries of dead letters have no bound",
        "tests/acceptance/test_dead_letters.py::test_retries_are_counted_and_bounded",
    ),
    33: ("the queue's counter leaks", f"{LIMITS}::test_w33_no_refusal_uses_up_a_place_in_the_queue"),
    34: (
        "admission is linear, and users' lists stay",
        f"{LIMITS}::test_w34_a_start_costs_no_more_with_a_long_window_and_many_users",
    ),
    35: ("one waiter only is woken", f"{LIMITS}::test_w35_all_that_fit_begin_when_slots_become_free"),
    36: (
        "names, payloads and users are not validated",
        f"{LIMITS}::test_w36_a_wrong_input_is_refused_before_anything_counts",
    ),
    37: (
        "a slow consumer loses the tail",
        f"{STREAMS}::test_w37_what_comes_while_a_reader_handles_an_event_is_delivered_also_when_the_stream_closes",
    ),
    38: ("missed wake-ups", f"{STREAMS}::test_w38_what_came_while_a_reader_was_busy_needs_no_further_event"),
    39: (
        "an overflow off by one; a silent gap",
        f"{STREAMS}::test_w39_a_reader_at_the_edge_of_the_buffer_sees_all_and_a_fresh_one_too",
    ),
    40: ("a closed stream is used again", f"{STREAMS}::test_w40_the_stream_of_a_run_that_is_tried_again_goes_on"),
    41: ("consumers wait for ever", f"{STREAMS}::test_w41_no_reader_waits_for_ever"),
    42: ("numbers begin anew in each process", f"{STREAMS}::test_w42_numbers_go_on_over_restarts"),
    43: ("the ring evicts what is live", f"{STREAMS}::test_w43_a_ring_holds_the_last_records_and_counts_them_right"),
    44: ("keys as labels of metrics", f"{STREAMS}::test_w44_what_is_counted_has_no_name_of_a_run_in_it"),
    45: ("the built package cannot start", "tests/test_wheel.py::test_what_is_built_starts"),
    46: ("the connector is sent as JSON", "there is no second process: the store is an object of the one that commits"),
    47: ("two settings for one path", "there is one: the folder that is opened"),
    48: (
        "several workers at one checkpoint",
        "tests/log/test_log_open.py::test_a_second_open_fails_at_once_and_the_epoch_rises",
    ),
    49: ("persistence is switched off unseen", f"{FLUSHING}::test_a_repository_that_refuses_everything_is_away"),
    50: ("the whole log is read at each pass", f"{FLUSHING}::test_flushing_lets_go_of_what_it_flushed"),
    51: ("a breaker without a probe", "tests/flush/test_breaker.py::test_it_lets_one_through_when_its_time_is_up"),
    52: ("three round trips an entry; local times", "tests/store/postgres/test_claims.py::test_a_lease_is_renewed"),
    53: (
        "keys without an index, no purge, no schema version",
        "tests/repository/test_sqlite.py::test_every_index_is_used",
    ),
    54: (
        "queued tasks vanish at shutdown",
        "tests/acceptance/test_shutdown.py::test_queued_runs_are_there_after_a_restart",
    ),
    55: (
        "two owners of one position",
        "one transaction writes both: tests/repository/test_sqlite.py::test_a_batch_and_its_position_are_one_transaction",
    ),
    56: ("a key leaks another user's run", f"{CONTRACT}_keys.py::test_find_sees_a_users_key"),
    57: ("derived keys can be computed by others", f"{CONTRACT}_keys.py::test_find_sees_a_users_key"),
    58: (
        "settings in the process environment",
        "no setting is handed to another process: tests/test_environment.py::test_a_secret_is_never_shown",
    ),
    59: ("the grace timer outlives a reconnect", "of the web bridge, which this version does not have"),
    60: ("disconnects are watched on the request", "of the web bridge, which this version does not have"),
    61: ("suspended does not end a stream", f"{CONTRACT}_handles.py::test_stop_and_resume"),
    62: ("two shapes of one payload", "of the web bridge, which this version does not have"),
    63: ("a client without reconnect", "of the web bridge, which this version does not have"),
    64: ("steps are known by name only", f"{CONTRACT}_tasks.py::test_two_step_functions_of_one_name"),
    65: (
        "recovery without the user's credentials",
        f"{CONTRACT}_crash.py::test_a_task_that_does_not_recover_by_itself",
    ),
    66: (
        "slow readers have queues without bound",
        "tests/events/test_readers.py::test_a_reader_that_stops_gets_every_event_later",
    ),
    67: (
        "a disk of one machine with a warning only",
        "tests/acceptance/test_executors.py::test_starts_of_one_key_from_four_processes_give_one_run",
    ),
    68: ("two sources of one truth", "of the web bridge, which this version does not have"),
}
