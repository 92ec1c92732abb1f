"""Spans and metrics, as the real SDK collects them, of what an application was seen to do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from opentelemetry import baggage
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from durable import (
    BackpressureError,
    Child,
    Config,
    Context,
    Durable,
    Limits,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunTimedOutError,
    sleep,
    step,
    task,
)
from durable.config import EngineSettings, FlushSettings
from durable.observe.otel import COUNTERS, GAUGES, HISTOGRAMS
from durable.store.local import LocalStore
from durable.store.memory import MemoryStore
from tests.observe.conftest import Collected

SECRET = "a secret value"


@step(name="observed_step")
async def one_step(text: str) -> str:
    return text.upper()


@step(name="observed_shaky", retry=Retry(2, delay=0.001))
async def shaky(tries: list[int]) -> int:
    tries.append(1)
    SHAKEN.append(1)
    if len(SHAKEN) % 2:
        raise OSError(SECRET)
    return 1


SHAKEN: list[int] = []


@task(name="observed_good")
async def good(text: str) -> str:
    return await one_step(text)


@task(name="observed_bad", retry=Retry(2, delay=0.001))
async def bad(text: str) -> str:
    await one_step(text)
    raise ValueError(SECRET)


@task(name="observed_slow", timeout=0.02)
async def slow() -> None:
    await asyncio.Event().wait()


@task(name="observed_waiting")
async def waiting(ctx: Context) -> str:
    return str(await ctx.wait_for("go"))


@task(name="observed_kid")
async def kid(number: int) -> int:
    return number


@task(name="observed_calling")
async def calling() -> int:
    return await kid(1)


async def add(ctx: Context, children: list[Child[int]]) -> int:
    return sum(child.result for child in children)


@task(name="observed_together")
async def together(children: list[Child[int]]) -> int:
    return sum(child.result for child in children)


@task(name="observed_family", on_children_complete=together)
async def family() -> list[Child[int]]:
    return [kid.child(1), kid.child(2)]


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def events(span: ReadableSpan) -> list[tuple[str, object, object]]:
    return [
        (event.name, (event.attributes or {})["durable.step.name"], (event.attributes or {})["durable.step.cached"])
        for event in span.events
    ]


async def test_a_run_that_completes(collected: Collected, tmp_path: Path) -> None:
    """Submit, attempt and body are one trace, under the span of who started it; counters and histograms say the same."""
    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        with collected.tracer_provider.get_tracer("test").start_as_current_span("caller") as caller:
            handle = await app.start(good, SECRET)
        assert await handle == SECRET.upper()
        gauges = collected.metrics()
        assert gauges["durable.tasks.running"] == gauges["durable.tasks.queued"] == {(): 0}
        assert gauges["durable.dlq.size"] == gauges["durable.streams.active"] == {(): 0}
    submit = collected.span("durable.task.submit", run_id=handle.run_id)
    assert (submit.kind, parent_id(submit)) == (SpanKind.PRODUCER, caller.get_span_context().span_id)
    attempt = collected.span("durable.task.execute", run_id=handle.run_id)
    assert (attempt.kind, parent_id(attempt), list(attempt.links)) == (SpanKind.CONSUMER, span_id(submit), [])
    assert dict(attempt.attributes or {}) == {
        "durable.run.id": handle.run_id,
        "durable.task.name": "observed_good",
        "durable.attempt": 1,
        "durable.recovered": False,
        "durable.outcome": "completed",
    }
    assert events(attempt) == [("durable.step.completed", "observed_step", False)]
    assert attempt.status.status_code is StatusCode.UNSET
    assert parent_id(collected.span("durable.task.handler", run_id=handle.run_id)) == span_id(attempt)
    metrics = collected.metrics()
    name = ("observed_good",)
    assert metrics["durable.tasks.submitted"] == metrics["durable.tasks.completed"] == {name: 1}
    for histogram, key in (
        ("durable.task.queue_wait", name),
        ("durable.task.duration", ("completed", "observed_good")),
        ("durable.step.duration", ("observed_step", "observed_good")),
    ):
        count, seconds = metrics[histogram][key]
        assert count == 1 and 0 <= seconds < 10, histogram
    assert not {"durable.tasks.failed", "durable.tasks.retried", "durable.dlq.added"} & metrics.keys()


async def test_batches_of_the_flusher(collected: Collected, tmp_path: Path) -> None:
    """What comes into the tables counts once, as entries, sizes, durations and spans."""
    config = Config(flush=FlushSettings(interval_seconds=0.01))
    async with Durable(tmp_path, config=config, observers=[collected.observer()]) as app:
        await (await app.start(good, "a"))
    metrics = collected.metrics()
    spans = collected.spans("durable.flush.batch")
    assert metrics["durable.flush.entries"] == {("flush",): 4}, "created, started, the step, completed"
    assert sum(int((span.attributes or {})["durable.flush.entries"]) for span in spans) == 4  # type: ignore[arg-type]
    assert metrics["durable.flush.batch_size"] == {("flush",): (len(spans), 4)}
    count, seconds = metrics["durable.flush.duration"]["flush",]
    assert count == len(spans) and 0 < seconds < 10
    assert all(span.parent is None and (span.end_time or 0) > (span.start_time or 0) for span in spans)


async def test_a_store_without_a_flusher_counts_its_commits(collected: Collected) -> None:
    """There the tables are written by the commit itself."""
    async with Durable(MemoryStore(), observers=[collected.observer()]) as app:
        await (await app.start(good, "a"))
    assert collected.metrics()["durable.flush.entries"] == {("commit",): 4}


async def test_a_run_that_is_retried_and_fails(collected: Collected, tmp_path: Path) -> None:
    """Each attempt has a span, an error, that links to the one before; a step that was recorded is told as cached."""
    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        handle = await app.start(bad, SECRET)
        with pytest.raises(RunFailedError):
            await handle
        while collected.metrics()["durable.dlq.size"] != {(): 1}:
            await asyncio.sleep(0.01)
    first, second = collected.spans("durable.task.execute", run_id=handle.run_id)
    assert [link.context.span_id for link in second.links] == [span_id(first)]
    assert parent_id(first) == parent_id(second) == span_id(collected.span("durable.task.submit"))
    for span in (first, second, *collected.spans("durable.task.handler")):
        assert (
            span.status.status_code is StatusCode.ERROR
            and (span.attributes or {})["error.type"] == "builtins.ValueError"
        )
    assert [(span.attributes or {})["durable.outcome"] for span in (first, second)] == ["retrying", "failed"]
    assert [(span.attributes or {})["durable.attempt"] for span in (first, second)] == [1, 2]
    assert events(first) == [("durable.step.completed", "observed_step", False)]
    assert events(second) == [("durable.step.completed", "observed_step", True)]
    metrics = collected.metrics()
    name = ("observed_bad", "builtins.ValueError")
    assert metrics["durable.tasks.retried"] == metrics["durable.tasks.failed"] == {name: 1}
    assert metrics["durable.dlq.added"] == {name: 1}
    assert metrics["durable.task.queue_wait"]["observed_bad",][0] == 2
    assert "durable.tasks.completed" not in metrics


async def test_a_run_that_times_out(collected: Collected, tmp_path: Path) -> None:
    """It is counted as that, and as a dead letter."""
    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        with pytest.raises(RunTimedOutError):
            await (await app.start(slow))
    name = ("observed_slow", "builtins.TimeoutError")
    assert collected.metrics()["durable.tasks.timed_out"] == collected.metrics()["durable.dlq.added"] == {name: 1}
    assert (collected.span("durable.task.execute").attributes or {})["durable.outcome"] == "timed_out"


async def test_a_run_that_is_cancelled(collected: Collected, tmp_path: Path) -> None:
    """To be cancelled is no error of the attempt."""
    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        handle = await app.start(waiting)
        async for event in handle.events():
            if event.name == "waiting":
                metrics = collected.metrics()
                assert metrics["durable.tasks.running"] == metrics["durable.streams.active"] == {(): 1}
                await handle.cancel()
        with pytest.raises(RunCancelledError):
            await handle
    assert collected.metrics()["durable.tasks.cancelled"] == {("observed_waiting",): 1}
    span = collected.span("durable.task.execute")
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["durable.outcome"] == "cancelled"
    assert "durable.dlq.added" not in collected.metrics()


async def test_a_try_of_a_step_that_fails(collected: Collected, tmp_path: Path) -> None:
    """Each try is an event of the attempt and has its duration."""
    SHAKEN.clear()

    @task(name="observed_shaken")
    async def shaken() -> int:
        return await shaky([])

    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        assert await (await app.start(shaken)) == 1
    assert [name for name, *_ in events(collected.span("durable.task.execute"))] == [
        "durable.step.retrying",
        "durable.step.completed",
    ]
    assert collected.metrics()["durable.step.duration"]["observed_shaky", "observed_shaken"][0] == 2


async def test_a_start_that_is_refused(collected: Collected, tmp_path: Path) -> None:
    """It is counted by reason and task, and leaves no span; by the guard, or because the store takes nothing."""

    class Full(LocalStore):
        full = False

        def admit(self) -> None:
            if self.full:
                raise BackpressureError("enough")

    store = Full(tmp_path)
    limits = Limits(max_starts_per_window=2, max_starts_per_user_window=1)
    async with Durable(store, limits=limits, observers=[collected.observer()]) as app:
        await app.start(good.options(user="one"), "a")
        for user in ("one", "two", "three"):
            with suppress(BackpressureError):
                await app.start(good.options(user=user), "a")
        store.full = True
        with pytest.raises(BackpressureError):
            await app.start(kid, 1)
        assert (await app.stats()).rejections == {"user_rate": 1, "rate": 1, "store": 1}
    assert collected.metrics()["durable.guard.rejections"] == {
        ("user_rate", "observed_good"): 1,
        ("rate", "observed_good"): 1,
        ("store", "observed_kid"): 1,
    }
    assert len(collected.spans("durable.task.submit")) == 2


async def test_spans_of_a_body_are_under_its_attempt(collected: Collected, tmp_path: Path) -> None:
    """Of an `async def`, of a plain one in its thread, and of a step."""
    tracer = collected.tracer_provider.get_tracer("user")

    @step(name="observed_nested_step")
    def in_step() -> None:
        with tracer.start_as_current_span("in step"):
            pass

    @task(name="observed_nested")
    async def nested() -> None:
        with tracer.start_as_current_span("in body"):
            await in_step()

    @task(name="observed_thread")
    def plain() -> None:
        with tracer.start_as_current_span("in thread"):
            pass

    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        handles = [await app.start(nested), await app.start(plain)]
        for handle in handles:
            await handle
    handlers = [collected.span("durable.task.handler", run_id=handle.run_id) for handle in handles]
    assert parent_id(collected.span("in body")) == span_id(handlers[0])
    assert parent_id(collected.span("in step")) == span_id(collected.span("in body"))
    assert parent_id(collected.span("in thread")) == span_id(handlers[1])


async def test_the_trace_of_who_calls_comes_along_and_its_baggage_does_not(
    collected: Collected, tmp_path: Path
) -> None:
    """A remote parent with a state: both are those of the attempt; baggage may hold what nobody wants to be stored."""
    there = SpanContext(0xABC, 0xDEF, True, TraceFlags(TraceFlags.SAMPLED), TraceState([("vendor", "x=1")]))
    seen: list[object] = []

    @task(name="observed_remote")
    async def remote() -> None:
        seen.append(dict(baggage.get_all()))

    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        token = attach(baggage.set_baggage("who", SECRET, set_span_in_context(NonRecordingSpan(there))))
        handle = await app.start(remote)
        detach(token)
        await handle
        (created, *_) = [event async for event in handle.events()]
    assert seen == [{}] and SECRET not in repr(created)
    submit, attempt = collected.span("durable.task.submit"), collected.span("durable.task.execute")
    assert parent_id(submit) == there.span_id
    for span in (submit, attempt):
        assert span.context is not None
        assert (span.context.trace_id, span.context.trace_state) == (there.trace_id, there.trace_state)


async def test_a_start_in_the_callers_transaction_is_traced(collected: Collected, postgres_database: str) -> None:
    """Whoever executes it, the attempt is under the start."""
    async with Durable(postgres_database, observers=[collected.observer()]) as app:
        async with await psycopg.AsyncConnection.connect(postgres_database) as connection:
            handle = await app.start(good, "a", connection=connection)
        assert await handle == "A"
    submit = collected.span("durable.task.submit", run_id=handle.run_id)
    assert parent_id(collected.span("durable.task.execute", run_id=handle.run_id)) == span_id(submit)
    assert collected.metrics()["durable.flush.entries"]["commit",] >= 3, "what others wrote is theirs to count"


async def test_a_run_that_is_tried_again_by_hand_links_too(collected: Collected, tmp_path: Path) -> None:
    """Whatever lets a run go on, its attempts are a chain."""
    broken = [True]

    @task(name="observed_mended")
    async def mended() -> str:
        if broken:
            raise ValueError(SECRET)
        return "mended"

    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        handle = await app.start(mended)
        with pytest.raises(RunFailedError):
            await handle
        broken.clear()
        await handle.retry()
        assert await handle == "mended"
        while collected.metrics()["durable.dlq.size"] != {(): 0}:
            await asyncio.sleep(0.01)
    first, second = collected.spans("durable.task.execute")
    assert [link.context.span_id for link in second.links] == [span_id(first)]


async def test_a_family_is_one_trace(collected: Collected, tmp_path: Path) -> None:
    """Children, awaited or returned, are started by an attempt of their parent, and a coordinator's run by its last."""
    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        with collected.tracer_provider.get_tracer("test").start_as_current_span("caller"):
            caller = await app.start(calling)
        assert await caller == 1
        parent = await app.start(family)
        assert await parent == 3
        kids = await parent.children()
        (awaited,) = await caller.children()
    handler = collected.span("durable.task.handler", run_id=caller.run_id)
    assert parent_id(collected.span("durable.task.submit", run_id=awaited.run_id)) == span_id(handler)
    attempt = collected.span("durable.task.execute", run_id=parent.run_id)
    assert (attempt.attributes or {})["durable.outcome"] == "waiting_for_children"
    coordinator = collected.span("durable.task.execute", task_name="observed_together")
    runs = [*(child.run_id for child in kids), str((coordinator.attributes or {})["durable.run.id"])]
    assert len(runs) == 3
    for run_id in runs:
        assert parent_id(collected.span("durable.task.submit", run_id=run_id)) == span_id(attempt)
        child = collected.span("durable.task.execute", run_id=run_id)
        assert (child.attributes or {})["durable.parent.id"] == parent.run_id
    traces = {span.context.trace_id for span in collected.spans("durable.task.execute") if span.context is not None}
    assert len(traces) == 2, "one for each that was started from outside"


