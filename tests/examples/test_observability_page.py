"""docs/observability.md says what the code does: page and dashboard name the metrics and spans that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from durable.observe.observer import Observer
from durable.observe.otel import COUNTERS, GAUGES, HISTOGRAMS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "observability.md"
DASHBOARD = ROOT / "docs" / "grafana-dashboard.json"


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
