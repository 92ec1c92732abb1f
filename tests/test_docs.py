"""Documents that are made from the code say what the code says."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from durable import Config, ConfigError
from durable.config import EngineSettings, FlushSettings, Limits, LogSettings, PayloadSettings, PostgresSettings

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

PARTS = {
    "log": LogSettings,
    "flush": FlushSettings,
    "payload": PayloadSettings,
    "engine": EngineSettings,
    "postgres": PostgresSettings,
}


def explanations(kind: type) -> dict[str, str]:
    """What the docstring says about each argument."""
    found: dict[str, str] = {}
    name = ""
    for line in (kind.__doc__ or "").split("Arguments:")[-1].splitlines():
        text = line.strip()
        if text and line.startswith("        ") and ": " in text and text.split(": ")[0].isidentifier():
            name, _, rest = text.partition(": ")
            found[name] = rest
        elif text and name:
            found[name] += " " + text
    return found


def render() -> str:
    """The page, from the settings' own docstrings and defaults."""
    lines = [
        "# Configuration",
        "",
        "Made from `durable/config.py`; `tests/test_docs.py` keeps it true (`DURABLE_WRITE_DOCS=1` writes it).",
        "Durations are seconds, sizes bytes. A wrong value raises `ConfigError` with its key when the settings are made.",
        "",
        "```python",
        "from durable import Config, Durable, Limits",
        "from durable.config import EngineSettings",
        "",
        "app = Durable(",
        '    "./state",',
        "    limits=Limits(max_running=50),",
        "    config=Config(engine=EngineSettings(max_recoveries=5)),",
        ")",
        "```",
    ]
    for part, kind in (*((f"Config.{name}", kind) for name, kind in PARTS.items()), ("Limits", Limits)):
        told = explanations(kind)
        lines += ["", f"## {part}: `{kind.__name__}`", "", "| setting | default | meaning |", "|---|--:|---|"]
        for spec in fields(kind):
            if spec.name in told:
                lines.append(f"| `{spec.name}` | `{spec.default!r}` | {told[spec.name]} |")
    return "\n".join(lines) + "\n"


def test_the_configuration_page_is_up_to_date() -> None:
    """Each setting is on the page with its default."""
    if os.environ.get("DURABLE_WRITE_DOCS"):
        PAGE.write_text(render())
    assert PAGE.read_text() == render()


def test_every_setting_is_explained() -> None:
    """A setting without a word about it is not finished."""
    for kind in PARTS.values():
        assert {spec.name for spec in fields(kind)} == set(explanations(kind))


def test_a_value_has_to_fit_into_a_frame_of_the_log() -> None:
    """A payload limit that no frame could hold is refused when the settings are made, not when a run reaches it."""
    with pytest.raises(ConfigError) as caught:
        Config(payload=PayloadSettings(bytes_max=64 * 1024 * 1024))
    assert caught.value.key == "payload.bytes_max"
