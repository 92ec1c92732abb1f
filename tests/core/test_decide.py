"""`decide`: what each command becomes, and what is refused."""

from __future__ import annotations

import pytest

from durable.core import commands as commands_module
from durable.core.commands import (
    Begin,
    Cancel,
    Command,
    Complete,
    Create,
    Discard,
    Fail,
    Note,
    Receive,
    Recover,
    Release,
    Resume,
    Revive,
    Send,
    Suspend,
)
from durable.core.decide import _RULES, decide
from durable.core.records import CALLS, Failure, Kind, Record
from durable.core.retry import Retry
from durable.core.run import Run
from durable.core.status import ENDED, Status
from durable.errors import HistoryLimitError, LimitError, TransitionError
from tests.core.machine import CALL, FAILURE, PATHS, RUN_ID, give, made, step

NOTE = Note(Kind.STEP_COMPLETED, CALL, b"1")
FAILURES = ENDED - {Status.COMPLETED, Status.CANCELLED}
#: Where a body can be at work: the task's own, or the function that is its coordinator.
AT_WORK = (Status.RUNNING, Status.WAITING_FOR_ON_CHILDREN_COMPLETE)
HEAD = {"error_type": "builtins.ValueError", "message": "no such page", "traceback": "Traceback ..."}


def only(records: list[Record]) -> Record:
    (record,) = records
    return record


def test_every_command_has_a_rule() -> None:
    """No command can come to `decide` and find nothing there."""
    classes = {
        value
        for value in vars(commands_module).values()
        if isinstance(value, type) and value.__module__ == commands_module.__name__
    }
    assert set(_RULES) == classes == set(Command.__args__)


# --- create --------------------------------------------------------------------------------------------------------------------------


def test_create_records_what_was_asked_for() -> None:
    """The first record holds all that a run is started with, its delay turned into a time."""
    create = Create(
        "crawl",
        b"[1]",
        version="2",
        key="k",
        fingerprint="f",
        user="u",
        parent_id="p",
        attached=True,
        priority=3,
        retry=Retry(3, delay=2),
        timeout=9.0,
        delay=5.0,
        trace="00-a-b-01",
    )
    record = only(decide(Run(RUN_ID), create, 10.0, 100))
    assert record == Record(
        RUN_ID,
        1,
        Kind.CREATED,
        10.0,
        1,
        "crawl",
        head={
            "version": "2",
            "key": "k",
            "fingerprint": "f",
            "user": "u",
            "parent": "p",
            "attached": True,
            "priority": 3,
            "trace": "00-a-b-01",
            "timeout": 9.0,
            "retry": [3, 2.0, 2.0, 60.0, 0.0],
            "not_before": 15.0,
        },
        payload=b"[1]",
    )


def test_create_leaves_out_what_is_as_usual() -> None:
    """A plain start costs no head at all."""
    assert only(decide(Run(RUN_ID), Create("crawl", b"[1]"), 10.0, 100)).head == {}


def test_a_timeout_of_zero_is_a_timeout() -> None:
    """Zero seconds are few, but not the same as no bound."""
    assert made(timeout=0.0).timeout == 0.0
    assert made().timeout is None


@pytest.mark.parametrize("status", Status)
def test_a_run_is_created_once(status: Status) -> None:
    """A run that exists is never begun anew, wherever it stands."""
    with pytest.raises(TransitionError, match=f"{RUN_ID} exists already"):
        decide(made(status), Create("crawl", b"[1]"), 10.0, 100)


# --- attempts ------------------------------------------------------------------------------------------------------------------------


def test_each_record_names_its_attempt_and_time() -> None:
    """Whatever is recorded says when, and in which attempt."""
    run = made(Status.RUNNING)
    give(run, Fail(FAILURE), Begin())
    record = only(give(run, NOTE, now=77.0))
    assert (record.attempt, record.at, record.seq) == (2, 77.0, run.seq)


def test_note_carries_the_call() -> None:
    """A record of the body is known by its call, and keeps head and payload as they are."""
    record = only(give(made(Status.RUNNING), Note(Kind.TIMER_SET, CALL, None, {"until": 5.0})))
    assert (record.kind, record.call, record.payload, record.head) == (Kind.TIMER_SET, CALL, None, {"until": 5.0})


