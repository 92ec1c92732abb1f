"""Traces go on in the process that goes on with the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["folder", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What two processes open one after the other."""
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("postgres_database")


def test_a_recovered_attempt_links_to_the_one_that_was_killed(store: str) -> None:
    """After a real SIGKILL the span is in the trace of the start, says that it was recovered, and links to a span that was never told."""
    command = [sys.executable, "-m", "tests.observe.crashing", store]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = json.loads(process.stdout.readline())
        process.kill()
    lines = subprocess.check_output(command, cwd=ROOT, text=True, timeout=60).splitlines()
    told = [json.loads(line) for line in lines]
    attempt = next(line for line in told if line.get("span") == "durable.task.execute")
    assert attempt["trace_id"] == seen["trace_id"]
    assert attempt["links"] == [[seen["trace_id"], seen["execute"]]]
    assert attempt["parent"] not in (None, seen["execute"]), "it is a child of the start, beside the one before"
    assert attempt["attributes"]["durable.recovered"] is True
    assert attempt["attributes"]["durable.outcome"] == "completed"
    recorded = [event for event in attempt["events"] if event[1]["durable.step.name"] == "recorded"]
    assert [event[1]["durable.step.cached"] for event in recorded] == [True]
    assert {"recovered": [1]} in told and {"result": "recorded"} in told
    scans = [line["attributes"] for line in told if line.get("span") == "durable.recovery.scan"]
    assert {"durable.recovery.found": 1} in scans
