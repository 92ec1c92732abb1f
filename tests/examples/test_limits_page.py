"""docs/limits.md says what the code does: its defaults are those of `Limits`."""

from __future__ import annotations

from pathlib import Path

from durable import Limits

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "limits.md"


def test_the_defaults_are_those_of_the_settings() -> None:
    """A default that changes is changed here too."""
    page, limits = PAGE.read_text("utf-8"), Limits()
    for name in ("max_starts_per_window", "max_starts_per_user_window", "max_queued", "max_running_per_user"):
        assert getattr(limits, name) is None
        assert f"| `{name}` | none |" in page
    assert f"| `max_running` | {limits.max_running:,} |" in page
    assert f"| `slot_timeout` | {limits.slot_timeout:g} s |" in page
    assert f"any `window` ({limits.window:g} s)" in page
