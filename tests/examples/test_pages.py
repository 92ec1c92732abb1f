"""The programs on the pages of docs/ print what the pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n\n```text\n(?P<output>.*?)^```\n", re.MULTILINE | re.DOTALL)
PROGRAMS = {
    f"{page.stem}-{number}": block
    for page in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(BLOCK.finditer(page.read_text("utf-8")))
}
URL = "postgresql://me@db/work"
#: What a program may say on stderr: that dead letters were discarded.
EXPECTED = re.compile(r"dead letter")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_what_its_page_says(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    """As a script of its own, but for the address of a server, in an empty folder and an empty database, without a word on stderr."""
    code = PROGRAMS[name]["code"]
    if URL in code:
        code = code.replace(URL, request.getfixturevalue("postgres_database"))
    script = tmp_path / f"{name}.py".replace("-", "_")
    script.write_text(code, "utf-8")
    ended = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in ended.stderr.splitlines() if not EXPECTED.search(line)]
    assert (ended.returncode, said, ended.stdout) == (0, [], PROGRAMS[name]["output"])


@pytest.mark.parametrize("page", sorted({name.rpartition("-")[0] for name in PROGRAMS}))
def test_no_program_is_left_out(page: str) -> None:
    """On a page that shows outputs, each block of Python has one, and is run."""
    programs = [name for name in PROGRAMS if name.rpartition("-")[0] == page]
    assert len(programs) == (DOCS / f"{page}.md").read_text("utf-8").count("```python\n")


def test_pages_have_programs() -> None:
    """A pattern that found none would show nothing."""
    assert len(PROGRAMS) >= 24
