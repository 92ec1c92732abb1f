"""Families on the command line: `show`, `runs` and `events` of them, and decisions that touch more than one run."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable import Durable, RunFailedError, Status
from durable.cli.timeline import Outcome as Row
from durable.cli.timeline import Timeline
from durable.clock import SYSTEM_CLOCK
from durable.core.commands import Cancel
from durable.core.decide import decide
from durable.core.records import Kind, Record
from durable.store.local import LocalStore
from tests.cli.families import fill
from tests.cli.workers import Outcome

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "store"
    asyncio.run(fill(folder))
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    """In place of the store of `conftest`: see `families.fill`."""
    return Path(shutil.copytree(filled, tmp_path / "store"))


def shown(durable: Cli, key: str) -> str:
    outcome = durable("show", key)
    assert (outcome.code, outcome.err) == (0, "")
    assert all(line.isprintable() for line in outcome.out.splitlines())
    return outcome.out


def statuses(durable: Cli, key: str) -> list[str]:
    """Of its children."""
    return [child["status"] for child in durable("show", key, "--json").json["children"]]


def records_of(durable: Cli) -> list[Any]:
    return [(record["run_id"], record["seq"], record["kind"]) for record in durable("log", "dump", "--json").lines]


# --- looking -------------------------------------------------------------------------------------------------------------------------


def test_show_tells_of_returned_children_and_their_coordinator(durable: Cli) -> None:
    """How many, how they ended, one line for all their ends, the coordinator's own steps, and the children with what they came to."""
    out = shown(durable, "ok")
    assert "children    3 returned, all completed\n" in out
    assert "coordinator a function, which completed\n" in out
    story = [line.partition(" ")[2] for line in re.findall(r"-- (.*)", out)]
    assert story == [
        "attempt 1 began", "the body returned 3 children, and waits for their ends", "3 children ended: 3 completed",
        "the coordinator began", "completed",
    ]  # fmt: skip
    assert "cli_family_look(60)  done  -> 60\n" in out
    assert len(re.findall(r"cli_page  returned  completed  .* -> [123]0\n", out)) == 3
    assert "closed" not in out and "result      60\n" in out


def test_show_tells_which_child_failed_a_run(durable: Cli) -> None:
    """The status, the error with the child's id, its traceback, and what became of the others."""
    out = shown(durable, "failed")
    assert "status      children_failed\n" in out
    assert "children    3 returned, all ended: 1 completed, 1 failed, 1 cancelled\n" in out
    assert "coordinator a function, which did not begin\n" in out
    [child] = [child for child in durable("show", "failed", "--json").json["children"] if child["status"] == "failed"]
    error = f"builtins.ValueError: child {child['run_id']} (task 'cli_page') is failed: no page -2"
    assert f"error       {error}\n" in out and f"children_failed: {error}\n" in out
    assert "raise ValueError" in out
    assert re.search(r"\n  \w{32}  cli_page  returned  failed .* builtins.ValueError: no page -2\n", out)
    assert "unfinished" not in out


def test_show_tells_of_a_coordinator_that_is_a_run(durable: Cli) -> None:
    """Its id, its task and its status, and its result, in which the children have their outcomes."""
    out = shown(durable, "bound")
    run = durable("show", "bound", "--json").json
    glue = run["coordinator_id"]
    assert f"coordinator run {glue} of task 'cli_glue', completed\n" in out
    assert f"the coordinator began, as run {glue}\n" in out
    assert "result      [<child 'cli_page' completed: 10>, <child 'cli_page' completed: 20>]\n" in out
    assert [child["tie"] for child in run["children"]] == ["returned", "returned", "coordinator"]
    assert "of task 'cli_bound', completed, whose coordinator it is\n" in shown(durable, glue)


@pytest.mark.parametrize("key", ["unbound", "unsummed"])
def test_show_tells_that_the_coordinator_failed(durable: Cli, key: str) -> None:
    """The status is one of its own, the error that of the coordinator; what the body returned is no result."""
    out = shown(durable, key)
    run = durable("show", key, "--json").json
    assert "status      on_children_complete_failed\n" in out
    assert re.search(r"\ncoordinator .*,( which)? failed\n", out)
    assert re.search(r"\nerror +builtins.LookupError: .*(no glue|cannot sum)\n", out)
    assert "failed in its coordinator: builtins.LookupError" in out
    assert "\nreturned    [<child " in out and "\nresult" not in out
    assert run["result"] is None and run["returned"][0]["$"] == "child"


