"""Spans go to OpenTelemetry's SDK, which sends them by OTLP over HTTP; all its `OTEL_*` variables are read by itself.

A collector that is away, or that hangs, costs spans and nothing else: they are sent by a thread of the SDK, which keeps
2,048 of them at most (OTEL_BSP_MAX_QUEUE_SIZE).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from producer.jobs.model import release
from producer.jobs.model.errors import GradcamError, Interrupted, SettingsError
from producer.jobs.model.redaction import redact_text
from producer.jobs.model.text import SENTENCE_CHARS, shown
from producer.jobs.tracing.traces import FLUSH_WITHIN_S, Fact, Span, Tell, Traces, at_work_for

#: What the SDK calls a service without a name begins so.
_UNNAMED: Final = "unknown_service"
_W3C: Final = TraceContextTextMapPropagator()
#: Clients may be made by several threads at once.
_opening: Final = threading.Lock()


def open_otlp(service: str, tell: Tell) -> OtlpTraces:
    """Spans for OpenTelemetry: for what this program has set up itself (`trace.set_tracer_provider`), or by OTLP.

    Raises:
        SettingsError: A variable of OpenTelemetry cannot be used.
    """
    ours = trace.get_tracer_provider()
    if not isinstance(ours, trace.ProxyTracerProvider):
        return OtlpTraces(ours)
    variables = frozenset((name, value) for name, value in os.environ.items() if name.startswith("OTEL_"))
    with _opening:
        return _exporting(service, tell, variables)


@cache
def _exporting(service: str, tell: Tell, _variables: frozenset[tuple[str, str]]) -> OtlpTraces:
    """By OTLP, as the variables say; the same again for the same: each has a thread, and no client is ever closed."""
    try:
        with _headers_kept_secret():
            exporter = _TellingExporter(OTLPSpanExporter(), tell)
        provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
        processor = BatchSpanProcessor(exporter)
    except (ValueError, RuntimeError, ImportError) as error:
        words = shown(redact_text(str(error)), SENTENCE_CHARS)
        raise SettingsError(f"the OTEL_* variables cannot be used: {words}") from None
    provider.add_span_processor(processor)
    # What else it says of spans that it cannot send, `tell` has said; what is set wrong it has said by now.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    return OtlpTraces(provider, processor, exporter)


@contextmanager
def _headers_kept_secret() -> Iterator[None]:
    """Raise ValueError for a header that is none, in place of what the library says: it quotes all of it."""

    def refuse(_: logging.LogRecord) -> bool:
        raise ValueError(
            "OTEL_EXPORTER_OTLP_HEADERS or OTEL_EXPORTER_OTLP_TRACES_HEADERS has an entry that is no header: write "
            "name=value, with commas between them"
        )

    said = logging.getLogger("opentelemetry.util.re")  # nothing else is said by it
    said.setLevel(logging.WARNING)
    said.addFilter(refuse)
    try:
        yield
    finally:
        said.removeFilter(refuse)


def _resource(service: str) -> Resource:
    found = Resource.create({SERVICE_VERSION: release.own()})
    if str(found.attributes.get(SERVICE_NAME, _UNNAMED)).startswith(_UNNAMED):
        return found.merge(Resource({SERVICE_NAME: service}))
    return found


class OtlpTraces(Traces):
    """Makes spans. Safe to share between threads.

    Args:
        provider: Of OpenTelemetry.
        processor: What sends its spans, where that is ours.
        exporter: By which it does.
    """

    def __init__(
        self,
        provider: trace.TracerProvider,
        processor: BatchSpanProcessor | None = None,
        exporter: _TellingExporter | None = None,
    ) -> None:
        self._tracer = provider.get_tracer("gradcam", release.own())
        self._processor, self._exporter = processor, exporter
        self._flushing = threading.Lock()
        self._sending: threading.Thread | None = None

    @contextmanager
    def span(self, name: str, *, parent: str = "", apart: bool = False, **facts: Fact) -> Iterator[Span]:
        """As `Traces.span`."""
        context = _W3C.extract({"traceparent": parent}) if parent else None
        begun = trace.get_current_span(context).get_span_context()
        links: Sequence[trace.Link] = ()
        # What was not sampled stays so: only a trace that is told has others beside it.
        if apart and begun.is_valid and begun.trace_flags.sampled:
            context, links = trace.set_span_in_context(trace.INVALID_SPAN), [trace.Link(begun)]
        span = self._tracer.start_span(name, context, links=links, attributes=_attributes(facts))
        traceparent = _traceparent(span)
        if not span.is_recording():
            yield Span(traceparent)
            return
        recorded = _Recorded(self._tracer, span, traceparent)
        try:
            with at_work_for(trace.format_trace_id(span.get_span_context().trace_id)):
                yield recorded
        except BaseException as error:
            if not isinstance(error, Interrupted):
                span.set_status(trace.StatusCode.ERROR, _sentence(error))
            raise
        finally:
            recorded.end()

    def flush(self, within_s: float = FLUSH_WITHIN_S) -> None:
        """As `Traces.flush`."""
        if self._processor is None or self._exporter is None:
            return
        until = time.monotonic() + within_s
        if (earlier := self._sending) is not None:
            earlier.join(within_s)
        with self._flushing:
            if self._sending is None or not self._sending.is_alive():
                # The SDK's own flush may take as long as all its attempts.
                self._sending = threading.Thread(target=self._processor.force_flush, name="flush-spans", daemon=True)
                self._sending.start()
            sending = self._sending
        sending.join(max(until - time.monotonic(), 0))
        if sending.is_alive():
            self._exporter.failed(f"they were not taken within {within_s:g} s")


def _attributes(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    return {f"gradcam.{name}": fact for name, fact in facts.items()}


def _traceparent(span: trace.Span) -> str:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span))
    return carrier.get("traceparent", "")


def _sentence(error: BaseException) -> str:
    """Why something ended; of an error that nobody foresaw only its name, as its text may quote anything."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, GradcamError):
        return shown(redact_text(str(error)), SENTENCE_CHARS)
    return f"{type(error).__name__}: an error that gradcam-queue does not know; the log has more"


