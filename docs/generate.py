"""Writes the pages of this folder that are made from code: `python -m docs.generate`.

Law: what `docs/state-machine.md` says is not written by hand. The diagrams are `TRANSITIONS`; which command leads where is found by giving
every command to a run in every status, in each shape that makes a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from durable.core import decide as rules
from durable.core.commands import (
    Begin,
    Cancel,
    ChildEnded,
    Close,
    Command,
    Complete,
    Coordinate,
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
from durable.core.records import CALLS, Failure, Kind, Record
from durable.core.retry import Retry
from durable.core.run import JOINING, Run, apply
from durable.core.status import ENDED, TRANSITIONS, Status, Verb, after
from durable.errors import TransitionError

PAGE = Path(__file__).with_name("state-machine.md")
RUN_ID = "0" * 32
BOUND = 10
#: Between the verbs of one arrow.
SEPARATOR = " / "
FAILURE = Failure("builtins.ValueError", "no")

#: Every command but `Create`, in each form that makes a difference.
COMMANDS: tuple[tuple[str, Command], ...] = (
    ("`Begin`", Begin()),
    *(("`Note`", Note(kind, ("step", b"", 0), b"null")) for kind in sorted(CALLS)),
    ("`Receive`", Receive("signal", ("wait", b"", 0), {2: b"null"})),
    ("`Complete`", Complete(b"null")),
    ("`Complete` with children", Complete(b"null", 2)),
    ("`Complete` with a coordinator", Complete(b"null", 0, "function")),
    ("`ChildEnded`, completed", ChildEnded("1" * 32, "child", Status.COMPLETED, b"null")),
    ("`ChildEnded`, not completed", ChildEnded("1" * 32, "child", Status.FAILED, failure=FAILURE.head())),
    ("`Coordinate`", Coordinate()),
    ("`Coordinate` by a task", Coordinate("2" * 32)),
    ("`Fail`, attempts left", Fail(FAILURE)),
    ("`Fail`, no attempt left or not retryable", Fail(FAILURE, retryable=False)),
    ("`Fail` by time-out, no attempt left", Fail(FAILURE, retryable=False, timed_out=True)),
    ("`Recover`, within `recoveries_max`", Recover("crash", BOUND)),
    ("`Recover`, past `recoveries_max`", Recover("crash", 0)),
    ("`Sleep`", Sleep()),
    ("`Wake`", Wake()),
    ("`Watch`", Watch("3" * 32)),
    ("`Release`", Release()),
    ("`Suspend`", Suspend()),
    ("`Resume`", Resume()),
    ("`Cancel`", Cancel()),
    ("`Revive`", Revive(children=1)),
    ("`Revive` by the parent", Revive(children=1, by_parent=True)),
    ("`Send`", Send("signal", b"null", BOUND)),
    ("`Discard`", Discard()),
    ("`Close`", Close()),
)


class Effect(NamedTuple):
    """What a command did to a run: the verb that the table was asked for, if any, and what came of it."""

    command: str
    before: Status
    shape: str
    verb: Verb | None
    kinds: tuple[Kind, ...]
    status: Status


#: The shapes of a run whose status alone does not tell what is possible: a name, and the fields that make the difference.
SHAPES: dict[Status, tuple[tuple[str, dict[str, Any]], ...]] = {
    Status.RUNNING: (("awake", {}), ("asleep", {"asleep": True})),
    Status.SUSPENDED: (("in its body", {}), ("in its coordinator", {"returned_seq": 1})),
    Status.WAITING_FOR_CHILDREN: (
        ("more left, or a coordinator", {"unfinished": 2, "join": "function"}),
        ("the last, no coordinator", {"unfinished": 1}),
        ("lenient, more left or a coordinator", {"unfinished": 2, "join": "function", "lenient": True}),
        ("lenient, the last, no coordinator", {"unfinished": 1, "lenient": True}),
        ("none left", {"join": "function"}),
    ),
    Status.WAITING_FOR_ON_CHILDREN_COMPLETE: (
        ("awake", {"join": "function"}),
        ("asleep", {"join": "function", "asleep": True}),
        ("more left", {"join": "function", "unfinished": 2}),
        ("lenient, more left", {"join": "function", "unfinished": 2, "lenient": True}),
        ("the last, or a task", {"join": "task", "unfinished": 1}),
        ("lenient, the last", {"join": "function", "unfinished": 1, "lenient": True}),
    ),
    **{status: (("closed", {"closed": True}), ("open", {})) for status in ENDED - {Status.CANCELLED}},
    Status.CANCELLED: (
        ("closed", {"closed": True}),
        ("open", {}),
        ("closed, had returned children", {"closed": True, "returned_seq": 1}),
    ),
}
#: Statuses that only a run that has returned something can be in.
RETURNED = JOINING | {Status.CHILDREN_FAILED, Status.ON_CHILDREN_COMPLETE_FAILED}


def subjects(status: Status) -> Iterator[tuple[str, Run]]:
    """Runs in this status, by shape, with an attempt left, an unread signal, and, where they failed, a dead letter."""
    for shape, fields in SHAPES.get(status, (("", {}),)):
        run = Run(RUN_ID, seq=2, task="task", status=status, retry=Retry(3), signals=[(2, "signal")])
        if status in RETURNED:
            run.returned_seq = 1
        if status in ENDED:
            run.ended_at = 1.0
            run.dead = status not in (Status.COMPLETED, Status.CANCELLED)
        for name, value in fields.items():
            setattr(run, name, value)
        yield shape, run


def effects() -> Iterator[Effect]:
    """Give every command to a run in every status, and yield what was not refused."""
    asked: list[Verb] = []

    def spy(status: Status, verb: Verb, run_id: str) -> Status:
        asked.append(verb)
        return after(status, verb, run_id)

    statuses = reachable()
    rules.after = spy
    try:
        for title, command in COMMANDS:
            for shape, run in chain.from_iterable(map(subjects, statuses)):
                status = run.status
                asked.clear()
                try:
                    records: list[Record] = rules.decide(run, command, 1.0, records_max=100)
                except TransitionError:
                    continue
                for record in records:
                    apply(run, record)
                kinds = tuple(record.kind for record in records)
                yield Effect(title, status, shape, asked[-1] if asked else None, kinds, run.status)
    finally:
        rules.after = after


def reachable() -> tuple[Status, ...]:
    """The statuses that a new run can come to, in the order of their definition."""
    found = {Status.READY}
    while True:
        more = {following for (status, _), following in TRANSITIONS.items() if status in found} | found
        if more == found:
            return tuple(status for status in Status if status in found)
        found = more


def diagram(family: bool) -> Iterator[str]:
    """The table of transitions as a mermaid diagram: what any run can do, or what comes on top of it where a run returns children.

    Transitions between the same two statuses share an arrow.
    """
    arrows: dict[tuple[Status, Status], list[Verb]] = {}
    for (status, verb), following in TRANSITIONS.items():
        if bool({status, following} & RETURNED) == family:
            arrows.setdefault((status, following), []).append(verb)
    yield "stateDiagram-v2"
    if not family:
        yield "    [*] --> ready: create"
    for (status, following), verbs in arrows.items():
        yield f"    {status} --> {following}: {SEPARATOR.join(verbs)}"
    for status in Status:
        if status in ENDED and any(status in arrow for arrow in arrows):
            yield f"    {status} --> [*]"


def table(*columns: str, rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def transitions() -> Iterator[tuple[str, ...]]:
    """One row for each transition: which command asks for it, and which record says that it happened."""
    found = [effect for effect in effects() if effect.kinds]
    for (status, verb), following in TRANSITIONS.items():
        mine = [effect for effect in found if (effect.before, effect.verb, effect.status) == (status, verb, following)]
        titles: dict[str, list[Effect]] = {}
        for effect in mine:
            titles.setdefault(effect.command, []).append(effect)
        kinds = dict.fromkeys(" + ".join(f"`{kind.name}`" for kind in effect.kinds) for effect in mine)
        yield (
            f"`{status}`",
            verb,
            f"`{following}`",
            "<br>".join(f"{title}{_shapes(status, taken)}" for title, taken in titles.items()),
            ", ".join(kinds),
        )


def others() -> Iterator[tuple[str, ...]]:
    """One row for each command that leaves the status as it is: where it is taken, and what it records."""
    taken: dict[str, list[Effect]] = {}
    for effect in effects():
        if effect.before is effect.status and (effect.verb is None or not effect.kinds):
            taken.setdefault(effect.command, []).append(effect)
    for title, mine in taken.items():
        recorded = [effect for effect in mine if effect.kinds]
        silent = [effect for effect in mine if not effect.kinds]
        kinds = ", ".join(dict.fromkeys(f"`{kind.name}`" for effect in recorded for kind in effect.kinds)) or "-"
        yield title, _names(recorded), kinds, _names(silent)


def _names(found: list[Effect]) -> str:
    statuses = dict.fromkeys(effect.before for effect in found)
    named = (
        f"`{status}`{_shapes(status, [effect for effect in found if effect.before is status])}" for status in statuses
    )
    return "<br>".join(named) or "-"


def _shapes(status: Status, found: list[Effect]) -> str:
    """The shapes of the runs, in brackets, unless they are all that there are in this status."""
    shapes = list(dict.fromkeys(effect.shape for effect in found))
    return "" if len(shapes) == len(list(subjects(status))) else f" ({'; '.join(shapes)})"


def state_machine() -> str:
    """The text of `docs/state-machine.md`."""
    absent = [f"`{status}`" for status in Status if status not in reachable()]
    lines = [
        "# The state machine of a run",
        "",
        "<!-- Made by `python -m docs.generate` from durable/core: change the code, then make this page again. -->",
        "",
        "`TRANSITIONS` in `durable/core/status.py` is the one table of what may follow what. `decide` asks it before it records a change",
        "of status, and raises `TransitionError` for whatever is not in it. A refused command changes nothing.",
        "",
        "```mermaid",
        *diagram(family=False),
        "```",
        "",
        "A run whose body returns children, or that has a coordinator, has these states too:",
        "",
        "```mermaid",
        *diagram(family=True),
        "```",
        "",
        "A run that has ended is *closed* when no child that belongs to it is left: at once, or by `Close`.",
        "",
        "## Transitions",
        "",
        "In brackets: which runs of that status, where it is not all of them. *Awake* means that a body, or a coordinator that is a",
        "function, is at work. *Left* are the returned children that have not ended, after which the run ends, or its coordinator",
        "begins; a *lenient* run leaves their failures to its coordinator; *a task* is a coordinator that is a run of its own.",
        "",
        *table("from", "verb", "to", "asked for by", "recorded as", rows=transitions()),
        "",
        "`Create` makes a run that is `ready`, recorded as `CREATED`; for a run that exists it is refused.",
        "Only a retry leads out of an end: back to its turn for a run that has returned nothing yet, and to waiting for its children, or",
        "its coordinator, for one that has. Where all its children had completed and nothing follows them, it completes at once. A run",
        "that belongs to another is retried by its parent only, and with it.",
        "A coordinator that failed with attempts left, was released, or was stopped and resumed is asleep until its turn, and goes on by",
        "`Wake`. A run that only waits, for its children or for a coordinator that is a run of its own, refuses a stop.",
        "",
        "## Commands that leave the status as it is",
        "",
        "Everywhere else these are refused with `TransitionError`, and so is `Discard` for a dead letter that was discarded before.",
        "*Nothing to do in* these statuses means that the command is taken and adds no record.",
        "",
        *table("command", "in", "recorded as", "nothing to do in", rows=others()),
    ]
    if absent:
        lines += ["", f"Statuses that no transition leads to yet: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(state_machine(), encoding="utf-8")
