"""Families: what a run that has returned children does until they, and its coordinator, have ended; and runs that are asleep."""

from __future__ import annotations

import pytest

from durable.core.commands import (
    Begin,
    Cancel,
    ChildEnded,
    Close,
    Command,
    Complete,
    Coordinate,
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
    Sleep,
    Suspend,
    Wake,
    Watch,
)
from durable.core.records import Kind, Record
from durable.core.retry import Retry
from durable.core.run import Run, fold
from durable.core.status import ENDED, Status, Verb
from durable.core.wire import decode_run, decode_unit, encode_record, encode_run, encode_unit
from durable.errors import HistoryLimitError, TransitionError
from tests.core.machine import (
    CALL,
    CHILD_BROKE,
    CHILD_CANCELLED,
    CHILD_DONE,
    COORDINATING,
    FAILURE,
    GATHERED,
    PATHS,
    RETURNED,
    RUN_ID,
    SHAPES,
    give,
    lived,
    made,
    step,
)

WAITING, COORDINATED = Status.WAITING_FOR_CHILDREN, Status.WAITING_FOR_ON_CHILDREN_COMPLETE
BROKEN = Status.ON_CHILDREN_COMPLETE_FAILED
LENIENT: tuple[Command, ...] = (Begin(), Complete(b'"value"', 2, "function", lenient=True))
PLAIN: tuple[Command, ...] = (Begin(), Complete(b'"value"', 2))
#: A run whose coordinator is a task, at work as a run of its own.
BY_TASK: tuple[Command, ...] = (Begin(), Complete(b'"value"', 1, "task"), CHILD_DONE, Coordinate("k"))
COORDINATOR_DONE = ChildEnded("k", "combine", Status.COMPLETED, b'"report"')
COORDINATOR_BROKE = ChildEnded("k", "combine", Status.FAILED, failure=FAILURE.head())
#: A run whose coordinator, a function, has returned two children itself.
NESTED: tuple[Command, ...] = (*COORDINATING, Complete(b'"more"', 2))
DEAD_END = Fail(FAILURE, retryable=False)
ASLEEP = [(Begin(), Sleep(60.0)), (*COORDINATING, Sleep(60.0))]


def kinds(records: list[Record]) -> list[Kind]:
    return [record.kind for record in records]


def refused(run: Run, command: Command, match: str) -> None:
    """The command is refused for this reason, and the run is as it was."""
    before = run.copy()
    with pytest.raises(TransitionError, match=match):
        give(run, command)
    assert run == before


# --- the body returns ----------------------------------------------------------------------------------------------------------------


def test_a_body_that_returns_no_children_is_done() -> None:
    """A plain value is the result, and the run is closed at once."""
    run = lived(Begin(), Complete(b'"value"'))
    assert (run.status, run.result, run.closed, run.returned_seq) == (Status.COMPLETED, b'"value"', True, 0)


def test_a_body_that_returns_children_waits_for_them() -> None:
    """The returned value is kept, the children are counted, and the run needs nobody until the last has ended."""
    run = lived(Begin())
    (record,) = give(run, Complete(b'"value"', 2))
    assert (record.kind, record.head, record.payload) == (Kind.CHILDREN_STARTED, {"children": 2}, b'"value"')
    assert (run.status, run.unfinished, run.returned_seq, run.result) == (WAITING, 2, record.seq, b'"value"')
    assert (run.ended, run.executing, run.due) == (False, False, None)


def test_a_return_says_what_follows_the_children() -> None:
    """Whether there is a coordinator, and who answers for failures, is recorded with the return, and stays."""
    run = lived(Begin())
    (record,) = give(run, Complete(b"1", 3, "task", lenient=True))
    assert record.head == {"children": 3, "join": "task", "lenient": True}
    assert (run.join, run.lenient) == ("task", True)


@pytest.mark.parametrize("join", ["function", "task"])
def test_a_coordinator_runs_even_for_no_children(join: str) -> None:
    """A value without children is still the coordinator's to finish, and it is its turn at once."""
    run = lived(Begin(), Complete(b"1", 0, join))  # type: ignore[arg-type]
    assert (run.status, run.unfinished, run.due) == (WAITING, 0, 0.0)


def test_the_coordinator_has_the_whole_policy_before_it() -> None:
    """Attempts that the body has used up are not missing to its coordinator, and what went wrong before is over."""
    run = lived(
        Begin(), Recover("crash", 9), Fail(FAILURE), Begin(), Recover("crash", 9), Complete(b"1", 1, "function")
    )
    assert (run.attempt, run.attempt_base, run.max_attempts) == (2, 1, 4)
    assert (run.failure, run.recoveries, run.not_before) == (None, 0, 0.0)


def test_what_a_coordinator_returns_changes_no_plan() -> None:
    """Only the body's return says what follows; a coordinator's children are simply waited for."""
    run = lived(*COORDINATING)
    returned = run.returned_seq
    (record,) = give(run, Complete(b'"more"', 2, "task", lenient=True))
    assert (record.kind, record.head) == (Kind.CHILDREN_STARTED, {"children": 2})
    assert (run.status, run.unfinished, run.join, run.lenient, run.returned_seq) == (
        COORDINATED,
        2,
        "function",
        False,
        returned,
    )
    assert (run.executing, run.due, run.result) == (False, None, b'"more"')


# --- children end --------------------------------------------------------------------------------------------------------------------


def test_the_last_child_completes_a_run_without_coordinator() -> None:
    """Count and end are one decision, so one commit; the result is what the body returned."""
    run = lived(*PLAIN)
    assert kinds(give(run, CHILD_DONE)) == [Kind.CHILD_ENDED]
    assert (run.status, run.unfinished) == (WAITING, 1)
    before = run.seq
    counted, end = give(run, CHILD_DONE, now=70.0)
    assert (counted.kind, counted.seq, counted.head) == (
        Kind.CHILD_ENDED,
        before + 1,
        {"child": "c1", "status": "completed"},
    )
    assert (end.kind, end.seq, end.payload) == (Kind.COMPLETED, before + 2, b'"value"')
    assert (run.status, run.result, run.unfinished, run.closed, run.ended_at) == (
        Status.COMPLETED,
        b'"value"',
        0,
        True,
        70.0,
    )


