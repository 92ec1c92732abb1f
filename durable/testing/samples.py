"""What the conformance suites are made with: records, runs in every state of waiting, and the store under test.

Law: a sample is a list of records as the engine writes them; what it means is what `fold` makes of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from durable.core.ids import FAMILY_DIGITS
from durable.core.records import Kind, Record
from durable.core.run import Run
from durable.store.base import Store

NOW = 1_700_000_000.25


def run_id(number: int) -> str:
    """The id of a run of the suite; ids are in the order of their numbers, and eight in a row are of one family."""
    return f"{number:028x}{number // 8 % 0x10000:04x}"


def number_of(run_id: str) -> int:
    """The counterpart of `run_id`."""
    return int(run_id[:-FAMILY_DIGITS], 16)


def created(number: int, *, task: str = "task", payload: bytes = b"null", **head: Any) -> Record:
    """The first record of a run."""
    return Record(run_id(number), 1, Kind.CREATED, NOW, 1, task, head=head, payload=payload)


def record(number: int, seq: int, kind: Kind, *, name: str = "", payload: bytes | None = None, **head: Any) -> Record:
    """A later record of a run."""
    ident = b"0123456789abcdef" if kind in (Kind.STEP_COMPLETED, Kind.EVENT) else b""
    return Record(run_id(number), seq, kind, NOW + seq, 1, name, ident, 0, head, payload)


def failed(number: int, seq: int) -> Record:
    """The end of a run that failed."""
    return record(number, seq, Kind.FAILED, error_type="builtins.ValueError", message="no", traceback="")


def finished(number: int, **head: Any) -> list[Record]:
    """All records of a run that went well."""
    return [
        created(number, **head),
        record(number, 2, Kind.STARTED),
        record(number, 3, Kind.STEP_COMPLETED, name="step", payload=b'"\xc3\xa9"'),
        record(number, 4, Kind.COMPLETED, payload=b"42"),
    ]


def ids(runs: Sequence[Run]) -> list[int]:
    """The numbers of runs, in the order given."""
    return [number_of(run.run_id) for run in runs]


def asleep(number: int, until: float | None = None) -> list[Record]:
    """All records of a run that sleeps until this time, or for a signal."""
    head: dict[str, Any] = {} if until is None else {"until": until}
    return [created(number), record(number, 2, Kind.STARTED), record(number, 3, Kind.ASLEEP, **head)]


def each_wait() -> list[list[Record]]:
    """One run for each thing that a run can wait for, numbered from 1: what is due, when, and what is not."""

    def begun(number: int, *kinds: tuple[Kind, dict[str, Any]]) -> list[Record]:
        rest = (record(number, seq, kind, **head) for seq, (kind, head) in enumerate(kinds, 3))
        return [created(number), record(number, 2, Kind.STARTED), *rest]

    def ended(number: int, child: str) -> tuple[Kind, dict[str, Any]]:
        return Kind.CHILD_ENDED, {"child": child, "status": "completed"}

    child = run_id(99)
    return [
        finished(1),
        [created(2)],
        [created(3, not_before=NOW + 100)],
        begun(4),
        asleep(5, NOW + 50),
        asleep(6),
        begun(7, (Kind.SUSPENDED, {"reason": "r"})),
        begun(8, (Kind.CHILDREN_STARTED, {"children": 2})),
        begun(9, (Kind.CHILDREN_STARTED, {"children": 1, "join": "function"}), ended(9, child)),
        begun(10, (Kind.CHILD_STARTED, {"child": child}), (Kind.CANCELLED, {})),
        begun(11, (Kind.CHILD_STARTED, {"child": child}), (Kind.CANCELLED, {}), (Kind.CLOSED, {})),
        [*asleep(12, NOW + 200), record(12, 4, Kind.SIGNAL, name="s", payload=b"1")],
        begun(
            13,
            (Kind.CHILDREN_STARTED, {"children": 0, "join": "task"}),
            (Kind.COORDINATING, {"coordinator": child, "children": 1}),
        ),
        [*asleep(14, NOW + 50), record(14, 4, Kind.AWAKE)],
        asleep(15, NOW + 50),
        asleep(16, int(NOW) + 70),
        begun(17, (Kind.RETRYING, {"not_before": NOW + 0.1, "error_type": "E", "message": "m"})),
        [*asleep(18, NOW + 300), record(18, 4, Kind.CANCELLED)],
    ]


class World:
    """The store under test, and how to have everything flushed."""

    def __init__(self, reopen: Callable[[Store], Awaitable[Store]], store: Store, settled: bool) -> None:
        self.reopen = reopen
        self.store = store
        self.settled = settled

    async def ready(self) -> Store:
        """The store as it is, or with all that was committed in its final place."""
        if self.settled:
            self.store = await self.reopen(self.store)
        return self.store
