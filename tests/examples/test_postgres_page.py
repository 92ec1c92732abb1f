"""docs/postgres.md says what the code does: its defaults are those of the settings."""

from __future__ import annotations

from pathlib import Path

from durable.config import PostgresSettings

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "postgres.md"


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, settings = PAGE.read_text("utf-8"), PostgresSettings()
    assert f"(`lease_seconds`, {settings.lease_seconds:g} by default)" in page
    assert f"the schema {settings.schema}" in page