@pytest.mark.parametrize("join", ["function", "task"])
def test_the_last_child_makes_it_the_coordinators_turn(join: str) -> None:
    """With a coordinator the run does not end with its children: it becomes due."""
    run = lived(Begin(), Complete(b"1", 2, join), CHILD_DONE)  # type: ignore[arg-type]
    assert run.due is None
    assert kinds(give(run, CHILD_DONE)) == [Kind.CHILD_ENDED]
    assert (run.status, run.unfinished, run.due, run.executing) == (WAITING, 0, 0.0, False)


@pytest.mark.parametrize("path", [PLAIN, RETURNED], ids=["alone", "coordinator"])
@pytest.mark.parametrize("child", [CHILD_BROKE, CHILD_CANCELLED], ids=["failed", "cancelled"])
def test_the_first_child_to_fail_ends_the_parent(path: tuple[Command, ...], child: ChildEnded) -> None:
    """The coordinator does not run; the sibling is still open, and so is the family."""
    run = lived(*path)
    assert kinds(give(run, child)) == [Kind.CHILD_ENDED, Kind.CHILDREN_FAILED]
    assert (run.status, run.unfinished, run.closed, run.dead, run.due) == (Status.CHILDREN_FAILED, 1, False, True, 0.0)


def test_the_last_child_to_fail_leaves_nothing_open() -> None:
    """Where no sibling is left the family is closed with the failure."""
    run = lived(*PLAIN, CHILD_DONE, CHILD_BROKE)
    assert (run.status, run.unfinished, run.closed) == (Status.CHILDREN_FAILED, 0, True)


def test_the_parent_says_which_child_failed_and_how() -> None:
    """Whoever reads the parent's failure knows where to look next, and sees the child's traceback."""
    run = lived(*RETURNED, CHILD_BROKE)
    assert run.failure == {
        "error_type": "builtins.ValueError",
        "message": "child c2 (task 'summary') is failed: no such page",
        "traceback": "Traceback ...",
    }


@pytest.mark.parametrize(("reason", "text"), [("enough", "enough"), (None, "no reason given")])
def test_a_cancelled_child_is_a_failure_with_its_reason(reason: str | None, text: str) -> None:
    """A child that somebody cancelled has no result: to its parent that is a failure of its own type."""
    run = lived(*RETURNED, ChildEnded("c3", "summary", Status.CANCELLED, reason=reason))
    assert run.failure == {
        "error_type": "durable.errors.RunCancelledError",
        "message": f"child c3 (task 'summary') is cancelled: {text}",
        "traceback": "",
    }


def test_a_failure_is_named_once_however_deep_its_family_is() -> None:
    """What failed by its own children tells of the run below that failed: each parent above repeats that, and adds nothing."""
    parent = lived(*RETURNED, CHILD_BROKE)
    assert parent.failure is not None
    above = lived(*RETURNED, ChildEnded("c4", "chapter", parent.status, failure=parent.failure))
    assert (above.status, above.failure) == (Status.CHILDREN_FAILED, parent.failure)


def test_a_child_that_failed_without_details_still_fails_its_parent() -> None:
    """A child of which little is known is no reason to go on."""
    run = lived(*RETURNED, ChildEnded("c2", "summary", Status.TIMED_OUT))
    assert run.failure is not None
    assert run.failure["message"].startswith("child c2 (task 'summary') is timed_out")


@pytest.mark.parametrize("child", [CHILD_BROKE, CHILD_CANCELLED], ids=["failed", "cancelled"])
def test_a_lenient_parent_leaves_failures_to_its_coordinator(child: ChildEnded) -> None:
    """With `on_child_failure="continue"` every outcome is waited for, and then it is the coordinator's turn."""
    run = lived(*LENIENT)
    assert kinds(give(run, child)) == [Kind.CHILD_ENDED]
    assert (run.status, run.unfinished) == (WAITING, 1)
    assert kinds(give(run, child)) == [Kind.CHILD_ENDED]
    assert (run.status, run.unfinished, run.due) == (WAITING, 0, 0.0)


def test_a_lenient_parent_without_coordinator_completes() -> None:
    """Nobody looks at the failure but whoever reads the result."""
    run = lived(Begin(), Complete(b'"value"', 1, lenient=True), CHILD_BROKE)
    assert (run.status, run.result, run.failure) == (Status.COMPLETED, b'"value"', None)


@pytest.mark.parametrize("child", [CHILD_DONE, CHILD_BROKE, CHILD_CANCELLED], ids=["done", "failed", "cancelled"])
@pytest.mark.parametrize(
    "path",
    [
        *(PATHS[status] for status in Status if status is not WAITING),
        (*RETURNED, Cancel()),
        (*COORDINATING, Suspend()),
        GATHERED,
    ],
    ids=str,
)
def test_news_of_a_child_to_a_run_that_does_not_wait_change_nothing(
    path: tuple[Command, ...], child: ChildEnded
) -> None:
    """A run that ended, was stopped, is at work or has all its children takes the news without a word."""
    run = lived(*path)
    before = run.copy()
    assert give(run, child) == []
    assert run == before


# --- a coordinator that is a function ------------------------------------------------------------------------------------------------


def test_a_coordinator_begins_when_all_children_have_ended() -> None:
    """Not before; and then the run has a body at work again, that records its calls."""
    run = lived(*RETURNED, CHILD_DONE)
    refused(run, Coordinate(), f"{RUN_ID} cannot coordinate yet: it waits for a child$")
    give(run, CHILD_DONE)
    (record,) = give(run, Coordinate())
    assert (record.kind, record.head) == (Kind.COORDINATING, {})
    assert (run.status, run.executing, run.due, run.coordinator_id) == (COORDINATED, True, 0.0, None)
    assert kinds(step(run)) == [Kind.STEP_COMPLETED]


def test_what_the_coordinator_returns_is_the_result() -> None:
    """The run's result is the coordinator's, not the body's."""
    run = lived(*COORDINATING, Complete(b'"report"'))
    assert (run.status, run.result, run.closed) == (Status.COMPLETED, b'"report"', True)