def test_show_lists_the_first_children_and_counts_all(durable: Cli) -> None:
    """A family may have thousands; `runs --parent` has the others."""
    out = shown(durable, "waiting")
    run_id = durable("show", "waiting", "--json").json["run_id"]
    assert "status      waiting_for_children\n" in out
    assert re.search(r"\nchildren    16 returned, 14 ended: \d (ready|running), (1 running, )?14 completed\n", out)
    assert "coordinator a function, which begins when the returned children have ended\n" in out
    assert "14 children ended: 14 completed" in out
    assert len(re.findall(r"\n  \w{32}  cli_page  returned", out)) == 10
    assert f"  and 6 more: durable runs --parent {run_id}\n" in out
    assert len(durable("runs", "--json", "--parent", "waiting").lines) == 16
    assert len(durable("runs", "--json", "--parent", "waiting", "--status", "completed").lines) == 14
    assert durable("runs", "--parent", "sleeper").out == "no runs like that\n"
    assert durable("runs", "--parent", "nobody").code == 1


def test_show_tells_of_children_that_the_body_awaits_or_starts(durable: Cli) -> None:
    """They are told apart from returned ones; a child tells who wants it."""
    out = shown(durable, "reader")
    assert re.search(
        r"\nchildren  2 awaited, 1 ended: 1 (ready|running), 1 completed; 1 started: (ready|running)\n", out
    )
    assert re.search(r"cli_page\(100\) +unfinished  child \w{32}\n", out)
    assert [child["tie"] for child in durable("show", "reader", "--json").json["children"]] == [
        "awaited",
        "started",
        "awaited",
    ]
    assert "of task 'cli_reader', " in shown(durable, "own") and ", which started it\n" in shown(durable, "own")


def test_show_tells_of_children_that_a_key_named(durable: Cli) -> None:
    """They are runs of somebody else, which the run waits for all the same; cancelled, they tell it."""
    out = shown(durable, "library")
    assert re.search(r"\nchildren  2 by key, 1 ended: 1 (ready|running), 1 completed\n", out)
    assert re.search(r"\n  \w{32}  cli_page  by key  completed .* -> 10\n", out)
    run_id = durable("show", "library", "--json").json["run_id"]
    assert f"\nchild of  {run_id}, by its key\n" in shown(durable, "open page")
    assert durable("cancel", "open page").out.endswith(
        f"is now cancelled; its parent {run_id} is now children_failed\n"
    )


def test_show_tells_that_a_run_was_let_go_while_it_waited(durable: Cli) -> None:
    """A run that wait made room for, and what it took from the log when it went on."""
    out = shown(durable, "sleeper")
    assert "let go while it waits for a signal or a child\n" in out
    assert "went on: 1 finished step came from the log, none of them ran again\n" in out
    [step] = [
        each for each in durable("show", "sleeper", "--json").json["steps"] if each["call"] == "cli_family_look(1)"
    ]
    assert (step["ran_in"], step["replayed"]) == (1, True)


def test_runs_and_events_know_the_statuses_of_families(durable: Cli) -> None:
    """They can be asked for, and are shown."""
    for status in ("children_failed", "on_children_complete_failed", "waiting_for_children"):
        listed = durable("runs", "--status", status)
        assert listed.code == 0 and f"  {status}  " in listed.out
    names = [event["name"] for event in durable("events", "failed", "--json").lines]
    assert names == ["created", "started", "waiting", "children_failed"]
    assert "waiting           {'children': 3}" in durable("events", "failed").out
    assert "step:child_ended  {'child': " in durable("events", "failed", "--steps").out
    assert "(task 'cli_page') is failed: no page -2" in durable("events", "failed").out


def story(*records: tuple[Kind, dict[str, Any]]) -> tuple[list[str], Timeline]:
    """What the timeline makes of such records, without the time of day."""
    made = [
        Record("r", seq, kind, 0.0, head.pop("attempt", 1), head.pop("name", ""), head=head)
        for seq, (kind, head) in enumerate(records, 1)
    ]
    timeline = Timeline.of(made)
    return [
        row.call if isinstance(row, Row) else row.text.removeprefix("00:00:00.000 ") for row in timeline.rows
    ], timeline


