"""What becomes of a submission's and a chunk's spans, by OpenTelemetry's own SDK; jobs are in tests/integration."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from json import dumps, loads
from pathlib import Path

import pytest
import traces_page
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from otlp_receiver import receiving
from stacks import eventually

from producer.jobs.broker.transport import checked
from producer.jobs.model.errors import FetchError, Interrupted, SettingsError
from producer.jobs.tracing.otlp import OtlpTraces
from producer.jobs.tracing.traces import ATTRIBUTES, NO_SPAN, SPANS, Traces, open_traces, read_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SUBMITTED = f"00-{TRACE}-{SPAN}-01"
AWAY = "Spans cannot be sent, and are lost (ConnectionError): look at OTEL_EXPORTER_OTLP_ENDPOINT."


class Recorder:
    """Traces, and the spans that they have told."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = OtlpTraces(provider)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """By name; the last of each."""
        return {span.name: span for span in self._exporter.get_finished_spans()}

    def facts(self, name: str) -> dict[str, object]:
        return dict(self.spans[name].attributes or {})


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def test_a_chunk_belongs_to_the_span_of_its_submission(recorder: Recorder) -> None:
    with recorder.traces.span("submit", job="cats") as submit:
        pass
    with recorder.traces.span("chunk", parent=read_traceparent(submit.traceparent), chunk=3):
        pass
    first, chunk = recorder.spans["submit"], recorder.spans["chunk"]
    assert chunk.parent is not None
    assert first.context is not None
    assert (trace_id(chunk), chunk.parent.span_id) == (trace_id(first), first.context.span_id)
    assert recorder.facts("chunk") == {"gradcam.chunk": 3}


def test_a_chunk_apart_begins_a_trace_with_a_link_to_the_submission(recorder: Recorder) -> None:
    """A trace of a million images would have more spans than anything shows."""
    with recorder.traces.span("chunk", parent=SUBMITTED, apart=True):
        pass
    chunk = recorder.spans["chunk"]
    assert chunk.parent is None
    assert f"{trace_id(chunk):032x}" != TRACE
    assert [f"{link.context.trace_id:032x}" for link in chunk.links] == [TRACE]


def test_a_stage_of_many_images_is_one_span_from_the_first_begin_to_the_last_end(recorder: Recorder) -> None:
    with recorder.traces.span("chunk") as span:
        began = time.monotonic()
        span.stage("fetch", began - 3, 2.0)
        span.stage("fetch", began - 5, 0.5)
        span.stage("explain", began - 1, 1.0, images=7)
        with span.timed("commit"):
            pass
        span.add(done=3, failed=1)
        span.add(done=4)
        span.note(complete=True)
    fetch, chunk = recorder.spans["fetch"], recorder.spans["chunk"]
    assert fetch.parent == chunk.context
    assert fetch.start_time is not None
    assert fetch.end_time is not None
    assert (fetch.end_time - fetch.start_time) / 1e9 == pytest.approx(5, abs=0.5)
    assert time.time() - fetch.end_time / 1e9 < 60
    assert recorder.facts("fetch") == {"gradcam.seconds": 2.5, "gradcam.times": 2, "gradcam.images": 2}
    assert recorder.facts("explain") == {"gradcam.seconds": 1.0, "gradcam.times": 1, "gradcam.images": 7}
    assert set(recorder.facts("commit")) == {"gradcam.seconds", "gradcam.times"}
    assert recorder.facts("chunk") == {"gradcam.done": 7, "gradcam.failed": 1, "gradcam.complete": True}


def test_stages_that_end_when_nobody_asks_any_more_are_left_out(recorder: Recorder) -> None:
    """A thread that hangs at an image comes back when its chunk has long been given back."""
    with recorder.traces.span("chunk") as span:
        pass
    span.stage("upload", time.monotonic(), 1.0)
    assert set(recorder.spans) == {"chunk"}


def test_a_submission_that_is_not_sampled_says_so_to_its_chunks_and_costs_nothing() -> None:
    recorder = Recorder(ParentBased(ALWAYS_OFF))
    with recorder.traces.span("submit") as submit:
        assert type(submit) is type(NO_SPAN)
    assert int(submit.traceparent[-2:], 16) & 1 == 0  # its flag "sampled"
    always = Recorder()
    for apart in (False, True):
        with always.traces.span("chunk", parent=submit.traceparent, apart=apart) as chunk:
            assert type(chunk) is type(NO_SPAN)
    assert recorder.spans == always.spans == {}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FetchError("https://u:sesame@h/a.jpg?token=sesame is gone"), "https://***@h/a.jpg?*** is gone"),
        (ValueError("sesame"), "ValueError: an error that gradcam-queue does not know; the log has more"),
        (KeyboardInterrupt(), "interrupted"),
        (Interrupted("this process stops"), None),
    ],
)
def test_a_span_says_why_it_failed_and_nothing_secret(error: BaseException, sentence: str | None) -> None:
    recorder = Recorder()
    with pytest.raises(type(error)), recorder.traces.span("chunk"):
        raise error
    span = recorder.spans["chunk"]
    assert (span.status.description, span.events) == (sentence, ())
    assert span.status.is_unset == (sentence is None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 55,
        SUBMITTED + "-more",
        SUBMITTED + "\n",
        SUBMITTED.upper(),
        SUBMITTED.replace("00-", "ff-", 1),
        SUBMITTED.replace(TRACE, "0" * 32),
        SUBMITTED.replace(SPAN, "0" * 16),
        "\u0660" + SUBMITTED[1:],  # a digit of another script
    ],
)
def test_what_is_no_address_of_a_span_is_ignored(text: str) -> None:
    assert read_traceparent(text) == ""
    assert read_traceparent(SUBMITTED) == SUBMITTED


def test_a_message_brings_no_span_along() -> None:
    """It lets a worker take any chunk: the trace is that of the chunk's job, which Redis knows."""
    body = b64encode(dumps([["cats", 3], {}, {}]).encode()).decode()
    headers = {"task": "gradcam.explain_chunk", "gradcam_published_at": 1.0, "traceparent": SUBMITTED}
    properties = {"body_encoding": "base64", "delivery_info": {"routing_key": "default"}, "delivery_tag": "x"}
    message = {"content-type": "application/json", "content-encoding": "utf-8", "headers": headers, "body": body}
    read = checked(b"default", dumps({**message, "properties": properties}).encode())
    assert read is not None
    assert loads(read[1])["headers"]["gradcam_published_at"] == 1.0
    assert TRACE not in read[1].decode()


