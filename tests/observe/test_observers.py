"""Observers of one's own: what they are told, and that they harm nobody."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from durable import BackpressureError, ConfigError, Context, Durable, Event, RunFailedError, step, task
from durable.engine.observing import Observing
from durable.observe import Batch, Gauges, ObservedAttempt, ObservedRun, Observer, Refusal, RunLogFilter, Scan
from durable.store.local import LocalStore
from durable.store.memory import MemoryStore

ROOT = Path(__file__).resolve().parents[2]


@step(name="seen_step")
async def one_step(number: int) -> int:
    return number + 1


@task(name="seen_task")
async def work(number: int) -> int:
    return await one_step(number)


@task(name="seen_failing", retry=2)
async def failing() -> None:
    raise ValueError("broken")


@task(name="seen_pausing")
async def pausing(ctx: Context) -> None:
    await ctx.wait_for("go")


class Diary(Observer):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.lines: list[object] = []
        self.records: list[tuple[ObservedRun, Event]] = []
        self.gauges: Callable[[], Gauges] | None = None

    def on_open(self, gauges: Callable[[], Gauges]) -> None:
        self.lines.append("open")
        self.gauges = gauges

    def on_record(self, run: ObservedRun, event: Event) -> None:
        self.records.append((run, event))

    def on_refused(self, refusal: Refusal) -> None:
        self.lines.append(refusal)

    def on_batch(self, batch: Batch) -> None:
        self.lines.append(batch)

    def on_scan(self, scan: Scan) -> None:
        self.lines.append(scan)

    @contextmanager
    def _around(self, attempt: ObservedAttempt) -> Iterator[None]:
        self.lines.append(("begins", attempt.run.task_name, attempt.attempt, attempt.recovered))
        try:
            yield
        except ValueError as error:
            self.lines.append(("raised", str(error)))
            raise
        self.lines.append(("returned", attempt.attempt))

    def attempt(self, attempt: ObservedAttempt) -> AbstractContextManager[object]:
        return self._around(attempt)

    def on_close(self) -> None:
        self.lines.append("close")


async def test_an_observer_is_told_of_everything(tmp_path: Path) -> None:
    """Each record of a run, in order, as its own events tell it; batches, the look for runs, the body, the opening and the end."""
    diary = Diary()
    async with Durable(tmp_path, observers=[diary]) as app:
        handle = await app.start(work.options(key="k", user="u"), 1)
        assert await handle == 2
        assert [event async for event in handle.events(steps=True)] == [event for _, event in diary.records]
        assert diary.gauges is not None and diary.gauges() == Gauges(running=0, queued=0, streams=0, dead_letters=0)
    run, first = diary.records[0]
    assert (run.run_id, run.task_name, run.key, run.user, run.parent_id) == (handle.run_id, "seen_task", "k", "u", None)
    assert first.data["input"] == {"number": 1} and run.created_at == first.at
    assert [event.name for _, event in diary.records] == ["created", "started", "step:completed", "completed"]
    assert diary.lines[0] == "open" and diary.lines[-1] == "close"
    assert [line for line in diary.lines if isinstance(line, tuple)] == [
        ("begins", "seen_task", 1, False),
        ("returned", 1),
    ]
    batches = [line for line in diary.lines if isinstance(line, Batch)]
    assert {kind: sum(batch.entries for batch in batches if batch.kind == kind) for kind in ("log", "flush")} == {
        "log": 4,
        "flush": 4,
    }
    assert [line.found for line in diary.lines if isinstance(line, Scan)] == [0]


async def test_what_a_body_raises_is_seen_and_goes_on(tmp_path: Path) -> None:
    """The observer stands around each attempt."""
    diary = Diary()
    async with Durable(tmp_path, observers=[diary]) as app:
        with pytest.raises(RunFailedError, match="broken"):
            await (await app.start(failing))
    assert [line for line in diary.lines if isinstance(line, tuple)] == [
        ("begins", "seen_failing", 1, False),
        ("raised", "broken"),
        ("begins", "seen_failing", 2, False),
        ("raised", "broken"),
    ]


async def test_a_refused_start_is_told_with_its_reason() -> None:
    """Nothing was stored of it, so no record tells."""

    class Full(MemoryStore):
        def admit(self) -> None:
            raise BackpressureError("enough")

    diary = Diary()
    async with Durable(Full(), observers=[diary]) as app:
        with pytest.raises(BackpressureError):
            await app.start(work.options(user="u"), 1)
    (refusal,) = [line for line in diary.lines if isinstance(line, Refusal)]
    assert (refusal.task_name, refusal.user) == ("seen_task", "u") and refusal.reason
    assert diary.records == []


class Broken(Observer):
    """Raises wherever it can."""

    def on_open(self, gauges: Callable[[], Gauges]) -> None:
        raise RuntimeError

    def on_record(self, run: ObservedRun, event: Event) -> None:
        raise RuntimeError

    def on_batch(self, batch: Batch) -> None:
        raise RuntimeError

    def on_scan(self, scan: Scan) -> None:
        raise RuntimeError

    def attempt(self, attempt: ObservedAttempt) -> AbstractContextManager[object]:
        raise RuntimeError

    def on_close(self) -> None:
        raise RuntimeError


class Swallowing(Observer):
    """Fails on leaving a body, and says that it dealt with what the body raised."""

    @contextmanager
    def _around(self) -> Iterator[None]:
        try:
            yield
        except ValueError:
            return
        raise RuntimeError

    def attempt(self, attempt: ObservedAttempt) -> AbstractContextManager[object]:
        return self._around()


async def test_an_observer_that_raises_is_logged_once_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs end as they would, others are told, and the log says it once for each kind of hook."""
    diary = Diary()
    async with Durable(tmp_path, observers=[Broken(), Swallowing(), diary]) as app:
        assert [await (await app.start(work, number)) for number in range(3)] == [1, 2, 3]
        with pytest.raises(RunFailedError, match="broken"):
            await (await app.start(failing))
    assert len([event for _, event in diary.records if event.name == "completed"]) == 3
    complaints = [entry.message for entry in caplog.records if entry.name == "durable.observe"]
    assert sorted(complaints) == [
        *(f"Broken.{hook} raised; this is logged once" for hook in ("attempt", "on_batch", "on_close", "on_open")),
        *(f"Broken.{hook} raised; this is logged once" for hook in ("on_record", "on_scan")),
        "Swallowing.attempt raised; this is logged once",
    ]


