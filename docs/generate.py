"""Writes the pages of this folder that are made from code: `python -m docs.generate`.

Law: what `docs/state-machine.md` says is not written by hand. The diagram is `TRANSITIONS`; which command leads where is found by giving
every command to a run in every status.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from durable.core import decide as rules
from durable.core.commands import (
    Begin,
    Cancel,
    Command,
    Complete,
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
from durable.core.records import CALLS, Failure, Kind, Record
from durable.core.retry import Retry
from durable.core.run import Run, apply
from durable.core.status import ENDED, TRANSITIONS, Status, Verb, after
from durable.errors import TransitionError

PAGE = Path(__file__).with_name("state-machine.md")
RUN_ID = "0" * 32
BOUND = 10
FAILURE = Failure("builtins.ValueError", "no")

#: Every command but `Create`, in each form that makes a difference.
COMMANDS: tuple[tuple[str, Command], ...] = (
    ("`Begin`", Begin()),
    *(("`Note`", Note(kind, ("step", b"", 0), b"null")) for kind in sorted(CALLS)),
    ("`Receive`", Receive("signal", ("wait", b"", 0), {2: b"null"})),
    ("`Complete`", Complete(b"null")),
    ("`Fail`, attempts left", Fail(FAILURE)),
    ("`Fail`, no attempt left or not retryable", Fail(FAILURE, retryable=False)),
    ("`Fail` by time-out, no attempt left", Fail(FAILURE, retryable=False, timed_out=True)),
    ("`Recover`, within `recoveries_max`", Recover("crash", BOUND)),
    ("`Recover`, past `recoveries_max`", Recover("crash", 0)),
    ("`Release`", Release()),
    ("`Suspend`", Suspend()),
    ("`Resume`", Resume()),
    ("`Cancel`", Cancel()),
    ("`Revive`", Revive()),
    ("`Send`", Send("signal", b"null", BOUND)),
    ("`Discard`", Discard()),
)


class Effect(NamedTuple):
    """What a command did to a run: the verb that the table was asked for, if any, and what came of it."""

    command: str
    before: Status
    verb: Verb | None
    kinds: tuple[Kind, ...]
    status: Status


def subject(status: Status) -> Run:
    """A run in this status with an attempt left, an unread signal, and, where it failed, a dead letter."""
    run = Run(RUN_ID, seq=2, task="task", status=status, retry=Retry(3), signals=[(2, "signal")])
    if status in ENDED:
        run.ended_at = 1.0
        run.dead = status not in (Status.COMPLETED, Status.CANCELLED)
    return run


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
            for status in statuses:
                run = subject(status)
                asked.clear()
                try:
                    records: list[Record] = rules.decide(run, command, 1.0, records_max=100)
                except TransitionError:
                    continue
                for record in records:
                    apply(run, record)
                kinds = tuple(record.kind for record in records)
                yield Effect(title, status, asked[-1] if asked else None, kinds, run.status)
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


def diagram() -> Iterator[str]:
    """The table of transitions as a mermaid diagram."""
    yield "stateDiagram-v2"
    yield "    [*] --> ready: create"
    for (status, verb), following in TRANSITIONS.items():
        yield f"    {status} --> {following}: {verb}"
    for status in reachable():
        if status in ENDED:
            yield f"    {status} --> [*]"


def table(*columns: str, rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def verbs() -> Iterator[tuple[str, ...]]:
    """One row for each transition: which command asks for it, and which record says that it happened."""
    found = list(effects())
    for (status, verb), following in TRANSITIONS.items():
        mine = [effect for effect in found if (effect.before, effect.verb, effect.status) == (status, verb, following)]
        titles = "<br>".join(effect.command for effect in mine)
        kinds = ", ".join(dict.fromkeys(f"`{kind.name}`" for effect in mine for kind in effect.kinds))
        yield f"`{status}`", verb, f"`{following}`", titles, kinds


def others() -> Iterator[tuple[str, ...]]:
    """One row for each command that leaves the status as it is: where it is taken, and what it records."""
    taken: dict[str, list[Effect]] = {}
    for effect in effects():
        if effect.verb is None and effect.before is effect.status:
            taken.setdefault(effect.command, []).append(effect)
    for title, mine in taken.items():
        recorded = [effect for effect in mine if effect.kinds]
        silent = [effect for effect in mine if not effect.kinds]
        kinds = ", ".join(dict.fromkeys(f"`{kind.name}`" for effect in recorded for kind in effect.kinds)) or "-"
        yield title, _names(recorded), kinds, _names(silent)


def _names(found: list[Effect]) -> str:
    return ", ".join(dict.fromkeys(f"`{effect.before}`" for effect in found)) or "-"


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
        *diagram(),
        "```",
        "",
        "## Transitions",
        "",
        *table("from", "verb", "to", "asked for by", "recorded as", rows=verbs()),
        "",
        "`Create` makes a run that is `ready`, recorded as `CREATED`; for a run that exists it is refused.",
        "Only `revive` leads out of an end.",
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