def test_a_coordinator_receives_signals() -> None:
    """What was sent while the children were at work is there for the coordinator."""
    run = lived(*RETURNED, Send("paid", b"1", 5), CHILD_DONE, CHILD_DONE, Coordinate())
    (seq, _), *_ = run.signals
    (record,) = give(run, Receive("paid", CALL, {seq: b"1"}))
    assert (record.payload, run.signals) == (b"1", [])


@pytest.mark.parametrize("timed_out", [False, True])
def test_a_coordinator_that_fails_for_good_ends_the_run(timed_out: bool) -> None:
    """However it failed, the status says that it was the coordinator; the record says how."""
    run = lived(*COORDINATING)
    (record,) = give(run, Fail(FAILURE, retryable=False, timed_out=timed_out))
    assert record.kind is (Kind.TIMED_OUT if timed_out else Kind.FAILED)
    assert (run.status, run.dead, run.closed, run.failure) == (BROKEN, True, True, FAILURE.head())


def test_a_coordinator_is_retried_as_one() -> None:
    """It sleeps for the delay of the policy. The next attempt begins by `Wake`: neither by the body, nor as if children had just ended."""
    run = lived(*COORDINATING, retry=Retry(2, delay=4.0))
    (record,) = give(run, Fail(FAILURE), now=100.0)
    assert (record.kind, run.status, run.attempt, run.not_before, run.due) == (
        Kind.RETRYING,
        COORDINATED,
        2,
        104.0,
        104.0,
    )
    assert (run.unfinished, run.asleep, run.wake_at, run.executing) == (0, True, 104.0, False)
    refused(run, Begin(), "it cannot begin")
    refused(run, Coordinate(), "it cannot coordinate")
    refused(run, Fail(FAILURE), "it cannot fail; it is asleep")
    assert kinds(give(run, Wake(), now=104.0)) == [Kind.AWAKE]
    assert (run.status, run.attempt, run.asleep, run.executing) == (COORDINATED, 2, False, True)
    give(run, Fail(FAILURE))
    assert (run.status, run.attempt) == (BROKEN, 2)


def test_a_coordinator_recovers_like_a_body() -> None:
    """A crash costs no attempt, a released one waits for the next executor, and neither forgets the children."""
    run = lived(*COORDINATING, Recover("crash", 5))
    assert (run.status, run.recoveries, run.recovery_reason, run.executing) == (COORDINATED, 1, "crash", True)
    give(run, Release())
    assert (run.status, run.unfinished, run.due, run.attempt) == (COORDINATED, 0, 0.0, 1)
    assert (run.asleep, run.executing) == (True, False)
    refused(run, Coordinate(), "it cannot coordinate")
    give(run, Wake())
    assert (run.status, run.asleep, run.executing, run.attempt) == (COORDINATED, False, True, 1)


def test_a_coordinator_that_ends_its_process_is_bounded() -> None:
    """The recovery limit holds for coordinators, and its end says that it was one."""
    run = lived(*COORDINATING, Recover("crash", 1))
    (record,) = give(run, Recover("crash", 1))
    assert (record.kind, record.head["error_type"], run.status) == (Kind.FAILED, "durable.RecoveryLimit", BROKEN)


@pytest.mark.parametrize(
    "again", [(), (Fail(FAILURE), Wake()), (Fail(FAILURE),)], ids=["first attempt", "retried", "backing off"]
)
def test_a_stopped_coordinator_goes_on_as_a_coordinator(again: tuple[Command, ...]) -> None:
    """Resuming leads back to it, at once: neither the body nor the delay of a retry comes again, and no attempt is spent."""
    run = lived(*COORDINATING, *again, Suspend("stop"), retry=Retry(3, delay=5.0))
    assert (run.status, run.due, run.asleep) == (Status.SUSPENDED, None, False)
    (record,) = give(run, Resume())
    assert (record.kind, record.head) == (Kind.RESUMED, {})
    assert (run.status, run.unfinished, run.due, run.attempt) == (COORDINATED, 0, 0.0, 1 + bool(again))
    assert (run.asleep, run.executing, run.not_before) == (True, False, 0.0)
    refused(run, Begin(), "it cannot begin")
    refused(run, Coordinate(), "it cannot coordinate")
    give(run, Wake(), Complete(b'"report"'))
    assert (run.status, run.result, run.attempt) == (Status.COMPLETED, b'"report"', 1 + bool(again))


def test_a_coordinator_that_cannot_be_started_ends_the_run() -> None:
    """Its function is gone, or the children's results cannot be read: no attempt mends that, whatever the policy allows."""
    run = lived(*GATHERED)
    assert kinds(give(run, Fail(FAILURE))) == [Kind.FAILED]
    assert (run.status, run.attempt) == (BROKEN, 1)


def test_a_full_coordinator_gets_no_further_attempt() -> None:
    """The bound of the history holds for coordinators, and keeps none from its end."""
    run = lived(*COORDINATING, retry=Retry(99))
    with pytest.raises(HistoryLimitError):
        give(run, Note(Kind.STEP_COMPLETED, CALL), records_max=run.seq)
    give(run, Fail(FAILURE), records_max=run.seq)
    assert run.status is BROKEN


# --- a coordinator that returns children, or is a task --------------------------------------------------------------------------------


def test_children_of_a_coordinator_complete_the_run() -> None:
    """When they have ended the run has: its result is what the coordinator returned, and nothing coordinates again."""
    run = lived(*NESTED, CHILD_DONE)
    assert (run.status, run.unfinished) == (COORDINATED, 1)
    assert kinds(give(run, CHILD_DONE)) == [Kind.CHILD_ENDED, Kind.COMPLETED]
    assert (run.status, run.result, run.closed) == (Status.COMPLETED, b'"more"', True)


def test_a_failed_child_of_a_coordinator_fails_the_coordinator() -> None:
    """The family's own children went well: what failed belongs to the coordinator."""
    run = lived(*NESTED)
    assert kinds(give(run, CHILD_BROKE)) == [Kind.CHILD_ENDED, Kind.FAILED]
    assert (run.status, run.unfinished, run.closed) == (BROKEN, 1, False)
    assert run.failure is not None
    assert run.failure["message"].startswith("child c2 ")