def test_an_observer_is_of_a_known_kind() -> None:
    """What could never be told is refused at once."""
    with pytest.raises(ConfigError, match=r"durable\.observe\.Observer"):
        Durable(MemoryStore(), observers=[object()])  # type: ignore[list-item]


async def test_log_records_carry_the_run_and_are_not_repeated(tmp_path: Path) -> None:
    """With the filter, plain `logging` in a body and a step has the run's id; what a replay repeats can be kept back."""
    lines: list[tuple[object, object, object, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.run_id, record.task_name, record.attempt, record.getMessage()))  # type: ignore[attr-defined]

    logger = logging.getLogger("seen.by.filter")
    logger.setLevel(logging.INFO)
    handler = Handler()
    handler.addFilter(RunLogFilter(once=True))
    logger.addHandler(handler)

    @step(name="seen_logging_step")
    def log_in_step() -> None:
        logger.info("in step")

    @task(name="seen_logging")
    async def log_in_body(ctx: Context) -> None:
        logger.info("in body")
        ctx.logger.info("by ctx")
        await log_in_step()
        await one_step(1)
        logger.info("after")
        await ctx.wait_for("go")
        logger.info("done")

    logging.getLogger("durable.task.seen_logging").addHandler(handler)
    logging.getLogger("durable.task.seen_logging").setLevel(logging.INFO)
    try:
        logger.info("outside")
        async with Durable(tmp_path) as app:
            run = await app.start(log_in_body)
            async for event in run.events():
                if event.name == "waiting":
                    break
        async with Durable(tmp_path) as app:
            again = await app.get(run.run_id)
            await again.send("go")
            await again
    finally:
        logger.removeHandler(handler)
        logging.getLogger("durable.task.seen_logging").removeHandler(handler)
    said = (run.run_id, "seen_logging", 1)
    texts = ("in body", "by ctx", "in step", "after", "after", "done")
    assert lines[0] == (None, None, None, "outside")
    assert lines[1:] == [(*said, text) for text in texts], "once, but for what it said after its last recorded result"


