"""docs/postgres.md says what the code does: its programs run against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from durable.config import PostgresSettings

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "postgres.md"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n\n```text\n(?P<output>.*?)^```\n", re.MULTILINE | re.DOTALL)
BLOCKS = list(BLOCK.finditer(PAGE.read_text("utf-8")))
URL = "postgresql://me@db/work"


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_program_of_the_page_prints_what_it_says(tmp_path: Path, number: int, postgres_database: str) -> None:
    """As a script of its own, but for the address of the server; each in a database of its own, without a word on stderr."""
    code = BLOCKS[number]["code"]
    assert URL in code
    script = tmp_path / f"block_{number}.py"
    script.write_text(code.replace(URL, postgres_database), "utf-8")
    ended = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", BLOCKS[number]["output"])


def test_no_program_is_left_out() -> None:
    """Each block of Python has an output behind it, and is run."""
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python\n") >= 4


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, settings = PAGE.read_text("utf-8"), PostgresSettings()
    assert f"(`lease_seconds`, {settings.lease_seconds:g} by default)" in page
    assert f"the schema {settings.schema}" in page
