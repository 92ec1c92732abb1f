"""What an application tells about itself: to observers of one's own, to OpenTelemetry, in its logs.

`Observer` is the base of one's own hooks, `RunLogFilter` puts the run into log records; `durable.observe.otel` has `OpenTelemetry`.
"""

from durable.observe.logs import RunLogFilter
from durable.observe.observer import Batch, Gauges, ObservedAttempt, ObservedRun, Observer, Refusal, Scan

__all__ = ["Batch", "Gauges", "ObservedAttempt", "ObservedRun", "Observer", "Refusal", "RunLogFilter", "Scan"]
