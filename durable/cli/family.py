"""The family of a run: the runs that it returned, awaits or started, and its coordinator.

Law: what it says of a relative is what that run's own records say; the first ones are shown, and all are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from durable.cli.target import children_of
from durable.cli.terminal import clipped, escaped, print_table, readable, span, value_of
from durable.core.records import Kind, Record
from durable.core.run import Run
from durable.core.status import ENDED, Status
from durable.store.base import Store

CHILDREN_SHOWN = 10
DETAIL_CHARACTERS_MAX = 60

_IN_WORDS = {
    "coordinator": "whose coordinator it is",
    "returned": "which returned it",
    "awaited": "which awaits it",
    "started": "which started it",
}
#: The tie to a run that is no child of the parent's own: the parent returned a child whose key named it.
BY_KEY = "by key"


def tie(parent: Run, child: Run) -> str:
    """What a child is to its parent: `coordinator`, `returned`, `awaited` or, where it lives on its own, `started`."""
    if parent.coordinator_id == child.run_id:
        return "coordinator"
    return "returned" if child.joined else "awaited" if child.attached else "started"


def took(run: Run) -> str:
    """How long a run took, from when it began."""
    return "-" if run.started_at is None or run.ended_at is None else span(run.ended_at - run.started_at)


def outcome(run: Run) -> str:
    """What a run came to, in some words: its result, its error, or its reason."""
    failure = run.failure or {}
    if failure:
        text = escaped(f"{failure.get('error_type')}: {failure.get('message')}")
    elif run.status is Status.COMPLETED and run.result is not None:
        text = f"-> {readable(value_of(run.result))}"
    else:
        text = escaped(run.reason or "")
    return clipped(text, DETAIL_CHARACTERS_MAX)


@dataclass(slots=True)
class Relative:
    """A child in a few words; see `tie` and `outcome`."""

    run_id: str
    task: str
    status: Status
    tie: str
    took: str
    outcome: str


@dataclass(slots=True)
class Family:
    """The relatives of a run, in the order of their creation."""

    run: Run
    parent: Run | None = None
    children: list[Relative] = field(default_factory=list)

    @classmethod
    async def of(cls, store: Store, run: Run, records: Iterable[Record]) -> Family:
        """Read them; `records` are all of the run."""
        family = cls(run, None if run.parent_id is None else await store.find(run.parent_id))
        async for child in children_of(store, run.run_id):
            family._add(child, tie(run, child))
        known = {child.run_id for child in family.children}
        for record in records:
            if record.kind is Kind.CHILDREN_STARTED:
                for run_id in dict.fromkeys(_children_in(value_of(record.payload))):
                    other = None if run_id in known else await store.find(run_id)
                    if other is not None:
                        family._add(other, BY_KEY)
                        known.add(run_id)
        return family

    def _add(self, child: Run, its_tie: str) -> None:
        shown = outcome(child) if len(self.children) < CHILDREN_SHOWN else ""
        self.children.append(Relative(child.run_id, child.task, child.status, its_tie, took(child), shown))

    def header(self, *, coordinated: bool) -> Iterator[tuple[str, str]]:
        """Lines about it, by name.

        Arguments:
            coordinated: whether the coordinator has begun.
        """
        run, parent = self.run, self.parent
        if parent is not None:
            yield (
                "parent",
                f"{parent.run_id} of task {escaped(parent.task)!r}, {parent.status}, {_IN_WORDS[tie(parent, run)]}",
            )
        elif run.parent_id is not None:
            yield "parent", escaped(run.parent_id)
        if run.watchers:
            yield "child of", escaped(", ".join(run.watchers)) + ", by its key"
        counts = "; ".join(filter(None, map(self._counts, ("returned", BY_KEY, "awaited", "started"))))
        if counts:
            yield "children", counts
        if run.join:
            yield "coordinator", self._coordinator(coordinated)

    def _counts(self, wanted: str) -> str:
        statuses = Counter(child.status for child in self.children if child.tie == wanted)
        total, ended = statuses.total(), sum(count for status, count in statuses.items() if status in ENDED)
        if not total:
            return ""
        if len(statuses) == 1:
            return f"{total:,} {wanted}{', all' if total > 1 else ':'} {statuses.popitem()[0]}"
        how_many = "all ended" if ended == total else "none ended" if not ended else f"{ended:,} ended"
        by_status = ", ".join(f"{statuses[status]:,} {status}" for status in Status if status in statuses)
        return f"{total:,} {wanted}, {how_many}: {by_status}"

    def _coordinator(self, coordinated: bool) -> str:
        run = self.run
        its_run = next((child for child in self.children if child.tie == "coordinator"), None)
        if its_run is not None:
            return f"run {its_run.run_id} of task {escaped(its_run.task)!r}, {its_run.status}"
        what = "a task" if run.join == "task" else "a function"
        if not coordinated:
            return f"{what}, which {'did not begin' if run.ended else 'begins when the returned children have ended'}"
        if run.status is Status.WAITING_FOR_ON_CHILDREN_COMPLETE:
            if run.unfinished:
                return f"{what}, which returned children itself, and waits for them"
            return f"{what}, which {'waits' if run.asleep else 'is at work'}"
        if run.status is Status.COMPLETED:
            return f"{what}, which completed"
        return f"{what}, which {'failed' if run.status is Status.ON_CHILDREN_COMPLETE_FAILED else 'began'}"

    def print_children(self) -> None:
        """Print the first ones, and how to see the others."""
        if not self.children:
            return
        print("\nchildren")
        rows = [
            (child.run_id, escaped(child.task), child.tie, child.status.value, child.took, child.outcome)
            for child in self.children[:CHILDREN_SHOWN]
        ]
        print_table(("run", "task", "", "status", "took", ""), rows, indent="  ")
        more = len(self.children) - len(rows)
        if more:
            print(f"  and {more:,} more: durable runs --parent {self.run.run_id}")

    def json(self) -> list[dict[str, object]]:
        """All children, for programs."""
        return [
            {"run_id": child.run_id, "task": child.task, "status": child.status.value, "tie": child.tie}
            for child in self.children
        ]


def _children_in(tree: object) -> Iterator[str]:
    """The ids of runs for which children in a stored value stand, in its order."""
    trees = [tree]
    while trees:
        match trees.pop():
            case {"$": "child", "v": str(run_id)}:
                yield run_id
            case dict() as parts:
                trees.extend(reversed(parts.values()))
            case list() as items:
                trees.extend(reversed(items))
