"""A process that sets its OpenTelemetry providers, as an application of its own would, and is killed in a body, or goes on with it.

    python -m tests.observe.crashing STORE

Each line that it prints is JSON: what was seen in the process, then the spans and metrics that the SDK collected.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durable import Config, Context, Durable, step, task
from durable.config import PostgresSettings


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


@step
async def recorded() -> str:
    return "recorded"


@task
async def killed(ctx: Context) -> str:
    value = await recorded()
    handler: Any = trace.get_current_span()
    tell(trace_id=handler.get_span_context().trace_id, execute=handler.parent.span_id, handler_of=ctx.attempt)
    await ctx.wait_for("go")
    return value


def span_json(span: ReadableSpan) -> dict[str, Any]:
    assert span.context is not None
    return {
        "span": span.name,
        "span_id": span.context.span_id,
        "trace_id": span.context.trace_id,
        "parent": span.parent and span.parent.span_id,
        "links": [[link.context.trace_id, link.context.span_id] for link in span.links],
        "attributes": dict(span.attributes or {}),
        "events": [[event.name, dict(event.attributes or {})] for event in span.events],
    }


async def main(store: str) -> None:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    async with Durable(store, config=Config(postgres=PostgresSettings(lease_seconds=1.0))) as app:
        handle = await app.find("killed")
        if handle is None:
            with trace.get_tracer("caller").start_as_current_span("caller"):
                handle = await app.start(killed.options(key="killed"))
            await handle  # until the kill
        async for event in handle.events():
            if event.name == "recovered":
                await handle.send("go")
        tell(result=await handle)
        found = reader.get_metrics_data()
    for span in exporter.get_finished_spans():
        tell(**span_json(span))
    for scope in found.resource_metrics[0].scope_metrics if found else ():
        for metric in scope.metrics:
            if metric.name == "durable.tasks.recovered":
                tell(recovered=[point.value for point in metric.data.data_points])  # type: ignore[union-attr]


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
