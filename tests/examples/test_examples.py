"""Each example, run as its docstring says, in a folder of its own; some are killed half way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]


def run(folder: Path, name: str, *arguments: str) -> str:
    """Run an example to its end and return what it printed."""
    ended = subprocess.run(
        command(name, *arguments), cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def killed(folder: Path, name: str, *arguments: str, after: int) -> list[str]:
    """Run an example, kill it when it has printed `after` lines, and return all that it printed."""
    with subprocess.Popen(command(name, *arguments), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(after)]
        os.kill(process.pid, signal.SIGKILL)
        lines += [line.rstrip() for line in process.stdout]
    assert process.returncode == -signal.SIGKILL
    return lines


def events(folder: Path, key: str) -> list[dict[str, Any]]:
    """Every record of a run, as the command line shows them."""
    shown = subprocess.check_output(
        [sys.executable, "-m", "durable", "events", key, "--steps", "--json"], cwd=folder, text=True
    )
    return [json.loads(line) for line in shown.splitlines()]


def numbers(lines: list[str]) -> Iterator[int]:
    return (int(line) for line in lines if line.isdigit())


def test_every_example_is_run() -> None:
    """An example that no test runs would rot."""
    source = Path(__file__).read_text("utf-8")
    assert {path.stem for path in EXAMPLES.glob("*.py") if f'"{path.stem}"' in source} == {
        path.stem for path in EXAMPLES.glob("*.py")
    }


def test_quickstart_runs_its_steps_once(tmp_path: Path) -> None:
    """The second start finds the run of the first by its key, and nothing is done again."""
    first = run(tmp_path, "quickstart")
    assert first.splitlines()[:2] == ["fetching world", "storing 'Hello, world!'"]
    assert run(tmp_path, "quickstart").splitlines() == first.splitlines()[2:]


@pytest.mark.parametrize("after", [1, 6])
def test_count_to_n_goes_on_with_the_next_number(tmp_path: Path, after: int) -> None:
    """Over a kill -9 each number is emitted once and in order, and none is printed twice."""
    before = list(numbers(killed(tmp_path, "count_to_n", "12", after=after)))
    later = run(tmp_path, "count_to_n", "12").splitlines()
    assert any(line.startswith("recovered after ") for line in later)
    assert later[-1] == "counted to 12"
    emitted = [event["data"]["v"]["n"] for event in events(tmp_path, "count-to-12") if event["name"] == "Tick"]
    assert emitted == list(range(1, 13))
    # The number that was emitted when the kill came may not have been printed any more.
    printed = [*before, *numbers(later)]
    assert len(printed) >= 11
    assert printed == sorted(set(printed))


def effect_of(recorded: dict[str, Any]) -> str:
    """The line that a recorded step of the pipeline has written."""
    result = recorded["result"]
    match recorded["step"]:
        case "extract":
            return f"extracted {len(result)} files"
        case "transform":
            return f"transformed {result['v']['module']}"
        case _:
            return "loaded 5 rows"


@pytest.mark.parametrize("after", [1, 2, 4])
def test_pipeline_runs_no_finished_step_again(tmp_path: Path, after: int) -> None:
    """Counted outside the engine: what the log held at the kill has one effect, and the result is complete."""
    killed(tmp_path, "pipeline", after=after)
    shown = subprocess.check_output([sys.executable, "-m", "durable", "runs", "--json"], cwd=tmp_path, text=True)
    run_id = json.loads(shown)["run_id"]
    recorded = [effect_of(event["data"]) for event in events(tmp_path, run_id) if event["name"] == "step:completed"]
    assert run(tmp_path, "pipeline").splitlines()[-1] == "the rows are in lines.csv"
    effects = Counter((tmp_path / "effects.txt").read_text().splitlines())
    assert len(effects) == 7
    assert [effects[effect] for effect in recorded] == [1] * len(recorded)
    # A step that had its effect and was killed before it was recorded runs again: with two at once, two at most.
    assert sum(effects.values()) <= 7 + 2
    story = subprocess.check_output([sys.executable, "-m", "durable", "show", run_id], cwd=tmp_path, text=True)
    steps = f"{len(recorded)} finished step{'s' if len(recorded) != 1 else ''}"
    assert f"the process was lost; recovered in a new one: {steps} came from the log, none of them ran again" in story
    assert len((tmp_path / "lines.csv").read_text().splitlines()) == 5
    assert sum(event["name"] == "step:completed" for event in events(tmp_path, run_id)) == 7


def test_api_client_pays_once(tmp_path: Path) -> None:
    """Two tries fail, one of them after it was booked, and each payment is booked once."""
    out = run(tmp_path, "api_client").splitlines()
    assert out[-1] == "paid 200 with 4 requests; the bank booked 200 under 2 keys"
    assert sum(line.startswith("try ") for line in out) == 2


@pytest.mark.parametrize(
    ("answer", "end"), [("yes", "paid out, approved by Ada"), ("no", "given back, refused by Ada")]
)
def test_approval_waits_over_a_restart(tmp_path: Path, answer: str, end: str) -> None:
    """The decision comes from another process than the request, and what was reserved before is not reserved again."""
    assert run(tmp_path, "approval", "request", "expense-7", "250") == "reserving 250\nexpense-7 is waiting\n"
    assert run(tmp_path, "approval", "decide", "expense-7", answer) == f"reservation of 250: {end}\n"


# --- families -------------------------------------------------------------------------------------------------------------------


def test_file_upload_goes_on_with_its_children(tmp_path: Path) -> None:
    """Killed when the file is stored; what was made by then is not made again, and the family is complete."""
    (tmp_path / "file.txt").write_text("# The title\n\nsome words\n")
    killed(tmp_path, "file_upload", "file.txt", after=1)
    out = run(tmp_path, "file_upload", "file.txt").splitlines()
    assert out[-4:-2] == ["title:   The title", "summary: 3 lines, 5 words, the longest: title, words, some"]
    assert [line.split()[2:] for line in out[-2:]] == [
        ["ran", "extract_file_title:", "completed"],
        ["ran", "summarize_file:", "completed"],
    ]
    assert (tmp_path / "uploads" / "file.txt").read_bytes() == (tmp_path / "file.txt").read_bytes()
    assert run(tmp_path, "file_upload", "file.txt").splitlines() == out[-4:], "the next start finds the same family"


def test_task_tree_shows_its_family(tmp_path: Path) -> None:
    """The greetings in the order of the tree, and every run of it."""
    out = run(tmp_path, "task_tree").splitlines()
    assert [line.split()[3].rstrip(",") for line in out[1:8]] == ["A", "A1", "A2", "A3", "B1", "B2", "B3"]
    assert out[0] == "Hello from root task, world!"
    assert len(out[10:]) == 9 and all(line.endswith(" completed") for line in out[10:])


def test_recursive_count_counts_its_runs(tmp_path: Path) -> None:
    """As deep as it is told."""
    out = run(tmp_path, "recursive_count").splitlines()
    assert out[0] == "count: 10" and len(out[2:]) == 10 and all(line.endswith("  completed") for line in out[2:])
    assert run(tmp_path, "recursive_count", "99").startswith("count: 100\n")


@pytest.mark.parametrize("after", [0, 4])
def test_polling_places_each_order_once(tmp_path: Path, after: int) -> None:
    """Both ways find what they wait for, also when the process is killed between two looks."""
    if after:
        before = killed(tmp_path, "polling", after=after)
        assert before[1] == "ordered first-film"
    out = run(tmp_path, "polling").splitlines()
    assert {"first-film.mp4", "second-film.mp4"} <= set(out)
    assert out.count("ordered first-film") == (0 if after else 1)
    assert re.fullmatch(r"it took [2-9] runs, each the child of the one before", out[-1])


def test_webhook_ends_the_wait(tmp_path: Path) -> None:
    """The order waits for its children, one of which waits for the call."""
    out = run(tmp_path, "webhook").splitlines()
    assert "the order waits for 2 children" in out
    assert '" 204' in out[-3] + out[-2] + out[-1]
    assert "2 x tea shipped, 12 paid" in out


@pytest.mark.parametrize("after", [0, 3])
def test_map_items_goes_on_with_what_is_left(tmp_path: Path, after: int) -> None:
    """Ten thousand items, each recorded once, also when the process is killed in between."""
    if after:
        killed(tmp_path, "map_items", after=after)
    out = run(tmp_path, "map_items").splitlines()
    assert "6,171 needs most steps: 261" in out
    assert after or re.fullmatch(r"10,000 items in .* s: [0-9,]+ a second, each durable", out[-1])
    recorded = Counter(event["name"] for event in events(tmp_path, "collatz-10000-100"))
    assert (recorded["step:completed"], recorded["progress"]) == (10_000, 10)