@pytest.mark.parametrize("kind", sorted(CALLS))
@pytest.mark.parametrize("status", [status for status in Status if status not in AT_WORK])
def test_only_a_running_body_records(status: Status, kind: Kind) -> None:
    """Once a run is cancelled, suspended or over, nothing that its body still does becomes a fact."""
    with pytest.raises(TransitionError, match="can record nothing more"):
        decide(made(status), Note(kind, CALL), 10.0, 100)


def test_complete_records_the_result() -> None:
    """The returned value becomes the run's result, an empty one too."""
    run = made(Status.RUNNING)
    assert only(give(run, Complete(b""), now=12.0)).payload == b""
    assert (run.status, run.result, run.ended_at) == (Status.COMPLETED, b"", 12.0)


def test_retry_waits_as_the_policy_says() -> None:
    """The next attempt is due after the delay of the policy, counted from the failure, with its share of jitter."""
    run = made(Status.RUNNING, retry=Retry(3, delay=4.0, factor=3.0, jitter=0.5))
    record = only(give(run, Fail(FAILURE, fraction=0.5), now=100.0))
    assert record.kind is Kind.RETRYING
    assert record.head == {**HEAD, "not_before": 105.0}
    assert (run.status, run.attempt, run.not_before, run.failure) == (Status.READY, 2, 105.0, HEAD)
    give(run, Begin(), Fail(FAILURE), now=200.0)
    assert run.not_before == 212.0


@pytest.mark.parametrize("timed_out", [False, True])
def test_a_failure_of_an_attempt_is_retried_whatever_it_was(timed_out: bool) -> None:
    """An attempt that took too long may be tried again like any other."""
    run = made(Status.RUNNING)
    assert only(give(run, Fail(FAILURE, timed_out=timed_out))).kind is Kind.RETRYING


@pytest.mark.parametrize(("timed_out", "status"), [(False, Status.FAILED), (True, Status.TIMED_OUT)])
def test_the_last_attempt_decides_how_the_run_ends(timed_out: bool, status: Status) -> None:
    """With no attempt left the run is failed or timed out, and a dead letter."""
    run = made(Status.RUNNING, retry=Retry(2))
    give(run, Fail(FAILURE), Begin(), Fail(FAILURE, timed_out=timed_out), now=20.0)
    assert (run.status, run.attempt, run.dead, run.ended_at, run.failure) == (status, 2, True, 20.0, HEAD)


def test_what_cannot_be_mended_is_not_retried() -> None:
    """An error that says so ends the attempts at once."""
    run = made(Status.RUNNING, retry=Retry(9))
    give(run, Fail(FAILURE, retryable=False))
    assert (run.status, run.attempt) == (Status.FAILED, 1)


def test_a_run_that_has_not_begun_cannot_time_out() -> None:
    """Time runs for an attempt: without one there is nothing to be late."""
    with pytest.raises(TransitionError, match="it cannot time_out"):
        give(made(), Fail(FAILURE, timed_out=True))


# --- recovery ------------------------------------------------------------------------------------------------------------------------


def test_recovery_goes_on_with_the_attempt() -> None:
    """A crash costs no attempt; how often it happened, and why, is known."""
    run = made(Status.RUNNING)
    give(run, Recover("crash", 2), Recover("stale", 2))
    assert (run.status, run.attempt, run.recoveries, run.recovery_reason) == (Status.RUNNING, 1, 2, "stale")


def test_a_body_that_ends_its_process_is_bounded() -> None:
    """After `recoveries_max` losses without a step in between the run fails and says what it looks like."""
    run = made(Status.RUNNING)
    give(run, Recover("crash", 2), Recover("crash", 2))
    record = only(give(run, Recover("crash", 2)))
    assert (record.kind, run.status, run.dead) == (Kind.FAILED, Status.FAILED, True)
    assert record.head["error_type"] == "durable.RecoveryLimit"
    assert "the executor was lost 3 times" in record.head["message"]


@pytest.mark.parametrize("kind", [Kind.STEP_COMPLETED, Kind.STEP_FAILED])
def test_progress_makes_recoveries_count_anew(kind: Kind) -> None:
    """A long run that gets a step further each time is not taken for one that kills its process."""
    run = made(Status.RUNNING)
    give(run, Recover("crash", 1), Note(kind, CALL), Recover("crash", 1))
    assert (run.status, run.recoveries) == (Status.RUNNING, 1)


