"""What observing costs: runs of one step, 100 at once (W2), and steps of one run at once (W4s), in short rounds, one way after another.

bare        as if nothing could be observed: records are not even counted
unobserved  as it comes: no observer, no provider of OpenTelemetry
observed    one observer of one's own that is told of every record
traced      OpenTelemetry with the SDK, everything sampled, exported to nowhere
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.peers.durable import Local, application
from benchmarks.place import Place
from benchmarks.workloads import Figures, in_one_run, many_at_once
from durable import Durable, Event
from durable.engine.observing import Observing
from durable.observe import ObservedRun, Observer

WAYS = ("bare", "unobserved", "observed", "traced")
ROUNDS = 5
#: Of runs and of steps, how many more of the second there are.
STEPS_A_RUN = 5


class Reader(Observer):
    """Is told of every record."""

    def __init__(self) -> None:
        self.count = 0

    def on_record(self, run: ObservedRun, event: Event) -> None:
        self.count += 1


def observers(way: str) -> Sequence[Observer]:
    if way == "observed":
        return [Reader()]
    if way != "traced":
        return []
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider

    from durable.observe.otel import OpenTelemetry

    return [OpenTelemetry(tracer_provider=TracerProvider(), meter_provider=MeterProvider([InMemoryMetricReader()]))]


@contextmanager
def unobservable(way: str) -> Iterator[None]:
    """For `bare`: what tells observers is not there."""
    if way != "bare":
        yield
        return
    changed: dict[str, Any] = {
        "told": lambda self, publish: publish,
        "measured": lambda self, commit: commit,
        "enter": lambda self, context, run_id: None,
    }
    with patch.multiple(Observing, **changed):
        yield


async def measure(workload: str, place: Place, count: int) -> Figures:
    """Rates of each way, and the median over the rounds of how much less than `bare` it is, in percent."""
    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(ROUNDS + 1):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            there = replace(place, directory=place.directory / f"{way}-{number}")
            there.directory.mkdir(parents=True, exist_ok=True)
            with unobservable(way):
                found = await one_way(there, way, count)
            if number:  # the first round warms up
                for name, rate in found.items():
                    rates.setdefault((name, way), []).append(rate)
    figures: Figures = {}
    for name in ("runs/s", "steps/s"):
        bare = rates[name, "bare"]
        for way in WAYS:
            figures[f"{way} {name}"] = median(rates[name, way])
            if way != "bare":
                less = [100 * (1 - mine / base) for mine, base in zip(rates[name, way], bare, strict=True)]
                figures[f"{way} {name}, % less"] = median(less)
    return figures


async def one_way(place: Place, way: str, count: int) -> Figures:
    app: Durable = application(place, observers=observers(way))
    async with app:
        peer = Local(app)
        assert await peer.run("one", 0) == 1
        runs = await many_at_once(peer, count)  # type: ignore[arg-type]
        steps = await in_one_run(peer, "fan", count * STEPS_A_RUN, "steps")  # type: ignore[arg-type]
    return {**runs, **steps}
