"""The part of docs/benchmarks.md that is of PostgreSQL: the table, what was aimed at, and how executors share a server."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterator

from benchmarks import report
from benchmarks.effects import RECORDED, STEPS
from benchmarks.report import Found, formatted, number
from benchmarks.workloads import (
    CONCURRENCY,
    LEASE_SECONDS,
    OPENINGS_POSTGRES,
    RUNS_POSTGRES,
    SHARES,
)

HEADING = "## PostgreSQL"
HEADINGS = {
    "raw_commit": "raw commits",
    "floor": "floor",
    "dbos": "DBOS",
    "durable": "durable",
}
ROWS_ALONE = [
    ("W4r", "children/s"),
    ("family", "p50 ms"),
    ("family", "p99 ms"),
    ("elsewhere", "p50 ms"),
    ("elsewhere", "p99 ms"),
    ("idle", "statements/s"),
    *(
        (kept, name)
        for kept, filled in (("asleep", ("start s", "starts put off", "start peak MB")), ("ended", ("copy s",)))
        for name in (
            *filled,
            "open s",
            "open s, longest",
            "MB above an empty store",
            "W1 p50 ms",
            "W1 p50 ms, empty store",
            "W1 p50, ratio to empty",
            "claimed p50 ms",
            "claimed p50 ms, empty store",
            "claimed p50, ratio to empty",
        )
    ),
]
SCALES = {
    "scale-1": ("1", "1"),
    "scale-2": ("2", "1"),
    "scale-4": ("4", "1"),
    "scale-2-servers": ("2", "2"),
}
SCALE_COLUMNS = (
    "runs/s",
    "steps/s",
    "server, ms a run",
    "executors, ms a run",
    "server, processors",
    "executors, processors",
)
#: Ratios of `durable` to a peer: workload, figure, peer, what is aimed at, and whether that is the most or the least.
RATIOS = [
    ("W1", "p50 ms", "raw_commit", 4.0, "at most"),
    ("W2", "runs/s", "floor", 0.25, "at least"),
    ("W2", "runs/s", "dbos", 15.0, "at least"),
    ("W3", "steps/s", "raw_commit", 0.6, "at least"),
    ("W3", "steps/s", "dbos", 8.0, "at least"),
    ("W4s", "steps/s", "floor", 0.25, "at least"),
    ("W4s", "steps/s", "dbos", 20.0, "at least"),
    ("W4c", "children/s", "floor", 0.25, "at least"),
    ("W4c", "children/s", "dbos", 20.0, "at least"),
]
#: Figures of `durable` alone: workload, figure, what is aimed at.
ALONE = [
    ("W5", "recorded steps run again", 0.0, "at most"),
    ("family", "p50 ms", 20.0, "below"),
    ("elsewhere", "p50 ms", 20.0, "below"),
    ("idle", "statements/s", 2.0, "below"),
    ("asleep", "W1 p50, ratio to empty", 1.2, "at most"),
    ("asleep", "claimed p50, ratio to empty", 1.2, "at most"),
    ("ended", "W1 p50, ratio to empty", 1.2, "at most"),
    ("ended", "claimed p50, ratio to empty", 1.2, "at most"),
]


def aims(found: Found) -> Iterator[tuple[str, str, float, bool]]:
    """What is aimed at: of what, what, what it is, and whether that is met; as far as it was measured."""
    for workload, name, peer, limit, side in RATIOS:
        value = found.ratio(workload, name, peer)
        if value is not None:
            met = value <= limit if side == "at most" else value >= limit
            yield f"{workload}, {name}, durable : {HEADINGS[peer]}", f"{side} {limit:g}", value, met
    # By rounds: what a round took is compared with what its steps took in the same round.
    took, after, undisturbed = (
        found.values("W5", "durable", name) for name in ("all s", "after import s", "undisturbed s")
    )
    for n in sorted(took, key=lambda n: took[n])[(len(took) - 1) // 2 :][:1]:
        limit = LEASE_SECONDS + 1 + 1.5 * undisturbed[n] + took[n] - after[n]
        yield "W5, all s", f"at most {number(limit)}", took[n], took[n] <= limit
    for workload, name, limit, side in ALONE:
        alone = found.median(workload, "durable", name)
        if alone is not None:
            yield (
                f"{workload}, {name}",
                f"{side} {limit:g}",
                alone,
                alone < limit if side == "below" else alone <= limit,
            )


def table_of_aims(found: Found) -> str:
    lines = [["", "target", "measured", "met"], ["--", "--:", "--:", "--:"]]
    lines += [[what, aim, f"{value:.3g}", "yes" if met else "no"] for what, aim, value, met in aims(found)]
    return formatted(lines)


def table_of_scales(found: Found) -> str:
    lines = [["executors", "servers", *SCALE_COLUMNS], ["--:"] * (2 + len(SCALE_COLUMNS))]
    for workload, (executors, servers) in SCALES.items():
        figures = [found.median(workload, "durable", name) for name in SCALE_COLUMNS]
        shown = [number(figure) for figure in figures if figure is not None]
        if shown:
            lines.append([executors, servers, *shown])
    return formatted(lines)


def tables(found: Found) -> str:
    """Those of the tables that have a row."""
    every = report.table(found), report.table_alone(found, ROWS_ALONE), table_of_aims(found), table_of_scales(found)
    return "\n\n".join(table for table in every if table.count("\n") > 1)


def units(found: Found) -> str:
    return f"{report.units(found)[:-1]}; C, commits of one row of 200 bytes on one connection: {number(found.unit('C'))} a second."


def page(found: Found, counts: dict[str, int], server: str) -> str:
    """The text of this part of docs/benchmarks.md.

    Arguments:
        server: its version.
    """
    named = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("durable", "dbos", "psycopg"))
    fewer = int(counts["W4c"] * SHARES["W4c", "dbos"])
    return f"""{HEADING}