def test_no_recovery_at_all_can_be_asked_for() -> None:
    """A bound of zero lets the first loss end the run."""
    run = made(Status.RUNNING)
    give(run, Recover("crash", 0))
    assert run.status is Status.FAILED


# --- signals -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(set(Status) - ENDED))
def test_signals_are_kept_before_anybody_waits(status: Status) -> None:
    """What is sent first is there when the body asks for it."""
    run = made(status)
    record = only(give(run, Send("paid", b"1", 5)))
    assert (record.kind, record.name, record.payload, run.signals) == (Kind.SIGNAL, "paid", b"1", [(run.seq, "paid")])
    assert run.status is status


@pytest.mark.parametrize("status", sorted(ENDED))
def test_signals_to_a_run_that_ended_are_refused(status: Status) -> None:
    """The sender hears that nobody is left, and which signal it was."""
    with pytest.raises(TransitionError, match="nobody is left to receive 'paid'"):
        give(made(status), Send("paid", b"1", 5))


def test_the_mailbox_has_a_bound() -> None:
    """More unread signals than allowed are refused with the name of the setting; a read one makes room."""
    run = made(Status.RUNNING)
    give(run, Send("a", b"1", 2), Send("a", b"2", 2))
    with pytest.raises(LimitError, match=r"2 unread signals.*engine\.signals_max"):
        give(run, Send("a", b"3", 2))
    give(run, Receive("a", CALL, {3: b"1"}), Send("a", b"3", 2))
    assert len(run.signals) == 2


def test_the_oldest_signal_of_the_name_is_received() -> None:
    """Signals of one name come in the order in which they were sent, and each once."""
    run = made(Status.RUNNING)
    give(run, Send("b", b"0", 9), Send("a", b"1", 9), Send("a", b"2", 9))
    first, second = (
        only(give(run, Receive("a", CALL, {4: b"1", 5: b"2"}))),
        only(give(run, Receive("a", CALL, {5: b"2"}))),
    )
    assert [(first.payload, first.head), (second.payload, second.head)] == [
        (b"1", {"signal": 4}),
        (b"2", {"signal": 5}),
    ]
    assert (first.kind, first.call) == (Kind.STEP_COMPLETED, CALL)
    assert run.signals == [(3, "b")]


def test_receiving_what_was_not_sent_does_nothing() -> None:
    """A call that waits for another name goes on waiting."""
    run = made(Status.RUNNING)
    give(run, Send("a", b"1", 9))
    assert give(run, Receive("b", CALL, {})) == []


@pytest.mark.parametrize("status", [status for status in Status if status not in AT_WORK])
def test_only_a_running_body_receives(status: Status) -> None:
    """A signal is not taken on behalf of a body that is gone: it stays for the next attempt."""
    run = made(status)
    run.signals = [(1, "a")]
    with pytest.raises(TransitionError, match="can receive nothing more"):
        give(run, Receive("a", CALL, {1: b"1"}))


# --- what people ask for -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "head"), [(None, {}), ("", {}), ("enough", {"reason": "enough"})])
def test_cancel_keeps_its_reason(reason: str | None, head: dict[str, str]) -> None:
    """Who reads the run later sees why it was cancelled, if anybody said."""
    run = made(Status.RUNNING)
    assert only(give(run, Cancel(reason), now=30.0)).head == head
    assert (run.reason, run.ended_at, run.dead) == (head.get("reason"), 30.0, False)


def test_suspend_keeps_reason_and_failure() -> None:
    """A run that the engine had to park says what went wrong; resuming clears it."""
    run = made(Status.RUNNING)
    assert only(give(run, Suspend("NonDeterminismError", FAILURE))).head == {**HEAD, "reason": "NonDeterminismError"}
    assert (run.reason, run.failure) == ("NonDeterminismError", HEAD)
    give(run, Resume())
    assert (run.status, run.reason, run.failure, run.attempt) == (Status.READY, None, None, 1)


def test_a_plain_stop_says_nothing() -> None:
    """Stopping needs no reason, and does not look like a failure."""
    run = made(Status.RUNNING)
    assert only(give(run, Suspend())).head == {}
    assert (run.reason, run.failure) == (None, None)


def test_resume_does_not_wait_for_a_retry_that_was_due_later() -> None:
    """Whoever resumes a run wants it to go on now."""
    run = made(Status.RUNNING)
    give(run, Fail(FAILURE), Suspend(), Resume())
    assert (run.status, run.not_before, run.attempt) == (Status.READY, 0.0, 2)