def test_a_lenient_run_lets_the_children_of_its_coordinator_fail() -> None:
    """Who leaves failures to the reader does so for nested children too."""
    run = lived(*LENIENT, CHILD_BROKE, CHILD_DONE, Coordinate(), Complete(b'"more"', 2), CHILD_BROKE, CHILD_BROKE)
    assert (run.status, run.result) == (Status.COMPLETED, b'"more"')


@pytest.mark.parametrize(
    "command",
    [Complete(b"1"), Complete(b"1", 2), DEAD_END, Fail(FAILURE), Recover("crash", 9), Release(), Suspend(), Sleep()],
    ids=lambda command: type(command).__name__,
)
@pytest.mark.parametrize(
    ("path", "count"), [(NESTED, 2), (BY_TASK, 1), (RETURNED, 2)], ids=["nested", "task", "waiting"]
)
def test_a_run_that_only_waits_has_no_body_to_do_anything(
    path: tuple[Command, ...], count: int, command: Command
) -> None:
    """Nobody is at work: what only a body can do is refused, with the children that are waited for where the status allows it."""
    run = lived(*path)
    assert (run.executing, run.due, run.unfinished) == (False, None, count)
    refused(run, command, f"{RUN_ID} is {run.status}: it cannot")
    refused(run, Note(Kind.STEP_COMPLETED, CALL), "its body can record nothing more")
    refused(run, Receive("a", CALL, {}), "its body can receive nothing more")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        (NESTED, "it waits for 2 children"),
        (BY_TASK, "it waits for a child"),
        (RETURNED, "it waits for 2 children"),
        (GATHERED, "its coordinator has not begun"),
    ],
    ids=["nested", "task", "waiting", "all ended"],
)
def test_a_refusal_says_what_is_waited_for(path: tuple[Command, ...], what: str) -> None:
    """The number tells a waiting run from one that hangs; where all children have ended there is none to wait for."""
    run = lived(*path)
    refused(run, Complete(b"1"), f"^run {RUN_ID} is {run.status}: it cannot complete; {what}$")


@pytest.mark.parametrize(
    ("path", "what"),
    [(NESTED, "its children"), (BY_TASK, "its coordinator, run k"), (RETURNED, "its children")],
    ids=["nested", "task", "waiting"],
)
def test_a_refused_stop_says_what_to_stop_instead(path: tuple[Command, ...], what: str) -> None:
    """A run that only waits has nothing that could stop: that is in the runs that it waits for."""
    run = lived(*path)
    why = f"it cannot stop, since no code of its own is at work; stop {what}, or cancel it"
    refused(run, Suspend("stop"), f"^run {RUN_ID} is {run.status}: {why}$")


def test_a_coordinator_that_is_a_task_is_a_run_of_its_own() -> None:
    """The run waits for it as for a child, without a body."""
    run = lived(*BY_TASK[:-1])
    (record,) = give(run, Coordinate("k"))
    assert (record.kind, record.head) == (Kind.COORDINATING, {"coordinator": "k", "children": 1})
    assert (run.status, run.unfinished, run.coordinator_id, run.executing, run.due) == (
        COORDINATED,
        1,
        "k",
        False,
        None,
    )


def test_the_result_of_a_coordinator_task_is_the_result() -> None:
    """What its run came to is what this run comes to."""
    run = lived(*BY_TASK)
    assert kinds(give(run, COORDINATOR_DONE)) == [Kind.CHILD_ENDED, Kind.COMPLETED]
    assert (run.status, run.result, run.closed) == (Status.COMPLETED, b'"report"', True)


@pytest.mark.parametrize("lenient", [False, True])
def test_a_coordinator_task_that_fails_ends_the_run(lenient: bool) -> None:
    """Leniency is for children: without its coordinator a run has no result."""
    run = lived(Begin(), Complete(b"1", 1, "task", lenient), CHILD_DONE, Coordinate("k"))
    assert kinds(give(run, COORDINATOR_BROKE)) == [Kind.CHILD_ENDED, Kind.FAILED]
    assert (run.status, run.unfinished, run.closed) == (BROKEN, 0, True)
    assert run.failure is not None
    assert run.failure["message"] == "coordinator k (task 'combine') is failed: no such page"


def test_a_coordinator_that_has_become_a_task_gives_its_result() -> None:
    """The code may change while the children are at work: what was begun is what counts."""
    run = lived(*GATHERED, Coordinate("k"), COORDINATOR_DONE)
    assert (run.status, run.result) == (Status.COMPLETED, b'"report"')


def test_a_coordinator_that_is_no_task_any_more_gives_its_result() -> None:
    """Its own children end it, and their results are not its result."""
    run = lived(*BY_TASK[:-1], Coordinate(), Complete(b'"more"', 1), CHILD_DONE)
    assert (run.status, run.result) == (Status.COMPLETED, b'"more"')


# --- asleep --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ASLEEP, ids=["body", "coordinator"])
def test_a_run_asleep_has_no_body_until_its_time(path: tuple[Command, ...]) -> None:
    """It is due when it is to wake, and nothing is recorded on behalf of a body that is not there."""
    run = lived(*path)
    assert (run.asleep, run.wake_at, run.due, run.executing) == (True, 60.0, 60.0, False)
    refused(run, Note(Kind.STEP_COMPLETED, CALL), "its body can record nothing more")
    for command in (
        Complete(b"1"),
        Complete(b"1", 2),
        Fail(FAILURE),
        DEAD_END,
        Recover("crash", 9),
        Release(),
        Sleep(),
    ):
        refused(run, command, "it is asleep")


def test_a_run_asleep_for_no_time_waits_for_news() -> None:
    """A body that waits for a signal or a child alone is not due at all."""
    run = lived(Begin())
    (record,) = give(run, Sleep())
    assert (record.kind, record.head, run.asleep, run.wake_at, run.due) == (Kind.ASLEEP, {}, True, None, None)


def test_a_run_asleep_until_time_zero_is_due() -> None:
    """Zero is a time, not the lack of one."""
    run = lived(Begin())
    (record,) = give(run, Sleep(0.0))
    assert (record.head, run.due) == ({"until": 0.0}, 0.0)


