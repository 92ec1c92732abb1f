"""`durable why`: its words for each state, and that it says them of real runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from durable import Status
from durable.cli.family import Relative
from durable.cli.reasons import Facts, reasons
from durable.core.records import Kind, Record
from durable.core.run import Run
from durable.engine.kinship import WAITS_FOR_USER
from durable.store.shared import Placement
from tests.cli import working
from tests.cli.conftest import EVIL
from tests.cli.workers import Outcome, Place

NOW = 1_000_000.0
SOON = "1970-01-12 13:47:40 UTC, in 60.0 s"
NOBODY = Placement(None, "", 0, 0.0, 3, 0, 0)
HELD = Placement("abc", "host-1", 77, 9.5, 3, 0, 2)
FAILURE = {"error_type": "builtins.OSError", "message": "no route", "traceback": ""}


def record(kind: Kind, name: str = "", seq: int = 3, **head: Any) -> Record:
    return Record("r", seq, kind, NOW - 2, 1, name, b"", 0, head)


def relative(run_id: str, status: Status = Status.RUNNING, tie: str = "returned") -> Relative:
    return Relative(run_id, "page", status, tie, "-", "")


@dataclass
class Case:
    """What is known, and what has to be said of it: each line, or its beginning."""

    run: dict[str, Any]
    said: list[str]
    records: list[Record] = field(default_factory=lambda: [record(Kind.STARTED)])
    children: list[Relative] = field(default_factory=list)
    placement: Placement | None = HELD


CASES = {
    "held and at work": Case(
        {"status": Status.RUNNING},
        ["it is held by executor abc (process 77 on host-1); that one's lease lasts 9.5 s more, if it is not renewed",
         "it waits for nothing that is on record: a step, or code between steps, is at work; its last record, #3 started, is 2.0 s old"],
    ),
    "its executor is gone": Case(
        {"status": Status.RUNNING},
        ["it was held by executor abc (process 77 on host-1), whose lease passed 1.5 s ago: another may take it now",
         "it waits for a slot: 2 executors that are alive know its task 'crawl'", "it waits for nothing that is on record"],
        placement=HELD._replace(lease_seconds=-1.5),
    ),
    "in a folder": Case(
        {"status": Status.RUNNING}, ["the process that has this folder open executes it", "it waits for nothing"], placement=None
    ),
    "sleeps": Case(
        {"status": Status.RUNNING, "asleep": True, "wake_at": NOW + 60},
        [f"it sleeps until {SOON}", "it waits in the store only"],
        records=[record(Kind.TIMER_SET, "sleep", until=NOW + 60)], placement=NOBODY,
    ),
    "has slept": Case(
        {"status": Status.RUNNING, "asleep": True, "wake_at": NOW - 1},
        ["it sleeps until 1970-01-12 13:46:39 UTC, which has passed", "what it waited for has come", "it waits for a slot: 1 executor"],
        records=[record(Kind.TIMER_SET, "sleep", until=NOW - 1)], placement=NOBODY._replace(executors=1),
    ),
    "waits for a signal, within a time limit": Case(
        {"status": Status.RUNNING},
        ["it is held by", f"a time limit in it ends at {SOON}", f"it waits for the signal 'go', until {SOON} at most"],
        records=[record(Kind.TIMER_SET, "timeout", until=NOW + 60), record(Kind.WAITING, "wait_for", what="go", until=NOW + 60)],
    ),
    "a call with an outcome is waited for no more": Case(
        {"status": Status.RUNNING},
        ["it is held by", "it waits for nothing that is on record"],
        records=[record(Kind.WAITING, "wait_for", what="go"), record(Kind.STEP_COMPLETED, "wait_for", seq=4)],
    ),
    "a step that is tried again": Case(
        {"status": Status.RUNNING},
        ["it is held by", "fetch() failed 2 times, to be tried again at 1970-01-12 13:46:48 UTC, in 8.0 s: builtins.OSError: no route"],
        records=[record(Kind.STEP_RETRYING, "fetch", wait=10.0, **{"try": 2}, **FAILURE)],
    ),
    "awaits children": Case(
        {"status": Status.RUNNING, "awaiting": 1},
        ["it is held by", "it waits for 1 child:", "  run c1 of task 'page', running"],
        records=[record(Kind.CHILD_STARTED, "page", child="c1")], children=[relative("c1", tie="awaited"), relative("c2")],
    ),
    "ready, nobody knows its task": Case(
        {"status": Status.READY},
        ["it waits for an executor: none that is alive knows its task 'crawl' in version 'v2'; start one with `durable worker MODULE"],
        placement=NOBODY,
    ),
    "ready, for a slot": Case(
        {"status": Status.READY}, ["it waits for a slot: 3 executors that are alive know its task 'crawl' in version 'v2'"],
        placement=NOBODY._replace(executors=3),
    ),
    "ready, nobody has its version": Case(
        {"status": Status.READY},
        ["it waits for an executor: none that is alive knows its task 'crawl' in version 'v2'",
         "executors that are alive know that task in version 'v1', 'v3': start one with the code of its own"],
        placement=NOBODY._replace(versions=("v3", "v1")),
    ),
    "ready, in a folder": Case(
        {"status": Status.READY},
        ["it begins when the process that has this folder open",
         "it needs code of version 'v2' of its task 'crawl', or without a version: a process that has another one leaves it waiting"],
        placement=None,
    ),
    "delayed": Case({"status": Status.READY, "not_before": NOW + 60}, [f"it is not to begin before {SOON}"]),
    "between attempts": Case(
        {"status": Status.READY, "not_before": NOW + 60, "attempt": 2, "failure": FAILURE},
        ["attempt 2 of 1 is next; the last one failed: builtins.OSError: no route", f"it is not to begin before {SOON}"],
    ),
    "waits for children": Case(
        {"status": Status.WAITING_FOR_CHILDREN, "unfinished": 7},
        ["it waits for 7 children that it returned:", *[f"  run c{n} of task 'page', running" for n in range(5)], "  and 2 more",
         "`durable runs --parent r` lists all"],
        children=[relative("done", Status.COMPLETED), *[relative(f"c{n}") for n in range(7)], relative("apart", tie="started")],
    ),
    "its coordinator is to begin": Case(
        {"status": Status.WAITING_FOR_CHILDREN, "join": "function"},
        ["all children that it returned have ended: its coordinator is to begin", "it waits for a slot: 1 executor"],
        placement=NOBODY._replace(executors=1),
    ),
    "its coordinator is a run": Case(
        {"status": Status.WAITING_FOR_ON_CHILDREN_COMPLETE, "unfinished": 1, "coordinator_id": "co"},
        ["it waits for its coordinator, a run of its own:", "  run co of task 'page', running"],
        children=[relative("co", tie="coordinator"), relative("c1", Status.COMPLETED)],
    ),
    "its coordinator is a function": Case(
        {"status": Status.WAITING_FOR_ON_CHILDREN_COMPLETE, "returned_seq": 2},
        ["its coordinator, a function of this run, is at work", "it is held by", "it waits for the signal 'go'"],
        records=[record(Kind.WAITING, "wait_for", 1, what="before"), record(Kind.WAITING, "wait_for", what="go")],
    ),
    "stopped": Case(
        {"status": Status.SUSPENDED, "reason": "later"}, ["it is suspended: later", "`durable resume` lets it go on"]
    ),
    "waits for its user": Case(
        {"status": Status.SUSPENDED, "reason": WAITS_FOR_USER, "user": "ann", "key": "k"},
        ["it waits for its user: the process", "a fresh start of user 'ann' with its key 'k' brings that back"],
    ),
    "diverged": Case(
        {"status": Status.SUSPENDED, "reason": "NonDeterminismError",
         "failure": {"error_type": "durable.errors.NonDeterminismError", "message": "run r: ...\n  record | code\n  a() | b()\nThe run"}},
        ["it is suspended because its code does not do what its record says:", "  record | code", "  a() | b()", "mend the code"],
    ),
    "completed": Case(
        {"status": Status.COMPLETED, "started_at": NOW - 5, "ended_at": NOW, "closed": True},
        ["it completed at 1970-01-12 13:46:40 UTC, 5.0 s after it began"], placement=NOBODY,
    ),
    "failed": Case(
        {"status": Status.FAILED, "ended_at": NOW, "closed": True, "failure": FAILURE, "dead": True},
        ["it ended at 1970-01-12 13:46:40 UTC, in attempt 1 of 1: builtins.OSError: no route", "it is a dead letter: `durable retry`"],
    ),
    "cancelled, and not closed": Case(
        {"status": Status.CANCELLED, "ended_at": NOW, "reason": "no need", "unfinished": 2},
        ["it was cancelled at 1970-01-12 13:46:40 UTC: no need", "it is not closed yet: 1 child of it still to be cancelled",
         "  run c1 of task 'page', running", "it waits for a slot: 1 executor"],
        children=[relative("c1"), relative("c2", Status.CANCELLED), relative("apart", tie="started")],
        placement=NOBODY._replace(executors=1),
    ),
    "messages and signals": Case(
        {"status": Status.READY, "signals": [(4, "go"), (5, "go"), (6, "stop")]},
        ["it is held by", "2 messages wait for it, until an executor obeys them", "sent to it and not yet taken: 'go' (2 times), 'stop'"],
        placement=HELD._replace(messages=2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_state_has_its_words(name: str) -> None:
    """What is said is what is known, line by line."""
    case = CASES[name]
    version = "v2" if case.run["status"] is Status.READY else None
    run = Run("r", **{"seq": 3, "task": "crawl", "version": version, **case.run})
    facts = Facts(run=run, records=case.records, children=case.children, placement=case.placement, now=NOW)
    lines = list(reasons(facts))
    assert len(lines) == len(case.said), lines
    for line, said in zip(lines, case.said, strict=True):
        assert line.startswith(said)


@pytest.mark.parametrize("status", Status)
def test_every_status_has_words_that_a_terminal_may_show(status: Status) -> None:
    """Whatever is stored: nothing of it moves the cursor or hides text."""
    failure = {"error_type": f"durable.NonDeterminismError{EVIL}", "message": f"a\n{EVIL}\nb", "traceback": ""}
    for reason in (EVIL, WAITS_FOR_USER):
        run = Run("r", 3, EVIL, EVIL, EVIL, EVIL, status=status, failure=failure, reason=reason, signals=[(1, EVIL)])
        record_of_all = [record(kind, EVIL, what=EVIL, **failure) for kind in (Kind.WAITING, Kind.STEP_RETRYING)]
        child = Relative("c", EVIL, Status.RUNNING, "returned", "-", EVIL)
        for placement in (None, NOBODY, HELD._replace(host=EVIL)):
            facts = Facts(run=run, records=record_of_all, children=[child], placement=placement, now=NOW)
            lines = list(reasons(facts))
            assert lines
            assert all(line.isprintable() for line in lines)


# --- real runs ------------------------------------------------------------------------------------------------------------------------


def test_a_run_in_a_folder_is_explained(durable: Callable[..., Outcome]) -> None:
    """Also of a store that nobody has open."""
    assert "is ready\n  it begins when the process" in durable("why", "wait").out
    assert "it waits for the signal 'go'" in durable("why", "wait").out
    assert "it is a dead letter" in durable("why", "bad").out
    assert "it completed at" in durable("why", "good").out
    shown = durable("why", "nobody")
    assert (shown.code, shown.out, len(shown.err.splitlines())) == (1, "", 1)


async def test_a_family_in_a_database_is_explained_and_decided(place: Place) -> None:
    """Runs that a worker has are looked at and decided from outside, as those in a folder are."""
    async with place.client() as app:
        await app.start(working.parent.options(key="family"))
        nap = await app.start(working.nap.options(key="nap"), 3600.0)
        assert "none that is alive knows its task 'working_parent'" in place.cli("why", "family").out
        with place.worker() as worker:
            async for event in nap.events(steps=True):
                if event.name == "step:timer":
                    break
            assert re.search("it is held by executor .*\n  it sleeps until .*, in 60 min", place.cli("why", "nap").out)
            children = [child["run_id"] for child in place.cli("show", "family", "--json").json["children"]]
            shown = place.cli("why", "family").out
            assert "it waits for 2 children that it returned:" in shown
            assert all(f"  run {child} of task 'working_wait'" in shown for child in children)
            for word, status in (("stop", "suspended"), ("resume", "(ready|running)"), ("cancel", "cancelled")):
                shown = place.cli(word, children[0])
                assert (shown.code, shown.err) == (0, "")
                assert re.search(f"is now {status}(;|\n)", shown.out)
            followed = place.cli("events", "family", "--follow").out
            assert followed.splitlines()[-1].split()[2] == "children_failed"
            assert place.cli("retry", "family").code == 0
            assert "its 2 unfinished children are told to end too" in place.cli("cancel", "family").out
            assert len(place.cli("runs", "--status", "cancelled", "--parent", "family").out.splitlines()) == 3
            assert worker.stop() == 0
