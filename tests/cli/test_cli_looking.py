"""`durable runs`, `show`, `events`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import EVIL, bodies
from tests.cli.workers import Outcome

Cli = Callable[..., Outcome]

HOLDER = """
import asyncio, sys
from durable import Context, Durable, task

@task
async def slow(ctx: Context, n: int) -> int:
    for number in range(n):
        await ctx.emit("tick", number)
    await ctx.wait_for("go")
    await ctx.emit("tick", n)
    return n

async def main():
    async with Durable(sys.argv[1]) as app:
        handle = await app.start(slow.options(key="slow"), 3)
        async for event in handle.events():
            if event.name == "waiting":
                break
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await handle.send("go")
        print(await handle, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.fixture
def holder(store: Path) -> subprocess.Popen[str]:
    """A process that has the store open, with a run `slow` that waits; a line on its stdin lets it go on."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_runs_are_listed_newest_first(durable: Cli) -> None:
    """The run that was started last stands at the top."""
    runs = durable("runs", "--json").lines
    assert [run["key"] for run in runs] == ["wait", f"evil{EVIL}", "bad", "good"]
    assert [run["status"] for run in runs] == ["ready", "completed", "failed", "completed"]


def test_runs_are_filtered(durable: Cli) -> None:
    """Status, task, user and limit each leave out what does not fit; a limit keeps the newest, and says that it did."""
    assert [run["key"] for run in durable("runs", "--json", "--status", "failed,ready").lines] == ["wait", "bad"]
    assert [run["user"] for run in durable("runs", "--json", "--user", "mallory").lines] == ["mallory"]
    assert durable("runs", "--json", "--task", "another").out == ""
    assert durable("runs", "--task", "another").out == "no runs like that\n"
    limited = durable("runs", "--limit", "1").out
    assert "wait" in limited
    assert "the newest 1 of 4 runs" in limited


@pytest.mark.parametrize(
    "command", ["runs", "show RUN", "events RUN --steps", "log dump", "show RUN --json", "events RUN --json"]
)
def test_no_control_character_reaches_the_terminal(durable: Cli, command: str) -> None:
    """A stored key, error, event or result cannot move the cursor, set a title or hide text."""
    for run in durable("runs", "--json").lines:
        shown = durable(*(run["run_id"] if part == "RUN" else part for part in command.split()))
        assert shown.code == 0
        assert all(line.isprintable() for line in shown.out.splitlines())
        assert "\r" not in shown.out


def test_show_tells_the_whole_run(durable: Cli) -> None:
    """Input, result, and each step with its arguments, its tries and what it returned."""
    shown = durable("show", "good").out
    assert "completed" in shown
    assert "input     {'url': 'good.html'}" in shown
    assert "result    'at last'" in shown
    assert "cli_fetch('good.html')  done  -> Page(title='title of good.html', size=3)" in shown
    assert "cli_shaky('good.html')  done  after 3 tries  -> 'at last'" in shown


def test_show_tells_why_a_run_failed(durable: Cli) -> None:
    """The error's type, text and traceback are there, and the exit code says that the command itself was fine."""
    shown = durable("show", "bad")
    assert shown.code == 0
    assert "error     builtins.ValueError: cannot read bad.html\\n\\x1b" in shown.out
    assert "raise ValueError" in shown.out


def test_show_tells_what_a_run_waits_for(durable: Cli) -> None:
    """A run that has not ended shows the call that has no outcome yet."""
    shown = durable("show", "wait").out
    assert "the process closed before the run ended" in shown
    assert "wait_for('go')" in shown
    assert "unfinished" in shown


def test_show_json_has_values_as_they_are_stored(durable: Cli) -> None:
    """A class stays a tagged JSON object: nothing is decoded, so nothing has to be imported."""
    steps = durable("show", "good", "--json").json["steps"]
    assert [step["call"] for step in steps] == ["cli_fetch('good.html')", "cli_shaky('good.html')"]
    assert steps[0]["result"]["v"] == {"title": "title of good.html", "size": 3}


def test_events_have_their_numbers(durable: Cli) -> None:
    """Without steps the numbers have holes, with steps they have none."""
    visible = [event["seq"] for event in durable("events", "good", "--json").lines]
    every = [event["seq"] for event in durable("events", "good", "--json", "--steps").lines]
    assert every == list(range(1, len(every) + 1))
    assert set(visible) < set(every)
    assert "Page(title='title of good.html', size=3)" in durable("events", "good").out


def test_a_run_is_found_by_id_prefix_and_key(durable: Cli) -> None:
    """The id, a beginning of it that no other run has, and the key name the same run."""
    run_id = durable("show", "good", "--json").json["run_id"]
    others = [run["run_id"] for run in durable("runs", "--json").lines if run["run_id"] != run_id]
    unique = next(
        run_id[:size] for size in range(4, 32) if not any(other.startswith(run_id[:size]) for other in others)
    )
    assert durable("show", run_id, "--json").json["run_id"] == run_id
    assert durable("show", unique, "--json").json["run_id"] == run_id
    assert durable("show", f"evil{EVIL}", "--user", "mallory", "--json").json["user"] == "mallory"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("show", "nobody"), "durable runs lists them"),
        (("show", f"evil{EVIL}"), "--user"),
        (("events", "0123456789"), "durable runs lists them"),
        (("events", "0" * 32), "durable runs lists them"),
        (("show", "RUN"), "give more digits"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(durable: Cli, arguments: tuple[str, ...], hint: str) -> None:
    """Exit code 1, nothing on stdout, and one line on stderr that says what to do."""
    prefix = durable("show", "good", "--json").json["run_id"][:4]
    shown = durable(*(prefix if part == "RUN" else part for part in arguments))
    assert (shown.code, shown.out) == (1, "")
    assert len(shown.err.splitlines()) == 1
    assert hint in shown.err


def test_looking_changes_nothing(durable: Cli, store: Path) -> None:
    """Every reading command leaves every byte of the store as it was, and runs no body."""
    ran = list(bodies)

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}

    before = content()
    for command in ("runs", "show good", "events good", "events bad --follow", "log verify", "log dump", "log repair"):
        assert durable(*command.split()).code == 0
    assert content() == before
    assert bodies == ran


