"""The parent's side: each measurement in a process, a directory and, on PostgreSQL, a database of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from benchmarks.effects import run_again
from benchmarks.place import Place
from benchmarks.workloads import (
    ASLEEP_OPENINGS,
    ASLEEP_OPENINGS_QUICK,
    ASLEEP_RUNS,
    OPENINGS_POSTGRES,
    RUNS_POSTGRES,
    Figures,
)

if TYPE_CHECKING:
    from benchmarks.server import Server

ROOT = Path(__file__).resolve().parent.parent
CHILD_SECONDS_MAX = 1800
UNITS = 2_000
IDLE_SETTLE_SECONDS = 3.0


def command(system: str, workload: str, place: Place, count: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.child", system, workload, str(place.directory), str(count), place.url]


def child(system: str, workload: str, place: Place, count: int) -> Figures:
    """Run one measurement; its last line is its figures, if it has any."""
    done = subprocess.run(
        command(system, workload, place, count),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=CHILD_SECONDS_MAX,
    )
    if done.returncode:
        raise SystemExit(f"{system} {workload} failed:\n{done.stderr[-4000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return figures


class Background:
    """A measurement's process that says how far it is, and is killed with SIGKILL at the end of the block."""

    def __init__(self, system: str, workload: str, place: Place, count: int = 0) -> None:
        self._name = f"{system} {workload}"
        self._log = tempfile.NamedTemporaryFile(dir=place.directory, prefix=workload, suffix=".stderr", delete=False)  # noqa: SIM115
        self._process = subprocess.Popen(
            command(system, workload, place, count),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = self._process.pid
        self._too_long = threading.Timer(CHILD_SECONDS_MAX, self._process.kill)
        self._too_long.start()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        self._too_long.cancel()
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def line(self, start: str) -> str:
        """Wait for the first line that begins with `start`."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit(f"{self._name} failed:\n{Path(self._log.name).read_text()[-4000:]}")


@dataclass(frozen=True)
class Bench:
    """Arguments:
    root: where directories are made; a real disk, please.
    server: a second kind of store; None for stores in directories.
    quick: to see that it runs.
    """

    root: Path
    server: Server | None
    quick: bool

    @contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """A new place, which is gone afterwards."""
        self.root.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.root))
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            yield Place(directory, stack.enter_context(self.server.database()) if self.server else "")

    def units(self) -> Figures:
        with self.place("units") as place:
            return child("raw", "units", place, UNITS)

    def measure(self, system: str, workload: str, count: int) -> Figures:
        with self.place(f"{system}-{workload}") as place:
            if workload in ("asleep", "ended"):
                return self.holding_much(workload, place, count)
            if workload == "elsewhere":
                return elsewhere(place, count)
            if workload == "idle":
                return self.idle(place, count)
            if workload.startswith("scale"):
                return self.scale(workload, place, count)
            if workload != "W5":
                return child(system, workload, place, count)
            figures = crash_and_recover(system, place, count)
        with self.place(f"{system}-undisturbed") as place:
            return figures | child(system, "W5-undisturbed", place, count)

    def holding_much(self, workload: str, place: Place, count: int) -> Figures:
        """Fill a store, then open it and an empty one in turn."""
        figures = child("durable", f"{workload}-fill", place, count)
        print(f"{workload}: {count:,} runs are in the store", file=sys.stderr, flush=True)
        openings, runs = (OPENINGS_POSTGRES, RUNS_POSTGRES) if place.url else (ASLEEP_OPENINGS, ASLEEP_RUNS)
        child("durable", f"{workload}-empty", place, runs)  # makes the empty store
        found: dict[str, list[Figures]] = {f"{workload}-full": [], f"{workload}-empty": []}
        for number in range(ASLEEP_OPENINGS_QUICK if self.quick else openings):
            for kind in sorted(found, reverse=number % 2 == 0):
                found[kind].append(child("durable", kind, place, runs))
        full, empty = found[f"{workload}-full"], found[f"{workload}-empty"]
        pairs = list(zip(full, empty, strict=True))
        figures |= {
            "open s": median(a["open s"] for a in full),
            "open s, longest": max(a["open s"] for a in full),
            "MB above an empty store": median(a["MB"] - b["MB"] for a, b in pairs),
        }
        for name in full[0].keys() - {"open s", "MB"}:
            figures[name] = median(a[name] for a in full)
            figures[f"{name}, empty store"] = median(b[name] for b in empty)
            figures[f"{name.removesuffix(' ms')}, ratio to empty"] = median(a[name] / b[name] for a, b in pairs)
        return figures

    def idle(self, place: Place, seconds: int) -> Figures:
        """Count the statements of one executor that has nothing to do."""
        assert self.server is not None
        self.server.log_statements(place.url)
        with Background("durable", "executor", place) as executor:
            executor.line("OPEN")
            sleep(IDLE_SETTLE_SECONDS)
            before = self.server.statements()
            sleep(seconds)
            return {"statements/s": (self.server.statements() - before) / seconds}

    def scale(self, workload: str, place: Place, count: int) -> Figures:
        """Time as many executors, on one server or on a server each, as the name says."""
        from benchmarks import scale
        from benchmarks.server import Server

        assert self.server is not None
        if workload == "scale-2-servers":
            with Server() as second, second.database() as url:
                return scale.measure({self.server: place, second: Place(place.directory, url)}, 1, count)
        return scale.measure({self.server: place}, int(workload.partition("-")[2]), count)


def crash_and_recover(system: str, place: Place, count: int) -> Figures:
    """Kill a process in the middle of `count` runs, then time another from its start until all of them have ended."""
    with Background(system, "W5-crash", place, count) as crashing:
        crashing.line("READY")
    began = perf_counter()
    with Background(system, "W5-recover", place, count) as recovering:
        figures: Figures = json.loads(recovering.line("{"))
        took = perf_counter() - began
    return {"all s": took, **figures, "recorded steps run again": run_again(place.directory / "effects")}


def elsewhere(place: Place, count: int) -> Figures:
    """Start in one process, execute in another."""
    with Background("durable", "executor", place) as executor:
        executor.line("OPEN")
        return child("durable", "elsewhere", place, count)