@pytest.mark.parametrize("path", ASLEEP, ids=["body", "coordinator"])
def test_waking_goes_on_with_the_attempt(path: tuple[Command, ...]) -> None:
    """Sleep costs neither an attempt nor a recovery; a second waking finds nothing to do."""
    run = lived(*path)
    status = run.status
    assert kinds(give(run, Wake())) == [Kind.AWAKE]
    assert (run.status, run.asleep, run.wake_at, run.executing, run.attempt, run.recoveries) == (
        status,
        False,
        None,
        True,
        1,
        0,
    )
    assert give(run, Wake()) == []


@pytest.mark.parametrize("until", [None, 1e9])
@pytest.mark.parametrize("news", [Send("paid", b"1", 5), CHILD_DONE, CHILD_BROKE], ids=["signal", "child", "failure"])
@pytest.mark.parametrize("path", [(Begin(),), COORDINATING], ids=["body", "coordinator"])
def test_news_make_a_sleeper_due_at_once(path: tuple[Command, ...], news: Command, until: float | None) -> None:
    """A signal or a child's end is recorded, and the sleeper is to wake now; how the child ended is its body's business."""
    run = lived(*path, Sleep(until))
    status = run.status
    (record,) = give(run, news)
    assert record.kind is (Kind.SIGNAL if isinstance(news, Send) else Kind.CHILD_ENDED)
    assert (run.status, run.asleep, run.wake_at, run.due, run.unfinished) == (status, True, 0.0, 0.0, 0)
    give(run, Wake())
    assert (run.asleep, run.wake_at) == (False, None)


@pytest.mark.parametrize("path", ASLEEP, ids=["body", "coordinator"])
@pytest.mark.parametrize(
    ("command", "status"), [(Cancel(), Status.CANCELLED), (Suspend(), Status.SUSPENDED)], ids=["cancel", "stop"]
)
def test_a_sleeper_can_be_cancelled_and_stopped(path: tuple[Command, ...], command: Command, status: Status) -> None:
    """Neither waits for the body, and neither leaves the run asleep."""
    run = lived(*path)
    give(run, command)
    assert (run.status, run.asleep, run.wake_at) == (status, False, None)


def test_a_sleeping_coordinator_that_was_stopped_joins_again() -> None:
    """Resumed, it is due at once, not when it would have woken; then it goes on as a coordinator and is awake."""
    run = lived(*COORDINATING, Sleep(60.0), Suspend(), Resume())
    assert (run.status, run.asleep, run.due) == (COORDINATED, True, 0.0)
    assert kinds(give(run, Wake())) == [Kind.AWAKE]
    assert (run.status, run.asleep, run.executing) == (COORDINATED, False, True)


# --- closing -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(ENDED))
def test_a_run_without_open_children_is_closed_by_its_end(status: Status) -> None:
    """Nobody has to come back for it: closing it again adds nothing."""
    run = made(status)
    if status is Status.CHILDREN_FAILED:
        run = lived(*RETURNED, CHILD_DONE, CHILD_BROKE)
    assert (run.closed, run.due) == (True, None)
    assert give(run, Close()) == []


#: Ends that leave a child of the run open.
OPEN_ENDS: dict[str, tuple[Command, ...]] = {
    "children failed": (*RETURNED, CHILD_BROKE),
    "cancelled while waiting": (*RETURNED, Cancel()),
    "cancelled with its coordinator": (*BY_TASK, Cancel()),
    "nested child failed": (*NESTED, CHILD_BROKE),
    "completed beside a child": (Begin(), Note(Kind.CHILD_STARTED, CALL), Complete(b"1")),
    "failed beside a child": (Begin(), Note(Kind.CHILD_STARTED, CALL), DEAD_END),
}


@pytest.mark.parametrize("path", OPEN_ENDS.values(), ids=OPEN_ENDS)
def test_a_run_with_open_children_is_closed_once(path: tuple[Command, ...]) -> None:
    """It has ended, and stays due until its children have too; then nothing is left of it to see to."""
    run = lived(*path)
    status, unfinished, awaiting = run.status, run.unfinished, run.awaiting
    assert (run.ended, run.closed, run.due) == (True, False, 0.0)
    assert unfinished + awaiting > 0
    assert kinds(give(run, Close())) == [Kind.CLOSED]
    assert (run.status, run.closed, run.due) == (status, True, None)
    assert (run.unfinished, run.awaiting) == (unfinished, awaiting), "what was open at its end is still told"
    assert give(run, Close()) == []


@pytest.mark.parametrize("status", sorted(set(Status) - ENDED))
def test_a_run_that_goes_on_is_not_closed(status: Status) -> None:
    """Closing is for what has ended."""
    run = made(status)
    before = run.copy()
    assert give(run, Close()) == []
    assert run == before


@pytest.mark.parametrize("kind", [Kind.STEP_COMPLETED, Kind.STEP_FAILED, Kind.STEP_CANCELLED])
def test_a_child_that_was_awaited_holds_nothing_open(kind: Kind) -> None:
    """Once its outcome is recorded, or the call was given up after it had ended, the child no longer counts."""
    run = lived(Begin(), Note(Kind.CHILD_STARTED, CALL))
    assert run.awaiting == 1
    give(run, Note(kind, CALL, b"1", {"awaited": "c1"}))
    assert run.awaiting == 0
    give(run, Complete(b"1"))
    assert run.closed


def test_a_call_given_up_leaves_its_child_open() -> None:
    """A call that was cancelled before its child had ended does not close what goes on without it."""
    run = lived(Begin(), Note(Kind.CHILD_STARTED, CALL), Note(Kind.STEP_CANCELLED, CALL), Complete(b"1"))
    assert (run.awaiting, run.closed) == (1, False)


# --- trying again --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMED_OUT])
def test_a_run_that_failed_by_itself_is_revived_by_itself(status: Status) -> None:
    """It had no children to join, and begins again from its body."""
    run = made(status)
    give(run, Revive())
    assert (run.status, run.closed, run.unfinished, run.due) == (Status.READY, False, 0, 0.0)


