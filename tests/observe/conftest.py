"""Spans and metrics as the real SDK collects them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durable.observe.otel import OpenTelemetry


class Collected:
    """What an application told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader])

    def observer(self) -> OpenTelemetry:
        return OpenTelemetry(tracer_provider=self.tracer_provider, meter_provider=self.meter_provider)

    def spans(self, name: str, **attributes: object) -> list[ReadableSpan]:
        """Spans of this name and with these attributes (`run_id` for `durable.run.id`), in the order in which they ended."""
        wanted = {f"durable.{key.replace('_', '.')}": value for key, value in attributes.items()}
        return [
            span
            for span in self._exporter.get_finished_spans()
            if span.name == name and all((span.attributes or {}).get(key) == value for key, value in wanted.items())
        ]

    def span(self, name: str, **attributes: object) -> ReadableSpan:
        """The one span that there is."""
        (span,) = self.spans(name, **attributes)
        return span

    def metrics(self) -> dict[str, dict[tuple[object, ...], Any]]:
        """By name, then by the values of the attributes (sorted by their keys): the value, or (count, sum) of a histogram."""
        found: dict[str, dict[tuple[object, ...], Any]] = {}
        collected = self._reader.get_metrics_data()
        for resource in collected.resource_metrics if collected else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = found.setdefault(metric.name, {})
                    for point in metric.data.data_points:
                        key = tuple(value for _, value in sorted((point.attributes or {}).items()))
                        points[key] = point.value if hasattr(point, "value") else (point.count, point.sum)
        return found

    def close(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


@pytest.fixture
def collected() -> Iterator[Collected]:
    """A tracer and a meter provider of the real SDK, and what they were given."""
    collected = Collected()
    yield collected
    collected.close()