def test_without_an_sdk_nothing_is_recorded_and_nothing_imported(tmp_path: Path) -> None:
    """No provider is configured by us, the SDK is not imported, and runs carry no trace."""
    program = f"""
        import asyncio, sys
        from durable import Durable, task

        @task
        async def work() -> int:
            return 1

        async def main():
            async with Durable({str(tmp_path)!r}) as app:
                handle = await app.start(work)
                await handle
                print("opentelemetry" in sys.modules)
                async for event in handle.events():
                    assert "trace" not in (event.data or {{}}), event
        asyncio.run(main())

        from opentelemetry import metrics, trace
        asyncio.run(main())  # with the API imported, and no provider set
        print(type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__)
        print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
        from durable.observe.otel import OpenTelemetry
        print(OpenTelemetry.of_process())
    """
    output = subprocess.check_output([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, text=True, timeout=60)
    assert output.splitlines() == ["False", "True", "ProxyTracerProvider _ProxyMeterProvider", "[]", "None"]


async def test_who_is_not_observed_pays_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside an engine that tells nobody and counts nothing, the difference is lost in the noise; a fifth is generous."""

    async def one(app: Durable, number: int) -> None:
        await (await app.start(work, number))

    async def seconds() -> float:
        async with Durable(MemoryStore()) as app:
            began = time.process_time()
            for _ in range(8):
                await asyncio.gather(*[one(app, number) for number in range(50)])
            return time.process_time() - began

    async def seconds_bare() -> float:
        with monkeypatch.context() as patch:
            patch.setattr(Observing, "told", lambda self, publish: publish)
            patch.setattr(Observing, "measured", lambda self, commit: commit)
            patch.setattr(Observing, "enter", lambda self, context, run_id: None)
            return await seconds()

    await seconds()
    pairs: list[tuple[float, float]] = []
    for _ in range(12):  # on a machine that does other things, too, until a quiet moment was met
        pairs.append((await seconds_bare(), await seconds()))
        bare, plain = map(min, zip(*pairs, strict=True))
        if len(pairs) > 2 and plain < 1.2 * bare:
            break
    else:
        pytest.fail(f"{pairs}")


async def test_stats_say_what_happened_and_what_goes_on(tmp_path: Path) -> None:
    """Totals since the opening, and the moment; all of it as JSON, too."""
    async with Durable(tmp_path) as app:
        assert [await (await app.start(work, number)) for number in range(3)] == [1, 2, 3]
        with pytest.raises(RunFailedError):
            await (await app.start(failing))
        handle = await app.start(pausing)
        async for event in handle.events():
            if event.name == "waiting":
                stats = await app.stats()
                await handle.cancel()
    totals = stats.totals
    assert (totals.submitted, totals.completed, totals.failed, totals.retried, totals.steps) == (5, 3, 1, 1, 3)
    assert totals.success_rate == 0.75 and totals.records == 5 * 2 + 3 + 3 + 3 + 1
    assert (stats.state, stats.running, stats.queued, stats.loaded, stats.waiting) == ("running", 1, 0, 1, 0)
    assert (stats.dead_letters, stats.rejections, stats.recovery.scans, stats.recovery.found) == (1, {}, 1, 0)
    assert (stats.streams.subscribers, stats.streams.streams, stats.subscribers) == (1, 1, 1)
    assert 0 <= stats.uptime_seconds < 60 and stats.health.state == "ok"
    stored = json.loads(json.dumps(stats.as_dict()))
    assert stored["totals"]["success_rate"] == 0.75 and stored["health"]["state"] == "ok"
    async with Durable(tmp_path) as app:
        stats = await app.stats()
    assert stats.totals.records == 0 and stats.dead_letters == 1


async def test_an_application_can_be_opened_again(tmp_path: Path) -> None:
    """Observers are told of each opening, and the counts begin anew."""
    diary = Diary()
    app = Durable(LocalStore(tmp_path), observers=[diary])
    for _ in range(2):
        async with app:
            await (await app.start(work, 1))
    assert [line for line in diary.lines if isinstance(line, str)] == ["open", "close"] * 2