def test_resume_keeps_the_delay_of_a_run_that_has_never_begun() -> None:
    """It was started for later: a stop and a resume in between do not make it begin early. Once it has begun that is over."""
    run = made(delay=50.0)
    give(run, Suspend())
    assert run.due is None
    give(run, Resume(), now=20.0)
    assert (run.status, run.not_before, run.due) == (Status.READY, 60.0, 60.0)
    give(run, Begin(), Suspend(), Resume(), now=60.0)
    assert (run.status, run.not_before, run.due) == (Status.READY, 0.0, 0.0)


def test_revive_does_not_keep_a_delay() -> None:
    """A run that its parent brings back goes on now, also where it was cancelled before its time."""
    run = made(delay=50.0, parent_id="p", attached=True)
    give(run, Cancel(), Revive(by_parent=True))
    assert (run.status, run.not_before, run.due) == (Status.READY, 0.0, 0.0)


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMED_OUT])
def test_revive_gives_the_policy_anew(status: Status) -> None:
    """A failed run that is tried again has all its attempts before it, numbers them on, and is no dead letter."""
    run = made(status, retry=Retry(2, delay=1.0))
    assert only(give(run, Revive())).head == {"reason": "retry"}
    assert (run.attempt, run.attempt_base, run.max_attempts, run.dead, run.ended_at) == (2, 1, 3, False, None)
    give(run, Begin(), Fail(FAILURE), now=50.0)
    assert (run.status, run.not_before) == (Status.READY, 51.0), "the first wait of the policy"
    give(run, Begin(), Fail(FAILURE))
    assert (run.status, run.attempt) == (Status.FAILED, 3)


def test_revive_forgets_the_recoveries() -> None:
    """A run that failed by its recovery limit gets that bound anew too."""
    run = made(Status.RUNNING)
    give(run, Recover("crash", 1), Recover("crash", 1), Revive(), Begin(), Recover("crash", 1))
    assert (run.status, run.recoveries) == (Status.RUNNING, 1)


def test_release_keeps_the_attempt() -> None:
    """Closing an executor costs a run neither an attempt nor a recovery."""
    run = made(Status.RUNNING)
    give(run, Release(), Begin())
    assert (run.status, run.attempt, run.recoveries) == (Status.RUNNING, 1, 0)


@pytest.mark.parametrize("status", sorted(FAILURES))
def test_a_dead_letter_is_discarded_once(status: Status) -> None:
    """Discarding takes it off the list and leaves the run as it ended; a second time there is nothing to discard."""
    run = made(status)
    give(run, Discard())
    assert (run.status, run.dead) == (status, False)
    with pytest.raises(TransitionError, match=f"is {status} and no dead letter"):
        give(run, Discard())


def test_why_a_dead_letter_was_discarded_is_on_record() -> None:
    """Where nobody asked for it, the record says the reason; else it has none."""
    run = made(Status.FAILED)
    assert decide(run, Discard("too old"), 9.0, 100)[0].head == {"reason": "too old"}
    assert decide(run, Discard(), 9.0, 100)[0].head == {}


def test_a_dead_letter_is_retried_so_often_and_no_more() -> None:
    """Only retries as a dead letter count, and only they have a bound, which the refusal names."""
    run = made(Status.FAILED)
    give(run, Revive(), Begin(), Fail(FAILURE, retryable=False))
    assert run.retried == 0
    give(run, Revive(letter_retries=1), Begin(), Fail(FAILURE, retryable=False))
    assert (run.status, run.retried) == (Status.FAILED, 1)
    with pytest.raises(LimitError, match=r"once already.*limits.dead_letter_retries \(1\)"):
        give(run, Revive(letter_retries=1))
    give(run, Revive(letter_retries=2), Begin(), Fail(FAILURE, retryable=False))
    with pytest.raises(LimitError, match="2 times already"):
        give(run, Revive(letter_retries=2))
    give(run, Revive(), Begin())
    assert (run.status, run.retried) == (Status.RUNNING, 2)


def test_a_discarded_run_can_still_be_revived() -> None:
    """Taking a letter off the list does not take the run away."""
    run = made(Status.FAILED)
    give(run, Discard(), Revive())
    assert run.status is Status.READY