async def test_no_span_stays_open_over_a_wait(collected: Collected, tmp_path: Path) -> None:
    """A run that sleeps has no span; the one with which it goes on links to the one before, and is no recovery."""

    @task(name="observed_sleeper")
    async def sleeper() -> str:
        await one_step("a")
        await sleep(0.4)
        return "slept"

    config = Config(engine=EngineSettings(idle_runs_max=1, idle_seconds=0.01))
    async with Durable(tmp_path, config=config, limits=Limits(max_running=1), observers=[collected.observer()]) as app:
        handles = [await app.start(sleeper) for _ in range(4)]
        for handle in handles:
            assert await handle == "slept"
    asleep = collected.spans("durable.task.execute", outcome="asleep")
    assert asleep, "with one slot, who sleeps gives it to others"
    for span in asleep:
        run_id = (span.attributes or {})["durable.run.id"]
        spans = collected.spans("durable.task.execute", run_id=run_id)
        assert [link.context.span_id for link in spans[1].links] == [span_id(span)]
        assert (spans[1].attributes or {})["durable.recovered"] is False
        assert events(spans[1])[0] == ("durable.step.completed", "observed_step", True)


async def test_nothing_that_a_user_gave_is_in_an_attribute(collected: Collected, tmp_path: Path) -> None:
    """No input, no key, no user, no text of an error: on no span, no event, no metric."""
    async with Durable(tmp_path, observers=[collected.observer()]) as app:
        await (await app.start(good.options(key=SECRET, user=SECRET), SECRET))
        with pytest.raises(RunFailedError):
            await (await app.start(bad, SECRET))
    told = repr(collected.metrics())
    for name in ("durable.task.submit", "durable.task.execute", "durable.task.handler", "durable.flush.batch"):
        for span in collected.spans(name):
            told += span.to_json()
    assert "observed_good" in told and SECRET not in told and SECRET.upper() not in told


