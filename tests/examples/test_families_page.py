"""docs/families.md says what the code does: its diagram is the table's, its defaults are those of the settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

from docs.generate import diagram
from durable.config import EngineSettings, Limits

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "families.md"


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
