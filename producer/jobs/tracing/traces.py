"""What may be told of a submission and of a chunk, as spans; here it is told to nobody, and nothing is imported for it.

    submit ── chunk ── fetch, decode, explain, …      one trace: the chunks' parent is in the job's entry in Redis
       ╰┄┄┄┄┄ chunk ── fetch, decode, explain, …      from the chunk `CHUNKS_IN_TRACE` on: a trace each, with a link

`open_traces` gives what tells OpenTelemetry (`otlp.py`) where the settings ask for it. A stage has one span in a chunk,
not one an image: it lasts from the first image's begin to the last one's end, and its attributes have the sums.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from producer.jobs.model.settings import TraceExport

#: The value of an attribute.
Fact = str | int | float | bool
#: Called with a sentence: why spans are lost.
Tell = Callable[[str], None]

#: Span → what it covers. The stages of images come as they are named in `gradcam status`.
SPANS: Final = {
    "submit": "`gradcam submit` or `Client.submit`: from the look at the store to the last chunk in Redis",
    "chunk": "one chunk in one worker process, from its claim to its last commit, or until it was given back",
    "weights": "the job's weights are brought to this machine; only where they are not there yet",
    "model": "the model is loaded, or waited for while another is; next to nothing where it is in memory",
    "fetch": "images are fetched",
    "decode": "they are decoded and brought to the network's size",
    "explain": "batches with images of the chunk are on the device",
    "render": "pictures are drawn",
    "encode": "they are encoded",
    "upload": "they are written to the store; with `--pack tar` the shard is",
    "record": "parts of the manifest are written",
    "commit": "what has ended is committed to the job table",
}
#: Attribute → what it says, and of which spans.
ATTRIBUTES: Final = {
    "gradcam.job": "the job (submit, chunk)",
    "gradcam.network": "its network (submit, chunk)",
    "gradcam.images": "images of the submission; images of the chunk that were pending; images of the stage",
    "gradcam.chunks": "chunks of the submission (submit)",
    "gradcam.chunk": "the chunk's number (chunk)",
    "gradcam.attempt": "how many times the chunk was handed out, this time included (chunk)",
    "gradcam.worker": "the worker process (chunk)",
    "gradcam.device": "`cpu` or `cuda` (chunk)",
    "gradcam.done": "images that were explained and committed (chunk)",
    "gradcam.failed": "images that failed and were committed (chunk)",
    "gradcam.complete": "whether nothing of the chunk is left; what is left goes to others (chunk)",
    "gradcam.seconds": "seconds of work: threads work side by side, so it may be more than the span lasts (stages)",
    "gradcam.times": "how often: batches of explain, parts of record and commit, images of the others (stages)",
}
#: Chunks with a lower number are in the submission's trace: no more than a program that shows traces can show.
CHUNKS_IN_TRACE: Final = 200
#: How long the end of a submission or of a process waits for its last spans to be sent.
FLUSH_WITHIN_S: Final = 1.0

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)


def read_traceparent(text: str) -> str:
    """A span's address, a `traceparent` of W3C Trace Context; empty where it is none: it is anybody's until here."""
    return text if _TRACEPARENT.fullmatch(text) else ""


def current_trace_id() -> str | None:
    """The trace that this thread works for, in hexadecimal, for its log; None without one."""
    return _trace_id.get()


@contextmanager
def at_work_for(trace_id: str) -> Iterator[None]:
    """`current_trace_id` gives this in the `with`."""
    token = _trace_id.set(trace_id)
    try:
        yield
    finally:
        _trace_id.reset(token)


class Span:
    """A span that is not recorded. Safe to share between threads.

    Args:
        traceparent: Its address, for those who go on with the trace; empty where there is none.
    """

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    def note(self, **facts: Fact) -> None:
        """Set attributes, by their names without `gradcam.`."""

    def add(self, **counts: int) -> None:
        """Add to attributes that are counts."""

    def stage(self, name: str, began: float, seconds: float, *, images: int = 1) -> None:
        """Take note of work that has just ended; all of a stage becomes one span.

        Args:
            name: Of the stage.
            began: When, in seconds of the monotonic clock.
            seconds: How long the work took.
            images: How many images it was done for.
        """

    def timed(self, name: str, *, images: int = 0) -> AbstractContextManager[None]:
        """Take note of a stage that is what happens in the `with`; also where it raises."""
        return nullcontext()


#: For what nobody wants to know of.
NO_SPAN: Final = Span()


class Traces:
    """Spans that go nowhere."""

    def span(self, name: str, *, parent: str = "", apart: bool = False, **facts: Fact) -> AbstractContextManager[Span]:
        """A span of what happens in the `with`; where that raises, its status says why.

        Args:
            name: One of `SPANS`.
            parent: The address of the span it belongs to, as `read_traceparent` gives it; empty for none.
            apart: Whether it begins a trace of its own, with a link to that span.
            facts: Attributes, by their names without `gradcam.`.
        """
        return nullcontext(NO_SPAN)

    def flush(self, within_s: float = FLUSH_WITHIN_S) -> None:
        """Send the spans that have ended, waiting no longer than that; what is not sent by then may be lost."""


def open_traces(export: TraceExport, service: str, tell: Tell) -> Traces:
    """What spans are told to.

    Args:
        export: The setting.
        service: The service's name, where OTEL_SERVICE_NAME gives no other.
        tell: Called when spans cannot be sent.

    Raises:
        SettingsError: A variable of OpenTelemetry cannot be used.
    """
    if export == "off":
        return Traces()
    from producer.jobs.tracing.otlp import open_otlp

    return open_otlp(service, tell)