def test_a_run_is_revived_with_its_children() -> None:
    """It waits for those that are tried again with it, and ends as it would have."""
    run = lived(*RETURNED, CHILD_DONE, CHILD_BROKE)
    (record,) = give(run, Revive(children=1))
    assert (record.kind, record.head) == (Kind.RESUMED, {"reason": "retry", "children": 1})
    assert (run.status, run.unfinished, run.due) == (WAITING, 1, None)
    assert (run.closed, run.dead, run.failure, run.ended_at) == (False, False, None, None)
    give(run, CHILD_DONE, Coordinate(), Complete(b'"report"'))
    assert (run.status, run.result) == (Status.COMPLETED, b'"report"')


def test_a_revived_run_may_fail_by_its_children_again() -> None:
    """The second failure is told like the first."""
    run = lived(*RETURNED, CHILD_DONE, CHILD_BROKE, Revive(children=1))
    assert kinds(give(run, CHILD_BROKE)) == [Kind.CHILD_ENDED, Kind.CHILDREN_FAILED]
    assert (run.status, run.dead, run.closed) == (Status.CHILDREN_FAILED, True, True)


def test_a_failed_coordinator_is_revived_as_one() -> None:
    """The children went well and are left alone; the policy's whole count is before the coordinator again."""
    run = lived(*COORDINATING, DEAD_END, Revive(), retry=Retry(2))
    assert (run.status, run.unfinished, run.due) == (WAITING, 0, 0.0)
    assert (run.attempt, run.attempt_base, run.max_attempts) == (2, 1, 3)
    give(run, Coordinate(), Complete(b'"report"'))
    assert (run.status, run.result, run.attempt) == (Status.COMPLETED, b'"report"', 2)


@pytest.mark.parametrize(
    ("end", "status"), [(COORDINATOR_DONE, Status.COMPLETED), (COORDINATOR_BROKE, BROKEN)], ids=["well", "badly"]
)
def test_a_coordinator_task_is_tried_again_as_the_coordinator(end: ChildEnded, status: Status) -> None:
    """Its run is found again by its id, and what it comes to now is what the run comes to."""
    run = lived(*BY_TASK, COORDINATOR_BROKE)
    assert run.coordinator_id == "k"
    give(run, Revive(), Coordinate("k"))
    assert (run.status, run.unfinished, run.due) == (COORDINATED, 1, None)
    assert kinds(give(run, end))[0] is Kind.CHILD_ENDED
    assert (run.status, run.closed) == (status, True)


def test_a_coordinator_that_is_no_task_any_more_is_tried_again_without_its_run() -> None:
    """The code has changed in between: the run of the last life coordinates nothing now, and a second retry does not look for it."""
    run = lived(*BY_TASK, COORDINATOR_BROKE, Revive(), Coordinate())
    assert (run.status, run.coordinator_id, run.executing) == (COORDINATED, None, True)
    give(run, Complete(b'"report"'))
    assert (run.status, run.result) == (Status.COMPLETED, b'"report"')


@pytest.mark.parametrize(
    ("path", "status"),
    [((), Status.READY), ((Begin(),), Status.READY), (RETURNED, WAITING), (COORDINATING, WAITING)],
    ids=["new", "running", "waiting", "coordinating"],
)
def test_a_run_that_its_parent_cancelled_comes_back_with_it(path: tuple[Command, ...], status: Status) -> None:
    """Cancelled with its family, tried again with its family: from its body, or from its children."""
    run = lived(*path, Cancel("its parent failed"), Close(), parent_id="p", attached=True)
    refused(run, Revive(), "it belongs to run p: retry that")
    give(run, Revive(by_parent=True))
    assert (run.status, run.reason, run.closed) == (status, None, False)


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMED_OUT, Status.CHILDREN_FAILED, BROKEN])
def test_a_run_that_belongs_to_another_is_not_revived_alone(status: Status) -> None:
    """Its parent has ended by it: only the parent can be tried again, and takes it along."""
    run = made(status, parent_id="p", attached=True)
    refused(run, Revive(), f"{RUN_ID} is {status}: it cannot retry; it belongs to run p: retry that")
    give(run, Close())
    if status is Status.CHILDREN_FAILED:
        refused(run, Revive(by_parent=True), "it cannot retry without the children that failed")
    give(run, Revive(int(status is Status.CHILDREN_FAILED), by_parent=True))
    assert not run.ended


@pytest.mark.parametrize("path", [(Cancel(),), (*RETURNED, Cancel())], ids=["alone", "family"])
def test_a_run_that_somebody_cancelled_is_not_revived(path: tuple[Command, ...]) -> None:
    """Who asked for the end gets it; the message says what to do instead."""
    refused(lived(*path), Revive(), "it cannot retry; somebody cancelled it: start a new run")


@pytest.mark.parametrize("by_parent", [False, True])
def test_success_is_not_revived(by_parent: bool) -> None:
    """A run that completed has nothing to try again, with or without its family."""
    refused(made(Status.COMPLETED), Revive(by_parent=by_parent), "that is its end")
    refused(lived(*COORDINATING, Complete(b"1")), Revive(by_parent=by_parent), "that is its end")


@pytest.mark.parametrize("path", [PATHS[Status.CHILDREN_FAILED], PATHS[BROKEN]], ids=["children", "coordinator"])
def test_a_failed_family_is_a_dead_letter(path: tuple[Command, ...]) -> None:
    """It is on the list until it is discarded, and can still be tried again."""
    run = lived(*path, Discard(), Close())
    assert (run.dead, run.ended) == (False, True)
    give(run, Revive(children=1))
    assert run.status is WAITING


@pytest.mark.parametrize(
    "path",
    [path for name, path in OPEN_ENDS.items() if not name.startswith("completed")],
    ids=[name for name in OPEN_ENDS if not name.startswith("completed")],
)
@pytest.mark.parametrize("discard", [False, True])
def test_a_run_is_not_revived_before_it_is_closed(path: tuple[Command, ...], discard: bool) -> None:
    """The end of a sibling that was cancelled for the first failure would fail the revived run again."""
    run = lived(*path, parent_id="p", attached=True)
    if discard and run.dead:
        give(run, Discard())
    again = Revive(children=1, by_parent=True)
    refused(run, again, f"^run {RUN_ID} is {run.status}: it cannot retry yet; its children are still being cancelled$")
    give(run, Close(), again)
    assert (run.ended, run.closed) == (False, False)


