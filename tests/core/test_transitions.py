"""The table of transitions, and that nothing else in the package knows better."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import durable
from durable.core.commands import ChildEnded
from durable.core.decide import decide
from durable.core.records import ENDS, Kind
from durable.core.run import JOINING
from durable.core.status import ENDED, TRANSITIONS, Status, Verb, after
from durable.errors import TransitionError
from tests.core.machine import PATHS, RUN_ID, WISHES, asked, give, made

EVENT_NAMES = {"name", "event_name"}
PACKAGE = Path(durable.__file__).parent

#: A late cancel, a second stop and the news of a child to a run that does not wait for one are taken and do nothing: they lost a race.
NOTHING_TO_DO = (
    {(status, Verb.CANCEL) for status in ENDED}
    | {(Status.SUSPENDED, Verb.SUSPEND)}
    | {(status, Verb.FAIL_BY_CHILDREN) for status in set(Status) - JOINING}
)
#: What `Fail` with attempts left does where no retry is possible.
FALLS_BACK = {(Status.READY, Verb.RETRY): Status.FAILED}
#: What a refusal names, by the names that callers know: nothing that only the engine asks for, and nothing where it is over.
CAN_BE_ASKED = {
    Status.READY: "cancel, stop",
    Status.RUNNING: "cancel, stop",
    Status.SUSPENDED: "cancel, resume",
    Status.WAITING_FOR_CHILDREN: "cancel",
    Status.WAITING_FOR_ON_CHILDREN_COMPLETE: "cancel",  # a stop is for those whose coordinator is a function, at work
    Status.FAILED: "retry",
    Status.TIMED_OUT: "retry",
    Status.CHILDREN_FAILED: "retry",
    Status.ON_CHILDREN_COMPLETE_FAILED: "retry",
    Status.COMPLETED: "",
    Status.CANCELLED: "",  # its parent, tried again, brings it back; nobody else does
}

REFUSED = sorted(
    (status, verb)
    for status in Status
    for verb in Verb
    if (status, verb) not in TRANSITIONS and (status, verb) not in NOTHING_TO_DO and (status, verb) not in FALLS_BACK
)


def name(pair: object) -> str:
    return str(pair)


def test_every_verb_has_a_command() -> None:
    """The tests below are made from the table, and so need a command for each verb and a path to each status in it."""
    assert set(WISHES) == set(Verb)
    assert set(PATHS) == {status for status, _ in TRANSITIONS} | set(TRANSITIONS.values())


@pytest.mark.parametrize(("status", "verb"), sorted(TRANSITIONS), ids=name)
def test_transition_is_taken(status: Status, verb: Verb) -> None:
    """Each transition of the table is what its command does, by one record, after one that counts the child where a child's end does it."""
    run, command = asked(status, verb)
    before = run.seq
    records = give(run, command)
    assert run.status is TRANSITIONS[status, verb]
    assert [(record.seq, record.run_id) for record in records] == [
        (before + number, RUN_ID) for number in range(1, len(records) + 1)
    ]
    assert [record.kind for record in records[:-1]] == [Kind.CHILD_ENDED] * isinstance(command, ChildEnded)


@pytest.mark.parametrize(("status", "verb"), REFUSED, ids=name)
def test_what_is_not_in_the_table_is_refused(status: Status, verb: Verb) -> None:
    """A command that the run's status does not allow raises, says which run and why, and leaves the run as it was."""
    run, command = asked(status, verb)
    before = run.copy()
    with pytest.raises(TransitionError, match=f"{RUN_ID} is {status}"):
        give(run, command)
    assert run == before


@pytest.mark.parametrize(("status", "verb"), sorted(NOTHING_TO_DO), ids=name)
def test_what_came_too_late_does_nothing(status: Status, verb: Verb) -> None:
    """Whoever cancels a run that ended, stops one that is stopped, or tells it of a child, lost a race and is not punished for it."""
    run, command = asked(status, verb)
    before = run.copy()
    assert give(run, command) == []
    assert run == before


@pytest.mark.parametrize(("status", "verb"), sorted(FALLS_BACK), ids=name)
def test_failing_where_no_retry_is_possible_ends_the_run(status: Status, verb: Verb) -> None:
    """A run that fails before it began has an input that no attempt can read: it ends, whatever its policy allows."""
    run = made(status)
    give(run, WISHES[verb])
    assert run.status is FALLS_BACK[status, verb]