def test_the_story_of_a_coordinator_that_needs_several_lives() -> None:
    """A coordinator takes its own steps from the log, not those of the body before it; a call that the body gave up is not open."""
    told, timeline = story(
        (Kind.CREATED, {}), (Kind.STARTED, {}), (Kind.STEP_COMPLETED, {"name": "body"}), (Kind.TIMER_SET, {"name": "given_up"}),
        (Kind.CHILDREN_STARTED, {"children": 1, "join": "function"}), (Kind.CHILD_ENDED, {"child": "c", "status": "completed"}),
        (Kind.COORDINATING, {}), (Kind.STEP_COMPLETED, {"name": "first"}), (Kind.RECOVERED, {}),
        (Kind.STEP_COMPLETED, {"name": "second"}), (Kind.RELEASED, {}), (Kind.COORDINATING, {}), (Kind.ASLEEP, {"until": 3600.0}),
        (Kind.AWAKE, {}), (Kind.RETRYING, {"error_type": "E", "message": "m"}), (Kind.COORDINATING, {"attempt": 2}),
        (Kind.CHILDREN_STARTED, {"children": 2}), (Kind.CHILD_ENDED, {"child": "d", "status": "completed"}),
    )  # fmt: skip
    came = "came from the log, none of them ran again"
    assert told == [
        "attempt 1 began", "body()", "the body returned 1 child, and waits for its end", "1 child ended: completed",
        "the coordinator began", "first()", f"the process was lost; recovered in a new one: 1 finished step {came}",
        "second()", "the process closed before the run ended; the next one goes on with it",
        f"a new process went on: 2 finished steps {came}", "let go while it waits until 1970-01-01 01:00:00 UTC",
        f"went on: 2 finished steps {came}", "attempt 1 of the coordinator failed (E: m), to be tried again",
        f"attempt 2 of the coordinator began: 2 finished steps {came}",
        "the coordinator returned 2 children, and waits for their ends", "1 child ended: completed",
    ]  # fmt: skip
    assert (timeline.recoveries, timeline.replayed) == (1, 1)


def test_a_run_that_is_retried_after_its_end_is_not_over() -> None:
    """CLOSED comes after the end and is no news; what waits again is open again."""
    told, _ = story(
        (Kind.STARTED, {}), (Kind.WAITING, {"name": "call", "what": "go"}), (Kind.CANCELLED, {"reason": "x"}), (Kind.CLOSED, {}),
    )  # fmt: skip
    assert told == ["attempt 1 began", "cancelled: x"]
    told, _ = story(
        (Kind.STARTED, {}), (Kind.FAILED, {"error_type": "E", "message": "m"}), (Kind.DISCARDED, {}),
        (Kind.RESUMED, {"reason": "retry", "children": 2}), (Kind.WAITING, {"name": "call", "what": "go"}),
    )  # fmt: skip
    assert told[1:] == ["failed: E: m", "discarded: a dead letter no more", "resumed: retry, with 2 children", "call()"]


# --- deciding ------------------------------------------------------------------------------------------------------------------------


def test_cancel_ends_the_children_too(durable: Cli) -> None:
    """At once and however deep, also those that no process would have in hand; a run that was only started lives on."""
    done = durable("cancel", "shelf", "--reason", "moved")
    assert done.out.endswith("is now cancelled; its 2 unfinished children are cancelled too\n") and not done.err
    [inner, _] = durable("show", "shelf", "--json").json["children"]
    assert statuses(durable, "shelf") == ["cancelled"] * 2
    assert statuses(durable, inner["run_id"]) == ["cancelled"] * 2
    done = durable("cancel", "reader")
    assert done.out.endswith("is now cancelled; its unfinished child is cancelled too\n")
    first, started, awaited = statuses(durable, "reader")
    assert (first, awaited) == ("completed", "cancelled") and started in ("ready", "running")
    again = durable("cancel", "reader")
    assert again.code == 0 and again.out.endswith("was already cancelled\n")


def test_cancelling_a_child_tells_its_parent(durable: Cli) -> None:
    """In the same commit the parent fails, and its other children are cancelled."""
    family = durable("show", "waiting", "--json").json
    done = durable("cancel", family["children"][0]["run_id"], "--reason", "torn")
    assert done.out.endswith(f"is now cancelled; its parent {family['run_id']} is now children_failed\n")
    shelved = durable("show", "waiting", "--json").json
    assert shelved["status"] == "children_failed" and shelved["error"].endswith("is cancelled: torn")
    assert [child["status"] for child in shelved["children"]].count("cancelled") == 2
    batches: dict[int, set[str]] = {}
    for record in durable("log", "dump", "--json").lines:
        batches.setdefault(record["lsn"], set()).add(record["kind"])
    assert any({"cancelled", "children_failed"} <= names for names in batches.values())


def test_retry_revives_the_children_that_did_not_complete(durable: Cli, store: Path) -> None:
    """The failed one and the cancelled one are ready again, the completed one is left alone; a child is not retried by itself."""
    family = durable("show", "failed", "--json").json
    refused = durable("retry", family["children"][1]["run_id"])
    assert (refused.code, refused.out) == (1, "") and f"belongs to run {family['run_id']}: retry that" in refused.err
    done = durable("retry", "failed")
    assert done.out.endswith(
        "is now waiting_for_children; 2 children of it that did not complete go on when the next application opens this folder\n"
    )
    assert statuses(durable, "failed") == ["completed", "ready", "ready"]

    async def later() -> str:
        async with Durable(store) as app:
            handle = await app.find("failed")
            assert handle is not None
            with pytest.raises(RunFailedError) as caught:
                await handle.wait(timeout=20)
            return str(caught.value)

    assert "no page -2" in asyncio.run(later())
    assert durable("show", "failed", "--json").json["attempt"] == 2


