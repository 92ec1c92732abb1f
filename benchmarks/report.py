"""The table: medians over the rounds, and ratios that are the medians of each round's own ratio."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.effects import RECORDED, STEPS
from benchmarks.workloads import (
    ASLEEP_OPENINGS,
    ASLEEP_QUEUED_MAX,
    ASLEEP_RUNS,
    ASLEEP_STARTERS,
    CONCURRENCY,
    SHARES,
    Figures,
)

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
    ("W4c", "children/s"),
    ("W5", "all s"),
    ("W5", "after import s"),
    ("W5", "undisturbed s"),
    ("W5", "recorded steps run again"),
]
ROWS_ALONE = [
    ("W4r", "children/s"),
    ("family", "p50 ms"),
    ("family", "p99 ms"),
    ("family-task", "p50 ms"),
    ("family-task", "p99 ms"),
    ("chain", "p50 ms"),
    ("chain", "p99 ms"),
    ("parents", "executions/s"),
    ("mix", "executions/s"),
    ("returned", "s"),
    ("returned", "peak MB"),
    ("awaited", "s"),
    ("awaited", "peak MB"),
    ("asleep", "start s"),
    ("asleep", "starts put off"),
    ("asleep", "start peak MB"),
    ("asleep", "open s"),
    ("asleep", "open s, longest"),
    ("asleep", "MB above an empty store"),
    ("asleep", "W1 p50 ms"),
    ("asleep", "W1 p50 ms, empty store"),
    ("asleep", "W1 p50, ratio to empty"),
    ("observing", "unobserved runs/s"),
    ("observing", "unobserved runs/s, % less"),
    ("observing", "observed runs/s, % less"),
    ("observing", "traced runs/s, % less"),
    ("observing", "unobserved steps/s"),
    ("observing", "unobserved steps/s, % less"),
    ("observing", "observed steps/s, % less"),
    ("observing", "traced steps/s, % less"),
]


@dataclass
class Found:
    """What was measured: by round, workload and system."""

    systems: list[str]
    rounds: int
    headings: dict[str, str] = field(default_factory=lambda: HEADINGS)
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

    def median(self, workload: str, system: str, name: str) -> float | None:
        values = self.values(workload, system, name).values()
        return median(values) if values else None

    def ratio(self, workload: str, name: str, peer: str) -> float | None:
        """Of `durable` to this peer: the median of the rounds' own ratios."""
        mine, theirs = self.values(workload, "durable", name), self.values(workload, peer, name)
        both = [mine[n] / theirs[n] for n in mine.keys() & theirs.keys() if theirs[n]]
        return median(both) if both else None

    def values(self, workload: str, system: str, name: str) -> dict[int, float]:
        return {
            number: figures[name]
            for (number, w, s), figures in self.figures.items()
            if (w, s) == (workload, system) and name in figures
        }


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def ratio(found: Found, workload: str, name: str, peer: str) -> str:
    value = found.ratio(workload, name, peer)
    return "" if value is None else f"{value:.3g}"


def table(found: Found) -> str:
    peers = [s for s in found.systems if s not in ("durable", "raw_inline")] if "durable" in found.systems else []
    head = ["", *(found.headings[s] for s in found.systems), *(f"durable : {found.headings[s]}" for s in peers)]
    lines = [head, ["--", *["--:"] * (len(head) - 1)]]
    for workload, name in ROWS:
        columns = [found.values(workload, system, name) for system in found.systems]
        if any(columns):
            shown = [number(median(column.values())) if column else "" for column in columns]
            lines.append([f"{workload}, {name}", *shown, *(ratio(found, workload, name, peer) for peer in peers)])
    return formatted(lines)


def table_alone(found: Found, rows: Sequence[tuple[str, str]] = ROWS_ALONE) -> str:
    """What `durable` has to itself."""
    lines = [["", HEADINGS["durable"]], ["--", "--:"]]
    for workload, name in rows:
        if values := found.values(workload, "durable", name):
            lines.append([f"{workload}, {name}", number(median(values.values()))])
    return formatted(lines)


def tables(found: Found) -> str:
    """Those of the two tables that have a row."""
    measured = {workload for _, workload, _ in found.figures}
    several = table(found) if measured & {workload for workload, _ in ROWS} else ""
    alone = table_alone(found) if measured & {workload for workload, _ in ROWS_ALONE} else ""
    return "\n\n".join(filter(None, (several, alone)))


