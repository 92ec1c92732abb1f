"""The table: medians over the rounds, and ratios that are the medians of each round's own ratio."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sqlite3
from dataclasses import dataclass, field
from statistics import median

from benchmarks.effects import RECORDED, STEPS
from benchmarks.workloads import CONCURRENCY, Figures

HEADINGS = {
    "raw_inline": "raw, inline",
    "raw_thread": "raw, through a thread",
    "floor": "floor",
    "dbos": "DBOS on SQLite",
    "durable": "durable",
}
ROWS = [
    ("W1", "p50 ms"),
    ("W1", "p99 ms"),
    ("W2", "runs/s"),
    ("W3", "steps/s"),
    ("W4s", "steps/s"),
    ("W5", "all s"),
    ("W5", "after import s"),
    ("W5", "undisturbed s"),
    ("W5", "recorded steps run again"),
]


@dataclass
class Found:
    """What was measured: by round, workload and system."""

    systems: list[str]
    rounds: int
    figures: dict[tuple[int, str, str], Figures] = field(default_factory=dict)
    _units: dict[int, Figures] = field(default_factory=dict)

    def add(self, number: int, workload: str, system: str, figures: Figures) -> None:
        self.figures[number, workload, system] = figures

    def add_units(self, number: int, figures: Figures) -> None:
        self._units[number] = figures

    def units_of(self, number: int) -> Figures | None:
        return self._units.get(number)

    def unit(self, name: str) -> float:
        return median(figures[name] for figures in self._units.values())

    def values(self, workload: str, system: str, name: str) -> dict[int, float]:
        return {
            number: figures[name]
            for (number, w, s), figures in self.figures.items()
            if (w, s) == (workload, system) and name in figures
        }


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def ratio(found: Found, workload: str, name: str, peer: str) -> str:
    mine, theirs = found.values(workload, "durable", name), found.values(workload, peer, name)
    both = [mine[n] / theirs[n] for n in mine.keys() & theirs.keys() if theirs[n]]
    return f"{median(both):.3g}" if both else ""


def table(found: Found) -> str:
    peers = [s for s in found.systems if s not in ("durable", "raw_inline")] if "durable" in found.systems else []
    head = ["", *(HEADINGS[s] for s in found.systems), *(f"durable : {HEADINGS[s]}" for s in peers)]
    lines = [head, ["--", *["--:"] * (len(head) - 1)]]
    for workload, name in ROWS:
        columns = [found.values(workload, system, name) for system in found.systems]
        if any(columns):
            shown = [number(median(column.values())) if column else "" for column in columns]
            lines.append([f"{workload}, {name}", *shown, *(ratio(found, workload, name, peer) for peer in peers)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def units(found: Found) -> str:
    return (
        f"\nUnits of this machine in the same run: F, appends of 200 bytes with fdatasync: {number(found.unit('F'))} a second; "
        f"T, `create_task` and await of a no-op: {number(found.unit('T'))} a second."
    )


def page(found: Found, counts: dict[str, int]) -> str:
    """The text of docs/benchmarks.md."""
    versions = {"durable": importlib.metadata.version("durable"), "DBOS": importlib.metadata.version("dbos")}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""# Benchmarks

Written by `make bench` on {datetime.date.today().isoformat()}; no figure is typed by hand.

{named}; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.system()} on {platform.machine()}
with {os.cpu_count()} cores. Medians of {found.rounds} rounds. In each round every system is measured once, in a process and a
directory of its own, one after the other, each round beginning with another one; each checks its results. Ratios are
medians of the rounds' own ratios. On a machine that does other work as well, read ratios and not digits.

{table(found)}
{units(found)}

- W1: {counts["W1"]:,} runs of one step, one after another: what the caller waits from `start` to the result. *Raw* is one append
  and sync.
- W2: {counts["W2"]:,} runs of one step, {CONCURRENCY} at once.
- W3: one run of {counts["W3"]:,} steps in sequence. *Raw* is one append and sync after another.
- W4s: one run of {counts["W4s"]:,} steps at once.
- W5: {counts["W5"]:,} runs of {STEPS} steps, killed with SIGKILL when {RECORDED} steps of each are on record. *All*: from the start
  of the next process until every run has ended; *after import*: the same without starting Python and importing.
  *Undisturbed*: as many runs of {STEPS - RECORDED} steps, started and ended without a crash. *Recorded steps run again* has to be 0.

*Raw, inline*: append and `fdatasync` on the event loop. *Raw, through a thread*: the same in a thread, and back to the event
loop, which is the least that an engine pays that never blocks the loop. *Floor*: `benchmarks/floor_engine.py`, a log, group
commit and memo with nothing else: what Python can reach; it syncs start, step and end each for itself. All of them have
synced what they acknowledge.
"""
