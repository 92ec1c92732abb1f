"""`python -m benchmarks`: measure every system in turn, each in a process of its own, and print one table."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks import report, workloads
from benchmarks.effects import run_again
from benchmarks.workloads import (
    ASLEEP_OPENINGS,
    ASLEEP_OPENINGS_QUICK,
    ASLEEP_RUNS,
    FULL_ASLEEP,
    FULL_FAMILIES,
    QUICK_ASLEEP,
    QUICK_FAMILIES,
    SHARES,
    Figures,
)

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("raw", "floor", "dbos", "durable")
RAW = ("raw_inline", "raw_thread")
RAW_WORKLOADS = ("W1", "W3")
UNITS = 2_000
CHILD_SECONDS_MAX = 1800

FULL = workloads.FULL | FULL_FAMILIES | FULL_ASLEEP
QUICK = workloads.QUICK | QUICK_FAMILIES | QUICK_ASLEEP


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, help="rounds in alternation, of which the medians are shown (3; 1 with --quick)"
    )
    parser.add_argument("--only", help=f"workloads, for example W1,W3; of {', '.join(FULL)}")
    parser.add_argument("--peers", default=",".join(PEERS), help="systems to measure (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small workloads, one round: to see that it runs")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / ".bench", help="where stores are made; a real disk, please"
    )
    parser.add_argument("--output", type=Path, help="file for the table; docs/benchmarks.md if everything was measured")
    chosen = parser.parse_args()
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 3)
    chosen.workloads = chosen.only.split(",") if chosen.only else list(FULL)
    chosen.peers = chosen.peers.split(",")
    if unknown := [name for name in chosen.workloads if name not in FULL] + [p for p in chosen.peers if p not in PEERS]:
        parser.error(f"not known: {', '.join(unknown)}")
    if chosen.output is None and not chosen.quick and not chosen.only and set(chosen.peers) == set(PEERS):
        chosen.output = ROOT / "docs" / "benchmarks.md"
    return chosen


def why_not(peer: str) -> str | None:
    """Say why this peer cannot be measured here, or None."""
    if peer == "dbos" and importlib.util.find_spec("dbos") is None:
        return "dbos is not installed: `make bench` installs it"
    if peer == "durable":
        tried = subprocess.run(
            [sys.executable, "-c", "import benchmarks.peers.durable"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode:
            return "durable cannot be imported: " + tried.stderr.strip().splitlines()[-1]
    return None


def command(system: str, workload: str, directory: Path, count: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.child", system, workload, str(directory), str(count)]


def child(system: str, workload: str, directory: Path, count: int) -> Figures:
    """Run one measurement; its last line is its figures."""
    done = subprocess.run(
        command(system, workload, directory, count),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=CHILD_SECONDS_MAX,
    )
    if done.returncode:
        raise SystemExit(f"{system} {workload} failed:\n{done.stderr[-4000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def first_line(system: str, workload: str, directory: Path, count: int, start: str) -> str:
    """Start a process, return the first line it prints that begins with `start`, and kill it with SIGKILL."""
    log = directory / f"{workload}.stderr"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command(system, workload, directory, count), cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        too_long = threading.Timer(CHILD_SECONDS_MAX, process.kill)
        too_long.start()
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith(start)), "")
        too_long.cancel()
        process.kill()
        process.communicate()
    if not line:
        raise SystemExit(f"{system} {workload} failed:\n{log.read_text()[-4000:]}")
    return line


def crash_and_recover(system: str, directory: Path, count: int) -> Figures:
    """Kill a process in the middle of `count` runs, then time another from its start until all of them have ended."""
    first_line(system, "W5-crash", directory, count, "READY")
    began = perf_counter()
    figures: Figures = json.loads(first_line(system, "W5-recover", directory, count, "{"))
    took = perf_counter() - began
    return {"all s": took, **figures, "recorded steps run again": run_again(directory / "effects")}


def asleep(directory: Path, count: int) -> Figures:
    """Fill a store with runs that sleep, then open it and an empty one in turn."""
    figures = child("durable", "asleep-fill", directory, count)
    print(f"asleep: {count:,} runs started in {figures['start s']:,.4g} s", file=sys.stderr, flush=True)
    child("durable", "asleep-empty", directory, ASLEEP_RUNS)  # makes the empty store
    found: dict[str, list[Figures]] = {"asleep-full": [], "asleep-empty": []}
    for number in range(ASLEEP_OPENINGS if count == FULL["asleep"] else ASLEEP_OPENINGS_QUICK):
        for kind in sorted(found, reverse=number % 2 == 0):
            found[kind].append(child("durable", kind, directory, ASLEEP_RUNS))
    full, empty = found["asleep-full"], found["asleep-empty"]
    pairs = list(zip(full, empty, strict=True))
    return figures | {
        "open s": median(a["open s"] for a in full),
        "open s, longest": max(a["open s"] for a in full),
        "MB above an empty store": median(a["MB"] - b["MB"] for a, b in pairs),
        "W1 p50 ms": median(a["p50 ms"] for a in full),
        "W1 p50 ms, empty store": median(b["p50 ms"] for b in empty),
        "W1 p50, ratio to empty": median(a["p50 ms"] / b["p50 ms"] for a, b in pairs),
    }


def measure(system: str, workload: str, root: Path, count: int) -> Figures:
    """Measure in a fresh directory, which is gone afterwards."""
    root.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{system}-{workload}-", dir=root))
    try:
        if workload == "asleep":
            return asleep(directory, count)
        if workload != "W5":
            return child(system, workload, directory, count)
        figures = crash_and_recover(system, directory, count)
        (undisturbed := directory / "undisturbed").mkdir()
        return figures | child(system, "W5-undisturbed", undisturbed, count)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measures(system: str, workload: str) -> bool:
    """Tell whether this workload is measured with this system."""
    if workload in FULL_FAMILIES or workload in FULL_ASLEEP:
        return system == "durable"
    return system not in RAW or workload in RAW_WORKLOADS


def plan(systems: list[str], workloads: list[str], rounds: int) -> Iterator[tuple[int, str, str]]:
    """Every system in each round, and in each round another one first."""
    for number in range(rounds):
        for workload in workloads:
            able = [s for s in systems if measures(s, workload)]
            if workload in FULL_ASLEEP and number:
                continue
            shift = number % len(able) if able else 0
            yield from ((number, workload, system) for system in able[shift:] + able[:shift])


def main() -> None:
    chosen = arguments()
    systems: list[str] = []
    for peer in chosen.peers:
        if reason := why_not(peer):
            print(f"left out: {reason}", file=sys.stderr)
        else:
            systems += RAW if peer == "raw" else (peer,)
    counts = QUICK if chosen.quick else FULL
    found = report.Found(systems, chosen.rounds)
    for number, workload, system in plan(systems, chosen.workloads, chosen.rounds):
        if not found.units_of(number):
            found.add_units(number, measure("raw", "units", chosen.directory, UNITS))
        count = int(counts[workload] * SHARES.get((workload, system), 1))
        figures = measure(system, workload, chosen.directory, count)
        found.add(number, workload, system, figures)
        shown = ", ".join(f"{value:,.4g} {name}" for name, value in figures.items())
        print(f"round {number + 1} of {chosen.rounds}: {workload} {system}: {shown}", file=sys.stderr, flush=True)
    shutil.rmtree(chosen.directory, ignore_errors=True)
    print(report.tables(found))
    print(report.units(found))
    if chosen.output and not any(peer not in systems for peer in chosen.peers if peer != "raw"):
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(report.page(found, counts))
        print(f"written: {chosen.output.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