# -- where they go -----------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of spans that are lost; attempts take two seconds at most."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    return []


def one_span(traces: Traces) -> None:
    with traces.span("submit", job="cats"):
        pass


def test_spans_go_to_the_collector_with_the_name_of_the_service(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        traces = open_traces("otlp", "gradcam-worker", told.append)
        one_span(traces)
        traces.flush()
        monkeypatch.setenv("OTEL_SERVICE_NAME", "cats")
        named = open_traces("otlp", "gradcam-worker", told.append)
        one_span(named)
        named.flush()
        assert [span.service for span in receiver.spans("submit")] == ["gradcam-worker", "cats"]
    assert told == []


def test_a_collector_that_is_away_is_told_once_and_again_when_it_was_back(
    told: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    traces = open_traces("otlp", "gradcam", told.append)
    one_span(traces)
    traces.flush(10)
    assert told == [AWAY]
    one_span(traces)
    with receiving(port) as receiver:
        one_span(traces)
        eventually(lambda: receiver.spans("submit"))
    one_span(traces)
    eventually(lambda: len(told) > 1)
    assert told == [AWAY, AWAY]
    assert caplog.records == []


def test_a_collector_that_hangs_holds_up_no_end(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        receiver.answers.clear()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")
        traces = open_traces("otlp", "gradcam", told.append)
        one_span(traces)
        began = time.monotonic()
        traces.flush(0.2)
        traces.flush(0.2)
        assert time.monotonic() - began < 5
    assert told == [
        "Spans cannot be sent, and are lost (they were not taken within 0.2 s): look at OTEL_EXPORTER_OTLP_ENDPOINT."
    ]


def sending_threads() -> Counter[str]:
    """Ours and the library's, by their names."""
    return Counter(thread.name for thread in threading.enumerate() if thread.name.startswith(("Otel", "flush-")))


def test_every_client_of_a_program_sends_its_spans_by_the_same_thread(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service with a client a request would have a thread more with each."""
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        tell = told.append
        one_span(open_traces("otlp", "gradcam", tell))
        before = sending_threads()
        for _ in range(3):
            traces = open_traces("otlp", "gradcam", tell)
            one_span(traces)
        assert sending_threads() == before
        traces.flush(10)
        assert len(receiver.spans("submit")) == 4


def test_spans_that_a_hanging_collector_does_not_take_are_waited_for_by_one_thread(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        receiver.answers.clear()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        traces = open_traces("otlp", "gradcam", told.append)
        one_span(traces)
        traces.flush(0.1)
        assert sending_threads()["flush-spans"] == 1
        for _ in range(3):
            one_span(traces)
            traces.flush(0.1)
        assert sending_threads()["flush-spans"] == 1
        receiver.answers.set()
        traces.flush(10)
        assert len(receiver.spans("submit")) == 4


def test_a_program_that_has_set_up_opentelemetry_itself_gets_our_spans_below_its_own() -> None:
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from producer.jobs.tracing.traces import open_traces
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
traces = open_traces("otlp", "gradcam", print)
with trace.get_tracer("theirs").start_as_current_span("request"), traces.span("submit"):
    pass
traces.flush()
submit, request = exporter.get_finished_spans()
print(submit.name, submit.parent == request.context)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "submit True\n"


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_variable_of_opentelemetry_that_cannot_be_used_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(SettingsError) as raised:
        open_traces("otlp", "gradcam", print)
    assert str(raised.value) == "the OTEL_* variables cannot be used: max_queue_size must be a positive integer."


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
@pytest.mark.parametrize("header", ["Authorization Bearer {}", "team=cats,Authorization: {}", 'api-key="{}"'])
def test_a_header_that_is_none_is_refused_and_shown_to_nobody(
    name: str, header: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The library writes the whole header to the log, with the key of whoever takes the spans in it."""
    monkeypatch.setenv(name, header.format("hunter2"))
    with pytest.raises(SettingsError) as raised:
        open_traces("otlp", "gradcam", print)
    assert str(raised.value) == (
        "the OTEL_* variables cannot be used: OTEL_EXPORTER_OTLP_HEADERS or OTEL_EXPORTER_OTLP_TRACES_HEADERS has an "
        "entry that is no header: write name=value, with commas between them"
    )
    assert raised.value.__cause__ is None
    assert "hunter2" not in caplog.text


def without_opentelemetry(folder: Path) -> Sequence[str]:
    """Where packages are, but for OpenTelemetry's."""
    for place in sys.path:
        for entry in Path(place).glob("*") if place.endswith("site-packages") else ():
            link = folder / entry.name
            if not entry.name.lower().startswith("opentelemetry") and not link.exists():
                link.symlink_to(entry)
    return [str(Path(__file__).parents[2]), str(folder)]


def test_traces_without_their_packages_are_a_sentence_that_says_what_to_install(tmp_path: Path) -> None:
    environment = {
        "GRADCAM_REDIS_URL": "redis://127.0.0.1:1", "GRADCAM_S3_BUCKET": "cats", "GRADCAM_TRACES": "otlp",
        "PYTHONPATH": os.pathsep.join(without_opentelemetry(tmp_path)), "PATH": os.environ["PATH"],
    }  # fmt: skip
    command = [sys.executable, "-S", "-m", "worker.cli", "--devices", "cpu"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "GRADCAM_TRACES is otlp, which needs more packages: pip install 'gradcam-queue[otel]'" in run.stderr
    assert "Traceback" not in run.stderr


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_has_the_spans_and_attributes_that_there_are() -> None:
    """`make docs` brings it up to date."""
    assert traces_page.PAGE.read_text() == traces_page.renewed()


def test_every_span_and_attribute_that_the_code_sets_is_declared() -> None:
    root = Path(__file__).parents[2]
    code = "".join((root / name).read_text() for name in ("worker/chunks/consumer.py", "worker/chunks/recorder.py"))
    named = re.findall(r'(?:traces\.span|span\.timed)\(\s*"(\w+)"', code)
    assert {"chunk", "weights", "model", "record", "commit", "upload"} == set(named)
    assert set(named) <= set(SPANS)
    assert all(name.startswith("gradcam.") for name in ATTRIBUTES)