@pytest.mark.parametrize(
    ("key", "who"), [("unbound", r"its coordinator, run \w{32}, goes on"), ("unsummed", "its coordinator goes on")]
)
def test_retry_of_a_coordinator_leaves_the_children_alone(durable: Cli, key: str, who: str) -> None:
    """They completed; it is the coordinator that is tried again."""
    before = statuses(durable, key)
    assert re.search(f"; {who} when the next application opens this folder\n$", durable("retry", key).out)
    after = statuses(durable, key)
    assert after == before if key == "unsummed" else after == [*before[:-1], "ready"]


def test_a_refusal_says_what_can_be_asked(durable: Cli) -> None:
    """A run that waits for children can neither be stopped nor resumed."""
    for command in ("stop", "resume", "retry"):
        refused = durable(command, "waiting")
        assert (refused.code, refused.out) == (1, "") and len(refused.err.splitlines()) == 1
        assert "waiting_for_children: it cannot" in refused.err


def test_a_decision_changes_nothing_else(durable: Cli) -> None:
    """Runs of any status stay as they are, and nobody is told of the modules that are not imported."""
    before = records_of(durable)
    done = durable("stop", "own", "--reason", "later")
    assert (done.code, done.err) == (0, "")
    [run_id] = {run_id for run_id, _, _ in set(records_of(durable)) - set(before)}
    assert run_id == durable("show", "own", "--json").json["run_id"]
    assert durable("resume", "own").out.endswith(
        "is now ready; it goes on when the next application opens this folder\n"
    )
    assert len(records_of(durable)) == len(before) + 2
    nothing = durable("cancel", "nobody")
    assert (nothing.code, nothing.out) == (1, "") and len(nothing.err.splitlines()) == 1
    assert len(records_of(durable)) == len(before) + 2


KILLED = """
import asyncio, os, sys
from durable import Context, Durable, task

@task
async def waits(ctx: Context) -> None:
    await ctx.wait_for("go")

async def main():
    async with Durable(sys.argv[1]) as app:
        for key in ("one", "two"):
            handle = await app.start(waits.options(key=key))
            async for event in handle.events():
                if event.name == "waiting":
                    break
        os._exit(9)

asyncio.run(main())
"""


def test_a_run_that_was_running_when_its_process_died_stays_running(durable: Cli, store: Path) -> None:
    """Only an application that has its task may say that it was recovered, or give it back."""
    assert subprocess.run([sys.executable, "-c", KILLED, str(store)], check=False).returncode == 9
    assert durable("cancel", "one").out.endswith("is now cancelled\n")
    assert durable("show", "two", "--json").json["status"] == "running"
    names = [event["name"] for event in durable("events", "two", "--steps", "--json").lines]
    assert names == ["created", "started", "waiting"]


def test_what_a_crash_left_of_a_family_is_cleared_up(durable: Cli, store: Path) -> None:
    """A run that had ended, and whose children were not cancelled yet, is closed by whoever opens the folder next."""

    async def cancelled_alone() -> None:
        left = LocalStore(store)
        await left.open()
        run = await left.find_key(None, "waiting")
        assert run is not None
        await left.commit([decide(run, Cancel("alone"), SYSTEM_CLOCK.now(), 100_000)])
        await left.close()

    asyncio.run(cancelled_alone())
    assert statuses(durable, "waiting").count("cancelled") == 0
    assert durable("cancel", "waiting").out.endswith("was already cancelled\n")
    assert statuses(durable, "waiting").count("cancelled") == 2


def test_the_command_line_has_no_task() -> None:
    """Not even the demo's: it could have the name of one that a store needs, and would be run."""
    program = (
        "import gc, durable.cli.main; from durable.tasks.definition import TaskDefinition; "
        "print([each for each in gc.get_objects() if isinstance(each, TaskDefinition)])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


def test_statuses_of_the_fixture_are_what_they_should_be(durable: Cli) -> None:
    """Every status of a family is met here."""
    seen = {run["status"] for run in durable("runs", "--json").lines}
    assert seen >= {
        Status.CHILDREN_FAILED,
        Status.ON_CHILDREN_COMPLETE_FAILED,
        Status.WAITING_FOR_CHILDREN,
        Status.CANCELLED,
    }
