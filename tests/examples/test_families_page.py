"""docs/families.md says what the code does: its programs run, its diagram is the table's, its defaults are those of the settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import diagram
from durable.config import EngineSettings, Limits

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "families.md"
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
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python\n") >= 5


def test_the_diagram_is_made_from_the_table() -> None:
    """`DURABLE_WRITE_DOCS=1` writes it."""
    page = PAGE.read_text("utf-8")
    drawn = "```mermaid\n" + "".join(f"{line}\n" for line in diagram(family=True)) + "```\n"
    if os.environ.get("DURABLE_WRITE_DOCS"):
        page = re.sub(r"^```mermaid\n.*?^```\n", lambda _: drawn, page, flags=re.MULTILINE | re.DOTALL)
        PAGE.write_text(page, "utf-8")
    assert drawn in page


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, settings = PAGE.read_text("utf-8"), EngineSettings()
    for name in ("children_max", "tree_depth_max", "history_records_max"):
        assert f"| `engine.{name}` | {getattr(settings, name):,} |" in page
    assert f"| `engine.family_bytes_max` | {settings.family_bytes_max >> 20} MiB |" in page
    assert f"| `Limits.max_running` | {Limits().max_running:,} |" in page
    assert f"`engine.idle_seconds` ({settings.idle_seconds:g} s)" in page
    assert f"`engine.idle_runs_max`\n({settings.idle_runs_max:,})" in page
