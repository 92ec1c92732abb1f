"""Which runs may be forgotten: whole families that are over.

Law: `prunable` is the meaning of `Store.prune`; a store's SQL must find the same families in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from durable.core.run import Run


@dataclass(slots=True)
class Family:
    """A run and all that came from it.

    Arguments:
        run_ids: of all of them, the root first.
        watchers: runs that have one of them for a child although it is not theirs: they may still read its outcome.
        over: whether all are closed, ended long enough ago and are no dead letters.
    """

    run_ids: list[str] = field(default_factory=list)
    watchers: list[str] = field(default_factory=list)
    over: bool = True


def is_over(run: Run, before: float) -> bool:
    """Whether nothing of the run itself stands against forgetting it."""
    return run.closed and not run.dead and run.ended_at is not None and run.ended_at < before


def families(members: Iterable[tuple[str, str, bool, Iterable[str]]]) -> dict[str, Family]:
    """Families by their roots, out of (root, run id, is it over, its watchers) of all their members."""
    found: dict[str, Family] = {}
    for root, run_id, over, watchers in members:
        family = found.setdefault(root, Family())
        family.run_ids.append(run_id)
        family.watchers.extend(watchers)
        family.over = family.over and over
    return found


def prunable(runs: Mapping[str, Run], before: float) -> Iterator[list[str]]:
    """The families that may be forgotten, of all runs there are: those first whose root ended first, and last those whose roots have
    lost their parents."""
    children: dict[str, list[str]] = {}
    roots: list[Run] = []
    for run in runs.values():
        if run.parent_id is not None and run.parent_id in runs:
            children.setdefault(run.parent_id, []).append(run.run_id)
        elif is_over(run, before):
            roots.append(run)
    roots.sort(key=lambda run: (run.parent_id is not None, run.ended_at, run.run_id))
    for root in roots:
        family = _family(root.run_id, runs, children, before)
        if family.over and not any(_waits(runs, watcher_id, family.run_ids) for watcher_id in family.watchers):
            yield family.run_ids


def _family(root: str, runs: Mapping[str, Run], children: Mapping[str, list[str]], before: float) -> Family:
    run_ids = [root]
    for run_id in run_ids:
        run_ids.extend(children.get(run_id, ()))
    members = ((root, run_id, is_over(runs[run_id], before), runs[run_id].watchers) for run_id in run_ids)
    return families(members)[root]


def _waits(runs: Mapping[str, Run], watcher_id: str, family: Collection[str]) -> bool:
    return watcher_id not in family and watcher_id in runs and not runs[watcher_id].closed
