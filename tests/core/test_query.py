"""`RunFilter`: which runs a query wants."""

from __future__ import annotations

import dataclasses

import pytest

from durable.core.query import RunFilter, by_death
from durable.core.run import Run
from durable.core.status import Status

RUN = Run("b" * 32, task="crawl", user="ann", key="k", parent_id="p", status=Status.FAILED, dead=True, ended_at=9.0)
ALL = RunFilter(
    status=frozenset({Status.FAILED, Status.READY}),
    task="crawl",
    user="ann",
    key="k",
    parent_id="p",
    dead=True,
    ended_by=9.0,
    after="a" * 32,
)


def test_a_filter_that_says_nothing_wants_everything() -> None:
    """None means any."""
    assert RunFilter().matches(RUN)
    assert RunFilter().matches(Run("0" * 32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", Status.TIMED_OUT),
        ("task", "other"),
        ("user", "bob"),
        ("user", None),
        ("key", "other"),
        ("key", None),
        ("parent_id", None),
        ("dead", False),
        ("ended_at", 9.5),
        ("ended_at", None),
        ("run_id", "a" * 32),
        ("run_id", "0" * 32),
    ],
)
def test_every_condition_has_to_hold(field: str, value: object) -> None:
    """A run that differs in one of the wanted things is not wanted; `after` leaves the run itself out."""
    assert ALL.matches(RUN)
    assert not ALL.matches(dataclasses.replace(RUN, **{field: value}))


@pytest.mark.parametrize("status", Status)
def test_open_runs_are_those_that_are_not_closed(status: Status) -> None:
    """A run that ended is open while children of it are, whichever way it ended."""
    assert RunFilter(open=True).matches(Run("r", status=status))
    assert not RunFilter(open=True).matches(Run("r", status=status, closed=True))


@pytest.mark.parametrize(
    ("due", "after", "by"),
    [(None, False, False), (0.0, False, True), (19.9, False, True), (20.0, False, True), (20.1, True, False)],
)
def test_runs_are_found_by_when_they_are_due(due: float | None, after: bool, by: bool) -> None:
    """What is due at the very time is due by it and not after it; what waits for no time is neither."""
    run = Run("r", asleep=True, wake_at=due)
    assert run.due == due
    assert RunFilter(due_after=20.0).matches(run) == after
    assert RunFilter(due_by=20.0).matches(run) == by


def test_due_runs_of_a_span_are_found() -> None:
    """Both bounds together want what lies between them; time zero is a bound like any other."""
    span = RunFilter(due_after=0.0, due_by=20.0)
    assert [span.matches(Run("r", not_before=at)) for at in (0.0, 0.1, 20.0, 20.1)] == [False, True, True, False]
    assert not RunFilter(due_by=0.0).matches(Run("r", not_before=1.0))


def test_an_empty_set_of_statuses_wants_nothing() -> None:
    """No status is not the same as any."""
    assert not RunFilter(status=frozenset()).matches(RUN)


def test_an_empty_text_is_a_wish() -> None:
    """The user with the empty name is not everybody."""
    assert not RunFilter(user="").matches(RUN)


def test_limit_is_for_the_store() -> None:
    """How many are wanted says nothing about one run."""
    assert RunFilter(limit=0).matches(RUN)


def test_dead_letters_stand_in_the_order_of_their_death() -> None:
    """Of two that died at the same moment, first the one that was created first."""
    runs = [Run("c", ended_at=2.0), Run("b", ended_at=1.0), Run("a", ended_at=2.0)]
    assert [run.run_id for run in sorted(runs, key=by_death)] == ["b", "a", "c"]
