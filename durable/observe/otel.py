"""`OpenTelemetry`: the spans and metrics of an application, through the OpenTelemetry API.

Law: it uses the providers that there are and configures none; where there is none it does nothing. Attributes hold names that the code
gives, ids of runs on spans only, and never a value, a key, a user or the text of an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from durable.core.records import ENDS, RESULTS, Call, Kind, Record
from durable.core.run import Run
from durable.observe.observer import Batch, Gauges, ObservedAttempt, Refusal, Scan, Telemetry

SCOPE = "durable"
NANOSECONDS = 1_000_000_000

#: Kinds of record by which an attempt, or a part of one, begins.
BEGINNINGS = frozenset({Kind.STARTED, Kind.RECOVERED, Kind.AWAKE, Kind.COORDINATING})
#: Kinds by which it ends, and what the span says of that.
OUTCOMES = {
    Kind.COMPLETED: "completed",
    Kind.FAILED: "failed",
    Kind.TIMED_OUT: "timed_out",
    Kind.CHILDREN_FAILED: "children_failed",
    Kind.CANCELLED: "cancelled",
    Kind.RETRYING: "retrying",
    Kind.SUSPENDED: "suspended",
    Kind.ASLEEP: "asleep",
    Kind.RELEASED: "released",
    Kind.CHILDREN_STARTED: "waiting_for_children",
}
#: Which counters a record adds to.
COUNTED = {
    Kind.CREATED: ("durable.tasks.submitted",),
    Kind.COMPLETED: ("durable.tasks.completed",),
    Kind.FAILED: ("durable.tasks.failed", "durable.dlq.added"),
    Kind.CHILDREN_FAILED: ("durable.tasks.failed", "durable.dlq.added"),
    Kind.TIMED_OUT: ("durable.tasks.timed_out", "durable.dlq.added"),
    Kind.CANCELLED: ("durable.tasks.cancelled",),
    Kind.RETRYING: ("durable.tasks.retried",),
    Kind.RECOVERED: ("durable.tasks.recovered",),
}
COUNTERS = {
    "durable.tasks.submitted": "Runs that came into being",
    "durable.tasks.completed": "Runs that completed",
    "durable.tasks.failed": "Runs that failed after their last attempt, or by their children",
    "durable.tasks.timed_out": "Runs whose last attempt timed out",
    "durable.tasks.cancelled": "Runs that were cancelled",
    "durable.tasks.retried": "Attempts that failed and are followed by another",
    "durable.tasks.recovered": "Runs that went on after their executor was lost",
    "durable.guard.rejections": "Starts that were not let in",
    "durable.flush.entries": "Records written into the tables",
    "durable.dlq.added": "Runs that became dead letters",
}
HISTOGRAMS = {
    "durable.task.duration": ("s", "From the first beginning of a run to its end"),
    "durable.task.queue_wait": ("s", "From when an attempt was due to its beginning"),
    "durable.step.duration": ("s", "One try of a step, until its outcome was recorded"),
    "durable.flush.duration": ("s", "One batch written into the tables"),
    "durable.flush.batch_size": ("{record}", "Records of one such batch"),
}
GAUGES: dict[str, tuple[str, Callable[[Gauges], int]]] = {
    "durable.tasks.running": ("Runs that hold a slot", lambda gauges: gauges.running),
    "durable.tasks.queued": ("Runs that wait for a slot", lambda gauges: gauges.queued),
    "durable.dlq.size": ("Dead letters in the store", lambda gauges: gauges.dead_letters),
    "durable.streams.active": ("Live event streams", lambda gauges: gauges.streams),
}
#: Kinds by which a run ends that was let to.
LASTED = frozenset({Kind.COMPLETED, Kind.FAILED, Kind.TIMED_OUT, Kind.CHILDREN_FAILED})
#: Kinds that say how a step went, or one try of it.
_STEPPED = RESULTS | {Kind.STEP_RETRYING}
_PROPAGATOR = TraceContextTextMapPropagator()


class Instruments:
    """The metrics of one provider: one set for all applications of the process, whose gauges add up."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE)
        self.open: dict[object, Callable[[], Gauges]] = {}
        self.counters = {name: meter.create_counter(name, description=text) for name, text in COUNTERS.items()}
        self.histograms = {name: meter.create_histogram(name, unit, text) for name, (unit, text) in HISTOGRAMS.items()}
        for name, (text, of) in GAUGES.items():
            meter.create_observable_gauge(name, [self._reader(of)], description=text)

    def _reader(self, of: Callable[[Gauges], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(options: CallbackOptions) -> Iterable[Observation]:
            readings = [of(gauges()) for gauges in list(self.open.values())]
            return [Observation(sum(readings))] if readings else []

        return read


#: An instrument may be made once only for a provider, which belongs to the process.
_instruments: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()


def _instruments_of(provider: MeterProvider) -> Instruments:
    known = _instruments.get(provider)
    if known is None:
        known = _instruments[provider] = Instruments(provider)
    return known


class OpenTelemetry(Telemetry):
    """Spans and metrics. An application whose process has set providers has one without being given it.

    Arguments:
        tracer_provider: where spans go; the process's own where it is left out.
        meter_provider: the same for metrics.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._tracer: Tracer | None = None
        self._instruments: Instruments | None = None
        #: The spans of attempts that are going on, by run: two where the next began before the end of the one before is durable.
        self._spans: dict[str, list[Span]] = {}
        #: When the tries of steps began whose outcome is not known, by run and call.
        self._steps: dict[str, dict[Call, list[float]]] = {}

    @classmethod
    def of_process(cls) -> OpenTelemetry | None:
        """One for the providers that the process has set; None where it has set none."""
        tracers, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
        return cls() if _does_something(tracers) or _does_something(meters) else None

    def on_open(self, gauges: Callable[[], Gauges]) -> None:
        """See `Observer`."""
        tracers = self._tracer_provider or trace.get_tracer_provider()
        meters = self._meter_provider or metrics.get_meter_provider()
        self._tracer = tracers.get_tracer(SCOPE) if _does_something(tracers) else None
        self._instruments = _instruments_of(meters) if _does_something(meters) else None
        if self._instruments is not None:
            self._instruments.open[self] = gauges

    def on_close(self) -> None:
        """See `Observer`."""
        if self._instruments is not None:
            self._instruments.open.pop(self, None)
        for run_id in list(self._spans):
            self.dropped(run_id)
        self._steps.clear()
        self._tracer = self._instruments = None

    # --- spans of runs ------------------------------------------------------------------------------------------------------------

    def stamp(self, run: Run, record: Record) -> None:
        """See `Telemetry`."""
        if self._tracer is None:
            return
        if record.kind is Kind.CREATED:
            started_by = record.head.get("trace")
            parent = (
                None if started_by is None else _context_of(started_by)
            )  # else who starts it is the code that is running
            attributes = {"durable.run.id": run.run_id, "durable.task.name": record.name}
            span = self._tracer.start_span("durable.task.submit", parent, SpanKind.PRODUCER, attributes)
            span.end()
        elif record.kind in BEGINNINGS and "coordinator" not in record.head:  # else that is a run of its own
            span = self._begun(self._tracer, run, record)
            self._spans.setdefault(run.run_id, []).append(span)
        else:
            return
        if carried := _carried(span):
            record.head["trace"] = carried

    def _begun(self, tracer: Tracer, run: Run, record: Record) -> Span:
        attributes: dict[str, str | int | bool] = {
            "durable.run.id": run.run_id,
            "durable.task.name": run.task,
            "durable.attempt": record.attempt,
            "durable.recovered": record.kind is Kind.RECOVERED,
        }
        if run.parent_id is not None:
            attributes["durable.parent.id"] = run.parent_id
        before = trace.get_current_span(_context_of(run.attempt_trace)).get_span_context()
        links = [Link(before)] if before.is_valid else []
        parent = _context_of(run.trace)
        return tracer.start_span("durable.task.execute", parent, SpanKind.CONSUMER, attributes, links)

    def enter(self, run_id: str) -> None:
        """See `Telemetry`."""
        spans = self._spans.get(run_id)
        if spans:
            contexts.attach(set_span_in_context(spans[-1], Context()))

    @contextmanager
    def attempt(self, attempt: ObservedAttempt) -> Iterator[None]:
        """See `Observer`."""
        if self._tracer is None:
            yield
            return
        attributes = {"durable.run.id": attempt.run.run_id, "durable.task.name": attempt.run.task_name}
        with self._tracer.start_as_current_span(
            "durable.task.handler", attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Exception as error:
                _fail(span, f"{type(error).__module__}.{type(error).__qualname__}")
                raise

    def replayed(self, run_id: str, record: Record) -> None:
        """See `Telemetry`."""
        if spans := self._spans.get(run_id):
            _tell_step(spans[-1], record, cached=True)

    def dropped(self, run_id: str) -> None:
        """See `Telemetry`."""
        self._steps.pop(run_id, None)
        for span in self._spans.pop(run_id, ()):
            span.end()

    # --- what records say ---------------------------------------------------------------------------------------------------------

    def stepping(self, run_id: str, call: Call, now: float) -> None:
        """See `Telemetry`."""
        self._steps.setdefault(run_id, {}).setdefault(call, []).append(now)

    def record(self, run: Run, record: Record) -> None:
        """See `Telemetry`."""
        kind, run_id = record.kind, run.run_id
        if kind in _STEPPED:
            if spans := self._spans.get(run_id):
                _tell_step(spans[0], record, cached=False)
            self._measure_step(run, record)
            return
        if self._instruments is not None:
            self._count(self._instruments, run, record)
        if kind in OUTCOMES and (spans := self._spans.get(run_id)):
            span = spans.pop(0)
            span.set_attribute("durable.outcome", OUTCOMES[kind])
            if "error_type" in record.head:
                _fail(span, record.head["error_type"])
            span.end()
            if not spans:
                del self._spans[run_id]
        if kind in ENDS:
            self._steps.pop(run_id, None)

    def _measure_step(self, run: Run, record: Record) -> None:
        calls = self._steps.get(run.run_id, {})
        tries = calls.get(record.call)
        if not tries:
            return
        began = tries.pop(0)
        if not tries:
            del calls[record.call]
        if self._instruments is not None:
            attributes = {"durable.task.name": run.task, "durable.step.name": record.name}
            self._instruments.histograms["durable.step.duration"].record(max(record.at - began, 0.0), attributes)

    def _count(self, instruments: Instruments, run: Run, record: Record) -> None:
        attributes = {"durable.task.name": run.task}
        for name in COUNTED.get(record.kind, ()):
            if "error_type" in record.head:
                attributes["error.type"] = record.head["error_type"]
            instruments.counters[name].add(1, attributes)
        if record.kind is Kind.STARTED:
            due = max(run.created_at, run.not_before) if record.attempt == 1 else run.not_before
            if due:  # an attempt that somebody asked for was due at once, but when that was is not known here
                wait = max(record.at - due, 0.0)
                instruments.histograms["durable.task.queue_wait"].record(wait, attributes)
        elif record.kind in LASTED and run.started_at is not None:
            lasted = {"durable.task.name": run.task, "durable.outcome": OUTCOMES[record.kind]}
            instruments.histograms["durable.task.duration"].record(max(record.at - run.started_at, 0.0), lasted)

    # --- what no record says ------------------------------------------------------------------------------------------------------

    def on_refused(self, refusal: Refusal) -> None:
        """See `Observer`."""
        if self._instruments is not None:
            attributes = {"durable.task.name": refusal.task_name, "durable.reason": refusal.reason}
            self._instruments.counters["durable.guard.rejections"].add(1, attributes)

    def on_batch(self, batch: Batch) -> None:
        """See `Observer`. What is written into the log is not in the tables yet, and counts when it is."""
        if batch.kind == "log":
            return
        attributes = {"durable.batch.kind": batch.kind}
        if self._instruments is not None:
            self._instruments.counters["durable.flush.entries"].add(batch.entries, attributes)
            self._instruments.histograms["durable.flush.duration"].record(batch.seconds, attributes)
            self._instruments.histograms["durable.flush.batch_size"].record(batch.entries, attributes)
        self._look_back("durable.flush.batch", batch, {**attributes, "durable.flush.entries": batch.entries})

    def on_scan(self, scan: Scan) -> None:
        """See `Observer`."""
        self._look_back("durable.recovery.scan", scan, {"durable.recovery.found": scan.found})

    def _look_back(self, name: str, fact: Batch | Scan, attributes: dict[str, str | int]) -> None:
        """A span of what is over."""
        if self._tracer is not None:
            ended = int(fact.at.timestamp() * NANOSECONDS)
            began = ended - int(fact.seconds * NANOSECONDS)
            self._tracer.start_span(name, Context(), attributes=attributes, start_time=began).end(ended)


def _does_something(provider: object) -> bool:
    """Whether somebody has set this provider: those that stand in for one are classes of the API itself."""
    return not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


def _tell_step(span: Span, record: Record, *, cached: bool) -> None:
    attributes: dict[str, str | bool] = {"durable.step.name": record.name, "durable.step.cached": cached}
    if "error_type" in record.head:
        attributes["error.type"] = record.head["error_type"]
    span.add_event(record.event_name.replace("step:", "durable.step."), attributes)


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR, error_type)


def _carried(span: Span) -> str:
    """The span's context as it is recorded: `traceparent`, then `tracestate` if there is one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
    return " ".join(carrier[name] for name in ("traceparent", "tracestate") if carrier.get(name))


def _context_of(carried: str) -> Context:
    """The counterpart of `_carried`; what cannot be read is the root of a new trace."""
    traceparent, _, tracestate = carried.partition(" ")
    return _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate}, Context())