def test_a_run_that_belongs_to_nobody_is_closed_before_it_is_revived_too() -> None:
    """Whoever asks: the refusal is for what is open, not for who asks."""
    run = lived(*RETURNED, CHILD_BROKE)
    refused(
        run,
        Revive(children=1),
        f"{RUN_ID} is children_failed: it cannot retry yet; its children are still being cancelled",
    )
    give(run, Close(), Revive(children=1))
    assert run.status is WAITING


@pytest.mark.parametrize(
    ("path", "again", "due"),
    [((*RETURNED, CHILD_BROKE), 2, None), ((*NESTED, CHILD_BROKE), 0, 0.0)],
    ids=["children", "children of the coordinator"],
)
def test_what_was_open_in_the_last_life_is_not_waited_for(
    path: tuple[Command, ...], again: int, due: float | None
) -> None:
    """A revived run counts the children that are tried again with it, and none of those that its end had left open."""
    run = lived(*path, Close())
    assert run.unfinished == 1
    give(run, Revive(children=again))
    assert (run.status, run.unfinished, run.due) == (WAITING, again, due)


@pytest.mark.parametrize(
    "path",
    [
        PATHS[Status.FAILED],
        PATHS[Status.CHILDREN_FAILED],
        SHAPES[Status.CHILDREN_FAILED, Verb.REJOIN],
        PATHS[BROKEN],
        PATHS[Status.CANCELLED],
        SHAPES[Status.CANCELLED, Verb.REJOIN],
        PATHS[Status.COMPLETED],
        (*COORDINATING, Complete(b"1")),
    ],
    ids=[
        "failed",
        "children",
        "children, closed",
        "coordinator",
        "cancelled",
        "family",
        "completed",
        "completed family",
    ],
)
def test_resuming_is_for_runs_that_were_stopped(path: tuple[Command, ...]) -> None:
    """A run that ended is not brought back by `resume`: that is for `retry`, which has its own refusals."""
    run = lived(*path, parent_id="p", attached=True)
    refused(run, Resume(), f"{RUN_ID} is {run.status}: it cannot resume; ")


@pytest.mark.parametrize("by_parent", [False, True])
@pytest.mark.parametrize("path", [(*COORDINATING, Suspend()), (Begin(), Suspend())], ids=["coordinator", "body"])
def test_reviving_is_for_runs_that_ended(path: tuple[Command, ...], by_parent: bool) -> None:
    """A stopped run is resumed; a retry of it would make up children and, later, an attempt."""
    refused(lived(*path), Revive(children=2, by_parent=by_parent), f"{RUN_ID} is suspended: it cannot retry; ")


def test_a_run_that_returned_nothing_waits_for_no_children() -> None:
    """Children that it awaits are its body's: they are not counted, and do not keep it open after its end."""
    run = lived(Begin(), DEAD_END, Revive(children=1), Begin(), Complete(b"1"))
    assert (run.unfinished, run.closed) == (0, True)


def test_a_family_whose_children_had_all_ended_completes_when_it_is_revived() -> None:
    """A child that ended between its parent's cancel and its own went well: nothing is left to wait for, and nobody would end the run."""
    run = lived(Begin(), Complete(b'"value"', 1), Cancel("its parent failed"), Close(), parent_id="p", attached=True)
    before = run.seq
    resumed, end = give(run, Revive(children=0, by_parent=True), now=70.0)
    assert (resumed.kind, resumed.seq, resumed.head) == (Kind.RESUMED, before + 1, {"reason": "retry"})
    assert (end.kind, end.seq, end.payload) == (Kind.COMPLETED, before + 2, b'"value"')
    assert (run.status, run.result, run.closed, run.ended_at, run.reason, run.due) == (
        Status.COMPLETED,
        b'"value"',
        True,
        70.0,
        None,
        None,
    )


@pytest.mark.parametrize(("join", "children"), [("", 1), ("function", 0), ("task", 0), ("function", 1)])
def test_a_revived_family_that_lacks_something_waits_for_it(join: str, children: int) -> None:
    """With a child to try again, or a coordinator to come, a revival is not the end."""
    run = lived(Begin(), Complete(b'"value"', 1, join), Cancel(), Close())  # type: ignore[arg-type]
    assert kinds(give(run, Revive(children, by_parent=True))) == [Kind.RESUMED]
    assert (run.status, run.unfinished, run.due) == (WAITING, children, None if children else 0.0)


def test_children_awaited_before_a_revival_are_counted_once() -> None:
    """A child that ended well while its parent was failing hands its outcome to the call that finds it again."""
    run = lived(Begin(), Note(Kind.CHILD_STARTED, CALL), DEAD_END, Close(), Revive(), Begin())
    give(run, Note(Kind.STEP_COMPLETED, CALL, b"1", {"awaited": "c1"}))
    assert run.awaiting == 0
    give(run, Note(Kind.CHILD_STARTED, ("other", b"", 0)), Complete(b"1"))
    assert not run.closed, "the other child is still open"


# --- every status --------------------------------------------------------------------------------------------------------------------

