"""`durable demo`, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from durable.cli.demo_screen import ranges


def test_the_demo_survives_its_kill(tmp_path: Path) -> None:
    """The worker is killed, the second takes the finished steps from the log, none of them runs again, nothing is left behind."""
    (tmp_path / "temporary").mkdir()
    shown = subprocess.run(
        [sys.executable, "-m", "durable", "demo"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    out = shown.stdout
    pids = re.findall(r"worker process (\d+)", out)
    assert len(set(pids)) == 2
    assert f"kill -9 {pids[0]}" in out
    assert "from the log, not run again:   extract, transform 1" in out
    assert re.search(r"\n +0  steps run twice\n", out)
    steps = int(re.findall(r"(\d+)  steps executed", out)[0])
    from_log = int(re.findall(r"(\d+)  of them taken from the log", out)[0])
    assert steps // 2 <= from_log < steps
    assert "The report" in out
    assert "\x1b" not in out
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C ends the worker too, removes the folder, and shows no traceback."""
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "durable", "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        worker = next(int(line.split()[2]) for line in process.stdout if line.startswith("worker process"))
        next(line for line in process.stdout if "transform" in line)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")
    assert list((tmp_path / "temporary").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_ranges_are_short() -> None:
    """Numbers that follow on each other are one range."""
    assert ranges([3, 1, 2, 5, 7, 8]) == "1-3, 5, 7-8"
    assert ranges([]) == ""
