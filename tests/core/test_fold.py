"""`apply` and `fold`: total, idempotent, one and the same everywhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.core.commands import (
    Begin,
    Cancel,
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
    Resume,
    Revive,
    Send,
    Sleep,
    Wake,
)
from durable.core.decide import decide
from durable.core.records import CALLS, ENDS, Kind, Record
from durable.core.retry import Retry
from durable.core.run import _FOLD, Run, apply, fold
from durable.core.status import ENDED, Status
from durable.core.wire import decode_unit, encode_record, encode_unit
from durable.errors import LimitError, TransitionError
from tests.core.machine import (
    CHILD_BROKE,
    CHILD_CANCELLED,
    CHILD_DONE,
    COORDINATING,
    FAILURE,
    RETURNED,
    RUN_ID,
    WISHES,
    give,
    lived,
    made,
)

CREATE = Create("crawl", b"[1]", key="k", user="u")
COMMANDS: list[Command] = [
    *WISHES.values(),
    Recover("crash", 1),
    Cancel(),
    Discard(),
    Close(),
    Resume(),
    Revive(),
    Sleep(),
    Coordinate("k"),
    CHILD_DONE,
    CHILD_BROKE,
    CHILD_CANCELLED,
    Complete(b"1", 1),
    Complete(b"1", 3, "function"),
    Complete(b"1", 0, "function"),
    Complete(b"1", 2, "function", lenient=True),
    Complete(b"1", 2, "task"),
    Send("a", b"1", 3),
    Send("b", None, 3),
    *(Note(kind, ("s", b"x", 0), b"1") for kind in sorted(CALLS)),
    Fail(FAILURE, fraction=0.3),
    Receive("a", ("w", b"", 0), {}),
]


def added_by(run: Run, command: Command, now: float) -> list[Record]:
    """The records of a command; none where it is refused."""
    if type(command) is Receive:
        command = dataclasses.replace(command, payloads={seq: b"p" for seq, _ in run.signals})
    try:
        return decide(run, command, now, 60)
    except (TransitionError, LimitError):
        return []


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """What a run can live through: at each turn one of the commands that do something then."""
    run = Run(RUN_ID)
    policy = Retry(draw(st.integers(1, 4)), delay=draw(st.sampled_from([0, 1.5])))
    owner = draw(st.sampled_from([None, "p"]))
    create = dataclasses.replace(CREATE, retry=policy, parent_id=owner, attached=owner is not None)
    way = draw(
        st.sampled_from([(), RETURNED, COORDINATING, (*COORDINATING, Complete(b"1", 2))])
    )  # far enough to meet families often
    records = give(run, create, *way, now=1.0)
    for time in range(draw(st.integers(0, 40))):
        # By what is recorded, not by command: there are many ways to fail, and as many that a run ends before anything can happen to it.
        possible: dict[tuple[Kind, ...], list[list[Record]]] = {}
        for command in COMMANDS:
            if added := added_by(run, command, 2.0 + time):
                possible.setdefault(tuple(record.kind for record in added), []).append(added)
        if not possible:
            break
        for record in draw(st.sampled_from(possible[draw(st.sampled_from(list(possible)))])):
            apply(run, record)
            records.append(record)
    return records


def bare(kind: Kind, seq: int = 1, head: dict[str, Any] | None = None) -> Record:
    return Record(RUN_ID, seq, kind, 5.0, 1, "name", head=head or {})


@pytest.mark.parametrize("kind", Kind)
def test_apply_is_total(kind: Kind) -> None:
    """Every kind can be folded into a run, even by a record that says no more than its kind."""
    run = apply(Run(RUN_ID), bare(kind))
    assert run.seq == 1
    assert run.ended == (kind in ENDS)


def test_every_kind_has_its_fold() -> None:
    """A new kind cannot be forgotten here."""
    assert set(_FOLD) == set(Kind)


@pytest.mark.parametrize("kind", [Kind.RETRYING, Kind.SUSPENDED, Kind.FAILED, Kind.TIMED_OUT])
def test_a_failure_always_has_all_its_parts(kind: Kind) -> None:
    """Readers of `run.failure` need not ask which parts are there."""
    run = apply(Run(RUN_ID), bare(kind, head={"error_type": "E"}))
    assert run.failure == {"error_type": "E", "message": "", "traceback": ""}


@given(histories())
def test_records_are_numbered_without_a_gap(records: list[Record]) -> None:
    """`seq` is 1, 2, 3 ... across attempts, recoveries and revivals, and attempts never go back."""
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    attempts = [record.attempt for record in records]
    assert attempts == sorted(attempts)


@given(histories(), st.data())
def test_apply_is_idempotent(records: list[Record], data: st.DataObject) -> None:
    """Applying any prefix a second time, wherever it starts, changes nothing: recovery may overlap with what was known."""
    cut = data.draw(st.integers(1, len(records)))
    start = data.draw(st.integers(0, cut))
    run = fold(records[:cut])
    once = run.copy()
    for record in records[start:cut]:
        apply(run, record)
    assert run == once
    for record in records[start:]:
        apply(run, record)
    assert run == fold(records)


@given(histories())
def test_fold_is_apply_one_by_one(records: list[Record]) -> None:
    """Live, in recovery and from the log it is the same run, and each state on the way is the fold of its records."""
    run = Run(RUN_ID)
    for number, record in enumerate(records, 1):
        assert apply(run, record) is run
        assert run == fold(records[:number])
    assert run == fold(decode_unit(encode_unit(encode_record(record) for record in records)))


@given(histories())
def test_a_run_is_over_just_when_it_has_an_end(records: list[Record]) -> None:
    """Every run that ended has the time of its end, only a failed one is a dead letter, and one that completed has a result."""
    for number in range(1, len(records) + 1):
        run = fold(records[:number])
        assert run.ended == (run.ended_at is not None) == (run.status in ENDED)
        assert not run.dead or run.status in ENDED - {Status.COMPLETED, Status.CANCELLED}
        assert run.status is not Status.COMPLETED or run.result is not None


@given(histories())
def test_a_run_ends_once_between_revivals(records: list[Record]) -> None:
    """After an end nothing follows but its closing, once, the end of its letter, and a retry; nothing else begins it anew."""
    over = closed = False
    for record in records:
        if over:
            assert record.kind in (Kind.RESUMED, Kind.DISCARDED, Kind.CLOSED)
            assert record.kind is not Kind.RESUMED or record.head.get("reason") == "retry"
            assert record.kind is not Kind.CLOSED or not closed
        else:
            assert record.kind not in (Kind.CLOSED, Kind.DISCARDED)
        closed = record.kind is Kind.CLOSED or (closed and record.kind is Kind.DISCARDED)
        over = record.kind in ENDS or (over and record.kind is not Kind.RESUMED)


@given(histories())
def test_a_family_is_counted_right(records: list[Record]) -> None:
    """No count falls below zero; a run is closed by its end if nothing of it is open, else by its closing; only a run under way sleeps."""
    run = Run(RUN_ID)
    closing = False
    for record in records:
        before = run.copy()
        apply(run, record)
        closing = record.kind is Kind.CLOSED or (closing and record.kind is not Kind.RESUMED)
        assert run.unfinished >= 0 <= run.awaiting
        assert run.closed == (run.ended and (closing or not (run.unfinished or run.awaiting)))
        if before.ended:  # what was open is told of the run until it is tried again, which it is only when nothing of it is open any more
            assert record.kind is Kind.RESUMED or (run.unfinished, run.awaiting) == (before.unfinished, before.awaiting)
            assert record.kind is not Kind.RESUMED or before.closed
        if record.kind is Kind.RESUMED:
            assert run.unfinished == (record.head.get("children", 0) if run.returned_seq else 0)
        assert not run.asleep or run.status in (Status.RUNNING, Status.WAITING_FOR_ON_CHILDREN_COMPLETE)
        assert run.asleep or run.wake_at is None
        assert run.returned_seq <= run.seq
        assert not run.executing or run.due == 0.0
        assert run.ended or run.returned_seq or run.status in (Status.READY, Status.RUNNING, Status.SUSPENDED)


@given(histories())
def test_a_run_that_goes_on_can_end(records: list[Record]) -> None:
    """It is due, or waits for a child, for news or to be resumed: never for nothing. And whatever it waits for, it can be cancelled."""
    run = fold(records)
    if run.due is None and not run.closed:
        assert run.unfinished or run.asleep or run.status is Status.SUSPENDED
    if not run.ended:
        give(run, Cancel())
        assert run.ended


@given(histories())
def test_a_copy_goes_its_own_way(records: list[Record]) -> None:
    """What happens to a run is not seen in a copy made before, and not the other way round."""
    run = Run(RUN_ID)
    for record in records:
        twin = run.copy()
        before = dataclasses.asdict(run)
        apply(twin, record)
        assert dataclasses.asdict(run) == before
        apply(run, record)
        assert run == twin


def test_a_copy_has_its_own_mailbox() -> None:
    """The one field that grows in place is not shared."""
    run = made(Status.RUNNING)
    give(run, Send("a", b"1", 5))
    twin = run.copy()
    give(twin, Send("a", b"2", 5))
    assert (len(run.signals), len(twin.signals)) == (1, 2)


def test_a_copy_has_every_field() -> None:
    """A field that is added to `Run` is copied without anybody thinking of it."""
    run = Run(RUN_ID)
    for field in dataclasses.fields(Run):
        setattr(run, field.name, [field.name])
    assert run.copy() == run


@given(histories())
def test_a_run_becomes_what_a_copy_of_it_was(records: list[Record]) -> None:
    """Taking records back leaves nothing of them: the run is as it was, and lives through them again."""
    run = Run(RUN_ID)
    for record in records:
        before = run.copy()
        after = apply(run, record).copy()
        run.become(before.copy())
        assert run == before
        assert apply(run, record) == after


def test_the_first_start_is_when_the_run_started() -> None:
    """Later attempts do not move the time at which the run began."""
    run = made()
    give(run, Begin(), now=11.0)
    give(run, Fail(FAILURE), Begin(), now=20.0)
    assert run.started_at == 11.0


def test_completing_clears_the_failure_of_an_earlier_attempt() -> None:
    """A run that succeeded in the end does not look as if it had failed."""
    run = made(Status.RUNNING)
    give(run, Fail(FAILURE), Begin(), Complete(b"1"))
    assert (run.status, run.failure) == (Status.COMPLETED, None)


def test_a_run_without_input_has_null() -> None:
    """An empty payload is read as no input, which JSON calls null."""
    assert fold([bare(Kind.CREATED)]).input == b"null"


def test_a_signal_that_was_taken_for_nothing_is_unread_again() -> None:
    """A call that is given up after it took a signal puts it back in its place; one that was never there is no harm."""
    run = made(Status.RUNNING)
    give(run, Send("a", b"1", 9), Send("a", b"2", 9))
    first, second = (seq for seq, _ in run.signals)
    apply(run, bare(Kind.STEP_COMPLETED, run.seq + 1, {"signal": first}))
    assert run.signals == [(second, "a")]
    apply(run, bare(Kind.STEP_COMPLETED, run.seq + 1, {"signal": first}))
    assert run.signals == [(second, "a")]
    apply(run, bare(Kind.STEP_CANCELLED, run.seq + 1, {"unread": first, "what": "a"}))
    assert run.signals == [(first, "a"), (second, "a")]


def test_a_run_knows_the_trace_of_its_start_and_of_its_last_beginning() -> None:
    """Whoever goes on with it, in whatever process, can say what it belongs to and what it follows."""
    run = lived(trace="start")
    assert (run.trace, run.attempt_trace) == ("start", "")
    commands: list[Command] = [
        Begin(),
        Recover("crash", 9),
        Sleep(),
        Wake(),
        Complete(b"1", 0, "function"),
        Coordinate(),
    ]
    for command in commands:
        for record in decide(run, command, 10.0, 100):
            if record.kind in (Kind.STARTED, Kind.RECOVERED, Kind.AWAKE, Kind.COORDINATING):
                record.head["trace"] = f"{record.kind.name} {record.seq}"
            apply(run, record)
            if record.head.get("trace"):
                assert run.attempt_trace == record.head["trace"]
    assert run.trace == "start" and run.attempt_trace.startswith("COORDINATING")
    give(run, Recover("crash", 9))
    assert run.attempt_trace.startswith("COORDINATING"), "who does not trace leaves the trail as it is"