def test_only_a_retry_leads_out_of_an_end() -> None:
    """A run that ended stays ended, but for one that somebody tries again, by itself or with its children; success is for ever."""
    assert {verb for status, verb in TRANSITIONS if status in ENDED} == {Verb.REVIVE, Verb.REJOIN}
    assert {status for status in ENDED if not {s for s, _ in TRANSITIONS} & {status}} == {Status.COMPLETED}


def test_every_status_in_use_that_is_not_an_end_can_be_cancelled() -> None:
    """Whoever wants a run to end can have it, wherever the run stands."""
    in_use = {status for status, _ in TRANSITIONS} | set(TRANSITIONS.values())
    assert {status for status in in_use - ENDED if (status, Verb.CANCEL) not in TRANSITIONS} == set()


def test_every_status_in_use_is_an_end_or_leads_to_one() -> None:
    """No run can get stuck: from wherever it stands an end can be reached."""
    ending = set(ENDED)
    while more := {status for (status, _), following in TRANSITIONS.items() if following in ending} - ending:
        ending |= more
    assert {status for status, _ in TRANSITIONS} <= ending


@pytest.mark.parametrize("status", Status)
def test_refusal_says_what_is_possible(status: Status) -> None:
    """The message of a refusal names all that can be asked of the run instead, and no more, or that it is over."""
    asked_for = CAN_BE_ASKED[status]
    expected = f"what can be asked of it there: {asked_for}" if asked_for else "that is its end"
    for verb in Verb:
        if (status, verb) not in TRANSITIONS:
            with pytest.raises(
                TransitionError, match=f"^{re.escape(f'run r1 is {status}: it cannot {verb}; {expected}')}$"
            ):
                after(status, verb, "r1")


def test_statuses_are_the_public_names() -> None:
    """`Status` has exactly the names that the contract gives, and compares equal to them."""
    assert [str(status) for status in Status] == [
        "ready",
        "running",
        "suspended",
        "waiting_for_children",
        "waiting_for_on_children_complete",
        "completed",
        "failed",
        "timed_out",
        "children_failed",
        "on_children_complete_failed",
        "cancelled",
    ]


def test_the_kinds_that_end_a_run_are_the_ends_of_the_table() -> None:
    """`ENDS` lists just the kinds whose record brings a run to an end."""
    seen: dict[bool, set[object]] = {True: set(), False: set()}
    for status, verb in TRANSITIONS:
        run, command = asked(status, verb)
        seen[TRANSITIONS[status, verb] in ENDED].add(give(run, command)[-1].kind)
    assert seen[True] == ENDS
    assert not seen[False] & ENDS


def literals(node: ast.AST) -> list[tuple[int, str]]:
    """The names of statuses that stand there as text, in a tuple or list too."""
    values = {str(status) for status in Status}
    elements = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return [
        (element.lineno, element.value)
        for element in elements
        if isinstance(element, ast.Constant) and isinstance(element.value, str) and element.value in values
    ]


def is_event_name(node: ast.AST) -> bool:
    """Events have names too, some of them spelt like a status: `event.name == "completed"`."""
    return (isinstance(node, ast.Attribute) and node.attr in EVENT_NAMES) or (
        isinstance(node, ast.Name) and node.id in EVENT_NAMES
    )


def compared(tree: ast.Module) -> list[tuple[int, str]]:
    """The statuses that are compared as literals: `x == "running"`, `x in ("running", ...)`, `case "running":`."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others) if not any(map(is_event_name, (left, *others))):
                for part in (left, *others):
                    found += literals(part)
            case ast.Match(subject=subject, cases=cases) if not is_event_name(subject):
                for pattern in (inner for case in cases for inner in ast.walk(case.pattern)):
                    if isinstance(pattern, ast.MatchValue):
                        found += literals(pattern.value)
    return found


@pytest.mark.parametrize(
    "source",
    [
        'run.status == "running"',
        'status in ("failed", "x")',
        'match s:\n    case "ready":\n        pass',
        '"cancelled" != s',
    ],
)
def test_comparisons_with_literals_are_found(source: str) -> None:
    """The search that the next test relies on sees each form of comparing."""
    assert len(compared(ast.parse(source))) == 1


def test_no_module_compares_statuses_with_string_literals() -> None:
    """What a status is called stands in one module; everywhere else it is `Status.X`, which a checker can follow."""
    faults = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {value!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, value in compared(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(("status", "verb"), sorted(TRANSITIONS), ids=name)
def test_a_wish_is_no_fact(status: Status, verb: Verb) -> None:
    """Deciding changes nothing: only applying the record does."""
    run, command = asked(status, verb)
    before = run.copy()
    assert decide(run, command, 10.0, 1_000)
    assert run == before
