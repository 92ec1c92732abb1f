"""docs/observability.md says what the code does: its programs run, and page and dashboard name the metrics and spans that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from durable.observe.observer import Observer
from durable.observe.otel import COUNTERS, GAUGES, HISTOGRAMS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "observability.md"
DASHBOARD = ROOT / "docs" / "grafana-dashboard.json"
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
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python\n") >= 4


def test_the_page_names_what_there_is() -> None:
    """Each metric, span and hook, and no other."""
    page = PAGE.read_text("utf-8")
    otel = (ROOT / "durable" / "observe" / "otel.py").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `durable.")]
    named = {name for row in rows for name in re.findall(r"`(durable\.[a-z_.]+)`", row.split("|")[1])}
    metrics = {*COUNTERS, *HISTOGRAMS, *GAUGES}
    assert metrics <= named
    assert all(f'"{name}"' in otel for name in named - metrics)
    spans = set(re.findall(r'"(durable\.(?:task|flush|recovery)\.(?:submit|execute|handler|batch|scan))"', otel))
    assert named - metrics == spans and len(spans) == 5
    hooks = {name for name in vars(Observer) if not name.startswith("_")}
    assert hooks == set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE))


def prometheus_names() -> set[str]:
    """What the metrics are called there: units and `_total` are put behind, dots are none."""
    flat = {name: name.replace(".", "_") for name in (*COUNTERS, *HISTOGRAMS, *GAUGES)}
    names = {f"{flat[name]}_total" for name in COUNTERS} | {flat[name] for name in GAUGES}
    for name, (unit, _) in HISTOGRAMS.items():
        names.add(f"{flat[name]}{'_seconds' if unit == 's' else ''}_bucket")
    return names


def test_the_dashboard_shows_the_metrics_that_there_are() -> None:
    """Each panel asks for metrics of ours, and each of ours is in a panel."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = [
        set(re.findall(r"\bdurable_\w+(?=[\[)])", target["expr"])) for panel in panels for target in panel["targets"]
    ]
    assert all(asked), "a target without a metric"
    attributes = {"durable_task_name", "durable_reason", "durable_batch_kind", "durable_step_name"}
    assert set().union(*asked) - attributes == prometheus_names()
