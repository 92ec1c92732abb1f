"""`prunable`: which runs may be forgotten."""

from __future__ import annotations

import dataclasses

import pytest

from durable.core.families import prunable
from durable.core.run import Run
from durable.core.status import Status


def run(name: str, ended_at: float | None = 1.0, **fields: object) -> Run:
    """A run that has ended, and is closed, unless the fields say otherwise."""
    return dataclasses.replace(
        Run(name, status=Status.COMPLETED, ended_at=ended_at, closed=ended_at is not None), **fields
    )


def pruned(*runs: Run, before: float = 10.0) -> list[list[str]]:
    """The families that may go."""
    return list(prunable({each.run_id: each for each in runs}, before))


def test_those_go_first_that_ended_first() -> None:
    """In the order of the ends of the roots; of those that ended at the same time, in the order of ids."""
    assert pruned(run("a", 3.0), run("c", 2.0), run("b", 2.0), run("d", 10.0)) == [["b"], ["c"], ["a"]]


@pytest.mark.parametrize(
    "member",
    [
        run("c", None, parent_id="b"),
        run("c", 1.0, parent_id="b", closed=False),
        run("c", 1.0, parent_id="b", dead=True),
        run("c", 10.0, parent_id="b"),
    ],
    ids=["not ended", "not closed", "dead letter", "too young"],
)
def test_a_family_goes_whole_or_not_at_all(member: Run) -> None:
    """One grandchild keeps them all."""
    assert pruned(run("a"), run("b", parent_id="a")) == [["a", "b"]]
    assert pruned(run("a"), run("b", parent_id="a"), member) == []


def test_a_root_that_is_not_over_keeps_its_family() -> None:
    """However long ago its children ended."""
    assert pruned(run("a", None), run("b", parent_id="a")) == []


def test_a_run_whose_parent_is_gone_is_a_root() -> None:
    """After those that never had one."""
    assert pruned(run("a", 1.0, parent_id="gone"), run("b", 5.0), run("c", parent_id="a")) == [["b"], ["a", "c"]]


def test_who_watches_a_run_keeps_it() -> None:
    """As long as it is there and not closed, and no relative."""
    watched = run("a", watchers=["w"])
    assert pruned(watched, run("w", None)) == []
    assert pruned(watched) == [["a"]]
    assert pruned(watched, run("w", 20.0)) == [["a"]]
    assert pruned(run("a", watchers=["b"]), run("b", parent_id="a")) == [["a", "b"]]
