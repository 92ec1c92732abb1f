"""One measurement in a process of its own: `python -m benchmarks.child PEER WORKLOAD DIRECTORY COUNT` prints its figures as JSON."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks import raw
from benchmarks.workloads import FULL_FAMILIES, Figures, measure


def main(peer: str, workload: str, directory: str, count: str) -> None:
    figures: Figures
    if peer.startswith("raw"):
        figures = asyncio.run(raw.measure(peer, workload, Path(directory), int(count)))
    elif workload in FULL_FAMILIES or workload.startswith("asleep"):
        alone = importlib.import_module(f"benchmarks.{'families' if workload in FULL_FAMILIES else 'asleep'}")
        figures = asyncio.run(alone.measure(workload, Path(directory), int(count)))
    else:
        opened = importlib.import_module(f"benchmarks.peers.{peer}").opened
        figures = asyncio.run(measure(opened, workload, Path(directory), int(count)))
    if figures:
        print(json.dumps(figures), flush=True)
    os._exit(0)  # what is measured is measured: threads that a peer leaves behind do not hold the next one up


if __name__ == "__main__":
    main(*sys.argv[1:])
