"""A collector of spans: a real HTTP server that reads OTLP, and can hang as a broken one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """A span, as it came over the wire."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    #: The spans that it has links to.
    links: tuple[str, ...]
    began_ns: int
    ended_ns: int
    #: The sentence of a span that failed.
    error: str
    facts: dict[str, Any] = field(default_factory=dict)


class Receiver:
    """What has come so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Received] = []
        #: Requests are answered while this is set.
        self.answers = threading.Event()
        self.answers.set()
        #: How many requests there were.
        self.asked = 0
        #: All bytes that came.
        self.raw = b""
        self.url = ""

    def spans(self, name: str | None = None) -> list[Received]:
        with self._lock:
            return [span for span in self._spans if name in {None, span.name}]

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.raw += body
            for of_resource in request.resource_spans:
                service = _facts(of_resource.resource.attributes)["service.name"]
                for scope in of_resource.scope_spans:
                    self._spans += [_read(span, service) for span in scope.spans]


def _read(span: Any, service: str) -> Received:
    return Received(
        name=span.name,
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        links=tuple(link.span_id.hex() for link in span.links),
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        error=span.status.message,
        facts=_facts(span.attributes),
    )


def _facts(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """A collector, for as long as the `with` lasts; at a free port where none is named."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.asked += 1
            if not receiver.answers.wait(60):
                return
            receiver.take(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """It says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield receiver
        finally:
            receiver.answers.set()
            server.shutdown()
