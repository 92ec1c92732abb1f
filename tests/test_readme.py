"""Every Python block of README.md is a program that runs, and prints what the block behind it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
FENCE = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
BLOCKS = list(FENCE.finditer(README.read_text("utf-8")))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block_runs(tmp_path: Path, number: int) -> None:
    """As a script of its own, in an empty folder, without a word on stderr."""
    code, output = BLOCKS[number]["code"], BLOCKS[number]["output"]
    script = tmp_path / f"block_{number}.py"
    script.write_text(code, "utf-8")
    settings = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    how = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *settings] if "def test_" in code else []
    ended = subprocess.run(
        [sys.executable, *how, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, f"{code}\n{ended.stderr}"
    assert ended.stderr == ""
    if output is not None:
        assert ended.stdout == output


def test_readme_shows_the_main_job_first() -> None:
    """The first block is the whole of it in about ten lines of code, and more blocks follow."""
    assert len(BLOCKS) >= 5
    lines = [line for line in BLOCKS[0]["code"].splitlines() if line.strip()]
    assert len(lines) <= 20