@pytest.mark.parametrize("status", [status for status in PATHS if status not in FAILURES])
def test_what_did_not_fail_is_no_dead_letter(status: Status) -> None:
    """Only a run that ended in failure is on the list."""
    with pytest.raises(TransitionError, match="no dead letter"):
        give(made(status), Discard())


# --- the bound of the history --------------------------------------------------------------------------------------------------------


def full(records_max: int = 12) -> Run:
    """A running run that has as many records as it may."""
    run = made(Status.RUNNING)
    while run.seq < records_max:
        give(run, NOTE, records_max=records_max)
    return run


@pytest.mark.parametrize("kind", sorted(CALLS))
def test_the_history_has_a_bound(kind: Kind) -> None:
    """The body can fill the history to its last record and not one further, and is told which setting bounds it."""
    run = full()
    before = run.copy()
    with pytest.raises(HistoryLimitError, match=r"12 records.*engine\.history_records_max"):
        give(run, Note(kind, CALL), records_max=12)
    assert run == before


@pytest.mark.parametrize(
    "command",
    [Complete(b"1"), Fail(FAILURE, retryable=False), Fail(FAILURE, False, True), Cancel(), Recover("crash", 0)],
    ids=lambda command: type(command).__name__,
)
def test_a_full_run_can_still_end(command: Command) -> None:
    """The bound never keeps a run from its end."""
    run = full()
    give(run, command, records_max=12)
    assert run.ended


@pytest.mark.parametrize(
    "command", [Suspend(), Release(), Recover("crash", 5)], ids=lambda command: type(command).__name__
)
def test_a_full_run_can_still_be_handled(command: Command) -> None:
    """Stopping, handing back and recovering are the operator's, not the body's."""
    run = full()
    assert len(give(run, command, records_max=12)) == 1


@pytest.mark.parametrize(("timed_out", "status"), [(False, Status.FAILED), (True, Status.TIMED_OUT)])
def test_a_full_run_gets_no_further_attempt(timed_out: bool, status: Status) -> None:
    """A policy of a million attempts does not make a history of a million records."""
    run = full()
    give(run, Fail(FAILURE, timed_out=timed_out), records_max=12)
    assert (run.status, run.attempt) == (status, 1)


def test_deciding_does_not_change_the_command() -> None:
    """A command that is refused or cut down can be given again, to another run."""
    command = Fail(FAILURE)
    give(full(), command, records_max=12)
    assert command == Fail(FAILURE)


def test_a_full_run_that_is_over_says_that_it_is_over() -> None:
    """The status is the better reason where both hold."""
    run = full()
    give(run, Complete(b"1"), records_max=12)
    with pytest.raises(TransitionError, match="is completed"):
        give(run, NOTE, records_max=12)


# --- failures ------------------------------------------------------------------------------------------------------------------------


def test_a_failure_is_read_back_from_its_record() -> None:
    """What a step failed with comes back whole, with the state from which the exception is made again."""
    record = only(give(made(Status.RUNNING), Note(Kind.STEP_FAILED, CALL, FAILURE.state, FAILURE.head())))
    assert Failure.of(record) == FAILURE


def test_a_failure_without_details_can_be_read() -> None:
    """A record that says little is no reason to fail again."""
    assert Failure.of(only(step(made(Status.RUNNING), kind=Kind.STEP_FAILED))) == Failure("", "", "", b"1")


def test_why_what_goes_on_does_not_go_on_from_its_own_beginning() -> None:
    """A timeout of the attempt before, a crash, a lease that passed; nothing where it was handed back or resumed in order."""
    run = made(retry=Retry(3))
    give(run, Begin(), Fail(FAILURE, timed_out=True))
    assert run.recovery_reason == "timeout"
    give(run, Begin(), Recover("stale", 5))
    assert run.recovery_reason == "stale"
    give(run, Release())
    assert run.recovery_reason is None
    give(run, Begin(), Recover("crash", 5), Fail(FAILURE))
    assert run.recovery_reason is None
    give(run, Begin(), Recover("crash", 5), Suspend(), Resume())
    assert run.recovery_reason is None


def test_who_receives_a_signal_may_say_more_with_it() -> None:
    run = made(retry=Retry(3))
    give(run, Begin(), Send("a", b"1", 2))
    record = only(give(run, Receive("a", CALL, {3: b"1"}, {"handler": True})))
    assert (record.head, run.signals) == ({"handler": True, "signal": 3}, [])
