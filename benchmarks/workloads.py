"""The workloads that have peers, the same code for each of them; `families` and `asleep` hold those that `durable` has to itself.

W1  one run with one step after another, each awaited: what a caller waits
W2  runs of one step, 100 at once: what a server gets through
W3  one run of many steps in sequence: what a durable step costs
W4s one run of many steps at once: how well commits are shared
W4c one run of many children at once, each a run of one step
W5  runs of 10 steps, killed with SIGKILL when 5 of each are recorded: how long until all have ended
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import Protocol

from benchmarks.effects import RECORDED, STEPS, effects
from benchmarks.place import Place

CONCURRENCY = 100
FULL = {"W1": 500, "W2": 2_000, "W3": 2_000, "W4s": 1_000, "W4c": 1_000, "W5": 1_000}
QUICK = {"W1": 100, "W2": 400, "W3": 400, "W4s": 200, "W4c": 200, "W5": 100}
#: Of a workload whose figure is a rate, a slow peer gets this share.
SHARES = {("W4c", "dbos"): 0.2}
#: What `durable` has to itself: `benchmarks.families`, and `benchmarks.asleep`, which is measured once and not in each round.
FULL_FAMILIES = {
    "W4r": 1_000, "family": 200, "family-task": 200, "chain": 100, "parents": 100, "mix": 100, "returned": 10_000, "awaited": 10_000,
}  # fmt: skip
QUICK_FAMILIES = {
    "W4r": 100, "family": 40, "family-task": 40, "chain": 20, "parents": 20, "mix": 20, "returned": 1_000, "awaited": 1_000,
}  # fmt: skip
FULL_ASLEEP, QUICK_ASLEEP = {"asleep": 1_000_000}, {"asleep": 20_000}
FULL_OBSERVING, QUICK_OBSERVING = {"observing": 2_000}, {"observing": 200}
ASLEEP_OPENINGS, ASLEEP_OPENINGS_QUICK = 5, 2
ASLEEP_STARTERS = 500  # clients that start those that sleep
ASLEEP_QUEUED_MAX = (
    5_000  # they hold back while more wait for a slot: what is measured are runs that sleep, not a queue
)
ASLEEP_RUNS = 500  # one after another, beside those that sleep, after each opening
RESULT_OF_TEN = sum(range(STEPS))
#: What `durable` has to itself on PostgreSQL: `benchmarks.executors`, and stores that hold much.
FULL_POSTGRES = {
    **FULL,
    **{name: FULL_FAMILIES[name] for name in ("W4r", "family")},
    "elsewhere": 300, "idle": 20, "scale-1": 3_000, "scale-2": 3_000, "scale-4": 3_000, "scale-2-servers": 3_000,
    "asleep": 100_000, "ended": 1_000_000,
}  # fmt: skip
QUICK_POSTGRES = {
    **QUICK,
    **{name: QUICK_FAMILIES[name] for name in ("W4r", "family")},
    "elsewhere": 50, "idle": 6, "scale-1": 600, "scale-2": 600, "scale-4": 600, "scale-2-servers": 600,
    "asleep": 8_000, "ended": 50_000,
}  # fmt: skip
OPENINGS_POSTGRES, RUNS_POSTGRES = 3, 200  # the same of `asleep` and `ended` on PostgreSQL
#: Of the executors of W5 on PostgreSQL; else the lease is as it comes.
LEASE_SECONDS = 2.0

Figures = dict[str, float]


class Runner(Protocol):
    """An open engine that knows the body `one`."""

    async def run(self, body: str, argument: int) -> int:
        """Start one run, wait until it has ended, return its result."""
        ...


class Peer(Runner, Protocol):
    """What is measured: an open engine that knows the bodies `one`, `sequence`, `fan`, `children`, `five` and `ten`."""

    async def begin(self, argument: int) -> str:
        """Start one run of `ten`; return its id as soon as it is durable."""
        ...

    async def recovered(self, run_ids: list[str]) -> list[int]:
        """Wait until these runs, begun by a process that died, have ended."""
        ...


Open = Callable[[Place], AbstractAsyncContextManager[Peer]]


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def latency(seconds: list[float]) -> Figures:
    return {"p50 ms": quantile(seconds, 0.5) * 1e3, "p99 ms": quantile(seconds, 0.99) * 1e3}


async def one_after_another(peer: Runner, count: int) -> Figures:
    seconds = []
    for i in range(count):
        began = perf_counter()
        result = await peer.run("one", i)
        seconds.append(perf_counter() - began)
        assert result == i + 1, result
    return latency(seconds)


async def many_at_once(peer: Peer, count: int) -> Figures:
    numbers = iter(range(count))
    results: dict[int, int] = {}

    async def client() -> None:
        for i in numbers:
            results[i] = await peer.run("one", i)

    began = perf_counter()
    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    took = perf_counter() - began
    assert results == {i: i + 1 for i in range(count)}
    return {"runs/s": count / took}


async def in_one_run(peer: Peer, body: str, count: int, unit: str) -> Figures:
    began = perf_counter()
    result = await peer.run(body, count)
    took = perf_counter() - began
    assert result == count * (count + 1) // 2, result
    return {f"{unit}/s": count / took}


async def until_killed(peer: Peer, count: int, place: Place) -> Figures:
    run_ids = await asyncio.gather(*(peer.begin(i) for i in range(count)))
    (place.directory / "run_ids.json").write_text(json.dumps(run_ids))
    while effects.blocked < count:
        await asyncio.sleep(0.01)
    print("READY", flush=True)
    await asyncio.Event().wait()
    return {}


async def undisturbed(peer: Peer, count: int) -> Figures:
    began = perf_counter()
    results = await asyncio.gather(*(peer.run("five", i) for i in range(count)))
    took = perf_counter() - began
    assert results == [sum(range(RECORDED))] * count
    return {"undisturbed s": took}


async def measure(opened: Open, workload: str, place: Place, count: int) -> Figures:
    """Run one workload on one peer; the warm-up is not measured."""
    plain: dict[str, Callable[[Peer], Awaitable[Figures]]] = {
        "W1": lambda peer: one_after_another(peer, count),
        "W2": lambda peer: many_at_once(peer, count),
        "W3": lambda peer: in_one_run(peer, "sequence", count, "steps"),
        "W4s": lambda peer: in_one_run(peer, "fan", count, "steps"),
        "W4c": lambda peer: in_one_run(peer, "children", count, "children"),
        "W5-undisturbed": lambda peer: undisturbed(peer, count),
        "W5-crash": lambda peer: until_killed(peer, count, place),
    }
    if workload.startswith("W5"):
        place = place.having(lease_seconds=LEASE_SECONDS)
    if workload == "W5-recover":
        return await recover(opened, place)
    if workload == "W5-crash":
        effects.open(place.directory / "effects", block=True)
    async with opened(place) as peer:
        assert await peer.run("one", 0) == 1
        return await plain[workload](peer)


async def recover(opened: Open, place: Place) -> Figures:
    """Time from the moment at which everything is imported until every run has ended."""
    effects.open(place.directory / "effects", block=False)
    run_ids = json.loads((place.directory / "run_ids.json").read_text())
    began = perf_counter()
    async with opened(place) as peer:
        results = await peer.recovered(run_ids)
        took = perf_counter() - began
        assert results == [RESULT_OF_TEN] * len(run_ids), results[:10]
        # The clock of the whole process, which runs in the parent, stops at this line: closing is not part of recovery.
        print(json.dumps({"after import s": took}), flush=True)
    return {}
