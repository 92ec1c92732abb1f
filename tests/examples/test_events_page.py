"""docs/events.md says what the code does: its defaults are those of the settings."""

from __future__ import annotations

from pathlib import Path

from durable.config import StreamSettings

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "events.md"


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, settings = PAGE.read_text("utf-8"), StreamSettings()
    assert f"`stream.buffer_size` records ({settings.buffer_size})" in page
    assert f"`stream.buffer_bytes` of them ({settings.buffer_bytes >> 20} MiB)" in page
    assert f"`stream.retention_seconds` ({settings.retention_seconds:g})" in page
    assert f"`stream.retained_max` runs ({settings.retained_max})" in page