@dataclass
class _Stage:
    began: float
    ended: float
    seconds: float = 0.0
    images: int = 0
    times: int = 0


class _Recorded(Span):
    """A span that is recorded, and the stages in it, which become spans when it ends."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, traceparent: str) -> None:
        super().__init__(traceparent)
        self._tracer, self._span = tracer, span
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._stages: dict[str, _Stage] = {}
        #: From the monotonic clock, which stages are measured by, to the time of day.
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def note(self, **facts: Fact) -> None:
        self._span.set_attributes(_attributes(facts))

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counts[name] = self._counts.get(name, 0) + count

    def stage(self, name: str, began: float, seconds: float, *, images: int = 1) -> None:
        ended = time.monotonic()
        with self._lock:
            stage = self._stages.setdefault(name, _Stage(began, ended))
            stage.began, stage.ended = min(stage.began, began), max(stage.ended, ended)
            stage.seconds, stage.images, stage.times = stage.seconds + seconds, stage.images + images, stage.times + 1

    @contextmanager
    def timed(self, name: str, *, images: int = 0) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.stage(name, began, time.monotonic() - began, images=images)

    def end(self) -> None:
        """End it, and its stages; what a thread that hangs says of it later is lost."""
        with self._lock:
            stages, self._stages = self._stages, {}
            self._span.set_attributes(_attributes(self._counts))
        inside = trace.set_span_in_context(self._span)
        for name, stage in stages.items():
            facts = {"seconds": round(stage.seconds, 6), "times": stage.times}
            if stage.images:
                facts["images"] = stage.images
            began, ended = (round(at * 1e9) + self._offset_ns for at in (stage.began, stage.ended))
            self._tracer.start_span(name, inside, attributes=_attributes(facts), start_time=began).end(ended)
        self._span.end()


#: What the library's exporter has said in this thread, since it was asked to send.
_heard: Final = threading.local()


def _hear(record: logging.LogRecord) -> bool:
    # An error's text may have the whole address; the first of several attempts says why.
    args = record.args if isinstance(record.args, tuple) else ()
    errors = (type(arg).__name__ for arg in args if isinstance(arg, BaseException))
    _heard.why = getattr(_heard, "why", "") or next(errors, record.getMessage())
    return False


class _TellingExporter(SpanExporter):
    """Sends spans, and says once that it cannot, in place of what the library says at each attempt."""

    def __init__(self, exporter: SpanExporter, tell: Tell) -> None:
        self._exporter, self._tell = exporter, tell
        #: Whether what was sent last was lost.
        self.away = False
        said = logging.getLogger(OTLPSpanExporter.__module__)
        said.setLevel(logging.WARNING)
        said.addFilter(_hear)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; called by one thread at a time."""
        _heard.why = ""
        try:
            result = self._exporter.export(spans)
        except OSError as error:  # as release 1.30 raises it where nothing listens
            _heard.why, result = type(error).__name__, SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.away = False
        else:
            self.failed(_heard.why)
        return result

    def failed(self, why: str) -> None:
        """Say that spans are lost, unless that was said and none was sent since."""
        if not self.away:
            self.away = True
            words = shown(redact_text(why), SENTENCE_CHARS).rstrip(".")
            self._tell(f"Spans cannot be sent, and are lost ({words}): look at OTEL_EXPORTER_OTLP_ENDPOINT.")

    def shutdown(self) -> None:
        """End a pause between attempts."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return True
