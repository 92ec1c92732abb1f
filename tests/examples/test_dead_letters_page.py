"""docs/dead-letters.md says what the code does: its programs run, and its defaults are those of the settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from durable.config import Limits

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "dead-letters.md"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n\n```text\n(?P<output>.*?)^```\n", re.MULTILINE | re.DOTALL)
BLOCKS = list(BLOCK.finditer(PAGE.read_text("utf-8")))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_program_of_the_page_prints_what_it_says(tmp_path: Path, number: int) -> None:
    """As a script of its own, in an empty folder; on stderr there is at most what was discarded."""
    script = tmp_path / f"block_{number}.py"
    script.write_text(BLOCKS[number]["code"], "utf-8")
    ended = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in ended.stderr.splitlines() if "dead letter" not in line]
    assert (ended.returncode, said, ended.stdout) == (0, [], BLOCKS[number]["output"])


def test_no_program_is_left_out() -> None:
    """Each block of Python has an output behind it, and is run."""
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python\n") >= 3


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, limits = " ".join(PAGE.read_text("utf-8").split()), Limits()
    assert f"`Limits.dead_letter_size` letters ({limits.dead_letter_size:,} by default)" in page
    assert f"({limits.dead_letter_ttl:,.0f} by default, a day)" in page
    assert f"`Limits.dead_letter_retries` times for one run ({limits.dead_letter_retries} by default)" in page