def test_looking_works_beside_a_process(durable: Cli, holder: subprocess.Popen[str]) -> None:
    """What another process has just written is seen while that one has the folder open."""
    assert [event["data"] for event in durable("events", "slow", "--json").lines if event["name"] == "tick"] == [
        0,
        1,
        2,
    ]
    assert durable("show", "slow", "--json").json["status"] == "running"
    assert len(durable("runs", "--json").lines) == 5
    assert durable("log", "verify").code == 0


def test_following_goes_on_until_the_run_ends(durable: Cli, store: Path, holder: subprocess.Popen[str]) -> None:
    """Events that another process writes later are printed as they come, each once, and the end of the run is the end."""
    command = [sys.executable, "-m", "durable", "events", "slow", "--dir", str(store), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        seen: list[str] = []
        for line in following.stdout:
            seen.append(line.split()[2])
            if seen[-1] == "waiting":
                assert holder.stdin is not None
                holder.stdin.write("go\n")
                holder.stdin.flush()
    assert seen == ["created", "started", "tick", "tick", "tick", "waiting", "tick", "completed"]
    assert following.returncode == 0


def test_deciding_beside_a_process_names_the_holder(durable: Cli, holder: subprocess.Popen[str]) -> None:
    """A writing command does not wait: it says which process has the folder."""
    for command in (("cancel", "good"), ("retry", "bad"), ("stop", "wait"), ("resume", "wait")):
        shown = durable(*command)
        assert shown.code == 1
        assert f"process {holder.pid} on " in shown.err
        assert len(shown.err.splitlines()) == 1
