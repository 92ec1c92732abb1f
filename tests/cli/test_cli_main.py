"""The grammar, and what becomes of errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.workers import Outcome

Cli = Callable[..., Outcome]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("show",),
        ("runs", "--status", "happy"),
        ("runs", "--limit", "0"),
        ("runs", "--limit", "many"),
        ("log",),
        ("log", "repair", "--json"),
        ("cancel", "one", "two"),
        ("why",),
        ("worker",),
        ("worker", "tasks", "--concurrency", "0"),
        ("worker", "tasks", "--lease", "nan"),
        ("migrate", "--grant-read"),
    ],
)
def test_wrong_use_is_exit_code_2(durable: Cli, arguments: tuple[str, ...]) -> None:
    """What the grammar does not know is refused with a usage line, before anything is looked at."""
    shown = durable(*arguments)
    assert (shown.code, shown.out) == (2, "")
    assert "usage: durable" in shown.err


@pytest.mark.parametrize(
    "command",
    [
        *("", "runs", "stats", "show", "events", "why", "cancel", "retry", "stop", "resume"),
        *("worker", "migrate", "log", "log verify", "demo"),
    ],
)
def test_every_command_has_help(durable: Cli, command: str) -> None:
    """--help is on stdout with exit code 0."""
    shown = durable(*command.split(), "--help")
    assert shown.code == 0
    assert shown.out.startswith("usage: durable")


def test_dir_may_stand_before_or_behind_the_command(durable: Cli, tmp_path: Path) -> None:
    """Behind wins: it is nearer."""
    assert durable("runs", "--json").code == 0
    assert durable("runs", "--json", "--dir", str(tmp_path / "elsewhere")).code == 1


def test_a_reader_that_has_seen_enough_is_no_error(store: Path) -> None:
    """`durable log dump | head -1` says nothing on stderr."""
    command = f"{sys.executable} -m durable log dump {store} | head -1"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert len(shown.stdout.splitlines()) == 1
    assert shown.stderr == ""


def test_no_class_of_the_user_is_needed(store: Path) -> None:
    """A process that has never imported the user's code shows the stored values, class names included."""
    command = [sys.executable, "-m", "durable", "show", "good", "--dir", str(store)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert "Page(title='title of good.html', size=3)" in shown.stdout


def test_the_command_line_adds_little_to_the_import(tmp_path: Path) -> None:
    """Beyond `import durable` the grammar costs less than 60 ms and loads no extra; the best of five, for a busy machine."""
    program = (
        "import sys, time, durable; began = time.perf_counter(); import durable.cli.main as cli; cli._parser().format_help(); "
        "took = time.perf_counter() - began; print(took, *[name for name in ('rich', 'starlette', 'psycopg') if name in sys.modules])"
    )
    seconds = []
    for _ in range(5):
        took, *loaded = subprocess.check_output([sys.executable, "-c", program], cwd=tmp_path, text=True).split()
        assert not loaded
        seconds.append(float(took))
    assert min(seconds) < 0.060