async def test_two_applications_share_the_instruments_of_a_provider(collected: Collected, tmp_path: Path) -> None:
    """Gauges add up over those that are open; one that was closed is not asked any more."""
    async with Durable(tmp_path / "a", observers=[collected.observer()]) as app:
        await app.start(waiting)
        async with Durable(tmp_path / "b", observers=[collected.observer()]) as other:
            await other.start(waiting)
            assert collected.metrics()["durable.tasks.running"] == {(): 2}
        assert collected.metrics()["durable.tasks.running"] == {(): 1}
    assert "durable.tasks.running" not in collected.metrics()


def test_every_metric_of_the_page_has_a_name_of_ours() -> None:
    """A metric enters or leaves only by changing this test."""
    assert {*COUNTERS, *HISTOGRAMS, *GAUGES} == {
        *("durable.tasks.submitted", "durable.tasks.completed", "durable.tasks.failed", "durable.tasks.timed_out"),
        *("durable.tasks.cancelled", "durable.tasks.retried", "durable.tasks.recovered", "durable.tasks.running"),
        *("durable.tasks.queued", "durable.guard.rejections", "durable.flush.entries", "durable.flush.duration"),
        *("durable.flush.batch_size", "durable.dlq.added", "durable.dlq.size", "durable.streams.active"),
        *("durable.task.duration", "durable.task.queue_wait", "durable.step.duration"),
    }