#: For each shape of a run: is a body at work, and from when on is the run due (the first commands are given at 10.0)?
DUE: list[tuple[str, Status, tuple[Command, ...], bool, float | None]] = [
    ("new", Status.READY, (), False, 0.0),
    ("backing off", Status.READY, (Begin(), Fail(FAILURE)), False, 15.0),
    ("at work", Status.RUNNING, (Begin(),), True, 0.0),
    ("asleep", Status.RUNNING, (Begin(), Sleep(60.0)), False, 60.0),
    ("asleep for news", Status.RUNNING, (Begin(), Sleep()), False, None),
    ("stopped", Status.SUSPENDED, (Begin(), Suspend()), False, None),
    ("stopped while backing off", Status.SUSPENDED, (Begin(), Fail(FAILURE), Suspend()), False, None),
    ("stopped coordinator", Status.SUSPENDED, (*COORDINATING, Suspend()), False, None),
    ("waiting", WAITING, RETURNED, False, None),
    ("all ended", WAITING, GATHERED, False, 0.0),
    ("coordinator backing off", COORDINATED, (*COORDINATING, Fail(FAILURE)), False, 15.0),
    ("coordinator released", COORDINATED, (*COORDINATING, Release()), False, 0.0),
    ("coordinator resumed", COORDINATED, (*COORDINATING, Suspend(), Resume()), False, 0.0),
    ("coordinator retried", COORDINATED, (*COORDINATING, Fail(FAILURE), Wake()), True, 0.0),
    ("coordinator at work", COORDINATED, COORDINATING, True, 0.0),
    ("coordinator asleep", COORDINATED, (*COORDINATING, Sleep(60.0)), False, 60.0),
    ("coordinator is a task", COORDINATED, BY_TASK, False, None),
    ("coordinator has children", COORDINATED, NESTED, False, None),
    ("completed", Status.COMPLETED, PATHS[Status.COMPLETED], False, None),
    ("failed", Status.FAILED, PATHS[Status.FAILED], False, None),
    ("timed out", Status.TIMED_OUT, PATHS[Status.TIMED_OUT], False, None),
    ("cancelled", Status.CANCELLED, PATHS[Status.CANCELLED], False, None),
    ("children failed", Status.CHILDREN_FAILED, (*RETURNED, CHILD_DONE, CHILD_BROKE), False, None),
    ("children failed, one open", Status.CHILDREN_FAILED, (*RETURNED, CHILD_BROKE), False, 0.0),
    ("children failed, closed", Status.CHILDREN_FAILED, (*RETURNED, CHILD_BROKE, Close()), False, None),
    ("coordinator failed", BROKEN, PATHS[BROKEN], False, None),
]


@pytest.mark.parametrize(("status", "path", "executing", "due"), [row[1:] for row in DUE], ids=[row[0] for row in DUE])
def test_when_a_run_is_due_and_whether_it_has_a_body(
    status: Status, path: tuple[Command, ...], executing: bool, due: float | None
) -> None:
    """The engine sees to just the runs that are due, and finds a body where there is one."""
    run = lived(*path, retry=Retry(3, delay=5.0))
    assert (run.status, run.executing, run.due) == (status, executing, due)


def test_the_table_of_due_runs_has_every_status() -> None:
    """None is forgotten above."""
    assert {row[1] for row in DUE} == set(Status)


def test_a_delayed_run_is_due_at_its_time() -> None:
    """A start for later waits like a retry does."""
    assert lived(delay=50.0).due == 60.0


@pytest.mark.parametrize(
    "path", [row[2] for row in DUE if row[1] not in ENDED], ids=[row[0] for row in DUE if row[1] not in ENDED]
)
def test_every_run_that_goes_on_can_be_cancelled(path: tuple[Command, ...]) -> None:
    """Whatever it waits for, it ends; what was open of it stays open until it is closed."""
    run = lived(*path)
    waited_for = run.unfinished
    assert kinds(give(run, Cancel("enough"), now=30.0)) == [Kind.CANCELLED]
    assert (run.status, run.reason, run.ended_at, run.dead, run.asleep) == (
        Status.CANCELLED,
        "enough",
        30.0,
        False,
        False,
    )
    assert (run.unfinished, run.closed) == (waited_for, not waited_for)
    assert give(run, Cancel("enough")) == []


@pytest.mark.parametrize("path", [row[2] for row in DUE], ids=[row[0] for row in DUE])
def test_a_family_is_stored_whole(path: tuple[Command, ...]) -> None:
    """Whatever a run waits for is in its row, and its records come back from the wire as the same run."""
    create = Create("crawl", b"[1]", parent_id="p", attached=True, joined=True, depth=3, retry=Retry(3))
    records = give(Run(RUN_ID), create)
    run = fold(records)
    records += give(run, *path)
    assert (run.joined, run.depth) == (True, 3)
    assert decode_run(RUN_ID, encode_run(run), input=run.input, result=run.result) == run
    assert fold(decode_unit(encode_unit(map(encode_record, records)))) == run


def test_belonging_and_joining_are_recorded_with_the_start() -> None:
    """Whether a parent waits for the run, and how deep it lies, is known from its first record; an ordinary run says nothing of it."""
    (record,) = give(Run(RUN_ID), Create("crawl", b"1", parent_id="p", attached=True, joined=True, depth=2))
    assert record.head == {"parent": "p", "attached": True, "joined": True, "depth": 2}
    assert (made().joined, made().depth) == (False, 0)


# --- children that only a key names --------------------------------------------------------------------------------------------


def test_a_run_remembers_who_watches_it() -> None:
    """Also as it is stored; and a copy does not change with it."""
    run = lived(Begin(), Watch("p1"))
    twin = run.copy()
    give(run, Watch("p2"))
    assert (run.watchers, twin.watchers, run.status) == (["p1", "p2"], ["p1"], Status.RUNNING)
    assert decode_run(RUN_ID, encode_run(run), input=run.input, result=run.result) == run


def test_a_run_that_has_ended_is_not_watched() -> None:
    """There is nothing more to tell."""
    refused(lived(Begin(), Cancel()), Watch("p1"), "there is nothing more to tell run p1")


def test_nothing_hurries_a_coordinator_that_backs_off() -> None:
    """A signal, or the end of a child, wakes who waits for it: the next attempt waits for its time."""
    run = lived(*COORDINATING, Fail(FAILURE), Send("hurry", None, 5), retry=Retry(3, delay=5.0))
    assert run.due == run.not_before == 15.0


def test_a_stop_names_what_can_be_stopped() -> None:
    """The children, while there are any; the coordinator that is a run only while it is at work."""
    refused(lived(*RETURNED), Suspend(), "stop its children, or cancel it")
    refused(
        lived(Begin(), Complete(b"1", 0, "function")), Suspend(), "stop its coordinator once it has begun, or cancel it"
    )


def test_a_child_that_was_only_awaited_is_not_counted() -> None:
    """Its end may be told late, when the body has gone on and returned other children."""
    late = ChildEnded("c9", "title", Status.COMPLETED, b"1", counts=False)
    assert lived(*RETURNED, late) == lived(*RETURNED)