Written by `make bench ARGS="--store postgres"` on {datetime.date.today().isoformat()}; no figure is typed by hand.

{named}; PostgreSQL {server} with fsync, synchronous_commit and full_page_writes, shared_buffers 64 MB and all else as it comes, reached
by its socket; Python {platform.python_version()}, {platform.system()} on {platform.machine()} with {os.cpu_count()} cores, which server,
executors and clients share. Medians of {found.rounds} rounds, and ratios as above. Every system is measured on the same server, in a
database of its own, after a checkpoint.

{report.table(found)}

What was aimed at, as ratios in this run:

{table_of_aims(found)}

What has no counterpart elsewhere:

{report.table_alone(found, ROWS_ALONE)}
{units(found)}

- W1 to W4r, and family: as above. *Raw commits*: one row of 200 bytes inserted after another, each committed, on one connection. W1:
  {counts["W1"]:,} runs, W2: {counts["W2"]:,} runs, {CONCURRENCY} at once, W3: {counts["W3"]:,} steps, W4s: {counts["W4s"]:,} steps, W4c:
  {counts["W4c"]:,} children, DBOS: {fewer:,}; W4r: {counts["W4r"]:,} children; family: {counts["family"]:,} times.
- W5: {counts["W5"]:,} runs of {STEPS} steps, killed with SIGKILL when {RECORDED} steps of each are on record, with a lease of
  {LEASE_SECONDS:g} s, while the other settings are as they come: the next process is another executor, and waits until the lease of the
  one that was killed has passed. DBOS, measured in the first round only, and floor have no leases: the next process takes what there is.
  What is aimed at is one and a half times what the steps take undisturbed, and the import, and the lease, and 1 s.
- elsewhere: {counts["elsewhere"]:,} runs of one step, one after another, started and awaited by a client that executes nothing, and
  executed in another process.
- idle: what one executor that has nothing to do says to the server, counted once in the server's log for {counts["idle"]} s.
- asleep: {counts["asleep"]:,} runs that sleep for six hours, as above, measured once. *W1*: {RUNS_POSTGRES} runs of one step beside
  them, and in an empty store of the same database, started where they are executed; *claimed*: as many that a client which executes
  nothing starts in the same process, so that each is claimed. {OPENINGS_POSTGRES} times in alternation.
- ended: the same beside {counts["ended"]:,} runs of one step that have ended, with all their records: copies that the server made of one.

Executors that share servers of this one machine: {counts["scale-1"]:,} runs of one step, and {counts["scale-1"] // 5:,} of {STEPS}, which
clients have left in the stores while the executors, which had them open, were stopped by SIGSTOP; from the moment at which they go on
until all have ended. Runs a second and what they use of the processors are of the runs of one step, steps a second of the others. With two
servers, each has a store of its own and one executor, as two shards have.

{table_of_scales(found)}

*Floor*: `benchmarks/floor_table.py`, a table as a log and one INSERT of all that has gathered; it commits start, step and end each for
itself. All of them have committed what they acknowledge.
"""
