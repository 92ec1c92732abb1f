"""docs/dead-letters.md says what the code does: its defaults are those of the settings."""

from __future__ import annotations

from pathlib import Path

from durable.config import Limits

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "dead-letters.md"


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, limits = " ".join(PAGE.read_text("utf-8").split()), Limits()
    assert f"`Limits.dead_letter_size` letters ({limits.dead_letter_size:,} by default)" in page
    assert f"({limits.dead_letter_ttl:,.0f} by default, a day)" in page
    assert f"`Limits.dead_letter_retries` times for one run ({limits.dead_letter_retries} by default)" in page
