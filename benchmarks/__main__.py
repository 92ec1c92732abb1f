"""`python -m benchmarks`: measure every system in turn, each in a process of its own, and print one table for each kind of store."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report, report_postgres, workloads
from benchmarks.measuring import ROOT, Bench
from benchmarks.report import Found
from benchmarks.server import Server
from benchmarks.workloads import (
    FULL_ASLEEP,
    FULL_FAMILIES,
    FULL_OBSERVING,
    FULL_POSTGRES,
    QUICK_ASLEEP,
    QUICK_FAMILIES,
    QUICK_OBSERVING,
    SHARES,
)  # fmt: skip

PEERS = ("raw", "floor", "dbos", "durable")
RAW_WORKLOADS = ("W1", "W3")
#: Too long for more than one round, or the same in each.
ONCE = ("asleep", "ended", "idle", "observing")
ONCE_ON_POSTGRES = (("W5", "dbos"),)
PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Suite:
    """What is measured of one kind of store.

    Arguments:
        raw: the systems that `raw` stands for.
        full, quick: workloads, and how many runs or steps they have.
    """

    raw: tuple[str, ...]
    full: dict[str, int]
    quick: dict[str, int]


SUITES = {
    "embedded": Suite(
        ("raw_inline", "raw_thread"),
        workloads.FULL | FULL_FAMILIES | FULL_ASLEEP | FULL_OBSERVING,
        workloads.QUICK | QUICK_FAMILIES | QUICK_ASLEEP | QUICK_OBSERVING,
    ),
    "postgres": Suite(("raw_commit",), FULL_POSTGRES, workloads.QUICK_POSTGRES),
}
WORKLOADS = list(dict.fromkeys(name for suite in SUITES.values() for name in suite.full))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--store", choices=[*SUITES, "all"], default="all", help="kind of store (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, help="rounds in alternation, of which the medians are shown (3; 1 with --quick)"
    )
    parser.add_argument("--only", help=f"workloads, for example W1,W3; of {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", default=",".join(PEERS), help="systems to measure (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small workloads, one round: to see that it runs")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / ".bench", help="where stores are made; a real disk, please"
    )
    parser.add_argument("--output", type=Path, help=f"file for the tables; {PAGE.name} if everything was measured")
    chosen = parser.parse_args()
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 3)
    chosen.workloads = chosen.only.split(",") if chosen.only else WORKLOADS
    chosen.peers = chosen.peers.split(",")
    chosen.stores = list(SUITES) if chosen.store == "all" else [chosen.store]
    unknown = [name for name in chosen.workloads if name not in WORKLOADS] + [p for p in chosen.peers if p not in PEERS]
    if unknown:
        parser.error(f"not known: {', '.join(unknown)}")
    if chosen.output is None and not chosen.quick and not chosen.only and set(chosen.peers) == set(PEERS):
        chosen.output = PAGE
    if chosen.output and chosen.only:
        parser.error("--output needs all workloads")
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


def plan(suite: Suite, peers: list[str], wanted: list[str], rounds: int) -> Iterator[tuple[int, str, str]]:
    """Every system in each round, and in each round another one first."""
    for number in range(rounds):
        for workload in suite.full:
            if workload not in wanted or (number and workload in ONCE):
                continue
            able = [system for system in systems(suite, peers) if measures(suite, system, workload)]
            if number and suite is SUITES["postgres"]:
                able = [system for system in able if (workload, system) not in ONCE_ON_POSTGRES]
            shift = number % len(able) if able else 0
            yield from ((number, workload, system) for system in able[shift:] + able[:shift])


def systems(suite: Suite, peers: list[str]) -> list[str]:
    return [system for peer in peers for system in (suite.raw if peer == "raw" else (peer,))]


def measures(suite: Suite, system: str, workload: str) -> bool:
    """Tell whether this workload is measured with this system."""
    if workload not in workloads.FULL:
        return system == "durable"
    return system not in suite.raw or workload in RAW_WORKLOADS


def measure(suite: Suite, bench: Bench, peers: list[str], chosen: argparse.Namespace) -> Found:
    """All of one kind of store."""
    headings = report_postgres.HEADINGS if bench.server else report.HEADINGS
    found = Found(systems(suite, peers), chosen.rounds, headings)
    for number, workload, system in plan(suite, peers, chosen.workloads, chosen.rounds):
        if not found.units_of(number):
            found.add_units(number, bench.units())
        count = int((suite.quick if chosen.quick else suite.full)[workload] * SHARES.get((workload, system), 1))
        figures = bench.measure(system, workload, count)
        found.add(number, workload, system, figures)
        shown = ", ".join(f"{value:,.4g} {name}" for name, value in figures.items())
        print(f"round {number + 1} of {chosen.rounds}: {workload} {system}: {shown}", file=sys.stderr, flush=True)
    return found


def write(path: Path, store: str, text: str) -> None:
    """Put one part into the page, and leave the other as it is."""
    before = path.read_text() if path.exists() else ""
    embedded, _, postgres = before.partition(report_postgres.HEADING)
    if store == "embedded":
        postgres = report_postgres.HEADING + postgres if postgres else ""
        text = f"{text}\n{postgres}".rstrip() + "\n"
    else:
        text = f"{embedded.rstrip()}\n\n{text}".lstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main() -> None:
    chosen = arguments()
    peers: list[str] = []
    for peer in chosen.peers:
        if reason := why_not(peer):
            print(f"left out: {reason}", file=sys.stderr)
        else:
            peers.append(peer)
    for store in chosen.stores:
        suite = SUITES[store]
        counts = suite.quick if chosen.quick else suite.full
        with ExitStack() as stack:
            server = stack.enter_context(Server()) if store == "postgres" else None
            found = measure(suite, Bench(chosen.directory, server, chosen.quick), peers, chosen)
            version = server.version if server else ""
        shutil.rmtree(chosen.directory, ignore_errors=True)
        if not found.figures:
            continue
        print(report_postgres.tables(found) if server else report.tables(found))
        print(report_postgres.units(found) if server else report.units(found))
        if chosen.output and set(peers) == set(chosen.peers):
            text = report_postgres.page(found, counts, version) if server else report.page(found, counts)
            write(chosen.output, store, text)
            print(f"written: {chosen.output.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
