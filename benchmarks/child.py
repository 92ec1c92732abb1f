"""One measurement in a process of its own: `python -m benchmarks.child PEER WORKLOAD DIRECTORY COUNT [URL]` prints its figures as JSON."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks import raw
from benchmarks.place import Place
from benchmarks.workloads import FULL_FAMILIES, Figures, measure

#: Which module has the workloads that `durable` has to itself, by the first word of their names.
ALONE = dict.fromkeys((name.partition("-")[0] for name in FULL_FAMILIES), "families") | {
    "asleep": "asleep", "ended": "asleep", "executor": "executors", "fill": "executors", "elsewhere": "executors",
    "observing": "observing",
}  # fmt: skip


def main(peer: str, workload: str, directory: str, count: str, url: str = "") -> None:
    place = Place(Path(directory), url)
    figures: Figures
    if peer.startswith("raw"):
        figures = asyncio.run(raw.measure(peer, workload, place, int(count)))
    elif module := ALONE.get(workload.partition("-")[0]):
        alone = importlib.import_module(f"benchmarks.{module}")
        figures = asyncio.run(alone.measure(workload, place, int(count)))
    else:
        opened = importlib.import_module(f"benchmarks.peers.{peer}").opened
        figures = asyncio.run(measure(opened, workload, place, int(count)))
    if figures:
        print(json.dumps(figures), flush=True)
    os._exit(0)  # what is measured is measured: threads that a peer leaves behind do not hold the next one up


if __name__ == "__main__":
    main(*sys.argv[1:])
