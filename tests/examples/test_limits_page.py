"""docs/limits.md says what the code does: its programs run, and its defaults are those of `Limits`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from durable import Limits

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "limits.md"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n\n```text\n(?P<output>.*?)^```\n", re.MULTILINE | re.DOTALL)
BLOCKS = list(BLOCK.finditer(PAGE.read_text("utf-8")))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_program_of_the_page_prints_what_it_says(tmp_path: Path, number: int) -> None:
    """As a script of its own, in an empty folder, without a word on stderr."""
    script = tmp_path / f"block_{number}.py"
    script.write_text(BLOCKS[number]["code"], "utf-8")
    ended = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", BLOCKS[number]["output"])


def test_no_program_is_left_out() -> None:
    """Each block of Python has an output behind it, and is run."""
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python\n") >= 4


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, limits = PAGE.read_text("utf-8"), Limits()
    for name in ("max_starts_per_window", "max_starts_per_user_window", "max_queued", "max_running_per_user"):
        assert getattr(limits, name) is None
        assert f"| `{name}` | none |" in page
    assert f"| `max_running` | {limits.max_running:,} |" in page
    assert f"| `slot_timeout` | {limits.slot_timeout:g} s |" in page
    assert f"any `window` ({limits.window:g} s)" in page
