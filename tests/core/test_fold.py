"""`apply` and `fold`: total, idempotent, one and the same everywhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.core.commands import Begin, Cancel, Command, Complete, Create, Discard, Fail, Note, Receive, Recover, Send
from durable.core.decide import decide
from durable.core.records import CALLS, ENDS, Kind, Record
from durable.core.retry import Retry
from durable.core.run import _FOLD, Run, apply, fold
from durable.core.status import ENDED, Status
from durable.core.wire import decode_unit, encode_record, encode_unit
from durable.errors import LimitError, TransitionError
from tests.core.machine import FAILURE, RUN_ID, WISHES, give, made

CREATE = Create("crawl", b"[1]", key="k", user="u")
COMMANDS: list[Command] = [
    *WISHES.values(),
    Recover("crash", 1),
    Cancel(),
    Discard(),
    Send("a", b"1", 3),
    Send("b", None, 3),
    *(Note(kind, ("s", b"x", 0), b"1") for kind in sorted(CALLS)),
    Fail(FAILURE, fraction=0.3),
]


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """What a run can live through: commands at random, those that it refuses left out."""
    run = Run(RUN_ID)
    policy = Retry(draw(st.integers(1, 4)), delay=draw(st.sampled_from([0, 1.5])))
    records = decide(run, dataclasses.replace(CREATE, retry=policy), 1.0, 100)
    apply(run, records[0])
    for time, index in enumerate(draw(st.lists(st.integers(0, len(COMMANDS)), max_size=40))):
        payloads: dict[int, bytes | None] = {seq: b"p" for seq, _ in run.signals}
        command = COMMANDS[index] if index < len(COMMANDS) else Receive("a", ("w", b"", 0), payloads)
        try:
            added = decide(run, command, 2.0 + time, 30)
        except (TransitionError, LimitError):
            continue
        for record in added:
            apply(run, record)
        records += added
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
    """Every run that ended has the time of its end, only a failed one is a dead letter, and nothing follows but revival."""
    run = fold(records)
    assert run.ended == (run.ended_at is not None) == (run.status in ENDED)
    assert not run.dead or run.status in (Status.FAILED, Status.TIMED_OUT)
    assert run.status is not Status.COMPLETED or run.result is not None
    over = False
    for record in records:
        assert not over or record.kind in (Kind.RESUMED, Kind.DISCARDED)
        over = record.kind in ENDS or (over and record.kind is Kind.DISCARDED)


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