def formatted(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def units(found: Found) -> str:
    return (
        f"\nUnits of this machine in the same run: F, appends of 200 bytes with fdatasync: {number(found.unit('F'))} a second; "
        f"T, `create_task` and await of a no-op: {number(found.unit('T'))} a second."
    )


def page(found: Found, counts: dict[str, int]) -> str:
    """The text of docs/benchmarks.md, as far as it is of the store in a directory."""
    versions = {"durable": importlib.metadata.version("durable"), "DBOS": importlib.metadata.version("dbos")}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    fewer = int(counts["W4c"] * SHARES["W4c", "dbos"])
    return f"""# Benchmarks

Written by `make bench` on {datetime.date.today().isoformat()}; no figure is typed by hand.

{named}; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.system()} on {platform.machine()}
with {os.cpu_count()} cores. Medians of {found.rounds} rounds. In each round every system is measured once, in a process and a
directory of its own, one after the other, each round beginning with another one; each checks its results. Ratios are
medians of the rounds' own ratios. On a machine that does other work as well, read ratios and not digits.

{table(found)}

What has no counterpart elsewhere:

{table_alone(found)}
{units(found)}

- W1: {counts["W1"]:,} runs of one step, one after another: what the caller waits from `start` to the result. *Raw* is one append
  and sync.
- W2: {counts["W2"]:,} runs of one step, {CONCURRENCY} at once.
- W3: one run of {counts["W3"]:,} steps in sequence. *Raw* is one append and sync after another.
- W4s: one run of {counts["W4s"]:,} steps at once.
- W4c: one run that awaits {counts["W4c"]:,} children at once, each a run of one step; DBOS: {fewer:,}.
- W5: {counts["W5"]:,} runs of {STEPS} steps, killed with SIGKILL when {RECORDED} steps of each are on record. *All*: from the start
  of the next process until every run has ended; *after import*: the same without starting Python and importing.
  *Undisturbed*: as many runs of {STEPS - RECORDED} steps, started and ended without a crash. *Recorded steps run again* has to be 0.
- W4r: one run that returns {counts["W4r"]:,} children, each without a step, and waits for them in the store.
- family: {counts["family"]:,} times, one after another, a parent that returns two children, and a coordinator that is a function:
  what the caller waits from `start` to the result. *family-task*: the coordinator is a task. No body has a step.
- chain: {counts["chain"]:,} chains of ten tasks, one after another.
- parents: {counts["parents"]:,} parents that return 50 children, which take 1 ms each, and a coordinator that is a task, all started at
  once. *mix*: those, and as many chains of four tasks that take 1 ms each, and loops that sleep 100 ms and ask a child whether they
  are done, which they are. Those are the shapes of the benchmark that comes with the TypeScript library `durable-execution`, and
  executions are counted as there: 52 a parent, 5 a chain, 4 a loop, though here a loop is only 2 runs.
- returned: one run that returns {counts["returned"]:,} children; *awaited*: one whose body awaits as many at once. *Peak MB*: how
  far the resident memory of the whole process, which executes all of them, rose at most above what it had before.
- asleep: {counts["asleep"]:,} runs that sleep for six hours, nine in ten within their bodies and one in ten before it begins, are
  started once, {ASLEEP_STARTERS} at a time, none while more than {ASLEEP_QUEUED_MAX:,} wait for a slot, all settings
  as they come. *Start*: until none waits for a slot; *starts put off*: refused for a while, as the
  flusher was behind; *start peak MB*: how far memory rose in that process, which also begins their bodies. Then a new process
  opens that store, and another one an empty one, {ASLEEP_OPENINGS} times in alternation; *MB above an
  empty store* is the difference of their resident memory. In each {ASLEEP_RUNS} runs of one step are started, one after another:
  W1 beside those that sleep, and in an empty store.

As a reference, not measured in this run: `durable-execution` 0.32.0 with its default interval, on a machine of this class that
did other work as well (expect 40 % either way), in memory, on SQLite and on PostgreSQL. A parent with one child and a coordinator
that is a task, p50: 1.7, 1.6 and 1.7 s; with a function 1.1, 1.5 and 1.3 s. A chain of ten: 6.5, 9.0 and 10.2 s. Executions a
second of the parents: 496 to 804, 157 to 162 and 342 to 380; of the mix: 612 to 976, 128 to 221 and 295 to 514.

*Raw, inline*: append and `fdatasync` on the event loop. *Raw, through a thread*: the same in a thread, and back to the event
loop, which is the least that an engine pays that never blocks the loop. *Floor*: `benchmarks/floor_engine.py`, a log, group
commit and memo with nothing else: what Python can reach; it syncs start, step and end each for itself. All of them have
synced what they acknowledge.
"""
